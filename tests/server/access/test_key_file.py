"""Keys from a file and the environment: read, refused with a reason, followed by a server, added and revoked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging

import pytest

from manytune.errors import ServeError
from manytune.server.access.auth import Keys
from manytune.server.access.key_file import (
    KeySource,
    add_key,
    follow_keys,
    read_key_file,
    revoke_key,
)
from manytune.server.http_errors import HttpError


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys.json"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(json.dumps({"keys": [{"name": "alice", "sha256": digest, "models": ["one"]}]}))
    keys = Keys(KeySource(file, {"MANYTUNE_ADMIN_KEY": "boss", "MANYTUNE_API_KEY": ""}).read())
    assert len(keys) == 2
    alice = keys.authenticate("Bearer secret")
    assert (alice.name, alice.tenant, alice.is_admin) == ("alice", "alice", False)
    assert keys.authenticate("bearer boss").is_admin
    assert len(Keys(KeySource(None, {}).read())) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ('{"keys": []}', "at least 1"),
        ('{"keys": [{"name": "a", "sha256": "secret"}]}', r"keys\[0\]\.sha256"),
        ('{"keys": [{"name": "a", "key": "x", "sha256": "' + "0" * 64 + '"}]}', r"keys\[0\]\.key"),
        (
            '{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '", "concurrent": 0}]}',
            r"keys\[0\]\.concurrent",
        ),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_named_with_the_place(tmp_path, content, message):
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(ServeError, match=message) as raised:
        Keys(KeySource(file, {}).read())
    assert str(file) in str(raised.value)


def test_two_equal_keys_are_refused():
    with pytest.raises(ServeError, match="the same"):
        Keys(KeySource(None, {"MANYTUNE_API_KEY": "x", "MANYTUNE_ADMIN_KEY": "x"}).read())


def test_a_key_that_was_added_is_let_in_with_its_rights_and_only_its_hash_is_kept(tmp_path):
    file = tmp_path / "keys.json"
    helpdesk = add_key(file, "helpdesk", models=("support-*",), requests_per_minute=60, concurrent=4)
    root = add_key(file, "root", admin=True)
    assert helpdesk not in file.read_text() and file.stat().st_mode & 0o077 == 0
    keys = Keys(KeySource(file, {}).read())
    found = keys.authenticate(f"Bearer {helpdesk}")
    assert (found.name, found.tenant, found.is_admin) == ("helpdesk", "helpdesk", False)
    assert found.may_use("support-de") and not found.may_use("sales")
    assert keys.authenticate(f"Bearer {root}").is_admin
    with pytest.raises(ServeError, match="there is a key called 'root' already"):
        add_key(file, "root")
    with pytest.raises(ServeError, match="concurrent: "):
        add_key(file, "third", concurrent=0)
    assert [key.name for key in read_key_file(file)] == ["helpdesk", "root"]


def test_a_key_is_revoked_by_its_name_but_never_the_last_one(tmp_path):
    file = tmp_path / "keys.json"
    one, two = add_key(file, "one"), add_key(file, "two")
    with pytest.raises(ServeError, match=r"no key called 'three'\. There are: one, two"):
        revoke_key(file, "three")
    revoke_key(file, "one")
    keys = Keys(KeySource(file, {}).read())
    keys.authenticate(f"Bearer {two}")
    with pytest.raises(HttpError, match="isn't one of the server's"):
        keys.authenticate(f"Bearer {one}")
    with pytest.raises(ServeError, match="'two' is the last key"):
        revoke_key(file, "two")


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Basic abc"])
def test_no_key_is_another_refusal_than_a_wrong_one(tmp_path, header):
    file = tmp_path / "keys.json"
    add_key(file, "one")
    keys = Keys(KeySource(file, {}).read())
    with pytest.raises(HttpError) as none:
        keys.authenticate(header)
    with pytest.raises(HttpError) as wrong:
        keys.authenticate("Bearer other")
    assert (none.value.code, wrong.value.code) == ("missing_api_key", "invalid_api_key")
    assert none.value.status == wrong.value.status == 401


def test_a_running_server_follows_its_file_and_keeps_its_keys_if_that_is_damaged(tmp_path, caplog):
    file = tmp_path / "keys.json"
    first = add_key(file, "first", concurrent=2)
    source = KeySource(file, {})
    keys = Keys(source.read())
    running = keys.authenticate(f"Bearer {first}").enter()

    async def changed(change, settled):
        change()
        for _ in range(500):
            await asyncio.sleep(0.01)
            if settled():
                return
        raise AssertionError("nothing was read again")

    async def follow():
        following = asyncio.create_task(follow_keys(keys, source, 0.01))
        await asyncio.sleep(0)
        second = ""

        def add():
            nonlocal second
            second = add_key(file, "second")

        await changed(add, lambda: len(keys) == 2)
        assert keys.authenticate(f"Bearer {second}").name == "second"
        keys.authenticate(f"Bearer {first}").enter()
        with pytest.raises(HttpError, match="may have 2"):  # the request that was running before still counts
            keys.authenticate(f"Bearer {first}").enter()
        await changed(lambda: file.write_text("{"), lambda: "the keys stay as they were" in caplog.text)
        assert len(keys) == 2
        await changed(file.unlink, lambda: caplog.text.count("the keys stay as they were") == 2)
        assert keys.authenticate(f"Bearer {first}").name == "first"
        following.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(follow())
    running.leave()
