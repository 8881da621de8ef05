from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tests.store.tiny import save_tiny_base, tiny_model

from manytune.errors import BaseMismatchError, DamagedError, StoreError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.model.auto import AutoPeftModelForCausalLM
from manytune.store.adapters import add_scores, open_adapter, save_adapter
from manytune.store.base import Base, load_base
from manytune.store.base_source import Source, hub_origin
from manytune.store.digests import sha256_file
from manytune.store.manifest import Description, Manifest
from manytune.store.store import AdapterStore


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture
def adapter(tmp_path: Path, base: Base) -> Path:
    model = get_peft_model(tiny_model(), peft_config_from("lora", r=2, target_modules=["q_proj"]))
    description = Description(
        method="lora",
        base=base.name,
        fingerprint=base.fingerprint,
        template={"prompt": "{{ text }}", "completion": "{{ summary }}"},
        encoding="plain",
        encoding_options={"chat_template_kwargs": {"enable_thinking": False}, "max_prompt": 7},
        recipe={"method": {"name": "lora", "r": 2}},
        scores={"validation_loss": 1.25},
    )
    save_adapter(model, tmp_path / "adapter", description)
    return tmp_path / "adapter"


def edit(adapter: Path, **changes: Any) -> None:
    content = json.loads((adapter / "manifest.json").read_text())
    content.update(changes)
    (adapter / "manifest.json").write_text(json.dumps({k: v for k, v in content.items() if v != "gone"}))


def test_what_was_saved_is_read_back_in_full(adapter: Path, base: Base) -> None:
    stored = open_adapter(adapter, base=base)
    assert stored.path == adapter
    assert stored.note is None
    manifest = stored.manifest
    assert manifest is not None
    assert (manifest.method, manifest.base, manifest.encoding) == ("lora", base.name, "plain")
    assert manifest.template == {"prompt": "{{ text }}", "completion": "{{ summary }}"}
    assert manifest.encoding_options == {"chat_template_kwargs": {"enable_thinking": False}, "max_prompt": 7}
    assert manifest.recipe == {"method": {"name": "lora", "r": 2}}
    assert manifest.scores == {"validation_loss": 1.25}
    assert manifest.files["adapter_model.safetensors"] == sha256_file(adapter / "adapter_model.safetensors")
    assert Manifest.from_json(manifest.to_json(), where="here") == manifest


def test_saving_again_replaces_the_adapter_and_leaves_nothing_behind(adapter: Path, base: Base) -> None:
    model = get_peft_model(tiny_model(), peft_config_from("lora", r=3, target_modules=["q_proj"]))
    save_adapter(model, adapter, Description(method="lora", base="other", fingerprint=base.fingerprint))
    manifest = open_adapter(adapter).manifest
    assert manifest is not None
    assert manifest.base == "other"
    assert manifest.template is None
    assert "encoding_options" not in json.loads((adapter / "manifest.json").read_text())
    assert [entry.name for entry in adapter.parent.iterdir()] == ["adapter"]


def test_scores_are_added_to_those_that_are_there(adapter: Path) -> None:
    add_scores(adapter, {"rouge1": 0.5})
    manifest = open_adapter(adapter).manifest
    assert manifest is not None
    assert manifest.scores == {"validation_loss": 1.25, "rouge1": 0.5}


def test_an_adapter_of_another_base_is_refused_and_both_bases_are_named(
    adapter: Path, base: Base, tmp_path: Path
) -> None:
    other = load_base(str(save_tiny_base(tmp_path / "other", seed=1)))
    with pytest.raises(BaseMismatchError) as caught:
        open_adapter(adapter, base=other)
    message = str(caught.value)
    assert "the weights differ" in message
    assert f"Expected {base.name} ({base.fingerprint})" in message
    assert f"found {other.name} ({other.fingerprint})" in message


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_single_changed_byte_is_found(adapter: Path, name: str) -> None:
    content = bytearray((adapter / name).read_bytes())
    content[-2] ^= 1
    (adapter / name).write_bytes(content)
    with pytest.raises(DamagedError, match=rf"{name}: the file was changed or damaged.*SHA-256"):
        open_adapter(adapter)


