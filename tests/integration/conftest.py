"""The served base and store of `tests/server`."""

from tests.server.conftest import base, client, store

__all__ = ["base", "client", "store"]
