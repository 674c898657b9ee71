"""The study's rows as tables: which of them count, what they are of, and one experiment's lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from softprompt.answering import Result
from softprompt.study.comparison import MULTI_TASK, settings_of_row
from softprompt.tasks import seed_means, spread

VOTE = -1  # the seed of an ensemble's row
# As in t5-small-lm-adapt, gemma-3-270m, SmolLM2-1.7B.
SIZE_IN_NAME = re.compile(r"[-_](mini|small|base|large|xl|xxl|\d+(\.\d+)?[mb])(?=[-_]|$)", re.IGNORECASE)


def told(row: Result, name: str) -> Any:
    """What a row says by that name, in a field of its own or in its configuration; None where neither does."""
    return getattr(row, name) if hasattr(row, name) else row.config.get(name)


def where(rows: Iterable[Result], **wanted: Any) -> list[Result]:
    """The rows that say all of this, each by its name as `told` has it."""
    return [row for row in rows if all(told(row, name) == value for name, value in wanted.items())]


def grouped(rows: Iterable[Result], *keys: str | Callable[[Result], Any]) -> dict[Any, list[Result]]:
    """The rows by what they say by a name, as `told` has it, or by a function; by several, as a tuple.

    In the order in which what they say first comes.
    """
    groups: dict[Any, list[Result]] = {}
    for row in rows:
        values = tuple(told(row, key) if isinstance(key, str) else key(row) for key in keys)
        groups.setdefault(values if len(keys) > 1 else values[0], []).append(row)
    return groups


def trained_on(row: Result) -> str:
    """The task of a row's training rows: another than its own for what was scored away from home."""
    return row.config.get("trained_on", row.task)


def point_of(row: Result) -> tuple[Any, ...]:
    """What a row measures, whatever its settings and its seed."""
    about = (row.config.get(name) for name in ("asked", "frozen", "point", "shots"))
    return (row.experiment, *about, trained_on(row), row.task, row.scoring)


def newest(rows: Sequence[Result]) -> list[Result]:
    """Of several rows for one point, model, task, scoring and seed, the last; and of rows of one point with other
    settings, or of another model under the same name, those like the last.
    """

    def made_with(row: Result) -> tuple[Any, ...]:
        together = row.config["task"] if row.config.get("method") == MULTI_TASK else None
        return settings_of_row(row), row.config.get("fingerprint"), together

    last = {point_of(row): made_with(row) for row in rows}
    kept = {(point_of(row), row.seed): row for row in rows if made_with(row) == last[point_of(row)]}
    return list(kept.values())


def short_name(model: str) -> str:
    """A model as tables name it, without what is this machine's: of a family's checkpoints the size, too (mini/lm)."""
    return "/".join(Path(model).parts[-2:])


def size_of(row: Result) -> Path:
    """The model of a size that was asked about: the folder of its checkpoints, whichever of them it was, or itself."""
    place = Path(row.config["asked"])
    return place.parent if place.name in ("lm", "span") else place


def family_of(row: Result) -> str:
    """What the sizes of one line have in common: the folder that holds them, or the name but for the size in it."""
    asked, place = Path(row.config["asked"]), size_of(row)
    if asked == place and len(place.parts) <= 2:  # a hub id, or a name
        return SIZE_IN_NAME.sub("", str(place))
    return str(place.parent) if place.parent.name else place.name


def scored_by(rows: Sequence[Result], scoring: str) -> list[Result]:
    """The rows scored so, and those of tasks that a point is never scored so on: WSC can only be written."""
    there = {(row.config["asked"], row.config["point"], row.task) for row in where(rows, scoring=scoring)}
    return [r for r in rows if r.scoring == scoring or (r.config["asked"], r.config["point"], r.task) not in there]


def by_scoring(rows: Sequence[Result]) -> dict[str, list[Result]]:
    """A point's rows by how they were scored, as `scored_by` has them; one entry where each task is scored one way
    alone.
    """
    lines: dict[str, list[Result]] = {}
    for scoring in dict.fromkeys(row.scoring for row in rows):
        line = scored_by(rows, scoring)
        if line not in lines.values():
            lines[scoring] = line
    return lines


def table(rows: Sequence[Result]) -> str:
    """`table_cells` as markdown."""
    head, *body = [f"| {' | '.join(cells)} |" for cells in table_cells(rows)]
    return "\n".join([head, f"|---|---|---|{'--:|' * (head.count('|') - 4)}", *body])


def table_cells(rows: Sequence[Result]) -> list[list[str]]:
    """Rows of one experiment as cells: each point by each scoring, the tasks' means and deviations over seeds.

    A task that is scored one way alone stands in every line, which says so. What pools tasks (the mean with its
    deviation over seeds, the rate of illegal answers, the vote) is over those that every line has.
    """
    rows = newest(rows)
    tasks = list(dict.fromkeys(row.task for row in rows))
    cells = [["frozen model", "point", "scoring", *tasks, "mean", "illegal", "vote"]]
    models = list(dict.fromkeys(row.config["asked"] for row in rows))
    lines: dict[tuple[str, str, str], list[Result]] = {}
    for (asked, point), own in grouped(rows, "asked", "point").items():
        lines |= {(asked, point, scoring): line for scoring, line in by_scoring(own).items()}
    common = set.intersection(*({row.task for row in line} for line in lines.values()))
    for asked, point, scoring in sorted(lines, key=lambda line: models.index(line[0])):
        line = lines[asked, point, scoring]
        otherwise = {f"{row.task.split('/')[-1]}: {row.scoring}": None for row in line if row.scoring != scoring}
        if otherwise:
            scoring = f"{scoring} ({', '.join(otherwise)})"
        prompts = [row for row in line if row.seed != VOTE]
        pooled = [row for row in prompts if row.task in common]
        votes = [100 * row.value for row in line if row.seed == VOTE and row.task in common]
        scores = [spread([100 * row.value for row in prompts if row.task == task]) for task in tasks]
        mean = spread(seed_means((row.task, row.seed, row.value) for row in pooled))
        illegal = f"{fmean(row.illegal_rate for row in pooled):.0%}" if pooled else "-"
        vote = f"{fmean(votes):.1f}" if votes else "-"
        cells.append([short_name(asked), point, scoring, *scores, mean, illegal, vote])
    return cells
