"""Which requests an engine can ever run."""

from __future__ import annotations

from dataclasses import dataclass

from manytune.engine.kv_cache import row_width
from manytune.engine.request import Request
from manytune.errors import ContextLengthError, RequestError


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """The limits of a model and of an engine's KV cache.

    Attributes:
        vocabulary: Number of tokens that the model knows.
        positions: Length of the longest sequence that the model takes; None for no limit.
        kv_budget_tokens: Capacity of the KV cache.
    """

    vocabulary: int
    positions: int | None
    kv_budget_tokens: int

    def max_tokens(self, request: Request, *, virtual_tokens: int) -> int:
        """The largest number of tokens that a request may have, its answer included.

        Args:
            request: The request.
            virtual_tokens: Positions that its adapter takes before the prompt.

        Raises:
            RequestError: It names a token that the model doesn't know.
            ContextLengthError: It can't fit, even if it were the only request.
        """
        self._check_tokens(request)
        prompt_tokens = virtual_tokens + len(request.prompt_ids)
        max_tokens = prompt_tokens + request.params.max_new_tokens
        if self.positions is not None and max_tokens > self.positions:
            raise ContextLengthError(
                f"request {request.id!r} has {prompt_tokens} tokens and {request.params.max_new_tokens} to generate, "
                f"but the model has {self.positions} positions; shorten the prompt or lower max_new_tokens."
            )
        if row_width(max_tokens) > self.kv_budget_tokens:
            raise ContextLengthError(
                f"request {request.id!r} needs up to {max_tokens} tokens of the KV cache, which has "
                f"{self.kv_budget_tokens}; shorten it, or give the engine a larger kv_budget_tokens."
            )
        return max_tokens

    def _check_tokens(self, request: Request) -> None:
        for field, ids in (
            ("prompt_ids", request.prompt_ids),
            ("logit_bias", request.params.logit_bias),
            ("stop_token_ids", request.params.stop_token_ids),
        ):
            unknown = next((token for token in ids if not 0 <= token < self.vocabulary), None)
            if unknown is not None:
                raise RequestError(
                    f"request {request.id!r}: {field} contains token {unknown}, and the model has {self.vocabulary} "
                    "tokens."
                )
