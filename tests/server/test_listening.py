"""Where a server listens."""

import pytest

from manytune.errors import ServeError
from manytune.server.listening import host_of


def test_an_address_may_be_in_the_brackets_of_a_url() -> None:
    assert [host_of(text) for text in ("[::1]", "::1", "localhost", "0.0.0.0")] == [
        "::1",
        "::1",
        "localhost",
        "0.0.0.0",
    ]


@pytest.mark.parametrize("text", ["http://localhost", "localhost:80", "127.0.0.1/v1", "", "[]", "*"])
def test_more_than_an_address_is_refused(text: str) -> None:
    with pytest.raises(ServeError, match="the address of this machine alone"):
        host_of(text)
