"""Whether a converted model computes what the torch model does, before anything is answered with it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.engine.openvino.graph import PAGE
from manytune.engine.openvino.paged_cache import PagedCache
from manytune.engine.runner import PromptChunk, Runner
from manytune.engine.weights import Rounding
from manytune.errors import ConfigError
from manytune.own_dtype import HALF

#: Two prompts; of one each the last token is read with the others in the cache.
_PROBES = {"probe 1": (5, 1201, 17, 901, 333, 4001), "probe 2": (2111, 7, 77)}
#: By what weights are rounded to, the largest norm of a difference of logits as a share of their norm. Rounding to 4
#: bits has been seen to give up to 0.2; a position or a head in a wrong place gives about 1.
_MOST: dict[Rounding | None, float] = {None: 1e-3, "bf16": 0.05, 8: 0.1, 4: 0.5}


def require_agreement(
    model: PreTrainedModel,
    cache: PagedCache,
    in_torch: Runner,
    converted: Runner,
    rounding: Rounding | None,
) -> None:
    """Compare the logits of two prompts, read in one forward each time.

    Args:
        model: The base.
        cache: Keys and values of both; it is left as it was.
        in_torch: Runs the torch model.
        converted: Runs the converted model.
        rounding: What weights of the converted model are rounded to; None for the model's own numbers.

    Raises:
        ConfigError: They differ.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ours, expected = (_logits(runner, cache, vocabulary).float() for runner in (converted, in_torch))
    difference = float((ours - expected).norm() / expected.norm())
    most = _MOST[rounding]
    if model.dtype in HALF:  # torch itself rounds what it computes
        most = max(most, _MOST["bf16"])
    if not difference <= most:
        raise ConfigError(
            f"what OpenVINO makes of {type(model).__name__} differs from torch's result by {difference:.2%}, and up to "
            f"{most:.1%} was expected"
        )


def _logits(runner: Runner, cache: PagedCache, vocabulary: int) -> Tensor:
    found: list[Tensor] = []
    for name in _PROBES:
        cache.add(name, PAGE)
    try:
        for where in (slice(0, -1), slice(-1, None)):
            chunks = [
                PromptChunk(name, tuple(token % vocabulary for token in ids[where]), None, None, False, True)
                for name, ids in _PROBES.items()
            ]
            # Copied, since OpenVINO's memory is its next forward's.
            found += [one.clone() for one in runner.forward((), chunks)[1].values()]
    finally:
        for name in _PROBES:
            cache.remove(name)
    return torch.cat(found)
