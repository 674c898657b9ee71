"""The report: one page with nothing loaded from elsewhere, a picture for each figure, and the paper's numbers."""

import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from softprompt.answering.rows import Result, append_rows, read_rows
from softprompt.cli.command_line import main
from softprompt.study.paper import TABLE_3
from softprompt.study.report import (
    _courses,
    _ensembles,
    _hours,
    _mean_of,
    _of_common_tasks,
    _our_lines,
    write_report,
)
from softprompt.study.rows import VOTE, table_cells


def row(
    experiment="figure-3a", point="20", seed=0, value=0.5, scoring="generate", frozen="micro", asked=None,
    task="glue/sst2", **more,
):  # fmt: skip
    if asked:
        frozen = asked.split("/")[1] if "/" in asked else "mini"
    parameters = {"micro": 2_700_000, "mini": 14_400_000}[frozen]
    config = {
        "point": point, "asked": asked or f"family/{frozen}", "frozen": asked or frozen, "num_parameters": parameters,
        "out": f"runs/{frozen}", **more,
    }  # fmt: skip
    given = {
        "experiment": experiment,
        "config": config,
        "model": frozen,
        "task": task,
        "split": "dev",
        "selection": "held-out",
        "scoring": scoring,
        "metrics": {"accuracy": value},
        "value": value,
        "illegal_rate": 0.25,
        "num_examples": 872,
        "step": 100,
        "steps_run": 200,
        "seconds": 3600.0,
        "seed": seed,
        "notes": {"share_of_official": 0.5, "train_cut": 10, "train_used": 100, "scored_cut": 1},
        "device": "a processor",
        "dtype": "float32",
        "commit": "abc1234",
    }
    return Result(**given)


