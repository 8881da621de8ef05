"""A soft prompt of ours next to the same one of HF PEFT's, on the same base with the same values."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import peft
import torch
import transformers
from packaging.version import Version
from tests.methods.tiny_models import Family
from torch import Tensor, nn

import manytune

#: From this release of transformers on HF PEFT 0.21 generates other tokens with soft prompts than its own forwards
#: give, and doesn't run encoders with prefixes.
IS_AFTER_PEFT = Version(transformers.__version__) >= Version("5.24")

#: What each method's configuration class is called, here and there, with options that make it interesting.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt-tuning": ("PromptTuningConfig", {}),
    "p-tuning-mlp": ("PromptEncoderConfig", {"encoder_hidden_size": 12}),
    "p-tuning-lstm": (
        "PromptEncoderConfig",
        {"encoder_hidden_size": 6, "encoder_reparameterization_type": "LSTM"},
    ),
    "prefix-tuning": ("PrefixTuningConfig", {}),
    "prefix-tuning-projected": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 6}),
}


def livelier(base: nn.Module) -> nn.Module:
    """The base with larger weights, so that what is generated depends on what is read."""
    generator = torch.Generator().manual_seed(11)
    for parameter in base.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(0.15 * noise.to(parameter.dtype))
    return base.eval()


def both(method: str, base: nn.Module, task_type: str, **options: Any) -> tuple[manytune.PeftModel, Any]:
    """Ours and the oracle in float64, drawn from the same seed; holds that both start alike."""
    name, own = METHODS[method]
    arguments = {"task_type": task_type, "num_virtual_tokens": 4, **own, **options}
    base = base.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        oracle: Any = peft.get_peft_model(copy.deepcopy(base), getattr(peft, name)(**arguments)).double()
    torch.manual_seed(3)
    mine = manytune.get_peft_model(copy.deepcopy(base), getattr(manytune, name)(**arguments))
    ours, theirs = training(mine), training(oracle)
    assert ours.keys() == theirs.keys()
    for key, parameter in ours.items():
        torch.testing.assert_close(parameter.float(), theirs[key].float(), rtol=0, atol=0, msg=key)
    return mine, oracle


def training(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def assert_same(mine: nn.Module, oracle: nn.Module, inputs: dict[str, Any]) -> None:
    """The same outputs, loss and gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = oracle(**inputs)
    found = mine(**inputs)
    for key in ("loss", "logits", "start_logits", "last_hidden_state"):
        if getattr(expected, key, None) is not None:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-12, atol=1e-12)
    for model, output in ((mine, found), (oracle, expected)):
        model.zero_grad()
        loss = output.loss if getattr(output, "loss", None) is not None else output[0].square().sum()
        loss.backward()
    grads = {name: p.grad for name, p in training(oracle).items()}
    for name, parameter in training(mine).items():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-10, atol=1e-14, msg=name)


def padded(family: Family) -> dict[str, Any]:
    """The family's inputs with three tokens of padding at the left of the second row."""
    inputs = family.inputs()
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, :3] = 0
    return {**inputs, "attention_mask": mask}


def logits(model: nn.Module, **inputs: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


def by_forwards(model: Any, ids: Tensor, count: int, *, is_seq2seq: bool) -> Tensor:
    """What is generated greedily, from a whole forward for each token."""
    config = model.get_base_model().config
    written = torch.full((len(ids), 1), config.decoder_start_token_id) if is_seq2seq else ids
    ended = torch.zeros(len(ids), 1, dtype=torch.bool)
    for _ in range(count):
        inputs = {"input_ids": ids, "decoder_input_ids": written} if is_seq2seq else {"input_ids": written}
        likeliest = logits(model, attention_mask=torch.ones_like(inputs["input_ids"]), **inputs)[
            :, -1
        ].argmax(1)
        token = torch.where(ended, config.pad_token_id, likeliest[:, None])
        ended |= token == config.eos_token_id
        written = torch.cat((written, token), 1)
    return written
