"""For tests: count statements, roll back what a test commits, find what it left open.

    from app.db import testing

    guard = testing.guard  # a fixture, in conftest.py

    with testing.expect_statements(2):  # or it fails, and lists what ran and from where
        await service.page(load="team")

One file that needs SQLAlchemy, SQLModel and pytest, and nothing else of this package: it can be
copied alone, beside any async engine. Only tests import it.
"""

import inspect
import os
import sysconfig
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.pool import NullPool, Pool
from sqlmodel.ext.asyncio.session import AsyncSession

greenlet: Any = import_module("greenlet")  # which has no types

# --- statements -----------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """What was sent to a database.

    Attributes:
        sql: with placeholders, in one line.
        parameters: of the driver; a list of them for an executemany.
        where: `path:line` of the nearest code outside of libraries and of this package.
    """

    sql: str
    parameters: Any
    where: str


class Statements(list[Statement]):
    """What was sent, in order. `str()` lists it, equal neighbours once."""

    def verbs(self) -> list[str]:
        """SELECT, INSERT and so on."""
        return [each.sql.split()[0] for each in self]

    def __str__(self) -> str:
        lines = [
            _row(place, [*same])
            for place, same in groupby(self, lambda each: (each.where, each.sql))
        ]
        return "\n".join(lines) or "  none"


def _row(place: tuple[str, str], same: list[Statement]) -> str:
    where, sql = place
    shown = sql if len(sql) <= 300 else f"{sql[:300]} ..."
    if len(same) == 1:
        return f"  {where}: {shown}"
    parameters = ", ".join(repr(each.parameters) for each in same[:3])
    return f"  {where}: {len(same)} times: {shown}; with {parameters}{', ...' * (len(same) > 3)}"


@contextmanager
def recorded_statements() -> Generator[Statements]:
    """What any engine of this process sends within the block.

    Without BEGIN, COMMIT, ROLLBACK, savepoints and SET: `rolled_back` adds some of them.
    """
    sent = Statements()

    def remember(
        _connection: object, _cursor: object, sql: str, parameters: Any, *_: object
    ) -> None:
        if not sql.startswith(("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "SET ", "PRAGMA")):
            sent.append(Statement(" ".join(sql.split()), parameters, _where()))

    with _listening((Engine, "before_cursor_execute", remember)):
        yield sent


@contextmanager
def expect_statements(count: int) -> Generator[Statements]:
    """Fail unless the block sends just so many statements: more are an N+1, or a lost `load=`.

    Args:
        count: statements, also those of eager loading and flushes; not BEGIN and the like.

    Yields:
        What was sent so far.

    Raises:
        AssertionError: with a list of what was sent, and from which line.
    """
    with recorded_statements() as sent:
        yield sent
    if len(sent) != count:
        plural = "" if len(sent) == 1 else "s"
        raise AssertionError(f"{len(sent)} statement{plural}, not {count}:\n{sent}")


# --- databases ------------------------------------------------------------------------


@asynccontextmanager
async def temporary_database(url: URL | str) -> AsyncGenerator[URL]:
    """An empty database for this process, dropped at the end: one for each worker of xdist.

    Args:
        url: async. Of PostgreSQL, MySQL, MariaDB: a database whose user may create others;
            it is not touched. The new one has its name and `_test_gw0`, or `_test_main`
            without xdist; one that an earlier run left is dropped first. Of SQLite: any;
            the file is a new one in a temporary folder.

    Yields:
        The URL of the new database.

    SQL: DROP DATABASE IF EXISTS, CREATE DATABASE; DROP DATABASE.

    Raises:
        sqlalchemy.exc.DBAPIError: no server, or no right to create a database.
    """
    given = make_url(url)
    if given.get_backend_name() == "sqlite":
        # A file, not memory: sessions have connections of their own, as in production.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield given.set(database=f"{folder}/test.db", query={})
        return
    name = f"{given.database}_test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    server = create_async_engine(given, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    quoted = server.dialect.identifier_preparer.quote_identifier(name)
    postgresql = server.dialect.name == "postgresql"
    drop = f"DROP DATABASE IF EXISTS {quoted}{' WITH (FORCE)' * postgresql}"
    create = f"CREATE DATABASE {quoted}{' CHARACTER SET utf8mb4' * (not postgresql)}"
    async with server.connect() as connection:
        await connection.exec_driver_sql(drop)
        await connection.exec_driver_sql(create)
    try:
        yield given.set(database=name)
    finally:
        async with server.connect() as connection:
            await connection.exec_driver_sql(drop)
        await server.dispose()


@asynccontextmanager
async def rolled_back(
    engine: AsyncEngine, sessions: Any = None
) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
    """Sessions whose commits are undone at the end of the block.

    They share one connection and its transaction; what they commit is a savepoint, which the
    other sessions of the block see. So one at a time, and no other isolation level.

    Args:
        engine: of the tests' database.
        sessions: the app's own `async_sessionmaker` or `sessionmaker`, where it has one in a
            module: within the block all its sessions, also those that the app makes, belong
            to the transaction. Its other settings stay: a test sees what `expire_on_commit`
            does to the app.

    Yields:
        That factory, or one with `expire_on_commit=False`.

    SQL: BEGIN; SAVEPOINT and RELEASE SAVEPOINT in place of BEGIN and COMMIT; ROLLBACK.
    """
    made: Any = sessions or async_sessionmaker(class_=AsyncSession, expire_on_commit=False)
    settings = dict(made.kw)
    async with engine.connect() as connection, connection.begin() as outer:
        raw = await connection.get_raw_connection()
        if engine.dialect.name == "sqlite" and not getattr(
            raw.driver_connection, "in_transaction", True
        ):
            # Left to itself, sqlite3 begins at the first INSERT, inside the savepoint.
            await connection.exec_driver_sql("BEGIN")
        made.configure(bind=connection, join_transaction_mode="create_savepoint")
        try:
            yield made
        finally:
            made.kw.clear()
            made.kw.update(settings)
        await outer.rollback()


# --- guard ----------------------------------------------------------------------------


@dataclass
class Guard:
    """What a test has done that it should not. Clear a list where a test wants to.

    Attributes:
        implicit_io: relations and columns that were read without having been loaded, which
            asyncio cannot do then (MissingGreenlet), and where. Also where the error was caught.
    """

    implicit_io: list[str] = field(default_factory=list[str])
    _sessions: dict[SessionTransaction, str] = field(default_factory=dict[SessionTransaction, str])
    _connections: dict[int, str] = field(default_factory=dict[int, str])

    def left_open(self) -> list[str]:
        """Where sessions that were not closed began, and where other connections were taken."""
        sessions = [f"session begun at {where}" for where in self._sessions.values()]
        connections = [f"connection taken at {where}" for where in self._connections.values()]
        return sessions or connections  # a session has its connection

    def problems(self) -> list[str]:
        implicit = [f"implicit I/O: {each}; load it before" for each in self.implicit_io]
        return [*implicit, *(f"left open: {each}" for each in self.left_open())]

    # Below: what SQLAlchemy calls.

    def on_execute(self, state: ORMExecuteState) -> None:
        if greenlet.getcurrent().parent is not None or not _is_async(state.session):
            return
        # Not called through an await, so MissingGreenlet follows. Raised here it says more, and
        # leaves no coroutine of aiosqlite that is never awaited, and warns in some later test.
        path: Any = state.loader_strategy_path
        if path is not None and len(path) > 1:  # a relation: its owner, and itself
            what = f"{path[-2].class_.__name__}.{path[-1].key}"
        else:
            what = f"columns of {state.bind_mapper.class_.__name__}" if state.bind_mapper else "SQL"
        self.implicit_io.append(f"{what} at {_where()}")
        raise MissingGreenlet(f"greenlet_spawn has not been called: {self.implicit_io[-1]}")

    def on_begin(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            self._sessions[transaction] = _where()

    def on_end(self, _session: Session, transaction: SessionTransaction) -> None:
        self._sessions.pop(transaction, None)

    def on_checkout(self, _connection: object, record: object, _proxy: object) -> None:
        self._connections[id(record)] = _where()

    def on_checkin(self, _connection: object, record: object) -> None:
        self._connections.pop(id(record), None)


@contextmanager
def guarded() -> Generator[Guard]:
    """What `guard` does, for a block.

    Raises:
        AssertionError: with all that was found, when the block ends well.
    """
    found = Guard()
    with _listening(
        (Session, "do_orm_execute", found.on_execute),
        (Session, "after_transaction_create", found.on_begin),
        (Session, "after_transaction_end", found.on_end),
        (Pool, "checkout", found.on_checkout),
        (Pool, "checkin", found.on_checkin),
    ):
        yield found
    if problems := found.problems():
        raise AssertionError("\n".join(problems))


@pytest.fixture(autouse=True)
def guard() -> Generator[Guard]:
    """Fail each test that reads what was not loaded, or leaves a session or connection open.

    Named in a conftest.py it holds for all tests below. As an argument of a test:
    `guard.implicit_io.clear()` forgives what the test does on purpose.
    """
    try:
        with guarded() as found:
            yield found
    except AssertionError as error:
        pytest.fail(str(error), pytrace=False)


def _is_async(session: Session) -> bool:
    bind = session.bind
    return bind is not None and bind.dialect.is_async


@contextmanager
def _listening(*listeners: tuple[Any, str, Callable[..., None]]) -> Generator[None]:
    for listener in listeners:
        event.listen(*listener)
    try:
        yield
    finally:
        for listener in listeners:
            event.remove(*listener)


# --- where ----------------------------------------------------------------------------

_FOLDER = Path(__file__).parent
_LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(_FOLDER if (_FOLDER / "client_query.py").exists() else __file__),  # or copied alone
    "<",  # <string>, <frozen ...>
)


def _where() -> str:
    """`path:line` of the nearest code that is neither a library's nor of this package."""
    for frame in _frames():
        if not _is_library(frame.f_code.co_filename):
            path = Path(frame.f_code.co_filename)
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            return f"{shown}:{frame.f_lineno}"
    return "unknown place"


def _frames() -> Iterator[FrameType]:
    """Of this greenlet, then of those that wait for it: SQLAlchemy runs drivers in its own."""
    frame = inspect.currentframe()
    waiting = greenlet.getcurrent().parent
    while frame is not None:
        yield frame
        frame = frame.f_back
        if frame is None and waiting is not None:
            frame, waiting = waiting.gr_frame, waiting.parent


@cache
def _is_library(file: str) -> bool:
    return file.startswith(_LIBRARIES)