ROWS = [
    row(point=point, seed=seed, value=value + 0.01 * seed, frozen=frozen)
    for point, value in (("1", 0.5), ("20", 0.6))
    for frozen in ("micro", "mini")
    for seed in (0, 1, 2)
]
METHODS = [
    row("figure-1", point, seed, value, "rank", asked=asked, **more)
    for asked in ("family/micro/lm", "family/mini/lm", "other-135m")
    for point, value, more in (
        ("prompt tuning", 0.6, {"method": "prompt-tuning"}),
        ("prompt design, 4 shots", 0.5, {"method": "prompt-design", "shots": 4}),
    )
    for seed in (0, 1)
]
TRANSFERS = [
    row("table-2", f"{method}, glue/qqp", seed, value, "rank", trained_on="glue/qqp", method=method, task=task)
    for method, gain in (("prompt-tuning", 0.1), ("model-tuning", 0.0))
    for task, value in (("glue/qqp", 0.7 - gain), ("glue/mrpc", 0.6 + gain))
    for seed in (0, 1)
]
VOTES = [row("table-3", "five prompts", seed, 0.7 + 0.01 * seed) for seed in (0, 1, VOTE)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report([*ROWS, *METHODS, *TRANSFERS, *VOTES], folder)


def test_the_page_holds_everything_and_loads_nothing(page):
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    pictures = {path.stem for path in page.parent.glob("*.png")}
    assert pictures == {"figure-1", "figure-3a", "figure-3b", "figure-3c", "figure-3d", "figure-4"}
    assert text.count("data:image/png;base64,") == len(pictures)
    for path in page.parent.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_ours_and_the_papers_numbers_are_there(page):
    text = page.read_text()
    assert "<td>family/micro</td><td>20</td><td>generate</td><td>61.0 ± 1.0</td>" in text
    assert "<td>65.7 / 88.7</td>" in text  # the paper's MultiRC, table 3
    assert "prints 10,420 trainable" in text  # its misprint, table 4
    cells = "<td>generate</td><td>accuracy</td><td>70.5</td><td>71.0</td><td>69.0</td>"
    assert f"<td>micro</td><td>glue/sst2</td>{cells}" in text
    assert "<tr><td>SuperGLUE</td><td>90.5</td><td>91.0</td><td>91.3</td></tr>" in text


def test_what_was_run_and_what_was_not_is_said(page):
    text = page.read_text()
    assert "glue/sst2; 3 seeds; prompts chosen by held-out rows; about 2.0 hours on a processor, float32;" in text
    assert "10.0% of training inputs cut, 0.1% of scored ones; as little as 50% of the official training data" in text
    assert "Not run here: softprompt experiment figure-3b --models M makes its rows." in text
    # What the rows of a model lack is named too, and time and machines are those of all of them.
    assert "family/micro has no rows of 5, 100, 150." in text
    assert "family/micro/lm has no rows of model tuning, model tuning from span, model tuning (multi-task)." in text
    assert "Not run here: softprompt experiment table-1" in text and "<td>textbookqa</td>" in text


def test_transfer_is_shown_with_the_difference_of_the_methods(page):
    text = page.read_text()
    for task, prompt, model, apart in (("qqp", 60, 70, "-10.0"), ("mrpc", 70, 60, "+10.0")):
        cells = f"{prompt}.0 ± 0.0</td><td>{model}.0 ± 0.0</td><td>{apart}"
        assert f"<td>glue/qqp</td><td>glue/{task}</td><td>accuracy</td><td>{cells}</td>" in text
    assert "<td>qqp to mrpc</td><td>accuracy</td><td>76.3 ± 0.1</td><td>73.1 ± 0.9</td><td>+3.2</td>" in text


def test_each_family_of_models_has_its_own_line_in_figure_1():
    lines = {(line.name, line.family): [x for x, _ in line.points] for line in _our_lines(METHODS)}
    assert lines == {
        (point, family): sizes
        for family, sizes in (("family", [2.7, 14.4]), ("other", [14.4]))
        for point in ("prompt tuning", "prompt design, 4 shots")
    }


def test_hours_count_every_training_once():
    together = [row("figure-3a", point, seed) for point in ("1", "20") for seed in (0, 1, VOTE)]
    assert _hours(together) == 1.0
    places = [replace(one, config=one.config | {"out": f"runs/{one.config['point']}"}) for one in together]
    assert _hours(places) == 1.0, "points that train together have folders of their own"
    assert _hours([*places, row("figure-3a", "20", 2, frozen="mini")]) == 2.0
    # One stopped before the other; another seed was added by a later run.
    histories = [(3600.0, 60.0), (1800.0, 60.0), (3600.0, 61.0)]
    apart = [
        replace(row("figure-3a", "20", seed), seconds=seconds, notes={"history": [{"seconds": first}]})
        for seed, (seconds, first) in enumerate(histories)
    ]
    assert _hours(apart[:2]) == 1.0 and _hours(apart) == 2.0
    tuned = {"method": "model-tuning", "tried": [{}, {}, {}, {}], "out": "runs/tuned"}
    assert _hours([row("figure-1", "model tuning", seed, **tuned) for seed in (0, 1, 2)]) == 4 + 2
    words = {"method": "prompt-design", "tried": [{}] * 30, "out": "runs/words"}
    assert _hours([row("figure-1", "prompt design, 4 shots", 0, shots=n, **words) for n in (0, 4)]) == 2.0


def test_a_task_that_was_not_run_is_named_with_the_reason(tmp_path):
    notes = {"not_run": {"mrqa/textbookqa": "no dev file of mrqa/textbookqa in DATA"}}
    rows = [replace(one, notes=one.notes | notes) for one in TRANSFERS]
    page = write_report(rows, tmp_path).read_text()
    assert "mrqa/textbookqa was not run: no dev file of mrqa/textbookqa in DATA." in page


def test_the_majority_class_is_read_beside_the_study(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    append_rows(tmp_path / "results" / "study.jsonl", ROWS)
    majority = [replace(row("baselines", "-", 0, 0.5, method="majority"), notes={"right": "10" * 436})]
    append_rows(tmp_path / "results" / "baselines.jsonl", majority)
    assert main(["report", "--out", "out"]) == 0
    assert "13 rows" in capsys.readouterr().out


def test_the_same_rows_make_the_same_bytes(page, tmp_path):
    again = write_report([*ROWS, *METHODS, *TRANSFERS, *VOTES], tmp_path)
    assert again.read_bytes() == page.read_bytes()


CONFUSION = {"good": {"good": 30, "bad": 10}, "bad": {"bad": 15, "good": 4, "": 1}}


def test_the_page_of_a_run_tells_where_it_is_wrong(tmp_path):
    runs = [row("train", task="own", frozen="mini", seed=seed) for seed in (0, 1)]
    runs = [replace(run, notes={"confusion": CONFUSION}) for run in runs]
    text = write_report(runs, tmp_path).read_text()
    assert "What prompts score, and where they are wrong" in text and "Lester" not in text
    assert "Where answers are wrong: own dev, mini" in text
    assert (
        "The answers of 2 rows together. Most often wrong: good as bad (20), bad as good (8), bad as no label (2)."
        in text
    )
    assert "<tr><td>bad</td><td>0.600</td><td>0.750</td><td>40</td></tr>" in text
    assert (tmp_path / "where-wrong-1.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_shows_the_confusions_of_its_rows(tmp_path):
    text = write_report([*ROWS, replace(row(seed=7), notes={"confusion": CONFUSION})], tmp_path).read_text()
    assert "Where answers are wrong: glue/sst2 dev, micro" in text and "run again" in text


def test_the_picture_of_very_many_labels_has_the_worst(tmp_path):
    many = {f"intent {i}": {f"intent {i}": 9, f"intent {i * 7 % 90}": i % 5 + 1} for i in range(90)}
    run = replace(row("eval", task="own"), notes={"confusion": many})
    assert "The picture has the 30 of 90 labels that are wrong most often." in write_report([run], tmp_path).read_text()


def test_the_command(tmp_path, capsys):
    append_rows(tmp_path / "rows.jsonl", ROWS)
    assert main(["report", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'index.html'}: 12 rows, 6 pictures beside it\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "",
            "none of the 0 rows is of an experiment, a training or an eval; make some with softprompt experiment NAME",
        ),
        (ROWS[0].to_json()[:50], "rows.jsonl, line 1: half a row, or none"),
        (
            ROWS[0].to_json().replace('"task"', '"colour"'),
            "line 1: a row of another version (it differs in colour, task)",
        ),
        (
            ROWS[0].to_json().replace('"task": "', '"task": 1, "scoring": "'),
            "rows.jsonl, line 1: task is 1, but must be text",
        ),
        ("[1]", "line 1: half a row, or none (wanted an object, got [1]); take the line out"),
    ],
)
def test_rows_that_cannot_be_read_are_said_with_their_line(tmp_path, capsys, content, reason):
    (tmp_path / "rows.jsonl").write_text(content)
    assert main(["report", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)]) == 2
    assert "no file" in capsys.readouterr().err


