"""Files and folders are whole or not there, whatever stops the writing."""

import os
import resource
import signal
import stat

import pytest

from softprompt.base.files import remove_leftovers, whole_folder, write_whole


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
    for name in ("a[1]", ".a[1].7", ".a[1].b", ".a[1]", ".b.7", "a[1].7", ".a1.7"):
        (tmp_path / name).write_text("")
    (tmp_path / ".a[1].77").mkdir()
    (tmp_path / ".a[1].77" / "file").write_text("")
    remove_leftovers(tmp_path / "a[1]")
    assert names(tmp_path) == [".a1.7", ".a[1]", ".a[1].b", ".b.7", "a[1]", "a[1].7"]
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
