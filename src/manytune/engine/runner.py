"""One forward of a transformers decoder over tokens of many sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.engine import attention
from manytune.engine.attention import AttentionStep, Stretch
from manytune.engine.kv_cache import KVCache
from manytune.mixed.layers import Forward, MixedLayers
from manytune.mixed.owners import Owners
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import Snapshot, digest_of


@dataclass(frozen=True)
class NextToken:
    """A sequence that decodes: its last token, which the forward reads."""

    sequence: str
    token: int
    adapter: Snapshot | None


@dataclass(frozen=True)
class PromptPiece:
    """A stretch of a prompt.

    Attributes:
        sequence: Whose.
        tokens: Its token ids.
        adapter: The adapter that reads it.
        embeddings: Virtual tokens before them, (tokens, hidden), or None.
        wants_logits: Whether the prompt ends with it, so that a token has to be chosen.
    """

    sequence: str
    tokens: tuple[int, ...]
    adapter: Snapshot | None
    embeddings: Tensor | None
    wants_logits: bool


class Runner:
    """Runs a base with adapters; the model is untouched between forwards.

    Args:
        model: The base, in evaluation mode.
        cache: Keys and values.
        slots: The adapters.
        weights: Forwards of the linear layers to use in place of their own, by path.
    """

    def __init__(
        self, model: PreTrainedModel, cache: KVCache, slots: AdapterSlots, weights: Mapping[str, Forward]
    ) -> None:
        self._model = model
        self._cache = cache
        self._slots = slots
        self._layers = MixedLayers(dict(model.named_modules()), weights)
        self._device = model.device

    @torch.inference_mode()
    def forward(self, decode: Sequence[NextToken], pieces: Sequence[PromptPiece]) -> Tensor:
        """Read tokens, and write their keys and values.

        Args:
            decode: The sequences that decode, in the order of the cache's rows, all of them.
            pieces: Stretches of prompts.

        Returns:
            Logits, (sequences that a token is to be chosen for, vocabulary): those that decode, then the pieces that
            want them.
        """
        cache = self._cache
        lengths = [cache.length(one.sequence) for one in decode]
        tokens = [one.token for one in decode]
        rows = list(range(len(decode)))
        positions = list(lengths)
        keep = list(rows)
        stretches, spans = [], []
        virtual: list[tuple[int, Tensor]] = []
        for piece in pieces:
            first = len(tokens)
            ahead = 0 if piece.embeddings is None else piece.embeddings.shape[0]
            if piece.embeddings is not None:
                virtual.append((first, piece.embeddings))
            count, start, row = (
                ahead + len(piece.tokens),
                cache.length(piece.sequence),
                cache.row(piece.sequence),
            )
            tokens.extend(chain([0] * ahead, piece.tokens))
            rows.extend([row] * count)
            positions.extend(range(start, start + count))
            stretches.append(Stretch(row, first, start, count))
            spans.append((digest_of(piece.adapter), slice(first, first + count)))
            if piece.wants_logits:
                keep.append(first + count - 1)
        # One transfer for what every layer needs.
        index = torch.tensor([tokens, rows, positions], device=self._device)  # (3, T)
        step = AttentionStep(
            cache,
            index[1],
            index[2],
            len(decode),
            max(lengths, default=0) + 1,
            tuple(stretches),
            guarded=any(one.adapter is not None for one in decode)
            or any(piece.adapter is not None for piece in pieces),
        )
        wanted = len(keep)
        # The head always reads a token, if only to drop what it says.
        read = None if wanted == len(tokens) else tuple(keep or [0])
        kept = 0 if read is None else torch.tensor(read, device=self._device)
        owners = Owners(tuple(digest_of(one.adapter) for one in decode), tuple(spans), read)
        terms = self._slots.choose(owners)
        config = self._model.config
        before = config._attn_implementation
        self._model.set_attn_implementation(attention.NAME)
        try:
            with self._layers.applied(terms):
                inputs: dict[str, Tensor] = {"input_ids": index[:1]}
                if virtual:
                    embeddings = self._model.get_input_embeddings()(index[:1])
                    for first, values in virtual:
                        embeddings[0, first : first + values.shape[0]] = values.to(embeddings.dtype)
                    inputs = {"inputs_embeds": embeddings}
                logits: Tensor = self._model(
                    **inputs,
                    position_ids=index[2:],
                    logits_to_keep=kept,
                    use_cache=False,
                    manytune_step=step,
                ).logits[0]
        finally:
            self._model.set_attn_implementation(before)
            self._slots.end_forward()
        for one in decode:
            cache.extend(one.sequence, 1)
        for piece, stretch in zip(pieces, stretches, strict=True):
            cache.extend(piece.sequence, stretch.count)
        return logits[:wanted]
