"""URLs, settings, engine and sessions, on the drivers themselves."""
# ruff: noqa: PT012  # a unit of work that fails has several statements
# ruff: noqa: S105, S608  # passwords and SQL of the test itself

import asyncio
import logging
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError
from sqlalchemy import URL, Column, Integer, MetaData, Table, UniqueConstraint, make_url
from sqlalchemy import CheckConstraint as Check
from sqlalchemy.exc import DBAPIError, InvalidRequestError, OperationalError
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlmodel import func, select

from app.db import (
    NAMING_CONVENTION,
    Database,
    DatabaseSettings,
    Unavailable,
    UniqueViolation,
    async_url,
)
from app.db.database import engine_options, is_memory
from app.db.errors import TransientError

from .models import Shop, Tag, sql

pytestmark = pytest.mark.anyio

SECRET = "p@ss:w/rd#%?"
ENCODED = quote(SECRET, safe="")


async def names(db: Database) -> list[str]:
    async with db.read_session() as session:
        return list((await session.exec(select(Tag.name).order_by(Tag.name))).all())


# -- URLs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgres://u@h:1/d", "postgresql+asyncpg://u@h:1/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql+psycopg_async://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql:///d?host=/run", "postgresql+asyncpg:///d?host=/run"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+asyncpg://u@h/d?ssl=require"),
        (
            "postgresql+psycopg://u@h/d?sslmode=require&options=x",
            "postgresql+psycopg://u@h/d?sslmode=require&options=x",
        ),
        ("mysql://u@h/d", "mysql+aiomysql://u@h/d"),
        ("mysql+asyncmy://u@h/d", "mysql+asyncmy://u@h/d"),
        ("mariadb://u@h/d", "mariadb+aiomysql://u@h/d"),
        ("sqlite://", "sqlite+aiosqlite://"),
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite:///file:a?mode=ro&uri=true", "sqlite+aiosqlite:///file:a?mode=ro&uri=true"),
    ],
)
def test_url_gets_an_async_driver(given: str, expected: str) -> None:
    # Compared as parsed: 2.0 and 2.1 write query strings differently.
    assert async_url(given) == async_url(make_url(given)) == make_url(expected)


LOGIN = "postgresql://app:{}@db/app"
BAD_URLS = [
    ("", "not a database URL"),
    ("app.db", "not a database URL"),
    (LOGIN.format("p@ss:w/rd#%?"), "percent-encoded"),
    (LOGIN.format("topsecret") + ":port/x", None),
    (LOGIN.format("top@secret"), "ends it early"),
    (LOGIN.format("to@p/secret"), "ends it early"),
    (LOGIN.format("to@p?secret"), "ends it early|names no database"),
    ("oracle://app:topsecret@db/app", "unsupported database 'oracle'; use one of sqlite"),
    ("mysql+pymysql://app:topsecret@db/app", "'pymysql' is not async.*aiomysql or mysql.asyncmy"),
    ("postgresql+psycopg2://app:topsecret@db/a", "'psycopg2' is not async.*asyncpg or"),
    ("sqlite+pysqlite:///a.db", "'pysqlite' is not async.*sqlite.aiosqlite"),
    ("sqlite:///file:a?mode=memory", "needs file:NAME and &uri=true"),
    ("postgresql://app:topsecret@db", "names no database"),
    ("postgresql://app:topsecret@db/a?sslrootcert=x&options=y", "does not take options, sslrootc"),
]


