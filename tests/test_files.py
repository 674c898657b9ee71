"""Files and folders are whole or not there, whatever stops the writing."""

import errno
import io
import itertools
import os
import re
import resource
import shlex
import signal
import stat
import sys
import threading

import pytest

from softprompt.base import files
from softprompt.base.files import (
    append_whole,
    held,
    remove_leftovers,
    whole_files,
    whole_folder,
    write_all,
    write_tensors,
    write_whole,
)


def names(folder):
    return sorted(place.name for place in folder.iterdir())


def test_text_is_utf8_and_bytes_are_bytes_in_folders_that_are_made(tmp_path):
    write_whole(tmp_path / "a" / "b" / "text", "é\n")
    write_whole(str(tmp_path / "bytes"), b"\xff\n")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "bytes").read_bytes() == b"\xff\n"
    assert names(tmp_path) == ["a", "bytes"]


def test_a_file_is_as_readable_as_any_other(tmp_path):
    mask = os.umask(0o022)
    try:
        write_whole(tmp_path / "file", "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "file", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(tmp_path / "file", "n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("moment", "left"), [("fsync", "old"), ("replace", "old"), ("replaced", "new")])
def test_killed_at_any_moment_there_is_the_old_file_or_the_new_one(moment, left, tmp_path):
    write_whole(tmp_path / "file", "old")
    child = os.fork()
    if child == 0:
        fsync, replace = os.fsync, os.replace

        def die(name):
            if name == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda file: (die("fsync"), fsync(file))
        os.replace = lambda old, new: (die("replace"), replace(old, new), die("replaced"))
        write_whole(tmp_path / "file", "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == left


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    for name in ("a[1]", ".a[1].7", ".a[1].b", ".a[1]", ".b.7", "a[1].7", ".a1.7", ".a[1].b.7"):
        (tmp_path / name).write_text("")
    (tmp_path / ".a[1].77").mkdir()
    (tmp_path / ".a[1].77" / "file").write_text("")
    remove_leftovers(tmp_path / "a[1]")
    assert names(tmp_path) == [".a1.7", ".a[1]", ".a[1].b", ".a[1].b.7", ".b.7", "a[1]", "a[1].7"]
    remove_leftovers(tmp_path / "nowhere" / "a")


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "a" / "out") as staging:
        (staging / "file").write_text("new")
        assert not (tmp_path / "a" / "out").exists()
    assert names(tmp_path / "a") == ["out"] and names(tmp_path / "a" / "out") == ["file"]


def test_an_empty_folder_is_replaced_and_another_is_not(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("new")
    with (
        pytest.raises(OSError, match=r"could not write \S+out \(Directory not empty\); nothing was kept there"),
        whole_folder(tmp_path / "out") as staging,
    ):
        (staging / "other").write_text("new")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["file"]


def test_what_goes_wrong_inside_removes_the_folder_and_comes_through(tmp_path):
    with pytest.raises(ValueError, match="mine"), whole_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("new")
        raise ValueError("mine")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_what_the_system_refuses_is_one_line_also_from_libraries_in_rust(error, tmp_path):
    words = r"^could not write \S+out \(No space left on device\); nothing was kept there$"
    with pytest.raises(OSError, match=words), whole_folder(tmp_path / "out"):
        raise error
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(OSError, match=r"could not write \S+out \(Not a directory\)"),
        whole_folder(tmp_path / "file/out"),
    ):
        pass


@pytest.mark.parametrize("number", range(1, 6))
def test_files_that_go_together_are_all_as_they_were_where_one_is_refused(number, tmp_path, monkeypatch):
    for name in ("a", "last"):
        (tmp_path / name).write_text("old")
    replace, calls = os.replace, itertools.count(1)

    def refuse(source, target):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"), whole_files(tmp_path, last="last") as staging:
        for name in ("a", "b", "last"):
            (staging / name).write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "last": "old"}


class NearlyFull(io.FileIO):
    """Takes three bytes at a time, and none more than it has room for."""

    room = 10**9

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = super().write(bytes(content)[: min(3, self.room)])
        self.room -= taken
        return taken


def test_a_write_that_takes_a_part_is_gone_on_with_and_one_that_cannot_leaves_nothing(tmp_path):
    with NearlyFull(tmp_path / "file", "a+") as file:
        write_all(file, b"whole line\n")
        file.room = 5
        with pytest.raises(OSError, match="No space left"):
            write_all(file, b"torn line\n")
        file.room = 10**9
        write_all(file, b"another\n")
    assert (tmp_path / "file").read_bytes() == b"whole line\nanother\n"


