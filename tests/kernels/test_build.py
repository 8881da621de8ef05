"""The kernels are compiled once, checked before use, and done without where that fails."""

import ctypes
import os
import platform
import types
from pathlib import Path

import pytest
from tests.kernels.machine import COMPILER, needs_compiler

from manytune.caches import cache_directory
from manytune.kernels import build
from manytune.kernels.check import difference

pytestmark = needs_compiler

PLAIN = ("-O3", "-fopenmp", "-std=c++17", "-fPIC", "-shared")
INSTRUCTIONS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
FUNCTIONS = (
    "packed_attention_forward",
    "packed_attention_backward",
    "low_rank_forward",
    "low_rank_backward",
    "own_updates",
    "panel_outputs",
    "pack_panels",
    "multiply_panels",
    "fingerprints",
)


@pytest.fixture(autouse=True)
def no_kernels_yet(library, monkeypatch, tmp_path):
    """As in a process that has loaded none, with an empty cache.

    The process's own stay loaded: they are loaded before anything is changed, and found again afterwards.
    """
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    for name in ("MANYTUNE_KERNELS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build, "_of_this_process", build.KernelLoader())


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a compiler of a shell script, which is asked for its version or to compile into `$output`."""

    def write(*, version="echo one", compile):
        path = tmp_path / "compiler"
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then {version}; exit; fi\n'
            f"echo >> {tmp_path / 'runs'}\nfor output; do :; done\n{compile}\n"
        )
        path.chmod(0o755)
        monkeypatch.setenv("CXX", f"{path} --with arguments")
        return str(path)

    return write


def runs(tmp_path):
    path = tmp_path / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def kept():
    """What is in the cache, hidden and half-made files included."""
    return sorted(path.name for path in cache_directory().rglob("*") if path.is_file())


def assert_none(*said):
    kernels = build.load_kernels()
    assert kernels.library is None and not build.ready()
    for part in ("torch's own", *said):
        assert part in kernels.note
    assert "\n" not in kernels.note
    return kernels.note


def test_they_are_compiled_once_and_read_from_the_cache_after(compiler, tmp_path, monkeypatch):
    # Unoptimised, which takes a third of the time.
    compiler(version=f"{COMPILER} --version", compile=f'exec {COMPILER} "$@" -O0')
    assert not build.ready()
    first = build.load_kernels()
    assert first.note == "C++" and build.ready()
    assert all(hasattr(first.loaded(), name) for name in FUNCTIONS)
    assert build.load_kernels() is first
    (file,) = kept()
    assert file.endswith(".so") and runs(tmp_path) == 1
    monkeypatch.setattr(build, "_of_this_process", build.KernelLoader())
    second = build.load_kernels()
    assert second is not first and second.note == "C++" and build.ready()
    assert kept() == [file] and runs(tmp_path) == 1


def test_another_compiler_processor_or_source_is_compiled_again(compiler, tmp_path, monkeypatch):
    path = compiler(compile='echo > "$output"')
    made = [build.compiled(path), build.compiled(path, PLAIN)]
    compiler(version="echo two", compile='echo > "$output"')
    made.append(build.compiled(path))
    monkeypatch.setattr(build, "_processor", lambda: b"another")
    made.append(build.compiled(path))
    for name in ("one.cpp", "header.h"):
        (tmp_path / "sources").mkdir(exist_ok=True)
        (tmp_path / "sources" / name).write_text("")
        monkeypatch.setattr(build, "_SOURCES", tmp_path / "sources")
        made.append(build.compiled(path))
    assert len(set(made)) == runs(tmp_path) == 6
    assert build.compiled(path) == made[-1] and runs(tmp_path) == 6
    assert kept() == sorted(file.name for file in made)


def test_without_a_compiler_the_note_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_none("no C++ compiler found: install g++, or name one in CXX")
    assert kept() == []


def test_another_system_is_named(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert_none("the C++ kernels are for Linux; this is Darwin")


def test_they_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("MANYTUNE_KERNELS", "torch")
    assert_none("MANYTUNE_KERNELS=torch")
    assert kept() == []


def test_what_a_failing_compiler_says_is_reported_and_nothing_stays(compiler, tmp_path):
    compiler(
        compile='echo half > "$output"; echo "in file one:" >&2; '
        'echo "one.cpp:3: error: no such instruction" >&2; echo "more" >&2; exit 1'
    )
    note = assert_none("one.cpp:3: error: no such instruction")
    assert "more" not in note
    assert runs(tmp_path) == 1 and kept() == []
    assert list((cache_directory() / "kernels").iterdir()) == []


def test_a_compiler_may_speak_in_another_encoding(compiler):
    compiler(version=r"printf 'g++ \251 2026'", compile=r"printf 'error: \251\n' >&2; exit 1")
    assert_none("error: \ufffd")


def test_a_compiler_that_fails_without_a_word_is_named(compiler):
    path = compiler(compile="exit 7")
    assert_none(path, "exit status 7")


def test_a_compiler_that_cannot_give_its_version_is_quoted(compiler, tmp_path):
    compiler(version="echo 'error: the licence has expired' >&2; exit 1", compile="exit 1")
    note = assert_none("error: the licence has expired")
    assert note.endswith("load: error: the licence has expired)")
    assert runs(tmp_path) == 0


def test_a_file_that_is_no_library_is_not_used(compiler):
    compiler(compile='echo "no library" > "$output"')
    assert_none("don't compile or load", str(cache_directory()))


def test_a_cache_that_cannot_be_written_is_named(compiler, tmp_path):
    compiler(compile="exit 1")
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert_none(str(tmp_path / "cache" / "kernels"))
    assert runs(tmp_path) == 0


def test_a_compiler_that_takes_too_long_is_stopped(compiler, monkeypatch):
    monkeypatch.setattr(build, "_COMPILE_SECONDS", 0.2)
    compiler(compile="exec sleep 60")
    assert_none("timed out after 0.2 seconds")
    assert kept() == []


def test_kernels_that_compute_something_else_are_not_used(library, monkeypatch):
    monkeypatch.setattr(build, "compiled", lambda compiler: Path(library._name))
    monkeypatch.setattr(build, "difference", lambda _: "attention is 1.0e+00 of its largest value away")
    assert_none(str(COMPILER), "is wrong: attention is 1.0e+00 of its largest value away")


@pytest.mark.parametrize(
    "added",
    [
        (),
        pytest.param(
            ("-mavx2", "-mfma"),
            marks=pytest.mark.skipif("avx2" not in INSTRUCTIONS, reason="this processor has no AVX2"),
        ),
    ],
)
def test_other_instructions_compute_the_same(added):
    assert difference(ctypes.CDLL(str(build.compiled(COMPILER, (*PLAIN, *added))))) is None


class Altered:
    """The kernels, but what one of them is given or leaves behind is changed."""

    def __init__(self, library, name, change):
        self._library, self._name, self._change = library, name, change

    def __getattr__(self, name):
        function = getattr(self._library, name)
        return (lambda *given: self._change(function, given)) if name == self._name else function


def with_twice_the_scaling(function, given):
    function(*(ctypes.c_float(2 * x.value) if isinstance(x, ctypes.c_float) else x for x in given))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("packed_attention_forward", "attention"),
        ("packed_attention_backward", "attention's gradient of the queries"),
        ("low_rank_forward", "LoRA's update"),
        ("low_rank_backward", "LoRA's gradient of x"),
    ],
)
def test_a_wrong_result_is_found_and_named(library, name, wrong):
    assert difference(library) is None
    assert difference(Altered(library, name, with_twice_the_scaling)).startswith(f"{wrong} is ")


@pytest.mark.parametrize(("place", "wrong"), [(5, "x"), (6, "A"), (7, "B")])
def test_a_gradient_with_one_wrong_value_is_found(library, place, wrong):
    def spoil(function, given):
        function(*given)
        ctypes.cast(given[place], ctypes.POINTER(ctypes.c_float))[0] += 1.0

    found = difference(Altered(library, "low_rank_backward", spoil))
    assert found.startswith(f"LoRA's gradient of {wrong} is ")


def test_one_wrong_value_of_rows_with_an_adapter_each_is_found(library):
    def spoil(function, given):
        function(*given)
        ctypes.cast(given[2], ctypes.POINTER(ctypes.c_float))[3] += 1.0  # y

    found = difference(Altered(library, "own_updates", spoil))
    assert found.startswith("updates of rows with an adapter each is ")


def test_fingerprints_that_do_not_depend_on_the_content_are_found(library):
    def forget(function, given):
        function(*given)
        ctypes.memset(given[2], 7, 8 * given[1].value)

    assert difference(Altered(library, "fingerprints", forget)).startswith("equality of fingerprints is ")


def test_a_result_that_is_not_a_number_is_found(library):
    def spoil(function, given):
        function(*given)
        ctypes.cast(given[4], ctypes.POINTER(ctypes.c_float))[3] = float("nan")  # y

    assert difference(Altered(library, "low_rank_forward", spoil)).startswith("LoRA's update is nan")


def test_kernels_that_do_nothing_are_found():
    nothing = types.SimpleNamespace(**dict.fromkeys(FUNCTIONS, lambda *given: None))
    assert difference(nothing) is not None


def test_the_cache_is_the_one_that_is_configured(tmp_path):
    assert cache_directory() == tmp_path / "cache" == Path(os.environ["MANYTUNE_CACHE"])
