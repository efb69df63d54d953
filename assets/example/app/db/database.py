"""Settings, engine and sessions.

    async with Database(DatabaseSettings()) as database:
        async with database.session() as session:
            session.add(Hero(name="Deadpond"))

Nothing here is created at import, so no engine is bound to a wrong event loop.
"""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from weakref import WeakKeyDictionary

from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    SecretStr,
    field_serializer,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import (
    URL,
    Connection,
    ExceptionContext,
    MetaData,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util.concurrency import in_greenlet
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from .base import check_tables
from .errors import Unavailable, ends_transaction, translate, translate_errors
from .transactions import run_transaction

ResultT = TypeVar("ResultT")

IsolationLevel = Literal["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

CLOSE_TIMEOUT = 5
"""Seconds in which the connections of a pool have to be closed."""

DRIVERS: dict[str, tuple[str, ...]] = {
    "sqlite": ("aiosqlite",),
    "postgresql": ("asyncpg", "psycopg"),
    "mysql": ("aiomysql", "asyncmy"),
    "mariadb": ("aiomysql", "asyncmy"),
}
"""Async drivers by database; the first one is used when a URL names none."""


def async_url(value: str | URL) -> URL:
    """Turn a database URL into one with an async driver, or say what is wrong with it.

    `postgresql://`, `postgres://`, `mysql://`, `mariadb://` and `sqlite://` get the
    driver of `DRIVERS`; an explicit async driver is kept. For asyncpg, libpq's
    `sslmode` becomes asyncpg's `ssl`, which takes the same words.

    Args:
        value: e.g. `postgresql+asyncpg://app:secret@db:5432/app`. Percent-encode
            special characters in the password, or pass it as `DATABASE_PASSWORD`.

    Raises:
        ValueError: not a URL, a synchronous or missing driver, an unencoded password,
            a query argument that the driver refuses. Never contains the password.
    """
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise ValueError(
            "not a database URL; expected driver://user:password@host:port/name, "
            "with special characters in the password percent-encoded"
        ) from None

    dialect, _, driver = url.drivername.partition("+")
    dialect = {"postgres": "postgresql"}.get(dialect, dialect)
    if dialect not in DRIVERS:
        raise ValueError(f"unsupported database {dialect!r}; use one of {', '.join(DRIVERS)}")
    driver = {"psycopg_async": "psycopg"}.get(driver, driver) or DRIVERS[dialect][0]
    if driver not in DRIVERS[dialect]:
        choices = " or ".join(f"{dialect}+{name}" for name in DRIVERS[dialect])
        raise ValueError(f"driver {driver!r} is not asynchronous; use {choices}")
    if find_spec(driver) is None:
        raise ValueError(f"driver {driver!r} is not installed; run: pip install {driver}")
    url = url.set(drivername=f"{dialect}+{driver}")

    if dialect == "sqlite":
        if "mode" in url.query and url.query.get("uri") != "true":
            raise ValueError("mode= in an SQLite URL needs file:NAME and &uri=true")
    else:
        if "@" in (url.database or "") or (url.host and "@" in url.host):
            raise ValueError(
                "the password holds a character that ends it early (one of @ / : ? #); "
                "percent-encode it, or leave it out and set DATABASE_PASSWORD"
            )
        if not url.database:
            raise ValueError("the URL names no database; expected .../name at the end")
    return _libpq_query_for_asyncpg(url) if driver == "asyncpg" else url


def _libpq_query_for_asyncpg(url: URL) -> URL:
    query = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    refused = sorted(
        {"channel_binding", "sslrootcert", "sslcert", "sslkey", "options"} & query.keys()
    )
    if refused:
        raise ValueError(
            f"asyncpg does not take {', '.join(refused)} in the URL; use postgresql+psycopg, "
            "or remove it and pass an ssl.SSLContext in connect_args"
        )
    return url.set(query=query)


def _no_url() -> URL:
    raise ValueError(
        "DATABASE_URL is not set, in the environment or in .env; "
        "e.g. DATABASE_URL=sqlite+aiosqlite:///./app.db"
    )


class DatabaseSettings(BaseSettings):
    """Read from `DATABASE_*` environment variables and `.env`.

    Raises:
        ValueError: `DATABASE_URL` is missing; or, as `pydantic.ValidationError`, a value
            is wrong. Values, and so passwords, are left out of the message.
    """

    model_config = SettingsConfigDict(
        env_prefix="DATABASE_", env_file=".env", extra="ignore", hide_input_in_errors=True
    )

    url: Annotated[InstanceOf[URL], NoDecode, BeforeValidator(async_url)] = Field(
        default_factory=_no_url
    )
    password: SecretStr | None = Field(
        default=None, description="Replaces the password of the URL; no percent-encoding."
    )
    create_tables: bool = Field(
        default=False, description="CREATE TABLE at start. For development; else migrate."
    )
    echo: bool = Field(default=False, description="Log every statement.")
    hide_parameters: bool = Field(
        default=True, description="Keep row values out of logs and exception texts."
    )
    pool_size: int = Field(default=5, ge=1, description="Connections kept open per process.")
    max_overflow: int = Field(default=10, ge=0, description="More of them under load.")
    pool_timeout: float = Field(
        default=10, gt=0, description="Seconds to wait for a free connection."
    )
    connect_timeout: int = Field(default=10, gt=0, description="Seconds to reach the server.")
    request_timeout: float = Field(
        default=30, gt=0, description="Seconds that the session of one request may last."
    )
    pooler: bool = Field(
        default=False, description="A pooler in transaction mode, e.g. PgBouncer, is between."
    )
    replica_url: Annotated[InstanceOf[URL], NoDecode, BeforeValidator(async_url)] | None = Field(
        default=None, description="A standby, which read_session() reads from."
    )

    @field_serializer("url", "replica_url")
    def _without_password(self, url: URL | None) -> str | None:
        return url and url.render_as_string()  # model_dump() may be logged

    @model_validator(mode="after")
    def _one_dialect(self) -> Self:
        replica = self.replica_url
        if replica and replica.get_backend_name() != self.url.get_backend_name():
            raise ValueError("replica_url is for another kind of database than url")
        return self

    def full_url(self, url: URL | None = None) -> URL:
        """`url`, or else the setting of that name, with `password` put in where it is set."""
        url = url or self.url
        if self.password is None:
            return url
        return url.set(password=self.password.get_secret_value())


def is_memory(url: URL) -> bool:
    """Whether the URL is an SQLite database in memory."""
    return url.get_backend_name() == "sqlite" and (
        not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"
    )


def engine_options(settings: DatabaseSettings, url: URL | None = None) -> dict[str, Any]:
    """Arguments of `create_async_engine` for this URL, with the reason for each."""
    url = url or settings.full_url()
    options: dict[str, Any] = {
        "echo": settings.echo,
        "hide_parameters": settings.hide_parameters,
        # Workers x (pool_size + max_overflow) must stay below the server's limit
        # (PostgreSQL: 100, MariaDB: 151 by default).
        "pool_size": settings.pool_size,
        "max_overflow": settings.max_overflow,
        # Shorter than a client's patience: an exhausted pool fails while somebody waits.
        "pool_timeout": settings.pool_timeout,
    }
    if is_memory(url):
        # The database lives in one connection. One connection that sessions take in
        # turn isolates them; SQLAlchemy's StaticPool lets them share a transaction.
        options |= {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0}
    elif url.get_backend_name() != "sqlite":
        # One round trip at checkout in place of an error after a restart or failover.
        # Connections older than half an hour are replaced, before MySQL's wait_timeout
        # (8 h) or a proxy's idle limit closes them.
        options |= {"pool_pre_ping": True, "pool_recycle": 1800}

    driver = url.get_driver_name()
    if driver == "aiosqlite":
        # SQLAlchemy, not sqlite3, begins transactions (see _sqlite).
        options["connect_args"] = {"isolation_level": None}
    elif driver == "asyncpg":
        options["connect_args"] = {"timeout": settings.connect_timeout}
        if settings.pooler:
            # The next transaction may be on another server connection, which does not
            # know what this one prepared: unnamed statements, kept by nobody.
            options["connect_args"] |= {
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": str,  # "", the unnamed one
            }
    elif driver == "psycopg":
        options["connect_args"] = {"connect_timeout": settings.connect_timeout}
        if settings.pooler:
            options["connect_args"] |= {"prepare_threshold": None}  # never prepare: as above
    else:
        # UTC sessions: NOW() and UTCDateTime agree. READ COMMITTED, as PostgreSQL has
        # it: a SELECT after a duplicate key sees the row, and gap locks cause fewer
        # deadlocks than under InnoDB's REPEATABLE READ.
        options["connect_args"] = {
            "connect_timeout": settings.connect_timeout,
            "charset": "utf8mb4",
            "init_command": "SET time_zone = '+00:00'",
        }
        options["isolation_level"] = "READ COMMITTED"
    return options


def _sqlite(engine: AsyncEngine) -> None:
    """Make SQLite keep its promises: foreign keys, WAL, transactions that are ones."""
    queues = _Queues()

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")  # off by default, per connection
        cursor.execute("PRAGMA journal_mode = WAL")  # readers do not block the writer
        cursor.execute("PRAGMA synchronous = NORMAL")  # safe with WAL, one fsync less
        cursor.execute("PRAGMA busy_timeout = 100")  # milliseconds; see _begin_immediate
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # sqlite3 would begin before the first write only, so reads would not belong to
        # the transaction and savepoints would commit it. IMMEDIATE takes the write lock
        # at once: a transaction that reads first and then writes cannot fail with
        # "database is locked" at the upgrade, which no timeout waits for.
        options = connection.get_execution_options()
        read_only = "read_only" in options
        if connection.info.get("read_only", False) != read_only:
            cursor = connection.connection.cursor()
            cursor.execute(f"PRAGMA query_only = {int(read_only)}")
            cursor.close()
            connection.info["read_only"] = read_only
        if options.get("isolation_level") != "AUTOCOMMIT":
            if read_only:
                connection.exec_driver_sql("BEGIN DEFERRED")
            else:
                _begin_immediate(connection, queues)

    @event.listens_for(engine.sync_engine, "handle_error")
    def end(context: ExceptionContext) -> None:
        # No statement: COMMIT failed, e.g. at a deferred foreign key. SQLite keeps that
        # transaction open, and SQLAlchemy takes it for ended: the pooled connection would
        # hold the write lock.
        if context.statement is None and context.connection is not None:
            context.connection.connection.rollback()

    @event.listens_for(engine.sync_engine, "invalidate")
    def let_go(connection: Any, _record: Any, _error: BaseException | None) -> None:
        # Of a task that was cancelled in a query. Closed as it is, the connection would end
        # with the query, and hold the write lock until Python collects the cursor.
        if connection is not None and in_greenlet():
            connection.run_async(_stop)


async def _stop(driver: Any) -> None:
    with suppress(ValueError):  # it is closed
        await driver.interrupt()  # at once, in this thread
        with suppress(asyncio.CancelledError):  # again; its thread does it none the less
            await driver.rollback()


_Queues = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]

_SQLITE_LEVELS = ("SERIALIZABLE",)  # all that it has: a writer at a time

SQLITE_LOCK_TIMEOUT = 5.0
"""Seconds that a writer waits for another one before "database is locked"."""


def _begin_immediate(connection: Connection, queues: _Queues) -> None:
    """Wait for the write lock in the event loop, in turn, not in SQLite.

    SQLite waits with the connection's mutex held. Python's garbage collector, when it
    finds an old cursor of that connection, then blocks in the event loop's thread, and
    the writer that everybody waits for cannot go on. Nor can such a wait be cancelled.
    And of many who wait there, one may be passed over until its time is up.
    """
    adapted: Any = connection.connection.dbapi_connection
    if not adapted.run_async(partial(_queue_for_begin, queues)):
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # for SQLAlchemy's own exception


async def _queue_for_begin(queues: _Queues, driver: Any) -> bool:
    """BEGIN IMMEDIATE; False when that did not come to pass in time, or failed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SQLITE_LOCK_TIMEOUT
    turn = queues.setdefault(loop, asyncio.Lock())  # serves those who wait in their order
    try:
        async with asyncio.timeout_at(deadline):
            await turn.acquire()
    except TimeoutError:
        return False
    try:
        while loop.time() < deadline:
            try:
                await (await driver.execute("BEGIN IMMEDIATE")).close()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # any kind of it
                    return False
            else:
                return True
            await asyncio.sleep(0.002)
        return False
    finally:
        turn.release()


def _mysql(engine: AsyncEngine) -> None:
    """Transactions of `read_session()` that refuse writes."""

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        if "read_only" in connection.get_execution_options():
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _lost_transactions(engine: AsyncEngine) -> None:
    """Refuse to commit a transaction that the database has given up.

    Where an error was swallowed without a savepoint, PostgreSQL answers COMMIT with a
    silent ROLLBACK. MySQL, after a deadlock, has rolled back and goes on in a new
    transaction: COMMIT would store the second half of the work.
    """

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.info.pop("lost", None)

    @event.listens_for(engine.sync_engine, "rollback_savepoint")
    def rollback_savepoint(connection: Connection, *_: object) -> None:
        if connection.dialect.name == "postgresql" and not connection.invalidated:
            connection.info.pop("lost", None)

    @event.listens_for(engine.sync_engine, "handle_error")
    def remember(context: ExceptionContext) -> BaseException | None:
        connection, error = context.connection, context.sqlalchemy_exception
        if connection is None or connection.invalidated or not isinstance(error, DBAPIError):
            return None
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return None
        if "lost" in connection.info:  # "no such savepoint": raise the cause, not this
            return translate(connection.info["lost"])
        if ends_transaction(error):
            connection.info["lost"] = error
        return None

    @event.listens_for(engine.sync_engine, "commit")
    def commit(connection: Connection) -> None:
        if "lost" in connection.info:
            # SQLAlchemy takes a transaction whose COMMIT failed for ended.
            connection.connection.rollback()
            raise connection.info.pop("lost")


class Database:
    """The engine and the sessions of one process. Create it inside the running event loop.

    Args:
        settings: where to connect, and how; a URL stands for settings with defaults.

    Attributes:
        engine: for migrations, `run_sync` and events (`engine.sync_engine`).
        read_engine: the transactions of `read_session()`: on the standby where `replica_url`
            names one, else from the same pool.
        sessions: makes plain sessions, without commit at the end. `session()` is what
            application code wants.
    """

    def __init__(self, settings: DatabaseSettings | URL | str) -> None:
        if not isinstance(settings, DatabaseSettings):
            # Defaults only: nothing of the environment belongs to an explicit URL.
            settings = DatabaseSettings.model_construct(url=async_url(settings))
        self.settings = settings
        self.engine = _engine(settings, settings.full_url())
        self.read_engine = self._primary_read_engine = _reading(self.engine)
        if settings.replica_url is not None:
            self.read_engine = _reading(_engine(settings, settings.full_url(settings.replica_url)))
        self.sessions = _sessionmaker(self.engine)
        self.read_sessions = _sessionmaker(self.read_engine)
        self._primary_read_sessions = _sessionmaker(self._primary_read_engine)

    async def __aenter__(self) -> Self:
        if self.settings.create_tables:
            await self.create_tables()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every pooled connection. A later session would open new ones.

        A peer that does not say goodbye within `CLOSE_TIMEOUT` keeps nobody: its connections
        are left to the end of the process.
        """
        for engine in (self.engine, self.read_engine):  # one pool, or the standby's as well
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await engine.dispose()
            except TimeoutError:
                await engine.dispose(close=False)

    @asynccontextmanager
    async def session(
        self, isolation_level: IsolationLevel | None = None
    ) -> AsyncGenerator[AsyncSession]:
        """One unit of work: committed at the end of the block, rolled back on an error.

        Args:
            isolation_level: of this transaction only; None for the engine's, which is READ
                COMMITTED. SQLite has SERIALIZABLE and no other.

        SQL: BEGIN at the first statement, then COMMIT or ROLLBACK. With an isolation level
        also SET TRANSACTION before it, and on MySQL a second one after it.

        Raises:
            ServiceError: in place of the database's errors, also of those that only COMMIT
                reports; and at COMMIT where one was swallowed that has ended the
                transaction (put a savepoint around it: `transaction(session)`).
            ValueError: this database has no such isolation level.
        """
        async with _closing(self._new_session(isolation_level)) as session:
            await session.begin()  # sends nothing; `transaction(session)` is a savepoint now
            yield session
            await session.commit()

    def _new_session(self, isolation_level: str | None) -> AsyncSession:
        if isolation_level is None:
            return self.sessions()
        known = get_args(IsolationLevel) if self.engine.dialect.name != "sqlite" else _SQLITE_LEVELS
        if isolation_level not in known:
            close = get_close_matches(isolation_level.upper(), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            name = self.engine.dialect.name
            raise ValueError(
                f"{name} has no isolation level {isolation_level!r}; {hint}"
                f"There are: {', '.join(known)}."
            )
        bind = self.sessions.kw["bind"]
        if self.engine.dialect.name == "sqlite" or not isinstance(bind, AsyncEngine):
            return self.sessions()  # has it anyway; or tests that share one transaction
        return self.sessions(bind=bind.execution_options(isolation_level=isolation_level))

    async def run_transaction(
        self,
        callback: Callable[[AsyncSession], Awaitable[ResultT]],
        *,
        attempts: int = 5,
        isolation_level: IsolationLevel | None = None,
    ) -> ResultT:
        """Run a unit of work, and again when another transaction was in its way.

            async def transfer(session: AsyncSession) -> None: ...

            await database.run_transaction(transfer, isolation_level="SERIALIZABLE")

        Args:
            callback: gets a session of its own for each attempt, which is committed
                afterwards. It may run several times: no e-mails in it.
            attempts: how often to try, 1 or more.
            isolation_level: as for `session`.

        Returns:
            What the callback returned at the attempt that was committed.

        SQL: BEGIN, the callback's, COMMIT; or ROLLBACK and a pause of 10 to 20 ms, twice
        as long each time, up to 0.5 to 1 s.

        Raises:
            TransientError: that of the last attempt.
            ValueError: `attempts` is less than 1, or an unknown isolation level.
            Exception: whatever else the callback or `session` raises, at once. A lost
                connection is not tried again: the COMMIT may have reached the database.
        """
        begin = partial(self.session, isolation_level)
        return await run_transaction(begin, callback, attempts=attempts)

    @asynccontextmanager
    async def read_session(self, *, primary: bool = False) -> AsyncGenerator[AsyncSession]:
        """A session for reads. A write in it is an error, sent or not.

        Args:
            primary: read from the primary also where `replica_url` names a standby, which
                may not have yet what was just committed.

        SQL: `BEGIN READ ONLY` on PostgreSQL, `SET TRANSACTION READ ONLY` on MySQL,
        `PRAGMA query_only` and `BEGIN DEFERRED` on SQLite, where it runs beside a writer.

        Never around a `yield` to a client: one that goes away there leaves the session open
        until the garbage collector comes. See `StreamSessionDep` in `web.py`.

        Raises:
            ServiceError: in place of the database's errors, as in `session`.
            sqlalchemy.exc.DBAPIError: a statement that writes.
            RuntimeError: changed objects that nothing would store.
        """
        standby = self.settings.replica_url is not None
        sessions = self._primary_read_sessions if primary and standby else self.read_sessions
        async with _closing(sessions()) as session:
            yield session
            changed = [row for row in session.dirty if session.is_modified(row)]
            if session.new or session.deleted or changed:
                raise RuntimeError("a read session has changes to store; use session()")

    async def ping(self, timeout: float = 2.0) -> None:
        """Ask the database for an answer: `SELECT 1`. Not its standby: writes go on without.

        Args:
            timeout: seconds, for a free connection, connecting and answering together.

        Raises:
            Unavailable: no answer in time, or an error in its place; see `__cause__`.
        """
        try:
            engine = self._primary_read_engine
            async with asyncio.timeout(timeout), engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except Exception as error:  # on SQLAlchemy 2.0 a failed login is the driver's own
            raise Unavailable("The database does not answer.") from error

    async def create_tables(self, metadata: MetaData = SQLModel.metadata) -> None:
        """CREATE TABLE for every imported model that has no table. Development only.

        Raises:
            RuntimeError: no model was imported, or models were defined before this
                package was imported and so have unnamed constraints; or Alembic migrates
                this database, and would not see what is created here.
        """
        check_tables(metadata)
        async with self.engine.begin() as connection:
            if await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
                raise RuntimeError(
                    "Alembic migrates this database: unset DATABASE_CREATE_TABLES, and run "
                    "alembic upgrade head"
                )
            await connection.run_sync(metadata.create_all)

    async def drop_tables(self, metadata: MetaData = SQLModel.metadata) -> None:
        """DROP TABLE for every imported model. Tests and development only."""
        async with self.engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)


@asynccontextmanager
async def _closing(session: AsyncSession) -> AsyncGenerator[AsyncSession]:
    """Close the session; raise what the block raised, not what ROLLBACK says of a lost connection."""
    failure: BaseException | None = None
    with translate_errors():
        try:
            async with session:
                try:
                    yield session
                except BaseException as error:
                    failure = error
                    raise
        except SQLAlchemyError as error:
            if failure is None or failure is error:
                raise
            raise failure from failure.__cause__


def _engine(settings: DatabaseSettings, url: URL) -> AsyncEngine:
    engine = create_async_engine(url, **engine_options(settings, url))
    if engine.dialect.name == "sqlite":
        _sqlite(engine)
        return engine
    if engine.dialect.name != "postgresql":  # mysql, or mariadb where the URL says so
        _mysql(engine)
    _lost_transactions(engine)
    return engine


def _reading(engine: AsyncEngine) -> AsyncEngine:
    """The same pool, with transactions that refuse writes."""
    postgresql = engine.dialect.name == "postgresql"
    return engine.execution_options(**{"postgresql_readonly" if postgresql else "read_only": True})


def _sessionmaker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(
        engine,
        class_=AsyncSession,
        # Attributes stay readable after commit; else reading one is a lazy load, which
        # asyncio cannot do (MissingGreenlet).
        expire_on_commit=False,
        # A session used after its block is an error, not a connection that leaks.
        close_resets_only=False,
    )
