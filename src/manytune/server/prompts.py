"""From messages, texts and fields of a request to the prompt tokens that an adapter was trained on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence

from manytune.data.encode import Encoder
from manytune.data.templates import PromptTemplate, Segment
from manytune.engine.base_model import end_token_ids
from manytune.engine.token_bytes import TokenBytes
from manytune.server.http_errors import HttpError
from manytune.store.base import Base
from manytune.store.manifest import Manifest


class Prompts:
    """Makes prompts in the same way as training: with the adapter's encoding, and for fields with its template.

    Args:
        base: The base. Its tokenizer is copied, as the engine decodes with the original in another thread.
        max_chars: Length of the longest text to tokenize.
    """

    def __init__(self, base: Base, *, max_chars: int) -> None:
        self._tokenizer = copy.deepcopy(base.tokenizer)
        self._is_encoder = base.is_encoder
        self._max_chars = max_chars
        self._lock = threading.Lock()
        if not base.is_encoder:
            self._plain = Encoder(self._tokenizer, max_length=None, chat=False)
            self._chat = Encoder(self._tokenizer, max_length=None)  # plain too if there is no chat template
            silent = end_token_ids(base.model, self._tokenizer) | frozenset(self.end_ids)
            self._tokens = TokenBytes(self._tokenizer, silent)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion in one of the encodings; none for an encoder."""
        if self._is_encoder:
            return ()
        return tuple(sorted({self._plain.end_id, self._chat.end_id}))

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

    def conversation(self, segments: Sequence[Segment], manifest: Manifest | None) -> tuple[int, ...]:
        """The tokens of messages, in an adapter's encoding, or in the tokenizer's for the base.

        Raises:
            HttpError: It is too long.
            TemplateError: The chat template refuses the messages.
        """
        self._check_length(segment.text for segment in segments)
        self._check_generates()
        encoder = self._plain if manifest is not None and manifest.encoding == "plain" else self._chat
        with self._lock:
            return encoder.prompt_ids(segments)

    def text(self, text: str) -> tuple[int, ...]:
        """The tokens of text without a template, after a BOS token if the tokenizer adds one."""
        self._check_length([text])
        self._check_generates()
        with self._lock:
            return self._plain.prompt_ids([Segment("user", text)])

    def passage(self, text: str) -> tuple[int, ...]:
        """The tokens of a text to embed, with the special tokens that the tokenizer adds."""
        self._check_length([text])
        with self._lock:
            return tuple(self._tokenizer(text, verbose=False)["input_ids"])

    def fields(
        self, fields: Mapping[str, object], task: str | None, manifest: Manifest | None
    ) -> tuple[int, ...]:
        """The tokens of an adapter's prompt template filled with fields.

        Raises:
            HttpError: The adapter has no template, or several and none was chosen.
            TemplateError: A field is missing, or isn't text.
        """
        template = template_of(manifest, task)
        return self.conversation(template.render_prompt(fields), manifest)

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
