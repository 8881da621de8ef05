"""Whether the head of a cluster is still there; sockets of this process are the heads."""

import socket
import threading

import pytest

from manytune.experiments import ray_connection
from manytune.experiments.ray_connection import Head, HeadLostError


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def address(listening):
    return "127.0.0.1:{1}".format(*listening.getsockname())


def test_a_head_that_is_gone_is_waited_for_and_then_said_to_be(listening, monkeypatch):
    monkeypatch.setattr(ray_connection, "_PATIENCE", 0.02)
    monkeypatch.setattr(ray_connection, "_PAUSE", 0.005)
    head = Head(address(listening))
    head.require()
    listening.close()
    with pytest.raises(
        HeadLostError, match=r"the head at 127\.0\.0\.1:\d+ can't be reached any more.* Start it again\."
    ):
        head.require()


def test_a_head_that_comes_back_is_gone_on_with(listening, monkeypatch):
    monkeypatch.setattr(ray_connection, "_PAUSE", 0.005)
    head, place = Head(address(listening)), listening.getsockname()
    listening.close()
    back = []
    threading.Timer(0.02, lambda: back.append(socket.create_server(place))).start()
    head.require()
    back[0].close()


def test_one_that_was_never_seen_from_here_is_not_watched():
    Head("nowhere.invalid:6379").require()
    Head("").require()
