"""Whatever is in an adapter's directory: it is refused with a reason, or valid, and other adapters aren't affected.

    MANYTUNE_CASES=10000 pytest -s tests/server/adapters/test_validation_hostile_adapters.py

runs until so many have been refused; the default is small.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.server.api_client import ROOT, Client
from tests.server.hostile import CONFIG, MANIFEST, MUTATIONS, TENSORS, forge, is_same, is_small, is_sound
from tests.server.live import live
from tests.server.world import app_of, fill_store, save_base
from tests.store.adapters_made import make_adapter

from manytune.errors import ManytuneError
from manytune.server.access.auth import Keys
from manytune.store.base import Base
from manytune.store.digests import digest_of
from manytune.store.manifest import Manifest
from manytune.store.store import AdapterStore

CASES = int(os.environ.get("MANYTUNE_CASES", "150"))
SEED = int(os.environ.get("MANYTUNE_SEED", "20261122"))
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "ia3": {},
    "prompt-tuning": {"num_virtual_tokens": 3},
    "prefix-tuning": {"num_virtual_tokens": 3},
}


def plant(store: AdapterStore, mutant: Path) -> None:
    """Put a directory into a store past all checks, as somebody with the right to write there could."""
    try:
        assert is_small(mutant / MANIFEST)
        digest = digest_of(Manifest.from_json((mutant / MANIFEST).read_text(), where=""))
    except Exception:
        digest = secrets.token_hex(32)  # a server may have a former one in memory under its digest
    target = store.directory(digest)
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(mutant, target, symlinks=True, copy_function=copy_special)
    (store.root / "names" / "mutant").write_text(digest)


def new_content(directory: Path, number: int) -> None:
    """An adapter that the server hasn't in memory already: its template is a new one."""
    file = directory / MANIFEST
    if file.is_file():
        content = json.loads(file.read_text())
        content["template"]["prompt"] += f" {number}"
        file.write_text(json.dumps(content))


def copy_special(source: str, target: str) -> None:
    if Path(source).is_fifo():
        os.mkfifo(target)
    elif Path(source).stat().st_size > 1 << 24:
        Path(target).touch()
        os.truncate(target, Path(source).stat().st_size)
    else:
        shutil.copyfile(source, target)


def outside(folder: Path, store: AdapterStore) -> set[str]:
    """What is next to the store and the directories that the mutants are made in."""
    known = {store.root.name, "work"}
    return {path.name for path in folder.iterdir() if path.name not in known} | {
        path.name for path in (store.root / "staging").iterdir()
    }


def name_no_place_or_time(adapter: Path) -> None:
    """Make an adapter's bytes the same in every run, so that a seed flips the same bits in every run."""
    options = json.loads((adapter / CONFIG).read_text())
    options["base_model_name_or_path"] = "tiny"
    (adapter / CONFIG).write_text(json.dumps(options, indent=2))
    manifest = json.loads((adapter / MANIFEST).read_text())
    manifest |= {"base": "tiny", "created": "2026-01-31T12:00:00Z"}
    (adapter / MANIFEST).write_text(json.dumps(manifest, indent=2))
    forge(adapter)


def make_sources(folder: Path, base: Base) -> list[Path]:
    """What is mutated: of each method what manytune writes, and what HF PEFT does."""
    sources = []
    for seed, (method, options) in enumerate(METHODS.items()):
        sources.append(
            make_adapter(folder / "sources" / method, base, seed=40 + seed, method=method, **options)
        )
        name_no_place_or_time(sources[-1])
        bare = folder / "sources" / f"{method}-of-peft"
        bare.mkdir()
        for name in (CONFIG, TENSORS):
            shutil.copyfile(sources[-1] / name, bare / name)
        sources.append(bare)
    return sources


