"""Rows to one page: the paper's figures and tables, ours beside the paper's (alone imports matplotlib).

    write_report(read_rows(Path("results/study.jsonl")), Path("report"))

Every figure is two panels: the paper's T5 1.1 on SuperGLUE, and the models and tasks of the rows. They share colours
and a scale, and no axis: the models here are far smaller, and each panel names what its score is the mean of.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from softprompt.answering import Result
from softprompt.base.files import write_whole
from softprompt.study.claims import MAJORITY, Table, along_training, as_table, decide, matched_differences
from softprompt.study.comparison import MODEL_TUNING, PROMPT_DESIGN, PROMPT_TUNING
from softprompt.study.experiments import EXPERIMENTS
from softprompt.study.paper import (
    FIGURE_1,
    FIGURE_1_PROMPT_DESIGN,
    FIGURE_3A,
    FIGURE_3B,
    FIGURE_3C,
    FIGURE_3D,
    NAMES,
    SIZES,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    Point,
)
from softprompt.study.params import METHODS, figure_4, figure_4_cells, t5, table_4
from softprompt.study.rows import VOTE, family_of, newest, short_name, spread, table

PAGE = "index.html"
TRANSFERS = ("table-1", "table-2")
TUNED = (PROMPT_TUNING, MODEL_TUNING)  # the methods of both, in the order of their colours in figure 1
SUPERGLUE = tuple(f"superglue/{name}" for name in TABLE_3)  # the paper's eight tasks
COLOURS = ("#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#64748b", "#ca8a04", "#ec4899", "#06b6d4", "#78350f", "#1f2937")
MARKERS = "os^Dvp"  # one for each family of models
WIDTH, HEIGHT, DPI = 9.0, 4.2, 160
LEGEND_COLUMNS = 4
MOST_TICKS = 4  # sizes of models that an axis names one by one


@dataclass(frozen=True)
class Line:
    """One line of a panel: scores in percent over million parameters."""

    name: str
    """A point of the figure; it has one colour in all panels and families."""
    points: Sequence[tuple[float, Point]]
    family: str = ""
    """The models; named where there are several families."""


@dataclass(frozen=True)
class Course:
    """A method's scores along training, in percent."""

    method: str
    of: str
    """The task that is trained on, and the frozen model."""
    points: Sequence[tuple[Point, Point]]
    """On that task, and the mean of the others."""


@dataclass
class Section:
    """One figure or table of the page."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    """As HTML."""
    picture: bytes | None = None
    """A PNG."""


def write_report(rows: Sequence[Result], out: Path) -> Path:
    """The page, self-contained, and a PNG for each figure beside it; the page's path.

    ValueError for no rows of any experiment. Raises OSError where they cannot be written.
    """
    known = newest([row for row in rows if row.experiment in EXPERIMENTS])
    if not known:
        raise ValueError(f"none of the {len(rows)} rows is of an experiment; make some with softprompt experiment NAME")
    sections = [*(_of_rows(name, [row for row in known if row.experiment == name]) for name in EXPERIMENTS)]
    majority = [row for row in rows if row.config.get("method") == MAJORITY]
    sections = [_claims(known, majority), *sections, _figure_4(), _table_4()]
    for section in sections:
        if section.picture is not None:
            write_whole(out / f"{section.name}.png", section.picture)
    write_whole(out / PAGE, _page(sections, known))
    return out / PAGE


def _paper_lines(name: str) -> list[Line]:
    """The paper's own lines of a figure, in the order of our points."""
    by_name: dict[str, Mapping[Any, Any]] = {"figure-3a": FIGURE_3A, "figure-3b": FIGURE_3B, "figure-3c": FIGURE_3C}
    sizes = [(t5(size).num_parameters / 1e6, size) for size in SIZES]
    if name == "figure-3d":
        return [
            Line(f"{steps}K", [(x, Point(score)) for (x, _), score in zip(sizes, scores, strict=True)])
            for steps, scores in FIGURE_3D.items()
        ]
    if name == "figure-1":
        gpt3 = Line("GPT-3, few-shot", [(float(x), Point(score)) for x, score in FIGURE_1_PROMPT_DESIGN.items()])
        return [*(Line(key, [(x, own[size]) for x, size in sizes]) for key, own in FIGURE_1.items()), gpt3]
    found = by_name.get(name, {})
    return [Line(str(key), [(x, points[size]) for x, size in sizes]) for key, points in found.items()]


