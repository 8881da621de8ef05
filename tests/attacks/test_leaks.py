"""What others wrote stays text in reports, answers say nothing of the server's disk, and keys and bases are checked."""

import dataclasses
from pathlib import Path

import markdown
import pytest
from tests.evaluation import invented

from manytune.errors import ServeError, StoreError
from manytune.evaluation.report.markdown import render_markdown
from manytune.server.access.auth import Keys
from manytune.server.access.key_file import KeySource
from manytune.server.http_errors import HttpError, for_clients, http_error_of
from manytune.store.base_source import resolve

HOSTILE = [
    "<script>alert(1)</script>",
    "\\<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | <svg/onload=alert(1)>",
    "<!--",
    "[here](javascript:alert(1))",
    "![here](javascript:alert(1))",
    "[here\\](javascript:alert(1))",
]


def report_of(texts):
    """A report's Markdown in which systems, values and the title are some texts of others."""
    asked = invented.items(2)
    among = [dataclasses.replace(one, name=f"{one.name} {texts[0]}") for one in invented.systems(asked)]
    found = invented.evaluation(2, metrics=("rouge1",), among=among, resamples=20)
    provenance = {text: text for text in texts} | {"recipe": "a\n" + "\n".join(texts)}
    return render_markdown(dataclasses.replace(found, provenance=provenance), title=" ".join(texts))


def test_markdown_of_a_report_makes_no_html_and_no_links_of_names_and_values():
    for texts in (HOSTILE, HOSTILE[::-1]):
        html = markdown.markdown(report_of(texts), extensions=["tables"]).lower()
        for forged in ("<script", "<img", "<svg", "<!--", "href=", " src="):
            assert forged not in html.replace("&lt;", "&lt; ").replace("img src=", "")
        assert "alert(1)" in html


def test_what_a_report_says_itself_is_as_it_was():
    assert "&lt;" not in report_of(["p < 0.05 & [a] (b)"])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("/srv/my adapters/a: the adapter can't be read", "a: the adapter can't be read"),
        ("/srv/adapters/objects/ab12/manifest.json: was changed.", "manifest.json: was changed."),
        ("its manifest: '/home/me/.cache/x/y.json' is damaged.", "its manifest: 'y.json' is damaged."),
        ("copy it from ~/models/tiny, or /opt/models/.", "copy it from tiny, or models."),
        ("C:\\models\\tiny: no such base", "tiny: no such base"),
        ("trained on tiny/base and/or another; use 1/2", "trained on tiny/base and/or another; use 1/2"),
    ],
)
def test_clients_arent_told_where_files_are(caplog, message, expected):
    assert for_clients(message) == expected
    answer = http_error_of(StoreError(message))
    assert isinstance(answer, HttpError) and (answer.status, answer.message) == (409, expected)
    assert (message in caplog.text) == (message != expected)


@pytest.mark.parametrize("variable", ["MANYTUNE_API_KEY", "MANYTUNE_ADMIN_KEY"])
@pytest.mark.parametrize("around", ["\n", "\r\n", " ", "\t\n"])
def test_a_line_break_after_a_key_isnt_part_of_it(variable, around):
    keys = Keys(KeySource(None, {variable: f"secret{around}"}).read())
    assert keys.authenticate("Bearer secret").name == variable


@pytest.mark.parametrize("value", ["\n", "  ", "two words", "two\nlines", "bell\a", "schlüssel"])
def test_a_key_that_nobody_could_send_is_refused_by_its_name(value):
    with pytest.raises(ServeError, match=r"^MANYTUNE_API_KEY (is blank|has a character)"):
        Keys(KeySource(None, {"MANYTUNE_API_KEY": value}).read())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"])
def test_a_base_that_is_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(
        StoreError, match=rf"weights are in {name}, a pickle.*convert it: python -c .*save_pretrained"
    ):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve(str(tmp_path)).location == str(tmp_path)
