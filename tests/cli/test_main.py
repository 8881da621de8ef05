"""The command itself: help, version, exit statuses, and how an error reaches a person."""

import copy
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from manytune import DataError, __version__
from manytune.cli.main import build_app, main

# What `--help` may not have to wait for.
HEAVY = ["torch", "transformers", "datasets", "pandas", "scipy", "matplotlib"]


@pytest.fixture
def app() -> typer.Typer:
    app = copy.copy(build_app())
    app.registered_commands = [*app.registered_commands]  # the tests' program is one for all of them

    @app.command()
    def broken_row() -> None:
        raise DataError(
            "expected a JSON object, found a list. Put one object on each line.", where="train.jsonl:17"
        )

    @app.command()
    def bracketed() -> None:
        raise DataError("found [red]x[/red] in [bold]")

    @app.command()
    def defect() -> None:
        raise ZeroDivisionError("a defect")

    @app.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    return app


def test_a_users_error_is_one_message_on_stderr_and_status_1(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["broken-row"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: train.jsonl:17: expected a JSON object" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_wraps_between_words_on_a_narrow_terminal(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = CliRunner().invoke(app, ["broken-row"]).stderr.splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines) == (
        "error: train.jsonl:17: expected a JSON object, found a list. Put one object on each line."
    )


def test_brackets_in_a_message_are_printed_as_they_are(app: typer.Typer) -> None:
    assert "found [red]x[/red] in [bold]" in CliRunner().invoke(app, ["bracketed"]).stderr


def test_a_defect_keeps_its_traceback(app: typer.Typer) -> None:
    assert isinstance(CliRunner().invoke(app, ["defect"]).exception, ZeroDivisionError)


def test_an_interrupt_is_status_130(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["interrupted"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["demo", "--nonsense"]])
def test_wrong_usage_is_status_2(app: typer.Typer, arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["sweep", "r.yaml", "--ranks", "1,x"],
            "error: Invalid value for --ranks: expected whole numbers from 1, sep",
        ),
        (["adapters", "lst"], "error: No such command 'lst'. Did you mean 'list'?"),
        (["train"], "error: Missing argument 'RECIPE'"),
    ],
)
def test_wrong_usage_is_wrapped_and_says_where_the_options_are(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    result = CliRunner().invoke(build_app(), arguments, prog_name="manytune", terminal_width=60)
    lines = result.stderr.splitlines()
    assert result.exit_code == 2 and result.stdout == ""
    assert lines[0].startswith("Usage: manytune ") and "Its options: manytune " in result.stderr
    assert said in " ".join(result.stderr.split()) and max(map(len, lines)) <= 60


def test_version(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"manytune {__version__}\n"


def test_help_answers_without_loading_a_model_library() -> None:
    script = (
        "import sys\nfrom manytune.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        f"print('loaded:', sorted(set(sys.modules) & set({HEAVY!r})), 'code:', code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "60"},
    )
    assert "loaded: [] code: 0" in ran.stdout
    assert "Usage:" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 60


def variables_set_by_main(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment after the command, which began with this and what has nothing to do with threads and logs."""
    own = ("GOMP_", "OMP_", "TORCH_")
    others = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    found = {**others, **given}
    monkeypatch.setattr(os, "environ", found)
    monkeypatch.setattr("sys.argv", ["manytune", "--version"])
    with pytest.raises(SystemExit):
        main()
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variables_set_by_main(given, monkeypatch).get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1"}, "ERROR"),
        ({"LOCAL_RANK": "1", "TORCH_CPP_LOG_LEVEL": "INFO"}, "INFO"),
    ],
)
def test_in_processes_that_train_together_torchs_cpp_advice_is_off_unless_the_user_wants_it(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variables_set_by_main(given, monkeypatch).get("TORCH_CPP_LOG_LEVEL") == expected


def test_what_libraries_log_while_they_are_imported_stays_out_of_the_terminal():
    code = (
        "import logging, sys; from manytune.cli.main import main; sys.argv = ['manytune', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "try: sys.argv = ['manytune', 'data', 'check', 'none.yaml']; main()\nexcept SystemExit: pass\n"
        "logging.getLogger('torchao').warning('Failed to load a kernel')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "error: " in found.stderr and "Failed to load a kernel" not in found.stderr
