"""A tokenizer's chat template with the options that a fine-tune keeps: its variables and its date."""

from __future__ import annotations

import datetime
import functools
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jinja2

from manytune.chat_rendering import render_chat
from manytune.data.conversation.chat_messages import chat_messages, chat_tools
from manytune.data.conversation.conversation import Message, ToolCall
from manytune.data.conversation.generation_marks import Spans, marking, unmarked
from manytune.data.conversation.tools_as_text import tools_as_text
from manytune.data.encoding.answer_format import AnswerFormat
from manytune.data.nearest import did_you_mean
from manytune.data.rendering import shorten
from manytune.errors import DataError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Message]
Tools = Sequence[Mapping[str, Any]]

_PROBE = "manytune"  # an answer whose end can be found in what a chat template makes of it
_ASKED = (Message("user", _PROBE),)
_ANSWER = Message("assistant", _PROBE)
_THOUGHT = "thoughts of it"
_THINK = ("<think>", "</think>")
_FUNCTION, _RESULT, _ID = (
    "manytune_probe",
    "found by manytune",
    "abcdefghi",
)  # Mistral's ids have nine letters
_TOOL = {
    "type": "function",
    "function": {
        "name": _FUNCTION,
        "description": _PROBE,
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string", "description": "A name."}},
            "required": ["name"],
        },
    },
}
_CALLED = (
    *_ASKED,
    Message("assistant", "", tool_calls=(ToolCall(_FUNCTION, '{"name": "x"}', _ID),)),
    Message("tool", _RESULT, name=_FUNCTION, tool_call_id=_ID),
)
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
        probe: What it makes of a short conversation.

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
        self._marking = marking(self._text)
        self._last: tuple[object, str] | None = None
        answered = self.answered(_ASKED, _ANSWER)
        self.probe = self.prompt(_ASKED) + answered
        opening, found, self.suffix = answered.rpartition(_PROBE)
        if not found:
            raise TemplateError(
                f"the tokenizer's chat template leaves out the assistant's answer; {_NO_CHAT}"
            )
        closing, end = _ending(self.suffix, special_tokens, eos)
        if end is None:
            raise DataError(no_end_token(tokenizer))
        self.answers = AnswerFormat(opening, closing, end, self._around_reasoning())

    @functools.cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes tools, calls and their answers; else they are written as text.

        `tools_as_text` says how.
        """
        try:
            described = self._apply(_ASKED, [_TOOL], generation_prompt=True)
            called = self._apply(_CALLED, (), generation_prompt=False)
        except TemplateError:
            return False
        return _FUNCTION in described and _FUNCTION in called and _RESULT in called

    def prompt(self, messages: Messages, tools: Tools = ()) -> str:
        """Return the messages' text and the start of an answer to them.

        Args:
            messages: In order.
            tools: The functions that the assistant may call.

        Raises:
            TemplateError: The template refuses the messages.
        """
        return self._prompt(*self._written(messages, tools))

    def answered(self, messages: Messages, answer: Message, tools: Tools = ()) -> str:
        """Return what the template adds to the prompt when an answer is appended.

        Args:
            messages: The prompt's.
            answer: The assistant's message.
            tools: The functions that the assistant may call.

        Raises:
            TemplateError: The template refuses the messages, or then writes the prompt differently.
        """
        (*asked, said), tools = self._written([*messages, answer], tools)
        prompt = self._prompt(asked, tools)
        whole = self._apply([*asked, said], tools, generation_prompt=False)
        if not whole.startswith(prompt):
            # Mistral's writes the system message into a question that isn't answered, and nowhere else. What it writes
            # of the answer is the same, and the model is given what it will be served.
            alone = "" if asked == [*_ASKED] else self.answered(_ASKED, said)
            if alone and whole.endswith(alone):
                return alone
            raise TemplateError(
                "the chat template writes a prompt differently once it is answered, so the model would be "
                f"served something else than it was trained on: the prompt ends in {excerpt(prompt[-40:])}, "
                f"and the conversation has {excerpt(whole[max(0, len(prompt) - 40) : len(prompt)])} there. "
                f"Use a chat template whose generation prompt begins the answer, or {_NO_CHAT}"
            )
        return whole[len(prompt) :]

    def body(self, messages: Messages, answer: Message, tools: Tools = ()) -> str:
        """Return what the template makes of an answer, up to the end token, which isn't in it.

        Raises:
            TemplateError: As for `answered`, or the template changes the answer, or leaves out a part of it.
        """
        (*_, said), _ = self._written([*messages, answer], tools)
        text = self.answered(messages, answer, tools)
        body = text.removesuffix(self.suffix)
        if not text.endswith(self.suffix) or said.text.strip() not in body:
            raise TemplateError(
                f"the chat template changes the completion {excerpt(said.text)} to "
                f"{excerpt(text)}. Take out what the template treats specially, or {_NO_CHAT}"
            )
        if said.reasoning is not None and said.reasoning.strip() not in body:
            raise TemplateError(
                f"the chat template leaves out the reasoning of an answer, {excerpt(said.reasoning)}, so the model "
                "wouldn't learn it. Use a chat template that writes reasoning_content, or take it out of the rows"
            )
        for call in said.tool_calls:
            if call.name not in body:
                raise TemplateError(
                    f"the chat template leaves out the call of {call.name!r}, so the model wouldn't learn it"
                )
        return body + self.answers.closing

    def begun(self, messages: Messages, answer: Message, tools: Tools = ()) -> str:
        """Return what the template makes of an answer that is to be continued: up to the end of its text.

        Raises:
            TemplateError: As for `body`.
        """
        body = self.body(messages, answer, tools)
        text = answer.text.rstrip()
        place = body.rindex(text) + len(text)
        left = answer.text[
            len(text) :
        ]  # a blank at the end is part of what is continued, if the template keeps it
        return body[:place] + (left if body[place:].startswith(left) else "")

    def generated(self, messages: Messages, answer: Message, tools: Tools = ()) -> Spans | None:
        """Return which characters of `answered` the template marks as the model's own, `{% generation %}`.

        Returns:
            Ranges of characters, in order; None if the template has no such marks.

        Raises:
            TemplateError: The marks aren't on the answer, or not on all of its text.
        """
        if self._marking is None:
            return None
        written, left = self._written([*messages, answer], tools)
        prompt = self._prompt(written[:-1], left)
        whole = self._apply(written, left, generation_prompt=False)
        plain, spans = unmarked(self._apply(written, left, generation_prompt=False, template=self._marking))
        turn = f"message {len(written)} ({excerpt(answer.text)})"
        if plain != whole:
            raise TemplateError(
                f"where the chat template marks what is generated can't be found for {turn}: a variable that is set "
                f"between {{% generation %}} and {{% endgeneration %}} is used after it"
            )
        inside = [span for span in spans if span[1] > len(prompt)]
        outside = [span for span in spans if span[1] <= len(prompt)]
        if outside and not any(message.is_answer for message in written[:-1]):
            start, end = outside[0]
            raise TemplateError(
                f"the chat template marks {excerpt(whole[start:end])} as generated, which is no answer: it comes "
                f"before {turn}. Correct its {{% generation %}} marks, or {_NO_CHAT}"
            )
        said = "".join(whole[start:end] for start, end in inside)
        if not inside or inside[0][0] < len(prompt) or written[-1].text.strip() not in said:
            raise TemplateError(
                f"the chat template's {{% generation %}} marks aren't on the text of {turn}: they are on "
                f"{excerpt(said)}. Correct them, or {_NO_CHAT}"
            )
        return tuple((start - len(prompt), end - len(prompt)) for start, end in inside)

    def _written(self, messages: Messages, tools: Tools) -> tuple[Messages, Tools]:
        """Messages and tools as the template takes them: as text where it has no place for them."""
        has_tools = bool(tools) or any(m.role == "tool" or m.tool_calls for m in messages)
        if not has_tools or self.writes_tools:
            return messages, tools
        return tools_as_text(messages, tools), ()

    def _around_reasoning(self) -> tuple[str, str] | None:
        """What the template puts before and after reasoning; None if it has none."""
        try:
            answer = self.answered(_ASKED, replace(_ANSWER, reasoning=_THOUGHT))
        except TemplateError:  # such as that of an empty block in the prompt, where reasoning is turned off
            answer = ""
        before, found, after = answer.partition(_THOUGHT)
        if found:
            return before, after.partition(_PROBE)[0]
        if _THINK[1] not in self._text:
            return None
        return ("" if self.prompt(_ASKED).rstrip().endswith(_THINK[0]) else _THINK[0]), _THINK[1]

    def _prompt(self, messages: Messages, tools: Tools) -> str:
        """The last prompt is kept: it is asked for again when its answer is looked at."""
        asked = (tuple(messages), tuple(tools))
        if self._last is None or self._last[0] != asked:
            self._last = (asked, self._apply(messages, tools, generation_prompt=True))
        return self._last[1]

    def _apply(
        self, messages: Messages, tools: Tools, *, generation_prompt: bool, template: str | None = None
    ) -> str:
        try:
            return render_chat(
                template or self._text,
                chat_messages(messages),
                {**self._tokenizer.special_tokens_map, **self._options},
                tools=[*chat_tools(tools)] or None,
                add_generation_prompt=generation_prompt,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise TemplateError(f"the chat template refuses the messages ({roles}): {error}") from error
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            RecursionError,
            ArithmeticError,
        ) as error:  # it is a program
            roles = ", ".join(message.role for message in messages)
            raise TemplateError(
                f"the chat template failed on the messages ({roles}): {type(error).__name__}: {error}"
            ) from error


def end_token_of(tokenizer: PreTrainedTokenizerBase, special_tokens: Collection[str]) -> str | None:
    """Return the token that ends an answer in a chat template, also in one that `ChatTemplate` refuses.

    None if there is no template, or none of its tokens does.
    """
    if not tokenizer.chat_template:
        return None
    messages = chat_messages([*_ASKED, _ANSWER])
    try:
        text = render_chat(str(tokenizer.get_chat_template()), messages, tokenizer.special_tokens_map)
    except Exception:  # a template is a program: it can raise anything
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


def no_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the message that there are options for a chat template that isn't used."""
    why = (
        "chat is turned off"
        if tokenizer.chat_template
        else f"{tokenizer.name_or_path!r} has no such template"
    )
    return f"chat_template_kwargs go to a chat template, and there is none: {why}"


def no_end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the message that a tokenizer lacks an end token."""
    return (
        f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, so the model couldn't "
        "learn where a completion ends. Set tokenizer.eos_token"
    )


def excerpt(text: str) -> str:
    """Return the start of a text, quoted."""
    return repr(shorten(text))


def _with_date(template: str, now: datetime.datetime) -> str:
    """A template that takes `now` for the present.

    transformers hands a template plain values only, so the function that it calls is written into it. The line break
    after the tag isn't printed, and what follows it is at the start of a line, as before.
    """
    texts = {code: now.strftime(code) for code in _DIRECTIVES}
    texts |= {short: str(int(texts[code])) for short, code in _WITHOUT_ZEROS.items()}
    replaced = "".join(f" | replace({code!r}, {text!r})" for code, text in {**texts, "%%": "%"}.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"
