"""Text of users and of rows stays text: no special token comes of it, whatever it spells.

Where such text spells a special token, `as_text` puts a mark into the name. Chat templates pass it on like any other
character, so that a name with a mark is text, and a name without one was written by the template. `ids` has the
tokenizer read the mark as a token of its own, so nothing on its two sides becomes one token, and leaves it out. Text
that spells no special token has no mark and the tokens that it always had.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from manytune.data.conversation.conversation import Message, ToolCall
from manytune.data.conversation.generation_marks import Spans
from manytune.data.templates import Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MARK = "\ufdd0"
"""A noncharacter, which Unicode keeps for programs' own use. A text's own becomes U+FFFD."""
_REPLACEMENT = "\ufffd"


class SpecialTokens:
    """A tokenizer's special tokens, and text in which their names are text.

    Tokens that aren't special count as such if the chat template writes them, as Qwen's `<tool_call>`. A name of a
    single character can't be cut, and isn't among them.

    Args:
        tokenizer: The tokenizer.
        chat_template: What renders prompts; None without one.
        in_text: Whether names in text are tokens after all.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        *,
        in_text: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._in_text = in_text
        self._template = chat_template or ""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend: Tokenizer | None = backend
        self._normalizer = None if backend is None else backend.normalizer

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The texts that the tokenizer reads as one special token each."""
        return frozenset(
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if len(token.content.strip()) > 1 and (token.special or token.content in self._template)
        )

    def prepare(self) -> None:
        """Make the copy that reads marks, which takes a second for a tokenizer of 150,000 tokens."""
        if self._backend is not None:
            _with_mark(self._backend, self._backend.get_vocab_size())

    def spelled_by(self, messages: Iterable[Message]) -> str | None:
        """Return the first special token that messages spell, outside of what a template wrote; None for none."""
        found = (self._all.positions(one.text, one.written) for one in messages)
        return next((names[0][1] for names in found if names), None)

    def as_text(self, text: str, *, written: Spans = (), names: Collection[str] | None = None) -> str:
        """Return a text with a mark in each special token's name.

        Args:
            text: The text.
            written: Ranges of it that a template's author wrote, in which names are tokens.
            names: The special tokens; None for all.
        """
        text = text.replace(MARK, _REPLACEMENT) if MARK in text else text
        if self._in_text or not text:
            return text
        pattern = self._all if names is None else _named(frozenset(names))
        cuts = sorted({cut for cut, _ in pattern.positions(text, written)})
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return MARK.join(MARK.join(part) if self._hides_a_name(part, pattern) else part for part in parts)

    def given(self, messages: Sequence[Message], marks: Collection[str]) -> tuple[Message, ...]:
        """Return messages that are given, as text; in the assistant's, names of other tokens than `marks` are tokens.

        An adapter may have learned to write special tokens of its own, and reads what it wrote as it learned it.

        Args:
            messages: In order.
            marks: The tokens in which the chat template writes turns.
        """
        return tuple(self._given(message, marks if message.is_answer else None) for message in messages)

    def learned(self, answer: Message) -> Message:
        """Return an answer to learn: its author decides which special tokens are in its text, not in its calls."""
        return self._given(answer, ())

    def of_json(self, value: Any) -> Any:
        """Return a JSON value with its texts and keys as text."""
        if isinstance(value, str):
            return self.as_text(value)
        if isinstance(value, Mapping):
            return {self.of_json(key): self.of_json(one) for key, one in value.items()}
        return [*map(self.of_json, value)] if isinstance(value, list | tuple) else value

    def ids(self, *texts: str, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Return the token ids of a text, or of a pair, in which `as_text` put marks.

        Args:
            texts: One or two.
            add_special_tokens: Whether the tokenizer puts its own around them.
        """
        found: tuple[int, ...] = self.encoded(*texts, add_special_tokens=add_special_tokens)["input_ids"]
        return found

    def encoded(
        self, *texts: str, add_special_tokens: bool, longest: int | None = None, places: bool = False
    ) -> dict[str, Any]:
        """Return `input_ids`, and `token_type_ids` and `offset_mapping` where there are any, as tuples.

        Args:
            texts: One or two.
            add_special_tokens: Whether the tokenizer puts its own around them.
            longest: The most tokens; longer texts are cut at the end. Marks count in it.
            places: Whether to return the range of characters of each token.
        """
        if any(MARK in text for text in texts):
            if self._backend is None:
                return {"input_ids": self._piece_by_piece(texts, add_special_tokens, longest)}
            return self._without_marks(self._backend, texts, add_special_tokens, longest)
        # verbose=False: limits are checked elsewhere, and the tokenizer's warning would only repeat it.
        found = self._tokenizer(
            *texts,
            add_special_tokens=add_special_tokens,
            truncation=longest is not None,
            max_length=longest,
            return_offsets_mapping=places,
            verbose=False,
        )
        return {name: tuple(values) for name, values in found.items()}

    def _given(self, message: Message, names: Collection[str] | None) -> Message:
        def as_text(text: str | None) -> str | None:
            return None if text is None else self.as_text(text, names=names)

        def call(one: ToolCall) -> ToolCall:
            arguments = json.loads(one.arguments)
            text = self.of_json(arguments)
            return replace(
                one,
                name=self.as_text(one.name),
                arguments=one.arguments if text == arguments else json.dumps(text, ensure_ascii=False),
                id=None if one.id is None else self.as_text(one.id),
            )

        return replace(
            message,
            text=self.as_text(message.text, written=message.written, names=names),
            reasoning=as_text(message.reasoning),
            name=None if message.name is None else self.as_text(message.name),
            tool_calls=tuple(map(call, message.tool_calls)),
            tool_call_id=None if message.tool_call_id is None else self.as_text(message.tool_call_id),
            written=(),
        )

    def _hides_a_name(self, text: str, pattern: _Names) -> bool:
        """Whether the tokenizer's normalizer makes names of a text, as of letters of full width."""
        if self._normalizer is None:
            return False
        return len(pattern.positions(self._normalizer.normalize_str(text), ())) > len(
            pattern.positions(text, ())
        )

    @functools.cached_property
    def _all(self) -> _Names:
        return _named(self.names)

    def _without_marks(
        self, backend: Tokenizer, texts: Sequence[str], add_special_tokens: bool, longest: int | None
    ) -> dict[str, Any]:
        copied = _with_mark(backend, backend.get_vocab_size())
        copied.encode_special_tokens = backend.encode_special_tokens
        if longest is None:
            copied.no_truncation()
        else:
            copied.enable_truncation(longest, direction=self._tokenizer.truncation_side)
        second = texts[1] if len(texts) > 1 else None
        found = copied.encode(texts[0], second, add_special_tokens=add_special_tokens)
        mark = copied.token_to_id(MARK)
        kept = [place for place, token in enumerate(found.ids) if token != mark]
        lists: dict[str, Sequence[Any]] = {"input_ids": found.ids, "offset_mapping": found.offsets}
        if "token_type_ids" in self._tokenizer.model_input_names:
            lists["token_type_ids"] = found.type_ids
        return {name: tuple(values[place] for place in kept) for name, values in lists.items()}

    def _piece_by_piece(
        self, texts: Sequence[str], add_special_tokens: bool, longest: int | None
    ) -> tuple[int, ...]:
        """For tokenizers in Python, which have no copy with a mark."""
        ids = [
            [
                token
                for piece in text.split(MARK)
                for token in self._tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            ]
            for text in texts
        ]
        if add_special_tokens:
            return tuple(self._tokenizer.build_inputs_with_special_tokens(*ids)[:longest])
        return tuple(token for one in ids for token in one)[:longest]


