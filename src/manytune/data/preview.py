"""The exact text that a model sees, with the part that bears the loss."""

from __future__ import annotations

from dataclasses import dataclass

from manytune.data.encode import Encoder
from manytune.data.records import Rejected
from manytune.data.templates import Example


@dataclass(frozen=True)
class Preview:
    """One example as the model sees it.

    Args:
        source: The file or dataset.
        row: Its line or record number, from 1.
        prompt: The text that is given; special tokens and all, if there is a tokenizer.
        completion: The text that bears the loss.
        prompt_tokens: Their number; `None` without a tokenizer.
        completion_tokens: Their number, the end token included; `None` without a tokenizer.
        truncated: Whether the prompt was cut to the length limit.
    """

    source: str
    row: int
    prompt: str
    completion: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    truncated: bool = False


def preview(example: Example, encoder: Encoder | None = None) -> Preview | Rejected:
    """Return what the model sees of an example, or why it is left out.

    With an encoder, the text is decoded from the very token ids of training. Without one, it is the template's text,
    each message after its role.

    Raises:
        DataError: As for `Encoder.encode_all`.
    """
    if encoder is None:
        prompt = "".join(f"[{segment.role}]\n{segment.text}\n" for segment in example.segments)
        return Preview(example.source, example.row, f"{prompt}[assistant]\n", example.completion)
    encoded = encoder.encode_all([example])
    if encoded.dropped:
        return encoded.dropped[0]
    (item,) = encoded.kept
    return Preview(
        source=example.source,
        row=example.row,
        prompt=encoder.text(item.prompt_ids),
        completion=encoder.text(item.completion_ids),
        prompt_tokens=len(item.prompt_ids),
        completion_tokens=len(item.completion_ids),
        truncated=encoded.truncated == 1,
    )
