"""Generation and likelihoods for a fixed list of prompts, one static batch after another.

The way to score a test set: every prompt is known beforehand, so prompts of like length share a batch and
nothing is scheduled. Both functions take the longest batch first, so that a batch that doesn't fit in
memory fails at once and not after an hour, and both return their results in the order of the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional as F
from transformers import GenerationConfig

from manytune.engine.shared_prompts import prefill_shared
from manytune.errors import DataError

Progress = Callable[[int, int], None]
"""Called after each batch with the number of sequences done and the number of all."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One model's answer to one prompt.

    Attributes:
        token_ids: The generated tokens, without the end token.
        text: The same tokens decoded, special tokens left out.
        finished: `"stop"` if the model ended the answer itself, `"length"` if it was cut at the limit.
    """

    token_ids: tuple[int, ...]
    text: str
    finished: Literal["stop", "length"]


class PromptAndCompletion(Protocol):
    """What `completion_nll` needs of a sequence; `manytune.data.Encoded` has it."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens that are given."""

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """Tokens that are scored, the end token among them."""


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

    Prompts are left padded to the longest of their batch; what several of them begin with is read once. The
    most likely token is taken at each step whatever the model's own `generation_config` says: its sampling
    settings and penalties don't apply, its end tokens do. The model is in evaluation mode meanwhile; its mode
    and its `generation_config` are as before afterwards.

    Args:
        model: A transformers causal language model or encoder-decoder, plain or with adapters.
        tokenizer: Its tokenizer; decodes, and names the end and pad tokens.
        prompts: Token ids, one sequence a prompt.
        max_new_tokens: Limit on the length of an answer, in tokens.
        batch_size: Prompts to a batch.
        beams: Beginnings of an answer that are followed at once; 1 takes the likeliest token at each step.
        end_ids: Tokens that end an answer besides the model's and the tokenizer's own; a chat template may end
            its messages with another one.
        progress: Told of each finished batch.

    Returns:
        One answer a prompt, in the order of `prompts`.

    Raises:
        DataError: A prompt is empty, or doesn't fit the model's positions together with `max_new_tokens`.
        ValueError: `max_new_tokens`, `batch_size` or `beams` is below 1.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("beams", beams)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    check_lengths(model, [len(prompt) for prompt in prompts], new_tokens=max_new_tokens)
    stop_ids = end_token_ids(model, tokenizer) | set(end_ids)
    pad_id = _pad_id(tokenizer, stop_ids)
    config = GenerationConfig(
        do_sample=False,
        num_beams=beams,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
        decoder_start_token_id=_start_id(model),
    )
    answers: list[Generation | None] = [None] * len(prompts)
    device = _device(model)
    has_encoder = _has_encoder(model)
    done = 0
    with evaluating(model), _generation_config(model, config):
        for rows in _longest_first([len(prompt) for prompt in prompts], batch_size):
            batch = [prompts[row] for row in rows]
            # What was read before has one row a prompt, and beams need several.
            begun = None if has_encoder or beams > 1 else prefill_shared(model, batch, pad_id=pad_id)
            if begun is None:
                input_ids, attention_mask = (_right_padded if has_encoder else _left_padded)(batch, pad_id)
                cached = {}
            else:
                input_ids, attention_mask = begun.input_ids, begun.attention_mask
                cached = {"past_key_values": begun.cache}
            generated = model.generate(
                input_ids=input_ids.to(device),
                attention_mask=attention_mask.to(device),
                generation_config=config,
                **cached,
            )
            # A decoder of its own begins with the start token, any other one with the prompt.
            given = 1 if has_encoder else input_ids.shape[1]
            new_tokens = generated[:, given:].tolist()  # (B, new)
            for row, tokens in zip(rows, new_tokens, strict=True):
                answers[row] = _generation(tokens, stop_ids, tokenizer)
            done += len(rows)
            if progress is not None:
                progress(done, len(prompts))
    return [answer for answer in answers if answer is not None]


