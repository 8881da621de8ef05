"""Embedding tables and rows of tokens that go with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tests.parity.bases import LLAMA, TIED, VOCABULARY, Base
from tests.parity.calls.call import attached, call, differs, logits, lora, trains
from tests.parity.observed import Seen
from tests.parity.session import TENSORS, scatter

LONGER = VOCABULARY + 3


def longer(directory: Path, base: Base = LLAMA, seed: int = 1) -> Any:
    """A base from a disk with rows for three more tokens."""
    base.build().save_pretrained(directory / "base")
    model = hf.AutoModelForCausalLM.from_pretrained(directory / "base")
    torch.manual_seed(seed)
    model.resize_token_embeddings(LONGER)
    return model.eval()


def with_table(peft: Any, directory: Path, factor: float) -> str:
    """A folder with an adapter and the table that it was trained next to."""
    trained = attached(peft)
    trained.get_input_embeddings().weight.data.mul_(factor)
    trained.save_pretrained(str(directory), save_embedding_layers=True)
    return str(directory)


@call
def rows_of_added_tokens(peft: Any, directory: Path, seen: Seen) -> None:
    for how in ("auto", True, False):
        model = peft.get_peft_model(longer(directory), lora(peft)).eval()
        scatter(model)
        model.save_pretrained(str(directory / "adapter"), save_embedding_layers=how)
        seen.note(f"{how}, names", sorted(load_file(directory / "adapter" / TENSORS)))
        loaded = peft.PeftModel.from_pretrained(longer(directory, seed=2), str(directory / "adapter"))
        seen.note(f"{how}, loaded", logits(loaded))


@call
def a_base_that_only_a_hub_has(peft: Any, directory: Path, seen: Seen) -> None:
    base = longer(directory)
    base.name_or_path = base.config._name_or_path = "someone/somewhere"
    peft.get_peft_model(base, lora(peft)).save_pretrained(str(directory / "adapter"))
    seen.note("names", sorted(load_file(directory / "adapter" / TENSORS)))


@differs(longer_vocabulary="names")
def an_embedding_that_is_targeted_and_longer(peft: Any, directory: Path, seen: Seen) -> None:
    model = peft.get_peft_model(longer(directory), lora(peft, target_modules=["q_proj", "embed_tokens"]))
    model.save_pretrained(str(directory / "adapter"))
    seen.note("names", sorted(load_file(directory / "adapter" / TENSORS)))


@differs(own_tables=("first", "disabled"), unload="unloaded")
def tables_of_two_adapters(peft: Any, directory: Path, seen: Seen) -> None:
    model = peft.PeftModel.from_pretrained(LLAMA.build(), with_table(peft, directory / "a", 2.0))
    seen.note("alone", logits(model))
    model.load_adapter(with_table(peft, directory / "b", 3.0), "other")
    seen.note("first", logits(model))
    model.set_adapter("other")
    seen.note("other", logits(model))
    with model.disable_adapter():
        seen.note("disabled", logits(model))
    seen.note("unloaded", logits(model.unload()))


@differs(tables_saved_again="names")
def a_table_that_was_loaded_and_is_saved(peft: Any, directory: Path, seen: Seen) -> None:
    model = peft.PeftModel.from_pretrained(LLAMA.build(), with_table(peft, directory / "a", 2.0))
    model.save_pretrained(str(directory / "b"))
    seen.note("names", sorted(load_file(directory / "b" / TENSORS)))


@differs(unlike_tables="load")
def unlike_tables_for_a_base_that_ties_them(peft: Any, directory: Path, seen: Seen) -> None:
    with_table(peft, directory, 2.0)
    path = directory / TENSORS
    tensors = load_file(path)
    tables = {
        f"base_model.model.{name}.weight": torch.randn(VOCABULARY, 16)
        for name in ("model.embed_tokens", "lm_head")
    }
    save_file({key: value for key, value in tensors.items() if "lora" in key} | tables, path)
    seen.attempt("load", lambda: logits(peft.PeftModel.from_pretrained(TIED.build(), str(directory)), TIED))


@differs(table_sizes="AutoPeft")
def a_table_of_another_vocabulary(peft: Any, directory: Path, seen: Seen) -> None:
    model = peft.get_peft_model(longer(directory), lora(peft))
    model.save_pretrained(str(directory / "adapter"), save_embedding_layers=True)
    seen.attempt("load", lambda: peft.PeftModel.from_pretrained(LLAMA.build(), str(directory / "adapter")))
    seen.attempt(
        "AutoPeft", lambda: logits(peft.AutoPeftModelForCausalLM.from_pretrained(str(directory / "adapter")))
    )


@differs(token_rows="with the table targeted")
def single_rows(peft: Any, directory: Path, seen: Seen) -> None:
    for base in (LLAMA, TIED):
        torch.manual_seed(3)
        model = peft.get_peft_model(base.build(), lora(peft, trainable_token_indices=[3, 5])).eval()
        scatter(model)
        seen.note(f"{base} trains", trains(model))
        seen.note(f"{base} gives", logits(model, base))
        model.save_pretrained(str(directory / base.name))
        seen.note(f"{base} names", sorted(load_file(directory / base.name / TENSORS)))
        loaded = peft.PeftModel.from_pretrained(base.build(), str(directory / base.name))
        seen.note(f"{base}, loaded", logits(loaded, base))
        seen.note(f"{base}, merged", logits(loaded.merge_and_unload(), base))
    config = lora(peft, target_modules=["embed_tokens"], trainable_token_indices=[3])
    seen.attempt("with the table targeted", lambda: peft.get_peft_model(LLAMA.build(), config))
