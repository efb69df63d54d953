"""Fixtures: each driver on a real database, with the tables of `models` in it."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event, text

from tests.databases import DRIVERS, Servers
from tests.mdtest.plugin import wanted

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assets" / "example"))

from app.db import Database  # noqa: E402

from .models import four_items, tables  # noqa: E402

Counter = Callable[[Database], AbstractContextManager[list[str]]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests with a `driver` argument run once on each driver of the chosen databases."""
    if "driver" not in metafunc.fixturenames:
        return
    databases = wanted(metafunc)
    metafunc.parametrize(
        "driver",
        [
            pytest.param(f"{database}-{driver}", marks=getattr(pytest.mark, database))
            for database, drivers in DRIVERS.items()
            if database in databases
            for driver in drivers
        ],
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a .env of this folder nor DATABASE_URL reaches a test."""
    for name in ("URL", "PASSWORD", "ECHO", "POOL_SIZE"):
        monkeypatch.delenv(f"DATABASE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def empty(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], URL]:
    """Makes a new, empty database for a driver such as `postgresql-asyncpg`."""

    def make(driver: str) -> URL:
        database, _, name = driver.partition("-")
        return servers.create_for_test(database, tmp_path_factory.mktemp("db"), name)

    return make


@pytest.fixture(scope="session")
def databases(empty: Callable[[str], URL], servers: Servers) -> Generator[Callable[[str], URL]]:
    """The database of a driver, with tables: made once, emptied after each test."""
    made: dict[str, URL] = {}

    async def create(url: URL) -> None:
        async with Database(url) as database, database.engine.begin() as connection:
            await connection.run_sync(
                lambda sync: tables(url)[0].metadata.create_all(sync, tables=tables(url))
            )

    def get(driver: str) -> URL:
        if driver not in made:
            url = empty(driver)
            asyncio.run(create(url))
            made[driver] = url
        return made[driver]

    yield get
    for url in made.values():
        servers.drop(url)


@pytest.fixture
def url(driver: str, databases: Callable[[str], URL]) -> URL:
    return databases(driver)


@pytest.fixture
async def db(url: URL) -> AsyncGenerator[Database]:
    """A `Database` on the driver's database, which is left empty."""
    async with Database(url) as database:
        yield database
        async with database.engine.begin() as connection:
            mysql = url.get_backend_name() == "mysql"
            if mysql:  # it checks foreign keys row by row, also within one statement
                await connection.execute(text("SET FOREIGN_KEY_CHECKS = 0"))
            for table in reversed(tables(url)):
                await connection.execute(table.delete())
            if mysql:
                await connection.execute(text("SET FOREIGN_KEY_CHECKS = 1"))


@pytest.fixture
async def stock(db: Database) -> Database:
    async with db.session() as session:
        session.add_all(four_items())
    return db


@pytest.fixture
def statements() -> Counter:
    """Collects the SQL of a block, without BEGIN and savepoints."""

    @contextmanager
    def collect(database: Database) -> Generator[list[str]]:
        sent: list[str] = []

        def listen(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.split()[0] not in {"BEGIN", "SAVEPOINT", "RELEASE"}:
                sent.append(statement)

        engine = database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", listen)
        try:
            yield sent
        finally:
            event.remove(engine, "before_cursor_execute", listen)

    return collect
