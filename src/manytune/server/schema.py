"""The bodies of requests. Every field of OpenAI's API is implemented or refused by name; none is ignored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from manytune.data.templates import Segment
from manytune.engine.request import SamplingParams
from manytune.server.body_errors import EXPECTED, alternatives, described
from manytune.server.field_types import LIST, STRING, Prompts, Stops, string_or_list
from manytune.server.http_errors import HttpError

_Refused = dict[str, tuple[Any, ...]]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Body(BaseModel):
    """A request body without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    #: OpenAI's fields that this server doesn't implement, each with the values that have no effect.
    refused: ClassVar[_Refused] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in cls.refused.items():
            if name in values and values[name] is not None and values[name] not in neutral:
                raise HttpError(
                    400,
                    f"{name} isn't implemented by this server; leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )
        # Clients send null for what they leave out.
        return {
            name: value for name, value in values.items() if value is not None and name not in cls.refused
        }


class StreamOptions(_Body):
    """What a stream contains in addition to text."""

    refused: ClassVar[_Refused] = {"include_obfuscation": (False,)}
    include_usage: bool = False


class GenerationBody(_Body):
    """The fields of all routes that generate text."""

    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    stop: Stops | None = None
    seed: _Seed | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, float] = Field(default_factory=dict, max_length=1024)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=200, description="Written to the log.")
    # Not OpenAI's.
    top_k: int | None = Field(None, ge=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    ignore_eos: bool = Field(False, description="Continue after an end token, up to the limit.")

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise HttpError(
                400, "stream_options needs stream=true.", code="invalid_value", param="stream_options"
            )
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
            logit_bias=_biases(self.logit_bias),
            logprobs=self.requested_logprobs,
            prompt_logprobs=self.requested_prompt_logprobs,
            ignore_eos=self.ignore_eos,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
        )


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type", "text") != "text":
            found = f"one of type {described(values['type'])}"
            raise PydanticCustomError(
                EXPECTED, "a part of type 'text', as this server reads nothing else", {"found": found}
            )
        return values


_Content = Annotated[
    Annotated[str, Tag(STRING)] | Annotated[list[TextPart], Tag(LIST)],
    alternatives("a string or a list of parts", string_or_list),
]


class Message(_Body):
    """One turn of a conversation."""

    refused: ClassVar[_Refused] = {
        "name": (),
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "refusal": (),
        "audio": (),
        "annotations": ([],),
    }
    role: Literal["system", "developer", "user", "assistant"]
    content: _Content
    reasoning_content: str | None = Field(
        None, description="What the model wrote before an answer of its own, as it was returned."
    )

    @model_validator(mode="after")
    def _models_own_reasoning(self) -> Self:
        if self.reasoning_content is not None and self.role != "assistant":
            raise HttpError(
                400,
                f"reasoning_content belongs to messages of the assistant, not of {self.role}.",
                code="invalid_value",
                param="messages",
            )
        return self

    def segment(self) -> Segment:
        """The message as training has it."""
        role: Literal["system", "user", "assistant"] = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Segment(role, text, self.reasoning_content)


_REFUSED_IN_CHAT: _Refused = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


class Conversation(GenerationBody):
    """Messages, or fields for an adapter's prompt template."""

    messages: list[Message] = Field(default_factory=list, max_length=1000)
    fields: dict[str, Any] | None = Field(
        None, description="For the adapter's prompt template, in place of messages."
    )
    task: str | None = Field(
        None, description="The task whose template to use, for an adapter trained on several."
    )
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        max_length=64,
        description="Values of the chat template's variables, in place of the adapter's; such as enable_thinking.",
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if bool(self.messages) == (self.fields is not None):
            raise HttpError(400, "give either messages or fields.", code="invalid_value", param="messages")
        if self.task is not None and self.fields is None:
            raise HttpError(
                400,
                "task selects the template for fields, and there are no fields.",
                code="invalid_value",
                param="task",
            )
        if (
            None not in (self.max_tokens, self.max_completion_tokens)
            and self.max_tokens != self.max_completion_tokens
        ):
            raise HttpError(
                400,
                "max_tokens and max_completion_tokens differ; give one.",
                code="invalid_value",
                param="max_tokens",
            )
        return self

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and the limit."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().token_limit


class ChatRequest(Conversation):
    """`POST /v1/chat/completions`."""

    refused: ClassVar[_Refused] = _REFUSED_IN_CHAT
    model: str
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _logprobs_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise HttpError(
                400, "top_logprobs needs logprobs=true.", code="invalid_value", param="top_logprobs"
            )
        return self

    @property
    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report at each position; None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompareRequest(Conversation):
    """`POST /v1/compare`: one prompt for many models at once."""

    refused: ClassVar[_Refused] = {**_REFUSED_IN_CHAT, "n": (1,)}
    models: list[str] = Field(min_length=1)
    temperature: float = Field(0.0, ge=0, le=2)
    stream: bool = True

    @property
    def count_field(self) -> str:
        """The field that asks for more than one answer."""
        return "models"


class CompletionRequest(GenerationBody):
    """`POST /v1/completions`."""

    refused: ClassVar[_Refused] = {"best_of": (1,), "suffix": ("",)}
    model: str
    prompt: Prompts
    echo: bool = Field(False, description="Repeat the prompt before the answer, with its log probabilities.")
    max_tokens: int | None = Field(None, ge=0, description="0 only with echo.")
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _something_to_return(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise HttpError(
                400,
                "max_tokens: expected 1 or more without echo, found 0.",
                code="invalid_value",
                param="max_tokens",
            )
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


class EmbeddingRequest(_Body):
    """`POST /v1/embeddings`."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Size of the vectors; only the model's own.")
    user: str | None = Field(None, max_length=200, description="Written to the log.")

    def texts(self) -> list[str | list[int]]:
        """One or more texts, each text or token ids."""
        return _one_or_more(self.input, "input", max_texts=2048)


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
        raise HttpError(400, message, code="invalid_value", param=name)
    return found


def _biases(given: dict[str, float]) -> dict[int, float]:
    found = {}
    for token, bias in given.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9 or not -100 <= bias <= 100:
            raise HttpError(
                400,
                f"logit_bias: expected token ids with numbers from -100 to 100, found {token[:20]!r}: {bias}.",
                code="invalid_value",
                param="logit_bias",
            )
        found[int(token)] = bias
    return found