def completion_nll(
    model: Any,
    sequences: Sequence[PromptAndCompletion],
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """Negative log likelihood of each completion given its prompt.

    For a completion `c` of `n` tokens this is `-sum_t log p(c_t | prompt, c_<t)`, in nats, from a
    log-softmax in float32. Sequences are left padded, so that the completions of a batch share the last
    columns and the language model's head runs on those only, where the model's `forward` accepts
    `logits_to_keep`.

    Args:
        model: A transformers causal language model or encoder-decoder, plain or with adapters.
        sequences: Prompts and completions as token ids.
        batch_size: Sequences to a batch.
        progress: Told of each finished batch.

    Returns:
        For each sequence, in order, the sum over its completion's tokens and their number.

    Raises:
        DataError: A prompt or a completion is empty, or a sequence doesn't fit the model's positions.
        ValueError: `batch_size` is below 1.
    """
    for index, sequence in enumerate(sequences):
        if not sequence.completion_ids:
            raise DataError(f"sequence {index} has no completion tokens, so there is nothing to score")
    check_lengths(model, [len(sequence.prompt_ids) for sequence in sequences], new_tokens=0)
    encoder = _has_encoder(model)
    both = max if encoder else sum  # an encoder's positions are its own
    lengths = [both((len(one.prompt_ids), len(one.completion_ids))) for one in sequences]
    check_lengths(model, lengths, new_tokens=0)
    results: list[tuple[float, int]] = [(0.0, 0)] * len(sequences)
    done = 0
    with torch.no_grad(), evaluating(model):
        for rows in _longest_first(lengths, batch_size):
            batch = [sequences[row] for row in rows]
            found = _seq2seq_nll(model, batch) if encoder else _batch_nll(model, batch)
            for row, nll, sequence in zip(rows, found, batch, strict=True):
                results[row] = (nll, len(sequence.completion_ids))
            done += len(rows)
            if progress is not None:
                progress(done, len(sequences))
    return results


def _batch_nll(model: Any, batch: Sequence[PromptAndCompletion]) -> list[float]:
    """Sums of the completions' negative log likelihoods of one left-padded batch."""
    device = _device(model)
    # A pad token never reaches a result: its column is masked, and no target stands in it. So any id will do.
    input_ids, attention_mask = _left_padded([(*item.prompt_ids, *item.completion_ids) for item in batch], 0)
    longest = max(len(item.completion_ids) for item in batch)
    targets = torch.full((len(batch), longest), -100)  # (B, longest), completions at the right
    for row, item in enumerate(batch):
        targets[row, longest - len(item.completion_ids) :] = torch.tensor(item.completion_ids)

    accepted = inspect.signature(_innermost(model).forward).parameters
    inputs: dict[str, Any] = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    if "position_ids" in accepted:
        # Learned positions (GPT-2) must count from the first real token, not from the padding.
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = longest + 1
    logits = model(**inputs, use_cache=False).logits[:, -(longest + 1) : -1]  # (B, longest, V)
    return _row_sums(logits, targets)


def _seq2seq_nll(model: Any, batch: Sequence[PromptAndCompletion]) -> list[float]:
    """The same for an encoder-decoder: the encoder reads the prompts, the decoder is scored."""
    device = _device(model)
    input_ids, attention_mask = _right_padded([item.prompt_ids for item in batch], 0)
    start = _start_id(model)
    assert start is not None  # every encoder-decoder that transformers generates with has one
    targets, _ = _right_padded([item.completion_ids for item in batch], -100)  # (B, longest)
    decoder_input_ids, _ = _right_padded([(start, *item.completion_ids[:-1]) for item in batch], 0)
    logits = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        decoder_input_ids=decoder_input_ids.to(device),
        use_cache=False,
    ).logits[:, -targets.shape[1] :]  # (B, longest, V)
    return _row_sums(logits, targets)


def _row_sums(logits: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Each row's negative log likelihood of its targets; -100 is none."""
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.to(logits.device).flatten(), reduction="none", ignore_index=-100
    )
    sums = losses.view(targets.shape).cpu().double().sum(dim=1)
    return [float(value) for value in sums]


def _longest_first(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, the longest first."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _left_padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both `(B, T)`, with the sequences at the right."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_id)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        input_ids[row, width - len(sequence) :] = torch.tensor(sequence)
        attention_mask[row, width - len(sequence) :] = 1
    return input_ids, attention_mask


def _right_padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with the sequences at the left, as encoders with learned positions (BART) need them."""
    input_ids, attention_mask = _left_padded([sequence[::-1] for sequence in sequences], pad_id)
    return input_ids.flip(1), attention_mask.flip(1)


def _generation(tokens: list[int], stop_ids: frozenset[int], tokenizer: Any) -> Generation:
    """Cut a generated row at its first end token."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    kept = tuple(tokens if end is None else tokens[:end])
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Generation(token_ids=kept, text=text, finished="length" if end is None else "stop")


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the model's own (perhaps several) and the tokenizer's."""
    inner = _innermost(model)
    configs = (getattr(inner, "generation_config", None), inner.config)
    ids = [getattr(config, "eos_token_id", None) for config in configs] + [tokenizer.eos_token_id]
    found: set[int] = set()
    for value in ids:
        if value is not None:
            found.update([value] if isinstance(value, int) else value)
    return frozenset(found)


def _pad_id(tokenizer: Any, stop_ids: frozenset[int]) -> int:
    """The pad token; without one any end token serves, since rows are cut at the first end token."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return min(stop_ids, default=0)


def check_lengths(model: Any, lengths: Sequence[int], *, new_tokens: int) -> None:
    """Refuse empty prompts and sequences that run past the model's last position."""
    limit = getattr(_innermost(model).config, "max_position_embeddings", None)
    both = max if _has_encoder(model) else sum  # an encoder's positions are its own
    for index, length in enumerate(lengths):
        if length == 0:
            raise DataError(f"prompt {index} has no tokens; a model needs at least one to continue from")
        if limit is not None and both((length, new_tokens)) > limit:
            wanted = f"{length} tokens" + (f" and {new_tokens} to generate" if new_tokens else "")
            raise DataError(
                f"sequence {index} has {wanted}, but the model has {limit} positions; "
                "shorten the prompt (max_length with overflow truncate_prompt)"
                + (" or lower max_new_tokens" if new_tokens else "")
            )


def _has_encoder(model: Any) -> bool:
    """Whether the model is an encoder-decoder."""
    return bool(_innermost(model).config.is_encoder_decoder)


def _start_id(model: Any) -> int | None:
    """The token that an encoder-decoder's answers begin with; None for other models."""
    start: int | None = _innermost(model).config.decoder_start_token_id if _has_encoder(model) else None
    return start


def _innermost(model: Any) -> Any:
    """The transformers model inside a model with adapters, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def _device(model: Any) -> torch.device:
    """Where the inputs go: the device of the first parameter."""
    device: torch.device = next(model.parameters()).device
    return device


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for the block; each module gets its own mode back, as some may stay in `eval`."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in place of the model's own for the block.

    `generate` fills whatever a given config leaves unset from the model's own, so a base that ships with a
    repetition penalty would not decode greedily.
    """
    inner = _innermost(model)
    before = inner.generation_config
    inner.generation_config = config
    try:
        yield
    finally:
        inner.generation_config = before
