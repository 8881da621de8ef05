import os
import posix
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from manytune.atomic import (
    atomic_directory,
    atomic_file,
    atomic_write,
    clean_leftovers,
    make_directory,
    require_absent,
    require_writable,
)
from manytune.errors import TargetExistsError, WriteError


@pytest.fixture(autouse=True)
def flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, which other tests do without."""
    monkeypatch.setattr(os, "fsync", posix.fsync)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_atomic_write_replaces_the_content_and_leaves_nothing_next_to_it(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", "é")
    atomic_write(tmp_path / "a.json", b"second")
    assert (tmp_path / "a.json").read_bytes() == b"second"
    assert names(tmp_path) == ["a.json"]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"a\.json: there is no directory .*/none\. Make it"):
        atomic_write(tmp_path / "none" / "a.json", "x")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    for path in ("link", "link/a", "file", "file/a"):
        with pytest.raises(WriteError, match=f"{path}: no directory can be made here"):
            make_directory(tmp_path / path)


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "a", "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space is left on the disk"):
        atomic_write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_temporary_file_elsewhere_takes_the_targets_place(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "a").write_text("old")
    with atomic_file(tmp_path / "a", within=tmp_path / "staging") as temporary:
        assert temporary.parent == tmp_path / "staging"
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path / "staging") == []


def test_a_file_that_was_never_written_is_an_error_and_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_new_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", "content")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_directory_is_invisible_until_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "adapter"
    with atomic_directory(target) as directory:
        (directory / "weights").write_text("w")
        assert not target.exists()
    assert (target / "weights").read_text() == "w"
    assert names(target.parent) == ["adapter"]


def test_a_directory_whose_filling_failed_never_appears(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "adapter") as directory:
        (directory / "weights").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_an_existing_directory_is_refused_by_default(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with (
        pytest.raises(TargetExistsError, match=r"adapter exists already.*somewhere else"),
        atomic_directory(tmp_path / "adapter"),
    ):
        pass


def test_replace_puts_the_new_directory_in_place_of_the_old(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_directory(tmp_path / "adapter", existing="replace") as directory:
            (directory / content).write_text(content)
    assert names(tmp_path) == ["adapter"]
    assert names(tmp_path / "adapter") == ["new"]


def test_keep_lets_the_first_of_two_writers_win(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "cache", existing="keep") as slow:
        (slow / "by").write_text("slow")
        with atomic_directory(tmp_path / "cache", existing="keep") as fast:
            (fast / "by").write_text("fast")
    assert (tmp_path / "cache" / "by").read_text() == "fast"
    assert names(tmp_path) == ["cache"]


def test_a_writer_that_expected_no_rival_says_so_and_keeps_the_rivals_directory(tmp_path: Path) -> None:
    with (
        pytest.raises(TargetExistsError, match="created by another process"),
        atomic_directory(tmp_path / "a") as slow,
    ):
        (slow / "by").write_text("slow")
        with atomic_directory(tmp_path / "a") as fast:
            (fast / "by").write_text("fast")
    assert (tmp_path / "a" / "by").read_text() == "fast"


def test_what_a_killed_writer_leaves_is_recognised_and_removed(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from manytune.atomic import atomic_directory\n"
        "with atomic_directory(pathlib.Path(sys.argv[1])) as d:\n"
        "    (d / 'half').write_text('h'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "adapter")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "adapter").exists()
    assert len(names(tmp_path)) == 1

    assert clean_leftovers(tmp_path, older_than=3600) == []  # could be another process at work
    assert len(clean_leftovers(tmp_path)) == 1
    assert names(tmp_path) == []


def test_a_replacement_interrupted_between_its_two_renames_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "adapter"
    with atomic_directory(target) as directory:
        (directory / "old").touch()
    rename = Path.rename

    def die_on_the_second(self: Path, to: Path) -> Path:
        if to == target:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", die_on_the_second)
    with pytest.raises(KeyboardInterrupt), atomic_directory(target, existing="replace"):
        pass
    monkeypatch.undo()
    assert not target.exists()

    clean_leftovers(tmp_path)
    assert names(tmp_path) == ["adapter"]
    assert names(target) == ["old"]


def test_cleaning_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    (tmp_path / "adapter").mkdir()
    assert clean_leftovers(tmp_path) == []
    assert clean_leftovers(tmp_path / "absent") == []
    assert names(tmp_path) == [".hidden", "adapter"]


def test_a_file_never_takes_the_place_of_a_directory_a_device_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, what in (
        ("folder", "this is a directory"),
        ("pipe", "this isn't a file, but a device or a pipe"),
    ):
        for write in (partial(atomic_write, content="x"), require_writable):
            with pytest.raises(WriteError, match=f"{name}: {what}"):
                write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_where_nothing_can_be_written_is_said_before_work_begins(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WriteError, match="'a\\\\x00b': no name may have a NUL in it"):
        require_writable(Path("a\0b"))
    with pytest.raises(WriteError, match="the name is too long"):
        require_writable(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WriteError, match="links lead in a circle"):
        require_writable(tmp_path / "loop" / "there")


def test_a_link_to_nothing_is_something(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("absent")
    with pytest.raises(TargetExistsError):
        require_absent(tmp_path / "link")
