"""Longer sessions, in orders that nobody planned for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tests.parity.bases import BART, BERT, GPT2, LLAMA, TIED
from tests.parity.calls.call import added, attached, call, differs, logits, lora, saved, trains
from tests.parity.observed import Seen
from tests.parity.session import digest, scatter, tensors
from torch import nn


@call
def one_configuration_for_two_models(peft: Any, directory: Path, seen: Seen) -> None:
    config = lora(peft, target_modules=None)
    for base in (LLAMA, BERT):
        model = seen.attempt(f"{base}", lambda base=base: peft.get_peft_model(base.build(), config))
        seen.note(f"{base} trains", [] if model is None else trains(model))
    copied = copy.deepcopy(config)
    seen.note("copied", sorted(copied.target_modules) == sorted(config.target_modules))


@call
def saving_in_every_state(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, modules_to_save=["norm"])
    model.save_pretrained(str(directory / "plain"))
    before = tensors(directory / "plain")
    model.merge_adapter()
    seen.attempt("merged", lambda: model.save_pretrained(str(directory / "merged")))
    seen.note("merged, the same", tensors(directory / "merged") == before)
    model.unmerge_adapter()
    with model.disable_adapter():
        model.save_pretrained(str(directory / "disabled"))
    seen.note("disabled, the same", tensors(directory / "disabled") == before)
    model.set_adapter("default", inference_mode=True)
    model.save_pretrained(str(directory / "frozen"))
    seen.note("frozen, the same", tensors(directory / "frozen") == before)


@call
def training_after_merging_and_back(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    model.merge_adapter()
    seen.note("trains while merged", trains(model))
    model.unmerge_adapter()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**LLAMA.inputs()).loss.backward()
    optimizer.step()
    seen.note("output", logits(model.eval()))


@differs(unload="frozen")
def merged_for_good_and_adapted_again(peft: Any, directory: Path, seen: Seen) -> None:
    plain = attached(peft).merge_and_unload()
    torch.manual_seed(8)
    again = peft.get_peft_model(plain, lora(peft, target_modules=["o_proj"]))
    scatter(again)
    seen.note("output", logits(again.eval()))
    seen.note("trains", trains(again))
    twice = again.merge_and_unload()
    seen.note("twice", logits(twice))
    seen.note("frozen", sorted(name for name, p in twice.named_parameters() if p.requires_grad))


@call
def unloaded_and_loaded_again(peft: Any, directory: Path, seen: Seen) -> None:
    folder = saved(peft, directory)
    base = LLAMA.build()
    for number in range(3):
        model = peft.PeftModel.from_pretrained(base, folder, f"a{number}")
        seen.note(f"{number}", logits(model))
        base = model.unload()
    seen.note("base", logits(base))


@differs(tied_targets="merge")
def merging_into_a_table_that_the_head_shares(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, TIED, target_modules=["embed_tokens"])
    seen.note("output", logits(model, TIED))
    seen.attempt("merge", lambda: model.merge_adapter() or logits(model, TIED))


@differs(shared_layers="['first', 'second'] gives")
def a_layer_that_the_base_uses_twice(peft: Any, directory: Path, seen: Seen) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.second(torch.tanh(self.first(x)))
            return found

    for targets in (["first"], ["first", "second"]):
        torch.manual_seed(3)
        config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        model = seen.attempt(f"{targets}", lambda config=config: peft.get_peft_model(Twice(), config))
        seen.note(f"{targets} gives", model(torch.ones(1, 4)))


@call
def an_adapter_of_another_method_from_a_file(peft: Any, directory: Path, seen: Seen) -> None:
    folder = saved(peft, directory / "lora")
    model = peft.get_peft_model(LLAMA.build(), peft.IA3Config(task_type="CAUSAL_LM"))
    seen.attempt("load", lambda: model.load_adapter(folder, "other"))
    seen.note("left", list(model.peft_config))
    seen.note("output", logits(model.eval()))


@call
def adapters_with_different_targets_and_dropout(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, lora_dropout=0.3)
    added(peft, model, "other", target_modules=["down_proj", "lm_head"], use_dora=True)
    model.base_model.set_adapter(["default", "other"])
    seen.note("both", logits(model))
    torch.manual_seed(5)
    seen.note("training", model.train()(**LLAMA.inputs()).loss)
    model.eval().merge_adapter()
    seen.note("merged", logits(model))
    model.unmerge_adapter()
    model.delete_adapter("default")
    seen.note("left", [logits(model), trains(model)])


@call
def embeddings_and_heads_as_targets(peft: Any, directory: Path, seen: Seen) -> None:
    for base, targets in ((LLAMA, ["embed_tokens", "lm_head"]), (GPT2, ["wte", "wpe"]), (BART, ["shared"])):
        options = {"target_modules": targets, "task_type": base.task}
        model = seen.attempt(f"{base}", lambda base=base, options=options: attached(peft, base, **options))
        if base is not BART:
            seen.note(f"{base} gives", logits(model, base))
        model.save_pretrained(str(directory / base.name))
        seen.note(f"{base} names", {key: found[:2] for key, found in tensors(directory / base.name).items()})


@call
def the_same_folder_twice(peft: Any, directory: Path, seen: Seen) -> None:
    attached(peft, r=4).save_pretrained(str(directory))
    (directory / "notes.txt").write_text("mine")
    attached(peft).save_pretrained(str(directory))
    seen.note("tensors", tensors(directory))
    seen.note("notes", (directory / "notes.txt").exists())
    card = (directory / "README.md").read_text()
    (directory / "README.md").write_text(card + "\nMy own words.\n")
    attached(peft).save_pretrained(str(directory))
    seen.note("own words", "My own words." in (directory / "README.md").read_text())


@call
def a_base_whose_parameters_are_partly_frozen(peft: Any, directory: Path, seen: Seen) -> None:
    base = LLAMA.build()
    base.lm_head.requires_grad_(False)
    model = peft.get_peft_model(base, lora(peft))
    seen.note("trains", trains(model))
    model.model.model.norm.weight.requires_grad_(True)
    model.set_adapter("default")
    seen.note("by hand", trains(model))
    seen.note("counts", model.get_nb_trainable_parameters())


@call
def hooks_of_the_base(peft: Any, directory: Path, seen: Seen) -> None:
    base, calls = LLAMA.build(), []
    layer = base.model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda *_: calls.append("q"))
    model = peft.get_peft_model(base, lora(peft)).eval()
    logits(model)
    seen.note("called", len(calls))
    model.merge_and_unload()
    logits(base)
    seen.note("called again", len(calls))


@call
def gradients_while_disabled(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft).train()
    with model.disable_adapter():
        loss = model(**LLAMA.inputs()).loss
        seen.note("loss", loss)
        seen.note("requires grad", loss.requires_grad)
    model(**LLAMA.inputs()).loss.backward()
    seen.note("gradients", sorted(n for n, p in model.named_parameters() if p.grad is not None))
    seen.note("base untouched", digest(model.model.lm_head.weight) == digest(LLAMA.build().lm_head.weight))


@call
def a_reference_model_within_the_model(peft: Any, directory: Path, seen: Seen) -> None:
    """As preference training does: the frozen adapter is the reference, a copy of it trains."""
    folder = saved(peft, directory)
    model = peft.PeftModel.from_pretrained(LLAMA.build(), folder, "reference")
    model.load_adapter(folder, "policy", is_trainable=True)
    model.set_adapter("policy")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        model.set_adapter("reference", inference_mode=True)
        with torch.no_grad():
            reference = model(**LLAMA.inputs()).loss
        model.set_adapter("policy")
        (model(**LLAMA.inputs()).loss - reference).backward()
        optimizer.step()
        optimizer.zero_grad()
    seen.note("policy", logits(model.eval()))
    model.set_adapter("reference")
    seen.note("reference", logits(model))
