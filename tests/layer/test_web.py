"""FastAPI on the layer: when the commit happens, and what a client gets."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from http import HTTPStatus
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI, HTTPException, WebSocket
from sqlmodel import col, func, select

from app.db import (
    CheckViolation,
    Conflict,
    Database,
    ForeignKeyViolation,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    NotNullViolation,
    ServiceError,
    StaleData,
    UniqueViolation,
)
from app.db.web import ReadSessionDep, SessionDep, add_error_handlers

from .models import Later, Tag, sql

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

ERRORS: dict[str, tuple[ServiceError, int]] = {
    type(error).__name__: (error, status)
    for error, status in [
        (NotFound("no row"), 404),
        (MultipleFound("two rows"), 409),
        (InvalidQuery("no such field"), 422),
        (InvalidValue("too long", None, "tag", ("name",)), 422),
        (NotNullViolation("missing", None, "tag", ("name",)), 422),
        (CheckViolation("rule", "ck_tag_x", "tag"), 422),
        (Conflict("clash"), 409),
        (UniqueViolation("again", "uq_tag_name", "tag", ("name",)), 409),
        (ForeignKeyViolation("gone", "fk_x", "tag", ("a", "b")), 409),
        (StaleData("changed"), 409),
        (ServiceError("other"), 500),
    ]
}


def make_app(db: Database) -> FastAPI:
    app = FastAPI()
    app.state.database = db
    add_error_handlers(app)
    inside = asyncio.Barrier(2)

    @app.post("/tags/{name}", status_code=201)
    async def create(name: str, session: SessionDep) -> dict[str, UUID]:
        session.add(tag := Tag(name=name))
        return {"id": tag.id}

    @app.post("/refused/{name}")
    async def refuse(name: str, session: SessionDep) -> None:
        session.add(Tag(name=name))
        await session.flush()
        raise HTTPException(418)

    @app.post("/crash/{name}")
    async def crash(name: str, session: SessionDep) -> None:
        session.add(Tag(name=name))
        await session.flush()
        raise KeyError(name)

    @app.post("/later", status_code=201)
    async def later(session: SessionDep) -> None:
        session.add(Tag(name="with the orphan"))
        session.add(Later(shop_id=uuid4()))
        await session.flush()

    @app.get("/tags")
    async def tags(session: ReadSessionDep) -> list[str]:
        return list((await session.exec(select(Tag.name).order_by(Tag.name))).all())

    @app.post("/read-only")
    async def read_only(session: ReadSessionDep) -> None:
        session.add(Tag(name="lost"))
        await session.flush()

    @app.get("/together")
    async def together(session: ReadSessionDep, again: ReadSessionDep) -> dict[str, Any]:
        assert session is again
        await inside.wait()  # both requests hold their sessions now
        seen = (await session.exec(select(func.count()).select_from(Tag))).one()
        return {"session": id(session), "rows": seen}

    @app.get("/errors/{name}")
    async def fail(name: str) -> None:
        raise ERRORS[name][0]

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, session: SessionDep) -> None:
        await websocket.accept()
        session.add(Tag(name=await websocket.receive_text()))
        await websocket.send_text("added")

    return app


@pytest.fixture
async def client(db: Database) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(db), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def stored(client: httpx.AsyncClient) -> list[str]:
    return cast(list[str], (await client.get("/tags")).json())


async def test_commit_comes_before_the_response(db: Database) -> None:
    app = make_app(db)
    rows_at_start: list[int] = []

    async def spy(scope: Any, receive: Any, send: Any) -> None:
        async def look(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                async with db.read_session() as session:
                    rows_at_start.append(await sql(session, "SELECT count(*) FROM tag"))
            await send(message)

        await app(scope, receive, look)

    transport = httpx.ASGITransport(spy)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/tags/red")
    assert (response.status_code, rows_at_start) == (201, [1])
    async with db.read_session() as session:
        tag = await session.get_one(Tag, UUID(response.json()["id"]))
    assert tag.name == "red"


async def test_failed_commit_is_the_response(client: httpx.AsyncClient) -> None:
    assert (await client.post("/tags/red")).status_code == 201
    response = await client.post("/tags/red")  # the INSERT runs at the commit
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "A row with this key already exists (uq_tag_name).",
        "constraint": "uq_tag_name",
        "columns": ["name"],
    }
    assert await stored(client) == ["red"]


@pytest.mark.only("sqlite", "postgresql")
async def test_rule_that_only_commit_checks(client: httpx.AsyncClient) -> None:
    response = await client.post("/later")
    assert (response.status_code, response.json()["title"]) == (409, "Conflict")
    assert await stored(client) == []
    assert (await client.post("/tags/red")).status_code == 201  # the connection is whole


@pytest.mark.parametrize(("path", "status"), [("/refused/x", 418), ("/crash/x", 500)])
async def test_exception_after_a_write_rolls_back(
    client: httpx.AsyncClient, path: str, status: int
) -> None:
    assert (await client.post(path)).status_code == status
    assert await stored(client) == []


async def test_read_session_is_no_place_to_write(client: httpx.AsyncClient) -> None:
    assert (await client.post("/read-only")).status_code == 500  # and no false 200
    assert await stored(client) == []


async def test_requests_have_their_own_sessions(client: httpx.AsyncClient) -> None:
    await client.post("/tags/red")
    one, two = await asyncio.gather(client.get("/together"), client.get("/together"))
    assert one.json()["session"] != two.json()["session"]
    assert one.json()["rows"] == two.json()["rows"] == 1


async def test_many_writers_at_once(client: httpx.AsyncClient) -> None:
    names = [f"tag {n:02}" for n in range(20)]
    responses = await asyncio.gather(*(client.post(f"/tags/{name}") for name in names * 2))
    assert sorted(each.status_code for each in responses) == [201] * 20 + [409] * 20
    assert await stored(client) == names


@pytest.mark.parametrize("name", ERRORS)
async def test_every_error_has_a_status(name: str) -> None:
    error, status = ERRORS[name]
    transport = httpx.ASGITransport(make_app(Database("sqlite://")))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get(f"/errors/{name}")
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == body["status"] == status
    assert (body["type"], body["detail"]) == ("about:blank", str(error))
    assert body["title"] == HTTPStatus(status).phrase
    columns = getattr(error, "columns", ())
    known = bool(columns or getattr(error, "constraint", None))
    assert ("constraint" in body, body.get("columns")) == (known, [*columns] if known else None)


async def test_websocket_has_a_session(db: Database) -> None:
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outgoing: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    incoming.put_nowait({"type": "websocket.receive", "text": "by socket"})
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": "/socket",
        "headers": [],
        "query_string": b"",
        "subprotocols": [],
    }
    await make_app(db)(scope, incoming.get, outgoing.put)
    sent = [outgoing.get_nowait() for _ in range(outgoing.qsize())]
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send"]
    async with db.read_session() as session:
        assert (await session.exec(select(col(Tag.name)))).all() == ["by socket"]
