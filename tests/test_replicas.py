"""Several replicas with one folder of prompts: what one changes, all know before their next answer."""

import os
import shutil
import threading
import time
from contextlib import ExitStack

import pytest
from test_server import MEMORY, TEXT, archive, make_prompt, saved, served, why

from softprompt.prompts import save_prompt
from softprompt.serving.http.access import Access
from softprompt.serving.http.registry import Registry, Shared, by_hand
from softprompt.serving.http.state import Server
from softprompt.serving.http.wire import Limits
from softprompt.serving.scheduler import Scheduler

HOUR = 3_600.0


def make_replica(lm, folder, *, given=None, hands=(), seconds=HOUR):
    scheduler = Scheduler(lm, max_memory=MEMORY)
    registry = Registry(scheduler.table, lm.name, folder, shared=Shared(tuple(hands), seconds))
    for name, place in (given or {}).items():
        registry.add(name, place)
    registry.open()
    return Server(scheduler, registry, Access(), Limits(timeout=60.0))


@pytest.fixture
def two(llama, tmp_path):
    """Two replicas, and what makes more of them."""
    (tmp_path / "kept").mkdir()
    given = {"given": saved(llama, tmp_path / "given", seed=5)}
    with ExitStack() as stack:

        def another(**options):
            return stack.enter_context(served(make_replica(llama, tmp_path / "kept", given=given, **options)))

        yield another(), another(), another


