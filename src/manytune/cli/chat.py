"""`manytune chat`: a conversation in the terminal, with an adapter or the plain base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.cli.adapters.arguments import DEFAULT_STORE, Store, stored_names
from manytune.cli.options import MovedBase
from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.data.encoding.answer_format import AnswerStream, Reply
    from manytune.engine.engine import Engine
    from manytune.engine.request import Request


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("chat")(chat)


def chat(
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A run's or an adapter's directory, or a name in the store; none for the plain base.",
            show_default=False,
            autocompletion=stored_names,
        ),
    ] = None,
    base: MovedBase = None,
    store: Store = DEFAULT_STORE,
    system: Annotated[str | None, typer.Option(help="A system message.", show_default=False)] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 for the likeliest answer; more for variety.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut answers at this many tokens.")] = 256,
) -> None:
    """Talk to an adapter, each line a message. An empty line starts over, Ctrl-D ends.

    Messages are encoded as the adapter was trained, but go through no template of its own; `manytune generate --field`
    does that.
    """
    from manytune.cli.chosen import answering_device, choose, load_common_base
    from manytune.data.encoding.answer_format import AnswerStream
    from manytune.data.encoding.encode import Encoder
    from manytune.data.templates import Segment
    from manytune.engine.engine import Engine
    from manytune.engine.request import Request, SamplingParams
    from manytune.store.base import load_base
    from manytune.store.resident import read_resident

    if adapter is not None:
        chosen = choose([adapter], store)
        loaded, chosen = load_common_base(chosen, base)
        encoder = chosen[0].encoder(loaded, new_tokens=max_new_tokens)
    elif base is not None:
        loaded = load_base(base, device=answering_device())
        encoder = Encoder(loaded.tokenizer, max_length=None, encoder_decoder=loaded.is_encoder_decoder)
    else:
        raise typer.BadParameter("name an adapter, or a base alone", param_hint="--adapter or --base")
    engine = Engine(loaded.model, loaded.tokenizer, end_ids=[encoder.end_id])
    if adapter is not None:
        engine.add_adapter("adapter", read_resident(chosen[0].stored.path))
    first_turns = [] if system is None else [Segment("system", system)]
    turns = list(first_turns)
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    interactive = typer.get_text_stream("stdin").isatty()
    while (message := _read(interactive)) is not None:
        if not message:
            turns = list(first_turns)
            continue
        turns.append(Segment("user", message))
        request = Request(
            "turn", encoder.prompt_ids(turns), params, adapter=None if adapter is None else "adapter"
        )
        stream = AnswerStream(encoder.answers)
        content, reasoning = _answer(engine, request, stream, show_reasoning=interactive)
        turns.append(Segment("assistant", content, reasoning or None))


def _read(interactive: bool) -> str | None:
    """A line without its end; None at the end of input."""
    if interactive:
        typer.echo("> ", nl=False)
    line = typer.get_text_stream("stdin").readline()
    return line.strip() if line else None


def _answer(
    engine: Engine, request: Request, stream: AnswerStream, *, show_reasoning: bool
) -> tuple[str, str]:
    """The answer and what the model wrote before it, printed as they come; the latter dimmed, or not at all."""
    engine.submit(request)
    content = reasoning = ""
    try:
        for new in _replies(engine, stream):
            reasoning += new.reasoning
            if show_reasoning:
                typer.secho(visible(new.reasoning), nl=False, dim=True)
                typer.echo("\n\n" if reasoning and new.content and not content else "", nl=False)
            typer.echo(visible(new.content), nl=False)
            content += new.content
    except KeyboardInterrupt:  # this answer is enough; the conversation continues
        engine.cancel(request.id)
    typer.echo()
    return content, reasoning


def _replies(engine: Engine, stream: AnswerStream) -> Iterator[Reply]:
    """What each step of the engine adds to the answer."""
    from manytune.engine.memory import check_given

    while engine.busy:
        for output in engine.step():
            check_given(output)
            yield stream.push(output.text)
    yield stream.finish()
