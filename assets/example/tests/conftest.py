"""The app on a real database: SQLite in a temporary folder, or beside `TEST_DATABASE_URL`.

`client` and `session` are for most tests: whatever they commit is rolled back at the end
of the test, so tests cannot see each other and no table is emptied.
`committing_client` really commits, for what a rollback would hide.

Each process has a database of its own (`TEST_DATABASE_URL` names one whose user may create
others), so `pytest -n 4` works. A test that reads what was not loaded, or leaves a session open,
fails at its end.
"""

import copy
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import make_url
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database, testing
from app.main import create_app

guard = testing.guard  # a fixture, for all tests
TEST_DATABASE_URL = os.environ.get("TEST_DATABASE_URL", "sqlite+aiosqlite://")


def pytest_report_header() -> str:
    return f"database: {make_url(TEST_DATABASE_URL)!r}"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def database() -> AsyncGenerator[Database]:
    """With all tables, empty."""
    async with testing.temporary_database(TEST_DATABASE_URL) as url, Database(url) as database:
        await database.create_tables()
        yield database


@pytest.fixture
async def rolled_back(database: Database) -> AsyncGenerator[Database]:
    """The same database, inside one transaction that is rolled back."""
    async with testing.rolled_back(database.engine) as sessions:
        inside = copy.copy(database)
        inside.sessions = inside.read_sessions = sessions
        yield inside


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
