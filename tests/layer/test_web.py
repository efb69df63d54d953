"""FastAPI on the layer: when the commit happens, and what a client gets."""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, MutableMapping
from decimal import Decimal
from http import HTTPStatus
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, field_validator
from sqlmodel import col, func, select
from starlette.exceptions import HTTPException as StarletteHTTPException

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
    TransientError,
    Unavailable,
    UniqueViolation,
)
from app.db.web import (
    Problem,
    ReadSessionDep,
    SessionDep,
    StreamSessionDep,
    add_error_handlers,
    problems,
)

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
        (Unavailable("no answer"), 503),
        (TransientError("again"), 503),
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

    @app.post("/slow/{name}")
    async def slow(name: str, session: SessionDep) -> None:
        session.add(Tag(name=name))
        await session.flush()
        if name == "own":
            async with asyncio.timeout(0):
                await asyncio.sleep(60)
        await asyncio.sleep(60)

    @app.get("/slow")
    async def slow_read(session: ReadSessionDep) -> None:
        await session.exec(select(Tag))
        await asyncio.sleep(60)

    @app.get("/slow-stream")
    async def slow_stream(session: StreamSessionDep) -> StreamingResponse:
        async def names() -> AsyncGenerator[str]:
            await asyncio.sleep(0.5)
            for tag in await session.exec(select(Tag)):
                yield tag.name

        return StreamingResponse(names())

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


async def test_a_request_that_takes_too_long(db: Database) -> None:
    """503, nothing stored, no connection held; a stream and a websocket may last."""
    db.settings.request_timeout = 0.3
    transport = httpx.ASGITransport(make_app(db), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for response in await asyncio.gather(client.post("/slow/red"), client.get("/slow")):
            assert response.status_code == 503
            assert response.json()["detail"] == "The request took longer than 0.3 s."
            assert response.headers["retry-after"] == "1"
        # A TimeoutError of the endpoint's own is its own affair.
        assert (await client.post("/slow/own")).status_code == 500
        assert await stored(client) == []
        assert cast(Any, db.engine.pool).checkedout() == 0
        assert (await client.post("/tags/red")).status_code == 201
        assert (await client.get("/slow-stream")).text == "red"


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
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert_problem(response)


def assert_problem(response: httpx.Response) -> dict[str, Any]:
    """The body, which is a `Problem` and has no member that `Problem` does not have."""
    assert response.headers["content-type"] == "application/problem+json"
    body = cast(dict[str, Any], response.json())
    assert set(body) <= set(Problem.model_fields)
    assert {"type", "title", "status", "detail"} <= set(body)
    told = Problem.model_validate(body)
    assert (told.type, told.status) == ("about:blank", response.status_code)
    return body


async def send(app: FastAPI, method: str, path: str, **arguments: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **arguments)


def app_that_raises(error: Exception) -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([1, UUID(int=7)], [1, "00000000-0000-0000-0000-000000000007"]),
        ([object()], None),
        ([float("inf")], None),
    ],
)
async def test_missing_keys_that_json_knows(keys: list[Any], told: list[Any] | None) -> None:
    response = await send(app_that_raises(NotFound("gone", keys)), "GET", "/")
    assert assert_problem(response).get("keys") == told


async def test_half_a_surrogate_pair_in_the_detail() -> None:
    response = await send(app_that_raises(NotFound("no \ud800")), "GET", "/")
    assert assert_problem(response)["detail"] == "no \ud800"


# -- errors of FastAPI -----------------------------------------------------------------


class Login(BaseModel, extra="forbid"):
    name: str = Field(max_length=5)
    password: str
    age: Decimal = Field(default=Decimal(1), gt=0)
    weight: float = Field(default=1.0, lt=float("inf"))

    @field_validator("password")
    @classmethod
    def long(cls, value: str) -> str:
        if len(value) < 20:
            raise ValueError("too short")
        return value


def app_with_login() -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/login")
    async def login(data: Login) -> None: ...

    return app


async def test_a_request_that_is_not_valid() -> None:
    values = {"name": "Deadpond", "password": "hunter2", "age": 0}
    response = await send(app_with_login(), "POST", "/login", json=values)
    assert response.status_code == 422
    assert assert_problem(response) == {
        "type": "about:blank",
        "title": HTTPStatus(422).phrase,
        "status": 422,
        "detail": "The request is not valid.",
        "errors": [
            {
                "type": "string_too_long",
                "loc": ["body", "name"],
                "msg": "String should have at most 5 characters",
                "ctx": {"max_length": 5},
            },
            {  # its ctx holds the ValueError
                "type": "value_error",
                "loc": ["body", "password"],
                "msg": "Value error, too short",
            },
            {
                "type": "greater_than",
                "loc": ["body", "age"],
                "msg": "Input should be greater than 0",
                "ctx": {"gt": "0"},
            },
        ],
    }
    assert "hunter2" not in response.text