def test_rows_come_back_as_they_were_written(tmp_path):
    append_rows(tmp_path / "rows.jsonl", ROWS)
    assert read_rows(tmp_path / "rows.jsonl") == ROWS


def test_scores_along_training_are_drawn_method_by_method(tmp_path):
    rows = [
        replace(
            row("table-1", method, seed, 0.5, "generate", task=f"mrqa/{task}", method=method, trained_on="mrqa/squad"),
            notes={"along": [{"step": step, "scores": [share * step, 0.02 * seed]} for step in (1, 2)]},
        )
        for method, shares in (("prompt-tuning", (0.2, 0.1)), ("model-tuning", (0.5, 0.2)))
        for task, share in zip(("squad", "race"), shares, strict=True)
        for seed in (0, 1)
    ]
    prompts, model = _courses(rows[::-1])  # in this order, whatever that of the rows
    assert [round(one.mean, 3) for at in prompts.points for one in at] == [10.5, 5.5, 20.5, 10.5]
    assert [round(one.mean, 3) for at in model.points for one in at] == [25.5, 10.5, 50.5, 20.5]
    assert all(one.deviation == pytest.approx(2**-0.5) for at in prompts.points for one in at)  # of seeds 1 apart
    text = write_report(rows, tmp_path).read_text()
    # Prompts do best at 0.2 of half the examples, model tuning's nearest step has 0.25: (0.2 - 0.25) / 2 and so on.
    assert "<td>mrqa/squad</td><td>mrqa/squad</td><td>-5.0</td>" in text
    assert "<td>mrqa/squad</td><td>mrqa/race</td><td>+0.0</td>" in text
    assert "Trained on SQuAD as MRQA has it, 86,588 questions" in text
    assert "carries over better at equal quality at home" in text and (tmp_path / "table-1.png").stat().st_size > 10_000
    assert _courses([r for r in rows if r.task == "mrqa/squad"]) == []


