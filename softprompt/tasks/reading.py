"""A task's examples, from its official files, from files named by hand, or from the hub."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from softprompt.base.names import first_line, nearest
from softprompt.tasks.records import Numbered, check_kind, place, read_records
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
    if not isinstance(data, Mapping):
        return _read_files(task, split, _official_files(task, split, Path(data)))
    reading = _read_files(task, split, _named_files(data, split))
    if task.unique_ids and split == "train":
        _refuse_scored_questions(task, reading, data)
    return reading


def read_omitted(task: Task, data: Data = None) -> list[Example]:
    """The rows of the training file that are not trained on, as they would be scored: WSC's wrong referents."""
    if not task.omits:
        return []
    trained = {example.id for example in read_split(task, "train", data).examples}
    as_dev = replace(task, cast=lambda record, split: task.cast(record, "dev"))
    return [example for example in read_split(as_dev, "train", data).examples if example.id not in trained]


def has_split(task: Task, split: str, data: Data = None) -> bool:
    """Whether there is anything to read for a split: named files, official files in the folder, or the hub's."""
    if data is None:
        return task.hub is not None and split in task.hub.splits
    if isinstance(data, Mapping):
        return bool(data.get(split))
    return any(_found_in(folder, task, split) for folder in _folders(task, Path(data)))


def chat_templates(data: Data) -> dict[str, str]:
    """The templates of inputs and targets for files of chats, whose first record has a list of turns under
    `messages`; none for other files. ValueError for a file that cannot be read.
    """
    files = next(iter(data.values()), ()) if isinstance(data, Mapping) else ()
    first = files if isinstance(files, str | Path) else next(iter(files), None)
    if first is None or "messages" not in next(iter(read_records(first)))[1]:
        return {}
    return {"inputs": "{messages}", "targets": "{messages}"}


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
        if found := _found_in(folder, task, split):
            return found
    if task.template is not None:
        check_kind(data)
    looked, wanted = folders[0], [*task.files.get(split, ()), *task.parts.get(split, ())]
    raise ValueError(f"no {split} file of {task.name} in {looked}; looked for {', '.join(wanted[:6])}")


def _found_in(folder: Path, task: Task, split: str) -> list[Path]:
    for name in task.files.get(split, ()):
        if (folder / name).is_file():
            return [folder / name]
    patterns = task.parts.get(split, ())
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _folders(task: Task, data: Path) -> list[Path]:
    below = [data / task.folder, data / Path(task.folder).name] if task.folder else []
    return [folder for folder in below if folder.is_dir()] or [data]


def _read_files(task: Task, split: str, paths: Sequence[Path]) -> Reading:
    examples: list[Example] = []
    clash = len(paths) > 1 and not task.unique_ids
    stems = [path.name.split(".")[0] for path in paths]
    for path, stem in zip(paths, stems, strict=True):
        label = stem if stems.count(stem) == 1 else str(path)
        for example in _cast_records(task, split, task.read(path), path):
            examples.append(replace(example, id=f"{label}:{example.id}") if clash else example)
    files = tuple(map(str, paths))
    if not examples:
        raise ValueError(f"no {split} examples of {task.name} in {', '.join(files)}")
    return _reading(task, split, examples, files)


def _reading(task: Task, split: str, examples: Sequence[Example], files: tuple[str, ...]) -> Reading:
    """The examples without those that repeat others, once no two have one id."""
    first: dict[object, Example] = {}
    for number, example in enumerate(examples):
        content = example.id if task.unique_ids else (example.inputs, example.targets)
        first.setdefault(content if task.distinct or len(files) > 1 else number, example)
    seen: set[str] = set()
    for example in first.values():
        if example.id in seen:
            raise ValueError(f"the id {example.id!r} stands twice in {', '.join(files)}")
        seen.add(example.id)
    return Reading(
        examples=list(first.values()),
        files=files,
        num_official=task.counts.get(split),
        num_repeated=len(examples) - len(first),
    )


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


def _refuse_scored_questions(task: Task, trained: Reading, data: Mapping[str, FilePaths]) -> None:
    """MRQA's robustqa parts are cut from the official dev files: who trains on them must not score those."""
    paths = [Path(file) for file in trained.files]
    scored = {split: _named_files(data, split) for split in ("dev", "test") if split in data}
    if not scored:
        folders = sorted({path.parent for path in paths})
        scored = {"dev": [path for folder in folders for path in _found_in(folder, task, "dev")]}
    ids = {example.id for example in trained.examples}
    for split, files in scored.items():
        shared = ids & {example.id for example in _read_files(task, split, files).examples} if files else ()
        if shared:
            names, dev = (", ".join(path.name for path in some) for some in (paths, files))
            raise ValueError(
                f"{len(shared)} of {len(ids)} questions of {names} are also in {dev}, which is scored; "
                f"train {task.name} on other files"
            )


def _from_hub(task: Task, split: str) -> Reading:
    hub = task.hub
    if hub is None:
        raise ValueError(f"the task '{task.name}' is not on the hub; name its files")
    if split not in hub.splits:
        raise ValueError(f"{task.name} has no {split} split; it has {', '.join(hub.splits)}")
    from datasets import load_dataset

    name = " ".join(filter(None, (hub.id, hub.config, hub.splits[split])))
    try:
        rows = cast(Any, load_dataset(hub.id, hub.config, split=hub.splits[split]))
    except Exception as error:  # datasets has no one exception: a RuntimeError is a repository that is a script
        raise ValueError(
            f"cannot read {name} from the hub ({first_line(error)}); or give a folder of its files"
        ) from error
    records = ((n, row) for n, row in enumerate(rows, 1) if hub.subset is None or row["subset"] == hub.subset)
    return _reading(task, split, list(_cast_records(task, split, records, Path(name))), (name,))
