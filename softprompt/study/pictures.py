"""Pictures of the report, as PNG (alone imports matplotlib): two panels, columns, courses of training."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill as wrap
from typing import Any

from softprompt.answering import Confusion
from softprompt.study.paper import Point

COLOURS = ("#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#64748b", "#ca8a04", "#ec4899", "#06b6d4", "#78350f", "#1f2937")
MARKERS = "os^Dvp"  # one for each family of models
WIDTH, HEIGHT, DPI = 9.0, 4.2, 160
LEGEND_COLUMNS, LEGEND_WIDTH = 4, 44
MOST_LABELS, MOST_LETTERS = 30, 28  # of a confusion's picture
MOST_TICKS = 4  # sizes of models that an axis names one by one
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "axes.titlesize": 10,
}


@dataclass(frozen=True)
class Line:
    """One line of a panel: scores in percent over million parameters."""

    name: str
    """A point of the figure; it has one colour in all panels and families."""
    points: Sequence[tuple[float, Point]]
    family: str = ""
    models: Sequence[str] = ()
    """Those of the family that have a point here."""


@dataclass(frozen=True)
class Course:
    """A method's scores along training, in percent."""

    method: str
    of: str
    """The task that is trained on, and the frozen model."""
    points: Sequence[tuple[Point, Point]]
    """On that task, and the mean of the others."""


@contextmanager
def picture(png: io.BytesIO, size: tuple[float, float] = (WIDTH, HEIGHT)) -> Iterator[Any]:
    """A figure to draw on, which is then written: the same bytes each time. ValueError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError(f"a report needs {error.name}; pip install 'softprompt[report]'") from error
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})


def two_panels(paper: Sequence[Line], ours: Sequence[Line], score: str) -> bytes:
    """The paper's panel and ours, on one scale. score: what ours is, for its axis."""
    # A name has one colour in both panels, and a family of models one marker.
    colours = in_turn((line.name for line in [*paper, *ours]), COLOURS)
    families = in_turn((line.family for line in ours), MARKERS)
    markers = {"": MARKERS[0], **families}
    png = io.BytesIO()
    with picture(png) as figure:
        left, right = figure.subplots(1, 2)
        _panel(left, paper, colours, markers, "the paper: T5 1.1, SuperGLUE dev")
        # Without more than one size of model there is nothing to draw a line over.
        draw = _columns if len({x for line in ours for x, _ in line.points}) == 1 else _panel
        draw(right, ours, colours, markers, "here" if ours else "here: not run")
        left.set(ylabel="mean score, SuperGLUE", ylim=(0, 100))
        right.set(ylabel=score, ylim=(0, 100))
        models: dict[str, dict[str, None]] = {}
        for line in ours:
            models.setdefault(line.family, {}).update(dict.fromkeys(line.models))
        names = {wrap(", ".join(models[family]), LEGEND_WIDTH): marker for family, marker in families.items()}
        _legend(figure, colours, names)
    return png.getvalue()


def courses_of_training(courses: Sequence[Course]) -> bytes:
    """Scores elsewhere over scores at home; a colour for each method, a marker for each model and task."""
    colours = in_turn((course.method for course in courses), COLOURS)
    markers = in_turn((course.of for course in courses), MARKERS)
    png = io.BytesIO()
    with picture(png) as figure:
        axes = figure.subplots()
        for course in courses:
            colour = colours[course.method]
            home, away = zip(*course.points, strict=True)
            xs, ys = ([point.mean for point in points] for points in (home, away))
            axes.plot(xs, ys, color=colour, marker=markers[course.of], markersize=4, linewidth=1.5)
            wide, high = ([point.deviation or 0.0 for point in points] for points in (home, away))
            faint: dict[str, Any] = {"ecolor": colour, "alpha": 0.35, "elinewidth": 0.8, "capsize": 2}
            axes.errorbar(xs, ys, xerr=wide, yerr=high, fmt="none", **faint)
            axes.annotate("end", (xs[-1], ys[-1]), textcoords="offset points", xytext=(6, 4), color=colour, fontsize=8)
        axes.set(xlabel="score on the task that is trained on", ylabel="mean score on the others")
        axes.set_aspect("equal")
        _legend(figure, colours, markers if len(markers) > 1 else {})
    return png.getvalue()


