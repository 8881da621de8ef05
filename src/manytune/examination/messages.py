"""Messages between the server and the process that examines: a length of four bytes, and so much JSON."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any


class MessageError(Exception):
    """A message is too long, or isn't a JSON object."""


def send(channel: socket.socket, content: Mapping[str, Any], *, deadline: float | None = None) -> None:
    """Send a message.

    Args:
        channel: To whom.
        content: What JSON can say.
        deadline: When to give up, by the monotonic clock.

    Raises:
        TimeoutError: The other side doesn't read it in time.
        OSError: The other side is gone.
    """
    text = json.dumps(content).encode()
    _wait_until(channel, deadline)
    channel.sendall(len(text).to_bytes(4, "big") + text)


def receive(channel: socket.socket, most: int, *, deadline: float | None = None) -> dict[str, Any]:
    """Receive a message.

    Args:
        channel: From whom.
        most: Bytes of the longest message that is read.
        deadline: When to give up, by the monotonic clock.

    Raises:
        TimeoutError: It isn't there in time.
        EOFError: The other side is gone.
        MessageError: It is too long, or isn't a JSON object.
    """
    length = int.from_bytes(_read(channel, 4, deadline), "big")
    if length > most:
        raise MessageError(f"{length:,} bytes; expected at most {most:,}")
    try:
        content = json.loads(_read(channel, length, deadline))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"no JSON: {error}") from error
    if not isinstance(content, dict):
        raise MessageError("no JSON object")
    return content


def is_silent(channel: socket.socket) -> bool:
    """Whether the other side is there, and has said nothing."""
    channel.settimeout(0)
    try:
        channel.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _read(channel: socket.socket, length: int, deadline: float | None) -> bytes:
    content = bytearray()
    while len(content) < length:
        _wait_until(channel, deadline)
        try:
            part = channel.recv(min(length - len(content), 1 << 16))
        except ConnectionError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def _wait_until(channel: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        channel.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    channel.settimeout(left)
