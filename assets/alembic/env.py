"""Alembic's entry: the models, the database, and how the two are compared.

Run by every `alembic` command that needs one of them. The URL is that of the app, DATABASE_URL.
From code, in a thread of its own: `await asyncio.to_thread(command.upgrade, config, "head")`,
or on a connection of yours: `config.attributes["connection"] = connection`.
"""

import asyncio
import importlib
import logging
import re
import time
import zlib
from collections.abc import AsyncGenerator, Collection, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeGuard

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError
from sqlalchemy import (
    Connection,
    DateTime,
    DefaultClause,
    Dialect,
    Enum,
    MetaData,
    event,
    inspect,
    text,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import SQLModel

from app.db import Database, DatabaseSettings
from app.db.base import check_tables

MODELS = "app"
"""The package whose modules define the tables."""

LOCK_TIMEOUT = 5
"""Seconds that one statement waits for a lock on a table. Who waits for it blocks all that
come later, readers too: better to fail and to try again than to stop the app."""

WAIT_FOR_OTHERS = 600
"""Seconds to wait for another process that migrates the same database."""

PAUSE = 0.5
"""Seconds between two questions whether it has come to its end."""

# Creates, alters and drops the ENUM types of PostgreSQL, which Alembic does not see.
ENUM_PLUGIN = find_spec("alembic_postgresql_enum")
if ENUM_PLUGIN:
    importlib.import_module(ENUM_PLUGIN.name)

config = context.config
log = logging.getLogger("alembic.env")

# -- the models ------------------------------------------------------------------------


def metadata_of(package: str) -> MetaData:
    """The tables of a package: every module of it that has `table=True` is imported.

    A table that no module brought would be dropped by the next revision, without a word.

    Raises:
        RuntimeError: there are none, or one has a constraint without a name.
    """
    for root in importlib.import_module(package).__path__:
        for path in sorted(Path(root).rglob("*.py")):
            if re.search(r"\btable\s*=\s*True\b", path.read_text("utf-8")):
                parts = path.relative_to(root).with_suffix("").parts
                importlib.import_module(".".join((package, *parts)).removesuffix(".__init__"))
    check_tables(SQLModel.metadata)
    return SQLModel.metadata


# -- the database ----------------------------------------------------------------------


def run() -> None:
    """What Alembic wants: SQL on stdout, or a connection, given or of our own."""
    if context.is_offline_mode():
        context.configure(url=DatabaseSettings().full_url(), literal_binds=True, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()
    elif (connection := config.attributes.get("connection")) is not None:
        if not isinstance(connection, Connection):
            raise CommandError(
                "config.attributes['connection'] is not a sqlalchemy.Connection: pass the one "
                "that `await async_connection.run_sync(function)` gives to its function"
            )
        migrate(connection)
    else:
        in_own_loop(connect())


def in_own_loop(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, also where a loop runs already: that one waits meanwhile."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is None:
        asyncio.run(main)
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, main).result()


async def connect() -> None:
    database = Database(DatabaseSettings())  # not as a block, which may create tables
    try:
        lock = alone(database) if changes_versions() else nullcontext()
        async with lock, database.engine.connect() as connection:
            await connection.run_sync(limit_waiting)
            await connection.run_sync(migrate)
    finally:
        await database.close()


def changes_versions() -> bool:
    """Whether this is `upgrade`, `downgrade` or `stamp`."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


@asynccontextmanager
async def alone(database: Database) -> AsyncGenerator[None]:
    """Let one process at a time migrate this database.

    SQLite has its write lock for that: wait until it is free. Elsewhere the lock has a
    connection for itself, and one transaction: a pooler may give each transaction another
    server connection. Who has to wait asks again and again: a statement that waits has a
    snapshot, and CREATE INDEX CONCURRENTLY waits until that is gone.

    Raises:
        CommandError: another one had it for longer than `WAIT_FOR_OTHERS`.
    """
    name = database.engine.dialect.name
    if name == "sqlite":  # BEGIN IMMEDIATE, for which the layer waits up to 5 s each time
        lock, endure = "SELECT 1", None
    elif name == "postgresql":  # for this database, until the transaction ends
        lock = f"SELECT pg_try_advisory_xact_lock({zlib.crc32(b'alembic')})"
        endure = "SET LOCAL idle_in_transaction_session_timeout = 0"
    else:  # for the server, until the connection ends
        key = zlib.crc32(str(database.engine.url.database).encode())
        lock = f"SELECT GET_LOCK('alembic {key}', 0)"
        endure = "SET SESSION wait_timeout = 86400"
    async with database.engine.connect() as connection:
        start = time.monotonic()
        told = False
        while not await is_free(connection, lock):
            await connection.rollback()
            waited = time.monotonic() - start
            if waited > WAIT_FOR_OTHERS:
                raise CommandError(f"another process has been migrating for {waited:.0f} s")
            if not told:
                log.info("another process is migrating this database: waiting")
            told = True
            await asyncio.sleep(PAUSE)
        if endure:
            await connection.execute(text(endure))
        else:
            await connection.rollback()  # what migrates is on another connection
        yield


async def is_free(connection: AsyncConnection, lock: str) -> bool:
    """Whether this transaction has got the lock."""
    try:
        return bool(await connection.scalar(text(lock)))
    except OperationalError as error:
        if "database is locked" in str(error):  # SQLite
            return False
        raise


def limit_waiting(connection: Connection) -> None:
    """Give up on a lock after `LOCK_TIMEOUT`, in every transaction of this connection.

    The time that a statement takes is not limited, whatever the role's `statement_timeout` is.
    """
    mysql = (f"SET SESSION lock_wait_timeout = {LOCK_TIMEOUT}",)
    postgresql = (f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'", "SET LOCAL statement_timeout = 0")
    limits = {"postgresql": postgresql, "mysql": mysql, "mariadb": mysql}

    @event.listens_for(connection, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        # Not in an autocommit block: CREATE INDEX CONCURRENTLY waits, and blocks nobody.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            for statement in limits.get(connection.dialect.name, ()):
                connection.exec_driver_sql(statement)


def migrate(connection: Connection) -> None:
    """Run the migrations, on SQLite with foreign keys off and checked at the end.

    Raises:
        CommandError: the connection is SQLite's and has begun a transaction.
    """
    sqlite = connection.dialect.name == "sqlite"
    context.configure(
        connection=connection,
        # SQLite: all or nothing, in one transaction, which keeps other processes out. The
        # others: each revision for itself, so that the next start goes on after the last
        # good one. MySQL commits at each DDL statement anyway.
        transactional_ddl=True if sqlite else None,
        transaction_per_migration=not sqlite,
        on_version_apply=check_foreign_keys,
        process_revision_directives=review,
        **OPTIONS,
    )
    with foreign_keys_off(connection) if sqlite else nullcontext(), context.begin_transaction():
        before = not_reflected(connection)
        context.run_migrations()
        for kind, name, table in sorted(before - not_reflected(connection)):
            log.warning("%s %s of table %s is gone: make it again, where it was", kind, name, table)


@contextmanager
def foreign_keys_off(connection: Connection) -> Generator[None]:
    """SQLite alters a table by making it anew; DROP TABLE of the old one would delete what
    refers to its rows. The PRAGMA does nothing in a transaction.
    """

    def pragma(value: str = "") -> int:
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA foreign_keys{value}")
        row = cursor.fetchone()
        cursor.close()
        return row[0] if row else 0

    pragma("= OFF")
    if pragma():
        raise CommandError(
            "the connection has begun a transaction, in which SQLite cannot switch foreign keys "
            "off: pass one from engine.connect() that nothing was executed on"
        )
    try:
        yield
    finally:
        pragma("= ON")


def not_reflected(connection: Connection) -> set[tuple[str, ...]]:
    """What SQLite's tables lose without a word when batch mode makes them anew."""
    if connection.dialect.name != "sqlite":
        return set()
    rows = connection.exec_driver_sql(
        "SELECT type, name, tbl_name FROM sqlite_schema AS s WHERE type = 'trigger' "
        "OR EXISTS (SELECT 1 FROM pragma_index_info(s.name) WHERE cid = -2)"  # an expression
    )
    return {tuple(row) for row in rows}


def check_foreign_keys(
    ctx: MigrationContext, step: MigrationInfo, *_: Collection[Any], **__: Any
) -> None:
    if ctx.connection is not None and ctx.connection.dialect.name == "sqlite":
        lost = ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if lost:
            raise CommandError(
                f"revision {step.up_revision_id}: {len(lost)} rows refer to rows that are not "
                f"there, the first in table {lost[0][0]} to {lost[0][2]}; nothing was changed"
            )


# -- autogenerate ----------------------------------------------------------------------


def render_item(kind: str, item: Any, autogen: AutogenContext) -> str | Literal[False]:
    """Types of SQLModel and of the app as SQLAlchemy's own, as each database has them.

    A revision has to run for years, also when a class has another name or place by then.
    """
    if kind == "type" and type(item) in {postgresql.JSON, postgresql.JSONB}:
        autogen.imports.add("from sqlalchemy.dialects import postgresql")
        return f"postgresql.{type(item).__name__}()"  # not astext_type=Text(), as on MySQL
    if kind != "type" or not is_foreign(item):
        return False

    def render(type_: TypeEngine[Any]) -> str:
        module = type(type_).__module__
        if not module.startswith("sqlalchemy.dialects."):
            return f"sa.{type_!r}"
        dialect = module.split(".")[2]
        autogen.imports.add(f"from sqlalchemy.dialects import {dialect}")
        return f"{dialect}.{type_!r}"

    usual = render(item.load_dialect_impl(DefaultDialect()))
    text = usual
    for name, dialect in DIALECTS.items():
        special = render(item.load_dialect_impl(dialect))
        if special != usual:
            names = "'mysql', 'mariadb'" if name == "mysql" else repr(name)
            text += f".with_variant({special}, {names})"
    return text


def is_foreign(item: object) -> TypeGuard[TypeDecorator[Any]]:
    """Whether it is a type that SQLAlchemy does not have."""
    return isinstance(item, TypeDecorator) and not type(item).__module__.startswith("sqlalchemy.")  # pyright: ignore[reportUnknownArgumentType]


DIALECTS: dict[str, Dialect] = {
    each.name: each() for each in (postgresql.dialect, mysql.dialect, sqlite.dialect)
}


def review(
    migration: MigrationContext, revision: Any, directives: list[ops.MigrationScript]
) -> None:
    """What autogenerate found, looked at before it is written."""
    tables = inspect(migration.connection).get_table_names()
    known = sorted(set(tables) & set(SQLModel.metadata.tables))
    if not revision and known:
        raise CommandError(
            f"{', '.join(known)}: these tables exist, but no migration made them, so a revision "
            "would leave them out. Set DATABASE_CREATE_TABLES=false. Then point DATABASE_URL at "
            "an empty database and make the revision there; `alembic stamp head` afterwards tells "
            "a database that has the tables that it is up to date"
        )
    if not ENUM_PLUGIN and migration.dialect.name == "postgresql":
        for column in (each for table in SQLModel.metadata.tables.values() for each in table.c):
            if isinstance(column.type, Enum) and column.type.native_enum:
                log.warning("%s is a native enum: pip install alembic-postgresql-enum", column)
    for script in directives:
        for container in (script.upgrade_ops, script.downgrade_ops):
            correct(container, migration.dialect)
        for each in walk(script.upgrade_ops):
            warn(each)
    # `alembic check` has no such option, and needs what it gave.
    empty = all(each.upgrade_ops is None or each.upgrade_ops.is_empty() for each in directives)
    if empty and hasattr(config.cmd_opts, "autogenerate"):
        directives.clear()
        log.info("nothing has changed: no revision was written")


def correct(container: ops.OpContainer | None, dialect: Dialect) -> None:
    """Leave out what does nothing, and on MySQL fails; see also `in_utc`."""
    every = container.ops if container else []
    dropped = {each.table_name for each in every if isinstance(each, ops.DropTableOp)}

    def is_needless(each: ops.MigrateOperation) -> bool:
        if isinstance(each, ops.ModifyTableOps):
            # DROP TABLE drops the indexes too; before it, MySQL keeps a foreign key's.
            correct(each, dialect)
            return not each.ops or each.table_name in dropped
        if isinstance(each, ops.AlterColumnOp) and is_same(
            each.existing_server_default, each.modify_server_default, dialect
        ):
            each.modify_server_default = False  # which means: as it is
            return not each.has_changes()
        return False

    needed = [each for each in every if not is_needless(each)]
    every[:] = [each for operation in needed for each in in_utc(operation, dialect)]


def is_same(one: object, other: object, dialect: Dialect) -> bool:
    """Whether two server defaults are: MySQL tells some in other words than it was told."""
    words = {
        "true": "1",
        "false": "0",
        "current_timestamp()": "now()",
        "current_timestamp": "now()",
    }
    texts = [
        str(each.arg.compile(dialect=dialect)).lower()
        for each in (one, other)
        if isinstance(each, DefaultClause) and isinstance(each.arg, ClauseElement)
    ]
    return len(texts) == 2 and len({words.get(each, each) for each in texts}) == 1


def walk(container: ops.OpContainer | None) -> Iterator[ops.MigrateOperation]:
    for each in container.ops if container else ():
        if isinstance(each, ops.OpContainer):
            yield from walk(each)
        else:
            yield each


def warn(each: ops.MigrateOperation) -> None:
    """Say where a revision would lose data, or fail on a table that has rows."""
    if isinstance(each, ops.DropTableOp):
        log.warning("drops table %s and its rows: no module of %s has it", each.table_name, MODELS)
    elif isinstance(each, ops.DropColumnOp):
        log.warning(
            "drops %s.%s and its values; was it renamed, use alter_column(new_column_name=...)",
            each.table_name,
            each.column_name,
        )
    elif isinstance(each, ops.AddColumnOp):
        column = each.column
        if not column.nullable and column.server_default is None:
            log.warning(
                "adds %s.%s, NOT NULL without server_default: fails where the table has rows, "
                "and MySQL writes zeros and empty texts",
                each.table_name,
                column.name,
            )


def in_utc(operation: ops.MigrateOperation, dialect: Dialect) -> list[ops.MigrateOperation]:
    """Say that naive timestamps are UTC: PostgreSQL takes them for the zone of the session."""
    if dialect.name != "postgresql" or not isinstance(operation, ops.AlterColumnOp):
        return [operation]
    before, after = (
        type_.load_dialect_impl(dialect) if is_foreign(type_) else type_
        for type_ in (operation.existing_type, operation.modify_type)
    )
    if not isinstance(before, DateTime) or not isinstance(after, DateTime):
        return [operation]
    if before.timezone == after.timezone:
        return [operation]
    quote = dialect.identifier_preparer.quote
    table = ".".join(quote(each) for each in (operation.schema, operation.table_name) if each)
    column, type_ = quote(operation.column_name), after.compile(dialect=dialect)
    sql = (
        f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {type_} USING {column} AT TIME ZONE 'UTC'"
    )
    operation.modify_type = None
    return [ops.ExecuteSQLOp(sql), *([operation] if operation.has_changes() else [])]


OPTIONS: dict[str, Any] = {
    "target_metadata": metadata_of(MODELS),
    "render_item": render_item,
    "render_as_batch": True,  # what was written against PostgreSQL also runs on SQLite
    # CHECK constraints too, by their names.
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
    "compare_type": True,
    "compare_server_default": True,
}
if config.cmd_opts is not None:  # a shell: an app has logging of its own
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.INFO)
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    logging.getLogger("alembic.alembic_postgresql_enum").setLevel(logging.ERROR)
run()