def _our_lines(rows: Sequence[Result], scoring: str) -> list[Line]:
    """Each point's mean over tasks, with the deviation over seeds, by the frozen model's size."""
    lines = []
    rows = _drawn_rows(rows, scoring)
    for name, family in dict.fromkeys((row.config["point"], family_of(row)) for row in rows):
        own = [row for row in rows if (row.config["point"], family_of(row)) == (name, family)]
        found = []
        for frozen in dict.fromkeys(row.config["frozen"] for row in own):
            of_model = [row for row in own if row.config["frozen"] == frozen]
            means = [100 * fmean(r.value for r in of_model if r.seed == s) for s in {r.seed for r in of_model}]
            found.append((of_model[0].config["num_parameters"] / 1e6, _over_seeds(means)))
        if found:
            lines.append(Line(name, sorted(found), family))
    return lines


def _over_seeds(values: Sequence[float]) -> Point:
    return Point(fmean(values), stdev(values) if len(values) > 1 else None)


def _of_rows(name: str, rows: Sequence[Result]) -> Section:
    section = Section(name, EXPERIMENTS[name].title)
    if not rows:
        section.text.append(f"Not run here: softprompt experiment {name} --models M makes its rows.")
        if name in TRANSFERS:
            section.tables.append(_paper_transfer(name))
        paper = _paper_lines(name)
        section.picture = _picture(paper, [], "") if paper else None
        return section
    scoring = "generate" if any(row.scoring == "generate" for row in rows) else "rank"
    section.text.append(_what_was_run(rows))
    section.tables.append(_of_markdown(table(rows)))
    if name == "table-3":
        section.tables.append(_ensembles(rows))
        section.tables.append(_paper_ensembles())
    elif name in TRANSFERS:
        section.tables += [_transfer(rows), *_matched(rows), _paper_transfer(name)]
        if courses := _courses(rows):
            section.picture = _courses_picture(courses)
            section.text.append(
                "Each dot is a score along training, the mean and deviation over seeds: of the task that is trained "
                "on, and the mean of the others. Where one line lies above another, it carries over better at equal "
                "quality at home."
            )
    else:
        shown, is_common = _of_common_tasks(_drawn_rows(rows, scoring))
        section.picture = _picture(_paper_lines(name), _our_lines(shown, scoring), _mean_of(shown))
        how = {"generate": "answers generated, an illegal one is wrong", "rank": "labels ranked"}[scoring]
        what = "the mean over the tasks that every model and point has" if is_common else "each over its own tasks"
        section.text.append(
            f"Left: the paper. Right: the rows, {how}, {what}. Bands are deviations over seeds. {_sizes(shown)}"
        )
    section.text += _not_run(name, rows)
    return section


def _not_run(name: str, rows: Sequence[Result]) -> list[str]:
    """What the paper's figure or table has and the rows have not: tasks without data, points without rows."""
    missing = {task: why for row in rows for task, why in row.notes.get("not_run", {}).items()}
    lines = [f"{task} was not run: {why}." for task, why in missing.items()]
    points = [point.name for point in EXPERIMENTS[name].points if "*" not in point.name]
    for asked in dict.fromkeys(row.config["asked"] for row in rows):
        own = [row for row in rows if row.config["asked"] == asked]
        there = {row.config["point"].split(", ")[0] if "shots" in row.config else row.config["point"] for row in own}
        if without := [point for point in points if point not in there]:
            lines.append(f"{asked} has no rows of {', '.join(without)}.")
    return lines


def _drawn_rows(rows: Sequence[Result], scoring: str) -> list[Result]:
    """The rows that a figure draws: no votes, and of prompts that are scored both ways the one."""
    return [row for row in rows if row.seed != VOTE and (row.scoring == scoring or "method" in row.config)]


