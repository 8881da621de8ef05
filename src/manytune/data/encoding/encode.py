"""From an example to token ids: the chat template, the loss-bearing parts, the length limit.

Prompt and completion are tokenised apart and joined as ids. So the prompt that is served is, token for token,
a prefix of the sequence that was trained, whatever the tokenizer would merge across the boundary.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from manytune.data.conversation.conversation import Message
from manytune.data.conversation.packing import packed, parts
from manytune.data.conversation.tools_as_text import tools_as_text
from manytune.data.conversation.turns import Spans, Turn, joined, not_in
from manytune.data.encoding.answer_format import AnswerFormat
from manytune.data.encoding.chat_template import ChatTemplate, Tools, no_chat_template, no_end_token
from manytune.data.encoding.encoded import Encoded, EncodedSet
from manytune.data.encoding.length_limit import LengthLimit, Overflow
from manytune.data.encoding.shortened_prompt import shortened_prompt
from manytune.data.encoding.special_tokens import MARK, SpecialTokens
from manytune.data.encoding.text_ends import leading_bos, once_before, trailing_eos
from manytune.data.records import Rejected
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_ENCODERS = 64  # that are kept; each row may bring values of its own for the template's variables


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
            cuts the last user message at its end until the sequence fits. No completion is ever cut. Of a conversation,
            `"drop_oldest_turns"` drops the oldest turns after the system message, and `"drop_newest_turns"` the newest.
            Documents are divided instead.
        encoder_decoder: Whether the prompt goes to an encoder and the completion to a decoder. In plain mode the
            prompt then ends, and the completion begins, as the tokenizer ends and begins a text.
        chat: `None` uses the tokenizer's chat template if it has one, `True` requires it, `False` ignores it.
        chat_template_kwargs: Values of the chat template's own variables, such as `enable_thinking`.
        now: What a chat template that writes today's date takes for the present; `None` for the time of encoding.
        max_prompt: The most tokens a prompt may have; the last user message of a longer one is cut at its end.
            `None` for no limit.
        special_tokens_in_text: Whether special tokens that messages spell are tokens; if not, only those that the
            templates write are, and those of the assistant's own (`special_tokens.py`).

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
        special_tokens_in_text: bool = False,
    ) -> None:
        has_chat_template = bool(tokenizer.chat_template)
        if chat and not has_chat_template:
            raise DataError(
                f"chat mode was asked for, but the tokenizer {tokenizer.name_or_path!r} has no chat "
                "template. Use the model's instruct version, or turn chat off"
            )
        if max_prompt is not None and max_prompt < 1:
            raise DataError(f"max_prompt must be at least 1, not {max_prompt}")
        self.tokenizer = tokenizer
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._with_kwargs: dict[str, Encoder] = {}
        self._settings: dict[str, Any] = {
            "max_length": max_length,
            "overflow": overflow,
            "chat": chat,
            "encoder_decoder": encoder_decoder,
            "now": now,
            "max_prompt": max_prompt,
            "special_tokens_in_text": special_tokens_in_text,
        }
        self.max_length = max_length
        self.max_prompt = max_prompt
        self.overflow = overflow
        self._limit = LengthLimit(max_length, overflow, self.sequences, self._cut)
        self.mode: Literal["chat", "plain"] = "chat" if has_chat_template and chat is not False else "plain"
        self._bos = leading_bos(tokenizer)
        self._prompt_end = trailing_eos(tokenizer) if encoder_decoder else ()
        self._is_encoder_decoder = encoder_decoder
        self._completion_start = self._bos if encoder_decoder else ()
        eos = None if tokenizer.eos_token is None else str(tokenizer.eos_token)
        self._chat: ChatTemplate | None = None
        self._tokens = SpecialTokens(
            tokenizer,
            str(tokenizer.get_chat_template()) if self.mode == "chat" else None,
            in_text=special_tokens_in_text,
        )
        if self.mode == "chat":
            self._chat = ChatTemplate(
                tokenizer,
                options=self._tokens.of_json(self._template_kwargs),
                now=now,
                special_tokens=self.special_tokens(),
                eos=eos,
            )
            self.answers = self._chat.answers
        elif chat_template_kwargs:
            raise DataError(no_chat_template(tokenizer))
        elif eos is None:
            raise DataError(no_end_token(tokenizer))
        else:
            self.answers = AnswerFormat(opening=self.text(self._completion_start), end=eos)
        self.uses_date = self._chat is not None and self._chat.uses_date
        self.end_id = self._tokens.ids(self.answers.end)[-1]
        self._text_end = self.end_id if eos is None else self._tokens.ids(eos)[-1]
        # What must not begin or end a turn in an answer that is given.
        self._turn_marks = {str(token) for token in (eos, tokenizer.bos_token) if token is not None}
        if self._chat is not None:
            self._turn_marks |= {token for token in self.special_tokens() if token in self._chat.probe}

    def of(self, example: Example) -> Encoder:
        """Return the encoder of an example's own values of the chat template's variables; itself without any.

        Raises:
            DataError: The chat template has no such variable, or there is no template.
            TemplateError: With these values it can't be used for training.
        """
        wanted = self._template_kwargs | dict(example.template_kwargs)
        if wanted == self._template_kwargs:
            return self
        key = json.dumps(wanted, sort_keys=True, default=str)
        if key not in self._with_kwargs:
            if len(self._with_kwargs) >= _MOST_ENCODERS:
                self._with_kwargs.clear()
            self._with_kwargs[key] = Encoder(self.tokenizer, chat_template_kwargs=wanted, **self._settings)
        return self._with_kwargs[key]

    def encode(self, example: Example) -> Encoded:
        """Return the token ids of an example's completion and of what comes before it, none of which bears the loss.

        Raises:
            DataError: It is too long and may not be, or can't be, shortened; or the prompt has no token.
            TemplateError: The chat template refuses or changes it.
        """
        fitted = self._limit.fit(dataclasses.replace(example, earlier=()))
        if isinstance(fitted, Rejected):
            raise self._limit.error(fitted)
        return fitted.sequences[0]

    def encode_all(
        self, examples: Iterable[Example], *, on_error: Literal["error", "skip"] = "error"
    ) -> EncodedSet:
        """Return many examples' token ids, with those that were left out for their length.

        A conversation's answers are one sequence, or several where its template rewrites earlier turns; documents
        are packed up to `max_length`.

        Args:
            examples: The examples.
            on_error: `"skip"` also leaves out those that the chat template refuses.

        Raises:
            DataError: One is too long and `overflow` is `"error"`, or a prompt has no token.
            TemplateError: The chat template refuses or changes one, and `on_error` is `"error"`.
        """
        kept: list[Encoded] = []
        documents: list[Encoded] = []
        dropped: list[Rejected] = []
        truncated = turns_dropped = 0
        for example in examples:
            try:
                fitted = self._limit.fit(example)
            except TemplateError as error:
                if on_error == "error":
                    raise
                reason = str(error).removeprefix(f"{example.where}: ")
                dropped.append(Rejected(example.source, example.row, reason))
                continue
            if isinstance(fitted, Rejected):
                if self.overflow == "error":
                    raise self._limit.error(fitted)
                dropped.append(fitted)
                continue
            truncated += fitted.shortened
            turns_dropped += len(example.earlier) + 1 - fitted.answers
            (documents if example.is_document else kept).extend(fitted.sequences)
        return EncodedSet((*kept, *self._packed(documents)), tuple(dropped), truncated, turns_dropped)

    def sequences(self, example: Example, *, longest: int | None = None) -> tuple[Encoded, ...]:
        """Return all sequences of an example, however long: of every answer that bears the loss, or of a document.

        Args:
            example: The example.
            longest: The most tokens of a part of a document; None for `max_length`.

        Raises:
            DataError: The prompt has no token.
            TemplateError: The chat template refuses or changes it.
        """
        try:
            own = self.of(example)
            turns = own._document(example, longest) if example.is_document else own._turns(example)
        except DataError as error:
            raise type(error)(str(error), where=example.where) from error
        if not all(turn.prompt for turn in turns):
            raise DataError(
                "the prompt has no token, so nothing would predict the completion", where=example.where
            )
        # Several sequences of one example aren't independent.
        group = example.group or (example.where if len(turns) > 1 else None)
        return tuple(
            Encoded(
                turn.prompt,
                turn.completion,
                example.source,
                example.row,
                group,
                turn.given,
                follows=place > 0 and not example.is_document,
            )
            for place, turn in enumerate(turns)
        )

    def prompt_ids(self, segments: Sequence[Segment], tools: Tools = ()) -> tuple[int, ...]:
        """Return a prompt's token ids, as training used them; cut only if the encoder has a `max_prompt`.

        Args:
            segments: The messages, in order.
            tools: The functions that the assistant may call.

        Raises:
            DataError: No text of the user's is left within `max_prompt`.
            TemplateError: The chat template refuses the messages.
        """
        ids = self._whole_prompt(segments, tools)
        if self.max_prompt is None or len(ids) <= self.max_prompt:
            return ids
        shortened = self._shortened_prompt(segments, self.max_prompt, tools)
        if not shortened:
            raise DataError(
                f"the prompt has {len(ids)} tokens, which are cut to {self.max_prompt} as in training, and that "
                "leaves no room for any of the user's text"
            )
        return shortened

    def begun_ids(self, segments: Sequence[Segment], tools: Tools = ()) -> tuple[int, ...]:
        """Return the token ids of a prompt whose last message is the beginning of its answer.

        Args:
            segments: The messages, in order; the last one is the assistant's.
            tools: The functions that the assistant may call.

        Raises:
            DataError: The last message isn't the assistant's.
            TemplateError: The chat template refuses or changes the messages.
        """
        *asked, begun = segments
        if not begun.is_answer:
            raise DataError(f"only a message of the assistant's can be continued, not one of {begun.role}'s")
        (*before, answer), written = self._given(segments, tools)
        text = answer.text if self._chat is None else self._chat.begun(before, answer, written)
        return (*self.prompt_ids(asked, tools), *self._tokens.ids(text))

    def completion_ids(self, example: Example) -> tuple[int, ...]:
        """Return a completion's token ids with the end token; never shortened.

        Raises:
            TemplateError: The chat template refuses or changes the completion.
        """
        return self.of(example)._completion(example)[0]

    def reference(self, example: Example) -> str:
        """Return the part of an example's completion that an answer is compared with, its tool calls included.

        Raises:
            TemplateError: The chat template refuses or changes a completion that calls tools.
        """
        own = self.of(example)
        if not example.tool_calls:
            return own.answers.reference(example.completion)
        return own.answers.read(own._completion_text(example).replace(MARK, "")).content

    @property
    def writes_tools(self) -> bool:
        """Whether the chat template writes tools; if not, they are written as text (`tools_as_text`)."""
        return self._chat is not None and self._chat.writes_tools

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included, as close to the letter as the tokenizer can."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def special_tokens(self) -> tuple[str, ...]:
        """Return the texts that the tokenizer reads as one special token each."""
        return tuple(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    def spelled_special_token(self, example: Example) -> str | None:
        """Return a special token that the text of an example's prompt spells; None if it spells none."""
        return self._tokens.spelled_by(one for one in example.segments if not one.is_answer)

    def _turns(self, example: Example) -> tuple[Turn, ...]:
        """The sequences of a conversation's answers."""
        turns = [
            Turn(self.prompt_ids(turn.segments, turn.tools), *self._completion(turn))
            for turn in example.turns()
        ]
        return tuple(turns) if self._is_encoder_decoder else joined(turns)

    def _document(self, example: Example, longest: int | None) -> tuple[Turn, ...]:
        """The sequences of a document: its text between the tokens that begin and end a text."""
        text = self._tokens.learned(example.answer).text
        ids = once_before(self._bos, self._tokens.ids(text))[len(self._bos) :]
        end = () if ids[-1:] == (self._text_end,) else (self._text_end,)
        return parts((*ids, *end), self._bos, longest or self.max_length)

    def _packed(self, documents: Sequence[Encoded]) -> Iterator[Encoded]:
        """Documents in the rows that they are packed into."""
        if self.max_length is None:
            yield from documents
            return
        for row in packed([len(item.input_ids) for item in documents], self.max_length):
            for place in row:
                yield dataclasses.replace(documents[place], follows=place != row[0])

    def _completion(self, example: Example) -> tuple[tuple[int, ...], Spans]:
        """A completion's token ids with the end token, and the ranges of them that bear no loss."""
        if self._chat is None:
            ids = once_before(self._completion_start, self._tokens.ids(self._completion_text(example)))
            return (*ids, self.end_id), ()
        given = self._given(example.segments, example.tools)
        answer = self._answer(example)
        text = self._chat.body(given[0], answer, given[1]) + self.answers.end
        ids = self._tokens.ids(text)
        generated = self._chat.generated(given[0], answer, given[1])
        if generated is None:
            return ids, ()
        places = self._tokens.encoded(text, add_special_tokens=False, places=True)
        end = (len(text) - len(self.answers.end), len(text))
        return ids, not_in([*generated, end], places["offset_mapping"])

    def _completion_text(self, example: Example) -> str:
        """A completion's text as the model is to generate it, without the end token."""
        answer = self._answer(example)
        if self._chat is not None:
            segments, tools = self._given(example.segments, example.tools)
            return self._chat.body(segments, answer, tools)
        if answer.reasoning is not None:
            raise TemplateError("reasoning needs a chat template that writes it, and there is none")
        return tools_as_text([answer], ())[0].text

    def _given(self, segments: Sequence[Segment], tools: Tools) -> tuple[tuple[Segment, ...], Tools]:
        """Messages and tools with their text as text."""
        return self._tokens.given(segments, self._turn_marks), self._tokens.of_json(tools)

    def _answer(self, example: Example) -> Message:
        answer = dataclasses.replace(example.answer, text=self.answers.without_end(example.completion))
        return self._tokens.learned(answer)

    def _cut(self, example: Example, longest: int) -> Encoded | None:
        """An example's sequence with its prompt cut; None if no text of the user's is left."""
        own = self.of(example)
        completion, given = own._completion(example)
        prompt = own._shortened_prompt(example.segments, longest - len(completion), example.tools)
        if not prompt:
            return None
        return Encoded(prompt, completion, example.source, example.row, example.group, given)

    def _shortened_prompt(self, segments: Sequence[Segment], room: int, tools: Tools = ()) -> tuple[int, ...]:
        return shortened_prompt(segments, room, lambda shorter: self._whole_prompt(shorter, tools))

    def _whole_prompt(self, segments: Sequence[Segment], tools: Tools) -> tuple[int, ...]:
        segments, tools = self._given(segments, tools)
        if self._chat is not None:
            return self._tokens.ids(self._chat.prompt(segments, tools))
        texts = [segment.text for segment in tools_as_text(segments, tools)]
        ids = once_before(self._bos, self._tokens.ids("\n\n".join(texts)))
        return ids if self._prompt_end and ids[-1:] == self._prompt_end else ids + self._prompt_end
