"""What an error about a missing extra says to run."""

import json
from pathlib import Path

import pytest

from manytune.extras import install_command


class _Installed:
    def __init__(self, record: str | None) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        return self.record if name == "direct_url.json" else None


def command(monkeypatch: pytest.MonkeyPatch, record: object) -> str:
    text = record if isinstance(record, str | None) else json.dumps(record)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: _Installed(text))
    return install_command("serve")


def test_an_extra_is_installed_from_where_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "my wheels" / "manytune-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    checkout = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    assert command(monkeypatch, checkout) == f"pip install -e '{tmp_path}[serve]'"
    assert (
        command(monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {}}) == f"pip install '{tmp_path}[serve]'"
    )
    assert (
        command(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}}) == f"pip install '{wheel}[serve]'"
    )


@pytest.mark.parametrize(
    "record",
    [
        None,
        "",
        "{",
        "[]",
        {"url": "https://example.org/manytune.whl"},
        {"url": "file:///not/here", "dir_info": {}},
    ],
)
def test_without_a_checkout_or_a_wheel_it_is_installed_by_name(
    record: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(monkeypatch, record) == "pip install 'manytune[serve]'"
