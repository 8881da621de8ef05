"""Answers to prompts that are all known beforehand: by the engine where it can run the model, else in static batches.

This is how evaluation, the demo and `manytune generate` answer. A static batch waits for its longest answer; the engine
gives the place of an answer that has ended to the next prompt, and reads what prompts begin with once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedModel

from manytune.engine.engine import Engine
from manytune.engine.kv_cache import rounded
from manytune.engine.prefix_cache import block_keys
from manytune.engine.request import Request, SamplingParams
from manytune.engine.static_batch import Generation, Progress, check_lengths, evaluating, generate_batch
from manytune.engine.support import unsupported_reason
from manytune.model.peft_model import PeftModel

#: Bytes of a model's weights up to which a second copy, in the order that is multiplied fastest, is worth its memory.
_PACKED_UP_TO = 2 * 2**30


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 8,
    beams: int = 1,
    end_ids: Collection[int] = (),
    progress: Progress | None = None,
) -> list[Generation]:
    """Answer every prompt by greedy decoding, or by beam search.

    The answers are those of `generate_batch`, which also gives them for models that the engine can't run, for soft
    prompts, and with beams. The model is in evaluation mode meanwhile, and as before afterwards.

    Args:
        model: A transformers causal language model or encoder-decoder, plain or with adapters attached.
        tokenizer: Its tokenizer; decodes, and names the end token.
        prompts: Token ids, one sequence a prompt.
        max_new_tokens: Limit on the length of an answer, in tokens.
        batch_size: Prompts that are answered at once.
        beams: Beginnings of an answer that are followed at once; 1 takes the likeliest token at each step.
        end_ids: Tokens that end an answer besides the model's and the tokenizer's own.
        progress: Told whenever answers are finished.

    Returns:
        One answer a prompt, in the order of `prompts`.

    Raises:
        DataError: A prompt is empty, or doesn't fit the model's positions together with `max_new_tokens`.
        ValueError: `max_new_tokens`, `batch_size` or `beams` is below 1.
    """
    own = _token_by_token(model)
    if (
        own is None
        or unsupported_reason(own) is not None
        or not prompts
        or beams != 1
        or min(max_new_tokens, batch_size) < 1
    ):
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
    room = rows * rounded(max(map(len, prompts)) + max_new_tokens)
    with evaluating(model):
        engine = Engine(
            own,
            tokenizer,
            kv_budget_tokens=room,
            max_batch=rows,
            prefix_cache_tokens=room if _begin_alike(prompts) else 0,
            end_ids=end_ids,
            weights="packed" if _size(own) <= _PACKED_UP_TO else "plain",
        )
        # Prompts that begin alike follow one another, so that what they share is still there.
        for place in sorted(range(len(prompts)), key=lambda place: tuple(prompts[place])):
            request = Request(str(place), tuple(prompts[place]), SamplingParams(max_new_tokens))
            engine.submit(request, stream=False)
        return _answers(engine, tokenizer, len(prompts), progress)


def _answers(engine: Engine, tokenizer: Any, count: int, progress: Progress | None) -> list[Generation]:
    tokens: list[list[int]] = [[] for _ in range(count)]
    found: dict[int, Generation] = {}
    while engine.busy:
        before = len(found)
        for output in engine.step():
            place = int(output.request_id)
            if output.token_id is not None:
                tokens[place].append(output.token_id)
            if output.finish_reason is not None:
                stopped = output.finish_reason == "stop"
                kept = tuple(tokens[place][:-1] if stopped else tokens[place])
                text = tokenizer.decode(kept, skip_special_tokens=True)
                found[place] = Generation(kept, text, "stop" if stopped else "length")
        if progress is not None and len(found) > before:
            progress(len(found), count)
    return [found[place] for place in range(count)]


def _token_by_token(model: Any) -> PreTrainedModel | None:
    """The transformers model, if whatever adapters it has act on each token by itself; None for soft prompts."""
    own = model
    if isinstance(model, PeftModel):
        if any(model.peft_config[name].is_prompt_learning for name in model.tuner.active_adapters):
            return None
        own = model.get_base_model()
    return own if isinstance(own, PreTrainedModel) else None


def _size(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _begin_alike(prompts: Sequence[Sequence[int]]) -> bool:
    """Whether any two prompts share a beginning that is worth keeping."""
    first = Counter(key for prompt in prompts for key in block_keys("", None, prompt)[:1])
    return any(count > 1 for count in first.values())
