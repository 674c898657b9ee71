"""The mean over tasks and its deviation over seeds, as the paper has them."""

import pytest

from softprompt.study.paper import TABLE_3, TABLE_3_SUPERGLUE
from softprompt.tasks import mean_name, over_seeds, seed_means


def scores_of(column, seed=0):
    return [
        (f"superglue/{task}", seed, {f"metric{n}": value / 100 for n, value in enumerate(columns[column])})
        for task, columns in TABLE_3.items()
    ]


@pytest.mark.parametrize("column", [0, 1, 2])
def test_the_papers_tasks_make_the_papers_superglue_score(column):
    *tasks, last = over_seeds(scores_of(column))[1:]
    assert tasks[1][:2] == ["superglue/cb", "1"] and len(tasks) == 8
    assert last[:3] == ["SuperGLUE", "1", "mean of the scores"]
    # The paper prints 91.0 where its own numbers, rounded to a decimal, make 91.06.
    assert float(last[3]) == pytest.approx(TABLE_3_SUPERGLUE[column], abs=0.101)


def test_the_deviation_is_that_of_the_seeds_means():
    cells = over_seeds(
        [
            ("a", 0, {"accuracy": 0.5}), ("a", 1, {"accuracy": 0.7}),
            ("b", 0, {"em": 0.2, "f1": 0.4}), ("b", 1, {"em": 0.0, "f1": 0.2}),
        ]
    )  # fmt: skip
    assert cells == [
        ["task", "seeds", "metrics", "score"],
        ["a", "2", "accuracy 60.0", "60.0 ± 14.1"],
        ["b", "2", "em 10.0, f1 30.0", "20.0 ± 14.1"],
        ["2 tasks", "2", "mean of the scores", "40.0 ± 0.0"],
    ]


def test_a_seed_that_lacks_a_task_is_in_no_mean():
    scores = [("a", 0, 0.5), ("b", 0, 0.3), ("a", 1, 0.9)]
    assert seed_means(scores) == [pytest.approx(40.0)] and seed_means(scores[1:]) == []
    *_, last = over_seeds([(task, seed, {"accuracy": value}) for task, seed, value in scores[1:]])
    assert last == ["2 tasks", "0", "mean of the scores", "-"]


def test_a_mean_over_superglue_s_tasks_is_called_so():
    eight = [task for task, _, _ in scores_of(0)]
    assert mean_name(eight) == "SuperGLUE" and mean_name(eight[:2]) == "2 tasks"
    assert mean_name(set(eight) - {"superglue/record"}) == "SuperGLUE-7, without ReCoRD"
    assert mean_name([*eight, "superglue/axb"]) == "9 tasks"
