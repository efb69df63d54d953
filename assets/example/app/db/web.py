"""FastAPI on top of the layer: sessions for endpoints, errors for clients."""

import asyncio
import http.client
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, WebSocket
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.utils import is_body_allowed_for_status_code
from pydantic import BaseModel, Field
from pydantic_core import to_jsonable_python
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.websockets import WebSocketState

from .database import Database
from .errors import (
    Conflict,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    ServiceError,
    Unavailable,
)


def get_database(connection: HTTPConnection) -> Database:
    """The database that the lifespan put into `app.state.database`."""
    database: Database = connection.app.state.database
    return database


DatabaseDep = Annotated[Database, Depends(get_database)]


async def get_session(
    connection: HTTPConnection, database: DatabaseDep
) -> AsyncGenerator[AsyncSession]:
    """One unit of work per request. Use it as `SessionDep`, never with plain `Depends`."""
    async with _time_limit(connection, database), database.session() as session:
        yield session


async def get_read_session(
    connection: HTTPConnection, database: DatabaseDep
) -> AsyncGenerator[AsyncSession]:
    """A session for endpoints that only read."""
    async with _time_limit(connection, database), database.read_session() as session:
        yield session


async def get_stream_session(database: DatabaseDep) -> AsyncGenerator[AsyncSession]:
    """A session for reads that may last as long as the client listens."""
    async with database.read_session() as session:
        yield session


@asynccontextmanager
async def _time_limit(connection: HTTPConnection, database: Database) -> AsyncGenerator[None]:
    """End a request that takes longer than `request_timeout`, wherever it waits.

    A network that swallows packets answers neither a query nor a ping; most drivers would
    wait for hours. The endpoint is cancelled, its connection to the database is closed. A
    websocket may last.

    Raises:
        Unavailable: the time is over. Was it at COMMIT, it may have been stored.
    """
    seconds = database.settings.request_timeout
    limited = connection.scope["type"] == "http"
    limit = asyncio.timeout(seconds if limited else None)
    # A driver that is cancelled tells the server so, psycopg for up to 10 s; at the second
    # time it hangs up.
    at_once = asyncio.timeout(seconds + 1 if limited else None)
    try:
        async with at_once, limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise Unavailable(f"The request took longer than {seconds:g} s.") from error
        raise


# scope="function": the commit runs before the response is sent, and its failure becomes
# the response. With FastAPI's default scope it would run after the client got its 201.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
ReadSessionDep = Annotated[AsyncSession, Depends(get_read_session, scope="function")]

# For a stream out of one transaction: it ends after the last byte, or when the client is
# gone. A dependency, because FastAPI closes those. A generator that the client left at a
# `yield` nobody closes: a session block inside keeps its connection until the garbage
# collector comes. A slow client keeps this one too; a session per page holds nothing.
StreamSessionDep = Annotated[AsyncSession, Depends(get_stream_session, scope="request")]