def _of_common_tasks(rows: Sequence[Result]) -> tuple[list[Result], bool]:
    """The rows of tasks that every point of every frozen model has, since other means compare nothing, and whether
    there is such a task; where there is none, all rows.
    """
    tasks: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        tasks.setdefault((row.config["frozen"], row.config["point"]), set()).add(row.task)
    common = set.intersection(*tasks.values()) if tasks else set()
    return [row for row in rows if not common or row.task in common], bool(common)


def _sizes(rows: Sequence[Result]) -> str:
    """How large the models are beside the paper's smallest."""
    small = t5("small").num_parameters
    sizes = sorted({row.config["num_parameters"] for row in rows})
    shares = [f"1/{small / size:.0f}" if size < small / 1.5 else f"{size / small:.1f} times" for size in sizes]
    models = ", ".join(f"{size / 1e6:,.3g} million ({share})" for size, share in zip(sizes, shares, strict=True))
    return f"Parameters here, and their share of the paper's Small: {models}."


def _mean_of(rows: Sequence[Result]) -> str:
    """What a score here is the mean of; without ReCoRD's data it is not SuperGLUE's."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    known = {"SuperGLUE": set(SUPERGLUE), "SuperGLUE-7, without ReCoRD": set(SUPERGLUE) - {"superglue/record"}}
    names = [name for name, own in known.items() if own == set(tasks)]
    if names or len(tasks) > 4:
        return f"mean score, {(names or [f'{len(tasks)} tasks'])[0]}"
    return f"{'score' if len(tasks) == 1 else 'mean score'}, {', '.join(task.split('/')[-1] for task in tasks)}"


def _what_was_run(rows: Sequence[Result]) -> str:
    tasks = ", ".join(dict.fromkeys(row.task for row in rows))
    seeds = len({row.seed for row in rows} - {VOTE})
    shares = sorted({row.notes.get("share_of_official") or 1.0 for row in rows})
    partial = "" if shares[0] == 1 else f"; as little as {shares[0]:.0%} of the official training data"
    cut = sum(row.notes.get("train_cut", 0) for row in rows if row.seed != VOTE)
    trained = sum(row.notes.get("train_used", 0) for row in rows if row.seed != VOTE)
    scored = [(row.notes["scored_cut"], row.num_examples) for row in rows if "scored_cut" in row.notes]
    cut_there = f", {sum(n for n, _ in scored) / sum(n for _, n in scored):.1%} of scored ones" if scored else ""
    chosen, machines = (
        ", ".join(dict.fromkeys(names))
        for names in ((row.selection for row in rows), (f"{row.device}, {row.dtype}" for row in rows))
    )
    return (
        f"{tasks}; {seeds} seeds; prompts chosen by {chosen} rows; about {_hours(rows):.1f} hours on {machines}; "
        f"{cut / max(trained, 1):.1%} of training inputs cut{cut_there}{partial}."
    )


def _hours(rows: Sequence[Result]) -> float:
    """Of training and choosing: prompts that train together share their seconds, methods tried other rates too."""
    together: dict[tuple[Any, ...], float] = {}
    alone: dict[str, list[Result]] = {}
    for row in rows:
        if row.config.get("method") is not None:
            alone.setdefault(row.config["out"], []).append(row)
            continue
        # Whatever trains together is scored at the same moments, whichever point it is of.
        first = next(iter(row.notes.get("history", ())), {}).get("seconds", row.seconds)
        key = (row.config["frozen"], row.commit, first)
        together[key] = max(together.get(key, 0.0), row.seconds)
    seconds = sum(together.values())
    for own in alone.values():
        runs = {(row.seed, row.config.get("shots")): row.seconds for row in own}
        rates = 1 if own[0].config["method"] == PROMPT_DESIGN else len(own[0].config.get("tried", ()))
        seconds += sum(runs.values()) + (rates - 1) * max(runs.values())
    return seconds / 3600


def _ensembles(rows: Sequence[Result]) -> str:
    """Average, best and vote, as the paper's table 3."""
    lines = [["model", "task", "scoring", "average", "best", "ensemble"]]
    for frozen, task, scoring in dict.fromkeys((r.config["frozen"], r.task, r.scoring) for r in rows):
        own = [r for r in rows if (r.config["frozen"], r.task, r.scoring) == (frozen, task, scoring)]
        values = [100 * row.value for row in own if row.seed != VOTE]
        votes = [100 * row.value for row in own if row.seed == VOTE]
        cells = [f"{value:.1f}" for value in (fmean(values), max(values), *votes[:1])]
        lines.append([short_name(frozen), task, scoring, *cells])
    return _html_table(lines)