@functools.lru_cache(maxsize=4)
def _with_mark(backend: Tokenizer, vocab_size: int) -> Tokenizer:
    """A copy of a tokenizer, which has so many tokens by now, with the mark as another one."""
    from tokenizers import AddedToken, Tokenizer

    copied = Tokenizer.from_str(backend.to_str())
    copied.no_padding()
    copied.add_tokens([AddedToken(MARK, normalized=False)])
    return copied


@dataclass(frozen=True, slots=True)
class Spelled:
    """Prompts that spell special tokens.

    Attributes:
        rows: How many.
        where: The first one's place.
        name: What it spells.
    """

    rows: int
    where: str
    name: str


def spelled_in(examples: Iterable[Example], of: Callable[[Example], str | None]) -> Spelled | None:
    """Return which examples spell a special token in their prompts; None if none does.

    Args:
        examples: The examples.
        of: What an example spells.
    """
    found = [(example, name) for example in examples if (name := of(example)) is not None]
    return Spelled(len(found), found[0][0].where, found[0][1]) if found else None


class _Names:
    """Finds names in texts."""

    def __init__(self, names: frozenset[str]) -> None:
        self._by_beginning: dict[str, list[str]] = {}
        for name in sorted(names, key=len, reverse=True):
            self._by_beginning.setdefault(name[:2], []).append(name)
        self._beginning = re.compile(f"(?=({'|'.join(map(re.escape, self._by_beginning))}))")

    def positions(self, text: str, written: Spans) -> list[tuple[int, str]]:
        """Return where to cut each name that isn't in one of the ranges `written`, and the name."""
        if not any(beginning in text for beginning in self._by_beginning):
            return []
        found = []
        for match in self._beginning.finditer(text):
            start = match.start()
            name = next((one for one in self._by_beginning[match[1]] if text.startswith(one, start)), None)
            own = next((span for span in written if span[0] <= start < span[1]), None)
            if name is not None and own is None:
                found.append((start + 1, name))
            elif name is not None and own is not None and start + len(name) > own[1]:
                found.append((own[1], name))
        return found


@functools.lru_cache(maxsize=64)
def _named(names: frozenset[str]) -> _Names:
    return _Names(names)
