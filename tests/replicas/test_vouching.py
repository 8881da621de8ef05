"""Replicas answer their front alone, for the keys that it vouches for."""

import base64

import pytest

from manytune.replicas.vouching import VouchedKeys, vouch
from manytune.server.access.auth import Key
from manytune.server.http_errors import HttpError

KEY = Key(name="n", sha256="0" * 64, models=("a-*",), admin=True, requests_per_minute=3, concurrent=2)


def test_what_the_front_vouches_for_is_the_key_without_its_limits():
    sender = VouchedKeys("secret").authenticate(vouch("secret", KEY))
    assert (sender.name, sender.tenant, sender.is_admin) == ("n", "n", True)
    assert sender.may_use("a-1") and not sender.may_use("b")
    for _ in range(10):
        sender.enter()  # nothing is counted here


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer secret",
        "Front",
        "Front secret",
        "Front secret !",
        f"Front secret {base64.b64encode(b'{}').decode()}",
        f"Bearer {vouch('secret', KEY).partition(' ')[2]}",
        vouch("another", KEY),
        vouch("", KEY),
        vouch("\udcff", KEY),
    ],
)
def test_nobody_else_is_answered(authorization):
    with pytest.raises(HttpError) as refused:
        VouchedKeys("secret").authenticate(authorization)
    assert refused.value.status == 401
