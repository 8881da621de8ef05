"""API keys, with the tenant, the models and the limits of each."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import math
import time
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from manytune.server.http_errors import HttpError, model_not_found

MOST_NAME = 100
"""Characters that a key's name may have."""


class Key(BaseModel):
    """One entry of a key file.

    Attributes:
        name: The name in the log.
        sha256: Hash of the key in hexadecimal digits; the key itself isn't in the file.
        tenant: Whose share of the engine its requests count towards; the name if it isn't given.
        models: Patterns of the models that it may use, such as `support-*` or `team/*`; the base is a model like
            others. `*` is for all of them; in any other pattern it doesn't match a slash.
        requests_per_minute: None for no limit. Each answer counts: a request with `n` of 4 is four.
        concurrent: Requests at once, each answer counted; None for no limit.
        admin: Whether it may load and unload adapters, and read the metrics.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=MOST_NAME)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: str = ""
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ("*",)
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None
    admin: bool = False

    @model_validator(mode="before")
    @classmethod
    def _default_tenant(cls, values: object) -> object:
        if isinstance(values, dict) and not values.get("tenant"):
            return {**values, "tenant": values.get("name", "")}
        return values


class Principal:
    """The sender of authenticated requests, with the state of the limits.

    Args:
        key: The key; None on a server without keys.
    """

    def __init__(self, key: Key | None) -> None:
        self.key = key
        self.name = "anonymous" if key is None else key.name
        self.tenant = "default" if key is None else key.tenant
        self.is_admin = key is not None and key.admin
        self._running = 0
        self._tokens = float(key.requests_per_minute or 0) if key is not None else 0.0
        self._filled = time.monotonic()

    def renew(self, key: Key) -> None:
        """Take over what the key file says of the key now."""
        self.key, self.name, self.tenant, self.is_admin = key, key.name, key.tenant, key.admin

    def may_use(self, model: str) -> bool:
        """Whether a model is among those of the key."""
        return self.key is None or any(_matches(model, pattern) for pattern in self.key.models)

    def check_model(self, model: str) -> None:
        """Refuse a model that isn't among those of the key.

        Raises:
            HttpError: 404, as for a model that doesn't exist, so that nobody learns which others exist.
        """
        if not self.may_use(model):
            raise model_not_found(model)

    def enter(self) -> Visit:
        """Count a request that begins.

        Raises:
            HttpError: 429 if there are too many at once, or too many in a minute.
        """
        visit = Visit(self)
        self._count(1, "this request")
        visit.answers = 1
        return visit

    def _count(self, more: int, what: str) -> None:
        if self.key is None:
            return
        if self.key.concurrent is not None and self._running + more > self.key.concurrent:
            raise HttpError(
                429,
                f"this key may have {self.key.concurrent} answers at once, and {what} would exceed that.",
                code="concurrency_limit_exceeded",
                retry_after=1,
            )
        if self.key.requests_per_minute is not None:
            self._take(self.key.requests_per_minute, more)
        self._running += more

    def _take(self, per_minute: int, count: int) -> None:
        now = time.monotonic()
        self._tokens = min(per_minute, self._tokens + (now - self._filled) * per_minute / 60)
        self._filled = now
        if self._tokens < count:
            raise HttpError(
                429,
                f"this key may have {per_minute} answers a minute.",
                code="rate_limit_exceeded",
                retry_after=math.ceil((count - self._tokens) * 60 / per_minute),
            )
        self._tokens -= count


class Visit:
    """A request while it is answered, as it counts towards its key's limits.

    Attributes:
        answers: How many answers it counts as.
    """

    def __init__(self, principal: Principal) -> None:
        self._principal = principal
        self.answers = 0

    def count_answers(self, answers: int, param: str) -> None:
        """Count the answers that it asks for; until now it counted as one.

        Args:
            answers: How many.
            param: The field that asks for them.

        Raises:
            HttpError: 400 if the key never has so many, 429 if it hasn't now.
        """
        key, more = self._principal.key, answers - self.answers
        if key is None or more <= 0:
            return
        limits = [limit for limit in (key.concurrent, key.requests_per_minute) if limit is not None]
        if answers > min(limits, default=answers):
            raise HttpError(
                400,
                f"{param} asks for {answers} answers; this key may have {min(limits)} at once or in a minute.",
                code="invalid_value",
                param=param,
            )
        self._principal._count(more, f"{answers} answers")
        self.answers += more

    def leave(self) -> None:
        """Count that it has ended."""
        if self._principal.key is not None:
            self._principal._running -= self.answers
        self.answers = 0


def _matches(model: str, pattern: str) -> bool:
    # Else `support-*` would also be for whatever a stranger's namespace `support-…/` on a hub holds.
    same_depth = model.count("/") == pattern.count("/")
    return pattern == "*" or (same_depth and fnmatch.fnmatchcase(model, pattern))


class Keys:
    """All keys of a server. Without keys, everybody who reaches the server may use its models, and nobody is admin."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._principals: dict[bytes, Principal] = {}
        self._anonymous = Principal(None)
        self.replace(keys)

    def __len__(self) -> int:
        return len(self._principals)

    def replace(self, keys: Sequence[Key]) -> None:
        """Have these keys from the next request on.

        A key that stays keeps its count of running requests, with the rights and limits that it has now; requests of
        one that is gone are answered to their end.
        """
        principals = {}
        for key in keys:
            digest = bytes.fromhex(key.sha256)
            principals[digest] = self._principals.get(digest) or Principal(key)
            principals[digest].renew(key)
        self._principals = principals

    def authenticate(self, authorization: str | None) -> Principal:
        """The owner of the key in a request.

        Args:
            authorization: The header of this name, `Bearer KEY`.

        Raises:
            HttpError: 401 if there are keys, and it has none of them.
        """
        if not self._principals:
            return self._anonymous
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        # All are compared, so that the time doesn't depend on which one matches.
        for known, principal in self._principals.items():
            if hmac.compare_digest(digest, known):
                found = principal
        if not key.strip() or scheme.lower() != "bearer":
            raise HttpError(
                401,
                "this server needs an API key, as in `Authorization: Bearer KEY`.",
                code="missing_api_key",
            )
        if found is None:
            raise HttpError(
                401,
                "this API key isn't one of the server's: it may be mistyped, or it was revoked.",
                code="invalid_api_key",
            )
        return found
