"""Bases that are packed as they are loaded, and what identifies them next to the same base in another form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.packed import installed, pack, save_base, save_packed
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune.errors import BaseMismatchError, ConfigError, PeftWarning, StoreError
from manytune.methods.tuners.quantized_layers import packed_parameters
from manytune.store.adapters import open_adapter
from manytune.store.base import Base, load_base
from manytune.store.combining import merge_adapters
from manytune.store.fingerprint import Fingerprint
from manytune.store.quantization import Packing, packing_of_checkpoint, require_trainable

LIBRARIES: dict[Packing, str] = {"nf4": "bitsandbytes", "int8": "torchao"}
#: The same packing by transformers itself.
STORED = {"nf4": "bitsandbytes-4bit", "int8": "torchao-int8"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(params=list(LIBRARIES))
def packing(request: pytest.FixtureRequest) -> Packing:
    installed(LIBRARIES[request.param])
    found: Packing = request.param
    return found


def stored(packing: Packing, unpacked: Path, directory: Path) -> Path:
    return save_packed(STORED[packing], unpacked, directory)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 19)[None]).logits
    return found


def test_a_base_is_packed_as_transformers_packs_it(packing: Packing, unpacked: Path) -> None:
    base = load_base(str(unpacked), weights=packing)
    layers = len(list(base.model.model.layers))
    assert set(packed_parameters(base.model).values()) == {LIBRARIES[packing]}
    assert len(packed_parameters(base.model)) == 7 * layers  # the head and the embeddings stay
    if packing == "int8":  # nf4 has its factors packed as well, which the other hasn't
        assert torch.equal(logits(base.model), logits(pack(STORED[packing], unpacked)))
    error = (logits(base.model) - logits(load_base(str(unpacked)).model)).abs().mean()
    assert 0 < error < {"nf4": 0.5, "int8": 0.05}[packing]


def test_nf4_is_double_quantized_and_computes_in_the_type_that_was_asked_for(unpacked: Path) -> None:
    installed("bitsandbytes")
    for dtype in (torch.float32, torch.bfloat16):
        layer = load_base(str(unpacked), dtype=dtype, weights="nf4").model.model.layers[0].mlp.up_proj
        assert layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested
        assert layer.compute_dtype == dtype


def test_what_is_stored_in_that_form_is_loaded_as_it_is(
    packing: Packing, unpacked: Path, tmp_path: Path
) -> None:
    directory = stored(packing, unpacked, tmp_path)
    assert torch.equal(
        logits(load_base(str(directory), weights=packing).model), logits(load_base(str(directory)).model)
    )


def test_what_is_stored_in_another_form_is_refused(unpacked: Path, tmp_path: Path) -> None:
    installed("bitsandbytes")
    directory = save_packed("bitsandbytes-8bit", unpacked, tmp_path)
    with pytest.raises(
        StoreError, match=r"stored as bitsandbytes-int8.*can't be packed as nf4.*Leave `weights` out"
    ):
        load_base(str(directory), weights="nf4")


def test_without_its_library_the_error_names_the_extra(
    packing: Packing, unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match=rf"{packing} needs {LIBRARIES[packing]}.*pip install .*\[quant\]'"):
        load_base(str(unpacked), weights=packing)


def test_packing_is_no_difference_between_bases_and_is_noted(packing: Packing, unpacked: Path) -> None:
    packed = load_base(str(unpacked), weights=packing).fingerprint
    assert packed == load_base(str(unpacked), dtype="bfloat16", weights=packing).fingerprint
    plain = load_base(str(unpacked)).fingerprint
    assert packed.differences(plain) == plain.differences(packed) == ()
    note = packed.packing_note(plain)
    assert note is not None
    assert f"trained on this base packed as {packing}, and here the base is unpacked" in note
    assert f"this base unpacked, and here the base is packed as {packing}" in str(plain.packing_note(packed))
    assert "could be compared" not in note
    assert packed.packing_note(packed) is None


def test_a_base_that_is_stored_packed_is_recognised_by_what_packing_leaves(
    packing: Packing, unpacked: Path, tmp_path: Path
) -> None:
    packed = load_base(str(stored(packing, unpacked, tmp_path / "packed"))).fingerprint
    for other in (
        load_base(str(unpacked)).fingerprint,
        load_base(str(unpacked), weights=packing).fingerprint,
    ):
        assert packed.differences(other) == other.differences(packed) == ()
        note = packed.packing_note(other)
        assert note is not None and "only weights outside of linear layers could be compared" in note
    another = load_base(str(save_base(tmp_path / "another", seed=1))).fingerprint
    assert packed.differences(another) == ("weights",)


def test_fingerprints_of_packed_bases_that_differ_in_packed_weights_alone_differ(
    unpacked: Path, tmp_path: Path
) -> None:
    installed("bitsandbytes")
    model = load_base(str(unpacked)).model
    model.model.layers[0].mlp.up_proj.weight.data *= -1
    model.save_pretrained(tmp_path / "changed")
    load_base(str(unpacked)).tokenizer.save_pretrained(tmp_path / "changed")
    one, other = (
        load_base(str(where), weights="nf4").fingerprint for where in (unpacked, tmp_path / "changed")
    )
    assert one.differences(other) == ("weights",)
    stores = [
        load_base(str(save_packed("bitsandbytes-4bit", where, tmp_path / name))).fingerprint
        for name, where in (("a", unpacked), ("b", tmp_path / "changed"))
    ]
    assert stores[0].differences(stores[1]) == ("weights",)


def test_a_manifest_of_an_earlier_release_fits_the_same_base_only() -> None:
    """They have three hashes, and of packed bases those of the packed weights."""
    earlier = Fingerprint.from_dict({"config": "c", "weights": "w", "tokenizer": "t"})
    now = Fingerprint("c", "w", "t", "u", "nf4", stored_packed=True)
    assert earlier.differences(now) == now.differences(earlier) == ()
    assert earlier.differences(dataclasses.replace(now, weights="x")) == ("weights",)
    assert earlier.to_dict() == {"config": "c", "weights": "w", "tokenizer": "t"}
    assert Fingerprint.from_dict(json.loads(json.dumps(now.to_dict()))) == now


def test_an_adapter_is_opened_on_its_base_in_another_form_with_a_warning(
    packing: Packing, unpacked: Path, tmp_path: Path
) -> None:
    trained_on = load_base(str(unpacked), weights=packing)
    adapter = make_adapter(tmp_path / "adapter", trained_on)
    assert open_adapter(adapter, base=trained_on).manifest is not None  # warnings are errors here
    with pytest.warns(PeftWarning, match=f"trained on this base packed as {packing}.*what packing rounds"):
        open_adapter(adapter, base=load_base(str(unpacked)))
    with pytest.raises(BaseMismatchError, match="the weights differ"):
        open_adapter(adapter, base=load_base(str(save_base(tmp_path / "another", seed=1))))


def test_merging_goes_into_the_unpacked_base(packing: Packing, unpacked: Path, tmp_path: Path) -> None:
    base = load_base(str(unpacked), weights=packing)
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(
        StoreError, match=rf"packed as {packing}.*Merge into the base that was packed.*--base"
    ):
        merge_adapters([adapter], tmp_path / "merged", base)
    with pytest.warns(PeftWarning, match="here the base is unpacked"):
        merge_adapters([adapter], tmp_path / "merged", load_base(str(unpacked)))
    assert not packed_parameters(load_base(str(tmp_path / "merged")).model)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"load_in_8bit": True}, "bitsandbytes-int8"),  # old checkpoints don't name the library
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
            "torchao-Int4WeightOnlyConfig",
        ),
    ],
)
def test_a_checkpoints_packing_is_read_from_its_configuration(
    options: dict[str, Any] | None, expected: str | None, tmp_path: Path
) -> None:
    config = load_base(str(save_tiny_base(tmp_path))).model.config
    if options is not None:
        config.quantization_config = options
    assert packing_of_checkpoint(config) == expected


def test_what_passes_no_gradients_is_refused_before_training(unpacked: Path) -> None:
    installed("torchao")
    base: Base = load_base(str(unpacked), weights="int8")
    require_trainable(base.model)
    quantizer: Any = base.model.hf_quantizer
    quantizer.quantization_config.quant_method = "gptq"
    with pytest.raises(ConfigError, match=r"quantized by gptq, whose layers.*weights: nf4 or weights: int8"):
        require_trainable(base.model)
    quantizer.quantization_config.quant_method = "torchao"
    quantizer.quantization_config.quant_type = type("Int4WeightOnlyConfig", (), {})()
    with pytest.raises(ConfigError, match="in a form that passes no gradients"):
        require_trainable(base.model)