def test_two_sizes_of_a_family_keep_names_of_their_own(tmp_path):
    rows = [
        replace(
            row("table-1", method, 0, 0.5, task=f"mrqa/{task}", method=method, trained_on="mrqa/squad", asked=asked),
            notes={"along": [{"step": 1, "scores": [share, 0.0]}]},
        )
        for asked in ("family/micro/lm", "family/mini/lm")
        for method in ("prompt-tuning", "model-tuning")
        for task, share in (("squad", 0.5), ("race", 0.4))
    ]
    sizes = ("micro/lm", "mini/lm")
    assert [(course.method, course.of) for course in _courses(rows)] == [
        (method, f"mrqa/squad, {size}") for method in ("prompt tuning", "model tuning") for size in sizes
    ]
    votes = [row("table-3", "five prompts", seed, asked=f"family/{size}") for size in sizes for seed in (0, VOTE)]
    text = write_report([*rows, *votes], tmp_path).read_text()
    for size in sizes:
        assert f"<td>{size}</td><td>mrqa/squad</td><td>mrqa/race</td><td>accuracy</td>" in text
        assert f"<td>{size}</td><td>mrqa/squad</td><td>mrqa/race</td><td>+0.0</td>" in text
        assert f"<td>{size}</td><td>glue/sst2</td><td>generate</td><td>accuracy</td><td>50.0</td>" in text
    many = [replace(r, config=r.config | {"asked": f"m{n}", "frozen": f"m{n}"}) for n in range(8) for r in rows[:4]]
    assert len(_courses(many)) == 16 and write_report(many, tmp_path).is_file(), "more models than there are markers"


def test_a_mean_is_called_what_it_is():
    names = ("boolq", "cb", "copa", "multirc", "rte", "wic", "wsc")
    seven = [row(task=f"superglue/{name}") for name in names]
    assert _mean_of(seven) == "mean score, SuperGLUE-7, without ReCoRD"
    assert _mean_of([*seven, row(task="superglue/record")]) == "mean score, SuperGLUE"
    assert _mean_of(seven[:2]) == "mean score, boolq, cb" and _mean_of(seven[:1]) == "score, boolq"
    assert _mean_of(seven[:5]) == "mean score, 5 tasks"


def test_models_and_points_are_compared_on_the_tasks_that_all_of_them_have(tmp_path):
    rows = [row(frozen="micro"), row(frozen="mini"), row(frozen="mini", task="glue/mrpc")]
    shown, is_common = _of_common_tasks(rows)
    assert {r.task for r in shown} == {"glue/sst2"} and is_common
    assert _of_common_tasks(rows[:1] + rows[2:]) == (rows[:1] + rows[2:], False)
    # Two points of one model.
    more = [row(point="1", value=0.5), row(point="20", value=0.6), row(point="20", value=0.8, task="glue/mrpc")]
    shown, _ = _of_common_tasks(more)
    assert [(line.name, line.points[0][1].mean) for line in _our_lines(shown)] == [("1", 50), ("20", 60)]
    text = write_report(more, tmp_path).read_text()
    assert "the mean over the tasks that every model and point has" in text
    text = write_report([more[0], more[2]], tmp_path).read_text()
    assert "each over its own tasks" in text and "every model and point" not in text