def worn(client, name, **more):
    answer = client.post("/v1/classify", json={"model": name, "input": TEXT} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["prompt_hash"]


def test_every_replica_sees_uploads_aliases_and_deletions_before_its_next_answer(two, llama, tmp_path):
    one, other, another = two
    hashes = []
    for seed, (sender, reader) in ((11, (one, other)), (12, (other, one))):
        answer = sender.put("/v1/prompts/sst2", content=archive(saved(llama, tmp_path / f"v{seed}", seed=seed)))
        hashes.append(answer.json()["versions"][-1]["prompt_hash"])
        assert worn(reader, "sst2") == worn(sender, "sst2") == hashes[-1]
    for number in range(40):  # faster than a clock's ticks
        sender, reader = (one, other) if number % 2 else (other, one)
        target = f"sst2@{hashes[number % 2][:12]}"
        assert sender.put("/v1/aliases/prod", json={"targets": {target: 100}}).status_code == 200
        assert worn(reader, "prod") == hashes[number % 2]
    assert one.put("/v1/ensembles/both", json={"members": ["sst2", "given"]}).status_code == 200
    assert len(other.post("/v1/classify", json={"model": "both", "input": TEXT}).json()["results"][0]["votes"]) == 2
    shares = {f"sst2@{hash[:12]}": 50 for hash in hashes}
    assert other.put("/v1/aliases/prod", json={"targets": shares}).status_code == 200
    users = [f"user {number}" for number in range(20)]
    assert [worn(one, "prod", user=user) for user in users] == [worn(other, "prod", user=user) for user in users]
    for name in ("both", "prod", f"sst2@{hashes[0][:12]}"):
        assert one.delete(f"/v1/prompts/{name}").status_code == 200
        assert other.delete(f"/v1/prompts/{name}").status_code == 404
    late = another()
    lists = [client.get("/v1/prompts").json() for client in (one, other, late)]
    assert lists[0] == lists[1] == lists[2]
    assert [len(prompt["versions"]) for prompt in lists[0]["prompts"]] == [1, 1]
    other.delete("/v1/prompts/sst2")
    assert why(one.post("/v1/classify", json={"model": "sst2", "input": TEXT}), 404).startswith(
        "no prompt named 'sst2'"
    )


def test_changes_of_several_replicas_at_once_are_all_kept(two, llama, tmp_path):
    one, other, another = two
    data, answers = archive(saved(llama, tmp_path / "new", seed=9)), []

    def change(client, who):
        for number in range(6):
            answers.append(client.put(f"/v1/prompts/{who}-{number}", content=data))
            answers.append(client.put(f"/v1/aliases/to-{who}-{number}", json={"targets": {f"{who}-{number}": 100}}))

    threads = [threading.Thread(target=change, args=pair) for pair in ((one, "a"), (other, "b"), (one, "c"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    for client in (one, other, another()):
        names = {model["id"] for model in client.get("/v1/models").json()["data"]}
        assert names == {"tiny-llama", "given"} | {
            f"{to}{who}-{number}" for to in ("", "to-") for who in "abc" for number in range(6)
        }


def test_a_request_wears_to_its_end_what_another_replica_deletes(llama, tmp_path):
    """Though its numbers have left the memory: the folder stays as long as a request may last."""
    prompt = make_prompt(llama, 21)
    one, other = (make_replica(llama, tmp_path, seconds=1.5) for _ in range(2))
    one.registry.upload("mine", prompt)
    other.registry.catch_up()
    with other.registry.hold("mine", 0.0) as held:
        table = other.registry.table
        table.limit(0)
        one.registry.remove("mine")
        assert (tmp_path / "mine" / prompt.identity).is_dir()
        other.registry.catch_up()
        assert "mine" not in other.registry.names()
        assert table.values(held.prompts[0]).equal(prompt.values)
    for _ in range(100):
        if not (tmp_path / "mine").exists():
            break
        time.sleep(0.1)
    assert not (tmp_path / "mine").exists()


def test_what_is_uploaded_again_keeps_its_folder(llama, tmp_path):
    prompt = make_prompt(llama, 21)
    one, other = (make_replica(llama, tmp_path, seconds=0.2) for _ in range(2))
    one.registry.upload("mine", prompt)
    one.registry.remove("mine")
    other.registry.upload("mine", prompt)
    time.sleep(0.5)
    assert (tmp_path / "mine" / prompt.identity).is_dir()


def test_prompts_by_hand_are_those_of_the_first_start_in_each_replica(llama, tmp_path):
    for name in ("a", "b"):
        saved(llama, tmp_path / name, seed=ord(name))
    hands = by_hand(tmp_path)
    one = make_replica(llama, tmp_path, hands=hands)
    saved(llama, tmp_path / "late", seed=3)
    other = make_replica(llama, tmp_path, hands=hands)
    assert hands == ("a", "b") and one.registry.names() == other.registry.names() == ["tiny-llama", "a", "b"]
    one.registry.remove("a")
    assert other.registry.is_behind
    other.registry.catch_up()
    with pytest.warns(UserWarning, match="a in .* is not served: a: it was deleted here; upload it to have it back"):
        third = make_replica(llama, tmp_path, hands=hands)
    assert other.registry.names() == third.registry.names() == ["tiny-llama", "b"]


def test_replicas_have_one_word_for_what_cannot_be_shared(two, llama, tmp_path):
    one, _, _ = two
    reason = why(one.delete("/v1/prompts/given"), 409)
    assert reason == "given was named when the server was started, for all replicas; start without it"
    with served(make_replica(llama, None, given={"given": tmp_path / "given"})) as alone:
        reason = why(alone.put("/v1/aliases/prod", json={"targets": {"given": 100}}), 409)
        assert reason == "replicas keep what changes in a folder; start the server with --prompts-dir DIR"
        assert worn(alone, "given")


def test_answers_go_on_while_the_storage_is_away_and_changes_when_it_is_back(two, llama, tmp_path):
    one, other, _ = two
    data = archive(saved(llama, tmp_path / "new", seed=9))
    identity = one.put("/v1/prompts/mine", content=data).json()["versions"][0]["prompt_hash"]
    assert worn(other, "mine") == identity
    os.rename(tmp_path / "kept", tmp_path / "away")
    assert worn(one, "mine") == worn(other, "mine") == identity
    assert why(one.put("/v1/aliases/prod", json={"targets": {"mine": 100}}), 507).startswith("could not be kept")
    assert why(one.delete("/v1/prompts/mine"), 507).startswith("could not be kept")
    (tmp_path / "kept").mkdir(exist_ok=True)  # as a mount point is
    assert why(one.put("/v1/prompts/mine", content=data), 507).startswith("could not be kept")
    assert worn(one, "mine") == identity
    shutil.rmtree(tmp_path / "kept")
    os.rename(tmp_path / "away", tmp_path / "kept")
    assert one.put("/v1/aliases/prod", json={"targets": {"mine": 100}}).status_code == 200
    assert worn(other, "prod") == identity


def test_a_registry_that_somebody_spoils_is_told_and_changes_no_name(llama, tmp_path):
    one, other = (make_replica(llama, tmp_path) for _ in range(2))
    one.registry.upload("mine", make_prompt(llama, 21))
    other.registry.catch_up()
    (tmp_path / "registry.json").write_text("{")
    with pytest.warns(
        UserWarning, match=r"registry.json is not a registry of .*; until then the names stay as they are"
    ):
        other.registry.catch_up()
    assert other.registry.names() == ["tiny-llama", "mine"] and not other.registry.is_behind


def test_an_upload_that_cannot_be_read_is_left_out_where_it_cannot(llama, tmp_path):
    one, other = (make_replica(llama, tmp_path) for _ in range(2))
    one.registry.upload("mine", make_prompt(llama, 21))
    (version,) = one.registry.upload("bad", make_prompt(llama, 22))
    shutil.rmtree(version.folder)
    with pytest.warns(UserWarning, match="bad@.* is not served"):
        other.registry.catch_up()
    assert other.registry.names() == ["tiny-llama", "mine"]
    save_prompt(make_prompt(llama, 22), version.folder)
    one.registry.set_alias("prod", {"mine": 100})
    other.registry.catch_up()
    assert other.registry.names() == ["tiny-llama", "mine", "bad", "prod"]
