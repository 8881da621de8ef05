from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune.errors import (
    BaseMismatchError,
    DamagedError,
    NameTakenError,
    StoreError,
    UnknownAdapterError,
)
from manytune.store.adapters import open_adapter
from manytune.store.base import Base, load_base
from manytune.store.store import AdapterStore


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> list[Path]:
    root = tmp_path_factory.mktemp("made")
    return [make_adapter(root / f"adapter{seed}", tiny_base, seed=seed) for seed in range(3)]


def without_manifest(adapter: Path, target: Path) -> Path:
    target.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (target / name).write_bytes((adapter / name).read_bytes())
    return target


def test_an_adapter_is_found_by_name_digest_and_first_digits(store: AdapterStore, made: list[Path]) -> None:
    added = store.add(made[0], name="summaries", tags=["production"])
    assert (added.names, added.tags) == (("summaries",), ("production",))
    assert added.manifest.scores == {"validation_loss": 1.0}
    assert added.nbytes == sum(file.stat().st_size for file in made[0].iterdir())
    for reference in ("summaries", added.digest, added.digest[:6]):
        assert store.resolve(reference) == added.digest
        assert store.entry(reference) == added
        assert reference in store
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (store.path("summaries") / file).read_bytes() == (made[0] / file).read_bytes()
    assert open_adapter(store.path("summaries")).manifest == added.manifest


