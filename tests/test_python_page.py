"""docs/python.md, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_code_of_the_page_runs(monkeypatch, tmp_path):
    from fastapi.testclient import TestClient

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S))
    names: dict = {}
    exec(code, names)
    assert [each.prompt.values.shape[1] for each in names["trained"]] == [names["lm"].width] * 2
    assert [len(row) for row in names["scores"]] == [2, 2]
    assert len(names["written"]) == 2
    with TestClient(names["app"], "http://localhost") as client:
        answer = client.post("/v1/classify", json={"model": "intents-1", "fields": {"message": "where is it?"}})
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["label"] in names["config"].labels


def test_what_is_embedded_pulls_in_no_data_sets_logs_or_readers_of_other_formats():
    code = """
import sys, softprompt, softprompt.serving
for face in (softprompt, softprompt.serving):
    for name in face.__all__:
        getattr(face, name)
print([name for name in ("datasets", "tensorboard", "gguf", "peft", "matplotlib", "fastapi") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
