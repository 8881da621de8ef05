"""A tokenizer's chat template with the options that a fine-tune keeps: its variables and its date."""

from __future__ import annotations

import datetime
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from manytune.data.answer_format import AnswerFormat
from manytune.data.nearest import did_you_mean
from manytune.data.rendering import shorten
from manytune.errors import DataError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Messages = Sequence[Mapping[str, str]]

_PROBE = "manytune"  # an answer whose end can be found in what a chat template makes of it
_ASKED = [{"role": "user", "content": _PROBE}]
_THOUGHT = "thoughts of it"
_THINK = ("<think>", "</think>")
_NO_CHAT = "turn chat off (in a recipe, data.chat: false)"
_DIRECTIVES = [f"%{letter}" for letter in "aAwdbBmyYHIpMSfzZjUWcxXe"]  # of strftime
_WITHOUT_ZEROS = {f"%-{letter}": f"%{letter}" for letter in "dmHIMSj"}
_NOT_OPTIONS = {"messages", "strftime_now", "raise_exception"}


class ChatTemplate:
    """Renders conversations, and knows what the template puts around an answer.

    Args:
        tokenizer: Has the template.
        options: Values of the template's own variables, such as `enable_thinking`.
        now: What the template takes for the present, if it writes a date; None for the time at which it renders.
        special_tokens: Texts that are one token each; the first of them after an answer ends it.
        eos: What ends an answer of a template without such a token.

    Attributes:
        uses_date: Whether the template writes a date.
        answers: What is an answer in generated text.
        suffix: What the template puts after an answer, all of it.

    Raises:
        DataError: An option isn't a variable of the template.
        TemplateError: The template can't be used for training.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        options: Mapping[str, Any],
        now: datetime.datetime | None,
        special_tokens: Collection[str],
        eos: str | None,
    ) -> None:
        self._tokenizer = tokenizer
        text = str(tokenizer.get_chat_template())
        check_options(tokenizer, text, options)
        self._options = dict(options)
        self.uses_date = uses_date(tokenizer)
        self._text = _with_date(text, now) if self.uses_date and now is not None else text
        opening, found, self.suffix = self.answered(_ASKED, _PROBE).rpartition(_PROBE)
        if not found:
            raise TemplateError(
                f"the tokenizer's chat template leaves out the assistant's answer; {_NO_CHAT}"
            )
        closing, end = _ending(self.suffix, special_tokens, eos)
        if end is None:
            raise DataError(no_end_token(tokenizer))
        self.answers = AnswerFormat(opening, closing, end, self._around_reasoning())

    def prompt(self, messages: _Messages) -> str:
        """Return the messages' text and the beginning of an answer to them.

        Raises:
            TemplateError: The template refuses the messages.
        """
        return self._apply(messages, generation_prompt=True)

    def answered(self, messages: _Messages, completion: str, **more: str) -> str:
        """Return what the template adds to the prompt when an answer is appended.

        Args:
            messages: The prompt's.
            completion: The answer.
            more: Further keys of the answer's message.

        Raises:
            TemplateError: The template refuses the messages, or then writes the prompt differently.
        """
        prompt = self.prompt(messages)
        answer = {"role": "assistant", "content": completion, **more}
        whole = self._apply([*messages, answer], generation_prompt=False)
        if not whole.startswith(prompt):
            raise TemplateError(
                "the chat template writes a prompt differently once it is answered, so the model would be "
                f"served something else than it was trained on: the prompt ends in {excerpt(prompt[-40:])}, "
                f"and the conversation has {excerpt(whole[max(0, len(prompt) - 40) : len(prompt)])} there. "
                f"Use a chat template whose generation prompt begins the answer, or {_NO_CHAT}"
            )
        return whole[len(prompt) :]

    def body(self, messages: _Messages, completion: str) -> str:
        """Return what the template makes of an answer, up to the end token, which isn't in it.

        Raises:
            TemplateError: As for `answered`, or the template changes the answer.
        """
        answer = self.answered(messages, completion)
        body = answer.removesuffix(self.suffix)
        if not answer.endswith(self.suffix) or completion.strip() not in body:
            raise TemplateError(
                f"the chat template changes the completion {excerpt(completion)} to "
                f"{excerpt(answer)}. Take out what the template treats specially, or {_NO_CHAT}"
            )
        return body + self.answers.closing

    def _around_reasoning(self) -> tuple[str, str] | None:
        """What the template puts before and after reasoning; None if it has none."""
        try:
            answer = self.answered(_ASKED, _PROBE, reasoning_content=_THOUGHT)
        except TemplateError:  # such as that of an empty block in the prompt, where reasoning is turned off
            answer = ""
        before, found, after = answer.partition(_THOUGHT)
        if found:
            return before, after.partition(_PROBE)[0]
        if _THINK[1] not in self._text:
            return None
        return ("" if self.prompt(_ASKED).rstrip().endswith(_THINK[0]) else _THINK[0]), _THINK[1]

    def _apply(self, messages: _Messages, *, generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self._options,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise TemplateError(f"the chat template refuses the messages ({roles}): {error}") from error
        assert isinstance(text, str)
        return text


def end_token_of(tokenizer: PreTrainedTokenizerBase, special_tokens: Collection[str]) -> str | None:
    """Return the token that ends an answer in a chat template, also in one that `ChatTemplate` refuses.

    None if there is no template, or none of its tokens does.
    """
    if not tokenizer.chat_template:
        return None
    messages = [*_ASKED, {"role": "assistant", "content": _PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except jinja2.TemplateError:
        return None
    return _ending(text.rpartition(_PROBE)[2], special_tokens, None)[1]


def _ending(suffix: str, special_tokens: Collection[str], eos: str | None) -> tuple[str, str | None]:
    """What is between an answer and the token that ends it, and that token.

    A template without an end token, such as Alpaca's, gets the tokenizer's: generation must stop.
    """
    places = {suffix.index(token): token for token in special_tokens if token in suffix}
    return (suffix[: min(places)], places[min(places)]) if places else ("", eos)


def uses_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer's chat template writes today's date."""
    return "strftime_now" in str(tokenizer.get_chat_template())


def check_options(tokenizer: PreTrainedTokenizerBase, template: str, options: Mapping[str, Any]) -> None:
    """Refuse options that would be ignored, or that are manytune's to set.

    Raises:
        DataError: There is one.
    """
    taken = {*inspect.signature(tokenizer.apply_chat_template).parameters, *_NOT_OPTIONS}
    words = set(re.findall(r"[^\W\d]\w*", template))
    for name in options:
        if name in taken:
            raise DataError(
                f"chat_template_kwargs: {name!r} isn't an option of the template; manytune sets it"
            )
        if name not in words:
            raise DataError(
                f"chat_template_kwargs: the chat template has no variable {name!r}{did_you_mean(name, words - taken)}"
            )


def no_end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the message that a tokenizer lacks an end token."""
    return (
        f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, so the model couldn't "
        "learn where a completion ends. Set tokenizer.eos_token"
    )


def excerpt(text: str) -> str:
    """Return the beginning of a text, quoted."""
    return repr(shorten(text))


def _with_date(template: str, now: datetime.datetime) -> str:
    """A template that takes `now` for the present.

    transformers hands a template plain values only, so the function that it calls is written into it. The line break
    after the tag isn't printed, and what follows it is at the beginning of a line, as before.
    """
    texts = {code: now.strftime(code) for code in _DIRECTIVES}
    texts |= {short: str(int(texts[code])) for short, code in _WITHOUT_ZEROS.items()}
    replaced = "".join(f" | replace({code!r}, {text!r})" for code, text in {**texts, "%%": "%"}.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"