def test_a_line_that_cannot_be_brought_to_the_disk_is_not_there_and_the_message_names_the_file(tmp_path, monkeypatch):
    append_whole(tmp_path / "rows", "one\n")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write \S+rows \(No space left on device\); what it held before is w"):
        append_whole(tmp_path / "rows", "two\n")
    assert (tmp_path / "rows").read_text() == "one\n"
    with pytest.raises(OSError, match="No space") as caught:
        write_whole(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file")


def test_what_killed_writers_left_of_a_file_goes_where_its_folder_is_held(tmp_path):
    (tmp_path / "in").mkdir()
    for name in (".file.7", "in/.file.7"):
        (tmp_path / name).write_text("")
    write_whole(tmp_path / "file", "new")
    assert names(tmp_path) == [".file.7", "file", "in"]
    with held(tmp_path):
        write_whole(tmp_path / "file", "new")
        write_whole(tmp_path / "in" / "file", "new")
    assert names(tmp_path) == [".softprompt.lock", "file", "in"] and names(tmp_path / "in") == ["file"]


def test_what_a_killed_safetensors_left_goes_with_the_next_checkpoint(tmp_path, monkeypatch):
    def killed(tensors, path, metadata):
        (path.parent / ".tmpAbCdEf").write_text("half")  # as it names what it writes
        os.kill(os.getpid(), signal.SIGKILL)

    with held(tmp_path):
        child = os.fork()
        if child == 0:
            monkeypatch.setattr("safetensors.torch.save_file", killed)
            write_tensors(tmp_path / "checkpoint", {})
        os.waitpid(child, 0)
        assert len(names(tmp_path)) == 2
        write_tensors(tmp_path / "checkpoint", {})
    assert names(tmp_path) == [".softprompt.lock", "checkpoint"]


def in_a_thread(work):
    """What another thread ends with: None, or its error."""
    ended = []

    def run():
        try:
            work()
            ended.append(None)
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return ended[0]


@pytest.mark.parametrize(("is_file", "lock"), [(False, "out/.softprompt.lock"), (True, ".out.lock")])
def test_who_holds_a_place_is_told_to_the_second_and_may_hold_it_again(is_file, lock, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["softprompt", "train", "--inputs", "text: {text}"])

    def hold():
        with held(tmp_path / "out", is_file=is_file):
            pass

    with held(tmp_path / "out", is_file=is_file):
        hold()
        told = str(in_a_thread(hold))
        command = f"process {os.getpid()} ({shlex.join(sys.argv)})"
        assert told == (f"{tmp_path}/out is being written by {command}; wait for its end, or give another place")
        assert (tmp_path / lock).read_text() == f"{command}\n"
    assert not (tmp_path / "out").exists()  # nothing came to lie there
    (tmp_path / "out").mkdir()
    assert in_a_thread(hold) is None
    assert (tmp_path / lock).exists()


@pytest.mark.parametrize("is_file", [False, True])
def test_folders_that_were_made_go_where_nothing_came_to_lie_in_them(is_file, tmp_path, monkeypatch):
    out = tmp_path / "a" / "b" / "out"
    with pytest.raises(ValueError, match="refused"), held(out, is_file=is_file):
        raise ValueError("refused")
    assert names(tmp_path) == []
    with held(out, is_file=is_file):
        (tmp_path / "a" / "other").write_text("")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["other"]
    mkdir = os.mkdir

    def full_at_c(path, mode=0o777):
        if os.path.basename(path) == "c":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", full_at_c)
    with pytest.raises(OSError, match="No space left"), held(tmp_path / "b" / "c" / "out", is_file=is_file):
        pass
    assert names(tmp_path) == ["a"]


def test_a_killed_holder_holds_nothing(tmp_path):
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        with held(tmp_path / "out"):
            os.write(there, b"!")
            signal.pause()
    os.read(here, 1)
    with pytest.raises(ValueError, match=rf"out is being written by process {child} \("), held(tmp_path / "out"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with held(tmp_path / "out"):
        assert re.match(rf"process {os.getpid()} \(", (tmp_path / "out" / ".softprompt.lock").read_text())


def test_where_there_are_no_locks_work_goes_on(tmp_path, monkeypatch):
    class Refusing:
        LOCK_EX = LOCK_SH = LOCK_NB = LOCK_UN = 0

        def flock(self, *_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for kind in (Refusing(), None):
        monkeypatch.setattr(files, "fcntl", kind)
        with held(tmp_path / "out"):
            append_whole(tmp_path / "out" / "rows", "one\n")
    assert (tmp_path / "out" / "rows").read_text() == "one\none\n"
