"""What the paper prints of several tasks and seeds: each task's scores, and the mean over tasks with its deviation."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from softprompt.tasks.task import headline

SUPERGLUE = {f"superglue/{name}" for name in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")}
"""The eight tasks of its score; the diagnostic sets are not among them."""


def spread(values: Sequence[float]) -> str:
    """Percentages as a cell of a table: their mean, and their deviation where there are several."""
    if not values:
        return "-"
    return f"{fmean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{fmean(values):.1f}"


def mean_name(tasks: Iterable[str]) -> str:
    """What the mean over these tasks is called; without ReCoRD's data it is not SuperGLUE's."""
    there = set(tasks)
    if there == SUPERGLUE:
        return "SuperGLUE"
    if there == SUPERGLUE - {"superglue/record"}:
        return "SuperGLUE-7, without ReCoRD"
    return f"{len(there)} tasks"


def seed_means(scores: Iterable[tuple[str, int, float]]) -> list[float]:
    """Each seed's mean over all tasks, in percent, of the seeds that have every task. scores: task, seed, 0..1."""
    by_seed: dict[int, dict[str, float]] = {}
    for task, seed, score in scores:
        by_seed.setdefault(seed, {})[task] = 100 * score
    tasks = {task for of_tasks in by_seed.values() for task in of_tasks}
    return [fmean(of_tasks.values()) for of_tasks in by_seed.values() if of_tasks.keys() == tasks]


def over_seeds(scores: Sequence[tuple[str, int, Mapping[str, float]]]) -> list[list[str]]:
    """A table's cells, the heads in the first row: a line for each task, and behind several the mean over them.

    scores: task, seed, metrics. The mean is of the seeds that have every task; each task's metrics are averaged first.
    """
    cells = [["task", "seeds", "metrics", "score"]]
    for task in dict.fromkeys(task for task, _, _ in scores):
        own = [metrics for name, _, metrics in scores if name == task]
        means = [f"{name} {100 * fmean(metrics[name] for metrics in own):.1f}" for name in own[0]]
        cells.append([task, f"{len(own)}", ", ".join(means), spread([100 * headline(metrics) for metrics in own])])
    if len(cells) > 2:
        of_seeds = seed_means((task, seed, headline(metrics)) for task, seed, metrics in scores)
        name = mean_name(task for task, _, _ in scores)
        cells.append([name, f"{len(of_seeds)}", "mean of the scores", spread(of_seeds)])
    return cells