@pytest.mark.parametrize(("value", "message"), BAD_URLS)
def test_bad_url_says_what_is_wrong_and_hides_the_password(
    value: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if message is None:  # not an error: the database is called "app:port/x"
        assert async_url(value).database == "app:port/x"
        return
    with pytest.raises(ValueError, match=message) as caught:
        async_url(value)
    monkeypatch.setenv("DATABASE_URL", value)
    with pytest.raises(ValidationError, match=message) as settings:
        DatabaseSettings()
    for error in (caught.value, settings.value):
        shown = "".join(traceback.format_exception(error)) + repr(error)
        assert "secret" not in shown.replace("DATABASE_PASSWORD", "")
        assert "w/rd" not in shown


@pytest.mark.parametrize("driver_name", ["aiosqlite", "asyncpg", "psycopg", "aiomysql", "asyncmy"])
def test_missing_driver(driver_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, driver_name, None)  # as if it were not installed
    database = {"aio": "mysql", "asy": "mysql"}.get(driver_name[:3], "postgresql")
    database = {"aiosqlite": "sqlite", "asyncpg": "postgresql"}.get(driver_name, database)
    with pytest.raises(ValueError, match=f"not installed; run: pip install {driver_name}"):
        async_url(f"{database}+{driver_name}://u@h/d")


# -- settings and passwords -----------------------------------------------------


def test_settings_come_from_the_environment_and_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="DATABASE_URL is not set"):
        DatabaseSettings()
    Path(".env").write_text("DATABASE_URL=mysql://u@h/file\nDATABASE_POOL_SIZE=3\nOTHER=x\n")
    monkeypatch.setenv("DATABASE_POOL_SIZE", "7")
    settings = DatabaseSettings()
    assert (settings.url, settings.pool_size) == (make_url("mysql+aiomysql://u@h/file"), 7)
    monkeypatch.setenv("DATABASE_POOL_SIZE", "0")
    with pytest.raises(ValidationError, match="pool_size"):
        DatabaseSettings()
    monkeypatch.setenv("DATABASE_PASSWORD", "of another server")
    explicit = Database("postgresql://u@h/d").settings  # nothing from outside belongs to it
    assert (explicit.full_url().password, explicit.pool_size) == (None, 5)


