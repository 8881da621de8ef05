"""What went wrong with shared storage, in a sentence: credentials, a bucket, the network, or something else.

The drivers raise what their vendors' libraries do. An error is known by its class's name or by its code, so that no
driver has to be there.
"""

from __future__ import annotations

from collections.abc import Iterator

from manytune.errors import StoreError, UnreachableError
from manytune.store.remote.location import Location

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_REFUSED = {
    "AccessDenied",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "ClientAuthenticationError",
    "DefaultCredentialsError",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NoCredentialsError",
    "PartialCredentialsError",
    "PermissionError",
    "ProfileNotFound",
    "RefreshError",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnauthorizedSSOTokenError",
    "403",
}
_PASSING = {
    "ClientConnectionError",
    "ClientConnectorError",
    "ClientOSError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "InternalError",
    "IncompleteRead",
    "ReadTimeoutError",
    "RequestTimeout",
    "ResponseParserError",
    "ServerBusy",
    "ServerDisconnectedError",
    "ServerTimeoutError",
    "ServiceRequestError",
    "ServiceResponseError",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "TimeoutError",
    "TransportError",
    "429",
    "500",
    "502",
    "503",
    "504",
}
_LOST_RACE = {
    "PreconditionFailed",
    "ConditionalRequestConflict",
    "BlobAlreadyExists",
    "ResourceExistsError",
    "412",
}

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or ~/.aws, and AWS_ENDPOINT_URL if it isn't "
    "Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or what `gcloud auth application-default login` wrote",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


class StorageError(StoreError):
    """The storage doesn't do what it was asked for, and trying again won't help: its bucket or credentials, say."""


def is_lost_race(error: BaseException) -> bool:
    """Whether an object couldn't be created because there is one, or because somebody else is creating it."""
    return isinstance(error, FileExistsError) or not _LOST_RACE.isdisjoint(_words(error))


def is_absent(error: BaseException) -> bool:
    """Whether an object isn't there, though its bucket is."""
    return isinstance(error, FileNotFoundError) and not _lacks_bucket(error)


def is_past_the_end(error: BaseException) -> bool:
    """Whether a part of an object was asked for that begins after its last byte."""
    return not {"InvalidRange", "416"}.isdisjoint(_words(error))


def explained(error: Exception, location: Location, name: str = "") -> StoreError:
    """What to raise for an error of a driver: an `UnreachableError` for what may pass, else a `StorageError`.

    Args:
        error: What the driver raised.
        location: The store.
        name: The object that was asked for, if one was.
    """
    words = set(_words(error))
    code = _code(error)
    shown = f"{code or type(error).__name__}: {_first_line(error)}"
    if _lacks_bucket(error):
        return no_bucket(location)
    if not _REFUSED.isdisjoint(words) or _lacks_credentials(error):
        kind = _SAME.get(location.protocol, location.protocol)
        return StorageError(
            f"{location.url(name)}: the storage refuses your credentials, or what they may do ({shown}). Check "
            f"{_CREDENTIALS.get(kind, 'them')}."
        )
    if isinstance(error, ConnectionError | TimeoutError) or not _PASSING.isdisjoint(words):
        return UnreachableError(
            f"{location}: the storage can't be reached now ({shown}). Check the network and the address, and try again."
        )
    return StorageError(f"{location.url(name)}: the storage didn't do it ({shown}). Check the URL.")


def no_bucket(location: Location) -> StorageError:
    """What to raise where the bucket isn't there."""
    return StorageError(f"{location}: there is no bucket {location.bucket!r}. Create it, or check the URL.")


def _lacks_credentials(error: BaseException) -> bool:
    """Whether none are given, which Azure's driver says in words alone."""
    return any(isinstance(one, ValueError) and "credential" in str(one) for one in _chain(error))


def _lacks_bucket(error: BaseException) -> bool:
    said = "bucket does not exist" in str(error).lower()  # Google's code is that of an absent object
    return said or not _NO_BUCKET.isdisjoint(_words(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    present: BaseException | None = error
    while present is not None and id(present) not in seen:
        seen.add(id(present))
        yield present
        present = present.__cause__ or present.__context__


def _words(error: BaseException) -> Iterator[str]:
    """The names of an error's classes and its codes, and those of what caused it."""
    for one in _chain(error):
        yield from (kind.__name__ for kind in type(one).__mro__)
        codes = (_code(one), *(getattr(one, key, None) for key in ("error_code", "code", "status")))
        yield from (str(getattr(code, "value", code)) for code in codes if code is not None)


def _code(error: BaseException) -> str | None:
    """The code in the answer of S3 that an error, or what caused it, was made of."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        found = response.get("Error") if isinstance(response, dict) else None
        if isinstance(found, dict) and "Code" in found:
            return str(found["Code"])
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