@pytest.mark.parametrize(
    ("content", "loc"),
    [
        (b'{"name": "x", "password": "12345678901234567890", "\\ud800": 1}', ["body"]),
        (b'{"name": "x", "password": "12345678901234567890", "weight": 1e999}', ["body", "weight"]),
        (b"{", ["body", 1]),
        (b"", ["body"]),
    ],
    ids=["half a surrogate pair", "infinity", "no JSON", "nothing"],
)
async def test_odd_requests_are_answered(content: bytes, loc: list[Any]) -> None:
    headers = {"Content-Type": "application/json"}
    response = await send(app_with_login(), "POST", "/login", content=content, headers=headers)
    assert response.status_code == 422
    (error,) = assert_problem(response)["errors"]
    assert error["loc"] == loc
    assert set(error) <= {"type", "loc", "msg", "ctx"}


@pytest.mark.parametrize(
    ("error", "title", "detail", "headers"),
    [
        (HTTPException(401), "Unauthorized", "Unauthorized", {"WWW-Authenticate": "Bearer"}),
        (HTTPException(403, "Not yours."), "Forbidden", "Not yours.", {}),
        (StarletteHTTPException(404), "Not Found", "Not Found", {}),
        (HTTPException(400, {"code": 7}), "Bad Request", '{"code": 7}', {}),
        (HTTPException(499, "gone"), "Error", "gone", {}),
    ],
)
async def test_http_exceptions(
    error: StarletteHTTPException, title: str, detail: str, headers: dict[str, str]
) -> None:
    error.headers = headers
    response = await send(app_that_raises(error), "GET", "/")
    assert response.status_code == error.status_code
    body = assert_problem(response)
    assert (body["title"], body["detail"]) == (title, detail)
    assert {name: response.headers.get(name) for name in headers} == headers


async def test_unknown_paths_and_methods() -> None:
    app = app_with_login()
    assert assert_problem(await send(app, "GET", "/nowhere"))["status"] == 404
    response = await send(app, "GET", "/login")
    assert assert_problem(response)["status"] == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("code", [204, 304])
async def test_a_status_without_body_stays_without(code: int) -> None:
    error = HTTPException(code, headers={"ETag": '"x"'})
    response = await send(app_that_raises(error), "GET", "/")
    assert (response.status_code, response.content) == (code, b"")
    assert response.headers["etag"] == '"x"'
    assert "content-type" not in response.headers


@pytest.mark.parametrize("kind", [ServiceError, RequestValidationError, StarletteHTTPException])
@pytest.mark.parametrize("when", ["in the constructor", "before", "after"])
async def test_handlers_of_the_app_stay(kind: type[Exception], when: str) -> None:
    async def own(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"own": type(error).__name__}, 418)

    app = FastAPI(exception_handlers={kind: own} if when == "in the constructor" else None)
    if when == "before":
        app.add_exception_handler(kind, own)
    add_error_handlers(app)
    if when == "after":
        app.add_exception_handler(kind, own)
    add_error_handlers(app)  # twice is the same as once

    @app.get("/{number}")
    async def number(number: int) -> None:
        raise NotFound if number else HTTPException(404)

    raised = {"/x": RequestValidationError, "/1": ServiceError, "/0": StarletteHTTPException}
    for path, each in raised.items():
        response = await send(app, "GET", path)
        if each is kind:
            assert response.status_code == 418
        else:
            assert_problem(response)


# -- OpenAPI ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["endpoint", "router", "app"])
def test_problems_in_openapi(place: str) -> None:
    told = problems(404, 409, 422)
    app = FastAPI(responses=told if place == "app" else None)
    router = APIRouter(responses=told if place == "router" else None)

    @router.patch("/{number}", responses=told if place == "endpoint" else None)
    async def update(number: int) -> None: ...

    app.include_router(router)
    document = app.openapi()
    responses = document["paths"]["/{number}"]["patch"]["responses"]
    assert set(responses) == {"200", "404", "409", "422"}
    for code in (404, 409, 422):
        response = responses[str(code)]
        assert response["description"] == HTTPStatus(code).phrase
        ((media_type, content),) = response["content"].items()
        assert media_type == "application/problem+json"
        assert set(content["schema"]["properties"]) == set(Problem.model_fields)
        assert "$" not in json.dumps(content)  # a reference would lead nowhere from here
    assert "HTTPValidationError" not in json.dumps(document)


def test_fastapi_promises_its_own_422_where_nobody_says_otherwise() -> None:
    """Why `problems(422)` is needed."""
    app = app_with_login()
    responses = app.openapi()["paths"]["/login"]["post"]["responses"]
    assert list(responses["422"]["content"]) == ["application/json"]


# -- streams ---------------------------------------------------------------------------


