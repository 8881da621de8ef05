"""From messages, texts and fields of a request to the prompt tokens that an adapter was trained on."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manytune.data.answer_format import BARE, AnswerFormat
from manytune.data.chat_template import end_token_of
from manytune.data.encode import Encoder
from manytune.data.encoding_options import EncodingOptions
from manytune.data.templates import PromptTemplate, Segment
from manytune.engine.base_model import end_token_ids
from manytune.engine.token_bytes import TokenBytes
from manytune.errors import DataError, TemplateError
from manytune.server.http_errors import HttpError
from manytune.store.base import Base
from manytune.store.manifest import Manifest

_MOST_ENCODERS = 64  # that are kept; each request may bring values of its own for the template's variables


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what is an answer in the text that follows it.

    Attributes:
        tokens: Its tokens.
        answers: What the chat template and the model put around an answer.
        end: What ends an answer, if the engine doesn't end it there by itself: an adapter's own chat template may have
            another end token than the base's.
    """

    tokens: tuple[int, ...]
    answers: AnswerFormat = BARE
    end: str | None = None


class Prompts:
    """Makes prompts in the same way as training: with the adapter's encoding, and for fields with its template.

    Args:
        base: The base. Its tokenizer is copied, as the engine decodes with the original in another thread.
        max_chars: Length of the longest text to tokenize.
    """

    def __init__(self, base: Base, *, max_chars: int) -> None:
        self._tokenizer = copy.deepcopy(base.tokenizer)
        self._is_encoder = base.is_encoder
        self._positions = base.positions
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._encoders: dict[str, Encoder] = {}
        if not base.is_encoder:
            self._plain = Encoder(self._tokenizer, max_length=None, chat=False)
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
        self,
        segments: Sequence[Segment],
        manifest: Manifest | None,
        kwargs: Mapping[str, Any],
        new_tokens: int = 1,
    ) -> Prompt:
        """The prompt of messages, in an adapter's encoding, or in the tokenizer's for the base.

        Args:
            segments: The messages.
            manifest: The adapter's; None for the base.
            kwargs: Values of the chat template's variables, in place of the adapter's.
            new_tokens: The longest answer, for which the prompt of an adapter that cuts prompts leaves room.

        Raises:
            HttpError: It is too long, or the template has no such variable.
            TemplateError: The chat template refuses the messages.
        """
        self._check_length(part for segment in segments for part in (segment.text, segment.reasoning or ""))
        self._check_generates()
        with self._lock:
            encoder = self._encoder(manifest, kwargs, new_tokens)
            end = None if encoder.end_id in self._ends else encoder.answers.end
            return Prompt(encoder.prompt_ids(segments), encoder.answers, end)

    def text(self, text: str) -> Prompt:
        """The prompt of text without a template, after a BOS token if the tokenizer adds one."""
        self._check_length([text])
        self._check_generates()
        with self._lock:
            return Prompt(self._plain.prompt_ids([Segment("user", text)]))

    def passage(self, text: str) -> tuple[int, ...]:
        """The tokens of a text to embed, with the special tokens that the tokenizer adds."""
        self._check_length([text])
        with self._lock:
            return tuple(self._tokenizer(text, verbose=False)["input_ids"])

    def fields(
        self,
        fields: Mapping[str, object],
        task: str | None,
        manifest: Manifest | None,
        kwargs: Mapping[str, Any],
        new_tokens: int = 1,
    ) -> Prompt:
        """The prompt of an adapter's prompt template filled with fields.

        Raises:
            HttpError: The adapter has no template, or several and none was chosen.
            TemplateError: A field is missing, or isn't text.
        """
        template = template_of(manifest, task)
        return self.conversation(template.render_prompt(fields), manifest, kwargs, new_tokens)

    def _encoder(self, manifest: Manifest | None, kwargs: Mapping[str, Any], new_tokens: int) -> Encoder:
        """The encoder of an adapter's training, with other values of the template's variables on top."""
        options = options_of(manifest).with_kwargs(kwargs).within(self._positions, new_tokens)
        chat = False if manifest is not None and manifest.encoding == "plain" else None
        key = json.dumps([chat, options.to_dict()], sort_keys=True)
        if key not in self._encoders:
            if len(self._encoders) >= _MOST_ENCODERS:
                self._encoders.clear()
            try:
                self._encoders[key] = options.encoder(self._tokenizer, chat=chat)
            except TemplateError:
                raise
            except DataError as error:
                param = "chat_template_kwargs" if kwargs else "model"
                raise HttpError(400, f"{error}.", code="invalid_value", param=param) from error
        return self._encoders[key]

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
            409, f"the adapter's manifest: {error}.", code="adapter_unusable", param="model"
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
