"""Which requests a web page of somebody else may have caused, and that these are refused.

A browser sends requests of any page to any address, this machine's own included. It asks the server first
(CORS preflight) only where a request couldn't come from a form: a JSON body with its Content-Type can't. So

- a body has to be declared as JSON, on every server: what a form or a `no-cors` request can declare isn't;
- a server without keys, which everybody on its machine may use, answers to its own host names only (else a page's host
  name could be made to resolve to this machine, DNS rebinding), and to pages of its own only: `Origin` and
  `Sec-Fetch-Site`, which pages can't set themselves, say whose page it was. Programs other than browsers send neither.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from manytune.server.http_errors import HttpError

#: The host names of a server that only its own machine reaches.
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]@/\\?#\s]+)(?::[0-9]{1,5})?")
_JSON = re.compile(r"application/(?:[a-z0-9!#$&^_.-]+\+)?json", re.ASCII)
_OWN_PAGE = frozenset({"same-origin", "none"})


def check_sender(headers: Headers, *, is_page: bool, is_keyless: bool) -> None:
    """Refuse a request that a foreign web page may have caused, and a body that isn't declared as JSON.

    Args:
        headers: Those of the request.
        is_page: Whether a page is asked for, to which any page may link.
        is_keyless: Whether the server has no keys, so that being able to send is all that a request needs.

    Raises:
        HttpError: 400 for another host name, 403 for another page, 415 for another content type.
    """
    if is_keyless:
        _check_host(headers)
        _check_origin(headers, is_page=is_page)
    _check_content_type(headers)


def _check_host(headers: Headers) -> None:
    hosts = headers.getlist("host")
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if found is None or found["name"].lower() not in LOCAL_HOSTS:
        raise HttpError(
            400,
            "without keys this server answers to localhost, 127.0.0.1 and [::1]; the Host header has another name.",
            code="invalid_host",
        )


def _check_origin(headers: Headers, *, is_page: bool) -> None:
    own = headers["host"].lower()
    origins = {origin.lower() for origin in headers.getlist("origin")}
    sites = set(headers.getlist("sec-fetch-site"))
    is_foreign = bool(origins - {f"http://{own}", f"https://{own}"})
    is_linked = is_page and not origins
    if is_foreign or (sites - _OWN_PAGE and not is_linked):
        raise HttpError(
            403,
            "the request comes from a web page of another origin, which a server without keys doesn't answer. "
            "Start the server with keys for pages of other origins.",
            code="foreign_origin",
        )


def _check_content_type(headers: Headers) -> None:
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    types = [value.partition(";")[0].strip().lower() for value in headers.getlist("content-type")]
    if has_body and (len(types) != 1 or not _JSON.fullmatch(types[0])):
        found = f"found {types[0][:100]!r}" if types else "it is missing"
        raise HttpError(
            415,
            f"Content-Type: expected application/json, {found}.",
            code="unsupported_media_type",
        )