@pytest.mark.parametrize("way", ["encoded", "separate"])
def test_password_reaches_the_driver_and_no_text(
    driver: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if driver.startswith("sqlite"):
        assert DatabaseSettings(url=async_url("sqlite://")).full_url().password is None
        return
    login = f"app:{ENCODED}" if way == "encoded" else "app"
    monkeypatch.setenv("DATABASE_URL", f"{driver.replace('-', '+')}://{login}@db:1/app")
    if way == "separate":
        monkeypatch.setenv("DATABASE_PASSWORD", SECRET)
    db = Database(DatabaseSettings())
    _, arguments = db.engine.dialect.create_connect_args(db.engine.url)
    assert arguments["password"] == SECRET
    shown = f"{db.settings} {db.settings!r} {db.settings.url!r} {db.engine!r} {db.engine.url!r}"
    shown += f"{db.settings.model_dump()} {db.settings.model_dump_json()}"
    assert SECRET not in shown
    assert ENCODED not in shown


@asynccontextmanager
async def user(db: Database) -> AsyncGenerator[str]:
    """A user of the server with a difficult password."""
    name = f"u{uuid.uuid4().hex[:12]}"
    mysql = db.engine.dialect.name == "mysql"
    account = f"'{name}'@'%%'" if mysql else name
    by = "IDENTIFIED BY" if mysql else "PASSWORD"
    # exec_driver_sql: a percent sign is doubled where the driver formats.
    secret = SECRET.replace("%", "%%") if db.engine.dialect.driver != "asyncpg" else SECRET
    async with db.session() as session:
        await sql(session, f"CREATE USER {account} {by} '{secret}'")
    try:
        yield name
    finally:
        async with db.session() as session:
            await sql(session, f"DROP USER {account}")


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("way", ["encoded", "separate"])
async def test_login_with_special_characters(
    db: Database, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with user(db) as name:
        url = db.engine.url.set(username=name, password=None)
        if url.get_backend_name() == "mysql":
            url = url.set(database="information_schema")  # without a grant
        if way == "encoded":
            shown = url.set(password=SECRET).render_as_string(hide_password=False)
            assert ENCODED.lower() in shown.lower()
            monkeypatch.setenv("DATABASE_URL", shown)
        else:
            monkeypatch.setenv("DATABASE_URL", str(url))
            monkeypatch.setenv("DATABASE_PASSWORD", SECRET)
        settings = DatabaseSettings(echo=True)
        async with Database(settings) as other, other.read_session() as session:
            assert await sql(session, "SELECT 41 + 1") == 42
    # Nobody has this name any more: the login fails, and no text has the password.
    async with Database(DatabaseSettings()) as other:
        with pytest.raises(Unavailable) as caught:
            await other.ping()
        assert name in str(caught.value.__cause__)
    caplog.set_level(logging.NOTSET)
    for text in ("".join(traceback.format_exception(caught.value)), repr(caught), caplog.text):
        assert SECRET not in text
        assert ENCODED not in text
    assert "SELECT 41 + 1" in caplog.text


async def test_values_stay_out_of_logs_and_errors(
    url: URL, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await db.ping()
    async with Database(DatabaseSettings(url=url, echo=True)) as loud:
        with pytest.raises(UniqueViolation) as caught:
            async with loud.session() as session:
                session.add_all([Tag(name="Jane Doe"), Tag(name="John Doe")])
                await session.flush()
                session.add(Tag(name="Jane Doe"))
    assert "INSERT INTO tag" in caplog.text
    assert "Doe" not in caplog.text + str(caught.value) + repr(caught.value)
    # The database's own sentence may quote the row; the parameters are not added to it.
    assert "John" not in str(caught.value.__cause__)


# -- engine ---------------------------------------------------------------------


CONNECT_ARGS: dict[str, dict[str, Any]] = {
    "sqlite-aiosqlite": {"isolation_level": None},
    "postgresql-asyncpg": {"timeout": 3},
    "postgresql-psycopg": {"connect_timeout": 3},
    "mysql-aiomysql": {"connect_timeout": 3, "charset": "utf8mb4"},
    "mysql-asyncmy": {"connect_timeout": 3, "charset": "utf8mb4"},
}


def test_engine_options(driver: str, url: URL) -> None:
    settings = DatabaseSettings(
        url=url, pool_size=2, max_overflow=1, pool_timeout=4, connect_timeout=3
    )
    options = engine_options(settings)
    assert CONNECT_ARGS[driver].items() <= options.pop("connect_args").items()
    expected: dict[str, Any] = {
        "echo": False,
        "hide_parameters": True,
        "pool_size": 2,
        "max_overflow": 1,
        "pool_timeout": 4,
    }
    if not driver.startswith("sqlite"):
        expected |= {"pool_pre_ping": True, "pool_recycle": 1800}
    if driver.startswith("mysql"):
        expected["isolation_level"] = "READ COMMITTED"
    assert options == expected


POOLER: dict[str, dict[str, Any]] = {
    "postgresql-asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
    "postgresql-psycopg": {"prepare_threshold": None},
}


def test_a_pooler_sees_no_prepared_statement(driver: str, url: URL) -> None:
    """That it works is proven behind PgBouncer, in tests/faults."""
    for pooler in (False, True):
        given = engine_options(DatabaseSettings(url=url, pooler=pooler)).get("connect_args", {})
        assert (POOLER.get(driver, {}).items() <= given.items()) is (pooler or driver not in POOLER)


def test_a_standby_is_of_the_same_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d")
    monkeypatch.setenv("DATABASE_REPLICA_URL", "postgresql://u:topsecret@standby/d")
    settings = DatabaseSettings()
    assert settings.replica_url == make_url("postgresql+asyncpg://u:topsecret@standby/d")
    assert "topsecret" not in f"{settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    monkeypatch.setenv("DATABASE_REPLICA_URL", "mysql://u@h/d")
    with pytest.raises(ValidationError, match="another kind of database"):
        DatabaseSettings()


async def test_read_sessions_read_from_the_standby(tmp_path: Path) -> None:
    """Two files stand for two servers: each session is on the one that it is for."""
    urls = [async_url(f"sqlite:///{tmp_path}/{name}.db") for name in ("primary", "standby")]
    for name, url in zip(("primary", "standby"), urls, strict=True):
        async with Database(url) as alone:
            await alone.create_tables()
            async with alone.session() as session:
                session.add(Tag(name=name))
    settings = DatabaseSettings(url=urls[0], replica_url=urls[1])
    async with Database(settings) as db:
        assert await names(db) == ["standby"]
        async with db.read_session(primary=True) as session:
            assert (await session.exec(select(Tag.name))).all() == ["primary"]
        async with db.session() as session:
            assert (await session.exec(select(Tag.name))).all() == ["primary"]
        with pytest.raises(DBAPIError, match="readonly"):
            async with db.read_session(primary=True) as session:
                session.add(Tag(name="lost"))
                await session.flush()
        pools: list[Any] = [db.engine.pool, db.read_engine.pool]
        assert [pool.checkedin() for pool in pools] == [1, 1]
    assert [pool.checkedin() for pool in pools] == [0, 0], "close() closes both"

    gone = async_url(f"sqlite:///{tmp_path}/nowhere/x.db")
    async with Database(DatabaseSettings(url=urls[0], replica_url=gone)) as db:
        await db.ping()  # of the primary: writes go on without the standby


@pytest.mark.parametrize(
    ("url", "memory"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file:x?mode=memory&uri=true", True),
        ("sqlite:///memory.db", False),
        ("postgresql://h/memory", False),
    ],
)
def test_memory_database_has_one_connection(url: str, memory: bool) -> None:
    assert is_memory(async_url(url)) is memory
    options = engine_options(DatabaseSettings(url=async_url(url), pool_size=4))
    expected = (AsyncAdaptedQueuePool, 1, 0) if memory else (None, 4, 10)
    assert expected == tuple(options.get(k) for k in ("poolclass", "pool_size", "max_overflow"))


def test_import_creates_nothing() -> None:
    program = """
import gc, sys, threading
import app.db, app.db.web
from sqlalchemy import Engine, Pool
from sqlalchemy.ext.asyncio import AsyncEngine
assert not [each for each in gc.get_objects() if isinstance(each, (Engine, AsyncEngine, Pool))]
assert not {"aiosqlite", "asyncpg", "psycopg", "aiomysql", "asyncmy"} & set(sys.modules)
assert threading.active_count() == 1
"""
    folder = Path(__file__).parents[2] / "assets" / "example"
    subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", program],
        check=True,
        env={"PYTHONPATH": str(folder)},
    )


async def test_two_event_loops_have_a_database_each(url: URL, db: Database) -> None:
    async def work(name: str) -> int:
        async with Database(url) as database:
            async with database.session() as session:
                session.add(Tag(name=name))
            return len(await names(database))

    jobs = (asyncio.to_thread(asyncio.run, work(f"loop {n}")) for n in (1, 2))
    assert max(await asyncio.gather(*jobs)) == 2
    assert await names(db) == ["loop 1", "loop 2"]


CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database()",
}


async def test_close_leaves_no_connection(db: Database, url: URL, driver: str) -> None:
    async def connections() -> int:
        if driver.startswith("sqlite"):  # aiosqlite has a thread per connection
            return sum("_connection_worker" in each.name for each in threading.enumerate())
        async with db.read_session() as session:
            return int(await sql(session, CONNECTIONS[url.get_backend_name()]))

    await db.ping()
    before = await connections()
    async with Database(url) as other, other.read_sessions() as one, other.read_sessions() as two:
        await sql(one, "SELECT 1")
        await sql(two, "SELECT 1")
        assert await connections() == before + 2
    async with asyncio.timeout(5):  # the server notices a moment later
        while await connections() != before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# -- sessions -------------------------------------------------------------------


async def test_session_commits_or_rolls_back(db: Database) -> None:
    async with db.session() as session:
        session.add(kept := Tag(name="kept"))
    assert kept.name == "kept"  # readable after commit
    with pytest.raises(KeyError):
        async with db.session() as session:
            session.add(Tag(name="lost"))
            await session.flush()
            raise KeyError
    async with db.sessions() as session:
        session.add(Tag(name="plain session"))
        await session.flush()
    assert await names(db) == ["kept"]


async def test_session_is_over_after_its_block(db: Database) -> None:
    for make in (db.session, db.read_session):
        async with make() as session:
            pass
        with pytest.raises(InvalidRequestError, match="closed"):
            await session.exec(select(Tag))


async def test_savepoint_rolls_back_alone(db: Database) -> None:
    async with db.session() as session:
        session.add(Tag(name="a"))
        savepoint = await session.begin_nested()
        session.add(Tag(name="b"))
        await session.flush()
        await savepoint.rollback()
        async with session.begin_nested():
            session.add(Tag(name="c"))
    assert await names(db) == ["a", "c"]
    with pytest.raises(KeyError):
        async with db.session() as session:
            async with session.begin_nested():
                session.add(Tag(name="d"))
            raise KeyError
    assert await names(db) == ["a", "c"]


async def test_read_session_refuses_writes(db: Database, url: URL) -> None:
    settings = DatabaseSettings(url=url, pool_size=1, max_overflow=0)
    async with Database(settings) as one:  # with one connection, to see what it left there
        with pytest.raises(DBAPIError, match=r"(?i)read.?only"):
            async with one.read_session() as session:
                session.add(Tag(name="refused"))
                await session.commit()
        with pytest.raises(RuntimeError, match=r"changes to store; use session\(\)"):
            async with one.read_session() as session:
                session.add(Tag(name="never sent"))
        async with one.session() as session:
            session.add(Tag(name="kept"))
        assert await names(one) == ["kept"]
        async with one.session() as session:
            (await session.exec(select(Tag))).one().name = "changed"
        assert await names(db) == ["changed"]
        with pytest.raises(RuntimeError):
            async with one.read_session() as session:
                (await session.exec(select(Tag))).one().name = "never sent"
        with pytest.raises(RuntimeError):
            async with one.read_session() as session:
                await session.delete((await session.exec(select(Tag))).one())
        assert await names(db) == ["changed"]


@pytest.mark.only("mysql")
async def test_a_mariadb_url_is_as_good_as_a_mysql_one(db: Database, url: URL) -> None:
    assert await names(db) == []
    mariadb = url.set(drivername=url.drivername.replace("mysql+", "mariadb+"))
    async with Database(mariadb) as other:
        assert other.engine.dialect.name == "mariadb"
        async with other.session() as session:
            session.add(Tag(name="kept"))
            assert await sql(session, "SELECT @@tx_isolation") == "READ-COMMITTED"
        with pytest.raises(UniqueViolation):
            async with other.session() as session:
                session.add(Tag(name="kept"))
        with pytest.raises(DBAPIError, match=r"(?i)read.?only"):
            async with other.read_session() as session:
                session.add(Tag(name="refused"))
                await session.commit()
        assert await names(other) == ["kept"]


async def test_readers_and_ping_run_beside_a_writer(db: Database) -> None:
    async with db.session() as session:
        session.add(Tag(name="old"))
    async with db.session() as writer:
        (await writer.exec(select(Tag))).one().name = "new"
        await writer.flush()
        async with asyncio.timeout(2):
            assert await names(db) == ["old"]
            await db.ping()
    assert await names(db) == ["new"]


async def test_read_then_write_in_two_sessions_at_once(db: Database) -> None:
    async def add(name: str) -> None:
        async with db.session() as session:
            await session.exec(select(func.count()).select_from(Tag))
            await asyncio.sleep(0.05)
            session.add(Tag(name=name))

    await asyncio.gather(*(add(f"{n}") for n in range(3)))
    assert await names(db) == ["0", "1", "2"]


@pytest.mark.only("sqlite")
async def test_sqlite_writer_waits_in_the_event_loop(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()

    async def write() -> None:
        async with db.session() as session:
            session.add(Tag(name="late"))

    async with db.session() as holder:
        holder.add(Tag(name="first"))
        await holder.flush()

        started = loop.time()
        waiting = asyncio.create_task(write())
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert loop.time() - started < 2  # and not after the whole timeout

        monkeypatch.setattr(f"{Database.__module__}.SQLITE_LOCK_TIMEOUT", 0.3)
        with pytest.raises(TransientError, match="database is locked"):
            await write()
    await write()
    assert await names(db) == ["first", "late"]


@pytest.mark.only("sqlite")
async def test_sqlite_pragmas_and_autocommit(db: Database) -> None:
    async with db.session() as session:
        pragmas = [
            await sql(session, f"PRAGMA {name}")
            for name in ("foreign_keys", "journal_mode", "synchronous", "busy_timeout")
        ]
    assert pragmas == [1, "wal", 1, 100]
    async with db.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("VACUUM")  # refused inside a transaction
    # The pooled connection has ordinary transactions again.
    await test_session_commits_or_rolls_back(db)


@pytest.mark.only("sqlite")
@pytest.mark.parametrize("again", ["same connection", "pool"])
async def test_sqlite_connection_is_usable_after_a_failed_commit(db: Database, again: str) -> None:
    orphan = f"INSERT INTO later (shop_id) VALUES ('{uuid.uuid4().hex}')"
    async with db.engine.connect() as connection:
        await connection.exec_driver_sql(orphan)
        with pytest.raises(DBAPIError, match="FOREIGN KEY"):
            await connection.commit()
        if again == "same connection":
            await connection.rollback()
            assert (await connection.exec_driver_sql("SELECT * FROM later")).all() == []
    async with db.session() as session:
        session.add(Tag(name="free"))
    assert await names(db) == ["free"]


@pytest.mark.only("mysql")
async def test_mysql_sessions_are_utc_and_read_committed(db: Database) -> None:
    async with db.session() as reader:
        assert await sql(reader, "SELECT @@session.time_zone") == "+00:00"
        assert await sql(reader, "SELECT count(*) FROM tag") == 0
        async with db.session() as writer:
            writer.add(Tag(name="\N{DUCK}"))  # four bytes in UTF-8
        assert await sql(reader, "SELECT count(*) FROM tag") == 1
    assert await names(db) == ["\N{DUCK}"]


async def test_memory_database_isolates_sessions() -> None:
    settings = DatabaseSettings(url=async_url("sqlite://"), pool_timeout=0.2, create_tables=True)
    async with Database(settings) as db:
        async with db.session() as session:
            session.add(Tag(name="first"))
        entered = asyncio.Event()

        async def fail() -> None:
            async with db.session() as session:
                session.add(Tag(name="second"))
                await session.flush()
                entered.set()
                await asyncio.sleep(0.1)
                raise KeyError

        async def write() -> None:
            await entered.wait()
            async with db.session() as session:  # waits for its turn
                session.add(Tag(name="third"))

        results = await asyncio.gather(fail(), write(), return_exceptions=True)
        assert [type(each) for each in results] == [KeyError, type(None)]
        assert await names(db) == ["first", "third"]
        async with db.session() as session:
            await sql(session, "SELECT 1")
            with pytest.raises(Unavailable, match="no free connection"):
                await names(db)
            with pytest.raises(Unavailable):
                await db.ping(timeout=0.05)


# -- tables ---------------------------------------------------------------------


async def test_create_tables_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/x.db") as db:
        with pytest.raises(RuntimeError, match="import the modules"):
            await db.create_tables(MetaData())

        def column() -> Column[int]:
            return Column("id", Integer, primary_key=True)

        named = MetaData(naming_convention=NAMING_CONVENTION)
        for constraint in (UniqueConstraint("id"), Check("id > 0")):
            metadata = MetaData()
            Table("parcel", metadata, column(), constraint)
            with pytest.raises(RuntimeError, match="unnamed constraints on parcel"):
                await db.create_tables(metadata)
        with pytest.raises(InvalidRequestError, match="explicitly named"):
            Table("crate", named, column(), Check("id > 0"))
        named = MetaData(naming_convention=NAMING_CONVENTION)
        Table("parcel", named, column(), UniqueConstraint("id"))
        await db.create_tables(named)
        async with db.session() as session:
            assert await sql(session, "SELECT count(*) FROM parcel") == 0
        await db.drop_tables(named)
        with pytest.raises(OperationalError, match="no such table"):
            async with db.session() as session:
                await sql(session, "SELECT * FROM parcel")


# -- ping -----------------------------------------------------------------------


async def test_ping(db: Database, statements: Callable[..., Any]) -> None:
    with statements(db) as sent:
        await db.ping()
    assert [each for each in sent if not each.startswith("SET TRANSACTION")] == ["SELECT 1"]


async def test_ping_of_a_file_that_cannot_be(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/missing/x.db") as db:
        with pytest.raises(Unavailable) as caught:
            await db.ping()
        assert "unable to open" in str(caught.value.__cause__)
        await asyncio.sleep(0.05)  # aiosqlite's thread ends


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("down", ["closed port", "no socket", "silent"])
async def test_ping_of_a_server_that_is_down(driver: str, tmp_path: Path, down: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client goes away
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = URL.create(driver.replace("-", "+"), "app", "topsecret", "127.0.0.1", port, "app")
    if down == "no socket":
        socket = str(tmp_path / "gone.sock")
        if driver.startswith("mysql"):
            url = url.update_query_dict({"unix_socket": socket})
        else:
            url = url.set(host=None, port=None).update_query_dict({"host": socket})
    if down != "silent":
        server.close()
        await server.wait_closed()
    expected: Any = TimeoutError if down == "silent" else (OSError, DBAPIError)
    async with server, Database(url) as db, asyncio.timeout(3):
        with pytest.raises(Unavailable) as caught:
            await db.ping(timeout=0.3)
        cause = caught.value.__cause__
        assert isinstance(cause, expected)
        assert down == "silent" or not isinstance(cause, TimeoutError)
        assert "topsecret" not in "".join(traceback.format_exception(caught.value))


async def test_foreign_keys_hold(db: Database) -> None:
    async with db.session() as session:
        session.add(Shop(name="north"))
    async with db.sessions() as session:
        with pytest.raises(DBAPIError, match=r"(?i)foreign key"):
            await sql(
                session,
                "INSERT INTO itemtag (item_id, tag_id, weight) "
                f"VALUES ('{uuid.uuid4().hex}', '{uuid.uuid4().hex}', 1)",
            )


@pytest.mark.only("sqlite")
async def test_a_cancelled_query_lets_the_write_lock_go(db: Database) -> None:
    """At once: not when the query has ended, and Python has collected its cursor."""
    slow = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000000) "
        "SELECT count(*) FROM n"
    )
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), db.session() as session:
            await sql(session, slow)
    async with db.session() as session:
        session.add(Tag(name="red"))
    assert time.monotonic() - began < 2
    async with db.session() as session:
        assert [tag.name for tag in (await session.exec(select(Tag))).all()] == ["red"]
