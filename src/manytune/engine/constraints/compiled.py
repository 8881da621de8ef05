"""Grammars compiled for a vocabulary, and the matchers of single answers."""

from __future__ import annotations

import random
import re
import time
from collections import OrderedDict
from threading import Lock

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from manytune.engine.constraints.grammar import Grammar
from manytune.engine.constraints.vocabulary import Vocabulary
from manytune.errors import GrammarError

#: What a grammar may cost: to compile, at each token, and in memory. In the worst case that is some tenths of a second,
#: some hundredths and some hundred megabytes; a schema of a thousand properties or values stays well below.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=30_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
_TRIED = 32  # tokens of an answer that is tried before a grammar is accepted
_SLOWEST = 0.1  # seconds of a core for one of them
_MOST_KEPT = 128  # compiled grammars
_KEPT_SIZE = 4 << 20  # characters of their sources

#: What of llguidance's messages is for its developers, and what says it to a user.
_WORDING = (
    (re.compile(r"^(?:at )?\d+\(\d+\): "), ""),
    (re.compile(r"^failed to compile JSON schema: (?:Unsatisfiable schema: )?"), ""),
    (re.compile(r"^NoExtension.*"), "no text fits it"),
    (
        re.compile(r"^oneOf constraints are not supported.*"),
        "the alternatives of a oneOf must exclude one another in a way that can be seen, such as by the const of a "
        "required property; use anyOf",
    ),
    (
        re.compile(
            r"^(?:lexer error: |parser error: |initial lexer|schema too large|.* too many ).*", re.IGNORECASE
        ),
        "it is too large or too complex",
    ),
)


class CompiledGrammar:
    """A grammar for a vocabulary: the constraint of any number of answers.

    Compiling it again costs nothing as long as it is among the last few.

    Args:
        grammar: What an answer looks like.
        vocabulary: The model's tokens.

    Raises:
        GrammarError: The grammar isn't valid, fits no answer, or is too complex.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self._size = vocabulary.size
        self._matcher = LLMatcher(vocabulary.tokens, grammar.source, log_level=0, limits=_LIMITS)
        self._ends = vocabulary.end_ids
        if self._matcher.is_error():
            raise GrammarError(_message(self._matcher.get_error()))
        self._try()

    def start(self) -> GrammarMatcher:
        """A matcher for one answer."""
        return GrammarMatcher(self._matcher.deep_copy(), self._size, self._ends)

    def _try(self) -> None:
        """Generate the beginning of an answer, so that what is too complex for any is refused now."""
        draw, matcher = random.Random(0), self.start()  # noqa: S311  # no secret
        for _ in range(_TRIED):
            begun = time.thread_time()
            allowed = matcher.allowed()
            if time.thread_time() - begun > _SLOWEST:
                raise GrammarError("it takes too long to match; make it simpler.")
            tokens = np.flatnonzero(allowed.numpy())
            if matcher.error:
                raise GrammarError(_message(matcher.error))
            if not len(tokens):
                if matcher.may_end:
                    return
                raise GrammarError("no text that this model's tokens can write fits it.")
            matcher.accept(int(draw.choice(tokens)))
            if matcher.must_end:
                return


class GrammarMatcher:
    """One answer under a grammar; `engine/constraint.py` describes the methods.

    Args:
        matcher: At the beginning.
        size: Number of tokens that the model knows.
        ends: Tokens that end answers.
    """

    def __init__(self, matcher: LLMatcher, size: int, ends: list[int]) -> None:
        self._matcher = matcher
        self._size = size
        self._ends = ends

    def allowed(self) -> Tensor:
        """Which tokens may come next, (vocabulary,), bool; end tokens aren't among them."""
        if self._matcher.is_stopped():
            return torch.from_numpy(np.zeros(self._size, np.bool_))
        # By numpy, as torch would take threads of its own for this, next to those of the model.
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
        mask[self._ends if not self._matcher.is_error() else slice(None)] = False
        return torch.from_numpy(mask)

    def accept(self, token: int) -> None:
        """Append a token that was allowed."""
        self._matcher.consume_token(token)

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is complete."""
        return not self._matcher.is_error() and self._matcher.is_accepting()

    @property
    def must_end(self) -> bool:
        """Whether it is complete, and nothing can follow."""
        return self.may_end and self._matcher.is_stopped()

    @property
    def error(self) -> str:
        """Why no token is allowed any more; empty if the grammar isn't too complex."""
        return str(self._matcher.get_error())


class GrammarCache:
    """Compiles grammars for one vocabulary, and keeps those that were used last. Several threads may use it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._known: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def find(self, grammar: Grammar) -> CompiledGrammar | None:
        """A grammar that was compiled before; None if it isn't kept."""
        with self._lock:
            found = self._known.get(grammar.source)
            if found is not None:
                self._known.move_to_end(grammar.source)
            return found

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar, unless it is kept.

        Raises:
            GrammarError: It isn't valid, fits no answer, or is too complex.
        """
        found = self.find(grammar)
        if found is None:
            found = CompiledGrammar(grammar, self.vocabulary)
            with self._lock:
                self._size += len(grammar.source) * (grammar.source not in self._known)
                self._known[grammar.source] = found
                while len(self._known) > 1 and (len(self._known) > _MOST_KEPT or self._size > _KEPT_SIZE):
                    self._size -= len(self._known.popitem(last=False)[0])
        return found


def _message(error: str) -> str:
    """Llguidance's message in one sentence."""
    text = error.partition("\n")[0].strip().rstrip(".")
    for pattern, wording in _WORDING:
        text = pattern.sub(wording, text)
    detail = re.search(r"^error: (.*)$", error, re.MULTILINE)
    return f"{text[:200]}{f' ({detail[1]})' if detail else ''}."
