"""Which requests an engine over an encoder-decoder can ever run."""

from __future__ import annotations

from manytune.engine.kv_cache import row_width
from manytune.engine.limits import RequestLimits
from manytune.engine.request import Request
from manytune.errors import ContextLengthError, RequestError


class EncoderDecoderLimits(RequestLimits):
    """The limits of an encoder's inputs and of a decoder's answers, which have positions and a cache each."""

    def check_source(self, request: Request, tokens: int) -> None:
        """Check what the encoder is to read.

        Args:
            request: The request.
            tokens: Its length, virtual tokens included.

        Raises:
            RequestError: It names a token that the model doesn't know, or wants log probabilities of its prompt.
            ContextLengthError: It is too long.
        """
        self._check_tokens(request)
        if request.params.prompt_logprobs is not None:
            raise RequestError(
                f"request {request.id!r}: an encoder-decoder gives no log probabilities of its prompt, which its "
                "encoder reads at once; leave prompt_logprobs out."
            )
        if self.positions is not None and tokens > self.positions:
            raise ContextLengthError(
                f"request {request.id!r} has {tokens} tokens, but the model's encoder has {self.positions} positions; "
                "shorten the prompt."
            )
        if row_width(tokens) > self.kv_budget_tokens:
            raise ContextLengthError(
                f"request {request.id!r} has {tokens} tokens for the encoder, and the cache of its keys and values has "
                f"{self.kv_budget_tokens}; shorten the prompt, or give the engine a larger kv_budget_tokens."
            )

    def answer_tokens(self, request: Request, *, virtual_tokens: int) -> int:
        """The largest number of tokens that the decoder may have for a request.

        Args:
            request: The request.
            virtual_tokens: Positions that its adapter takes before the answer.

        Raises:
            ContextLengthError: It can't fit.
        """
        new_tokens = request.params.max_new_tokens
        # The answer begins with a token of its own, and its last one isn't read.
        if self.positions is not None and virtual_tokens + new_tokens > self.positions:
            raise ContextLengthError(
                f"request {request.id!r} has {new_tokens} tokens to generate"
                f"{f' after {virtual_tokens} of its adapter' if virtual_tokens else ''}, but the model's decoder has "
                f"{self.positions} positions; lower max_new_tokens."
            )
        tokens = virtual_tokens + 1 + new_tokens
        if row_width(tokens) > self.kv_budget_tokens:
            raise ContextLengthError(
                f"request {request.id!r} needs up to {tokens} tokens of the KV cache for its answer, which has "
                f"{self.kv_budget_tokens}; lower max_new_tokens, or give the engine a larger kv_budget_tokens."
            )
        return tokens
