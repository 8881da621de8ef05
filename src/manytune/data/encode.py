"""From an example to token ids: the chat template, the loss-bearing part, the length limit.

Prompt and completion are tokenised apart and joined as ids. So the prompt that is served is, token for token,
a prefix of the sequence that was trained, whatever the tokenizer would merge across the boundary.
"""

from __future__ import annotations

import bisect
import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from manytune.data.answer_format import AnswerFormat
from manytune.data.chat_template import ChatTemplate, no_end_token
from manytune.data.nearest import did_you_mean
from manytune.data.records import Rejected
from manytune.data.templates import Example, Segment
from manytune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overflow = Literal["error", "drop", "truncate_prompt"]

_PROBE = "manytune"


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example: the input is `prompt_ids + completion_ids`, the labels are `completion_ids`.

    Args:
        prompt_ids: What the model is given. Bears no loss. Never empty.
        completion_ids: What the model learns to answer, the end token included.
        source: The file or dataset that the row came from.
        row: Its line or record number, from 1.
        group: The example's group, or `None`.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    source: str
    row: int
    group: str | None = None

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The whole sequence."""
        return self.prompt_ids + self.completion_ids


@dataclass(frozen=True)
class EncodedSet:
    """Many encoded examples, which were left out for their length, and how many prompts were shortened."""

    kept: tuple[Encoded, ...]
    dropped: tuple[Rejected, ...]
    truncated: int


class Encoder:
    """Turns examples into token ids the way the base model expects them.

    In chat mode the prompt is the tokenizer's chat template over the messages with its generation prompt; the
    completion is what the template adds when the answer is appended, up to and with its end token. In plain
    mode the prompt is the messages' text, joined by blank lines, after a BOS token if the tokenizer adds one;
    the completion is its text and the EOS token.

    Args:
        tokenizer: The base model's tokenizer.
        max_length: The most tokens a sequence may have; `None` for no limit.
        overflow: What becomes of a longer one. `"error"` raises; `"drop"` leaves it out; `"truncate_prompt"`
            cuts the last user message at its end until the sequence fits. No completion is ever cut.
        encoder_decoder: Whether the prompt goes to an encoder and the completion to a decoder. In plain mode the
            prompt then ends, and the completion begins, as the tokenizer ends and begins a text.
        chat: `None` uses the tokenizer's chat template if it has one, `True` requires it, `False` ignores it.
        chat_template_kwargs: Values of the chat template's own variables, such as `enable_thinking`.
        now: What a chat template that writes today's date takes for the present; `None` for the time of encoding.
        max_prompt: The most tokens a prompt may have; the last user message of a longer one is cut at its end.
            `None` for no limit.

    Attributes:
        mode: `"chat"` or `"plain"`.
        end_id: The token that ends every completion; generation stops there.
        answers: What is an answer in the text that a model generates.
        uses_date: Whether the chat template writes a date.

    Raises:
        DataError: The tokenizer lacks the chat template or an end token, or an option is wrong.
        TemplateError: The chat template can't be used for training.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        overflow: Overflow = "error",
        chat: bool | None = None,
        encoder_decoder: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
        max_prompt: int | None = None,
    ) -> None:
        if overflow not in get_args(Overflow):
            raise DataError(
                f"overflow must be one of {', '.join(get_args(Overflow))}, not {overflow!r}"
                f"{did_you_mean(str(overflow), get_args(Overflow))}"
            )
        if max_length is not None and max_length < 2:
            raise DataError(
                f"max_length must be at least 2 (one token each of prompt and completion), not {max_length}"
            )
        has_chat_template = bool(tokenizer.chat_template)
        if chat and not has_chat_template:
            raise DataError(
                f"chat mode was asked for, but the tokenizer {tokenizer.name_or_path!r} has no chat "
                "template. Use the model's instruct version, or turn chat off"
            )
        if max_prompt is not None and max_prompt < 1:
            raise DataError(f"max_prompt must be at least 1, not {max_prompt}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_prompt = max_prompt
        self.overflow = overflow
        self.mode: Literal["chat", "plain"] = "chat" if has_chat_template and chat is not False else "plain"
        self._bos = _leading_bos(tokenizer)
        self._prompt_end = _trailing_eos(tokenizer) if encoder_decoder else ()
        self._completion_start = self._bos if encoder_decoder else ()
        eos = None if tokenizer.eos_token is None else str(tokenizer.eos_token)
        self._chat: ChatTemplate | None = None
        if self.mode == "chat":
            self._chat = ChatTemplate(
                tokenizer,
                options=chat_template_kwargs or {},
                now=now,
                special_tokens=self.special_tokens(),
                eos=eos,
            )
            self.answers = self._chat.answers
        elif chat_template_kwargs:
            raise DataError(
                "chat_template_kwargs go to a chat template, and there is none: "
                + (
                    "chat is turned off"
                    if has_chat_template
                    else f"{tokenizer.name_or_path!r} has no such template"
                )
            )
        elif eos is None:
            raise DataError(no_end_token(tokenizer))
        else:
            self.answers = AnswerFormat(opening=self.text(self._completion_start), end=eos)
        self.uses_date = self._chat is not None and self._chat.uses_date
        self.end_id = self._tokenize(self.answers.end)[-1]

    def encode(self, example: Example) -> Encoded:
        """Return an example's token ids.

        Raises:
            DataError: It is too long and may not be, or can't be, shortened; or the prompt has no token.
            TemplateError: The chat template refuses or changes it.
        """
        fitted, _ = self._fit(example)
        if isinstance(fitted, Rejected):
            raise self._too_long(fitted)
        return fitted

    def encode_all(self, examples: Iterable[Example]) -> EncodedSet:
        """Return many examples' token ids, with those that were left out for their length.

        Raises:
            DataError: One is too long and `overflow` is `"error"`, or a prompt has no token.
            TemplateError: The chat template refuses or changes one.
        """
        kept: list[Encoded] = []
        dropped: list[Rejected] = []
        truncated = 0
        for example in examples:
            fitted, shortened = self._fit(example)
            truncated += shortened
            if isinstance(fitted, Encoded):
                kept.append(fitted)
            elif self.overflow == "error":
                raise self._too_long(fitted)
            else:
                dropped.append(fitted)
        return EncodedSet(tuple(kept), tuple(dropped), truncated)

    def prompt_ids(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Return a prompt's token ids, as training used them; cut only if the encoder has a `max_prompt`.

        Raises:
            DataError: No text of the user's is left within `max_prompt`.
            TemplateError: The chat template refuses the messages.
        """
        ids = self._whole_prompt(segments)
        if self.max_prompt is None or len(ids) <= self.max_prompt:
            return ids
        shortened = self._shortened_prompt(segments, self.max_prompt)
        if not shortened:
            raise DataError(
                f"the prompt has {len(ids)} tokens, which are cut to {self.max_prompt} as in training, and that "
                "leaves no room for any of the user's text"
            )
        return shortened

    def completion_ids(self, example: Example) -> tuple[int, ...]:
        """Return a completion's token ids with the end token; never shortened.

        Raises:
            TemplateError: The chat template refuses or changes the completion.
        """
        completion = self.answers.without_end(example.completion)
        if self._chat is not None:
            return self._tokenize(self._chat.body(_messages(example.segments), completion) + self.answers.end)
        return (*_once_before(self._completion_start, self._tokenize(completion)), self.end_id)

    def reference(self, example: Example) -> str:
        """Return the part of an example's completion that an answer is compared with."""
        return self.answers.reference(example.completion)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included, as close to the letter as the tokenizer can."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def special_tokens(self) -> tuple[str, ...]:
        """Return the texts that the tokenizer reads as one special token each, in users' text as well."""
        return tuple(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    def _fit(self, example: Example) -> tuple[Encoded | Rejected, bool]:
        """Return the encoded example, or why it can't be; and whether its prompt was shortened."""
        try:
            prompt = self.prompt_ids(example.segments)
            completion = self.completion_ids(example)
        except DataError as error:
            raise type(error)(str(error), where=example.where) from error
        if not prompt:
            raise DataError(
                "the prompt has no token, so nothing would predict the completion", where=example.where
            )
        if self.max_length is None or len(prompt) + len(completion) <= self.max_length:
            return _encoded(example, prompt, completion), False
        lengths = (
            f"{len(prompt) + len(completion)} tokens (prompt {len(prompt)}, completion {len(completion)})"
        )
        if self.overflow != "truncate_prompt":
            reason = f"{lengths} are more than max_length {self.max_length}"
            return Rejected(example.source, example.row, reason), False
        shortened = self._shortened_prompt(example.segments, self.max_length - len(completion))
        if not shortened:
            reason = f"{lengths} leave no room for any of the user's text within max_length {self.max_length}"
            return Rejected(example.source, example.row, reason), False
        return _encoded(example, shortened, completion), True

    def _shortened_prompt(self, segments: Sequence[Segment], room: int) -> tuple[int, ...]:
        """Return the prompt with as much of the last user message as fits, from its start; empty if none does."""
        last_user = max((i for i, segment in enumerate(segments) if segment.role == "user"), default=None)
        if last_user is None:
            return ()
        text = segments[last_user].text

        def cut(length: int) -> tuple[int, ...]:
            shorter = dataclasses.replace(segments[last_user], text=text[:length])
            return self._whole_prompt((*segments[:last_user], shorter, *segments[last_user + 1 :]))

        # Longer text is, nearly always, more tokens; and bisection ends on a length that it has seen to fit.
        length = bisect.bisect_right(range(len(text)), room, key=lambda length: len(cut(length))) - 1
        return cut(length) if length > 0 and text[:length].strip() else ()

    def _too_long(self, rejected: Rejected) -> DataError:
        choices = ", or set overflow to 'drop' or 'truncate_prompt'" if self.overflow == "error" else ""
        return DataError(f"{rejected.reason}. Raise max_length{choices}", where=rejected.where)

    def _whole_prompt(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        if self._chat is not None:
            return self._tokenize(self._chat.prompt(_messages(segments)))
        ids = _once_before(self._bos, self._tokenize("\n\n".join(segment.text for segment in segments)))
        return ids if self._prompt_end and ids[-1:] == self._prompt_end else ids + self._prompt_end

    def _tokenize(self, text: str) -> tuple[int, ...]:
        # verbose=False: the limit is checked here, and the tokenizer's warning would only repeat it.
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _encoded(example: Example, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Encoded:
    return Encoded(prompt, completion, example.source, example.row, example.group)


def _messages(segments: Sequence[Segment]) -> list[dict[str, str]]:
    return [
        {"role": segment.role, "content": segment.text}
        | ({} if segment.reasoning is None else {"reasoning_content": segment.reasoning})
        for segment in segments
    ]


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and tokenizer(_PROBE)["input_ids"][:1] == [bos] else ()


def _trailing_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    eos = tokenizer.eos_token_id
    return (eos,) if eos is not None and tokenizer(_PROBE)["input_ids"][-1:] == [eos] else ()


def _once_before(start: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...]:
    """Ids with the token that begins a text, which the text may have itself."""
    return ids if ids[: len(start)] == start else start + ids
