"""FastAPI on top of the layer: sessions for endpoints, errors for clients."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic_core import to_jsonable_python
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import HTTPConnection

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


async def get_session(database: DatabaseDep) -> AsyncGenerator[AsyncSession]:
    """One unit of work per request. Use it as `SessionDep`, never with plain `Depends`."""
    async with database.session() as session:
        yield session


async def get_read_session(database: DatabaseDep) -> AsyncGenerator[AsyncSession]:
    """A session for endpoints that only read."""
    async with database.read_session() as session:
        yield session


# scope="function": the commit runs before the response is sent, and its failure becomes
# the response. With FastAPI's default scope it would run after the client got its 201.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
ReadSessionDep = Annotated[AsyncSession, Depends(get_read_session, scope="function")]

STATUS: dict[type[ServiceError], HTTPStatus] = {
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    MultipleFound: HTTPStatus.CONFLICT,
    InvalidQuery: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidValue: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The one place where domain errors become status codes; subclasses inherit."""


def add_error_handlers(app: FastAPI) -> None:
    """Answer `ServiceError` with application/problem+json (RFC 9457).

    Members: `title`, `status`, `detail`; and, where a constraint was broken,
    `constraint` and `columns`; where rows are missing, their `keys`. 503 comes with
    `Retry-After: 1`.
    """
    app.add_exception_handler(ServiceError, _problem)


async def _problem(_request: Request, error: Exception) -> JSONResponse:
    status = next(
        (code for kind, code in STATUS.items() if isinstance(error, kind)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    body: dict[str, object] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": str(error),
    }
    if isinstance(error, Conflict | InvalidValue) and (error.constraint or error.columns):
        body |= {"constraint": error.constraint, "columns": list(error.columns)}
    if isinstance(error, NotFound) and error.keys:
        with suppress(ValueError):  # a key of a type that JSON does not know
            body["keys"] = to_jsonable_python(error.keys)
    headers = {"Retry-After": "1"} if isinstance(error, Unavailable) else None
    return JSONResponse(body, status.value, headers, media_type="application/problem+json")
