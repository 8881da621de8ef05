"""`manytune chat`: a conversation in the terminal, with an adapter or the plain base."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from manytune.cli.adapters.arguments import DEFAULT_STORE, Store, stored_names
from manytune.cli.options import MovedBase
from manytune.cli.outputs.lines import print_error, print_line
from manytune.errors import ContextLengthError, ManytuneError
from manytune.terminal import visible

if TYPE_CHECKING:
    from manytune.cli.conversation import Conversation
    from manytune.store.base import Base

_HELP = """\
Each line is a message; an empty one starts a new
conversation. Ctrl-C stops an answer.
  /adapter NAME   let another adapter of this base answer
  /adapter base   let the plain base answer
  /exit           end, as Ctrl-D does
A message that begins with / is typed with a space first."""


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
    seed: Annotated[int | None, typer.Option(help="The seed for sampling.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut answers at this many tokens.")] = 256,
) -> None:
    """Talk to an adapter, each line a message. An empty line starts a new conversation, Ctrl-D ends.

    In a terminal, Ctrl-C stops an answer, and /help lists what else can be typed, such as /adapter NAME to let another
    adapter answer.

    Messages are encoded as the adapter was trained, but go through no template of its own; `manytune generate --field`
    does that.
    """
    if adapter is None and base is None:
        raise typer.BadParameter("name an adapter, or a base alone", param_hint="--adapter or --base")
    interactive = typer.get_text_stream("stdin").isatty()
    if interactive:
        print_line(f"loading {adapter or base} ...", stderr=True)
    from manytune.cli.chosen import answering_device, choose, load_common_base
    from manytune.cli.conversation import Conversation
    from manytune.engine.engine import Engine
    from manytune.engine.request import SamplingParams
    from manytune.store.base import load_base

    if adapter is not None:
        loaded, (chosen,) = load_common_base(choose([adapter], store), base)
    else:
        assert base is not None
        loaded, chosen = load_base(base, device=answering_device()), None
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    conversation = Conversation(
        loaded,
        Engine(loaded.model, loaded.tokenizer),
        params,
        chosen,
        system=system,
        interactive=interactive,
    )
    if interactive:
        _talk(conversation, loaded, store)
        return
    for line in typer.get_text_stream("stdin"):
        if message := line.strip():
            conversation.say(message)
        else:
            conversation.start_again()


def _talk(conversation: Conversation, base: Base, store: str) -> None:
    """Read a person's messages and commands; an error is printed, and the conversation goes on."""
    with suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited, and the arrows bring former ones

    print_line("/help lists what can be typed, Ctrl-D ends.", stderr=True)
    while (line := _read()) is not None:
        try:
            if line.startswith("/"):
                if line.split()[0] in ("/exit", "/quit"):
                    return
                _obey(line.strip(), conversation, base, store)
            elif message := line.strip():
                conversation.say(message)
            else:
                conversation.start_again()
                typer.secho("(a new conversation)", dim=True)
        except ContextLengthError as error:
            print_error(f"{error} An empty line starts a new conversation.")
        except ManytuneError as error:
            print_error(str(error))


def _read() -> str | None:
    """A line without its end; None at the end of input. Ctrl-C discards what is typed."""
    while True:
        try:
            return input("> ")
        except EOFError:
            typer.echo()
            return None
        except KeyboardInterrupt:
            typer.secho(" (Ctrl-D ends)", dim=True)


def _obey(line: str, conversation: Conversation, base: Base, store: str) -> None:
    """Do what a line that begins with / asks for."""
    from manytune.cli.chosen import BASE_NAME, checked_against, choose

    command, *names = line.split()
    if command == "/adapter" and len(names) == 1:
        (name,) = names
        conversation.answer_with(
            None if name == BASE_NAME else checked_against(base, choose([name], store))[0]
        )
        typer.secho(f"({name} answers from here on)", dim=True)
    else:
        if command not in ("/help", "/adapter"):
            typer.echo(f"there is no {visible(command)}")
        typer.echo(_HELP)