def _paper_ensembles() -> str:
    lines = [["the paper, XXL", "average", "best", "ensemble"]]
    lines += [[task, *(" / ".join(f"{v:.1f}" for v in values) for values in row)] for task, row in TABLE_3.items()]
    return _html_table(lines)


def _claims(rows: Sequence[Result], majority: Sequence[Result]) -> Section:
    cells = as_table(decide(rows, majority))
    section = Section("claims", "What the rows say of the paper's claims", tables=[_html_table(cells)])
    section.text.append(
        "Differences in points that must be above zero, models and tasks pooled, seeds and examples drawn together; "
        "the claims that were tested share Holm's correction. docs/findings.md has the tests, and what serving costs "
        "(claim 20)."
    )
    return section


def _figure_4() -> Section:
    section = Section("figure-4", "Task parameters by method (figure 4)")
    lines = figure_4()
    section.tables.append(_html_table(figure_4_cells(lines)))
    section.text.append(
        "Counted from configurations, the mean over prompts of 1 to 100 tokens; dashed: the paper's lines, which "
        "differ for prefix tuning on Small, where it counts 6 + 6 layers of 8 + 8."
    )

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        sizes = [t5(size).num_parameters / 1e6 for size in SIZES]
        for colour, method in zip(COLOURS, METHODS, strict=False):
            own = [line for line in lines if line.method == method]
            axes.plot(sizes, [line.counted for line in own], color=colour, marker="o", markersize=4, label=method)
            axes.plot(sizes, [line.paper for line in own], color=colour, linestyle="--", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="model, million parameters", ylabel="parameters a task")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    section.picture = _drawn(draw)
    return section


def _table_4() -> Section:
    section = Section("table-4", "Trained and total parameters (table 4)")
    rows = [["size", "prompt", "trained", "in all", "share", "the paper"]]
    for row in table_4():
        cells = [NAMES[row.size], f"{row.length}", f"{row.trainable:,}", f"{row.total:,}", f"{row.percent:.5f} %"]
        rows.append([*cells, ", ".join(row.misprints) or "the same"])
    section.tables.append(_html_table(rows))
    return section


def _transfer(rows: Sequence[Result]) -> str:
    """In and out of domain, each method's score and the difference, as the paper's tables 1 and 2."""
    lines = [["model", "trained on", "scored on", "metric", "prompt tuning", "model tuning", "difference"]]
    for frozen, source, task in dict.fromkeys((r.config["frozen"], r.config["trained_on"], r.task) for r in rows):
        own = [r for r in rows if (r.config["frozen"], r.config["trained_on"], r.task) == (frozen, source, task)]
        for metric in own[0].metrics:
            found = {
                method: [100 * row.metrics[metric] for row in own if row.config["method"] == method] for method in TUNED
            }
            prompt, model = found.values()
            apart = f"{fmean(prompt) - fmean(model):+.1f}" if prompt and model else "-"
            lines.append([short_name(frozen), source, task, metric, *map(spread, found.values()), apart])
    return _html_table(lines)


