"""Answers to a fixed list of prompts: by the engine where it supports the model, else in static batches.

Evaluation, the demo and `manytune generate` use this. A static batch runs until its longest answer ends; the engine
gives the place of an answer that has ended to the next prompt, and computes shared prefixes once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedModel

from manytune.engine.base_model import check_lengths, evaluation_mode, has_virtual_tokens
from manytune.engine.constraint import Constraint
from manytune.engine.detokenize import decode
from manytune.engine.engine import Engine
from manytune.engine.kv_cache import row_width
from manytune.engine.memory import check_given
from manytune.engine.options import EngineOptions
from manytune.engine.prefix_cache import block_keys
from manytune.engine.request import Request, SamplingParams
from manytune.engine.static_batch import Generation, Progress, generate_batch
from manytune.engine.support import unsupported_reason
from manytune.errors import ConfigError
from manytune.model.peft_model import PeftModel

#: Size of a model, in bytes, up to which a second, reordered copy of its weights is worth its memory.
_REORDERED_UP_TO = 2 * 2**30


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 8,
    beams: int = 1,
    end_ids: Collection[int] = (),
    constraint: Constraint | None = None,
    progress: Progress | None = None,
) -> list[Generation]:
    """Answer every prompt by greedy decoding, or by beam search.

    The answers are those of `generate_batch`, which is used for models that the engine can't run, for soft prompts, and
    with beams. The model is in evaluation mode meanwhile, and in its former mode afterwards.

    Args:
        model: A transformers causal language model or encoder-decoder, plain or with adapters attached.
        tokenizer: Its tokenizer; decodes, and has the end token.
        prompts: Token ids, one sequence for each prompt.
        max_new_tokens: Limit on the length of an answer, in tokens.
        batch_size: Prompts that are answered at once.
        beams: Number of beams; 1 for greedy decoding.
        end_ids: Tokens that end an answer in addition to those of the model and the tokenizer.
        constraint: What every answer must look like.
        progress: Called whenever answers have ended.

    Returns:
        One answer for each prompt, in the order of `prompts`.

    Raises:
        DataError: A prompt is empty, or together with `max_new_tokens` longer than the model's positions.
        ConfigError: There is a constraint, and the engine can't run the model.
        ValueError: `max_new_tokens`, `batch_size` or `beams` is below 1.
    """
    base = _engine_model(model)
    if constraint is not None and (base is None or beams != 1):
        raise ConfigError(
            "only the engine holds answers to a schema or an expression, and it runs neither this model nor beams. "
            "Generate without the constraint, and check the answers."
        )
    if base is None or not prompts or beams != 1 or min(max_new_tokens, batch_size) < 1:
        return generate_batch(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            beams=beams,
            end_ids=end_ids,
            progress=progress,
        )
    check_lengths(model, [len(prompt) for prompt in prompts], new_tokens=max_new_tokens)
    rows = min(batch_size, len(prompts))
    budget = rows * row_width(max(map(len, prompts)) + max_new_tokens)
    options = EngineOptions(
        kv_budget_tokens=budget,
        max_batch=rows,
        prefix_cache_tokens=budget if _share_prefixes(prompts) else 0,
        weights="reordered" if _size(base) <= _REORDERED_UP_TO else "plain",
        # What a step reads must not depend on measured times, so that an evaluation can be repeated to the last bit.
        speculation="off",
    )
    with evaluation_mode(model):
        engine = Engine(base, tokenizer, options, end_ids=end_ids)
        # Prompts with a common prefix follow one another, so that it is still in the cache.
        for index in sorted(range(len(prompts)), key=lambda index: tuple(prompts[index])):
            request = Request(
                str(index), tuple(prompts[index]), SamplingParams(max_new_tokens), constraint=constraint
            )
            engine.submit(request, stream=False)
        return _answers(engine, tokenizer, len(prompts), progress)


def _answers(engine: Engine, tokenizer: Any, count: int, progress: Progress | None) -> list[Generation]:
    tokens: list[list[int]] = [[] for _ in range(count)]
    found: dict[int, Generation] = {}
    while engine.busy:
        before = len(found)
        for output in engine.step():
            index = int(output.request_id)
            if output.token_id is not None:
                tokens[index].append(output.token_id)
            check_given(output)
            if output.finish_reason is not None:
                stopped = output.finish_reason == "stop"
                # A constrained answer also stops where nothing can follow, and then has no end token.
                is_ended = bool(tokens[index]) and tokens[index][-1] in engine.end_ids
                kept = tuple(tokens[index][:-1] if is_ended else tokens[index])
                text = decode(tokenizer, kept, ())
                found[index] = Generation(kept, text, "stop" if stopped else "length")
        if progress is not None and len(found) > before:
            progress(len(found), count)
    return [found[index] for index in range(count)]


def _engine_model(model: Any) -> PreTrainedModel | None:
    """The transformers model, with whatever adapters are in its layers; None if the engine can't run it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel) or has_virtual_tokens(model):
        return None
    return base if unsupported_reason(base) is None else None


def _size(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _share_prefixes(prompts: Sequence[Sequence[int]]) -> bool:
    """Whether any two prompts have the first block of tokens in common."""
    first = Counter(key for prompt in prompts for key in block_keys("", None, prompt)[:1])
    return any(count > 1 for count in first.values())
