"""Labels from models without a head: which label's word the model finds likeliest as the answer to a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request

from manytune.data.labels.label_words import CONTENT_FREE, LabelWords, label_probabilities
from manytune.data.templates import Segment
from manytune.server.adapters.registry import Model
from manytune.server.answers.formats import PartialAnswer
from manytune.server.answers.replies import collect
from manytune.server.bodies.schema import ClassifyRequest, CompletionRequest
from manytune.server.http_errors import HttpError
from manytune.server.prompts import Prompt, template_of
from manytune.server.service import PromptMaker, Service, WantedAnswer, generate
from manytune.store.manifest import Manifest


@dataclass(frozen=True)
class Chosen:
    """What a model chose.

    Attributes:
        probabilities: Of the labels, for each text.
        model: Who chose.
        read: How many tokens were read.
    """

    probabilities: list[list[float]]
    model: Model
    read: int


async def choose_labels(service: Service, http: Request, body: ClassifyRequest, words: LabelWords) -> Chosen:
    """Have a model that generates choose a label for each text, by the likelihoods of their words.

    A text is a prompt in the encoding of the adapter's training, or fills its template; so many sequences are read as
    there are labels, `max_choices` at a time.

    Args:
        service: The parts of the server.
        http: The HTTP request.
        body: Its body.
        words: The labels and their words.

    Raises:
        HttpError: A text can't be read, or the model can't say how likely a word is.
    """
    if service.has_encoder:
        message = (
            "label_words: the base of this server is an encoder-decoder, whose answers aren't scored here."
        )
        raise HttpError(400, message, code="unsupported_parameter", param="label_words")
    given: list[str | Mapping[str, object] | None] = [*body.prompts()]
    if body.calibrate:
        given.insert(0, None)  # the prompt without content
    labels = len(words.names)
    made = [_Made(service, body, one, words) for one in given]
    makers: list[PromptMaker] = [partial(one.prompt, label) for one in made for label in range(labels)]
    # What /v1/completions does with echo: the model reads a prompt, here with a word behind it.
    how = CompletionRequest.model_validate(
        {"model": body.model, "prompt": "", "echo": True, "logprobs": 0, "max_tokens": 0}
    )
    found: list[PartialAnswer] = []
    models: list[Model] = []
    read, at_once = 0, service.settings.max_choices
    for start in range(0, len(makers), at_once):
        wanted = [WantedAnswer(body.model, maker) for maker in makers[start : start + at_once]]
        answers = await generate(service, http, how, wanted)
        models += answers.models
        read += sum(len(prompt.tokens) for prompt in answers.prompts)
        found += await collect(service, http, answers)
    if len({model.digest for model in models}) > 1:
        message = f"{body.model} has got a new version meanwhile; send the request again."
        raise HttpError(409, message, code="conflict", param="model")
    lengths = [length for one in made for _, length in one.answered]
    nlls = [_nll(answer, length) for answer, length in zip(found, lengths, strict=True)]
    if not all(map(math.isfinite, nlls)):
        raise HttpError(
            409, "a label word's likelihood is NaN or Inf.", code="adapter_unusable", param="model"
        )
    rows = [nlls[start : start + labels] for start in range(0, len(nlls), labels)]
    before = rows.pop(0) if body.calibrate else None
    return Chosen([label_probabilities(row, before) for row in rows], models[0], read)


class _Made:
    """One prompt with each label's word behind it, made once the adapter is known."""

    def __init__(
        self,
        service: Service,
        body: ClassifyRequest,
        given: str | Mapping[str, object] | None,
        words: LabelWords,
    ) -> None:
        self._service, self._body, self._given, self._words = service, body, given, words
        self.answered: list[tuple[Prompt, int]] = []

    def prompt(self, label: int, manifest: Manifest | None) -> Prompt:
        """The prompt with this label's word behind it."""
        if not self.answered:
            segments = _segments(self._body, self._given, manifest)
            self.answered = self._service.prompts.answered(segments, self._words, manifest)
        return self.answered[label][0]


def _segments(
    body: ClassifyRequest, given: str | Mapping[str, object] | None, manifest: Manifest | None
) -> Sequence[Segment]:
    """A prompt's messages: those of the adapter's template with these fields, or a text as the user's."""
    if isinstance(given, str) or body.fields is None:
        return [Segment("user", CONTENT_FREE if not isinstance(given, str) else given)]
    template = template_of(manifest, None)
    if given is not None:
        return template.render_prompt(given)
    names = template.fields_used()
    if names is None:
        message = "calibrate: the adapter's template reads fields that it doesn't name."
        raise HttpError(400, message, code="invalid_value", param="calibrate")
    return template.render_prompt(dict.fromkeys(names, CONTENT_FREE))


def _nll(answer: PartialAnswer, length: int) -> float:
    """The negative log likelihood of the last tokens of what was read."""
    scores = answer.prompt_logprobs
    if scores is None or len(scores) < length:
        return math.nan
    return -sum(one.logprob for one in scores[-length:])
