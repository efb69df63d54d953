"""The app behind a real server: many requests at once, and clients that go away."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from httpx import AsyncClient, Limits, Response
from sqlalchemy import text
from sqlmodel import SQLModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.db import Database
from app.main import create_app
from app.services import HeroService

pytestmark = pytest.mark.anyio

OPEN_TRANSACTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND xact_start IS NOT NULL AND pid <> pg_backend_pid()",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx"
    " JOIN information_schema.processlist ON id = trx_mysql_thread_id"
    " WHERE db = database() AND id <> connection_id()",
}


@pytest.fixture
async def patient(database: Database) -> AsyncGenerator[Database]:
    """The same database, with settings for a machine that is too slow for 300 requests at once.

    They wait for a connection, not for seconds in front of SQLite's only write lock: after 10 s
    without a connection, or 5 s without the lock, the app would answer 503.
    """
    few = {"pool_timeout": 60, "pool_size": 5, "max_overflow": 0}
    async with Database(database.settings.model_copy(update=few)) as patient:
        yield patient


def make_app(database: Database) -> FastAPI:
    app = create_app()
    app.state.database = database  # in place of the lifespan
    return app


@asynccontextmanager
async def serving(app: ASGIApp, database: Database) -> AsyncGenerator[str]:
    """Base URL of an app on a port of its own; it really commits."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running
        async with database.engine.begin() as connection:
            for table in reversed(SQLModel.metadata.sorted_tables):
                await connection.execute(table.delete())


@pytest.fixture
async def server(patient: Database) -> AsyncGenerator[str]:
    async with serving(make_app(patient), patient) as url:
        yield url


async def open_transactions(database: Database) -> int:
    """Those that the server knows of, and connections that the pool has not got back."""
    pool: Any = database.engine.pool
    checked_out: int = pool.checkedout()
    query = OPEN_TRANSACTIONS.get(database.engine.dialect.name)
    if query is None:
        return checked_out
    async with database.engine.connect() as connection:
        return checked_out + int((await connection.execute(text(query))).scalar_one())


async def all_closed(database: Database) -> bool:
    """Within two seconds: the end of a connection is news that travels."""
    for _ in range(40):
        if not await open_transactions(database):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_300_requests_at_once(server: str, patient: Database) -> None:
    limits = Limits(max_connections=300)
    async with AsyncClient(base_url=server, timeout=60, limits=limits) as client:
        team = (await client.post("/teams", json={"name": "Preventers"})).json()["id"]
        mission = (await client.post("/missions", json={"title": "Rescue"})).json()["id"]

        def post(name: str) -> Awaitable[Response]:
            hero = {"name": name, "secret_name": "?", "team_id": team}
            return client.post("/heroes", json=hero)

        old = [(await post(f"Old {number}")).json()["id"] for number in range(70)]
        changed, assigned, deleted = old[:40], old[40:60], old[60:]
        role = {"role": "lead"}
        at_once = [
            *(post(f"New {number}") for number in range(60)),
            *(post("One") for _ in range(30)),  # one of them gets the name
            *(client.patch(f"/heroes/{hero}", json={"power": 7}) for hero in changed * 2),
            *(client.put(f"/heroes/{hero}/missions/{mission}", json=role) for hero in assigned * 2),
            *(client.delete(f"/heroes/{hero}") for hero in deleted * 2),
            *(client.get("/heroes", params={"team_id__in": [team]}) for _ in range(20)),
            *(client.get(f"/heroes/{hero}") for hero in assigned),
            *(client.get("/heroes/export") for _ in range(10)),
            *(client.get("/missions") for _ in range(10)),
            *(client.get(f"/teams/{team}") for _ in range(10)),
        ]
        random.Random(7).shuffle(at_once)
        assert len(at_once) == 300
        answers = Counter(answer.status_code for answer in await asyncio.gather(*at_once))

        assert answers == {201: 60 + 1, 409: 29, 200: 80 + 40 + 70, 204: 10, 404: 10}
        total = 70 + 60 + 1 - 10
        page = (await client.get("/heroes", params={"power__gte": 7})).json()
        assert page["total"] == len(changed)
        assert (await client.get("/heroes")).json()["total"] == total
        assert len((await client.get("/heroes/export")).text.splitlines()) == total
        detail = (await client.get(f"/missions/{mission}")).json()
        assert {each["hero"]["id"] for each in detail["assignments"]} == {*assigned}
        assert len(detail["assignments"]) == len(assigned)
    assert await all_closed(patient)


class Gate:
    """Between the app and the server: lets the first piece of a body through, then waits."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.reached = asyncio.Event()  # the app waits for its client
        self.opened = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = 0

        async def wait(message: Message) -> None:
            nonlocal pieces
            pieces += message["type"] == "http.response.body"
            if pieces > 1:
                self.reached.set()
                await self.opened.wait()
            await send(message)

        await self.app(scope, receive, wait)


@pytest.fixture
def no_garbage_collector() -> Generator[None]:
    """It closes what was forgotten, some day; a connection must not wait for that."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("when", ["at the first line", "at once"])
async def test_an_export_holds_nothing_while_its_client_waits(patient: Database, when: str) -> None:
    rows: list[dict[str, Any]] = [
        {"name": f"Hero {number}", "secret_name": "?"} for number in range(2_500)
    ]
    async with patient.session() as session:
        await HeroService(session).create_multi(rows)
    gate = Gate(make_app(patient))
    async with serving(gate, patient) as url, AsyncClient(base_url=url) as client:
        async with client.stream("GET", "/heroes/export") as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            if when == "at the first line":
                lines = answer.aiter_lines()
                assert '"name":"Hero 0"' in await anext(lines)
                async with asyncio.timeout(60):
                    await gate.reached.wait()
                assert await open_transactions(patient) == 0  # in the middle of it
        # The client is gone, and the gate still shut.
        assert await all_closed(patient)
        gate.opened.set()
        assert len((await client.get("/heroes/export")).text.splitlines()) == len(rows)
    assert await all_closed(patient)
