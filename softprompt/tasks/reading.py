"""A task's examples, from its official files, from files named by hand, or from the hub."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softprompt.base.names import nearest
from softprompt.tasks.records import Numbered, place
from softprompt.tasks.task import SPLITS, Example, Task

logger = logging.getLogger(__name__)

FilePaths = str | Path | Sequence[str | Path]
Data = str | Path | Mapping[str, FilePaths] | None
"""A folder of official files, or files by split; None: the hub."""

_OTHER_NAMES = {"validation": "dev", "val": "dev", "valid": "dev", "eval": "dev", "development": "dev"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read of one split, and from where."""

    examples: list[Example]
    """In the order of the files."""
    files: tuple[str, ...]
    """The files read, or the hub's data set."""
    num_official: int | None
    """How many examples the official split has; None if unknown."""
    num_repeated: int
    """Repeated examples left out."""

    @property
    def share(self) -> float | None:
        """The share of the official split that was read; None if its size is unknown."""
        return len(self.examples) / self.num_official if self.num_official else None

    @property
    def note(self) -> str:
        """One line: '1,933 of 9,427 official examples from a.json, b.jsonl; 17 repeated left out'."""
        of = f" of {self.num_official:,} official" if self.num_official else ""
        names = ", ".join(Path(file).name for file in self.files)
        repeated = f"; {self.num_repeated:,} repeated left out" if self.num_repeated else ""
        return f"{len(self.examples):,}{of} examples from {names}{repeated}"


def read_examples(task: Task, split: str, data: Data = None) -> list[Example]:
    """`read_split`'s examples. What is less than the official split, or more, is logged as a warning."""
    reading = read_split(task, split, data)
    partial = reading.share is not None and reading.share != 1
    logger.log(logging.WARNING if partial else logging.INFO, "%s %s: %s", task.name, split, reading.note)
    return reading.examples


def read_split(task: Task, split: str, data: Data = None) -> Reading:
    """The examples of a split, 'train', 'dev' or 'test'.

    `data` is the task's own folder, or one that has suite/TaskFolder or TaskFolder below it, or {"train":
    files, "dev": files, "test": files}; None reads the hub. Where the official file is missing, all files
    that hold parts of it are read. Repeated examples of several files are left out, and their ids begin with
    the file's name where ids would clash.

    Raises ValueError for a split that does not exist, a missing file, a malformed record (with its line),
    and for a training file that has questions of the dev or test file in it.
    """
    check_split(split)
    if data is None:
        return _from_hub(task, split)
    named = isinstance(data, Mapping)
    paths = _named_files(data, split) if named else _official_files(task, split, Path(data))
    examples, num_repeated = _read_files(task, split, paths)
    if task.unique_ids and split == "train" and named:
        _refuse_scored_questions(task, examples, paths, data)
    return Reading(
        examples=examples,
        files=tuple(map(str, paths)),
        num_official=task.counts.get(split),
        num_repeated=num_repeated,
    )


def has_split(task: Task, split: str, data: Data = None) -> bool:
    """Whether there is anything to read for a split: named files, official files in the folder, or the hub's."""
    if data is None:
        return task.hub is not None and split in task.hub.splits
    if isinstance(data, Mapping):
        return bool(data.get(split))
    return any(_found_in(folder, task, split) for folder in _folders(task, Path(data)))


def check_split(split: str) -> None:
    """Raises ValueError, offering the nearest name, unless it is 'train', 'dev' or 'test'."""
    if split in SPLITS:
        return
    near = _OTHER_NAMES.get(split.lower())
    hint = f"; did you mean '{near}'?" if near else nearest(split.lower(), SPLITS)
    raise ValueError(f"no split named '{split}'; there are {', '.join(SPLITS)}{hint}")


def _named_files(data: Mapping[str, FilePaths], split: str) -> list[Path]:
    for name in data:
        check_split(name)
    given = data.get(split)
    if not given:
        raise ValueError(f"no files were given for the {split} split; there are files for {', '.join(data)}")
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]


def _official_files(task: Task, split: str, data: Path) -> list[Path]:
    if split not in task.files and split not in task.parts:
        has = ", ".join(name for name in SPLITS if name in task.files)
        raise ValueError(f"{task.name} has no {split} split; it has {has}")
    if not data.is_dir():
        raise ValueError(f"{data} is no folder; give the folder that holds {task.folder or 'your files'}")
    folders = _folders(task, data)
    for folder in folders:
        if paths := _found_in(folder, task, split):
            return paths
    wanted = [*task.files.get(split, ()), *task.parts.get(split, ())]
    raise ValueError(f"no {split} file of {task.name} in {folders[0]}; looked for {', '.join(wanted[:6])}")


