import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manytune.errors import StoreError
from manytune.store.files import atomic_directory, atomic_write, clean_leftovers, held, sha256_file


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_sha256_of_a_file_is_the_published_value_for_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected


def test_atomic_write_replaces_the_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", "é")
    atomic_write(tmp_path / "a.json", b"second")
    assert (tmp_path / "a.json").read_bytes() == b"second"
    assert names(tmp_path) == ["a.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "a", "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


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
        pytest.raises(StoreError, match=r"adapter exists already.*another directory"),
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
        pytest.raises(StoreError, match="created by another process"),
        atomic_directory(tmp_path / "a") as slow,
    ):
        (slow / "by").write_text("slow")
        with atomic_directory(tmp_path / "a") as fast:
            (fast / "by").write_text("fast")
    assert (tmp_path / "a" / "by").read_text() == "fast"


def test_what_a_killed_writer_leaves_is_recognised_and_removed(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from manytune.store.files import atomic_directory\n"
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


def test_a_directory_is_held_by_one_process_at_a_time_and_let_go_by_its_death(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from manytune.store.files import held\n"
        "with held(pathlib.Path(sys.argv[1])):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(StoreError, match=r"run: another process is writing here"), held(target):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with held(target):
        pass
    assert names(target) == []
