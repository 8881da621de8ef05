"""Several adapters: choosing, merging, disabling, deleting, and what each of them costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.parity.bases import BERT
from tests.parity.calls.call import added, attached, call, differs, logits, lora, trains
from tests.parity.observed import Seen
from tests.parity.session import digest, scatter


@differs(unknown_adapters=("unknown of several", "still", "requires grad, unknown"))
def choosing_adapters(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft), "other", target_modules=["o_proj"])
    seen.attempt("unknown", lambda: model.set_adapter("nobody"))
    seen.attempt("unknown of several", lambda: model.base_model.set_adapter(["other", "nobody"]))
    seen.note("still", [model.active_adapter, model.active_adapters])
    seen.note("output", logits(model))
    model.base_model.set_adapter(["default", "other"])
    seen.note("both", [model.active_adapters, logits(model), trains(model)])
    model.set_adapter("default", inference_mode=True)
    seen.note("for inference", [trains(model), logits(model)])
    model.set_requires_grad("other")
    seen.note("requires grad", trains(model))
    seen.attempt("requires grad, unknown", lambda: model.set_requires_grad("nobody"))


@differs(several_adapters="several")
def choosing_several_on_the_model_itself(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft), "other")
    seen.attempt("several", lambda: model.set_adapter(["default", "other"]))


@call
def merging_in_odd_orders(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft), "other")
    model.merge_adapter(["default"])
    seen.note("one", logits(model))
    seen.attempt("again", lambda: model.merge_adapter(["default"]))
    model.merge_adapter(["other"])
    seen.note("both", logits(model))
    seen.attempt("delete", lambda: model.delete_adapter("other"))
    seen.attempt("choose", lambda: model.set_adapter("default"))
    seen.note("chosen", logits(model))
    seen.attempt("unmerge", lambda: model.unmerge_adapter())
    seen.attempt("unmerge again", lambda: model.unmerge_adapter())
    seen.note("unmerged", logits(model))


@differs(unknown_adapters=("merge", "for good"))
def merging_an_adapter_that_is_not_there(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    seen.attempt("merge", lambda: model.merge_adapter(["nobody"]))
    seen.attempt("for good", lambda: model.merge_and_unload(adapter_names=["nobody"]))


@differs(disabled_merged=("merged after", "disabled once more"))
def disabling_a_merged_model(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    model.merge_adapter()
    with model.disable_adapter():
        seen.note("disabled", logits(model))
    seen.note("after", logits(model))
    seen.note("merged after", model.get_model_status().merged_adapters)
    seen.attempt("disabled once more", lambda: model.unmerge_adapter())


@call
def disabling_within_disabling(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    with model.disable_adapter():
        with model.disable_adapter():
            pass
        seen.note("inside", logits(model))
    seen.note("after", logits(model))


@differs(unload="unload")
def unloading_a_merged_model(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    model.merge_adapter()
    seen.note("unload", logits(model.unload()))


@differs(safe_merge="untouched")
def merging_what_is_not_finite(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    model.base_model.model.model.layers[0].self_attn.v_proj.lora_B["default"].weight.data[0, 0] = float("nan")
    before = [digest(p) for n, p in model.named_parameters() if "base_layer" in n]
    seen.attempt("safely", lambda: model.merge_adapter(safe_merge=True))
    seen.note(
        "untouched", before == [digest(p) for n, p in model.named_parameters() if "base_layer" in n][:2]
    )
    seen.attempt("safely for good", lambda: model.merge_and_unload(safe_merge=True))


@differs(merged_modules=("['default'] gives", "['default', 'other'] gives"))
def merging_some_for_good(peft: Any, directory: Path, seen: Seen) -> None:
    for names in (None, ["default"], ["other"], ["default", "other"]):
        model = added(peft, attached(peft, modules_to_save=["norm"]), "other")
        plain = seen.attempt(
            f"{names}", lambda model=model, names=names: model.merge_and_unload(adapter_names=names)
        )
        seen.note(f"{names} gives", logits(plain))
        seen.note(f"{names} leaves", sorted({type(m).__module__.split(".")[0] for m in plain.modules()}))


@call
def heads_of_several_classifiers(peft: Any, directory: Path, seen: Seen) -> None:
    options = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    model = attached(peft, BERT, **options)
    first = logits(model, BERT)
    added(peft, model, "other", **options)
    seen.note("second", logits(model, BERT))
    seen.attempt("both", lambda: model.base_model.set_adapter(["default", "other"]))
    model.set_adapter("default")
    seen.note("first", bool(torch.equal(first, logits(model, BERT))))
    model.delete_adapter("other")
    seen.note("left", [sorted(model.modules_to_save), trains(model)])


@call
def deleting_everything_and_starting_anew(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    model.delete_adapter("default")
    seen.note("none", [list(model.peft_config), model.active_adapters])
    seen.note("the base", logits(model.base_model))
    seen.attempt("twice", lambda: model.delete_adapter("default"))
    model.add_adapter("new", lora(peft))
    model.set_adapter("new")
    scatter(model)
    seen.note("new", [logits(model), trains(model)])


@call
def scales_of_layers(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, use_rslora=True)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    for name, change in {
        "scaled": lambda: layer.scale_layer(3),
        "unscaled": lambda: layer.unscale_layer(2),
        "set": lambda: layer.set_scale("default", 0.5),
        "back": lambda: layer.unscale_layer(),
        "zero": lambda: layer.scale_layer(0),
    }.items():
        seen.attempt(name, change)
        seen.note(f"{name} gives", [layer.scaling["default"], logits(model)])


@differs(constant_cost="the tenth costs more than the second")
def switching_among_ten(peft: Any, directory: Path, seen: Seen) -> None:
    model, counts = attached(peft), []
    for number in range(10):
        model.add_adapter(f"a{number}", lora(peft))
        with mock.patch.object(torch.Tensor, "requires_grad_", autospec=True) as touched:
            model.set_adapter(f"a{number}")
        counts.append(touched.call_count)
    seen.note("the tenth costs more than the second", counts[9] > counts[1])
