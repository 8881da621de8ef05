"""How much memory running an adapter takes, from the shapes of its terms, and how much one may take.

An adapter's file says little about that: in slots all layers have the largest of its ranks, rounded up to a power of
two, and a step computes as many numbers as that for each token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manytune.errors import OversizedAdapterError
from manytune.free_memory import free_memory
from manytune.methods.tuners.terms import Terms
from manytune.mixed.factors import outline_of
from manytune.mixed.parameters import held_bytes
from manytune.mixed.shapes import divided

#: Tokens of a step that nothing else limits.
_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class AdapterLimit:
    """What one adapter may take.

    Attributes:
        nbytes: Bytes that it may take while it runs; None for no limit.
        tokens: Of the largest step.
        virtual_tokens: Positions that it may take before a prompt; None for no limit.
    """

    nbytes: int | None
    tokens: int = _TOKENS
    virtual_tokens: int | None = None

    def check(self, terms: Terms, dtype: torch.dtype) -> None:
        """Refuse an adapter that would take more.

        Args:
            terms: Its terms.
            dtype: In which they are computed.

        Raises:
            OversizedAdapterError: It would.
        """
        if self.virtual_tokens is not None and terms.virtual_tokens > self.virtual_tokens:
            raise OversizedAdapterError(
                f"the adapter takes {terms.virtual_tokens:,} positions before every prompt; the model and the cache of "
                f"keys and values have room for at most {self.virtual_tokens:,}. Train one with fewer virtual tokens."
            )
        needed = running_bytes(terms, dtype, tokens=self.tokens)
        if self.nbytes is not None and needed > self.nbytes:
            ranks = [update.rank for update in terms.updates.values() if update.down is not None]
            of_rank = f", of which the largest rank is {max(ranks):,}" if ranks else ""
            raise OversizedAdapterError(
                f"running the adapter takes up to {_mib(needed)}{of_rank}; one adapter may take {_mib(self.nbytes)}. "
                "Train one of a smaller rank, or on fewer layers, or allow more (--adapter-limit, or adapter_bytes of "
                "the engine's options)."
            )


def running_bytes(terms: Terms, dtype: torch.dtype, *, tokens: int) -> int:
    """Memory that an adapter takes while it runs: in slots, while it is put there, and in a step.

    Args:
        terms: Its terms.
        dtype: In which they are computed.
        tokens: Of the largest step.
    """
    shapes = list(divided(terms, dtype))
    outline = outline_of(terms.factors, dtype)
    slots = sum(shape.slot_bytes for shape in shapes)
    copies = max((shape.slot_bytes for shape in shapes), default=0)
    in_step = tokens * max((shape.bytes_for_token for shape in shapes), default=0)
    factors = 0 if outline is None else 2 * outline.slot_bytes  # one slot is for tokens without
    parameters = sum(held_bytes(update, dtype) for update in terms.parameters.values())
    experts = tokens * max((update.rank for update in terms.parameters.values()), default=0) * dtype.itemsize
    soft = sum(2 * part.numel() for part in (terms.prefix, terms.embeddings) if part is not None)
    return slots + copies + max(in_step, experts) + factors + parameters + soft * dtype.itemsize


def bytes_for_one(device: torch.device) -> int | None:
    """What one adapter may take where nobody says: half of the memory that is free now; None if that isn't known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    free = free_memory()
    return None if free is None else free // 2


def _mib(number: int) -> str:
    return f"{number / (1 << 20):,.0f} MiB"