def _found_in(folder: Path, task: Task, split: str) -> list[Path]:
    for name in task.files.get(split, ()):
        if (folder / name).is_file():
            return [folder / name]
    patterns = task.parts.get(split, ())
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _folders(task: Task, data: Path) -> list[Path]:
    below = [data / task.folder, data / Path(task.folder).name] if task.folder else []
    return [folder for folder in below if folder.is_dir()] or [data]


def _read_files(task: Task, split: str, paths: Sequence[Path]) -> tuple[list[Example], int]:
    examples: list[Example] = []
    clash = len(paths) > 1 and not task.unique_ids
    stems = [path.name.split(".")[0] for path in paths]
    for path, stem in zip(paths, stems, strict=True):
        label = stem if stems.count(stem) == 1 else str(path)
        for example in _cast_records(task, split, task.read(path), path):
            examples.append(replace(example, id=f"{label}:{example.id}") if clash else example)
    if not examples:
        raise ValueError(f"no {split} examples of {task.name} in {', '.join(map(str, paths))}")
    kept = _without_repeats(task, examples) if task.distinct or len(paths) > 1 else examples
    _check_ids(kept, paths)
    return kept, len(examples) - len(kept)


def _cast_records(task: Task, split: str, records: Numbered, path: Path) -> Iterator[Example]:
    for number, record in records:
        try:
            examples = task.cast(record, split)
        except ValueError as error:
            raise ValueError(f"{place(path, number)}: {error}") from error
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{place(path, number)}: not a record of {task.name} ({reason})") from error
        yield from (example if example.id else replace(example, id=str(number)) for example in examples)


def _without_repeats(task: Task, examples: Iterable[Example]) -> list[Example]:
    first: dict[object, Example] = {}
    for example in examples:
        first.setdefault(example.id if task.unique_ids else (example.inputs, example.targets), example)
    return list(first.values())


def _check_ids(examples: Sequence[Example], paths: Sequence[object]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise ValueError(f"the id {example.id!r} stands twice in {', '.join(map(str, paths))}")
        seen.add(example.id)


def _refuse_scored_questions(
    task: Task, examples: Sequence[Example], paths: Sequence[Path], data: Mapping[str, FilePaths]
) -> None:
    """MRQA's robustqa parts are cut from the official dev files: who trains on them must not score those."""
    scored = {split: _named_files(data, split) for split in ("dev", "test") if split in data}
    if not scored:
        folders = sorted({path.parent for path in paths})
        scored = {"dev": [path for folder in folders for path in _found_in(folder, task, "dev")]}
    ids = {example.id for example in examples}
    for split, files in scored.items():
        shared = ids & {e.id for e in _read_files(task, split, files)[0]} if files else set()
        if shared:
            trained, dev = (", ".join(path.name for path in some) for some in (paths, files))
            raise ValueError(
                f"{len(shared)} of {len(ids)} questions of {trained} are also in {dev}, which is scored; "
                f"train {task.name} on other files"
            )


def _from_hub(task: Task, split: str) -> Reading:
    from datasets import load_dataset

    if task.hub is None:
        raise ValueError(f"the task '{task.name}' is not on the hub; name its files")
    if split not in task.hub.splits:
        raise ValueError(f"{task.name} has no {split} split; it has {', '.join(task.hub.splits)}")
    id, config, part, subset = task.hub.id, task.hub.config, task.hub.splits[split], task.hub.subset
    name = " ".join(filter(None, (id, config, part)))
    try:
        rows: Any = load_dataset(id, config, split=part)
    except Exception as error:  # datasets has no one exception: a RuntimeError is a repository that is a script
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {name} from the hub ({reason}); or give a folder of its files") from error
    records = ((number, row) for number, row in enumerate(rows, 1) if subset is None or row["subset"] == subset)
    examples = list(_cast_records(task, split, records, Path(name)))
    kept = _without_repeats(task, examples) if task.distinct else examples
    _check_ids(kept, [name])
    num_repeated = len(examples) - len(kept)
    return Reading(examples=kept, files=(name,), num_official=task.counts.get(split), num_repeated=num_repeated)
