"""Calling a model: an adapter a sample, other forms of input and output, trainers and devices."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import peft as installed
import torch
from tests.parity.bases import GPT2, LLAMA, T5
from tests.parity.calls.call import added, attached, call, differs, logits, lora, saved, trains
from tests.parity.observed import Seen
from tests.parity.session import digest, scatter


@differs(mixed_disabled="disabled")
def an_adapter_for_each_sample(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft), "other", target_modules=["o_proj"])
    for names in (["default", "other"], ["__base__", "other"], ["default", "default"]):
        seen.attempt(f"{names}", lambda names=names: logits(model, adapter_names=names))
    for name, names in {"too few": ["default"], "unknown": ["default", "nobody"], "none": []}.items():
        seen.attempt(name, lambda names=names: logits(model, adapter_names=names))
    ids = LLAMA.inputs()["input_ids"]
    seen.attempt(
        "generated",
        lambda: model.generate(
            input_ids=ids, adapter_names=["__base__", "other"], max_new_tokens=3, do_sample=False, num_beams=2
        ),
    )
    with model.disable_adapter():
        seen.attempt("disabled", lambda: logits(model, adapter_names=["default", "other"]))
    seen.attempt("training", lambda: logits(model.train(), adapter_names=["default", "other"]))
    model.eval().merge_adapter()
    seen.attempt("merged", lambda: logits(model, adapter_names=["default", "other"]))


@differs(mixed_methods=("dora", "adalora", "vera", "ia3"))
def an_adapter_of_another_method_for_each_sample(peft: Any, directory: Path, seen: Seen) -> None:
    names = ["default", "__base__"]
    seen.attempt("dora", lambda: logits(attached(peft, use_dora=True), adapter_names=names))
    for name, config in {
        "adalora": peft.AdaLoraConfig(total_step=9, target_modules=["q_proj"], init_lora_weights=False),
        "vera": peft.VeraConfig(r=2, target_modules=["q_proj"]),
        "ia3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    }.items():
        torch.manual_seed(3)
        model = peft.get_peft_model(LLAMA.build(), config).eval()
        scatter(model)
        seen.attempt(name, lambda model=model: logits(model, adapter_names=names))


@differs(mixed_positions="positions")
def an_adapter_of_positions_for_each_sample(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, GPT2, target_modules=["wpe"])
    seen.attempt("positions", lambda: logits(model, GPT2, adapter_names=["default", "__base__"]))


@call
def other_forms_of_input_and_output(peft: Any, directory: Path, seen: Seen) -> None:
    model, inputs = attached(peft), LLAMA.inputs()
    ids = inputs["input_ids"]
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids)
        seen.note("embedded", model(inputs_embeds=embedded).logits)
        seen.note("by position", model(ids).logits)
        seen.note("a tuple", model(ids, return_dict=False)[0])
        seen.note("hidden states", list(model(ids, output_hidden_states=True).hidden_states))
        seen.note("last logits", model(ids, logits_to_keep=1).logits)
        seen.attempt("unknown", lambda: model(ids, nonsense=1).logits)
        seen.attempt("without input", lambda: model())
        seen.note("generated", model.generate(ids, max_new_tokens=3, do_sample=False))


@call
def an_encoder_and_decoder_generates(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, T5, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    ids = T5.inputs()["input_ids"]
    seen.attempt("by name", lambda: model.generate(input_ids=ids, max_new_tokens=3, do_sample=False))
    seen.attempt("by position", lambda: model.generate(ids, max_new_tokens=3, do_sample=False))


@call
def copies_and_types(peft: Any, directory: Path, seen: Seen) -> None:
    model = added(peft, attached(peft, modules_to_save=["norm"]), "other")
    seen.note("copied", logits(copy.deepcopy(model)))
    seen.note("pickled", logits(pickle.loads(pickle.dumps(model))))
    seen.note("as float64", logits(model.double()).dtype)
    seen.note("as bfloat16", logits(model.bfloat16()).dtype)
    seen.note("modes", [model.train().training, model.eval().training])
    seen.note("types", sorted({str(p.dtype) for p in model.parameters()}))


@call
def what_trainers_ask(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    for name in ("config", "generation_config", "device", "dtype", "main_input_name", "base_model_prefix"):
        seen.attempt(name, lambda name=name: str(getattr(model, name)) != "")
    seen.note("counts", [model.num_parameters(), model.num_parameters(only_trainable=True)])
    seen.note("gradient checkpointing", model.supports_gradient_checkpointing)
    seen.note("peft_type", [str(model.peft_type.value), model.active_peft_config.r, model.active_adapter])
    seen.attempt("nothing", lambda: model.nothing_of_this_name)
    seen.attempt("half built", lambda: type(model).__new__(type(model)).base_model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()(**LLAMA.inputs()).loss.backward()
    seen.note("gradients", {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


@call
def the_columns_that_the_trainer_keeps(peft: Any, directory: Path, seen: Seen) -> None:
    from transformers import Trainer, TrainingArguments

    for task in (None, "CAUSAL_LM"):
        arguments = TrainingArguments(output_dir=str(directory), report_to=[], use_cpu=True)
        trainer: Any = Trainer(model=attached(peft, task_type=task), args=arguments)
        trainer._set_signature_columns_if_needed()
        seen.note(
            f"{task}", [sorted(trainer._signature_columns), trainer.label_names, trainer.can_return_loss]
        )


@differs(trl_config="TRL takes it")
def a_configuration_that_trl_asks_about(peft: Any, directory: Path, seen: Seen) -> None:
    seen.note("TRL takes it", isinstance(lora(peft), installed.PeftConfig))


@call
def after_loading(peft: Any, directory: Path, seen: Seen) -> None:
    for name, options in {
        "plain": {},
        "norm": {"modules_to_save": ["norm"]},
        "dora": {"use_dora": True},
    }.items():
        folder = saved(peft, directory / name, **options)
        for first in (False, True):
            model = peft.PeftModel.from_pretrained(LLAMA.build().train(), folder, is_trainable=first)
            seen.note(
                f"{name}, {first}",
                [model.training, trains(model), model.peft_config["default"].inference_mode],
            )
            model.load_adapter(folder, "other", is_trainable=not first)
            seen.note(f"{name}, {first}, other", [model.training, trains(model), model.active_adapters])
            model.set_adapter("other")
            seen.note(f"{name}, {first}, in use", trains(model))


@call
def what_is_printed(peft: Any, directory: Path, seen: Seen) -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        attached(peft, modules_to_save=["norm"]).print_trainable_parameters()
    seen.note("parameters", printed.getvalue())


@differs(prompt_positions="shifted")
def positions_of_a_prompts_tokens(peft: Any, directory: Path, seen: Seen) -> None:
    torch.manual_seed(3)
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(LLAMA.build(), config).eval()
    positions = torch.arange(6)[None].expand(2, -1)
    seen.note("counted", logits(model))
    seen.attempt("shifted", lambda: logits(model, position_ids=positions * 2))


@differs(offloaded=("trains on", "merged"))
def next_to_layers_that_are_offloaded(peft: Any, directory: Path, seen: Seen) -> None:
    base = offloaded(directory)
    torch.manual_seed(3)
    model = peft.get_peft_model(base, lora(peft, init_lora_weights=False)).eval()
    seen.note("trains on", sorted({p.device.type for p in model.parameters() if p.requires_grad}))
    before = logits(model)
    seen.attempt(
        "merged", lambda: model.merge_adapter() or bool(torch.allclose(logits(model), before, atol=1e-5))
    )


@differs(device_map=("the base is elsewhere", "the script"))
def a_device_map_for_a_base_that_is_offloaded(peft: Any, directory: Path, seen: Seen) -> None:
    folder = saved(peft, directory / "adapter")
    with chdir(directory):  # where HF PEFT writes a part of the base
        model = peft.PeftModel.from_pretrained(offloaded(directory), folder, device_map="auto")
    names = [n for n, p in model.named_parameters() if p.is_meta]
    seen.note("the base is elsewhere", bool(names))


def offloaded(directory: Path) -> Any:
    """A base whose layer is on a disk between calls."""
    import transformers as hf

    LLAMA.build().save_pretrained(directory / "base")
    parts = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    return hf.AutoModelForCausalLM.from_pretrained(
        directory / "base",
        device_map={**parts, "model.layers.0": "disk"},
        offload_folder=directory / "offloaded",
    )


@differs(kbit_inputs="gradients reach the input")
def preparing_a_base_for_few_bits(peft: Any, directory: Path, seen: Seen) -> None:
    base = peft.prepare_model_for_kbit_training(LLAMA.build(torch.bfloat16))
    seen.note("types", sorted({str(p.dtype) for p in base.parameters()}))
    seen.note("frozen", not any(p.requires_grad for p in base.parameters()))
    seen.note("gradients reach the input", base(**LLAMA.inputs()).logits.requires_grad)


@differs(mixed_models="other methods")
def models_of_mixed_methods(peft: Any, directory: Path, seen: Seen) -> None:
    torch.manual_seed(3)
    model = peft.get_peft_model(LLAMA.build(), lora(peft, init_lora_weights=False), mixed=True).eval()
    torch.manual_seed(4)
    model.add_adapter("other", lora(peft, init_lora_weights=False, target_modules=["o_proj"]))
    model.set_adapter(["default", "other"])
    seen.note("output", logits(model))
    ada = peft.AdaLoraConfig(total_step=9, target_modules=["k_proj"])
    seen.attempt("other methods", lambda: model.add_adapter("third", ada))
    seen.attempt(
        "soft prompts", lambda: model.add_adapter("fourth", peft.PromptTuningConfig(num_virtual_tokens=2))
    )


@call
def what_is_left_of_the_base(peft: Any, directory: Path, seen: Seen) -> None:
    base = LLAMA.build()
    before = {name: digest(value) for name, value in base.state_dict().items()}
    model = peft.get_peft_model(base, lora(peft))
    seen.note("in place", model.get_base_model() is base)
    plain = model.unload()
    seen.note("the same", {name: digest(value) for name, value in plain.state_dict().items()} == before)
    seen.attempt("again", lambda: peft.get_peft_model(plain, lora(peft)))
