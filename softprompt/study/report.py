"""Rows to one page: the paper's figures and tables, ours beside the paper's.

    write_report(read_rows(Path("results/study.jsonl")), Path("report"))

Every figure is two panels: the paper's T5 1.1 on SuperGLUE, and the models and tasks of the rows. They share colours
and a scale, and no axis: the models here are far smaller, and each panel names what its score is the mean of.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from softprompt.answering import Result, added, by_label, commonest
from softprompt.base.files import write_whole
from softprompt.study.claims import MAJORITY, along_training, as_table, decide, matched_differences
from softprompt.study.comparison import MODEL_TUNING, PLACES, PROMPT_DESIGN, PROMPT_TUNING
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
    TABLE_3_SUPERGLUE,
    Point,
)
from softprompt.study.params import METHODS, figure_4, figure_4_cells, t5, table_4
from softprompt.study.pictures import (
    COLOURS,
    MOST_LABELS,
    Course,
    Line,
    courses_of_training,
    matrix,
    picture,
    two_panels,
)
from softprompt.study.rows import (
    VOTE,
    by_scoring,
    family_of,
    grouped,
    newest,
    scored_by,
    short_name,
    size_of,
    table_cells,
    trained_on,
    where,
)
from softprompt.tasks import headline, mean_name, over_seeds, seed_means, spread

PAGE = "index.html"
MOST_COLUMNS, NARROW = 4, "60rem"  # ours: as many as a phone has room for; screens that have none for more
PAPER_FIGURES: dict[str, Mapping[Any, Mapping[str, Point]]] = {
    "figure-1": FIGURE_1,
    "figure-3a": FIGURE_3A,
    "figure-3b": FIGURE_3B,
    "figure-3c": FIGURE_3C,
    "figure-3d": FIGURE_3D,
}
PAPER_TRANSFERS = {"table-1": TABLE_1, "table-2": TABLE_2}
RUNS = ("train", "eval", "ensemble")  # rows of a run or an evaluation of one's own
STUDY = (
    "The Power of Scale for Parameter-Efficient Prompt Tuning, run again",
    "Ours beside the numbers of Lester, Al-Rfou and Constant (2021). Where a model here is far smaller than theirs, a "
    "shared axis is no comparison of scores.",
)
RUN = ("What prompts score, and where they are wrong", "Made of the rows that softprompt train and eval wrote.")
TUNED = (PROMPT_TUNING, MODEL_TUNING)  # the methods of both, in the order of their colours in figure 1


@dataclass
class Section:
    """One figure or table of the page."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Sequence[Sequence[str]]] = field(default_factory=list)
    """Cells, the heads in the first row."""
    png: bytes | None = None


def write_report(rows: Sequence[Result], out: Path) -> Path:
    """The page, self-contained, and a PNG for each figure beside it; the page's path.

    Rows of training and of eval alone give the page of a run: its scores, and where its answers are wrong. ValueError
    for no rows of either. Raises OSError where they cannot be written.
    """
    known = newest([row for row in rows if row.experiment in EXPERIMENTS])
    runs = [row for row in rows if row.experiment in RUNS]
    if not known and not runs:
        raise ValueError(
            f"none of the {len(rows)} rows is of an experiment, a training or an eval; make some with softprompt "
            "experiment NAME, or name a run's results.jsonl"
        )
    sections = _study(known, rows) if known else []
    if runs:
        sections.append(Section("scores", "What the prompts score", tables=[_scores(runs), *_over_seeds_of(runs)]))
    sections += _where_wrong([*known, *runs])
    for section in sections:
        if section.png is not None:
            write_whole(out / f"{section.name}.png", section.png)
    write_whole(out / PAGE, _page(sections, [*known, *runs], STUDY if known else RUN))
    return out / PAGE


