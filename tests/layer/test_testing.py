"""`app.db.testing`: it counts, rolls back and finds what it says, on every driver."""

import inspect
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlmodel import Session, create_engine, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database
from app.db.testing import (
    expect_statements,
    guarded,
    recorded_statements,
    rolled_back,
    temporary_database,
)

from .models import Item, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]


def line(name: str) -> str:
    """Of the comment `# line: name` in this file."""
    rows = Path(__file__).read_text().splitlines()
    (number,) = [number for number, row in enumerate(rows, 1) if row.endswith(f"# line: {name}")]
    return f"{__file__}:{number}"


async def add_item(db: Database) -> None:
    async with db.session() as session:
        session.add(Item(name="hammer", shop=Shop(name="corner")))


async def only_shop(session: AsyncSession) -> Shop:
    return (await session.exec(select(Shop))).one()


# --- statements -----------------------------------------------------------------------


async def test_the_expected_number(db: Database) -> None:
    async with db.session() as session:
        with expect_statements(2) as sent:
            session.add(Shop(name="corner"))
            async with session.begin_nested():  # line: flush
                pass
            await session.exec(select(Shop))
    assert sent.verbs() == ["INSERT", "SELECT"]
    assert sent[0].where == line("flush")
    assert "shop" in sent[1].sql
    assert "\n" not in sent[1].sql


async def test_another_number_lists_what_was_sent(db: Database) -> None:
    keys = [uuid4() for _ in range(5)]
    async with db.session() as session:
        with pytest.raises(AssertionError) as caught, expect_statements(2):  # noqa: PT012
            for key in keys:
                await session.get(Shop, key)  # line: five
            await session.exec(select(Item.id, Item.name))  # line: one
    head, first, second = str(caught.value).splitlines()
    assert head == "6 statements, not 2:"
    assert first.startswith(f"  {line('five')}: 5 times: SELECT shop.id")
    assert first.count(keys[2].hex[:8]) == 1
    assert keys[3].hex[:8] not in first
    assert first.endswith(", ...")
    assert second.startswith(f"  {line('one')}: SELECT item.id")
    with (
        pytest.raises(AssertionError, match=r"^0 statements, not 1:\n  none$"),
        expect_statements(1),
    ):
        pass


def test_a_block_that_raises_keeps_its_error() -> None:
    with pytest.raises(KeyError), expect_statements(7):
        raise KeyError


async def test_connections_made_before_and_other_engines_count(db: Database, url: URL) -> None:
    other = create_async_engine(url)
    async with db.engine.connect() as one, other.connect() as two:
        with recorded_statements() as sent:
            await one.execute(select(Shop.id))
            await two.execute(select(Item.id))
        await one.execute(select(Shop.id))
    await other.dispose()
    assert len(sent) == 2


async def test_many_rows_of_one_statement(db: Database) -> None:
    rows = [{"id": uuid4(), "name": str(number)} for number in range(3)]
    async with db.session() as session:
        with expect_statements(1) as sent:
            await session.exec(insert(Shop), params=rows)
    assert len(sent[0].parameters) == 3


# --- rolled back ----------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
async def test_commits_are_undone(db: Database, url: URL, plain: bool) -> None:
    engine = create_async_engine(url) if plain else db.engine  # without the layer's events
    async with rolled_back(engine) as sessions:
        async with sessions() as session:
            session.add(Shop(name="corner"))
            await session.commit()
            session.add(Shop(name="mall"))
            await session.rollback()
            session.add(Shop(name="corner"))
            with pytest.raises(IntegrityError):
                await session.commit()
        async with sessions() as session:
            shop = await only_shop(session)
            await session.delete(shop)
            await session.commit()
            session.add(Shop(name="again"))
            await session.commit()
            assert shop.name == "corner"  # not expired
    async with db.read_session() as session:
        assert (await session.exec(select(Shop))).all() == []
    if plain:
        await engine.dispose()


@pytest.mark.parametrize("kind", [async_sessionmaker, sessionmaker])
async def test_the_factory_of_an_app(db: Database, kind: type[Any]) -> None:
    """Code that imports it takes part, with the app's own settings."""
    factory: Any = kind(db.engine, class_=AsyncSession)
    before = dict(factory.kw)
    async with rolled_back(db.engine, factory) as sessions, factory() as session:
        assert sessions is factory
        shop = Shop(name="corner")
        session.add(shop)
        await session.commit()
        with guarded() as found:
            with pytest.raises(MissingGreenlet):  # expired, as in the app
                print(shop.name)
            found.implicit_io.clear()
    assert factory.kw == before
    async with factory() as session:
        assert (await session.exec(select(Shop))).all() == []


async def test_rolled_back_after_an_error(db: Database) -> None:
    with suppress(KeyError):
        async with rolled_back(db.engine) as sessions, sessions() as session:
            session.add(Shop(name="corner"))
            await session.commit()
            raise KeyError
    async with db.read_session() as session:
        assert (await session.exec(select(Shop))).all() == []


# --- databases ------------------------------------------------------------------------


async def names(engine: AsyncEngine) -> list[str]:
    queries = {
        "postgresql": "SELECT datname FROM pg_database",
        "mysql": "SHOW DATABASES",
        "sqlite": "SELECT file FROM pragma_database_list",
    }
    async with engine.connect() as connection:
        return list((await connection.execute(text(queries[engine.dialect.name]))).scalars())


