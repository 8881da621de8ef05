"""`manytune keys`."""

import json

import pytest
from typer.testing import CliRunner

from manytune.cli.main import build_app


@pytest.fixture
def run(tmp_path):
    app = build_app()

    def run(*arguments):
        return CliRunner().invoke(app, ["keys", *arguments, "--file", str(tmp_path / "keys.json")])

    return run


def test_keys_are_added_listed_and_revoked(run):
    added = run("add", "helpdesk", "--model", "support-*", "--per-minute", "60", "--concurrent", "4")
    assert added.exit_code == 0 and added.stdout.startswith("mt-") and len(added.stdout.split()) == 1
    assert run("add", "root", "--admin", "--tenant", "staff").exit_code == 0
    assert run("list").stdout.splitlines() == [
        "helpdesk: support-*; 60 a minute; 4 at once",
        "root: admin; all models; tenant staff",
    ]
    assert [key["name"] for key in json.loads(run("list", "--json").stdout)] == ["helpdesk", "root"]
    assert run("revoke", "helpdesk").exit_code == 0
    assert run("list").stdout.splitlines() == ["root: admin; all models; tenant staff"]


def test_mistakes_are_sentences(run):
    def said(*arguments):
        return " ".join(run(*arguments).output.split())

    assert "keys.json: the keys can't be read: there is no such file. `manytune keys add NAME" in said("list")
    run("add", "one")
    assert "there is no key called 'two'" in said("revoke", "two")
