"""The app on a real database: SQLite in a temporary folder, or `TEST_DATABASE_URL`.

`client` and `session` are for most tests: whatever they commit is rolled back at the end
of the test, so tests cannot see each other and no table is emptied.
`committing_client` really commits, for what a rollback would hide.
"""

import copy
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database
from app.main import create_app

TEST_DATABASE_URL = os.environ.get("TEST_DATABASE_URL")


def pytest_report_header() -> str:
    return f"database: {make_url(TEST_DATABASE_URL or 'sqlite+aiosqlite://')!r}"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def database(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Database]:
    """Tables of its own. Those of `TEST_DATABASE_URL` are dropped, before and after."""
    file = Path(tmp_path_factory.mktemp("database")) / "test.db"
    url = TEST_DATABASE_URL or f"sqlite+aiosqlite:///{file}"
    async with Database(url) as database:
        await database.drop_tables()
        await database.create_tables()
        yield database
        await database.drop_tables()


@pytest.fixture
async def rolled_back(database: Database) -> AsyncGenerator[Database]:
    """The same database, inside one transaction that is rolled back.

    Its sessions share one connection; their commits release savepoints.
    """
    async with database.engine.connect() as connection, connection.begin() as outer:
        inside = copy.copy(database)
        inside.sessions = inside.read_sessions = async_sessionmaker(
            connection,
            class_=AsyncSession,
            expire_on_commit=False,
            join_transaction_mode="create_savepoint",
        )
        yield inside
        await outer.rollback()


@pytest.fixture
async def session(rolled_back: Database) -> AsyncGenerator[AsyncSession]:
    async with rolled_back.sessions() as session:
        yield session


@pytest.fixture
async def client(rolled_back: Database) -> AsyncGenerator[AsyncClient]:
    async with _client(rolled_back) as client:
        yield client


@pytest.fixture
async def committing_client(database: Database) -> AsyncGenerator[AsyncClient]:
    async with _client(database) as client:
        yield client
    async with database.engine.begin() as connection:
        for table in reversed(SQLModel.metadata.sorted_tables):
            await connection.execute(table.delete())


@asynccontextmanager
async def _client(database: Database) -> AsyncGenerator[AsyncClient]:
    app = create_app()
    app.state.database = database  # in place of the lifespan, which ASGITransport leaves out
    transport = ASGITransport(app)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def statements(database: Database) -> Generator[list[str]]:
    """The SQL that was sent, without savepoints; `.clear()` it before the part to count."""
    sent: list[str] = []

    def remember(*arguments: Any) -> None:
        if not arguments[2].startswith(("SAVEPOINT", "RELEASE", "ROLLBACK", "BEGIN")):
            sent.append(arguments[2])

    engine = database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", remember)
    yield sent
    event.remove(engine, "before_cursor_execute", remember)
