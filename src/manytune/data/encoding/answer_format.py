"""What is an answer in the text that a model generates, and what its chat template puts around it.

Templates of reasoning models write an empty block before an answer without reasoning, such as Qwen3's `<think>` and
`</think>` with nothing but line breaks between them. A model that is trained with such a template generates it, too. It
is no part of the answer, and neither is reasoning that the model wrote itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """Generated text, taken apart.

    Attributes:
        content: The answer.
        reasoning: What the model wrote before it; empty for none.
    """

    content: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What is around an answer in generated text.

    Attributes:
        opening: What the template puts between the prompt and an answer without reasoning.
        closing: What it puts between the answer and the end token.
        end: The end token's text.
        reasoning: What comes before and after reasoning; None if the template has none. The first is empty if the
            prompt itself ends with it.
    """

    opening: str = ""
    closing: str = ""
    end: str = ""
    reasoning: tuple[str, str] | None = None

    def read(self, text: str) -> Reply:
        """Take generated text apart; the end token isn't in it."""
        stream = AnswerStream(self)
        first, last = stream.push(text), stream.finish()
        return Reply(first.content + last.content, first.reasoning + last.reasoning)

    def reference(self, completion: str) -> str:
        """Return what of a completion is its answer: all but reasoning and an end token that is written in it."""
        text = self.without_end(completion)
        if self.reasoning is None:
            return text
        _, closed, content = text.partition(self.reasoning[1].strip())
        return content.lstrip("\n") if closed else text

    def without_end(self, completion: str) -> str:
        """Return a completion without an end token that is written at its end, since training adds one."""
        written = completion.rstrip()
        return written.removesuffix(self.end) if self.end and written.endswith(self.end) else completion


BARE = AnswerFormat()
"""Nothing around an answer: all generated text is the answer."""


class AnswerStream:
    """Takes an answer apart while it comes: no text is given out before it is certain what it belongs to.

    Args:
        form: What is around the answer.
    """

    def __init__(self, form: AnswerFormat) -> None:
        self._form = form
        self._pending = ""
        self._reasoned = False
        # Whether the answer's start is being read, reasoning, white space after it, or the answer.
        self._part = "start" if form.opening or form.reasoning is not None else "content"

    def push(self, text: str) -> Reply:
        """Take the next part of generated text; return what of the reply is certain by then."""
        self._pending += text
        return self._advance(ended=False)

    def finish(self) -> Reply:
        """Return the rest, as the text has ended."""
        return self._advance(ended=True)

    def _advance(self, *, ended: bool) -> Reply:
        reasoning = ""
        if self._part == "start":
            self._leave_start(ended)
        if self._part == "reasoning":
            reasoning = self._take_reasoning(ended)
        if self._part == "gap":
            self._pending = self._pending.lstrip("\n")
            self._part = "content" if self._pending else "gap"
        return Reply(self._take_content(ended) if self._part == "content" else "", reasoning)

    def _leave_start(self, ended: bool) -> None:
        """Find out whether the text begins with the template's opening, with reasoning, or with the answer."""
        opening = self._form.opening
        if opening and self._pending.startswith(opening):
            self._pending = self._pending[len(opening) :]
            self._part = "content"
            return
        undecided = bool(opening) and opening.startswith(self._pending) and not ended
        if self._form.reasoning is not None and not undecided:
            mark = self._form.reasoning[0].strip()
            begun = self._pending.lstrip()
            if begun.startswith(mark):
                self._pending = begun[len(mark) :]
                self._part = "reasoning"
                return
            undecided = mark.startswith(begun)
        if ended or not undecided:
            self._part = "content"

    def _take_reasoning(self, ended: bool) -> str:
        """What of the reasoning is certain, without the white space around it."""
        assert self._form.reasoning is not None
        mark = self._form.reasoning[1].strip()
        before, closed, after = self._pending.partition(mark)
        if not self._reasoned:
            before = before.lstrip()
        if closed or ended:
            self._pending, self._part = after, "gap" if closed else "reasoning"
            return before.rstrip()
        kept = len(before[: len(before) - beginning_held(before, mark)].rstrip())
        self._reasoned = self._reasoned or kept > 0
        self._pending = before[kept:]
        return before[:kept]

    def _take_content(self, ended: bool) -> str:
        closing = self._form.closing
        if ended:
            text, self._pending = self._pending.removesuffix(closing), ""
            return text
        held = max(beginning_held(self._pending, closing), len(closing) * self._pending.endswith(closing))
        text, self._pending = (
            self._pending[: len(self._pending) - held],
            self._pending[len(self._pending) - held :],
        )
        return text


def beginning_held(text: str, mark: str) -> int:
    """Return the length of the longest prefix of `mark`, short of all of it, that `text` ends with."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
