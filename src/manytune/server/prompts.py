"""From messages, texts and fields of a request to the prompt tokens that an adapter was trained on."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from manytune.data.encoding.answer_format import BARE, AnswerFormat
from manytune.data.encoding.chat_template import end_token_of
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoding_options import EncodingOptions
from manytune.data.encoding.special_tokens import SpecialTokens
from manytune.data.labels.label_words import LabelWords
from manytune.data.templates import Example, PromptTemplate, Segment
from manytune.engine.base_model import end_token_ids
from manytune.engine.constraints.grammar import Grammar
from manytune.engine.constraints.spelling import special_tokens
from manytune.engine.token_bytes import TokenBytes
from manytune.errors import DataError, TemplateError
from manytune.server.bodies.answer_form import AnswerForm
from manytune.server.http_errors import HttpError, for_clients
from manytune.server.tools.calls import CallReader, ToolFormat
from manytune.server.tools.choice import format_of
from manytune.store.base import Base
from manytune.store.manifest import Manifest

_MOST_ENCODERS = 64  # that are kept; each request may bring values of its own for the template's variables


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what is an answer in the text that follows it.

    Attributes:
        tokens: Its tokens.
        answers: What the chat template and the model put around an answer.
        end_id: The token that ends an answer, if the engine doesn't end it there by itself: an adapter's own chat
            template may have another end token than the base's.
        grammar: What the text must be; None for any text.
        calls: Makes readers of an answer's calls; None if it has none.
        silent_ids: Tokens without a text in the answer.
        rendered: What a prompt template made of fields; none for messages.
    """

    tokens: tuple[int, ...]
    answers: AnswerFormat = BARE
    end_id: int | None = None
    grammar: Grammar | None = None
    calls: Callable[[], CallReader] | None = None
    silent_ids: frozenset[int] = frozenset()
    rendered: tuple[Segment, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How a prompt is made, and what its answer may be, whatever the adapter.

    Attributes:
        kwargs: Values of the chat template's variables, in place of the adapter's.
        new_tokens: The longest answer, for which the prompt of an adapter that cuts prompts leaves room.
        tools: The functions that the assistant may call, as the chat template gets them.
        form: What the answer may be.
        continues: Whether the last message is the beginning of the answer.
        skips_special: Whether special tokens are left out of the answer's text.
        special_tokens_in_text: Whether special tokens that text spells are tokens; None for what the route, or the
            adapter's training, has.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    new_tokens: int = 1
    tools: Sequence[Mapping[str, Any]] = ()
    form: AnswerForm = field(default_factory=AnswerForm)
    continues: bool = False
    skips_special: bool = False
    special_tokens_in_text: bool | None = None


class Prompts:
    """Makes prompts in the same way as training: with the adapter's encoding, and for fields with its template.

    Args:
        base: The base. Its tokenizer is copied, as the engine decodes with the original in another thread.
        max_chars: Length of the longest text to tokenize.
    """

    def __init__(self, base: Base, *, max_chars: int) -> None:
        self._tokenizer = copy.deepcopy(base.tokenizer)
        self._is_encoder = base.is_encoder
        self._is_encoder_decoder = base.is_encoder_decoder
        self._positions = base.positions
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._encoders: dict[str, _KnownEncoder] = {}
        self._special = special_tokens(self._tokenizer)
        self._as_text = SpecialTokens(self._tokenizer)
        self._as_text.prepare()
        if not base.is_encoder:
            # A prompt that comes without a template may be one that the client has put into words and special tokens.
            self._plain, self._plain_text = (
                EncodingOptions(special_tokens_in_text=in_text).encoder(
                    self._tokenizer, chat=False, encoder_decoder=base.is_encoder_decoder
                )
                for in_text in (True, False)
            )
            # What an encoder-decoder's answers begin with, as BART's do.
            self._bare = replace(BARE, opening=self._plain.answers.opening)
            silent = end_token_ids(base.model, self._tokenizer) | frozenset(self.end_ids)
            self._tokens = TokenBytes(self._tokenizer, silent)
            self._ends = silent

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion in one of the encodings; none for an encoder."""
        if self._is_encoder:
            return ()
        end = end_token_of(self._tokenizer, self._plain.special_tokens())
        in_chats = [] if end is None else self._tokenizer(end, add_special_tokens=False)["input_ids"][-1:]
        return tuple(sorted({self._plain.end_id, *in_chats}))

    @property
    def begin_id(self) -> int | None:
        """The token that the tokenizer puts before a text, if it has one."""
        begin: int | None = self._tokenizer.bos_token_id
        return begin

    def token(self, token: int, first: bool) -> tuple[str, bytes]:
        """What to call a token of an answer or a prompt, and its bytes; none for one that ends an answer.

        Args:
            token: The token.
            first: Whether a text begins with it.
        """
        with self._lock:
            return self._tokens.label(token, first=first), self._tokens.of(token, first=first)

    def conversation(
        self, segments: Sequence[Segment], manifest: Manifest | None, options: PromptOptions
    ) -> Prompt:
        """The prompt of messages, in an adapter's encoding, or in the tokenizer's for the base.

        Args:
            segments: The messages.
            manifest: The adapter's; None for the base.
            options: How it is made.

        Raises:
            HttpError: It is too long, or the template has no such variable or can't be used for tools.
            TemplateError: The chat template refuses the messages.
            GrammarError: What the answer must be isn't supported.
        """
        self._check_length(_texts(segments, options.tools))
        self._check_generates()
        if options.continues and self._is_encoder_decoder:
            raise HttpError(
                400,
                "the base of this server is an encoder-decoder: all messages go to its encoder, so an answer can't "
                "begin among them. Leave continue_final_message out.",
                code="unsupported_parameter",
                param="continue_final_message",
            )
        with self._lock:
            encoder, written = self._encoder(manifest, options)
            answers = encoder.answers
            if options.continues:
                tokens = encoder.begun_ids(segments, options.tools)
                answers = replace(answers, opening="", reasoning=None)
            else:
                tokens = encoder.prompt_ids(segments, options.tools)
            prompt = self._prompt(tokens, answers, written, options)
            return prompt if encoder.end_id in self._ends else replace(prompt, end_id=encoder.end_id)

    def answered(
        self, segments: Sequence[Segment], words: LabelWords, manifest: Manifest | None
    ) -> list[tuple[Prompt, int]]:
        """The prompt of messages with each label's word as its answer, and how many tokens the word has.

        Raises:
            HttpError: As for `conversation`; or a word has no tokens, or begins another's.
        """
        options = PromptOptions()
        prompt = self.conversation(segments, manifest, options)
        with self._lock:
            encoder, _ = self._encoder(manifest, options)
            try:
                rows = words.sequences(Example(tuple(segments), "", "label_words", 1), encoder)
            except TemplateError:
                raise
            except DataError as error:
                raise HttpError(400, f"{error}.", code="invalid_value", param="label_words") from error
        return [(replace(prompt, tokens=row.input_ids), len(row.completion_ids)) for row in rows]

    def text(self, text: str | Sequence[int], options: PromptOptions) -> Prompt:
        """The prompt of text without a template, with the tokens that the tokenizer adds; or tokens as they are."""
        if not isinstance(text, str):
            self._check_generates()
            with self._lock:
                return self._prompt(tuple(text), self._bare, None, options)
        self._check_length([text])
        self._check_generates()
        plain = self._plain_text if options.special_tokens_in_text is False else self._plain
        with self._lock:
            return self._prompt(plain.prompt_ids([Segment("user", text)]), self._bare, None, options)

    def passage(self, text: str) -> tuple[int, ...]:
        """The tokens of a text to embed, with the special tokens that the tokenizer adds."""
        self._check_length([text])
        with self._lock:
            return self._as_text.ids(self._as_text.as_text(text), add_special_tokens=True)

    def fields(
        self,
        fields: Mapping[str, object],
        task: str | None,
        manifest: Manifest | None,
        options: PromptOptions,
    ) -> Prompt:
        """The prompt of an adapter's prompt template filled with fields.

        Raises:
            HttpError: The adapter has no template, or several and none was chosen.
            TemplateError: A field is missing, or isn't text.
        """
        rendered = template_of(manifest, task).render_prompt(fields)
        return replace(self.conversation(rendered, manifest, options), rendered=rendered)

    def _prompt(
        self,
        tokens: tuple[int, ...],
        answers: AnswerFormat,
        written: ToolFormat | None,
        options: PromptOptions,
    ) -> Prompt:
        """A prompt with how its answer is made and read."""
        form = options.form
        reader = None if written is None or not form.may_call else partial(written.reader, form.names)
        # Reasoning that the prompt itself ends isn't begun again.
        ended = answers.reasoning is not None and self._ends_with(tokens, answers.reasoning[1])
        grammar = form.grammar(replace(answers, reasoning=None) if ended else answers, written, self._special)
        silent_ids = self._silent(answers) if options.skips_special else frozenset()
        return Prompt(tokens, answers, grammar=grammar, calls=reader, silent_ids=silent_ids)

    def _ends_with(self, tokens: tuple[int, ...], mark: str) -> bool:
        last = self._tokenizer.decode(list(tokens[-2 * len(mark) :]), clean_up_tokenization_spaces=False)
        return str(last).rstrip().endswith(mark.strip())

    def _silent(self, answers: AnswerFormat) -> frozenset[int]:
        """The special tokens, without those in which the chat template marks reasoning: the marks are read as text."""
        marks = "".join((answers.opening, answers.closing, *(answers.reasoning or ())))
        return frozenset(token for text, token in self._special.items() if text not in marks)

    def _encoder(self, manifest: Manifest | None, asked: PromptOptions) -> tuple[Encoder, ToolFormat | None]:
        """The encoder of an adapter's training, with other values of the template's variables on top.

        And how its chat template writes calls, if there are tools.
        """
        options = (
            options_of(manifest)
            .with_kwargs(asked.kwargs)
            .with_special_tokens_in_text(asked.special_tokens_in_text)
            .within(self._positions, asked.new_tokens)
        )
        chat = False if manifest is not None and manifest.encoding == "plain" else None
        key = json.dumps([chat, options.to_dict()], sort_keys=True)
        if key not in self._encoders:
            if len(self._encoders) >= _MOST_ENCODERS:
                self._encoders.clear()
            try:
                self._encoders[key] = _KnownEncoder(
                    options.encoder(self._tokenizer, chat=chat, encoder_decoder=self._is_encoder_decoder)
                )
            except TemplateError:
                raise
            except DataError as error:
                param = "chat_template_kwargs" if asked.kwargs else "model"
                raise HttpError(400, f"{error}.", code="invalid_value", param=param) from error
        known = self._encoders[key]
        written = known.written if asked.tools else None
        if asked.tools and written is None:
            raise HttpError(
                400,
                "the chat template of this model writes tool calls in a form that this server can't read.",
                code="unsupported_parameter",
                param="tools",
            )
        return known.encoder, written

    def _check_generates(self) -> None:
        if self._is_encoder:
            raise HttpError(
                400,
                "the base of this server is an encoder: it has embeddings at /v1/embeddings and generates no text.",
                code="unsupported_model",
                param="model",
            )

    def _check_length(self, texts: Iterable[str]) -> None:
        length = sum(map(len, texts))
        if length > self._max_chars:
            raise HttpError(
                400,
                f"the prompt has {length:,} characters; this server accepts {self._max_chars:,}.",
                code="context_length_exceeded",
            )


class _KnownEncoder:
    """An encoder, and how its chat template writes calls."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @cached_property
    def written(self) -> ToolFormat | None:
        """The form of calls; None if it can't be read."""
        return format_of(self.encoder)


def _texts(segments: Iterable[Segment], tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """All that is read of a conversation."""
    for segment in segments:
        yield segment.text
        yield segment.reasoning or ""
        yield from (call.arguments for call in segment.tool_calls)
    if tools:
        yield json.dumps(tools)


def options_of(manifest: Manifest | None) -> EncodingOptions:
    """How an adapter's prompts are encoded.

    Raises:
        HttpError: Its manifest doesn't say it in a way that can be read.
    """
    if manifest is None or manifest.encoding_options is None:
        return EncodingOptions()
    try:
        return EncodingOptions.from_dict(manifest.encoding_options)
    except DataError as error:
        raise HttpError(
            409, for_clients(f"the adapter's manifest: {error}."), code="adapter_unusable", param="model"
        ) from error


def template_of(manifest: Manifest | None, task: str | None) -> PromptTemplate:
    """The template that an adapter was trained with.

    Raises:
        HttpError: There is none, or there are several and `task` names none of them.
    """
    if manifest is None or (manifest.template is None and manifest.templates is None):
        raise HttpError(
            400,
            "fields need a model with a prompt template, and this one has none; send messages or a prompt.",
            code="no_template",
            param="fields",
        )
    if manifest.template is not None:
        if task is not None:
            raise HttpError(
                400,
                "this adapter was trained on a single task without a name; leave task out.",
                code="unknown_task",
                param="task",
            )
        return PromptTemplate.from_dict(manifest.template)
    templates = manifest.templates or {}
    if task is None or task not in templates:
        raise HttpError(
            400,
            f"this adapter was trained on several tasks; set task to one of {', '.join(templates)}"
            + (f", not {task!r}." if task is not None else "."),
            code="unknown_task",
            param="task",
        )
    return PromptTemplate.from_dict(templates[task])