def _study(known: Sequence[Result], rows: Sequence[Result]) -> list[Section]:
    """The claims, and each figure and table of the paper."""
    majority = where(rows, method=MAJORITY)
    claims = Section(
        "claims",
        "What the rows say of the paper's claims",
        [
            "Differences in points that must be above zero, models and tasks pooled, seeds and examples drawn "
            "together; the claims that were tested share Holm's correction. docs/findings.md has the tests, and what "
            "serving costs (claim 20)."
        ],
        [as_table(decide(known, majority))],
    )
    by_experiment = grouped(known, "experiment")
    sections = [claims]
    for name in EXPERIMENTS:
        made = name in by_experiment
        sections.append(_run(name, by_experiment[name]) if made else _not_run(name))
    return [*sections, _figure_4(), _table_4()]


def _scores(runs: Sequence[Result]) -> list[list[str]]:
    """A line for each row of a training or an eval."""
    names = list(dict.fromkeys(name for row in runs for name in row.metrics))
    cells = [["task", "split", "model", "made by", "seed", "step", "examples", *names, "illegal"]]
    for row in runs:
        scores = ["" if name not in row.metrics else f"{row.metrics[name]:.4f}" for name in names]
        about = [
            row.task,
            row.split,
            row.model,
            row.experiment,
            f"{row.seed}",
            f"{row.step:,}",
            f"{row.num_examples:,}",
        ]
        cells.append([*about, *scores, f"{row.illegal_rate:.4f}"])
    return cells


def _over_seeds_of(runs: Sequence[Result]) -> list[list[list[str]]]:
    """What several trained prompts of a model score together, and beside SuperGLUE's score the paper's."""
    apart = (*PLACES, "seeds", "minutes", "fingerprint", "train")  # what seeds, or tasks, of one thing differ in

    def recipe(row: Result) -> str:
        return repr({name: value for name, value in row.config.items() if name not in apart})

    cells: list[list[str]] = []
    for (model, _), own in grouped(where(runs, experiment="train"), "model", recipe).items():
        scores = {(row.task, row.seed): (row.task, row.seed, row.metrics) for row in own}
        if len(scores) > 1:
            head, *lines = over_seeds(list(scores.values()))
            cells = cells or [["model", *head]]
            cells += [[model, *line] for line in lines]
    if any("SuperGLUE" in line for line in cells):
        for size, point in FIGURE_1["prompt tuning"].items():
            cells.append([f"the paper, {NAMES[size]}", "SuperGLUE", "3", "mean of the scores", str(point)])
    return [cells] if cells else []


def _where_wrong(rows: Sequence[Result]) -> list[Section]:
    """The confusion of each task, split and model, of all its prompts together, as a picture and by label."""
    with_labels = [row for row in rows if row.notes.get("confusion")]
    sections = []
    for (task, split, model), own in grouped(with_labels, lambda row: (row.task, row.split, row.model)).items():
        confusion = added(row.notes["confusion"] for row in own)
        cells = [["label", "precision", "recall", "count"]]
        for label, score in by_label(confusion).items():
            shares = ("-" if share is None else f"{share:.3f}" for share in (score.precision, score.recall))
            cells.append([label, *shares, f"{score.count:,}"])
        name = f"where-wrong-{len(sections) + 1}"
        section = Section(name, f"Where answers are wrong: {task} {split}, {model}", tables=[cells])
        section.png = matrix(confusion)
        wrong = [f"{right} as {answer or 'no label'} ({count:,})" for right, answer, count in commonest(confusion)]
        together = f"The answers of {len(own)} rows together. " if len(own) > 1 else ""
        section.text.append(f"{together}Most often wrong: {', '.join(wrong) or 'nothing'}.")
        if len(confusion) > MOST_LABELS:
            section.text.append(
                f"The picture has the {MOST_LABELS} of {len(confusion):,} labels that are wrong most often."
            )
        sections.append(section)
    return sections


def _not_run(name: str) -> Section:
    section = Section(name, EXPERIMENTS[name].title)
    section.text.append(f"Not run here: softprompt experiment {name} --models M makes its rows.")
    if name in PAPER_TRANSFERS:
        section.tables.append(_paper_transfer(name))
    if name in PAPER_FIGURES:
        section.png = two_panels(_paper_lines(name), [], "")
    return section