def test_a_missing_file_is_named(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors: the manifest names this file"):
        open_adapter(adapter)


def test_a_tensor_file_that_the_manifest_does_not_name_is_refused(adapter: Path) -> None:
    (adapter / "more.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(DamagedError, match=r"more\.safetensors: the manifest doesn't name this file"):
        open_adapter(adapter)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors", "notes.txt"])
def test_a_pickle_is_refused_whatever_its_name(adapter: Path, name: str, protocol: int) -> None:
    (adapter / name).write_bytes(pickle.dumps({"weight": [1.0]}, protocol=protocol))
    with pytest.raises(DamagedError, match=rf"{name}: this is a pickle.*safetensors"):
        open_adapter(adapter)


def test_a_file_of_torch_save_is_refused(adapter: Path) -> None:
    # A torch checkpoint is a zip archive that holds a pickle; only its first bytes matter here.
    (adapter / "adapter_model.bin").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(DamagedError, match="this is a pickle"):
        open_adapter(adapter)


def test_safetensors_whose_header_length_looks_like_a_pickle_are_accepted(adapter: Path) -> None:
    # 0x0280 = 640 bytes of header begin with 80 02, as a pickle of protocol 2 does.
    (adapter / "manifest.json").unlink()
    header = b"{" + b" " * 638 + b"}"
    (adapter / "adapter_model.safetensors").write_bytes((640).to_bytes(8, "little") + header)
    assert open_adapter(adapter).manifest is None


def test_a_cut_off_safetensors_file_is_recognised_without_a_manifest(adapter: Path) -> None:
    (adapter / "manifest.json").unlink()
    (adapter / "adapter_model.safetensors").write_bytes(b"\x01")
    with pytest.raises(DamagedError, match="not a readable safetensors file; it may have been cut off"):
        open_adapter(adapter)


def test_an_adapter_without_a_manifest_is_accepted_with_a_note(adapter: Path, base: Base) -> None:
    (adapter / "manifest.json").unlink()
    stored = open_adapter(adapter, base=base)
    assert stored.manifest is None
    assert stored.note is not None
    assert "no manifest.json, so neither its files nor its base could be checked" in stored.note
    with pytest.raises(StoreError, match=r"scores go into the manifest.*no manifest\.json"):
        add_scores(adapter, {"rouge1": 0.5})


def test_a_directory_without_an_adapter_is_an_error_that_says_what_is_there(
    adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="there is no such directory"):
        open_adapter(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="this directory holds no adapter"):
        open_adapter(tmp_path / "empty")
    with pytest.raises(StoreError, match=r"this is a run; its adapter is in .*adapter"):
        open_adapter(tmp_path)


def test_an_interrupted_replacement_is_an_error_that_names_the_former_adapter(adapter: Path) -> None:
    adapter.rename(adapter.with_name(".adapter.manytune-old-00000000"))
    with pytest.raises(
        StoreError, match=r"interrupted; rename .*\.adapter\.manytune-old-00000000 to adapter"
    ):
        open_adapter(adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "expected manifest format 1; found 2.*update manytune"),
        ({"format": "gone"}, "expected manifest format 1; found None"),
        ({"scores": "gone"}, "misses key scores"),
        ({"licence": "MIT"}, "has the unknown key licence"),
        ({"method": 3}, "method must be text; found 3"),
        ({"encoding": "morse"}, 'encoding must be "chat", "plain" or null; found \'morse\''),
        ({"encoding_options": "loud"}, "encoding_options must be an object or null; found 'loud'"),
        ({"fingerprint": {"config": "x"}}, "a base fingerprint has the texts config, tokenizer, weights"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(
    adapter: Path, changes: dict[str, Any], message: str
) -> None:
    edit(adapter, **changes)
    with pytest.raises(DamagedError, match=rf"manifest\.json: .*{message}"):
        open_adapter(adapter)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "expected JSON"), ("[]", "expected a JSON object; found list")]
)
def test_a_manifest_that_is_not_a_json_object_is_refused(adapter: Path, text: str, message: str) -> None:
    (adapter / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=message):
        open_adapter(adapter)


def test_loading_the_stored_adapter_gives_the_model_that_was_saved(adapter: Path) -> None:
    from manytune.model.peft_model import PeftModel

    loaded = PeftModel.from_pretrained(tiny_model(), adapter)
    ids = torch.tensor([[3, 4, 5]])
    assert loaded(input_ids=ids).logits.shape == (1, 3, 29)


def test_scores_are_on_the_card_as_a_hub_reads_them_and_those_added_later_join_them(adapter: Path) -> None:
    assert "Describe the scores here" not in (adapter / "README.md").read_text()
    add_scores(adapter, {"rouge1": 0.5, "broken": float("nan")})
    card = ModelCard.load(adapter / "README.md")
    results = card.data.eval_results
    assert {(one.metric_type, one.metric_value) for one in results} == {
        ("validation_loss", 1.25),
        ("rouge1", 0.5),
    }
    assert {one.task_type for one in results} == {"text-generation"}
    assert card.text.count("| validation_loss | 1.25 |") == 1
    assert "| rouge1 | 0.5 |" in card.text


def test_a_card_in_a_store_has_the_scores_that_were_added_there(adapter: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    store.add(adapter, name="a")
    store.add_scores("a", {"rouge1": 0.5})
    assert "| rouge1 | 0.5 |" in (store.path("a") / "README.md").read_text()
    assert open_adapter(store.path("a")).manifest is not None


@pytest.mark.parametrize("revision", ["0123456789abcdef0123456789abcdef01234567"])
def test_an_adapter_of_a_base_from_the_hubs_cache_names_the_hubs_id_and_revision(
    tmp_path: Path, revision: str
) -> None:
    snapshot = tmp_path / "hub" / "models--org--tiny-base" / "snapshots" / revision
    base = load_base(str(save_tiny_base(snapshot)))
    plain = load_base(str(save_tiny_base(tmp_path / "plain")))
    assert base.fingerprint == plain.fingerprint
    model = get_peft_model(base.model, peft_config_from("lora", r=2, target_modules=["q_proj"]))
    save_adapter(
        model, tmp_path / "a", Description(method="lora", base=base.name, fingerprint=base.fingerprint)
    )
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny-base", revision)
    assert ModelCard.load(tmp_path / "a" / "README.md").data.base_model == "org/tiny-base"
    assert str(tmp_path) not in (tmp_path / "a" / "README.md").read_text()


def test_what_the_embedded_base_is_called_on_a_hub() -> None:
    cached = Source("/somewhere/.cache/manytune/bases/0123-v1", "embedded")
    assert hub_origin(cached) == ("HuggingFaceTB/SmolLM2-135M-Instruct", None)
    assert hub_origin(Source("org/name", "org/name")) == ("org/name", None)
    assert hub_origin(Source("/", "/")) is None


def test_a_base_that_is_not_there_is_named_with_the_way_to_load_it(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": str(adapter / "gone"), "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match=r"its base '.*gone' can't be loaded.*PeftModel\.from_pretrained"):
        AutoPeftModelForCausalLM.from_pretrained(adapter, local_files_only=True)
