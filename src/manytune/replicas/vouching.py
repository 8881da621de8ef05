"""How replicas know whose request it is: the front, which has checked the key, says so and proves that it is the front.

    Authorization: Front SECRET BASE64

BASE64 is the key's entry of the file, without the limits: these are the front's to count, once for all replicas. So
clients' keys go no further than the front, which alone follows the file of keys. A server without keys has nothing to
vouch for, and its replicas none either.
"""

from __future__ import annotations

import base64
import hmac

from pydantic import ValidationError

from manytune.server.access.auth import Key, Keys, Principal
from manytune.server.http_errors import HttpError

_SCHEME = "Front"


def vouch(secret: str, key: Key) -> str:
    """The `Authorization` of a request with a key.

    Args:
        secret: What the front and its replicas share.
        key: The key that the client has shown.
    """
    unlimited = key.model_copy(update={"requests_per_minute": None, "concurrent": None})
    return f"{_SCHEME} {secret} {base64.b64encode(unlimited.model_dump_json().encode()).decode()}"


class VouchedKeys(Keys):
    """The keys of a replica: whichever the front vouches for.

    Args:
        secret: What the front and its replicas share.
    """

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret.encode()

    def __len__(self) -> int:
        return 1  # as a server with keys: nobody is let in without one

    def authenticate(self, authorization: str | None) -> Principal:
        """See `Keys`."""
        scheme, _, rest = (authorization or "").partition(" ")
        secret, _, entry = rest.partition(" ")
        is_front = hmac.compare_digest(secret.encode("utf-8", "surrogateescape"), self._secret)
        try:
            if is_front and scheme == _SCHEME:
                return Principal(Key.model_validate_json(base64.b64decode(entry, validate=True)))
        except (ValueError, ValidationError):
            pass
        raise HttpError(401, "this replica answers its front alone.", code="invalid_api_key")
