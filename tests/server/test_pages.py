"""The files of the pages: all of them are served, in none is what the policy forbids, and no option is missing."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from manytune.server.bodies.chat_schema import CompareRequest
from manytune.server.pages import PAGES

#: What a conversation is made of, and what the page says in another way or doesn't need.
NOT_OPTIONS = {"models", "messages", "fields", "stream", "stream_options", "n", "user"}
NOT_OPTIONS |= {"max_completion_tokens", "continue_final_message"}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_may_load_and_ask_its_own_server_alone(client: TestClient, path: str) -> None:
    response = client.get(path)
    policy = dict(
        part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.findall(r"(?:src|href|url|@import)\s*[=(]\s*[\"']?(?:https?:)?//", response.text)
    asked = re.findall(r"(?:src|href|from) *=? *\"(\.?/[^\"]*)\"", response.text)
    assert all(one.replace("./", "/page/", 1) in PAGES or one in PAGES for one in asked)


def test_no_page_reads_text_as_html_or_has_a_script_or_style_in_itself(client: TestClient) -> None:
    for path in PAGES:
        text = client.get(path).text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), path
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=\"", text), path


def test_the_playground_has_every_option_of_the_route_that_it_asks(client: TestClient) -> None:
    names = re.findall(r'^  \{ name: "(\w+)"', client.get("/page/options.js").text, re.MULTILINE)
    assert set(names) == CompareRequest.model_fields.keys() - NOT_OPTIONS