def _run(name: str, rows: Sequence[Result]) -> Section:
    """An experiment that has rows."""
    section = Section(name, EXPERIMENTS[name].title, [_what_was_run(rows)], [table_cells(rows)])
    if name == "table-3":
        section.tables += [_ensembles(rows), _paper_ensembles()]
    elif name in PAPER_TRANSFERS:
        section.tables.append(_transfer(rows))
        if len(matched := _matched(rows)) > 1:
            section.tables.append(matched)
        section.tables.append(_paper_transfer(name))
        if courses := _courses(rows):
            section.png = courses_of_training(courses)
            section.text.append(
                "Each dot is a score along training, the mean and deviation over seeds: of the task that is trained "
                "on, and the mean of the others. Where one line lies above another, it carries over better at equal "
                "quality at home."
            )
    else:
        # No votes, and of prompts that are scored both ways the one.
        scoring = "generate" if any(row.scoring == "generate" for row in rows) else "rank"
        drawn = [row for row in scored_by(rows, scoring) if row.seed != VOTE]
        shown, is_common = _of_common_tasks(drawn)
        section.png = two_panels(_paper_lines(name), _our_lines(shown), _mean_of(shown))
        how = {"generate": "answers generated, an illegal one is wrong", "rank": "labels ranked"}[scoring]
        what = "the mean over the tasks that every model and point has" if is_common else "each over its own tasks"
        section.text.append(
            f"Left: the paper. Right: the rows, {how}, {what}. Bands are deviations over seeds. {_sizes(shown)}"
        )
    if any(trained_on(row) == "mrqa/squad" for row in rows):
        section.text.append(
            "Trained on SQuAD as MRQA has it, 86,588 questions and a dev set of 10,507, where the paper has SQuAD 1.1, "
            "87,599 and 10,570. EM and F1 together choose the step, and in the paper F1."
        )
    # What the paper's figure or table has and the rows have not: tasks without data, points without rows.
    without = {task: why for row in rows for task, why in row.notes.get("not_run", {}).items()}
    section.text += [f"{task} was not run: {why}." for task, why in without.items()]
    points = [point.name for point in EXPERIMENTS[name].points if "*" not in point.name]
    for asked, own in grouped(rows, "asked").items():
        there = {row.config["point"].split(", ")[0] if "shots" in row.config else row.config["point"] for row in own}
        if missing := [point for point in points if point not in there]:
            section.text.append(f"{asked} has no rows of {', '.join(missing)}.")
    return section


def _paper_lines(name: str) -> list[Line]:
    """The paper's own lines of a figure, in the order of our points."""
    sizes = {size: t5(size).num_parameters / 1e6 for size in SIZES}
    lines = []
    for point, scores in PAPER_FIGURES[name].items():
        lines.append(Line(str(point), [(x, scores[size]) for size, x in sizes.items()]))
    if name == "figure-1":
        points = [(float(x), Point(score)) for x, score in FIGURE_1_PROMPT_DESIGN.items()]
        lines.append(Line("GPT-3, few-shot", points))
    return lines


def _our_lines(rows: Sequence[Result]) -> list[Line]:
    """Each point's mean over tasks, with the deviation over seeds, by the frozen model's size."""
    lines = []
    for (name, family), own in grouped(rows, "point", family_of).items():
        points = []
        for of_model in grouped(own, "frozen").values():
            if means := seed_means((row.task, row.seed, row.value) for row in of_model):
                size = of_model[0].config["num_parameters"] / 1e6
                points.append((size, _over_seeds(means), short_name(str(size_of(of_model[0])))))
        if points:
            points.sort()
            lines.append(Line(name, [point[:2] for point in points], family, [model for *_, model in points]))
    return lines


def _over_seeds(values: Sequence[float]) -> Point:
    return Point(fmean(values), stdev(values) if len(values) > 1 else None)