def matrix(confusion: Confusion) -> bytes:
    """Which label was taken for which: a row for each right one, shaded by the share of its examples.

    Of very many labels those that are wrong most often.
    """
    labels = list(confusion)
    if len(labels) > MOST_LABELS:
        wrong = {right: sum(answers.values()) - answers.get(right, 0) for right, answers in confusion.items()}
        worst = sorted(labels, key=lambda label: -wrong[label])[:MOST_LABELS]
        labels = [label for label in labels if label in worst]
    answered = [*labels, *([""] if any("" in answers for answers in confusion.values()) else [])]
    counts = [[confusion[right].get(answer, 0) for answer in answered] for right in labels]
    sums = [max(sum(confusion[right].values()), 1) for right in labels]
    shares = [[count / whole for count in row] for row, whole in zip(counts, sums, strict=True)]
    names = [label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…" for label in labels]
    font, cell = (9, 0.42) if len(labels) <= 15 else (7, 0.27)
    side = 2.0 + cell * len(labels)
    png = io.BytesIO()
    with picture(png, (side + 2.0, side + 0.6)) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        columns = [*names, *(["no label"] if len(answered) > len(labels) else [])]
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor", fontsize=font)
        axes.set_yticks(range(len(names)), names, fontsize=font)
        axes.set(xlabel="answered", ylabel="right")
        for y, row in enumerate(counts):
            for x, count in enumerate(row):
                if count:
                    colour = "white" if shares[y][x] > 0.55 else "#1b1f24"
                    axes.text(x, y, f"{count:,}", ha="center", va="center", color=colour, fontsize=font - 1)
    return png.getvalue()


def in_turn(names: Iterable[str], kinds: Sequence[str]) -> dict[str, str]:
    """A colour or a marker for each name; they begin again where there are more names."""
    return {name: kinds[place % len(kinds)] for place, name in enumerate(dict.fromkeys(names))}


def _legend(figure: Any, colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    """One for both panels, below them."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=1.5, label=name) for name, colour in colours.items()]
    handles += [Line2D([], [], color="#1b1f24", marker=m, linestyle="", label=name) for name, m in markers.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8)


def _columns(
    axes: Any, lines: Sequence[Line], colours: Mapping[str, str], markers: Mapping[str, str], title: str
) -> None:
    """One frozen model: its points side by side."""
    for place, line in enumerate(lines):
        point = line.points[0][1]
        style: dict[str, Any] = {"color": colours[line.name], "marker": markers[line.family], "capsize": 3}
        axes.errorbar([place], [point.mean], yerr=[point.deviation or 0.0], **style)
    size = lines[0].points[0][0]
    turned: dict[str, Any] = {"rotation": 25, "ha": "right"} if len(lines) > 4 else {}
    axes.set_xticks(range(len(lines)), [line.name for line in lines], **turned)
    axes.set(xlabel=f"one frozen model, {size:.3g} million parameters", title=title)


def _panel(
    axes: Any, lines: Sequence[Line], colours: Mapping[str, str], markers: Mapping[str, str], title: str
) -> None:
    """Scores over sizes."""
    for line in lines:
        colour = colours[line.name]
        xs = [size for size, _ in line.points]
        means = [point.mean for _, point in line.points]
        bands = [point.deviation or 0.0 for _, point in line.points]
        axes.plot(xs, means, color=colour, marker=markers[line.family], markersize=4, linewidth=1.5)
        if len(xs) > 1:
            low = [mean - band for mean, band in zip(means, bands, strict=True)]
            high = [mean + band for mean, band in zip(means, bands, strict=True)]
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.errorbar(xs, means, yerr=bands, color=colour, capsize=3)
    axes.set(xscale="log", xlabel="frozen model, million parameters", title=title)
    sizes = sorted({x for line in lines for x, _ in line.points})
    if len(sizes) <= MOST_TICKS:
        axes.set_xticks(sizes, [f"{size:,.3g}" for size in sizes])
        axes.set_xticks([], minor=True)
