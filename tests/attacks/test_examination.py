"""Whatever an adapter's files make of the process that examines them, it ends alone, and a sentence says why."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.attacks.mutation import cases
from tests.attacks.small_server import ask_of
from tests.attacks.watchdog import Watchdog
from tests.server.api_client import ROOT, ROOT_HEADERS, Client
from tests.server.live import live, until
from tests.server.world import fill_store
from tests.store.adapters_made import make_adapter
from tests.store.test_folder import aged

from manytune.engine.options import EngineOptions
from manytune.errors import ManytuneError, StoreError
from manytune.examination.examiner import Examiner, Verdict
from manytune.examination.limits import Limits
from manytune.server.access.auth import Keys
from manytune.server.adapters.examined import Examined
from manytune.server.app import create_app
from manytune.server.settings import Settings
from manytune.store.base import Base
from manytune.store.folder import FolderStore
from manytune.store.store import AdapterStore

PROGRAM = "tests.attacks.misbehaving"
SMALL = Limits(memory=64 << 20, files=16, answer=1 << 19)
#: What each attack is refused with.
REFUSED = {
    "allocate": "its examination took more than 64 MiB of memory",
    "write": "its examination met a limit of its process (File too large)",
    "open_many": "its examination met a limit of its process (Too many open files)",
    "flood": "its examination answered with 1,0",
    "chatter": "its examination answered with no JSON object",
    "answer_wrong": "its examination gave no answer that can be read",
    "leave": "its examination ended without an answer (exit status 3)",
    "crash": "its examination ended without an answer (SIGSEGV)",
    "panic": "the adapter can't be read (BaseException: as a library in Rust does)",
}


@pytest.fixture(scope="module")
def examiner() -> Iterator[Examiner]:
    made = Examiner(SMALL, PROGRAM)
    yield made
    made.close()


@pytest.fixture(scope="module")
def sound(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("sound") / "adapter", base)


def attacking(directory: Path, attack: str) -> Path:
    """A directory that makes the examiner do something."""
    directory.mkdir(exist_ok=True)
    (directory / "attack").write_text(attack)
    return directory


def running_in_group(group: int) -> list[str]:
    """The processes of a group, but for those that have ended and wait for somebody to look at them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = file.read_text().rpartition(")")[2].split()[:3]
            found += [file.parent.name] if int(of_group) == group and state not in "ZX" else []
    return found


def refusal(examiner: Examiner, directory: Path) -> str:
    said = examiner.examine(directory).refused
    assert said is not None
    return said


@pytest.mark.parametrize("attack", REFUSED)
def test_an_examination_that_misbehaves_is_refused_in_a_sentence_and_the_next_is_right(
    examiner: Examiner, sound: Path, tmp_path: Path, attack: str
) -> None:
    assert REFUSED[attack] in refusal(examiner, attacking(tmp_path, attack))
    assert examiner.examine(sound) == Verdict(("text",))
    assert not any(file.stat().st_size for file in tmp_path.glob("written"))


@pytest.mark.parametrize(
    ("attack", "limits", "expected"),
    [
        ("fork", Limits(seconds=1.0), "took longer than 1 s" if os.geteuid() == 0 else "met a limit"),
        ("compute", Limits(cpu_seconds=0), "took more than 0 s of computing"),
    ],
)
def test_an_examination_that_goes_on_is_ended_with_all_that_it_has_started(
    tmp_path: Path, attack: str, limits: Limits, expected: str
) -> None:
    examiner = Examiner(limits, PROGRAM)
    (process,) = examiner.examine(attacking(tmp_path / "first", "process")).fields
    assert expected in refusal(examiner, attacking(tmp_path / "second", attack))
    examiner.close()
    until(lambda: not running_in_group(int(process)))