def _of_common_tasks(rows: Sequence[Result]) -> tuple[list[Result], bool]:
    """The rows of tasks that every point of every frozen model has, since other means compare nothing, and whether
    there is such a task; where there is none, all rows.
    """
    points = grouped(rows, "frozen", "point").values()
    tasks = [{row.task for row in own} for own in points]
    common = set.intersection(*tasks) if tasks else set()
    return [row for row in rows if not common or row.task in common], bool(common)


def _sizes(rows: Sequence[Result]) -> str:
    """How large the models are beside the paper's smallest."""
    small = t5("small").num_parameters
    models = []
    for size in sorted({row.config["num_parameters"] for row in rows}):
        share = f"1/{small / size:.0f}" if size < small / 1.5 else f"{size / small:.1f} times"
        models.append(f"{size / 1e6:,.3g} million ({share})")
    return f"Parameters here, and their share of the paper's Small: {', '.join(models)}."


def _mean_of(rows: Sequence[Result]) -> str:
    """What a score here is the mean of."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    if len(tasks) > 4:
        return f"mean score, {mean_name(tasks)}"
    return f"{'score' if len(tasks) == 1 else 'mean score'}, {', '.join(task.split('/')[-1] for task in tasks)}"


def _what_was_run(rows: Sequence[Result]) -> str:
    tasks = ", ".join(dict.fromkeys(row.task for row in rows))
    chosen = ", ".join(dict.fromkeys(row.selection for row in rows))
    machines = ", ".join(dict.fromkeys(f"{row.device}, {row.dtype}" for row in rows))
    prompts = [row for row in rows if row.seed != VOTE]
    cut = sum(row.notes.get("train_cut", 0) for row in prompts)
    trained = sum(row.notes.get("train_used", 0) for row in prompts)
    text = (
        f"{tasks}; {len({row.seed for row in prompts})} seeds; prompts chosen by {chosen} rows; about "
        f"{_hours(rows):.1f} hours on {machines}; {cut / max(trained, 1):.1%} of training inputs cut"
    )
    if scored := [row for row in rows if "scored_cut" in row.notes]:
        share = sum(row.notes["scored_cut"] for row in scored) / sum(row.num_examples for row in scored)
        text += f", {share:.1%} of scored ones"
    least = min(row.notes.get("share_of_official") or 1.0 for row in rows)
    if least != 1:
        text += f"; as little as {least:.0%} of the official training data"
    if any(row.notes.get("overlap") == "kept" for row in rows):
        text += "; rows that stand in dev or test were trained on, too"
    return f"{text}."


def _hours(rows: Sequence[Result]) -> float:
    """Of training and choosing: prompts that train together share their seconds, methods tried other rates too."""
    together: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row.config.get("method") is None:
            # Whatever trains together is scored at the same moments, whichever point it is of.
            first = next(iter(row.notes.get("history", ())), {}).get("seconds", row.seconds)
            key = (row.config["frozen"], row.commit, first)
            together[key] = max(together.get(key, 0.0), row.seconds)
    seconds = sum(together.values())
    alone = [row for row in rows if row.config.get("method") is not None]
    for own in grouped(alone, "out").values():
        runs = {(row.seed, row.config.get("shots")): row.seconds for row in own}
        rates = 1 if own[0].config["method"] == PROMPT_DESIGN else len(own[0].config.get("tried", ()))
        seconds += sum(runs.values()) + (rates - 1) * max(runs.values())
    return seconds / 3600


def _ensembles(rows: Sequence[Result]) -> list[list[str]]:
    """Average, best and vote, as the paper's table 3; behind several tasks the means of their scores."""
    cells = [["model", "task", "scoring", "metrics", "average", "best", "ensemble"]]
    for frozen, of_model in grouped(rows, "frozen").items():
        for scoring, line in by_scoring(of_model).items():
            scores: list[list[float]] = []
            for task, own in grouped(line, "task").items():
                prompts = [row for row in own if row.seed != VOTE]
                average = {name: fmean(row.metrics[name] for row in prompts) for name in own[0].metrics}
                best = max(prompts, key=lambda row: row.value).metrics
                shown = [average, best, *(row.metrics for row in where(own, seed=VOTE))]
                scores.append([100 * headline(metrics) for metrics in shown])
                pairs = [" / ".join(f"{100 * value:.1f}" for value in metrics.values()) for metrics in shown]
                cells.append([short_name(frozen), task, own[0].scoring, " / ".join(average), *pairs])
            if len(scores) > 1:
                means = [f"{fmean(column):.1f}" for column in zip(*scores, strict=False)]
                name = mean_name(row.task for row in line)
                cells.append([short_name(frozen), name, scoring, "mean of the scores", *means])
    return cells


