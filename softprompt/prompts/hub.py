"""Prompts on the hub: hf://ORG/NAME@revision wherever a prompt's folder is read, hf://ORG/NAME where one is written.

The hub's own settings hold: HF_TOKEN or `hf auth login` for what is private, HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from softprompt.base.names import first_line, hub_place
from softprompt.models import quiet
from softprompt.prompts.card import CARD, CONFIG, README, WEIGHTS

PLACE = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@(\S+))?")


def local_folder(place: str | Path) -> Path:
    """Where a prompt's folder is on this machine: of one on the hub, a commit of it in the hub's cache.

    Fetches what `load_prompt` reads and nothing else. Raises ValueError for a repository, a revision or files that are
    not there, may not be read, or, offline, are not in the cache; OSError where the hub cannot be reached, or refuses.
    """
    on_hub = hub_place(place)
    if on_hub is None:
        return Path(place)
    repository, revision = _parts(on_hub)
    from huggingface_hub import snapshot_download

    with _one_line(f"cannot read {on_hub}"):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{on_hub} holds no {CONFIG}, so it is not a prompt")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{on_hub} holds no {WEIGHTS}, and a pickle (adapter_model.bin) is not fetched, as to read it can run any "
            "code; save the prompt again with PEFT's save_pretrained(safe_serialization=True)"
        )
    return folder


def check_push(place: str, *, overwrite: bool = False) -> None:
    """Ask what can be known of a push to hf://ORG/NAME before it: before hours of training.

    Raises ValueError for no such place, offline, without a token, and for a repository with a prompt's files in it,
    which a push would replace, unless `overwrite`; OSError where the hub cannot be reached, or refuses.
    """
    repository = _writable(place)
    from huggingface_hub import HfApi

    with _one_line(f"cannot push to {place}"):
        api = HfApi(library_name="softprompt")
        there = api.list_repo_files(repository) if api.repo_exists(repository) else []
    taken = [name for name in (CONFIG, WEIGHTS, CARD, README) if name in there]
    if taken and not overwrite:
        raise ValueError(
            f"{place} has {', '.join(taken)} already; give another name, or --overwrite, which leaves what is there as "
            "an earlier revision"
        )


def push(files: Mapping[str, bytes], place: str) -> None:
    """Make one commit of files by name to hf://ORG/NAME; a repository that is not there is made, and is private.

    Raises as `check_push` does.
    """
    repository = _writable(place)
    from huggingface_hub import CommitOperationAdd, HfApi

    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    with _one_line(f"cannot push to {place}"):
        api = HfApi(library_name="softprompt")
        api.create_repo(repository, private=True, exist_ok=True)
        api.create_commit(repository, added, commit_message="Upload a soft prompt")


def _writable(place: str) -> str:
    """ORG/NAME, if this machine has what a push needs."""
    from huggingface_hub import get_token, is_offline_mode

    repository, revision = _parts(place)
    if revision:
        raise ValueError(f"{place} names a revision, and a push makes a new one; give hf://{repository}")
    if is_offline_mode():
        raise ValueError(f"cannot push to {place}: HF_HUB_OFFLINE is set; unset it")
    if not get_token():
        raise ValueError(f"cannot push to {place}: there is no token for the hub; set HF_TOKEN, or `hf auth login`")
    return repository


def _parts(place: str) -> tuple[str, str | None]:
    """ORG/NAME, and the revision if there is one."""
    found = PLACE.fullmatch(place)
    if not found:
        raise ValueError(f"{place} is no place on the hub; give hf://ORG/NAME, or to read also hf://ORG/NAME@revision")
    return found[1], found[2]


@contextmanager
def _one_line(doing: str) -> Iterator[None]:
    """What the hub or its library refuses, as one line that says what to do; no bars, and no advice besides."""
    from huggingface_hub import errors, is_offline_mode

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{doing}: there is no such repository, or it is not yours to read; check the name, and for one that is "
            "private or gated set HF_TOKEN, or `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{doing}: the repository has no such revision; give a branch, a tag or a commit") from error
    except errors.HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or first_line(error)
        advice = "; check HF_TOKEN, or `hf auth login`" if status in (401, 403) else ""
        raise OSError(f"{doing}: the hub answered {status} ({said}){advice}") from error
    except errors.LocalEntryNotFoundError as error:
        if is_offline_mode():
            raise ValueError(f"{doing}: it is not in the cache, and HF_HUB_OFFLINE is set; unset it once") from error
        raise OSError(f"{doing}: it is not in the cache, and the hub does not answer ({_cause(error)})") from error
    except errors.HTTPError as error:  # pyright: ignore
        raise OSError(f"{doing}: the hub does not answer ({_cause(error)})") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: of an upload, or of its library in Rust
        raise OSError(f"{doing}: {_cause(error)}") from error
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """What went wrong to begin with."""
    while error.__cause__:
        error = error.__cause__
    return first_line(error)