def test_the_process_has_no_keys_no_files_of_the_server_and_no_model_library(
    examiner: Examiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    examiner.close()
    found = {
        attack: set(examiner.examine(attacking(tmp_path / attack, attack)).fields)
        for attack in ("environment", "files", "modules")
    }
    assert found["environment"] <= {
        *(
            "LC_ALL",
            "PYTHONPATH",
            "PYTHONHOME",
            "LD_LIBRARY_PATH",
            "DYLD_LIBRARY_PATH",
            "LC_CTYPE",
            "TOKENIZERS_PARALLELISM",
        ),
    }
    assert len(found["files"]) <= 4  # its channel, two that lead nowhere, and the folder that was just read
    assert not found["modules"] & {"torch", "transformers", "numpy"}


def test_a_process_that_somebody_has_ended_is_started_again(
    examiner: Examiner, sound: Path, tmp_path: Path
) -> None:
    asked = attacking(tmp_path, "process")
    first = examiner.examine(asked).fields
    assert examiner.examine(asked).fields == first
    os.kill(int(first[0]), signal.SIGKILL)
    assert examiner.examine(sound).refused is None
    assert examiner.examine(asked).fields != first


def test_where_no_process_can_be_started_nothing_is_examined_and_the_reason_said(tmp_path: Path) -> None:
    for program in ("tests.attacks.absent", "tests.attacks.mutation"):
        with pytest.raises(StoreError, match=rf"can't be examined: .* -m {program} ended"):
            Examiner(program=program).examine(tmp_path)


def test_many_adapters_are_examined_by_one_process(examiner: Examiner, base: Base, tmp_path: Path) -> None:
    store = fill_store(tmp_path, base, ("one",))
    first = examiner.examine(attacking(tmp_path / "asked", "process"))
    began, total = time.monotonic(), 0
    for _ in cases(100):
        found = examiner.examine(store.path("one"), root=store.root, max_bytes=1 << 20)
        assert found == Verdict(("text",))
        total += 1
    print(f"\n{total} examinations, {(time.monotonic() - began) / total * 1e3:.1f} ms each")
    assert examiner.examine(tmp_path / "asked") == first


# -- in a server


def app_with(examiner: Examiner, base: Base, store: AdapterStore) -> object:
    settings = Settings(base_name="base", max_answer_tokens=40, watch_seconds=3600.0, drain_seconds=5.0)
    options = EngineOptions(max_batch=8, weights="plain")
    return create_app(base, store, settings, Keys([ROOT]), options, examiner)


def add(store: AdapterStore, made: Path, base: Base, name: str, attack: str) -> Path:
    """Add an adapter, which its examination will be attacked by."""
    add_as = {"process": 90, "allocate": 91, "leave": 92, "wait": 93}
    entry = store.add(make_adapter(made / name, base, seed=add_as[attack]), name=name)
    return attacking(entry.path, attack)


def test_an_adapter_whose_examination_takes_too_much_or_dies_is_refused_alone(
    base: Base, own_store: AdapterStore, tmp_path: Path
) -> None:
    examiner = Examiner(SMALL, PROGRAM)
    with (
        live(app_with(examiner, base, own_store)) as server,
        Watchdog(server.port, ("base", "one", "two")),
        Client(server.port) as client,
    ):
        for attack, expected in (("allocate", "more than 64 MiB"), ("leave", "exit status 3")):
            directory = add(own_store, tmp_path, base, attack, attack)
            status, error = client.ask(attack)
            assert (status, error["code"]) == (409, "adapter_unusable") and expected in error["message"]
            assert str(own_store.root) not in error["message"]
            assert client.call("POST", "/v1/adapters/reload")[0] == 200
            assert [one["id"] for one in client.call("GET", "/v1/models")[1]["data"]] == [
                "base",
                "one",
                "two",
            ]
            (directory / "attack").unlink()
            assert client.ask(attack)[0] == 409  # it isn't examined again for each request
            assert client.call("POST", f"/v1/adapters/{attack}/verify")[0] == 200
            assert client.ask(attack)[0] == 200
            own_store.remove(attack)
    examiner.close()


def test_others_are_answered_while_many_wait_for_an_examination(
    base: Base, own_store: AdapterStore, tmp_path: Path
) -> None:
    examiner = Examiner(program=PROGRAM)
    waiting = 2 * ((os.cpu_count() or 1) + 4)  # more than the event loop has threads

    def ask(model: str) -> int:
        with Client(server.port) as client:
            return client.ask(model)[0]

    with live(app_with(examiner, base, own_store)) as server, ThreadPoolExecutor(waiting) as clients:
        directory = add(own_store, tmp_path, base, "new", "wait")
        asked = [clients.submit(ask, "new") for _ in range(waiting)]
        assert [ask(model) for model in ("one", "two", "base") * 3] == [200] * 9
        assert not any(one.done() for one in asked)
        (directory / "go").touch()
        assert [one.result() for one in asked] == [200] * waiting
    examiner.close()


def test_what_could_not_be_examined_is_refused_with_the_reason_and_tried_again(
    base: Base, own_store: AdapterStore, examiner: Examiner
) -> None:
    class Absent(Examiner):
        is_absent = True

        def examine(self, directory: Path, *, root: Path | None = None, max_bytes: int = 0) -> Verdict:
            if self.is_absent:
                raise StoreError("adapters can't be examined")
            return examiner.examine(directory, root=root, max_bytes=max_bytes)

    absent = Absent()
    with TestClient(app_with(absent, base, own_store), headers=ROOT_HEADERS) as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["base"]
        status, answer = ask_of(client, "one")
        assert status == 409 and "can't be examined" in answer["error"]["message"]
        absent.is_absent = False
        assert client.post("/v1/adapters/reload").status_code == 200
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["base", "one", "two"]
        assert ask_of(client, "one")[0] == 200
    absent.close()


def test_a_version_is_examined_once_and_again_when_its_files_change(
    own_store: AdapterStore, sound: Path
) -> None:
    class Counting(Examiner):
        asked = 0

        def examine(self, directory: Path, *, root: Path | None = None, max_bytes: int = 0) -> Verdict:
            Counting.asked += 1
            return Verdict(refused="no")

    examined = Examined(own_store, Counting(), max_bytes=1)
    digest = own_store.resolve("one")
    for _ in range(3):
        assert examined.examine(digest).refused == "no"
    assert Counting.asked == 1 and examined.known(digest).refused == "no"
    own_store.add_scores("one", {"loss": 1.0})
    examined.examine(digest)
    assert Counting.asked == 2
    examined.forget(digest)
    examined.examine(digest)
    assert Counting.asked == 3


def test_a_folder_of_adapters_is_examined_before_anything_is_copied(
    examiner: Examiner, base: Base, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "adapters"
    for name, attack in (("bad", "leave"), ("good", "process")):
        attacking(make_adapter(folder / name, base, seed=95), attack)
        aged(folder / name)
    read: list[str] = []
    add = AdapterStore.add
    monkeypatch.setattr(
        AdapterStore,
        "add",
        lambda self, source, **more: read.append(source.name) or add(self, source, **more),
    )
    store = FolderStore(folder, base, examiner.require_source)
    store.refresh()
    assert list(store.names()) == ["good"] and read == ["good"]
    assert "its examination ended without an answer" in store.problems["bad"]


def test_refusals_keep_their_class(examiner: Examiner, sound: Path, tmp_path: Path) -> None:
    """What the store says of a file, an examination says in the same words."""
    from manytune.store.adapters import open_adapter

    for name, content in (("adapter_model.safetensors", b"short"), ("manifest.json", b"{")):
        broken = tmp_path / name
        broken.mkdir()
        for file in sound.iterdir():
            (broken / file.name).write_bytes(content if file.name == name else file.read_bytes())
        with pytest.raises(ManytuneError) as expected:
            open_adapter(broken)
        with pytest.raises(ManytuneError) as found:
            examiner.examine(broken).require()
        assert (type(found.value), str(found.value)) == (type(expected.value), str(expected.value))
