from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base, tiny_model

from manytune.errors import BaseMismatchError, CheckpointError, StoreError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.store.adapters import save_adapter
from manytune.store.base import Base, load_base
from manytune.store.digests import sha256_file
from manytune.store.manifest import Description
from manytune.store.verification import verify_adapter

TENSORS = "adapter_model.safetensors"


def rewritten(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors by the end of their names and make the manifest's hash fit, as a faulty writer would."""
    tensors = load_file(adapter / TENSORS)
    for ending, value in changes.items():
        name = next(name for name in tensors if ending in name.replace(".", "_"))
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, adapter / TENSORS)
    manifest = json.loads((adapter / "manifest.json").read_text())
    manifest["files"][TENSORS] = sha256_file(adapter / TENSORS)
    (adapter / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def adapter(tmp_path: Path, tiny_base: Base) -> Path:
    return make_adapter(tmp_path / "adapter", tiny_base)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("ia3", {}),
        ("prompt-tuning", {"num_virtual_tokens": 3}),
        ("prefix-tuning", {"num_virtual_tokens": 3}),
        ("full", {}),
    ],
)
def test_a_good_adapter_of_any_method_passes_and_leaves_the_base_as_it_was(
    method: str, options: dict[str, int], tmp_path: Path, tiny_base: Base
) -> None:
    path = make_adapter(tmp_path / "adapter", tiny_base, method=method, **options)
    before = {name: tensor.clone() for name, tensor in tiny_base.model.state_dict().items()}
    found = verify_adapter(path, base=tiny_base)
    assert found.effect is not None
    assert found.effect > 0
    assert found.base_checked
    assert found.files == 2
    assert found.tensors == len(load_file(path / TENSORS))
    assert found.note is None
    after = tiny_base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_without_a_base_only_the_files_are_checked(adapter: Path) -> None:
    found = verify_adapter(adapter)
    assert (found.files, found.tensors, found.effect, found.base_checked) == (2, 8, None, False)
    (adapter / "manifest.json").unlink()
    assert "neither its files nor its base could be checked" in str(verify_adapter(adapter).note)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(value: float, adapter: Path) -> None:
    rewritten(adapter, layers_1_self_attn_v_proj_lora_B=torch.full((16, 2), value))
    with pytest.raises(
        StoreError, match=r"layers\.1\.self_attn\.v_proj\.lora_B\.weight has values that are NaN or Inf"
    ):
        verify_adapter(adapter)


def test_shapes_and_names_that_do_not_fit_the_base_are_named(adapter: Path, tiny_base: Base) -> None:
    rewritten(adapter, layers_0_self_attn_q_proj_lora_B=torch.ones(17, 2))
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_B\.weight: the checkpoint has \(17, 2\)"):
        verify_adapter(adapter, base=tiny_base)
    rewritten(adapter, layers_0_self_attn_q_proj_lora_B=None)
    with pytest.raises(CheckpointError, match=r"1 tensors of the adapter are missing.*q_proj\.lora_B"):
        verify_adapter(adapter, base=tiny_base)


def test_an_adapter_that_changes_nothing_is_found(tmp_path: Path, tiny_base: Base) -> None:
    model = get_peft_model(tiny_model(), peft_config_from("lora", r=2, target_modules=["q_proj"]))
    description = Description(method="lora", base=tiny_base.name, fingerprint=tiny_base.fingerprint)
    save_adapter(model, tmp_path / "new", description)
    assert verify_adapter(tmp_path / "new").effect is None
    with pytest.raises(StoreError, match=r"new: the adapter changes nothing.*never have been trained"):
        verify_adapter(tmp_path / "new", base=tiny_base)


def test_another_base_is_found(adapter: Path, tmp_path: Path) -> None:
    other = load_base(str(save_tiny_base(tmp_path / "other", seed=1)))
    with pytest.raises(BaseMismatchError, match="the weights differ"):
        verify_adapter(adapter, base=other)
