"""Compiling clients' grammars: one at a time, in a thread of its own, within a time."""

from __future__ import annotations

import asyncio
import copy
import threading
from concurrent.futures import ThreadPoolExecutor

from manytune.engine.base_model import end_token_ids
from manytune.engine.constraint import Constraint
from manytune.engine.constraints.compiled import CompiledGrammar, GrammarCache
from manytune.engine.constraints.grammar import Grammar
from manytune.engine.constraints.vocabulary import Vocabulary
from manytune.errors import GrammarError
from manytune.server.http_errors import HttpError
from manytune.store.base import Base

_SECONDS = 15.0  # compiling takes a second at most, but others may wait before it
_MOST_WAITING = 32


class Grammars:
    """Compiles grammars for a base's vocabulary, which is read when the first one comes.

    Args:
        base: The base. Its tokenizer is copied, as the engine decodes with the original in another thread.
        end_ids: Tokens that end an answer in addition to those of the model and the tokenizer.
    """

    def __init__(self, base: Base, end_ids: tuple[int, ...]) -> None:
        self._base = base
        self._end_ids = end_ids
        self._cache: GrammarCache | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._waiting = 0  # used by the event loop only

    async def compile(self, grammar: Grammar, param: str) -> Constraint:
        """Compile a grammar.

        Args:
            grammar: The grammar.
            param: The field of the request that it comes from.

        Raises:
            HttpError: It isn't valid or too complex, or too many wait.
        """
        known = None if self._cache is None else self._cache.find(grammar)
        if known is not None:
            return known
        if self._waiting >= _MOST_WAITING:
            raise _too_busy(param)
        begun = threading.Event()
        self._waiting += 1
        try:
            running = self._thread.submit(self._compile, grammar, begun)
            return await asyncio.wait_for(asyncio.wrap_future(running), _SECONDS)
        except TimeoutError:
            if not begun.is_set():
                raise _too_busy(param) from None
            raise _refused("it takes too long to compile; make it simpler.", param) from None
        except GrammarError as error:
            raise _refused(str(error), param) from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Compile no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar, begun: threading.Event) -> CompiledGrammar:
        begun.set()
        if self._cache is None:
            base = self._base
            ends = end_token_ids(base.model, base.tokenizer) | frozenset(self._end_ids)
            size = base.model.config.get_text_config().vocab_size
            self._cache = GrammarCache(Vocabulary(copy.deepcopy(base.tokenizer), size, ends))
        return self._cache.compile(grammar)


def _refused(reason: str, param: str) -> HttpError:
    return HttpError(400, f"{param}: {reason}", code="invalid_value", param=param)


def _too_busy(param: str) -> HttpError:
    return HttpError(
        429,
        f"{param}: the server is compiling other grammars; try again shortly.",
        code="queue_full",
        param=param,
        retry_after=1,
    )