def _paper_ensembles() -> list[list[str]]:
    cells = [["the paper, XXL", "average", "best", "ensemble"]]
    for task, columns in TABLE_3.items():
        cells.append([task, *(" / ".join(f"{value:.1f}" for value in values) for values in columns)])
    return [*cells, ["SuperGLUE", *map(str, TABLE_3_SUPERGLUE)]]


def _transfer(rows: Sequence[Result]) -> list[list[str]]:
    """In and out of domain, each method's score and the difference, as the paper's tables 1 and 2."""
    cells = [["model", "trained on", "scored on", "metric", "prompt tuning", "model tuning", "difference"]]
    groups = grouped(rows, "frozen", "trained_on", "task")
    for (frozen, source, task), own in groups.items():
        for metric in own[0].metrics:
            prompt, model = ([100 * row.metrics[metric] for row in where(own, method=method)] for method in TUNED)
            apart = f"{fmean(prompt) - fmean(model):+.1f}" if prompt and model else "-"
            cells.append([short_name(frozen), source, task, metric, spread(prompt), spread(model), apart])
    return cells


def _matched(rows: Sequence[Result]) -> list[list[str]]:
    """Prompt tuning minus model tuning at the steps where they are nearest on the task trained on."""
    cells = [["model", "trained on", "scored on", "difference at the steps nearest at home"]]
    groups = grouped(rows, "frozen", "trained_on")
    for (frozen, source), own in groups.items():
        for task, apart in matched_differences(own).items():
            cells.append([short_name(frozen), source, task, f"{apart:+.1f}"])
    return cells


def _courses(rows: Sequence[Result]) -> list[Course]:
    """Scores along training by method, task and model: those that have them at home and elsewhere."""
    courses = []
    groups = grouped(rows, "method", "trained_on", "frozen")
    for method, source, frozen in sorted(groups, key=lambda course: TUNED.index(course[0])):
        scores = along_training(groups[method, source, frozen])
        home, away = scores.pop(source, {}), list(scores.values())
        if not (home and away):
            continue
        points = []
        for step in home:
            if all(step in other for other in away):
                # Each seed's mean of the other sets, in percent; a table is [seeds, examples].
                elsewhere = zip(*(other[step].mean(axis=1) for other in away), strict=True)
                points.append(
                    (
                        _over_seeds([100 * float(mean) for mean in home[step].mean(axis=1)]),
                        _over_seeds([100 * fmean(by_set) for by_set in elsewhere]),
                    )
                )
        courses.append(Course(method.replace("-", " "), f"{source}, {short_name(frozen)}", points))
    return courses


def _paper_transfer(name: str) -> list[list[str]]:
    cells = [["the paper, XXL", "metric", "prompt tuning", "model tuning", "difference"]]
    for row in PAPER_TRANSFERS[name]:
        title = row.task if name == "table-1" else f"{row.source} to {row.task}"
        apart = f"{row.prompt_tuning.mean - row.model_tuning.mean:+.1f}"
        cells.append([title, row.metric, str(row.prompt_tuning), str(row.model_tuning), apart])
    return cells