@pytest.mark.slow
@pytest.mark.timeout(max(900, CASES))
def test_hostile_adapters_are_refused_and_the_others_answer_as_before(base: Base, tmp_path: Path) -> None:
    warnings.simplefilter("ignore")  # options that are named and ignored
    store = fill_store(tmp_path, base)
    sources = make_sources(tmp_path, base)
    expected: dict[Path, Any] = {}
    counts: Counter[str] = Counter()
    began = time.monotonic()
    app = app_of(base, store, Keys([ROOT]), adapter_memory=1 << 20)
    with live(app) as server, Client(server.port) as client:
        for number, source in enumerate(sources):
            store.add(source, name=f"sound-{number}", base=base)
            expected[source] = client.ask(f"sound-{number}")
            assert expected[source][0] == 200, expected[source]
        others = ["base", "one", "two", *(f"sound-{number}" for number in range(len(sources)))]
        before = [client.ask(name) for name in others]
        around = outside(tmp_path, store)
        case = 0
        while counts["refused"] < CASES:
            case += 1
            draw = random.Random(f"{SEED} {case}")
            source = draw.choice(sources)
            shutil.rmtree(tmp_path / "work", ignore_errors=True)
            mutant = tmp_path / "work" / "mutant"
            shutil.copytree(source, mutant)
            new_content(mutant, case)
            mutation = draw.choice(MUTATIONS)
            mutation(draw, mutant)
            if draw.random() < 0.6:
                forge(mutant)
            planted = draw.random() < 0.5
            label = f"case {case} of seed {SEED}: {mutation.__name__} on {source.name}, planted={planted}"
            sound = is_sound(source, mutant, linked=not planted)
            status, answer = try_it(client, store, base, mutant, planted)
            assert 200 <= status < 500, f"{label}: {status} {answer}"
            if status == 200:
                assert sound, f"{label}: was not refused"
                if is_same(source, mutant):
                    assert (status, answer) == expected[source], label
                counts["sound"] += 1
            else:
                assert answer["message"] and answer["code"] != "internal_error", label
                counts["refused"] += 1
                counts[f"  {mutation.__name__}"] += 1
            if case % 50 == 0 or counts["refused"] == CASES:
                assert [client.ask(name) for name in others] == before, label
                for path in ("/healthz", "/v1/models", "/v1/adapters", "/metrics"):
                    assert client.call("GET", path)[0] == 200, f"{label}: {path}"
                assert client.call("POST", "/v1/adapters/reload")[0] == 200, label
            assert outside(tmp_path, store) == around, label
            assert not (tmp_path / "work" / "executed").exists(), label
            assert not (mutant.parent.parent / "escaped").exists(), label
    seconds = time.monotonic() - began
    print(
        f"\n{case} directories in {seconds:.0f} s: {counts.pop('refused')} refused, {counts.pop('sound')} sound"
    )
    print("\n".join(f"{name}: {count}" for name, count in sorted(counts.items())))


def try_it(client: Client, store: AdapterStore, base: Base, mutant: Path, planted: bool) -> tuple[int, Any]:
    """Add a directory, or plant it, and ask it."""
    if planted:
        plant(store, mutant)
    else:
        try:
            store.add(mutant, name="mutant", move=True, base=base)
        except ManytuneError as error:
            return 409, {"message": str(error), "code": "refused_by_the_store"}
    status, answer = client.ask("mutant")
    verified, _ = client.call("POST", "/v1/adapters/mutant/verify")
    assert verified in (200, 404, 409)
    return status, answer


def test_a_seed_mutates_the_same_bytes_wherever_it_runs(tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path / "here", tmp_path / "elsewhere" / "deeper"):
        sources = make_sources(folder, save_base(folder / "base"))
        made.append([[(source / name).read_bytes() for name in (CONFIG, TENSORS)] for source in sources])
        made[-1].append([(source / MANIFEST).read_bytes() for source in sources[::2]])
        assert str(folder) not in repr(made[-1])
    assert made[0] == made[1]


NAMES = [
    "../one",
    "..%2fone",
    "%2e%2e/one",
    "one/../two",
    "../names/one",
    "names/one/two",
    "one/..",
    "one//two",
    "one/",
    "/etc/passwd",
    "one\0",
    ".one",
    "one\n",
    "\uff0e\uff0e/one",
    "a" * 101,
    "",
    " one",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_no_adapter(base: Base, tmp_path: Path, name: str) -> None:
    store = fill_store(tmp_path, base, ("one",))
    with pytest.raises(ManytuneError):
        store.add(tmp_path / "made-one", name=name)
    with live(app_of(base, store, Keys([ROOT]))) as server, Client(server.port) as client:
        status, answer = client.ask(name)
        assert status in (400, 404) and answer["message"]


@pytest.mark.parametrize(
    "content", [b"../../..", b"\xff" * 64, b"", b"0" * 64, b"a" * 10_000, b"../objects/x\0"]
)
def test_a_name_whose_file_was_changed_is_no_adapter_and_the_others_are_listed(
    base: Base, tmp_path: Path, content: bytes
) -> None:
    store = fill_store(tmp_path, base, ("one", "two"))
    (store.root / "names" / "one").write_bytes(content)
    with live(app_of(base, store, Keys([ROOT]))) as server, Client(server.port) as client:
        assert client.ask("one")[0] == 404 and client.ask("two")[0] == 200
        assert "two" in [model["id"] for model in client.call("GET", "/v1/models")[1]["data"]]


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_a_manifest_that_is_no_file_is_reported_and_does_not_block(
    base: Base, tmp_path: Path, kind: str
) -> None:
    store = fill_store(tmp_path, base, ("one", "two"))
    manifest = store.path("one") / MANIFEST
    manifest.unlink()
    if kind == "device":
        manifest.symlink_to("/dev/zero")
    else:
        (os.mkfifo if kind == "pipe" else os.mkdir)(manifest)
    with live(app_of(base, store, Keys([ROOT]))) as server, Client(server.port) as client:
        assert [model["id"] for model in client.call("GET", "/v1/models")[1]["data"]] == ["base", "two"]
        listed = {one["id"]: one["last_error"] for one in client.call("GET", "/v1/adapters")[1]["data"]}
        expected = "can't contain a symbolic link" if kind == "device" else "expected a plain file"
        assert expected in listed["one"] and listed["two"] is None
        assert client.call("GET", "/v1/models/one")[0] == 409
        assert client.ask("one")[0] == 409 and client.ask("two")[0] == 200
