"""The file of a server's keys: read, followed while the server runs, and changed by `manytune keys`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manytune.atomic import atomic_write, require_file
from manytune.errors import ServeError
from manytune.server.access.auth import MOST_NAME, Key, Keys
from manytune.server.background import repeat

_LARGEST = 16 << 20  # bytes of a file of keys
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAKE_ONE = "`manytune keys add NAME --file {}` makes a key and writes its hash into such a file."
_EXPECTED = {
    "string_too_short": "expected a text that isn't empty",
    "string_too_long": f"expected at most {MOST_NAME} characters",
    "string_pattern_mismatch": "expected a key's SHA-256 in 64 hexadecimal digits, 0-9 and a-f",
}
_log = logging.getLogger(__name__)


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: Annotated[list[Key], Field(min_length=1)]


@dataclass(frozen=True)
class KeySource:
    """Where a server's keys come from.

    White space around a key in the environment isn't part of it, as a file's line break that a shell passed on.

    Attributes:
        file: A JSON file; None for none.
        environment: `MANYTUNE_API_KEY` and `MANYTUNE_ADMIN_KEY` in it give one key each.
    """

    file: Path | None
    environment: Mapping[str, str]

    def read(self) -> list[Key]:
        """All keys that there are now.

        Raises:
            ServeError: The file or a key can't be used, or two keys are the same.
        """
        keys = [] if self.file is None else read_key_file(self.file)
        for variable, admin in (("MANYTUNE_API_KEY", False), ("MANYTUNE_ADMIN_KEY", True)):
            if secret := _secret(variable, self.environment.get(variable, "")):
                keys.append(Key(name=variable, sha256=_sha256(secret), tenant=variable, admin=admin))
        if len({key.sha256 for key in keys}) < len(keys):
            raise ServeError("two API keys are the same; each needs its own.")
        return keys

    def state(self) -> tuple[int, int, int] | None:
        """Inode, size and time of the file, which change whenever it does; None if it can't be found."""
        try:
            found = self.file.stat() if self.file is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)


def keys_of(keys: Keys | KeySource | None) -> tuple[Keys, KeySource | None]:
    """The keys that a server was given, and what it follows for them; without any, everybody is let in.

    Raises:
        ServeError: See `KeySource.read`.
    """
    if isinstance(keys, KeySource):
        return Keys(keys.read()), keys
    return (Keys() if keys is None else keys), None


def require_keys_for(host: str, source: KeySource) -> None:
    """Refuse to listen for others than this machine without keys.

    Raises:
        ServeError: There are none, or they can't be used.
    """
    if not source.read() and host not in _LOOPBACK:
        raise ServeError(
            f"--host {host} can be reached by others, and there are no API keys. Give --keys or set MANYTUNE_API_KEY, "
            "or listen on 127.0.0.1."
        )


async def follow_keys(keys: Keys, source: KeySource | None, seconds: float) -> None:
    """Read the keys again whenever their file has changed, until cancelled.

    A file that is missing, damaged or without keys changes nothing, so that a server never becomes one without keys;
    the log says so.

    Args:
        keys: The server's.
        source: Where they come from; None if they don't change.
        seconds: Interval between two looks at the file.
    """
    if source is None or source.file is None:
        return
    known = source.state()

    async def look() -> None:
        nonlocal known
        state = source.state()
        if state == known:
            return
        try:
            found = await asyncio.to_thread(source.read)
        except ServeError as error:
            _log.warning("the keys stay as they were: %s", error)
        else:
            keys.replace(found)
            _log.info("the keys were read again", extra={"fields": {"keys": len(found)}})
        known = state

    await repeat(look, seconds, "following the file of keys")


def read_key_file(file: Path) -> list[Key]:
    """The keys in a file.

    Raises:
        ServeError: It can't be read, or isn't a file of keys.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ServeError(f"{file}: expected at most {_LARGEST >> 20} MiB of keys. Name a file of keys.")
        return _KeyFile.model_validate(json.loads(text)).keys
    except FileNotFoundError:
        raise ServeError(
            f"{file}: the keys can't be read: there is no such file. {_MAKE_ONE.format(file)}"
        ) from None
    except IsADirectoryError:
        raise ServeError(
            f"{file}: this is a directory; name the file, such as {file / 'keys.json'}."
        ) from None
    except OSError as error:
        raise ServeError(
            f"{file}: the keys can't be read: {error.strerror}. Have it made readable."
        ) from None
    except ValidationError as error:
        raise ServeError(f"{file}: {_in_words(error)} {_MAKE_ONE.format(file)}") from None
    except (ValueError, RecursionError) as error:
        raise ServeError(f"{file}: expected JSON: {error}. {_MAKE_ONE.format(file)}") from None


def _in_words(error: ValidationError) -> str:
    """The first mistake in an entry."""
    first = error.errors()[0]
    where = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, first["loc"])))
    if first["type"] == "missing":
        return f"{where} is missing."
    if first["type"] == "extra_forbidden":
        return f"{where}: a key has no such field; it has {', '.join(Key.model_fields)}."
    return f"{where}: {_EXPECTED.get(first['type'], first['msg'])}."


def add_key(file: Path, name: str, **rights: Any) -> str:
    """Make a key and put its hash into a file, which is made if there is none; gives the key, which is kept nowhere.

    Args:
        file: The file of keys; only its owner may read it.
        name: The key's name; no other key in the file may have it.
        **rights: See `Key`.

    Raises:
        ServeError: The name is taken, a right can't be used, or the file isn't one of keys.
    """
    require_file(file)
    keys = read_key_file(file) if file.exists() else []
    if name in {key.name for key in keys}:
        raise ServeError(
            f"{file}: there is a key called {name!r} already. Choose another name, or revoke that one first."
        )
    secret = f"mt-{secrets.token_urlsafe(32)}"
    try:
        key = Key(name=name, sha256=_sha256(secret), **rights)
    except ValidationError as error:
        raise ServeError(_in_words(error)) from None
    _write(file, [*keys, key])
    return secret


def revoke_key(file: Path, name: str) -> None:
    """Take a key out of a file.

    Raises:
        ServeError: No key has the name, or it is the last one, without which a server would let everybody in.
    """
    keys = read_key_file(file)
    kept = [key for key in keys if key.name != name]
    if len(kept) == len(keys):
        raise ServeError(
            f"{file}: there is no key called {name!r}. There are: {', '.join(key.name for key in keys)}."
        )
    if not kept:
        raise ServeError(
            f"{file}: {name!r} is the last key, and a server without keys answers everybody on its machine. Add "
            "another key first, or stop the server and remove the file."
        )
    _write(file, kept)


def _write(file: Path, keys: list[Key]) -> None:
    entries = [key.model_dump(mode="json", exclude_defaults=True) for key in keys]
    for entry in entries:
        if entry.get("tenant") == entry["name"]:
            del entry["tenant"]
    atomic_write(file, json.dumps({"keys": entries}, indent=2, ensure_ascii=False) + "\n")
    file.chmod(0o600)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _secret(variable: str, value: str) -> str:
    """A key from the environment; empty for none."""
    secret = value.strip()
    if value and not secret:
        raise ServeError(f"{variable} is blank: set it to a key, or unset it.")
    if not secret.isprintable() or not secret.isascii() or " " in secret:
        raise ServeError(
            f"{variable} has a character that no client can send in `Authorization: Bearer KEY`, such as a space or a "
            "line break inside the key. Use letters, digits and signs of ASCII."
        )
    return secret