def _figure_4() -> Section:
    lines = figure_4()
    section = Section("figure-4", "Task parameters by method (figure 4)", tables=[figure_4_cells(lines)])
    section.text.append(
        "Counted from configurations, the mean over prompts of 1 to 100 tokens; dashed: the paper's lines, which "
        "differ for prefix tuning on Small, where it counts 6 + 6 layers of 8 + 8."
    )
    png = io.BytesIO()
    with picture(png) as figure:
        axes = figure.subplots()
        sizes = [t5(size).num_parameters / 1e6 for size in SIZES]
        for colour, method in zip(COLOURS, METHODS, strict=False):
            own = [line for line in lines if line.method == method]
            axes.plot(sizes, [line.counted for line in own], color=colour, marker="o", markersize=4, label=method)
            axes.plot(sizes, [line.paper for line in own], color=colour, linestyle="--", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="model, million parameters", ylabel="parameters a task")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    section.png = png.getvalue()
    return section


def _table_4() -> Section:
    cells = [["size", "prompt", "trained", "in all", "share", "the paper"]]
    for row in table_4():
        numbers = [f"{row.length}", f"{row.trainable:,}", f"{row.total:,}", f"{row.percent:.5f} %"]
        cells.append([NAMES[row.size], *numbers, ", ".join(row.misprints) or "the same"])
    return Section("table-4", "Trained and total parameters (table 4)", tables=[cells])


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid #d3d9e0; padding-top: 1rem; }
img { max-width: 100%; } nav a { margin-right: .75rem; white-space: nowrap; }
.wide { width: max-content; min-width: 100%; max-width: calc(100vw - 2rem); position: relative; left: 50%;
  transform: translateX(-50%); overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .75rem 0; }
td, th { padding: .15rem .5rem; text-align: right; border-bottom: 1px solid #e5e9ee; }
td:first-child, th:first-child { text-align: left; } p { max-width: 46rem; }
@media (max-width: NARROW) {
  .wide table, .wide tbody, .wide tr, .wide td { display: block; } .wide th { display: none; }
  .wide { width: auto; left: 0; transform: none; } .wide tr { margin-bottom: .75rem; }
  .wide td { display: flex; justify-content: space-between; gap: 1rem; }
  .wide td::before { color: #5b6672; text-align: left; }
}
""".replace("NARROW", NARROW)


def _page(sections: Sequence[Section], rows: Sequence[Result], about: tuple[str, str]) -> str:
    """about: the title, and what the rows are."""
    title, what = map(html.escape, about)
    commits = ", ".join(sorted({row.commit for row in rows if row.commit}))
    links, parts = [], []
    for section in sections:
        heading = html.escape(section.title)
        links.append(f'<a href="#{section.name}">{html.escape(section.name.replace("-", " "))}</a>')
        part = f'<h2 id="{section.name}">{heading}</h2>'
        if section.png is not None:
            part += f'<img alt="{heading}" src="data:image/png;base64,{base64.b64encode(section.png).decode()}">'
        part += "".join(f"<p>{html.escape(text)}</p>" for text in section.text)
        tables = (_html_table(f"{section.name}-{n}", cells) for n, cells in enumerate(section.tables))
        parts.append(part + "".join(tables))
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p>{len(rows):,} rows, commits {html.escape(commits) or "unknown"}. {what}</p>
<nav>{" ".join(links)}</nav>
{body}
</body></html>
"""


def _html_table(name: str, rows: Sequence[Sequence[str]]) -> str:
    """A table; one of many columns is a list of each row's cells, with their heads, where the screen is narrow."""
    heads, *body = [[html.escape(cell) for cell in cells] for cells in rows]
    text = "<tr>" + "".join(f"<th>{head.replace('/', '/<wbr>')}</th>" for head in heads) + "</tr>"
    text += "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in body)
    if len(heads) <= MOST_COLUMNS:
        return f"<table>{text}</table>"
    contents = ""
    for place, head in enumerate(rows[0], 1):
        quoted = head.replace("\\", "\\\\").replace('"', '\\"').replace("<", "\\3c ")
        contents += f'#{name} td:nth-child({place})::before {{ content: "{quoted}"; }}\n'
    style = f"<style>@media (max-width: {NARROW}) {{\n{contents}}}</style>"
    return f'{style}<div class="wide"><table id="{name}">{text}</table></div>'
