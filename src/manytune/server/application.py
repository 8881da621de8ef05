"""What the application of any server begins as: no pages of FastAPI's own, and errors in the form of OpenAI's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from manytune import __version__
from manytune.errors import ManytuneError
from manytune.server.bodies.body_errors import invalid_body
from manytune.server.http_errors import HttpError, http_error_of

_log = logging.getLogger(__name__)


def plain_application(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """An application without routes, which answers every error in the form of OpenAI's.

    Args:
        lifespan: What it does from its start to its end.
    """
    app = FastAPI(
        title="manytune",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:

    def answer(error: HttpError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HttpError)
    async def http_error(_: Request, error: HttpError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(ManytuneError)
    async def manytune_error(_: Request, error: ManytuneError) -> JSONResponse:
        return answer(http_error_of(error))

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(invalid_body(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def routing_error(_: Request, error: HTTPException) -> JSONResponse:
        code = {400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return answer(HttpError(error.status_code, str(error.detail), code=code))

    @app.exception_handler(Exception)
    async def internal_error(_: Request, error: Exception) -> JSONResponse:
        _log.error("a request failed", exc_info=error)
        return answer(
            HttpError(500, "an internal error; the server's log has the traceback.", code="internal_error")
        )