@pytest.mark.parametrize("worker", [None, "gw3"])
async def test_a_database_of_its_own(
    db: Database, url: URL, monkeypatch: pytest.MonkeyPatch, worker: str | None
) -> None:
    await add_item(db)
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    else:
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    for _ in range(2):
        async with temporary_database(url) as new, Database(new) as database:
            if url.get_backend_name() != "sqlite":
                assert new.database == f"{url.database}_test_{worker or 'main'}"
            async with database.engine.begin() as connection:
                await connection.run_sync(Shop.metadata.tables["shop"].create)
            async with database.session() as session:
                session.add(Shop(name="corner"))
        if url.get_backend_name() == "sqlite":
            assert not os.path.exists(str(new.database))  # noqa: ASYNC240, PTH110
        else:
            assert new.database not in await names(db.engine)
    async with db.read_session() as session:
        assert (await only_shop(session)).name == "corner"


@pytest.mark.only("postgresql", "mysql")
async def test_what_an_earlier_run_left(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")
    name = f"{url.database}_test_gw7"
    server = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with server.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    left = create_async_engine(url.set(database=name))
    async with left.begin() as connection:
        await connection.execute(text("CREATE TABLE old (id int)"))
    async with temporary_database(url) as new:
        fresh = create_async_engine(new)
        async with fresh.connect() as connection:
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT * FROM old"))
        await fresh.dispose()
    for engine in (left, server):
        with suppress(Exception):  # its database went away
            await engine.dispose()


# --- guard ----------------------------------------------------------------------------


async def test_a_forgotten_load(db: Database) -> None:
    await add_item(db)
    with pytest.raises(AssertionError) as caught, guarded():  # noqa: PT012
        async with db.session() as session:
            item = (await session.exec(select(Item))).one()
            with pytest.raises(MissingGreenlet, match=r"Item\.shop at "):
                print(item.shop)  # line: relation
            session.expire(item)
            with suppress(Exception):  # as code does that only wants to log it
                print(item.name)  # line: column
    first, second = str(caught.value).splitlines()
    assert first == f"implicit I/O: Item.shop at {line('relation')}; load it before"
    assert second == f"implicit I/O: columns of Item at {line('column')}; load it before"


async def test_what_is_awaited_is_not_implicit(db: Database) -> None:
    await add_item(db)
    with guarded():
        async with db.session() as session:
            item = (await session.exec(select(Item))).one()
            await session.refresh(item, ["shop", "name"])
            assert item.shop is not None
            await session.run_sync(lambda _: item.parent)
            await session.delete(item)
            await session.flush()  # loads its tags


async def test_forgiven(db: Database) -> None:
    await add_item(db)
    with guarded() as found:
        async with db.session() as session:
            item = (await session.exec(select(Item))).one()
            with suppress(Exception):
                print(item.shop)
        assert len(found.implicit_io) == 1
        found.implicit_io.clear()


@pytest.mark.only("sqlite")
async def test_a_synchronous_session_may_load(url: URL, db: Database) -> None:
    await add_item(db)
    engine = create_engine(url.set(drivername="sqlite"))
    with guarded(), Session(engine) as session:
        item = session.exec(select(Item)).one()
        assert item.shop is not None
    engine.dispose()


async def test_a_session_that_is_left_open(db: Database) -> None:
    session = db.sessions()
    with pytest.raises(AssertionError) as caught, guarded():
        await session.exec(select(Shop))  # line: session
    assert str(caught.value) == f"left open: session begun at {line('session')}"
    await session.close()

    connection = db.engine.connect()
    with pytest.raises(AssertionError) as caught, guarded():
        await connection.start()  # line: connection
    assert str(caught.value) == f"left open: connection taken at {line('connection')}"
    await connection.close()


async def test_what_was_open_before_is_not_blamed(db: Database) -> None:
    async with db.read_session() as session, db.read_engine.connect() as connection:
        await session.exec(select(Shop))
        with guarded():
            await session.exec(select(Shop))
            await connection.execute(select(Shop.id))


async def test_closed_by_every_way(db: Database) -> None:
    with guarded():
        async with db.session() as session, session.begin_nested():
            session.add(Shop(name="corner"))
        with suppress(KeyError):
            async with db.session() as session:
                await session.exec(select(Shop))
                raise KeyError
        session = async_sessionmaker(db.engine, class_=AsyncSession)()
        await session.exec(select(Shop))
        await session.commit()


BAD = """
import asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

engine = create_async_engine("sqlite+aiosqlite:///x.db")

def test_good():
    async def read():
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
    asyncio.run(read())

def test_bad():
    async def read():
        global session
        session = AsyncSession(engine)
        await session.execute(text("SELECT 1"))
    asyncio.run(read())

def test_good_again():
    pass
"""


def test_the_fixture_fails_a_test(tmp_path: Path) -> None:
    """In a project that has nothing else of the layer."""
    shutil.copy(inspect.getfile(inspect.unwrap(guarded)), tmp_path / "database_testing.py")
    (tmp_path / "conftest.py").write_text(
        "import database_testing\nguard = database_testing.guard\n"
    )
    (tmp_path / "test_bad.py").write_text(BAD)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--color=no", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "left open: session begun at test_bad.py:18" in done.stdout
