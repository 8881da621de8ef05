"""The installed HF PEFT next to manytune: the same base, the same adapter tensors, and what each makes of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn

import manytune
from manytune.methods.checkpoint.format import get_state, set_state


def random_tensors(state: Mapping[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    """Values near 0.3 for every tensor, so that nothing stays at a special initial value."""
    generator = torch.Generator().manual_seed(seed)
    return {k: 0.3 + 0.2 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in state.items()}


def pair(
    build: Callable[[], nn.Module], ours: Any, theirs: Any, *, fill: bool = True
) -> tuple[manytune.PeftModel, Any]:
    """The same base in float64 with an adapter of ours and of HF PEFT's; unless told not to, with equal values.

    Also holds that both name and shape the tensors of their files alike.
    """
    base = build().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle: Any = peft.get_peft_model(copy.deepcopy(base), theirs)
    mine = manytune.get_peft_model(copy.deepcopy(base), ours)
    my_state, their_state = get_state(mine.tuner, "default"), peft.get_peft_model_state_dict(oracle)
    assert {k: v.shape for k, v in my_state.items()} == {k: v.shape for k, v in their_state.items()}
    if fill:
        values = random_tensors(my_state)
        result = set_state(mine.tuner, "default", values)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        peft.set_peft_model_state_dict(oracle, {k: v.clone() for k, v in values.items()})
    return mine, oracle


def assert_same(mine: nn.Module, oracle: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
    """The same parameters train, with the same output and gradients."""
    mine_trains = {n for n, p in mine.named_parameters() if p.requires_grad}
    assert mine_trains == {n for n, p in oracle.named_parameters() if p.requires_grad}
    outputs = []
    for model in (mine, oracle):
        output = run(model)
        (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
        outputs.append(output.detach())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-10)
    expected = {n: p.grad for n, p in oracle.named_parameters() if p.requires_grad}
    for name, parameter in mine.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-9, msg=name)