def stream_app(db: Database) -> tuple[FastAPI, list[int]]:
    app = FastAPI()
    app.state.database = db
    held: list[int] = []

    @app.get("/stream")
    async def stream(session: StreamSessionDep) -> StreamingResponse:
        async def names() -> AsyncGenerator[str]:
            for name in (await session.exec(select(Tag.name).order_by(Tag.name))).all():
                held.append(checked_out(db))
                yield name

        return StreamingResponse(names())

    return app, held


def checked_out(db: Database) -> int:
    return cast(int, cast(Any, db.engine.pool).checkedout())


async def test_a_stream_session_lasts_until_the_last_byte(db: Database) -> None:
    async with db.session() as session:
        session.add_all([Tag(name="blue"), Tag(name="red")])
    app, held = stream_app(db)
    assert (await send(app, "GET", "/stream")).text == "bluered"
    assert held == [1, 1]
    assert checked_out(db) == 0


async def test_a_stream_session_ends_when_the_client_goes(db: Database) -> None:
    async with db.session() as session:
        session.add_all([Tag(name="blue"), Tag(name="red")])
    app, held = stream_app(db)
    started, gone = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body"):
            started.set()
            await asyncio.Event().wait()  # the client takes no more

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/stream", "headers": []}
    gc.disable()  # it would close what was forgotten
    try:
        request = asyncio.create_task(app({**scope, "query_string": b""}, receive, send))
        await started.wait()
        assert checked_out(db) == 1
        gone.set()
        await request
        assert checked_out(db) == 0
    finally:
        gc.enable()
    assert held == [1]


# -- websockets ------------------------------------------------------------------------


async def talk(app: FastAPI, path: str, *texts: str, leave: bool = False) -> list[dict[str, Any]]:
    """What the app sends to a client that sends these texts, and then perhaps leaves."""
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outgoing: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "websocket.connect"})
    for text in texts:
        incoming.put_nowait({"type": "websocket.receive", "text": text})
    if leave:
        incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": path,
        "headers": [],
        "query_string": b"",
        "subprotocols": [],
    }
    await app(scope, incoming.get, outgoing.put)
    return [dict(outgoing.get_nowait()) for _ in range(outgoing.qsize())]


async def test_websocket_has_a_session(db: Database) -> None:
    sent = await talk(make_app(db), "/socket", "by socket")
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send"]
    async with db.read_session() as session:
        assert (await session.exec(select(col(Tag.name)))).all() == ["by socket"]


async def test_a_commit_that_fails_closes_the_websocket(db: Database) -> None:
    app = make_app(db)
    await talk(app, "/socket", "twice")
    sent = await talk(app, "/socket", "twice")
    assert sent[-1] == {
        "type": "websocket.close",
        "code": 1008,
        "reason": "A row with this key already exists (uq_tag_name).",
    }
    assert [message["type"] for message in sent[:-1]] == ["websocket.accept", "websocket.send"]


def socket_app(error: Exception) -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)

    @app.websocket("/early")
    async def early(_socket: WebSocket) -> None:
        raise error

    @app.websocket("/late")
    async def late(socket: WebSocket) -> None:
        await socket.accept()
        raise error

    @app.websocket("/closed")
    async def closed(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()
        raise error

    @app.websocket("/left")
    async def left(socket: WebSocket) -> None:
        await socket.accept()
        async for _ in socket.iter_text():
            pass
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status"), [(NotFound("no row"), 404), (HTTPException(401, "Who?"), 401)]
)
async def test_an_error_before_accept_is_a_response(error: Exception, status: int) -> None:
    start, body = await talk(socket_app(error), "/early")
    assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
    assert (b"content-type", b"application/problem+json") in start["headers"]
    assert json.loads(body["body"])["status"] == status


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((error, 1011 if status >= 500 else 1008) for error, status in ERRORS.values()),
        (HTTPException(401, "Who?"), 1008),
        (HTTPException(502, "Who?"), 1011),
    ],
)
async def test_an_error_after_accept_closes_the_websocket(error: Exception, code: int) -> None:
    accept, close = await talk(socket_app(error), "/late")
    assert accept["type"] == "websocket.accept"
    reason = error.detail if isinstance(error, HTTPException) else str(error)
    assert close == {"type": "websocket.close", "code": code, "reason": reason}


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("\N{SNOWMAN}" * 41, "\N{SNOWMAN}" * 41),  # three bytes each
        ("xx" + "\N{SNOWMAN}" * 41, "xx" + "\N{SNOWMAN}" * 40),
        ("\ud800", "?"),
    ],
)
async def test_a_reason_has_123_bytes_at_most(detail: str, reason: str) -> None:
    _, close = await talk(socket_app(NotFound(detail)), "/late")
    assert close["reason"] == reason


@pytest.mark.parametrize("path", ["/closed", "/left"])
async def test_an_error_that_nobody_can_be_told_is_not_lost(path: str) -> None:
    error = NotFound("no row")
    with pytest.raises(RuntimeError, match="nobody can be told") as caught:
        await talk(socket_app(error), path, leave=True)
    assert caught.value.__cause__ is error
