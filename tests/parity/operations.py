"""The scripts of the matrix: what a user does with a model that has an adapter, as HF PEFT's documentation does.

Each script runs as it is with either library, and notes what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.parity.bases import VOCABULARY, Base
from tests.parity.methods import Method
from tests.parity.session import (
    Session,
    digest,
    files,
    optimizer_for,
    options,
    scatter,
    tensors,
    train,
    trainable,
)


def training(s: Session) -> None:
    """Attach, look, two steps, answers."""
    model = s.attach()
    s.seen.note("class", type(model).__name__)
    s.seen.note("initial values", trainable(model))
    s.seen.note("counts", model.get_nb_trainable_parameters())
    s.outputs("output at first", model)
    s.seen.attempt("losses", lambda: train(model, s.base, optimizer_for(model)))
    s.outputs("output", model)
    if s.base.generates:
        asked = {k: v for k, v in s.base.inputs().items() if k != "labels"}
        s.seen.attempt("generated", lambda: model.generate(**asked, max_new_tokens=3, do_sample=False))


def saving(s: Session) -> None:
    """The files of an adapter: names, tensors to the byte, options."""
    model = s.attach_trained()
    model.save_pretrained(str(s.directory))
    s.seen.note("files", files(s.directory))
    s.seen.note("tensors", s.bits(s.directory))
    s.seen.note("options", options(s.directory))
    s.seen.note("in memory", sorted(s.peft.get_peft_model_state_dict(model)))


def loading(s: Session) -> None:
    """What either library wrote, onto a fresh base and next to what is there."""
    for writer, directory in s.written.items():
        torch.manual_seed(5)
        model = s.peft.PeftModel.from_pretrained(s.base.build(), str(directory))
        s.outputs(f"output of what {writer} wrote", model)
        s.seen.note(f"trains, {writer}", sorted(trainable(model)))
    missing = s.seen.attempt("missing", lambda: model.load_adapter(str(directory), "again").missing_keys)
    s.seen.note("adapters", [list(model.peft_config), model.active_adapters])
    if missing is not None:
        model.set_adapter("again")
        s.outputs("output of the second", model.eval())
    again = s.seen.attempt(
        "to train on",
        lambda: s.peft.PeftModel.from_pretrained(s.base.build(), str(directory), is_trainable=True),
    )
    s.seen.note("trains on", sorted(trainable(again)) if again is not None else [])


def merging(s: Session) -> None:
    """Merge, unmerge, and the plain model."""
    model = s.attach_trained()
    before = {name: digest(value) for name, value in s.base.build().state_dict().items()}
    if s.seen.attempt("merge", lambda: model.merge_adapter() or "merged"):
        s.outputs("merged", model)
    if s.seen.attempt("unmerge", lambda: model.unmerge_adapter() or "unmerged"):
        s.outputs("unmerged", model)
        now = {
            name.replace("base_layer.", ""): value
            for name, value in model.get_base_model().state_dict().items()
        }
        s.seen.note(
            "base as before", all(digest(now[name]) == value for name, value in before.items() if name in now)
        )
    plain = s.seen.attempt("for good", lambda: model.merge_and_unload())
    if plain is not None:
        s.outputs("output for good", plain)
        s.seen.note(
            "plain", [type(plain).__name__, sorted(plain.state_dict()), hasattr(plain, "peft_config")]
        )


def disabling(s: Session) -> None:
    """The base inside, the adapter afterwards; and the base again, when the adapter is gone."""
    model = s.attach_trained()
    s.seen.attempt("inside", lambda: _disabled(model, s.output))
    s.seen.attempt("trains inside", lambda: _disabled(model, lambda inside: sorted(trainable(inside))))
    s.outputs("afterwards", model)
    s.seen.note("trains afterwards", sorted(trainable(model)))
    plain = s.seen.attempt("unload", lambda: model.unload())
    if plain is not None:
        s.outputs("unloaded", plain)
        s.seen.note(
            "plain", [type(plain).__name__, sorted(plain.state_dict()), hasattr(plain, "peft_config")]
        )


def _disabled(model: Any, look: Callable[[Any], Any]) -> Any:
    with model.disable_adapter():
        return look(model)


def second(s: Session) -> None:
    """A second adapter with other options: used, trained, saved; the first as it was."""
    model = s.attach_trained()
    if not s.seen.attempt("add", lambda: model.add_adapter("other", s.config(second=True)) or "added"):
        return
    s.outputs("first, after adding", model)
    s.seen.note("trains", sorted(trainable(model)))
    model.set_adapter("other")
    s.seen.note("trains after switching", sorted(trainable(model)))
    s.seen.attempt("losses of the second", lambda: train(model, s.base, optimizer_for(model)))
    s.outputs("second", model)
    s.seen.attempt("both", lambda: model.base_model.set_adapter(["default", "other"]) or "set")
    model.set_adapter("default")
    s.outputs("first, after switching back", model)
    model.save_pretrained(str(s.directory))
    s.seen.note("files", files(s.directory))
    s.seen.note("tensors of the first", s.bits(s.directory))
    s.seen.note("names of the second", {k: v[:2] for k, v in tensors(s.directory / "other").items()})


def deleting(s: Session) -> None:
    """Adapters go one by one."""
    model = s.attach_trained()
    s.add_trained(model, "other", seed=8)
    s.seen.attempt("unknown", lambda: model.delete_adapter("nobody"))
    for name in ("other", "default"):
        s.seen.attempt(f"delete {name}", lambda name=name: model.delete_adapter(name) or "deleted")
        s.seen.note(f"left after {name}", [list(model.peft_config), model.active_adapters])
        s.seen.note(f"trains after {name}", sorted(trainable(model)))
        if model.peft_config:
            s.outputs(f"output after {name}", model)


def resuming(s: Session) -> None:
    """Two steps, files, a new process (as far as one script can), two more."""
    model = s.attach()
    optimizer = optimizer_for(model)
    train(model, s.base, optimizer)
    model.save_pretrained(str(s.directory))
    torch.save(optimizer.state_dict(), s.directory / "optimizer.pt")
    torch.manual_seed(6)
    again = s.peft.PeftModel.from_pretrained(s.base.build(), str(s.directory), is_trainable=True)
    optimizer = optimizer_for(again)
    s.seen.attempt(
        "optimizer",
        lambda: (
            optimizer.load_state_dict(torch.load(s.directory / "optimizer.pt", weights_only=True)) or "loaded"
        ),
    )
    s.seen.attempt("losses", lambda: train(again, s.base, optimizer))
    s.outputs("output", again)


def in_bfloat16(s: Session) -> None:
    """A base in half precision."""
    model = s.attach(torch.bfloat16)
    s.seen.note("types", {name: str(p.dtype) for name, p in model.named_parameters()})
    s.seen.attempt("losses", lambda: train(model, s.base, optimizer_for(model)))
    s.outputs("output", model)
    model.save_pretrained(str(s.directory))
    s.seen.note("saved types", {key: found[:2] for key, found in tensors(s.directory).items()})
    loaded = s.peft.PeftModel.from_pretrained(s.base.build(torch.bfloat16), str(s.directory))
    s.seen.note("loaded types", {name: str(p.dtype) for name, p in loaded.named_parameters()})
    s.outputs("loaded output", loaded)


def with_a_module_trained_in_full(s: Session) -> None:
    """`modules_to_save`."""
    _in_full(s, s.base.whole)


def with_a_head_of_its_own(s: Session) -> None:
    """The output embeddings of a tied model, trained in full."""
    plain = _in_full(s, s.base.head)
    if plain is not None:
        plain.save_pretrained(s.directory / "plain")
        s.outputs(
            "read again", type(plain).from_pretrained(s.directory / "plain", dtype=torch.float32).eval()
        )


def _in_full(s: Session, name: str) -> Any:
    model = s.attach(modules_to_save=[name])
    s.seen.note("trains", sorted(trainable(model)))
    s.seen.attempt("losses", lambda: train(model, s.base, optimizer_for(model)))
    s.outputs("output", model)
    s.seen.attempt("disabled", lambda: _disabled(model, s.output))
    model.save_pretrained(str(s.directory / "adapter"))
    s.seen.note("names", {key: found[:2] for key, found in tensors(s.directory / "adapter").items()})
    s.seen.note("options", options(s.directory / "adapter"))
    loaded = s.peft.PeftModel.from_pretrained(s.base.build(), str(s.directory / "adapter"))
    s.outputs("loaded", loaded)
    plain = s.seen.attempt("for good", lambda: loaded.merge_and_unload())
    if plain is not None:
        s.outputs("output for good", plain)
    return plain


def with_a_vocabulary_that_grew(s: Session) -> None:
    """Tokens are added, and rows for them; what an adapter's file must hold for the next base with other rows."""
    s.base.build().save_pretrained(s.directory / "base")

    def longer(seed: int) -> Any:
        kind: Any = type(s.base.build())
        base = kind.from_pretrained(s.directory / "base", dtype=torch.float32).eval()
        torch.manual_seed(seed)
        base.resize_token_embeddings(VOCABULARY + 3)
        return base

    base = longer(1)
    torch.manual_seed(3)
    model = s.peft.get_peft_model(base, s.config()).eval()
    scatter(model)
    grown = {**s.base.inputs()}
    grown["input_ids"] = grown["input_ids"].clone()
    grown["input_ids"][0, :2] = VOCABULARY + 1
    s.seen.attempt("losses", lambda: train(model, s.base, optimizer_for(model)))
    s.seen.attempt("output", lambda: s.output(model, grown))
    model.save_pretrained(str(s.directory / "adapter"))
    s.seen.note("names", {key: found[:2] for key, found in tensors(s.directory / "adapter").items()})
    loaded = s.peft.PeftModel.from_pretrained(longer(2), str(s.directory / "adapter"))
    s.seen.attempt("loaded", lambda: s.output(loaded, grown))
    s.seen.attempt("disabled", lambda: _disabled(loaded, lambda inside: s.output(inside, grown)))


Operation = Callable[[Session], None]

#: By the last part of a cell's name.
OPERATIONS: dict[str, Operation] = {
    "train": training,
    "save": saving,
    "load": loading,
    "merge": merging,
    "disable": disabling,
    "second": second,
    "delete": deleting,
    "resume": resuming,
    "bf16": in_bfloat16,
    "modules_to_save": with_a_module_trained_in_full,
    "tied": with_a_head_of_its_own,
    "resized": with_a_vocabulary_that_grew,
}


def applies(operation: str, method: Method, base: Base) -> bool:
    """Whether an operation means anything there."""
    if base.packed:
        return operation in ("train", "save", "load", "merge", "disable", "second", "resume")
    if operation == "resized":
        return base.name in ("llama", "llama_tied", "t5", "bart", "bert")
    return operation != "tied" or base.tied