def test_sizes_are_told_beside_the_papers(tmp_path):
    text = write_report(ROWS, tmp_path).read_text()
    assert "share of the paper&#x27;s Small: 2.7 million (1/29), 14.4 million (1/5)." in text


def test_a_task_that_is_scored_one_way_alone_is_in_every_mean():
    cb, wsc = {"task": "superglue/cb"}, {"task": "superglue/wsc", "scoring": "generate"}
    both = [row(value=0.4, scoring="rank", **cb), row(value=0.2, scoring="generate", **cb), row(value=0.6, **wsc)]
    head, *lines = table_cells(both)
    written, ranked = sorted(lines, key=lambda line: line[2])
    assert head[2:6] == ["scoring", "superglue/cb", "superglue/wsc", "mean"]
    assert written[2:6] == ["generate", "20.0", "60.0", "40.0"]
    more = [*both, *(replace(r, seed=1, value=r.value + 0.1) for r in both)]
    assert {line[5] for line in table_cells(more)[1:]} == {"45.0 ± 7.1", "55.0 ± 7.1"}
    assert ranked[2:6] == ["rank (wsc: generate)", "40.0", "60.0", "50.0"]
    _, line = table_cells([both[0], both[2]])  # neither is scored both ways: one line has them
    assert line[2:6] == ["rank (wsc: generate)", "40.0", "60.0", "50.0"]


def test_table_3_has_the_papers_pairs_of_metrics_and_its_last_row():
    pairs = {0: (0.9, 0.5), 1: (0.8, 0.8), VOTE: (1.0, 0.9)}
    rows = []
    for seed, (accuracy, f1) in pairs.items():
        cb = row("table-3", "five prompts", seed, (accuracy + f1) / 2, "rank", task="superglue/cb")
        rows.append(replace(cb, metrics={"accuracy": accuracy, "macro_f1": f1}))
        rows.append(row("table-3", "five prompts", seed, 0.6, "generate", task="superglue/wsc"))
    assert _ensembles(rows)[1:] == [
        ["micro", "superglue/cb", "rank", "accuracy / macro_f1", "85.0 / 65.0", "80.0 / 80.0", "100.0 / 90.0"],
        ["micro", "superglue/wsc", "generate", "accuracy", "60.0", "60.0", "60.0"],
        ["micro", "2 tasks", "rank", "mean of the scores", "67.5", "70.0", "77.5"],
    ]


def test_rows_of_training_make_the_mean_over_tasks_and_its_deviation_over_seeds(tmp_path):
    runs = []
    for seed, value in ((0, 0.4), (1, 0.6)):
        for name in TABLE_3:
            task = f"superglue/{name}"
            runs.append(row("train", seed=seed, value=value, task=task, preset="paper", init=None, prompt_length=100))
            runs.append(row("train", seed=seed, value=0.9, task=task, preset="paper", init=None, prompt_length=5))
    text = write_report(runs, tmp_path).read_text()
    line = "<td>micro</td><td>{}</td><td>2</td><td>{}</td><td>{}</td>"
    assert line.format("superglue/cb", "accuracy 50.0", "50.0 ± 14.1") in text
    assert line.format("SuperGLUE", "mean of the scores", "50.0 ± 14.1") in text
    assert line.format("SuperGLUE", "mean of the scores", "90.0 ± 0.0") in text, (
        "other settings have lines of their own"
    )
    assert "<td>the paper, Small</td><td>SuperGLUE</td><td>3</td><td>mean of the scores</td><td>58.5 ± 1.2</td>" in text
    write_report(runs[:1], tmp_path)
    assert "mean of the scores" not in (tmp_path / "index.html").read_text(), "of one prompt there is no mean"


def test_the_legend_of_a_figure_names_every_model(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **more: drawn.append(self) or save(self, *given, **more)
    )
    for rows, models in (
        (METHODS, ["family/micro, family/mini", "other-135m"]),
        (METHODS[:2], ["family/micro"]),
    ):
        drawn.clear()
        write_report(rows, tmp_path)
        names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
        assert names[-len(models) :] == models and "prompt tuning" in names
