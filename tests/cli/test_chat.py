"""`manytune chat`: a conversation by a pipe, and in a terminal."""

import io
import os
import signal

import pytest
from tests.server.world import fill_store, plain_ids, save_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.engine.engine import Engine
from manytune.engine.request import Request, SamplingParams
from manytune.store.resident import read_resident


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    base = save_base(folder / "tiny")
    return folder / "tiny", base, fill_store(folder, base)


@pytest.fixture
def answer(world):
    """What an adapter answers to a text."""
    _, base, store = world
    engine = Engine(base.model, base.tokenizer)
    for name in ("one", "two"):
        engine.add_adapter(name, read_resident(store.path(name)))

    def answered(text, adapter="one", tokens=5):
        request = Request("1", plain_ids(base, text), SamplingParams(max_new_tokens=tokens), adapter)
        return engine.generate([request])[0].text

    return answered


def chat(world, *options, **given):
    directory, _, store = world
    arguments = ["chat", "--adapter", "one", "--store", str(store.root), "--base", str(directory)]
    return CliRunner().invoke(build_app(), [*arguments, "--max-new-tokens", "5", *options], **given)


@pytest.fixture
def typed(world, monkeypatch):
    """What a person in a terminal reads after some lines; one that is an exception's class is Ctrl-C."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("typer.get_text_stream", lambda _: Terminal())

    def answered(*lines):
        coming = iter([*lines, EOFError])

        def read(prompt):
            line = next(coming)
            if isinstance(line, str):
                print(f"{prompt}{line}")
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        result = chat(world, env={"COLUMNS": "60"})
        assert result.exit_code == 0, result.output
        assert max(len(line) for line in result.output.splitlines() if line[0:1] != ">") <= 60
        return result

    return answered


def test_the_conversation_is_kept_until_an_empty_line(world, answer):
    first = answer("ab")
    second = answer(f"ab\n\n{first}\n\ncd")
    result = chat(world, input="ab\ncd\n\nab\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [first, second, first]
    assert CliRunner().invoke(build_app(), ["chat"]).exit_code == 2


def test_in_a_terminal_it_says_what_it_does(world, answer, typed):
    read = typed("hello", "", KeyboardInterrupt, "ab")
    assert read.stdout.splitlines() == [
        "> hello",
        f"{answer('hello')} (cut off: --max-new-tokens)",
        "> ",
        "(a new conversation)",
        " (Ctrl-D ends)",
        "> ab",
        answer("ab"),
        "",
    ]
    assert read.stderr.splitlines() == ["loading one ...", "/help lists what can be typed, Ctrl-D ends."]


def test_another_adapter_goes_on_with_the_conversation(world, answer, typed):
    first = answer("ab")
    lines = typed("ab", "/adapter two", "cd", "/adapter base", "ef").stdout.splitlines()
    second = answer(f"ab\n\n{first}\n\ncd", "two")
    assert second != answer(f"ab\n\n{first}\n\ncd")
    assert lines[3] == "(two answers from here on)"
    assert lines[5].startswith(second)
    assert len(lines) == 10 and lines[7] == "(base answers from here on)"


def test_a_mistake_in_a_terminal_ends_no_conversation(world, answer, typed):
    read = typed("ab", "a" * 200, "/adapter three", "/nothing", "cd", "/exit", "ef")
    said = " ".join(read.stderr.split())
    assert "64 positions" in said and "An empty line starts a new conversation" in said
    assert "there is no adapter 'three'" in said
    assert "there is no /nothing" in read.stdout and "/adapter NAME" in read.stdout
    first = answer("ab")
    assert read.stdout.splitlines()[-2].startswith(answer(f"ab\n\n{first}\n\ncd"))


def test_ctrl_c_ends_an_answer_after_its_step_and_keeps_what_was_said(world, answer, typed, monkeypatch):
    former, step, steps = signal.getsignal(signal.SIGINT), Engine.step, []

    def interrupted(engine):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    lines = typed("hello", "cd").stdout.splitlines()
    begun = lines[1].removesuffix(" (interrupted)")
    assert lines[1] == f"{begun} (interrupted)" and begun == answer("hello", tokens=3)
    assert lines[3].startswith(answer(f"hello\n\n{begun}\n\ncd"))
    assert signal.getsignal(signal.SIGINT) is former
