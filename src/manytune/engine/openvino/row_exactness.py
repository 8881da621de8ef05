"""Whether a token's logits depend on what is read with it, which speculation with rounded activations must know.

Where activations are rounded to 8 bits or bfloat16, a difference in the last bit is enough to round some of them to the
next number, and after a few layers the logits differ by as much as rounding changes them at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manytune.engine.kv_cache import KVCache
from manytune.engine.openvino.graph import PAGE
from manytune.engine.runner import NextToken, PromptChunk, Runner

_ONE, _OTHER = "probe 1", "probe 2"
#: Lengths of their prompts, one of more than a page.
_PROMPTS = {_ONE: PAGE + 5, _OTHER: 3}
#: What follows either prompt.
_ANSWER = (901, 8, 4711, 23, 1105, 99, 2750, 61)
#: How many of its tokens are drafted: kernels are chosen by the number of rows.
_DRAFTED = (1, 4, 7)


def are_rows_exact(cache: KVCache, runner: Runner, vocabulary: int) -> bool:
    """Whether tokens have the same logits to the last bit one by one, as drafts, and next to another sequence.

    Args:
        cache: The runner's keys and values, without sequences; it is left as it was.
        runner: Reads tokens.
        vocabulary: The number of token ids.
    """
    answer = tuple(token % vocabulary for token in _ANSWER)
    try:
        _begin(cache, runner, _ONE, vocabulary)
        alone = torch.cat([_read(cache, runner, (token,), (_ONE,)) for token in answer])
        cache.truncate(_ONE, len(answer))
        _begin(cache, runner, _OTHER, vocabulary)
        for names in ((_ONE,), (_ONE, _OTHER)):
            for drafted in _DRAFTED:
                found = _read(cache, runner, answer[: 1 + drafted], names)
                for name in names:
                    cache.truncate(name, 1 + drafted)
                if not torch.equal(found, alone[: 1 + drafted]):
                    return False
        return True
    finally:
        for name in _PROMPTS:
            if name in cache:
                cache.remove(name)


def _begin(cache: KVCache, runner: Runner, name: str, vocabulary: int) -> None:
    """Read a probe's prompt."""
    count = _PROMPTS[name]
    cache.add(name, count + len(_ANSWER))
    tokens = tuple((5 + 131 * place) % vocabulary for place in range(count))
    runner.forward((), [PromptChunk(name, tokens, None, None, wants_logits=False)])
    cache.start_decoding(name)


def _read(cache: KVCache, runner: Runner, tokens: tuple[int, ...], names: tuple[str, ...]) -> Tensor:
    """The logits of the first one's tokens, (tokens, vocabulary), where all read the same ones."""
    reads = [NextToken(name, tokens[0], None, tokens[1:]) for name in names]
    logits, more = runner.forward(reads, ())
    # Copied, since OpenVINO's memory is its next forward's.
    return torch.cat([logits[:1], *(more[name] for name in names[:1] if more)])
