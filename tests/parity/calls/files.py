"""Folders with adapters: what is odd about them, and how they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.parity.bases import LLAMA, T5
from tests.parity.calls.call import added, attached, call, differs, logits, lora, saved, trains
from tests.parity.observed import Seen
from tests.parity.session import CONFIG, TENSORS, files
from torch import Tensor


def change(directory: str, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = Path(directory) / TENSORS
    save_file(edit(load_file(path)), path)


def without_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensors[key] for key in sorted(tensors)[1:]}


def load(peft: Any, directory: str, **options: Any) -> Any:
    torch.manual_seed(6)
    return peft.PeftModel.from_pretrained(LLAMA.build(), directory, **options)


@call
def a_tensor_that_is_missing(peft: Any, directory: Path, seen: Seen) -> None:
    change(saved(peft, directory), without_first)
    model = seen.attempt("load", lambda: load(peft, str(directory)))
    seen.note("output", logits(model))
    seen.attempt("load again", lambda: model.load_adapter(str(directory), "other").missing_keys)


@differs(strict="load")
def a_tensor_that_is_missing_and_should_not_be(peft: Any, directory: Path, seen: Seen) -> None:
    change(saved(peft, directory), without_first)
    seen.attempt("load", lambda: load(peft, str(directory), strict=True))


@differs(unexpected_tensors=("load", "load another"))
def a_tensor_that_fits_nothing(peft: Any, directory: Path, seen: Seen) -> None:
    name = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"
    change(saved(peft, directory), lambda tensors: {**tensors, name: torch.zeros(2, 16)})
    seen.attempt("load", lambda: load(peft, str(directory)))
    model = attached(peft)
    seen.attempt("load another", lambda: model.load_adapter(str(directory), "other"))
    result = peft.set_peft_model_state_dict(model, load_file(directory / TENSORS))
    seen.note("unexpected", [name in key for key in result.unexpected_keys])


@call
def tensors_of_another_size(peft: Any, directory: Path, seen: Seen) -> None:
    saved(peft, directory, r=3)
    seen.attempt("another rank", lambda: load(peft, str(directory), config=lora(peft)))
    torch.manual_seed(6)
    model = seen.attempt(
        "ignored", lambda: load(peft, str(directory), config=lora(peft), ignore_mismatched_sizes=True)
    )
    seen.note("output", logits(model))


@call
def folders_without_an_adapter(peft: Any, directory: Path, seen: Seen) -> None:
    seen.attempt("nothing there", lambda: load(peft, str(directory / "nowhere")))
    (directory / "empty").mkdir()
    seen.attempt("empty", lambda: load(peft, str(directory / "empty")))
    saved(peft, directory / "whole")
    (directory / "whole" / TENSORS).unlink()
    seen.attempt("no tensors", lambda: load(peft, str(directory / "whole")))
    seen.attempt(
        "config alone",
        lambda: sorted(peft.PeftConfig.from_pretrained(str(directory / "whole")).target_modules),
    )
    saved(peft, directory / "other")
    (directory / "other" / CONFIG).unlink()
    seen.attempt("no options", lambda: load(peft, str(directory / "other")))
    seen.attempt("options given", lambda: logits(load(peft, str(directory / "other"), config=lora(peft))))


@differs(clear_errors=("no method", "an unknown method"))
def odd_options_in_a_file(peft: Any, directory: Path, seen: Seen) -> None:
    saved(peft, directory)
    whole = json.loads((directory / CONFIG).read_text())
    for name, changes in {
        "an unknown key": {"option_of_tomorrow": 3},
        "no method": {"peft_type": None},
        "an unknown method": {"peft_type": "TOMORROW"},
        "another task": {"task_type": "SEQ_CLS"},
        "an unknown task": {"task_type": "TOMORROW"},
        "another alpha": {"lora_alpha": 16},
        "a single target": {"target_modules": r".*\.(q|v)_proj"},
        "no base": {"base_model_name_or_path": "gone/away"},
    }.items():
        kept = {
            key: value for key, value in (whole | changes).items() if key != "peft_type" or value is not None
        }
        (directory / CONFIG).write_text(json.dumps(kept))
        seen.attempt(name, lambda: logits(load(peft, str(directory))))


@differs(pickle=("save", "load"))
def a_pickle(peft: Any, directory: Path, seen: Seen) -> None:
    seen.attempt("save", lambda: attached(peft).save_pretrained(str(directory), safe_serialization=False))
    saved(peft, directory / "other")
    torch.save(load_file(directory / "other" / TENSORS), directory / "other" / "adapter_model.bin")
    (directory / "other" / TENSORS).unlink()
    seen.attempt("load", lambda: logits(load(peft, str(directory / "other"))))


@call
def a_name_that_exists_gets_the_files_weights(peft: Any, directory: Path, seen: Seen) -> None:
    saved(peft, directory)
    model = added(peft, attached(peft), "other", r=2, lora_alpha=32)
    seen.attempt("load", lambda: model.load_adapter(str(directory), "other").missing_keys)
    seen.note("output", logits(model))
    seen.note("options", model.peft_config["other"].lora_alpha)
    seen.note("trains", trains(model))


@differs(own_folder="output")
def a_folder_of_the_adapters_own(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft), "other")
    model.save_pretrained(str(directory))
    model.load_adapter(str(directory), "other")
    seen.note("output", logits(model))


@differs(second_model="load")
def a_second_model_around_one_base(peft: Any, directory: Path, seen: Seen) -> None:
    saved(peft, directory)
    base = LLAMA.build()
    peft.PeftModel.from_pretrained(base, str(directory))
    seen.attempt("load", lambda: peft.PeftModel.from_pretrained(base, str(directory), "other"))


@call
def selected_adapters(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft), "other")
    for name, chosen in {
        "all": None,
        "one": ["other"],
        "unknown": ["nobody"],
        "twice": ["other", "other"],
    }.items():
        seen.attempt(
            name,
            lambda name=name, chosen=chosen: model.save_pretrained(
                str(directory / name), selected_adapters=chosen
            ),
        )
        seen.note(f"{name}, files", files(directory / name))
    (directory / "file").write_text("")
    seen.attempt("onto a file", lambda: model.save_pretrained(str(directory / "file")))
    seen.attempt(
        "not this process", lambda: model.save_pretrained(str(directory / "no"), is_main_process=False)
    )
    seen.note("nothing written", files(directory / "no"))


@differs(auto_model=("AutoPeftModel", "AutoPeftModel gives", "AutoPeftModel trains"), clear_errors="no base")
def the_automatic_classes(peft: Any, directory: Path, seen: Seen) -> None:
    LLAMA.build().save_pretrained(str(directory / "base"))
    import transformers as hf

    base = hf.AutoModelForCausalLM.from_pretrained(directory / "base")
    torch.manual_seed(3)
    model = peft.get_peft_model(base, lora(peft, init_lora_weights=False))
    seen.note("named", model.peft_config["default"].base_model_name_or_path == str(directory / "base"))
    model.save_pretrained(str(directory / "adapter"))
    for name in ("AutoPeftModel", "AutoPeftModelForCausalLM", "AutoPeftModelForSequenceClassification"):
        kind = getattr(peft, name)
        found = seen.attempt(name, lambda kind=kind: kind.from_pretrained(str(directory / "adapter")))
        if found is not None:
            seen.note(f"{name} gives", [type(found).__name__, logits(found)])
            seen.note(f"{name} trains", trains(found))
    found = peft.AutoPeftModelForCausalLM.from_pretrained(
        str(directory / "adapter"), adapter_name="a", is_trainable=True, dtype=torch.bfloat16
    )
    seen.note("as asked", [list(found.peft_config), trains(found), str(next(found.parameters()).dtype)])
    without = json.loads((directory / "adapter" / CONFIG).read_text()) | {"base_model_name_or_path": None}
    (directory / "adapter" / CONFIG).write_text(json.dumps(without))
    seen.attempt("no base", lambda: peft.AutoPeftModelForCausalLM.from_pretrained(str(directory / "adapter")))


@differs(config_overrides="overridden", clear_errors="a list")
def configurations_on_disk(peft: Any, directory: Path, seen: Seen) -> None:
    config = lora(peft, rank_pattern={"q_proj": 4}, modules_to_save=["lm_head"])
    config.save_pretrained(str(directory))
    for kind in (peft.PeftConfig, peft.LoraConfig, peft.IA3Config):
        read = seen.attempt(kind.__name__, lambda kind=kind: kind.from_pretrained(str(directory)))
        seen.note(
            f"{kind.__name__} gives", [type(read).__name__, read.rank_pattern, sorted(read.target_modules)]
        )
    seen.attempt("overridden", lambda: peft.LoraConfig.from_pretrained(str(directory), r=99).r)
    seen.note(
        "a dictionary", {key: str(value) for key, value in config.to_dict().items() if key == "task_type"}
    )
    (directory / CONFIG).write_text("{")
    seen.attempt("broken", lambda: peft.PeftConfig.from_pretrained(str(directory)))
    (directory / CONFIG).write_text("[]")
    seen.attempt("a list", lambda: peft.PeftConfig.from_pretrained(str(directory)))


@call
def an_adapter_of_another_base(peft: Any, directory: Path, seen: Seen) -> None:
    saved(peft, directory)
    seen.attempt("another architecture", lambda: peft.PeftModel.from_pretrained(T5.build(), str(directory)))


@differs(clear_errors=("nobody", "of a plain model"))
def state_dicts(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft, modules_to_save=["norm"]), "other", target_modules=["o_proj"])
    for name in ("default", "other", "nobody"):
        seen.attempt(name, lambda name=name: sorted(peft.get_peft_model_state_dict(model, adapter_name=name)))
    seen.note("whole", sorted(model.state_dict()))
    state = peft.get_peft_model_state_dict(model)
    fresh = attached(peft, modules_to_save=["norm"])
    result = peft.set_peft_model_state_dict(fresh, state)
    seen.note("set", [sorted(result.unexpected_keys), logits(fresh)])
    seen.attempt("of a plain model", lambda: peft.get_peft_model_state_dict(LLAMA.build()))
    seen.attempt("loaded by torch", lambda: fresh.load_state_dict(fresh.state_dict()) and "loaded")


@differs(no_values="without values")
def onto_the_meta_device_first(peft: Any, directory: Path, seen: Seen) -> None:
    saved(peft, directory)
    seen.note("loaded", logits(load(peft, str(directory), low_cpu_mem_usage=True)))
    torch.manual_seed(3)
    model = peft.get_peft_model(LLAMA.build(), lora(peft), low_cpu_mem_usage=True)
    seen.attempt("without values", lambda: logits(model))
    model.load_adapter(str(directory), "other", low_cpu_mem_usage=True)
    model.set_adapter("other")
    seen.note("another", logits(model))


@differs(pissa_niter="output")
def a_randomised_pissa_loads_onto_what_it_was_trained_on(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, init_lora_weights="pissa_niter_4")
    model.save_pretrained(str(directory))
    torch.manual_seed(77)
    seen.note("output", bool(torch.allclose(logits(load(peft, str(directory))), logits(model), atol=1e-4)))
