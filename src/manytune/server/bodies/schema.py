"""The bodies of requests. Every field of OpenAI's API is implemented or refused by name; none is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from manytune.data.labels.label_words import LabelWords
from manytune.engine.constraints.grammar import lark_grammar, regex_grammar
from manytune.engine.request import SamplingParams
from manytune.errors import DataError
from manytune.server.bodies.answer_form import AnswerForm
from manytune.server.bodies.body import Body, Refused, invalid
from manytune.server.bodies.field_types import Items, Prompts, Stops, at_most

_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_MOST_TEXTS = 2048


class StreamOptions(Body):
    """What a stream contains in addition to text."""

    refused: ClassVar[Refused] = {"include_obfuscation": (False,)}
    include_usage: bool = False


class GenerationBody(Body):
    """The fields of all routes that generate text."""

    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    stop: Stops | None = None
    seed: _Seed | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[str, float], at_most(1024)] = Field(default_factory=dict, max_length=1024)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=200, description="Written to the log.")
    # Not OpenAI's.
    top_k: int | None = Field(None, ge=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    ignore_eos: bool = Field(False, description="Continue after an end token, up to the limit.")
    stop_token_ids: Items[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, max_length=64, description="Tokens that end the answer and aren't part of it."
    )
    skip_special_tokens: bool = Field(False, description="Leave special tokens out of the text.")
    special_tokens_in_text: bool | None = Field(
        None,
        description="Whether special tokens that text spells are tokens. If not given, they are in `prompt`; in "
        "messages and fields they are read as in the adapter's training, as text if it doesn't say.",
    )
    regex: str | None = Field(None, description="A regular expression that matches all of the answer.")
    grammar: str | None = Field(
        None, description="A grammar of the answer, in llguidance's variant of Lark; its rule `start`."
    )

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options needs stream=true.", "stream_options")
        return self

    @property
    def form_field(self) -> str | None:
        """The field that says what the text of the answer must be, if one does."""
        return next((name for name in ("regex", "grammar") if getattr(self, name) is not None), None)

    def form(self) -> AnswerForm:
        """What the answer may be.

        Raises:
            GrammarError: It isn't supported, or is too large.
        """
        if self.regex is not None:
            return AnswerForm(regex_grammar(self.regex))
        return AnswerForm(None if self.grammar is None else lark_grammar(self.grammar))

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.regex is not None and self.grammar is not None:
            raise invalid("regex and grammar exclude each other; give one.", "grammar")
        return self

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and the limit."""
        return "max_tokens", self.max_tokens

    @property
    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report at each position; None for no log probabilities."""
        return None

    @property
    def requested_prompt_logprobs(self) -> int | None:
        """The same for the positions of the prompt."""
        return None

    @property
    def count_field(self) -> str:
        """The field that asks for more than one answer."""
        return "n"

    def params(self, max_new_tokens: int, choice: int) -> SamplingParams:
        """The engine's sampling options.

        Args:
            max_new_tokens: Limit of the answer.
            choice: Index of the answer among those to one prompt; it is added to the seed.
        """
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=()
            if self.stop is None
            else (self.stop,)
            if isinstance(self.stop, str)
            else tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            logit_bias=_biases(self.logit_bias),
            logprobs=self.requested_logprobs,
            prompt_logprobs=self.requested_prompt_logprobs,
            ignore_eos=self.ignore_eos,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
        )


class CompletionRequest(GenerationBody):
    """`POST /v1/completions`."""

    refused: ClassVar[Refused] = {"best_of": (1,), "suffix": ("",)}
    model: str
    prompt: Prompts
    echo: bool = Field(False, description="Repeat the prompt before the answer, with its log probabilities.")
    max_tokens: int | None = Field(None, ge=0, description="0 only with echo.")
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _something_to_return(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens: expected 1 or more without echo, found 0.", "max_tokens")
        return self

    @property
    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report at each position; None for no log probabilities."""
        return self.logprobs

    @property
    def requested_prompt_logprobs(self) -> int | None:
        """The same for the positions of the prompt."""
        wanted = self.logprobs is not None or self.max_tokens == 0
        return (self.logprobs or 0) if self.echo and wanted else None

    @property
    def count_field(self) -> str:
        """The field that asks for more than one answer."""
        return "n" if self.n > 1 else "prompt"

    def prompts(self) -> list[str | list[int]]:
        """One or more prompts, each text or token ids."""
        return _one_or_more(self.prompt, "prompt")


