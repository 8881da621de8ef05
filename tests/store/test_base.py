from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.store.tiny import save_tiny_base, tiny_model

from manytune import free_memory
from manytune.errors import ShortMemoryError, StoreError
from manytune.store.base import load_base, load_tokenizer


def test_a_directory_loads_with_its_weights_in_evaluation_mode(tmp_path: Path) -> None:
    base = load_base(str(save_tiny_base(tmp_path / "tiny")))
    assert base.name == str(tmp_path / "tiny")
    assert not base.model.training
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(base.model.state_dict()[name], weight)


def test_the_end_token_pads_where_the_checkpoint_has_no_padding_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_tiny_base(tmp_path)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_the_weights_take_the_type_that_was_asked_for(tmp_path: Path, dtype: torch.dtype | str) -> None:
    assert load_base(str(save_tiny_base(tmp_path)), dtype=dtype).model.dtype == torch.bfloat16


def test_an_unknown_type_is_an_error_that_names_a_known_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"dtype 'float23'.*\"bfloat16\""):
        load_base(str(save_tiny_base(tmp_path)), dtype="float23")


def test_without_free_memory_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_base(tmp_path)
    monkeypatch.setattr(free_memory, "free_memory", lambda: 8 << 20)
    with pytest.raises(ShortMemoryError, match=r"loading the base .* 64 MiB have to stay free; 8 MiB are"):
        load_base(str(base))
