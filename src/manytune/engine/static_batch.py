"""Generation for a fixed list of prompts in transformers' own static batches, one after another.

Prompts of similar length share a batch. The longest batch comes first, so that one that doesn't fit into memory fails
at once and not after an hour. Results are in the order of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from transformers import GenerationConfig

from manytune.cache_argument import cache_argument
from manytune.engine.base_model import (
    base_of,
    check_lengths,
    device_of,
    end_token_ids,
    evaluation_mode,
    forced_ids,
    has_encoder,
    start_id,
)
from manytune.engine.detokenize import decode
from manytune.engine.padding import left_padded, longest_first, right_padded
from manytune.engine.shared_prompts import prefill_shared

Progress = Callable[[int, int], None]
"""Called with the number of sequences done and the number of all."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One model's answer to one prompt.

    Attributes:
        token_ids: The generated tokens, without the end token.
        text: The same tokens decoded, special tokens too.
        finished: `"stop"` if the model ended the answer itself, `"length"` if it was cut at the limit.
    """

    token_ids: tuple[int, ...]
    text: str
    finished: Literal["stop", "length"]


def generate_batch(
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

    Prompts are left padded to the longest of their batch; a prefix that several of them share is computed once. The
    most likely token is taken at each step whatever the model's `generation_config` says: its sampling settings and
    penalties don't apply, its end tokens and forced tokens do. The model is in evaluation mode meanwhile; its mode and
    its `generation_config` are restored afterwards.

    Args:
        model: A transformers causal language model or encoder-decoder, plain or with adapters.
        tokenizer: Its tokenizer; decodes, and has the end and pad tokens.
        prompts: Token ids, one sequence for each prompt.
        max_new_tokens: Limit on the length of an answer, in tokens.
        batch_size: Prompts in a batch.
        beams: Number of beams; 1 for greedy decoding.
        end_ids: Tokens that end an answer in addition to those of the model and the tokenizer; a chat template may end
            its messages with another one.
        progress: Called after each batch.

    Returns:
        One answer for each prompt, in the order of `prompts`.

    Raises:
        DataError: A prompt is empty, or together with `max_new_tokens` longer than the model's positions.
        ValueError: `max_new_tokens`, `batch_size` or `beams` is below 1.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("beams", beams)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    lengths = [len(prompt) for prompt in prompts]
    check_lengths(model, lengths, new_tokens=max_new_tokens)
    stop_ids = end_token_ids(model, tokenizer) | set(end_ids)
    first, last = forced_ids(model)
    config = GenerationConfig(
        do_sample=False,
        num_beams=beams,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=_pad_id(tokenizer, stop_ids),
        decoder_start_token_id=start_id(model),
        forced_bos_token_id=first,
        forced_eos_token_id=last,
    )
    answers: list[Generation | None] = [None] * len(prompts)
    done = 0
    with evaluation_mode(model), _generation_config(model, config):
        for rows in longest_first(lengths, batch_size):
            generated = _new_tokens(model, [prompts[row] for row in rows], config)
            for row, tokens in zip(rows, generated, strict=True):
                answers[row] = _generation(
                    tokens, stop_ids, tokenizer, forced_at=None if last is None else max_new_tokens - 1
                )
            done += len(rows)
            if progress is not None:
                progress(done, len(prompts))
    return [answer for answer in answers if answer is not None]


def _new_tokens(model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
    """The tokens that follow each prompt of one batch, padded to the longest answer."""
    is_seq2seq, device, pad_id = has_encoder(model), device_of(model), config.pad_token_id
    # The shared prefill has one row for each prompt, and beams need several.
    prefilled = None if is_seq2seq or config.num_beams > 1 else prefill_shared(model, prompts, pad_id=pad_id)
    if prefilled is None:
        input_ids, attention_mask = (right_padded if is_seq2seq else left_padded)(prompts, pad_id)
        cached = {}
    else:
        input_ids, attention_mask = prefilled.input_ids, prefilled.attention_mask
        cached = {cache_argument(base_of(model)) or "past_key_values": prefilled.cache}
    generated = model.generate(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        generation_config=config,
        **cached,
    )
    # The decoder of an encoder-decoder begins with the start token, any other model with the prompt.
    given = 1 if is_seq2seq else input_ids.shape[1]
    new_tokens: list[list[int]] = generated[:, given:].tolist()
    return new_tokens


def _generation(
    tokens: list[int], stop_ids: frozenset[int], tokenizer: Any, *, forced_at: int | None
) -> Generation:
    """Cut a generated row at its first end token; one that is forced at the limit doesn't say that the answer ended."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    kept = tuple(tokens if end is None else tokens[:end])
    return Generation(
        token_ids=kept,
        text=decode(tokenizer, kept, ()),
        finished="length" if end in (None, forced_at) else "stop",
    )


def _pad_id(tokenizer: Any, stop_ids: frozenset[int]) -> int:
    """The pad token; without one any end token serves, since rows are cut at the first end token."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return min(stop_ids, default=0)


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in place of the model's own for the block.

    `generate` fills whatever a given config leaves unset from the model's own, so a base that ships with a repetition
    penalty would not decode greedily.
    """
    base = base_of(model)
    before = base.generation_config
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = before
