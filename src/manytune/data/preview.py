"""The exact text that a model sees, with the parts that bear the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from manytune.data.conversation.tools_as_text import call_as_text
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.records import Located, Rejected
from manytune.data.templates import Example


@dataclass(frozen=True)
class Part:
    """A stretch of a sequence.

    Args:
        text: What it says; special tokens and all, if there is a tokenizer.
        learned: Whether it bears the loss.
        tokens: Its length, an end token included; `None` without a tokenizer.
    """

    text: str
    learned: bool
    tokens: int | None = None


@dataclass(frozen=True)
class Preview(Located):
    """One sequence as the model sees it.

    Args:
        source: The file or dataset.
        row: Its line or record number, from 1.
        parts: The sequence from its beginning to its end.
        truncated: Whether it was shortened to the length limit.
    """

    source: str
    row: int
    parts: tuple[Part, ...]
    truncated: bool = False

    def tokens(self, *, learned: bool) -> int | None:
        """How many tokens bear the loss, or don't; None without a tokenizer."""
        counts = [part.tokens for part in self.parts if part.learned is learned]
        return sum(count or 0 for count in counts) if None not in counts else None


def preview(example: Example, encoder: Encoder | None = None) -> tuple[Preview, ...] | Rejected:
    """Return what the model sees of an example, sequence by sequence, or why it is left out.

    With an encoder, the text is decoded from the very token ids of training. Without one, it is the messages' text,
    each after its role.

    Raises:
        DataError: As for `Encoder.encode_all`.
    """
    if encoder is None:
        return (Preview(example.source, example.row, tuple(_messages(example))),)
    encoded = encoder.encode_all([example])
    if encoded.dropped:
        return encoded.dropped[0]
    return tuple(
        Preview(item.source, item.row, tuple(_parts(item, encoder)), truncated=encoded.truncated == 1)
        for item in encoded.kept
    )


def _parts(item: Encoded, encoder: Encoder) -> Iterator[Part]:
    yield Part(encoder.text(item.prompt_ids), False, len(item.prompt_ids))
    end = 0
    for start, stop in (*item.given, (len(item.completion_ids),) * 2):
        for place, after, learned in ((end, start, True), (start, stop, False)):
            ids = item.completion_ids[place:after]
            if ids:
                yield Part(encoder.text(ids), learned, len(ids))
        end = stop


def _messages(example: Example) -> Iterator[Part]:
    if example.is_document:
        yield Part(example.completion, True)
        return
    for place, message in enumerate((*example.segments, example.answer)):
        learned = place in example.earlier or place == len(example.segments)
        yield Part(f"[{message.role}]\n", False)
        text = "\n".join(
            filter(None, (message.reasoning, message.text, *map(call_as_text, message.tool_calls)))
        )
        yield Part(text, learned)
        yield Part("\n", False)