def test_the_same_content_is_kept_once_with_the_names_and_scores_of_both(
    store: AdapterStore, made: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    first = store.add(made[0], name="one")
    again = make_adapter(tmp_path / "again", tiny_base, seed=0)
    manifest = json.loads((again / "manifest.json").read_text())
    manifest.update(scores={"rouge1": 0.5}, created="2030-01-01T00:00:00Z", recipe={"output": "elsewhere"})
    (again / "manifest.json").write_text(json.dumps(manifest))
    second = store.add(again, name="two")
    assert second.digest == first.digest
    assert second.names == ("one", "two")
    assert second.manifest.scores == {"validation_loss": 1.0, "rouge1": 0.5}
    assert len(list((store.root / "objects").glob("*/*"))) == 1


@pytest.mark.parametrize("change", ["tensors", "base", "template"])
def test_what_decides_an_answer_makes_another_adapter(
    change: str, store: AdapterStore, made: list[Path], tmp_path: Path
) -> None:
    manifest = json.loads((made[0] / "manifest.json").read_text())
    other = without_manifest(made[1] if change == "tensors" else made[0], tmp_path / "other")
    if change == "base":
        manifest["fingerprint"]["weights"] = "0" * 64
    elif change == "template":
        manifest["template"]["prompt"] = "Other: {{ text }}"
    else:
        manifest["files"] = json.loads((made[1] / "manifest.json").read_text())["files"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert store.add(other).digest != store.add(made[0]).digest


def test_a_run_stands_for_its_adapter(
    store: AdapterStore, made: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    make_adapter(tmp_path / "run" / "adapter", tiny_base, seed=0)
    assert store.add(tmp_path / "run").digest == store.add(made[0]).digest


def test_a_checkpoint_of_peft_gets_a_manifest_from_its_base(
    store: AdapterStore, made: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    bare = without_manifest(made[0], tmp_path / "bare")
    with pytest.raises(StoreError, match=r"bare: a checkpoint of HF PEFT doesn't say.*Pass --base"):
        store.add(bare)
    added = store.add(bare, base=tiny_base)
    assert added.manifest.method == "lora"
    assert added.manifest.fingerprint == tiny_base.fingerprint
    assert open_adapter(added.path, base=tiny_base).note is None


def test_an_adapter_of_another_base_is_not_taken_in(
    store: AdapterStore, made: list[Path], tmp_path: Path
) -> None:
    other = load_base(str(save_tiny_base(tmp_path / "other", seed=1)))
    with pytest.raises(BaseMismatchError, match="the weights differ"):
        store.add(made[0], base=other)
    assert store.entries() == ()


def test_what_is_damaged_or_unknown_is_not_taken_in(
    store: AdapterStore, made: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    cut = without_manifest(made[0], tmp_path / "cut")
    whole = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(
        DamagedError, match=r"cut/adapter_model\.safetensors: not a readable safetensors file"
    ):
        store.add(cut, base=tiny_base)
    (cut / "adapter_model.safetensors").write_bytes(whole)
    (cut / "adapter_config.json").write_text("{}")
    with pytest.raises(StoreError, match=r"adapter_config\.json: The configuration has no `peft_type`"):
        store.add(cut, base=tiny_base)
    (cut / "adapter_model.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"expected the adapter's tensors in adapter_model\.safetensors"):
        store.add(cut, base=tiny_base)
    assert store.entries() == ()
    assert list((store.root / "staging").iterdir()) == []


def test_a_name_belongs_to_one_adapter_until_it_is_moved(store: AdapterStore, made: list[Path]) -> None:
    first = store.add(made[0], name="summaries")
    with pytest.raises(NameTakenError, match=f"'summaries' belongs to adapter {first.digest[:12]}"):
        store.add(made[1], name="summaries")
    second = store.add(made[1], name="summaries", move=True)
    assert store.resolve("summaries") == second.digest
    assert store.entry(first.digest).names == ()
    store.alias(first.digest, "former")
    with pytest.raises(NameTakenError, match="belongs to adapter"):
        store.alias("former", "summaries")
    store.alias("former", "summaries", move=True)
    assert store.entry(first.digest).names == ("former", "summaries")
    store.unalias("former")
    assert "former" not in store
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'former'"):
        store.unalias("former")


def test_first_digits_that_several_adapters_share_are_refused(store: AdapterStore, made: list[Path]) -> None:
    digest = store.add(made[0]).digest
    twin = store.directory(digest[:6] + "0" * 58)
    shutil.copytree(store.directory(digest), twin)
    with pytest.raises(UnknownAdapterError, match=r"is the start of 2 adapters.*Give more digits"):
        store.resolve(digest[:6])
    assert digest[:6] not in store
    assert store.resolve(digest) == digest


def test_a_name_whose_file_was_damaged_can_be_taken_away(store: AdapterStore, made: list[Path]) -> None:
    store.add(made[0], name="a")
    (store.root / "names" / "a").write_text("no digest")
    assert "a" not in store
    store.unalias("a")
    assert store.names() == {}


def test_an_unreadable_manifest_is_reported_and_the_other_adapters_are_listed(
    store: AdapterStore, made: list[Path]
) -> None:
    bad, good = store.add(made[0], name="bad"), store.add(made[1], name="good")
    (bad.path / "manifest.json").write_text("{")
    with pytest.raises(DamagedError, match="expected JSON"):
        store.entries()
    reported: dict[str, str] = {}
    entries = store.entries(unreadable=lambda digest, error: reported.update({digest: str(error)}))
    assert entries == (good,)
    assert list(reported) == [bad.digest]
    assert "expected JSON" in reported[bad.digest]


def test_tags_choose_among_adapters(store: AdapterStore, made: list[Path]) -> None:
    for number, path in enumerate(made):
        store.add(path, name=f"a{number}")
    store.tag("a0", "production", "english")
    store.tag("a2", "production")
    assert [str(entry) for entry in store.entries(tag="production")] == ["a0", "a2"]
    assert [str(entry) for entry in store.entries()] == ["a0", "a1", "a2"]
    store.untag("a0", "production", "never-given")
    assert [str(entry) for entry in store.entries(tag="production")] == ["a2"]
    assert store.entry("a0").tags == ("english",)


def test_what_is_removed_leaves_no_name_tag_or_file(store: AdapterStore, made: list[Path]) -> None:
    first = store.add(made[0], name="one", tags=["t"])
    store.alias("one", "uno")
    second = store.add(made[1], name="two", tags=["t"])
    store.remove("one")
    assert [entry.digest for entry in store.entries()] == [second.digest]
    assert not any(reference in store for reference in ("one", "uno", first.digest))
    assert not first.path.exists()
    assert [path.name for path in (store.root / "names").iterdir()] == ["two"]
    assert list((store.root / "staging").iterdir()) == []
    assert store.add(made[0]).digest == first.digest


def test_an_unknown_name_is_an_error_that_names_the_nearest(store: AdapterStore, made: list[Path]) -> None:
    with pytest.raises(
        UnknownAdapterError, match=r"no adapter 'summaries'; there is no store of adapters here"
    ):
        store.resolve("summaries")
    store.add(made[0], name="summaries")
    store.unalias("summaries")
    with pytest.raises(UnknownAdapterError, match="Its adapters have no names, or there are none"):
        store.resolve("summaries")
    store.add(made[0], name="summaries")
    with pytest.raises(
        UnknownAdapterError, match=r"there is no adapter 'sumaries'\. Did you mean 'summaries'\?"
    ):
        store.entry("sumaries")
    with pytest.raises(UnknownAdapterError, match=r"'xyzzy'\. Its adapters: summaries"):
        store.remove("xyzzy")


@pytest.mark.parametrize("word", ["", ".hidden", "../up", "a b", "x" * 101, "naïve", "a%2Fb"])
def test_words_that_are_no_file_names_are_refused(word: str, store: AdapterStore, made: list[Path]) -> None:
    with pytest.raises(StoreError, match=re.escape(f"{word!r} can't be a name")):
        store.add(made[0], name=word)
    with pytest.raises(StoreError, match="can't be a tag"):
        store.add(made[0], tags=[word])
    assert store.entries() == ()
    assert word not in store


def test_another_directory_is_not_taken_for_a_store(tmp_path: Path, made: list[Path]) -> None:
    with pytest.raises(StoreError, match="isn't a store of adapters, has no subdirectories with an adapter"):
        AdapterStore(made[0])
    (tmp_path / "store.json").write_text('{"format": 2}')
    with pytest.raises(StoreError, match=r"expected format 1, found .*'format': 2"):
        AdapterStore(tmp_path)
    with pytest.raises(StoreError, match="there is no store of adapters here"):
        AdapterStore(tmp_path / "absent").tag("a", "b")


def test_scores_are_added_to_those_that_are_there(store: AdapterStore, made: list[Path]) -> None:
    store.add(made[0], name="a")
    store.add_scores("a", {"rouge1": 0.25})
    assert store.entry("a").manifest.scores == {"validation_loss": 1.0, "rouge1": 0.25}
    assert open_adapter(store.path("a")).manifest == store.entry("a").manifest


def add_all(root: Path, sources: list[Path], names: list[str]) -> None:
    store = AdapterStore(root)
    for source, name in zip(sources, names, strict=True):
        store.add(source, name=name, tags=["shared"])
        store.alias(name, f"{name}-too")
    store.unalias(f"{names[0]}-too")


def test_several_processes_fill_one_store_at_once(tmp_path: Path, made: list[Path]) -> None:
    context = multiprocessing.get_context("fork")
    root = tmp_path / "store"
    workers = [
        context.Process(target=add_all, args=(root, made, [f"w{worker}-{i}" for i in range(3)]))
        for worker in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    entries = AdapterStore(root).entries(tag="shared")
    assert len(entries) == 3
    names = {name for entry in entries for name in entry.names}
    expected = {f"w{worker}-{i}{too}" for worker in range(4) for i in range(3) for too in ("", "-too")}
    assert names == expected - {f"w{worker}-0-too" for worker in range(4)}
    assert list((root / "staging").iterdir()) == []


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "manifest.json"])
def test_a_copy_that_was_damaged_is_replaced_by_adding_the_adapter_again(
    tmp_path: Path, tiny_base: Base, file: str
) -> None:
    source = make_adapter(tmp_path / "made", tiny_base)
    store = AdapterStore(tmp_path / "store")
    digest = store.add(source, name="a").digest
    damaged = store.directory(digest) / file
    whole = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(whole[:-9])
    assert store.add(source, name="a").digest == digest
    assert damaged.read_bytes() == whole
    assert list((store.root / "staging").iterdir()) == []


def test_a_manifest_that_isnt_the_one_that_was_added_is_refused(tmp_path: Path, tiny_base: Base) -> None:
    """Its prompt template decides answers, and no file's hash covers it."""
    store = AdapterStore(tmp_path / "store")
    entry = store.add(make_adapter(tmp_path / "made", tiny_base), name="a")
    file = entry.path / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace("{{ text }}", "{{ test }}"))
    for read in (store.path, store.entry):
        with pytest.raises(DamagedError, match=r"manifest\.json: .*Add the adapter again"):
            read("a")
    unreadable: dict[str, StoreError] = {}
    assert store.entries(unreadable=unreadable.__setitem__) == () and list(unreadable) == [entry.digest]
