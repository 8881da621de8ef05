"""The playground and the operator's page: files of the package that need nothing but this server.

They get everything that they show through routes that need a key, and may load and ask nothing but their own server:
`Content-Security-Policy` allows no script and no style in the page itself, either.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A new release's page with a former one's scripts would be neither.
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FOLDER = files("manytune.server").joinpath("page")

#: The file of each path, by which browsers ask for it.
PAGES = {"/": "playground.html", "/operator": "operator.html"} | {
    f"/page/{file.name}": file.name
    for file in sorted(_FOLDER.iterdir(), key=lambda file: file.name)
    if file.name.endswith((".css", ".js"))
}


def add_pages(app: FastAPI) -> None:
    """Have an application answer with the pages and their files."""
    for path, name in PAGES.items():
        _add(app, path, name)


def _add(app: FastAPI, path: str, name: str) -> None:
    content = _FOLDER.joinpath(name).read_text(encoding="utf-8")
    kind = _TYPES[name.rpartition(".")[2]]

    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)
