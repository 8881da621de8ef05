"""A disk that is full, read-only or not ours: a sentence with the file and what to do, and nothing half-written."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tests.experiments.tiny_experiment import content
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base
from tests.training.tiny_run import recipe_content
from typer.testing import CliRunner, Result

from manytune.atomic import atomic_directory, atomic_file, atomic_write
from manytune.cli.main import build_app
from manytune.errors import WriteError
from manytune.store.base import load_base
from manytune.store.run_log import RunLog, ValidationReport
from manytune.store.store import AdapterStore

FAULTS = {
    errno.ENOSPC: "no space is left on the disk. Free some",
    errno.EROFS: "the file system is read-only. Write somewhere else",
    errno.EACCES: "permission is missing. Get access to it",
    errno.EDQUOT: "your share of the disk is used up. Free some",
}


def break_disk(patch: pytest.MonkeyPatch, number: int) -> None:
    """All writes of files end in `fsync`: a disk may say only then that it's full."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, "fsync", fail)


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith("lock")
    }


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_text(path: Path) -> None:
    atomic_write(path, "x" * 3_000_000)


def write_tensors(path: Path) -> None:
    with atomic_file(path) as temporary:
        save_file({"a": torch.zeros(1_000_000)}, temporary)


def fill_directory(path: Path) -> None:
    with atomic_directory(path) as temporary:
        save_file({"a": torch.zeros(1_000_000)}, temporary / "a.safetensors")


WRITERS = [write_text, write_tensors, fill_directory]


@pytest.mark.parametrize("write", WRITERS)
def test_a_write_that_the_system_refuses_names_the_file_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with (
        files_of_at_most(2_000_000),
        pytest.raises(WriteError, match=r"/target: a file would be larger than"),
    ):
        write(tmp_path / "target")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("write", WRITERS)
def test_each_fault_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, write: Callable[[Path], None]
) -> None:
    break_disk(monkeypatch, number)
    with pytest.raises(WriteError, match=f"/target: {FAULTS[number]}"):
        write(tmp_path / "target")
    assert not list(tmp_path.iterdir())


class Full:
    """A file on a disk that is full."""

    def write(self, _: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        pass


def test_a_training_whose_log_fills_the_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path / "log.jsonl", after=None)
    with log, monkeypatch.context() as patch:
        patch.setattr(log, "_file", Full())
        with pytest.raises(WriteError, match=r"/log\.jsonl: no space is left on the disk"):
            log.write(ValidationReport(1, 2, 0.5, 1.0))


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "a"):
        (tmp_path / "absent").read_text()


# Commands


def manytune(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), [*map(str, arguments)])


def refused(result: Result, number: int) -> bool:
    said = " ".join(result.stderr.split())
    return result.exit_code == 1 and "error: " in said and FAULTS[number][:20] in said


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    base = load_base(str(save_tiny_base(folder / "tiny")))
    store = AdapterStore(folder / "adapters")
    for seed, name in enumerate(("kept", "new")):
        make_adapter(folder / "runs" / name / "adapter", base, seed=seed)
    store.add(folder / "runs" / "kept" / "adapter", name="kept")
    return folder


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    "command",
    [("add", "runs/new"), ("alias", "kept", "other"), ("remove", "kept", "--yes")],
)
def test_commands_on_adapters_end_with_a_sentence_and_leave_the_store_as_it_was(
    filled: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], number: int
) -> None:
    monkeypatch.chdir(filled)
    if "kept" not in AdapterStore("adapters"):
        AdapterStore("adapters").add(Path("runs/kept/adapter"), name="kept")
    before = files(filled / "adapters")
    with monkeypatch.context() as patch:
        break_disk(patch, number)
        result = manytune("adapters", *command)
    assert refused(result, number), result.output
    if command[0] == "remove":  # it is gone, or there: never a part of it
        assert len(AdapterStore(filled / "adapters").names()) <= 1
    else:
        assert files(filled / "adapters") == before


def test_train_and_compare_end_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "compare").mkdir()
    recipes = {
        "train": recipe_content(tmp_path / "train", max_steps=1),
        "compare": content(tmp_path / "compare"),
    }
    for command, recipe in recipes.items():
        file = tmp_path / command / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        with monkeypatch.context() as patch:
            break_disk(patch, errno.ENOSPC)
            result = manytune(command, file)
        assert refused(result, errno.ENOSPC), result.output
        assert not [path for path in (tmp_path / command).rglob("*") if ".manytune-" in path.name]
