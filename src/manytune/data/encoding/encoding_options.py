"""How an adapter's prompts are made, beyond its prompt template: kept with it, so that it is asked as in training."""

from __future__ import annotations

import copy
import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from manytune.data.encoding.encode import Encoder
from manytune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodingOptions:
    """What `Encoder` takes in addition to the tokenizer.

    Attributes:
        chat_template_kwargs: Values of the chat template's own variables, such as `enable_thinking`.
        date: What a chat template that writes today's date takes for today, in ISO format; None for the day it is used.
        max_prompt: The tokens that longer prompts are cut to; None if training cut none.
        chat_template: The chat template of the training, where it isn't that of the base's tokenizer.
        special_tokens_in_text: Whether special tokens that messages spell are tokens.

    Raises:
        DataError: The date isn't one, or `max_prompt` is below 1.
    """

    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    max_prompt: int | None = None
    chat_template: str | None = None
    special_tokens_in_text: bool = False

    def __post_init__(self) -> None:
        self.now()
        if self.max_prompt is not None and self.max_prompt < 1:
            raise DataError(f"max_prompt must be at least 1, not {self.max_prompt}")

    def now(self) -> datetime.datetime | None:
        """The date as a time."""
        if self.date is None:
            return None
        try:
            return datetime.datetime.fromisoformat(self.date)
        except ValueError as error:
            raise DataError(f"expected a date such as 2026-01-31, found {self.date!r}") from error

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, *, chat: bool | None, encoder_decoder: bool = False
    ) -> Encoder:
        """Return the encoder that makes prompts as the training made them.

        Raises:
            DataError, TemplateError: As for `Encoder`.
        """
        if self.chat_template is not None:
            # A copy of its own: the base's template stays what it is for others. Both share what makes tokens.
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = self.chat_template
        return Encoder(
            tokenizer,
            max_length=None,
            chat=chat,
            encoder_decoder=encoder_decoder,
            chat_template_kwargs=self.chat_template_kwargs,
            now=self.now(),
            max_prompt=self.max_prompt,
            special_tokens_in_text=self.special_tokens_in_text,
        )

    def within(self, positions: int | None, new_tokens: int) -> EncodingOptions:
        """Return the options for prompts that also leave room for an answer; the same if training cut no prompt.

        Args:
            positions: What the model has for a prompt and its answer; None for no limit.
            new_tokens: The longest answer.
        """
        room = 0 if positions is None else positions - new_tokens
        if self.max_prompt is None or not 0 < room < self.max_prompt:
            return self
        return dataclasses.replace(self, max_prompt=room)

    def with_kwargs(self, more: Mapping[str, Any]) -> EncodingOptions:
        """Return the options with other values of the template's variables on top."""
        return dataclasses.replace(self, chat_template_kwargs={**self.chat_template_kwargs, **more})

    def with_special_tokens_in_text(self, wanted: bool | None) -> EncodingOptions:
        """Return the options with special tokens in text as tokens, or not; the same for None."""
        return self if wanted is None else dataclasses.replace(self, special_tokens_in_text=wanted)

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, ready for JSON."""
        values = {
            "chat_template_kwargs": dict(self.chat_template_kwargs) or None,
            "date": self.date,
            "max_prompt": self.max_prompt,
            "chat_template": self.chat_template,
            "special_tokens_in_text": self.special_tokens_in_text or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncodingOptions:
        """Return the options that `to_dict` described.

        Raises:
            DataError: A key is unknown, or a value can't be used.
        """
        expected = {
            "chat_template_kwargs": (dict, "an object"),
            "date": (str, "text"),
            "max_prompt": (int, "a number"),
            "chat_template": (str, "text"),
            "special_tokens_in_text": (bool, "true or false"),
        }
        for name, value in values.items():
            if name not in expected:
                raise DataError(f"encoding options are {', '.join(expected)}, not {name!r}")
            kind, called = expected[name]
            if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
                raise DataError(f"the encoding option {name} must be {called}, not {type(value).__name__}")
        return cls(**values)
