"""A conversation in the terminal: its turns, who answers, and how an answer is shown while it comes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.encoding.answer_format import AnswerStream, Reply
    from manytune.data.templates import Segment
    from manytune.engine.engine import Engine
    from manytune.engine.request import FinishReason, SamplingParams
    from manytune.store.base import Base


class Conversation:
    """What was said so far, and who answers next.

    Args:
        base: The base.
        engine: An engine for it.
        params: How answers are generated.
        adapter: Who answers; None for the plain base.
        system: A system message; None for none.
        interactive: Whether a person reads along in a terminal, who also sees reasoning and why an answer ends.
    """

    def __init__(
        self,
        base: Base,
        engine: Engine,
        params: SamplingParams,
        adapter: Chosen | None,
        *,
        system: str | None,
        interactive: bool,
    ) -> None:
        self._base = base
        self._engine = engine
        self._params = params
        self._system = system
        self._interactive = interactive
        self._turns: list[Segment] = []
        self.answer_with(adapter)
        self.start_again()

    def start_again(self) -> None:
        """Forget every turn but the system message."""
        from manytune.data.templates import Segment

        self._turns = [] if self._system is None else [Segment("system", self._system)]

    def answer_with(self, adapter: Chosen | None) -> None:
        """Let another adapter answer from the next turn on.

        Args:
            adapter: The adapter, checked against the base; None for the plain base.

        Raises:
            ConfigError: The engine can't run it.
        """
        from manytune.data.encoding.encode import Encoder
        from manytune.store.resident import read_resident

        base = self._base
        if adapter is None:
            encoder = Encoder(base.tokenizer, max_length=None, encoder_decoder=base.is_encoder_decoder)
        else:
            encoder = adapter.encoder(base, new_tokens=self._params.max_new_tokens)
            self._engine.add_adapter("adapter", read_resident(adapter.stored.path))
        self._adapter, self._encoder = adapter, encoder

    def say(self, message: str) -> None:
        """Print the answer to a message while it comes. Both become turns, or neither if there can be no answer.

        Raises:
            ManytuneError: There can't, as the conversation is longer than the base reads, for example.
        """
        from manytune.data.encoding.answer_format import AnswerStream
        from manytune.data.templates import Segment
        from manytune.engine.request import Request

        turns, end = [*self._turns, Segment("user", message)], self._encoder.end_id
        request = Request(
            "conversation",
            self._encoder.prompt_ids(turns),
            replace(self._params, stop_token_ids=(end,)),
            adapter=None if self._adapter is None else "adapter",
            silent_ids=frozenset({end}),
        )
        self._engine.submit(request)
        try:
            answer = self._show(AnswerStream(self._encoder.answers))
        finally:
            self._engine.cancel(request.id)
        self._turns = [*turns, Segment("assistant", answer.content, answer.reasoning or None)]

    def _show(self, stream: AnswerStream) -> Reply:
        """Print what each step adds to the answer, to its end or to Ctrl-C."""
        from manytune.engine.memory import check_given

        shown = _Shown(self._interactive)
        reason: FinishReason | None = None
        with _noticed() as interrupted:
            while self._engine.busy and not interrupted():
                for output in self._engine.step():
                    check_given(output)
                    shown.add(stream.push(output.text))
                    reason = output.finish_reason
        shown.add(stream.finish())
        return shown.end("cancelled" if reason is None else reason)


class _Shown:
    """An answer on the terminal, and what the model wrote before it: dimmed, or not at all."""

    def __init__(self, interactive: bool) -> None:
        self._interactive = interactive
        self._content = self._reasoning = ""

    def add(self, new: Reply) -> None:
        """Print what comes next."""
        self._reasoning += new.reasoning
        if self._interactive and new.reasoning:
            typer.secho(visible(new.reasoning), nl=False, dim=True)
        if self._interactive and self._reasoning and new.content and not self._content:
            typer.echo("\n\n", nl=False)
        typer.echo(visible(new.content), nl=False)
        self._content += new.content

    def end(self, reason: FinishReason) -> Reply:
        """End the line, and tell a person why the answer ends where the model didn't end it."""
        from manytune.data.encoding.answer_format import Reply

        why = {
            "stop": "" if self._content else "an empty answer",
            "cancelled": "interrupted",
            "length": "cut off: --max-new-tokens",
            "failed": "the model computed NaN or Inf",
        }.get(reason, reason)
        if why and self._interactive:
            typer.secho(f"{' ' if self._content or self._reasoning else ''}({why})", nl=False, dim=True)
        typer.echo()
        return Reply(self._content, self._reasoning)


@contextmanager
def _noticed() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noticed between two steps, so that none is left half done; a second one ends the program."""
    pressed: list[int] = []

    def note(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    former = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, former)
