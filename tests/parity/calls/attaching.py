"""Configurations, and attaching them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.parity.bases import BART, BERT, DISTILBERT, GPT2, LLAMA, T5
from tests.parity.calls.call import added, attached, call, differs, logits, lora, trains
from tests.parity.observed import Seen
from torch import nn


@differs(unmatched_target="attach")
def a_target_that_is_misspelt_next_to_one_that_is_not(peft: Any, directory: Path, seen: Seen) -> None:
    config = lora(peft, target_modules=["q_proj", "v_porj"])
    seen.attempt("attach", lambda: trains(peft.get_peft_model(LLAMA.build(), config)))


@differs(
    unmatched_option=(
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "modules_to_save",
        "exclude_modules",
    )
)
def options_that_match_nothing(peft: Any, directory: Path, seen: Seen) -> None:
    for option, value in {
        "rank_pattern": {"q_porj": 3},
        "alpha_pattern": {"^q_proj": 3},
        "layers_to_transform": [0, 7],
        "modules_to_save": ["lm_haed"],
        "exclude_modules": ["lm_haed"],
    }.items():
        config = lora(peft, **{option: value})
        seen.attempt(option, lambda config=config: trains(peft.get_peft_model(LLAMA.build(), config)))


@call
def targets_that_match_nothing_at_all(peft: Any, directory: Path, seen: Seen) -> None:
    for name, options in {
        "a list": {"target_modules": ["nothing"]},
        "an expression": {"target_modules": "q_proj"},
        "an empty list": {"target_modules": []},
        "all excluded": {"exclude_modules": ["q_proj", "v_proj"]},
        "no such layer": {"layers_to_transform": [7]},
        "all in full": {"modules_to_save": ["q_proj", "v_proj"]},
    }.items():
        seen.attempt(name, lambda options=options: peft.get_peft_model(LLAMA.build(), lora(peft, **options)))


@call
def every_way_to_name_targets(peft: Any, directory: Path, seen: Seen) -> None:
    for name, options in {
        "usual": {"target_modules": None},
        "all-linear": {"target_modules": "all-linear"},
        "ALL-LINEAR": {"target_modules": "ALL-LINEAR"},
        "expression": {"target_modules": r".*\.(q|down)_proj"},
        "set": {"target_modules": {"q_proj", "lm_head"}},
        "tuple": {"target_modules": ("q_proj", "o_proj")},
        "path": {"target_modules": ["model.layers.0.self_attn.q_proj"]},
        "layer 0": {"layers_to_transform": 0},
        "pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
        "exclude": {"exclude_modules": r".*\.v_proj"},
    }.items():
        config = lora(peft, **options)
        seen.attempt(name, lambda config=config: trains(peft.get_peft_model(LLAMA.build(), config)))
        names = config.target_modules
        if "linear" not in name.lower():
            seen.note(f"{name}, afterwards", names if isinstance(names, str) else sorted(names))


@differs(fewer_warnings=("gpt2, CAUSAL_LM", "gpt2, None"), task_heads="distilbert, SEQ_CLS")
def all_linear_layers_of_other_models(peft: Any, directory: Path, seen: Seen) -> None:
    for base in (GPT2, T5, BART, BERT, DISTILBERT):
        for task in (base.task, None):
            config = lora(peft, target_modules="all-linear", task_type=task)
            seen.attempt(
                f"{base}, {task}",
                lambda base=base, config=config: trains(peft.get_peft_model(base.build(), config)),
            )


@differs(fewer_warnings="VeRA's key")
def options_that_contradict_each_other(peft: Any, directory: Path, seen: Seen) -> None:
    for name, make in {
        "pattern without layers": lambda: lora(peft, layers_pattern="layers"),
        "layers of an expression": lambda: lora(peft, target_modules="x", layers_to_transform=[0]),
        "task": lambda: lora(peft, task_type="CAUSAL"),
        "DoRA with biases": lambda: lora(peft, use_dora=True, lora_bias=True),
        "PiSSA with biases": lambda: lora(peft, init_lora_weights="pissa", lora_bias=True),
        "parameters": lambda: lora(peft, target_parameters="x"),
        "IA3": lambda: peft.IA3Config(target_modules=["a"], feedforward_modules=["b"]),
        "text": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, prompt_tuning_init="TEXT"),
        "tokenizer": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, tokenizer_kwargs={"a": 1}),
        "AdaLoRA without steps": lambda: peft.AdaLoraConfig(),
        "AdaLoRA without a budget": lambda: peft.AdaLoraConfig(total_step=10, tinit=8, tfinal=4),
        "VeRA's key": lambda: peft.VeraConfig(save_projection=False),
        "unknown": lambda: peft.LoraConfig(rank=3),
    }.items():
        seen.attempt(name, make)


@differs(clear_errors=("r='8'", "r=2.5"))
def values_that_no_option_has(peft: Any, directory: Path, seen: Seen) -> None:
    for name, options in {
        "r=0": {"r": 0},
        "r=-1": {"r": -1},
        "r='8'": {"r": "8"},
        "r=2.5": {"r": 2.5},
        "dropout=2": {"lora_dropout": 2.0},
        "bias": {"bias": "some"},
        "init": {"init_lora_weights": "nonsense"},
        "init pissa_niter_x": {"init_lora_weights": "pissa_niter_x"},
        "odd rank": {"r": 3, "init_lora_weights": "orthogonal"},
        "modules_to_save of a list": {"modules_to_save": ["layers"]},
        "lora_bias of an embedding": {"lora_bias": True, "target_modules": ["embed_tokens"]},
        "a norm": {"target_modules": ["norm"]},
        "a block": {"target_modules": ["mlp"]},
    }.items():
        seen.attempt(name, lambda options=options: peft.get_peft_model(LLAMA.build(), lora(peft, **options)))


@call
def values_at_the_edge(peft: Any, directory: Path, seen: Seen) -> None:
    for name, options in {
        "alpha=0": {"lora_alpha": 0},
        "alpha<0": {"lora_alpha": -4},
        "alpha=2.5": {"lora_alpha": 2.5},
        "rank above the width": {"r": 40},
        "rank pattern": {"rank_pattern": {"layers.0.self_attn.q_proj": 5}, "alpha_pattern": {"v_proj": 0.5}},
        "inference": {"inference_mode": True},
        "random": {"init_lora_weights": False},
        "fan_in_fan_out": {"fan_in_fan_out": True},
        "lora_bias": {"lora_bias": True},
    }.items():
        model = seen.attempt(name, lambda options=options: attached(peft, **options))
        seen.note(f"{name} trains", trains(model))
        seen.note(f"{name} gives", logits(model))


@differs(olora_conv1d=("runs", "merges"))
def olora_at_transposed_weights(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft, GPT2, target_modules=["c_attn"], init_lora_weights="olora")
    seen.attempt("runs", lambda: bool(torch.isfinite(logits(model, GPT2)).all()))
    seen.attempt("merges", lambda: model.merge_adapter() or "merged")


@differs(other_inits=("eva", "corda", "loftq", "lora_ga"))
def initialisations_that_are_not_implemented(peft: Any, directory: Path, seen: Seen) -> None:
    for init in ("eva", "corda", "loftq", "lora_ga"):
        more = {"loftq_config": {"loftq_bits": 4}} if init == "loftq" else {}
        seen.attempt(init, lambda init=init, more=more: lora(peft, init_lora_weights=init, **more))


@differs(other_methods=("LoHaConfig", "LNTuningConfig", "OFTConfig", "read"))
def methods_that_are_not_implemented(peft: Any, directory: Path, seen: Seen) -> None:
    for name in ("LoHaConfig", "LNTuningConfig", "OFTConfig"):
        seen.attempt(name, lambda name=name: getattr(peft, name)())
    (directory / "adapter_config.json").write_text('{"peft_type": "LOHA", "target_modules": ["q_proj"]}')
    config = seen.attempt("config", lambda: peft.PeftConfig.from_pretrained(str(directory)))
    seen.attempt("read", lambda: peft.get_peft_model(LLAMA.build(), config))


@differs(ignored_option=("rslora", "patterns", "bias"))
def options_that_a_method_ignores(peft: Any, directory: Path, seen: Seen) -> None:
    ada = {"total_step": 9, "target_modules": ["q_proj"]}
    seen.attempt(
        "rslora", lambda: peft.get_peft_model(LLAMA.build(), peft.AdaLoraConfig(use_rslora=True, **ada))
    )
    seen.attempt(
        "patterns",
        lambda: peft.get_peft_model(LLAMA.build(), peft.AdaLoraConfig(alpha_pattern={"q_proj": 2}, **ada)),
    )
    seen.attempt("bias", lambda: peft.get_peft_model(LLAMA.build(), peft.VeraConfig(bias="all")))


@differs(task_heads=("bart", "t5"))
def a_classifiers_head_of_several_parts(peft: Any, directory: Path, seen: Seen) -> None:
    import transformers as hf

    for name, kind, base, targets in (
        ("bart", hf.BartForSequenceClassification, BART, ["q_proj"]),
        ("t5", hf.T5ForSequenceClassification, T5, ["q"]),
    ):
        config = hf.BartConfig if name == "bart" else hf.T5Config
        torch.manual_seed(0)
        model = kind(config(**base.sizes))
        seen.note(
            name, trains(peft.get_peft_model(model, lora(peft, task_type="SEQ_CLS", target_modules=targets)))
        )


@differs(second_model="wrap the base")
def a_base_that_has_adapters_already(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    seen.attempt("wrap the base", lambda: peft.get_peft_model(model.get_base_model(), lora(peft), "other"))


@call
def names_of_adapters(peft: Any, directory: Path, seen: Seen) -> None:
    for name in ("a b", "ünïcode", "1", "lora", "lora_A", "default "):
        model = seen.attempt(name, lambda name=name: attached(peft, name=name))
        seen.note(f"{name} trains", trains(model))
        model.save_pretrained(str(directory / "x"))
        loaded = seen.attempt(
            f"{name} loads",
            lambda name=name: peft.PeftModel.from_pretrained(
                LLAMA.build(), str(directory / "x" / name), name
            ),
        )
        seen.note(f"{name} gives", logits(loaded))


@differs(clear_errors="a soft prompt")
def a_model_that_is_not_transformers(peft: Any, directory: Path, seen: Seen) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    ids = torch.tensor([[1, 2], [3, 4]])
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["0", "1"], modules_to_save=["3"], init_lora_weights=False)
    model = peft.get_peft_model(build(), config)
    seen.note("class", type(model).__name__)
    seen.note("output", model(ids))
    model.save_pretrained(str(directory))
    seen.note("loaded", peft.PeftModel.from_pretrained(build(), str(directory))(ids))
    seen.attempt("usual targets", lambda: peft.get_peft_model(build(), peft.LoraConfig()))
    seen.attempt(
        "all-linear",
        lambda: trains(peft.get_peft_model(build(), peft.LoraConfig(target_modules="all-linear"))),
    )
    prompt = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    seen.attempt("a soft prompt", lambda: peft.get_peft_model(build(), prompt))


@differs(prompt_sizes="attach")
def a_soft_prompt_whose_size_has_to_be_inferred(peft: Any, directory: Path, seen: Seen) -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS")
    seen.attempt("attach", lambda: trains(peft.get_peft_model(DISTILBERT.build(), config)))


@differs(prefix_without_cache=("no cache", "checkpointing later"))
def a_prefix_where_it_would_not_be_seen(peft: Any, directory: Path, seen: Seen) -> None:
    sizes = {"num_virtual_tokens": 2, "token_dim": 16, "num_layers": 1, "num_attention_heads": 2}
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", **sizes)
    seen.attempt("no cache", lambda: peft.get_peft_model(DISTILBERT.build(), config))
    base = LLAMA.build()
    base.gradient_checkpointing_enable()
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    seen.attempt("checkpointing", lambda: peft.get_peft_model(base, prefix))
    model = peft.get_peft_model(
        LLAMA.build(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    seen.attempt("checkpointing later", lambda: model.gradient_checkpointing_enable())


@call
def half_precision_without_autocast(peft: Any, directory: Path, seen: Seen) -> None:
    for cast in (True, False):
        torch.manual_seed(3)
        base = LLAMA.build(torch.bfloat16)
        model = peft.get_peft_model(base, lora(peft), autocast_adapter_dtype=cast)
        seen.note(f"{cast}", {name: str(p.dtype) for name, p in model.named_parameters()})
        model.save_pretrained(str(directory / str(cast)))
        loaded = peft.PeftModel.from_pretrained(
            LLAMA.build(torch.bfloat16), str(directory / str(cast)), autocast_adapter_dtype=cast
        )
        seen.note(f"{cast}, loaded", {name: str(p.dtype) for name, p in loaded.named_parameters()})
        seen.note(f"{cast}, output", logits(loaded).dtype)


@call
def adapters_of_different_methods(peft: Any, directory: Path, seen: Seen) -> None:
    model = attached(peft)
    seen.attempt("IA3 next to LoRA", lambda: model.add_adapter("other", peft.IA3Config()))
    seen.attempt("taken", lambda: model.add_adapter("default", lora(peft)))
    seen.attempt(
        "nothing targeted", lambda: model.add_adapter("third", lora(peft, target_modules=["nothing"]))
    )
    seen.note("left", list(model.peft_config))
    added(peft, model, "fourth", target_modules=["o_proj"], r=5)
    seen.note("output", logits(model))
    seen.note("trains", trains(model))


@call
def classes_built_by_hand(peft: Any, directory: Path, seen: Seen) -> None:
    for name in ("PeftModel", "PeftModelForCausalLM", "PeftModelForFeatureExtraction"):
        torch.manual_seed(3)
        model = getattr(peft, name)(LLAMA.build(), lora(peft, init_lora_weights=False))
        seen.note(name, [type(model).__name__, logits(model.eval())])
    torch.manual_seed(3)
    injected = peft.inject_adapter_in_model(lora(peft, init_lora_weights=False), LLAMA.build())
    seen.note("injected", [type(injected).__name__, logits(injected), trains(injected)])