def _matched(rows: Sequence[Result]) -> list[str]:
    """Prompt tuning minus model tuning at the steps where they are nearest on the task trained on."""
    lines = [["model", "trained on", "scored on", "difference at the steps nearest at home"]]
    for frozen, source in dict.fromkeys((row.config["frozen"], row.config["trained_on"]) for row in rows):
        own = [row for row in rows if (row.config["frozen"], row.config["trained_on"]) == (frozen, source)]
        found = matched_differences(own)
        lines += [[short_name(frozen), source, task, f"{apart:+.1f}"] for task, apart in found.items()]
    return [_html_table(lines)] if len(lines) > 1 else []


def _courses(rows: Sequence[Result]) -> list[Course]:
    """Scores along training by method, task and model: those that have them at home and elsewhere."""
    found = []
    for method, source, frozen in sorted(dict.fromkeys(map(_course_of, rows)), key=lambda kind: TUNED.index(kind[0])):
        scores = along_training([row for row in rows if _course_of(row) == (method, source, frozen)])
        home, away = scores.pop(source, {}), list(scores.values())
        if home and away:
            steps = [step for step in home if all(step in one for one in away)]
            points = [(_over_seeds(_means([home[s]])), _over_seeds(_means([one[s] for one in away]))) for s in steps]
            found.append(Course(method.replace("-", " "), f"{source}, {short_name(frozen)}", points))
    return found


def _course_of(row: Result) -> tuple[str, str, str]:
    return row.config["method"], row.config["trained_on"], row.config["frozen"]


def _means(scores: Sequence[Table]) -> list[float]:
    """Each seed's mean of several sets, in percent; scores: [seeds, examples] of each."""
    return [100 * fmean(by_set) for by_set in zip(*(table.mean(axis=1) for table in scores), strict=True)]


def _paper_transfer(name: str) -> str:
    lines = [["the paper, XXL", "metric", "prompt tuning", "model tuning", "difference"]]
    methods = ("prompt tuning", "model tuning")
    if name == "table-1":
        found = [(task, "f1", [own[method] for method in methods]) for task, own in TABLE_1.items()]
    else:
        found = [
            (f"{a} to {b}", metric, [own[method][place] for method in methods])
            for (a, b), own in TABLE_2.items()
            for place, metric in enumerate(("accuracy", "f1"))
        ]
    for title, metric, (prompt, model) in found:
        cells = [f"{point.mean:.1f} ± {point.deviation:.1f}" for point in (prompt, model)]
        lines.append([title, metric, *cells, f"{prompt.mean - model.mean:+.1f}"])
    return _html_table(lines)


def _picture(paper: Sequence[Line], ours: Sequence[Line], score: str) -> bytes:
    """The paper's panel and ours, on one scale. score: what ours is, for its axis."""

    # A name has one colour in both panels, and a family of models one marker.
    colours = _in_turn((line.name for line in [*paper, *ours]), COLOURS)
    families = _in_turn((line.family for line in ours), MARKERS)
    markers = {"": MARKERS[0], **families}

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        _panel(left, paper, colours, markers, "the paper: T5 1.1, SuperGLUE dev")
        title = "here" if ours else "here: not run"
        (_panel if _has_sizes(ours) else _columns)(right, ours, colours, markers, title)
        left.set(ylabel="mean score, SuperGLUE", ylim=(0, 100))
        right.set(ylabel=score, ylim=(0, 100))
        _legend(figure, colours, families if len(families) > 1 else {})

    return _drawn(draw)


def _in_turn(names: Iterable[str], kinds: Sequence[str]) -> dict[str, str]:
    """A colour or a marker for each name; they begin again where there are more names."""
    return {name: kinds[place % len(kinds)] for place, name in enumerate(dict.fromkeys(names))}


