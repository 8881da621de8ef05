"""What somebody else may have put among the compiled kernels, or what is left of them, is never loaded."""

import os
import stat

import pytest

from manytune.kernels import build

CONTENT = b"compiled\n"


@pytest.fixture
def compile(tmp_path, monkeypatch):
    """Compiles with a script that writes the same few bytes each time, and counts its runs."""
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "compiler"
    script.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit\necho >> {tmp_path}/runs\nfor out; do :; done\necho compiled > $out\n"
    )
    script.chmod(0o755)
    return lambda: build.compiled(str(script))


def runs(tmp_path):
    return len((tmp_path / "runs").read_text().splitlines())


def test_what_nobody_touched_is_used_again_and_the_directory_is_its_owners_alone(compile, tmp_path):
    first = compile()
    assert compile() == first and first.read_bytes() == CONTENT and runs(tmp_path) == 1
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert not stat.S_IMODE(first.stat().st_mode) & 0o022


def planted(file):
    file.chmod(0o700)
    file.write_bytes(b"another's")


def cut_off(file):
    file.chmod(0o700)
    os.truncate(file, 3)


def open_to_all(file):
    file.chmod(0o777)


def a_link(file):
    other = file.parent.parent / "another"
    other.write_bytes(CONTENT)
    file.unlink()
    file.symlink_to(other)


def a_pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("attack", [planted, cut_off, open_to_all, a_link, a_pipe])
def test_a_file_that_is_not_what_was_compiled_is_compiled_again(attack, compile, tmp_path):
    file = compile()
    attack(file)
    again = compile()
    assert stat.S_ISREG(again.lstat().st_mode) and not again.lstat().st_mode & 0o022
    assert again.read_bytes() == CONTENT and runs(tmp_path) == 2


def test_a_file_under_the_right_key_that_was_never_compiled_here_is_not_loaded(compile, tmp_path):
    file = compile()
    key = file.name.split(".")[0]
    file.unlink()
    (file.parent / f"{key}.so").write_bytes(b"another's")
    assert compile().read_bytes() == CONTENT and runs(tmp_path) == 2


def test_a_directory_that_others_could_write_in_is_emptied_and_closed(compile, tmp_path):
    file = compile()
    file.parent.chmod(0o777)
    (file.parent / "left").mkdir()
    assert compile().read_bytes() == CONTENT and runs(tmp_path) == 2
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.suffix for path in file.parent.iterdir()] == [".so"]


@pytest.mark.parametrize("kind", ["another user's", "a link"])
def test_a_directory_that_is_not_ours_is_refused_by_name(kind, compile, tmp_path, monkeypatch):
    directory = tmp_path / "cache" / "kernels"
    if kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        directory.parent.mkdir()
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.mkdir(parents=True)
        monkeypatch.setattr("manytune.kernels.private_files._trusted", lambda: (os.geteuid() + 1,))
    with pytest.raises(
        OSError, match=r"kernels: (it belongs to another user|expected a directory, found a link)"
    ):
        compile()
    assert list(directory.iterdir()) == []