STATUS: dict[type[ServiceError], HTTPStatus] = {
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    MultipleFound: HTTPStatus.CONFLICT,
    InvalidQuery: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidValue: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The one place where domain errors become status codes; subclasses inherit."""


class Problem(BaseModel):
    """The body of every error (RFC 9457). Members that have nothing to say are left out."""

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What is wrong, in a sentence for people.")
    constraint: str | None = Field(default=None, description="The constraint that was broken.")
    columns: list[str] = Field(default=[], description="The columns of that constraint.")
    keys: list[Any] = Field(default=[], description="Primary keys that have no row.")
    errors: list[dict[str, Any]] = Field(
        default=[],
        description="What is not valid in the request: `type`, `loc`, `msg`, perhaps `ctx`.",
    )


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """These statuses with the body `Problem`, for `responses=`, so that OpenAPI has them.

        @app.patch("/heroes/{hero_id}", responses=problems(404, 409, 422))

    An endpoint, a router or the app takes it. FastAPI adds a 422 of its own, with a body that
    `add_error_handlers` replaces: so write 422 wherever there are parameters or a body.
    """
    return {
        code: {"content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
        for code in codes
    }


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors with application/problem+json; the body is a `Problem`.

    - `ServiceError`: the status is in `STATUS`, else 500. 503 comes with `Retry-After: 1`.
    - FastAPI's `RequestValidationError`: 422, and what is wrong in `errors`, without the
      client's input, which may be a password.
    - `HTTPException`: its status, detail and headers. A detail that is no text comes as JSON
      text.

    A handler that the app has already for one of these stays. One that is added later
    replaces these.

    A websocket gets the same answer before `accept()`. After it no response can be sent: it
    is closed, with 1011 where the status were 500 or above, else 1008, and the detail as
    reason.
    """
    handlers: list[tuple[type[Exception], Callable[..., Any] | None]] = [
        (ServiceError, None),
        (RequestValidationError, request_validation_exception_handler),
        (HTTPException, http_exception_handler),
    ]
    registered: Mapping[Any, Any] = app.exception_handlers
    answer: Callable[..., Any] = _answer
    for kind, default in handlers:
        if registered.get(kind, default) is default:
            app.add_exception_handler(kind, answer)


async def _answer(connection: HTTPConnection, error: Exception) -> Response | None:
    headers: Mapping[str, str] | None = None
    members: dict[str, object] = {}
    if isinstance(error, RequestValidationError):
        code, detail = 422, "The request is not valid."
        members["errors"] = [_invalid(each) for each in error.errors()]
    elif isinstance(error, HTTPException):
        code, headers, said = error.status_code, error.headers, cast(object, error.detail)
        detail = said if isinstance(said, str) else json.dumps(said, default=str)
    else:
        code, detail = _status(error), str(error)
        members = _members(error)
        headers = {"Retry-After": "1"} if isinstance(error, Unavailable) else None

    if isinstance(connection, WebSocket) and (
        connection.application_state is not WebSocketState.CONNECTING
    ):
        await _close(connection, error, code, detail)
        return None
    if not is_body_allowed_for_status_code(code):
        return Response(status_code=code, headers=headers)
    body = {"type": "about:blank", "title": _phrase(code), "status": code, "detail": detail}
    # As ASCII: the detail may quote what UTF-8 cannot hold, half a surrogate pair in JSON.
    text = json.dumps(body | members, default=str, separators=(",", ":"))
    return Response(text, code, headers, media_type="application/problem+json")


async def _close(socket: WebSocket, error: Exception, code: int, detail: str) -> None:
    states = socket.application_state, socket.client_state
    if states != (WebSocketState.CONNECTED, WebSocketState.CONNECTED):
        raise RuntimeError("The websocket is closed: nobody can be told.") from error
    # RFC 6455, 7.4.1: 1011 is a server that could not fulfil the request, 1008 is for what
    # was refused and has no code of its own. A reason has 123 bytes at most (5.5).
    reason = detail.encode(errors="replace")[:123].decode(errors="ignore")
    await socket.close(1011 if code >= HTTPStatus.INTERNAL_SERVER_ERROR else 1008, reason)


def _phrase(code: int) -> str:
    return http.client.responses.get(code, "Error")  # there are others than HTTPStatus has


def _status(error: Exception) -> int:
    found = (code for kind, code in STATUS.items() if isinstance(error, kind))
    return next(found, HTTPStatus.INTERNAL_SERVER_ERROR).value


def _members(error: Exception) -> dict[str, object]:
    if isinstance(error, Conflict | InvalidValue) and (error.constraint or error.columns):
        return {"constraint": error.constraint, "columns": list(error.columns)}
    if isinstance(error, NotFound) and error.keys:
        with suppress(ValueError):  # a key of a type that JSON does not know
            return {"keys": _json(error.keys)}
    return {}


def _invalid(error: Mapping[str, Any]) -> dict[str, object]:
    """What is said of a part of the request; not `input`."""
    told = {name: error[name] for name in ("type", "loc", "msg") if name in error}
    with suppress(ValueError):  # an exception that a validator raised
        told |= {"ctx": _json(error["ctx"])} if error.get("ctx") else {}
    return told


def _json(value: object) -> object:
    value = to_jsonable_python(value)
    json.dumps(value, allow_nan=False)  # to_jsonable_python lets infinity pass
    return value