class EmbeddingRequest(Body):
    """`POST /v1/embeddings`."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Size of the vectors; only the model's own.")
    user: str | None = Field(None, max_length=200, description="Written to the log.")

    def texts(self) -> list[str | list[int]]:
        """One or more texts, each text or token ids."""
        return _one_or_more(self.input, "input", max_texts=_MOST_TEXTS)


class ClassifyRequest(Body):
    """`POST /v1/classify`."""

    model: str
    input: str | list[str] | None = Field(
        None,
        description="One text or more; for a base that reads images, data URLs (data:image/png;base64,...).",
    )
    words: list[str] | list[list[str]] | None = Field(
        None,
        description="Instead of input, for a classifier of words: the words of a text, or of several, as they were "
        "divided for training.",
    )
    label_words: list[str] | dict[str, str] | None = Field(
        None,
        description="Labels for a model that generates: the one whose word is its likeliest answer to input is chosen. "
        "A list of labels that are their own words, or each label's word.",
    )
    fields: dict[str, Any] | list[dict[str, Any]] | None = Field(
        None, description="Instead of input, with label_words: the fields of the adapter's prompt template."
    )
    calibrate: bool = Field(
        False,
        description="With label_words: divide each word's probability by that after a prompt that says N/A.",
    )
    text_pair: str | list[str] | None = Field(
        None, description="The second text of each, for a classifier of pairs such as premise and hypothesis."
    )
    user: str | None = Field(None, max_length=200, description="Written to the log.")

    def texts(self) -> list[tuple[str, ...]]:
        """One text or two for each row; the words of each row, if these are given.

        Raises:
            HttpError: Neither or both of input and words are given, or there are too many.
        """
        for name in ("fields", "calibrate"):
            if getattr(self, name):
                raise invalid(f"{name}: it goes with label_words.", name)
        if (self.input is None) is (self.words is None):
            raise invalid("expected either input or words.", "input")
        if self.input is None:
            return self._rows_of_words()
        firsts = _texts(self.input, "input")
        if self.text_pair is None:
            return [(text,) for text in firsts]
        seconds = _texts(self.text_pair, "text_pair")
        if len(seconds) != len(firsts):
            message = (
                f"text_pair: expected {len(firsts):,} texts, one for each of input; found {len(seconds):,}."
            )
            raise invalid(message, "text_pair")
        return list(zip(firsts, seconds, strict=True))

    def prompts(self) -> Sequence[str | dict[str, Any]]:
        """What a model that generates is asked: texts, or fields of its template.

        Raises:
            HttpError: Neither or both are given, or there are too many.
        """
        for name in ("words", "text_pair"):
            if getattr(self, name) is not None:
                raise invalid(f"{name}: it doesn't go with label_words.", name)
        if (self.input is None) is (self.fields is None):
            raise invalid("expected either input or fields.", "input")
        if self.input is not None:
            found: Sequence[str | dict[str, Any]] = _texts(self.input, "input")
        else:
            found = [self.fields] if isinstance(self.fields, dict) else self.fields or []
        most = _MOST_TEXTS // max(1, len(self.label_words or ()))
        if not 1 <= len(found) <= most:
            raise invalid(
                f"expected 1 to {most:,} prompts with so many label words, found {len(found):,}.", "input"
            )
        return found

    def labels(self) -> LabelWords | None:
        """The labels and their words; None for an adapter with a head.

        Raises:
            HttpError: They can't be distinguished, or there are too few or too many.
        """
        if self.label_words is None:
            return None
        given = self.label_words
        if isinstance(given, list) and len(set(given)) < len(given):
            raise invalid("label_words: a label is given twice.", "label_words")
        try:
            return LabelWords(dict(zip(given, given, strict=True)) if isinstance(given, list) else given)
        except DataError as error:
            raise invalid(f"label_words: {error}.", "label_words") from error

    def _rows_of_words(self) -> list[tuple[str, ...]]:
        given: list[Any] = list(self.words or [])
        rows = [given] if given and isinstance(given[0], str) else given
        if self.text_pair is not None:
            raise invalid("text_pair: words are those of one text.", "text_pair")
        if not 1 <= len(rows) <= _MOST_TEXTS or not all(rows):
            raise invalid(
                f"words: expected the words of 1 to {_MOST_TEXTS:,} texts, at least one of each.", "words"
            )
        if not all(word.strip() for row in rows for word in row):
            raise invalid("words: a word is blank.", "words")
        return [tuple(" ".join(word.split()) for word in row) for row in rows]


def _texts(given: str | list[str], name: str) -> list[str]:
    found = [given] if isinstance(given, str) else given
    if not 1 <= len(found) <= _MOST_TEXTS:
        raise invalid(f"{name}: expected 1 to {_MOST_TEXTS:,} texts, found {len(found):,}.", name)
    return found


def _one_or_more(
    given: str | list[str] | list[int] | list[list[int]], name: str, *, max_texts: int | None = None
) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [[token for token in given if isinstance(token, int)]]
    found: list[str | list[int]] = [one for one in given if not isinstance(one, int)]
    if max_texts is not None and len(found) > max_texts:
        message = f"{name}: expected {max_texts:,} texts at most, found {len(found):,}."
        raise invalid(message, name)
    return found


def _biases(given: dict[str, float]) -> dict[int, float]:
    found = {}
    for token, bias in given.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9 or not -100 <= bias <= 100:
            raise invalid(
                f"logit_bias: expected token ids with numbers from -100 to 100, found {token[:20]!r}: {bias}.",
                "logit_bias",
            )
        found[int(token)] = bias
    return found