def _legend(figure: Any, colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    """One for both panels, below them."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=1.5, label=name) for name, colour in colours.items()]
    handles += [Line2D([], [], color="#1b1f24", marker=m, linestyle="", label=name) for name, m in markers.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8)


def _courses_picture(courses: Sequence[Course]) -> bytes:
    """Scores elsewhere over scores at home; a colour for each method, a marker for each model and task."""
    colours = _in_turn((course.method for course in courses), COLOURS)
    markers = _in_turn((course.of for course in courses), MARKERS)

    def draw(figure: Any) -> None:
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

    return _drawn(draw)


def _has_sizes(lines: Sequence[Line]) -> bool:
    """Whether there is more than one size of model to draw a line over."""
    return len({x for line in lines for x, _ in line.points}) != 1


def _columns(
    axes: Any, lines: Sequence[Line], colours: Mapping[str, str], markers: Mapping[str, str], title: str
) -> None:
    """One frozen model: its points side by side."""
    for place, line in enumerate(lines):
        (_, point), *_ = line.points
        style: dict[str, Any] = {"color": colours[line.name], "marker": markers[line.family], "capsize": 3}
        axes.errorbar([place], [point.mean], yerr=[point.deviation or 0.0], **style)
    (size, _), *_ = lines[0].points
    turned: dict[str, Any] = {"rotation": 25, "ha": "right"} if len(lines) > 4 else {}
    axes.set_xticks(range(len(lines)), [line.name for line in lines], **turned)
    axes.set(xlabel=f"one frozen model, {size:.3g} million parameters", title=title)


def _panel(
    axes: Any, lines: Sequence[Line], colours: Mapping[str, str], markers: Mapping[str, str], title: str
) -> None:
    """Scores over sizes."""
    for line in lines:
        colour = colours[line.name]
        xs, points = [x for x, _ in line.points], [point for _, point in line.points]
        means, bands = [point.mean for point in points], [point.deviation or 0.0 for point in points]
        axes.plot(xs, means, color=colour, marker=markers[line.family], markersize=4, linewidth=1.5)
        low, high = zip(*((m - b, m + b) for m, b in zip(means, bands, strict=True)), strict=True)
        if len(xs) > 1:
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.errorbar(xs, means, yerr=bands, color=colour, capsize=3)
    axes.set(xscale="log", xlabel="frozen model, million parameters", title=title)
    sizes = sorted({x for line in lines for x, _ in line.points})
    if len(sizes) <= MOST_TICKS:
        axes.set_xticks(sizes, [f"{size:,.3g}" for size in sizes])
        axes.set_xticks([], minor=True)


def _drawn(draw: Callable[[Any], None]) -> bytes:
    """A figure as a PNG, the same bytes each time. ValueError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError(f"a report needs {error.name}; pip install 'softprompt[report]'") from error
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "font.size": 9,
        "axes.titlesize": 10,
    }
    with rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid #d3d9e0; padding-top: 1rem; }
img { max-width: 100%; } nav a { margin-right: .75rem; white-space: nowrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; margin: .75rem 0; }
td, th { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #e5e9ee; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } p { max-width: 46rem; }
"""


def _page(sections: Sequence[Section], rows: Sequence[Result]) -> str:
    commits = ", ".join(sorted({row.commit for row in rows if row.commit}))
    links = " ".join(f'<a href="#{one.name}">{html.escape(one.name.replace("-", " "))}</a>' for one in sections)
    body = "\n".join(map(_section, sections))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Prompt tuning: the study</title><style>{STYLE}</style></head><body>
<h1>The Power of Scale for Parameter-Efficient Prompt Tuning, run again</h1>
<p>{len(rows):,} rows, commits {html.escape(commits) or "unknown"}. Ours beside the numbers of Lester, Al-Rfou and
Constant (2021). Where a model here is far smaller than theirs, a shared axis is no comparison of scores.</p>
<nav>{links}</nav>
{body}
</body></html>
"""


def _section(section: Section) -> str:
    parts = [f'<h2 id="{section.name}">{html.escape(section.title)}</h2>']
    if section.picture is not None:
        data = base64.b64encode(section.picture).decode()
        parts.append(f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">')
    parts += [f"<p>{html.escape(text)}</p>" for text in section.text]
    parts += [f'<div class="wide">{one}</div>' for one in section.tables]
    return "".join(parts)


def _of_markdown(text: str) -> str:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return _html_table([lines[0], *lines[2:]])


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, *body = rows
    return f"<table>{line(head, 'th')}{''.join(line(cells, 'td') for cells in body)}</table>"
