"""Every rule of the tables, broken on every driver: the same error on all of them."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, MissingGreenlet, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import (
    CheckViolation,
    Conflict,
    Database,
    DatabaseSettings,
    ForeignKeyViolation,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    NotNullViolation,
    ServiceError,
    StaleData,
    Unavailable,
    UniqueViolation,
    translate_errors,
)
from app.db.errors import InvalidCursor, InvalidFilter, TransientError
from app.db.web import add_error_handlers

from .models import Item, ItemTag, Later, Shop, Tag, sql

pytestmark = pytest.mark.anyio

SHOP, ITEM, TAG = UUID(int=1), UUID(int=2), UUID(int=3)


async def stored(db: Database) -> None:
    async with db.session() as session:
        session.add_all([Shop(id=SHOP, name="north"), Tag(id=TAG, name="red")])
        await session.flush()
        session.add(Item(id=ITEM, name="saw", shop_id=SHOP))
        await session.flush()
        session.add(ItemTag(item_id=ITEM, tag_id=TAG))


async def _delete(session: AsyncSession, row: tuple[type[SQLModel], UUID]) -> None:
    await session.delete(await session.get_one(*row))


class Case(NamedTuple):
    break_it: SQLModel | tuple[type[SQLModel], UUID] | str  # to add, to delete, to run
    kind: type[ServiceError]
    constraint: str | None
    table: str | None
    columns: tuple[str, ...]


def _bad(**values: Any) -> Item:
    fields: dict[str, Any] = {"name": "x"} | values
    return Item(**fields)


_PAIR = ("item_id", "tag_id")
CASES: dict[str, Callable[[], Case]] = {
    "unique": lambda: Case(Tag(name="red"), UniqueViolation, "uq_tag_name", "tag", ("name",)),
    "unique index": lambda: Case(
        Shop(name="north"), UniqueViolation, "ix_shop_name", "shop", ("name",)
    ),
    "unique pair": lambda: Case(
        Item(name="saw", shop_id=SHOP),
        UniqueViolation,
        "uq_item_shop_id_name",
        "item",
        ("shop_id", "name"),
    ),
    "primary key": lambda: Case(
        Shop(id=SHOP, name="south"), UniqueViolation, "pk_shop", "shop", ("id",)
    ),
    "composite key": lambda: Case(
        ItemTag(item_id=ITEM, tag_id=TAG), UniqueViolation, "pk_itemtag", "itemtag", _PAIR
    ),
    "no parent": lambda: Case(
        _bad(shop_id=uuid4()), ForeignKeyViolation, "fk_item_shop_id_shop", "item", ("shop_id",)
    ),
    "has children": lambda: Case(
        (Shop, SHOP), ForeignKeyViolation, "fk_item_shop_id_shop", "item", ("shop_id",)
    ),
    "restricted": lambda: Case(
        "DELETE FROM tag", ForeignKeyViolation, "fk_itemtag_tag_id_tag", "itemtag", ("tag_id",)
    ),
    "not null": lambda: Case(_bad(name=None), NotNullViolation, None, "item", ("name",)),
    "check": lambda: Case(_bad(price=-1), CheckViolation, "ck_item_price_positive", "item", ()),
    "too long": lambda: Case(_bad(name="x" * 21), InvalidValue, None, None, ("name",)),
    "out of range": lambda: Case(_bad(stock=70_000), InvalidValue, None, None, ("stock",)),
    "beyond 64 bits": lambda: Case(_bad(price=2**70), InvalidValue, None, None, ("price",)),
    "enum": lambda: Case(_bad(kind="nope"), InvalidValue, None, None, ("kind",)),
    "type": lambda: Case(_bad(price="abc"), InvalidValue, None, None, ("price",)),
}
# What a database cannot know. SQLite names no foreign key, and stores what it is given
# where a column has no CHECK; PostgreSQL does not say which column a value was for;
# MariaDB does not say which table misses a value.
STORED_BY_SQLITE = {"too long", "out of range", "enum", "type"}
SILENT: dict[str, dict[str, dict[str, Any]]] = {
    "sqlite": {
        "no parent": {"constraint": None, "table": None, "columns": ()},
        "has children": {"constraint": None, "table": None, "columns": ()},
        "restricted": {"constraint": None, "table": None, "columns": ()},
        "beyond 64 bits": {"columns": ()},
    },
    "postgresql": {
        name: {"columns": ()}
        for name in ("too long", "out of range", "beyond 64 bits", "enum", "type")
    },
    "mysql": {"not null": {"table": None}},
}


@pytest.mark.parametrize("name", CASES)
async def test_broken_rule(db: Database, driver: str, name: str) -> None:
    database = driver.partition("-")[0]
    case = CASES[name]()
    case = case._replace(**SILENT[database].get(name, {}))
    await stored(db)

    async def attempt() -> None:
        async with db.session() as session:
            if isinstance(case.break_it, str):
                await sql(session, case.break_it)
            elif isinstance(case.break_it, tuple):
                await _delete(session, case.break_it)
            else:
                session.add(case.break_it)

    if database == "sqlite" and name in STORED_BY_SQLITE:
        await attempt()
        return
    with pytest.raises(case.kind) as caught:
        await attempt()
    error = caught.value
    assert type(error) is case.kind
    assert isinstance(error, Conflict | InvalidValue)
    assert (error.constraint, error.table, error.columns) == case[2:]
    # sqlite3's own OverflowError is the one that SQLAlchemy does not wrap.
    unwrapped = database == "sqlite" and name == "beyond 64 bits"
    assert isinstance(error.__cause__, OverflowError if unwrapped else DBAPIError)
    # Names for people, and no values of rows.
    assert (case.constraint or ", ".join(case.columns)) in str(error)
    assert "north" not in str(error)
    assert "saw" not in str(error)


ERRORS = [
    ServiceError("any"),
    NotFound("no"),
    NotFound("some", [UUID(int=1), (2, "b")]),
    MultipleFound("two"),
    InvalidQuery("what"),
    InvalidFilter("which"),
    InvalidCursor("whose"),
    InvalidValue("long", None, "item", ("name",)),
    NotNullViolation("none", None, "item", ("name",)),
    CheckViolation("rule", "ck_item_price_positive", "item"),
    Conflict("clash", "ex_item", "item", ("name", "price")),
    UniqueViolation("again", "uq_tag_name", "tag", ("name",)),
    ForeignKeyViolation("gone", "fk_item_shop_id_shop", "item", ("shop_id",)),
    StaleData("old", None, "item"),
    Unavailable("gone"),
    TransientError("again"),
]


def _pickled(error: ServiceError) -> ServiceError:
    return cast(ServiceError, pickle.loads(pickle.dumps(error)))  # noqa: S301


def test_every_error_is_in_the_list() -> None:
    def below(kind: type[ServiceError]) -> set[type[ServiceError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    public = {kind for kind in below(ServiceError) if not kind.__name__.startswith("_")}
    assert public == {type(error) for error in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, _pickled])
def test_errors_survive_copy_and_pickle(
    error: ServiceError, clone: Callable[[ServiceError], ServiceError]
) -> None:
    twin = clone(error)
    assert type(twin) is type(error)
    assert (str(twin), repr(twin), vars(twin)) == (str(error), repr(error), vars(error))
    assert str(error) == error.message == error.args[0]
    for part in (type(error).__name__, *vars(error).values()):
        assert str(part) in repr(error)
    assert ServiceError().message == "ServiceError"


async def test_outer_transaction_goes_on_after_a_savepoint(db: Database) -> None:
    await stored(db)
    async with db.session() as session:
        session.add(Tag(name="before"))
        with pytest.raises(UniqueViolation), translate_errors():
            async with session.begin_nested():
                session.add(Tag(name="red"))
        session.add(Tag(name="after"))
    async with db.read_session() as session:
        names = (await session.exec(select(Tag.name).order_by(Tag.name))).all()
    assert names == ["after", "before", "red"]


@pytest.mark.only("sqlite", "postgresql")
async def test_rule_that_commit_checks(db: Database, driver: str) -> None:
    with pytest.raises(ForeignKeyViolation) as caught:
        async with db.session() as session:
            session.add(Later(shop_id=uuid4()))
            await session.flush()
    expected = None if driver.startswith("sqlite") else "fk_later_shop_id_shop"
    assert caught.value.constraint == expected
    async with db.read_session() as session:
        assert (await session.exec(select(Later))).all() == []


async def test_stale_row(db: Database) -> None:
    await stored(db)
    with pytest.raises(StaleData):
        async with db.session() as session:
            item = await session.get_one(Item, ITEM)
            await sql(session, "DELETE FROM itemtag")
            await sql(session, "DELETE FROM item")
            item.price = 5


# -- no answer ------------------------------------------------------------------


def is_conflict_free(error: BaseException, kind: type[Unavailable], reason: str) -> None:
    assert type(error) is kind
    assert not isinstance(error, Conflict)
    assert f"({reason})" in str(error)
    assert error.__cause__ is not None


async def test_deadlock(db: Database, driver: str) -> None:
    """SQLite has no row locks; there the second writer waits and gives up."""
    async with db.session() as session:
        session.add_all([Shop(id=UUID(int=n), name=f"{n}") for n in (1, 2)])
    if driver.startswith("sqlite"):
        async with db.sessions() as holder, db.sessions() as waiter:
            holder.add(Tag(name="a"))
            await holder.flush()
            connection = await waiter.connection(
                execution_options={"isolation_level": "AUTOCOMMIT"}
            )
            await connection.exec_driver_sql("PRAGMA busy_timeout = 50")
            with pytest.raises(TransientError) as caught, translate_errors():
                await connection.exec_driver_sql("DELETE FROM tag")
            await connection.exec_driver_sql("PRAGMA busy_timeout = 5000")
        is_conflict_free(caught.value, TransientError, "database is locked")
        return
    both_hold = asyncio.Barrier(2)

    async def lock(first: int, second: int) -> None:
        async with db.session() as session:
            (await session.get_one(Shop, UUID(int=first))).name += "!"
            await session.flush()
            await both_hold.wait()
            (await session.get_one(Shop, UUID(int=second))).name += "?"

    results = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    errors = [result for result in results if result is not None]
    assert len(errors) == 1
    is_conflict_free(errors[0], TransientError, "deadlock")
    # Names only: PostgreSQL's own sentence has processes and rows.
    assert str(errors[0]) == "Another transaction was in the way (deadlock); run this one again."


@pytest.mark.only("sqlite")
async def test_table_that_is_being_read(db: Database) -> None:
    many = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) "
        "SELECT i FROM n, sqlite_master"
    )
    with pytest.raises(TransientError) as caught:
        async with db.session() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("CREATE TABLE brief (id INTEGER)")
            async with connection.stream(text(many)) as rows:
                await rows.fetchone()
                await connection.exec_driver_sql("DROP TABLE brief")
    cause = cast(OperationalError, caught.value.__cause__).orig
    assert getattr(cause, "sqlite_errorname", "") == "SQLITE_LOCKED"


WAIT = {
    "postgresql": "SET LOCAL lock_timeout = 50",
    "mysql": "SET SESSION innodb_lock_wait_timeout = 0",
}


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("how", ["timeout", "nowait"])
async def test_lock_that_is_not_free(db: Database, driver: str, how: str) -> None:
    await stored(db)
    async with db.sessions() as holder:
        (await holder.get_one(Shop, SHOP)).name = "held"
        await holder.flush()
        with pytest.raises(TransientError) as caught:
            async with db.session() as session:
                if how == "timeout":
                    await sql(session, WAIT[driver.partition("-")[0]])
                    await sql(session, "UPDATE shop SET name = 'mine'")
                else:
                    await session.get_one(Shop, SHOP, with_for_update={"nowait": True})
    is_conflict_free(caught.value, TransientError, "lock not free")


@pytest.mark.only("mysql")
@pytest.mark.parametrize("swallowed", [False, True])
async def test_snapshot_that_is_too_old(db: Database, swallowed: bool) -> None:
    """MariaDB's REPEATABLE READ refuses to change what it does not see, where asked to."""
    await stored(db)
    with pytest.raises(TransientError) as caught:
        async with db.session("REPEATABLE READ") as session:
            await sql(session, "SET SESSION innodb_snapshot_isolation = ON")
            await sql(session, "SELECT name FROM shop")
            async with db.session() as other:
                await sql(other, "UPDATE shop SET name = 'east'")
            with suppress(DBAPIError) if swallowed else nullcontext():
                await sql(session, "UPDATE shop SET name = 'west'")
            session.add(Tag(name="half"))
    is_conflict_free(caught.value, TransientError, "serialization failure")
    async with db.read_session() as session:
        assert (await session.exec(select(Tag.name))).all() == ["red"]


SLOW = {
    "postgresql": ("SET LOCAL statement_timeout = 50", "SELECT pg_sleep(9)"),
    "mysql": ("SET SESSION max_statement_time = 0.05", "SELECT sleep(9)"),
}


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("who", ["timeout", "administrator"])
async def test_cancelled_statement(db: Database, driver: str, who: str) -> None:
    database = driver.partition("-")[0]
    setting, slow = SLOW[database]

    async def wait() -> None:
        async with db.session() as session:
            if who == "timeout":
                await sql(session, setting)
            number.set_result(await sql(session, KILL[database][0]))
            await sql(session, slow)

    number: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait())
    if who == "administrator":
        cancel = {"postgresql": "SELECT pg_cancel_backend({})", "mysql": "KILL QUERY {}"}[database]
        async with db.session() as session:
            connection = await number
            await asyncio.sleep(0.1)
            await sql(session, cancel.format(connection))
    with pytest.raises(Unavailable) as caught:
        await waiting
    is_conflict_free(caught.value, Unavailable, "statement cancelled")


@pytest.mark.only("postgresql")
async def test_a_table_that_was_altered(db: Database, url: URL) -> None:
    """The drivers have prepared for other columns: `run_transaction` gets through."""

    async def read(session: AsyncSession) -> object:
        return await sql(session, "SELECT * FROM altered")

    async with Database(url) as other:

        async def alter(statement: str) -> None:
            async with other.session() as session:
                await sql(session, statement)

        await alter("CREATE TABLE altered (id INTEGER)")
        try:
            for _ in range(8):  # psycopg prepares at the fifth
                await db.run_transaction(read)
            await alter("ALTER TABLE altered ALTER id TYPE bigint")
            with pytest.raises(TransientError, match="the table was altered"):
                async with db.session() as session:
                    await read(session)
            await alter("ALTER TABLE altered ALTER id TYPE integer")
            for _ in range(8):
                await db.run_transaction(read)
            await alter("ALTER TABLE altered ALTER id TYPE bigint")
            assert await db.run_transaction(read) is None  # no rows, and no error
        finally:
            await alter("DROP TABLE altered")


@pytest.mark.only("postgresql")
async def test_outcome_unknown(db: Database) -> None:
    """CockroachDB says so of a COMMIT; nobody may run it again without a look."""
    with pytest.raises(Unavailable) as caught:
        async with db.session() as session:
            await sql(session, "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40003'; END $$")
    assert type(caught.value) is Unavailable
    assert "outcome unknown" in str(caught.value)


KILL = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mysql": ("SELECT connection_id()", "KILL {}"),
}


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("when", ["statement", "commit", "savepoint"])
async def test_lost_connection_and_the_pool_recovers(db: Database, driver: str, when: str) -> None:
    who, kill = KILL[driver.partition("-")[0]]
    with pytest.raises(Unavailable) as caught:
        async with db.session() as session, db.sessions() as killer:
            number = await sql(session, who)
            if when == "savepoint":
                async with session.begin_nested():
                    await sql(session, "DELETE FROM tag")
                    await sql(killer, kill.format(number))
                    await sql(session, "SELECT 1")
            await sql(killer, kill.format(number))
            if when == "statement":
                await sql(session, "SELECT 1")
    is_conflict_free(caught.value, Unavailable, "connection lost")
    assert cast(DBAPIError, caught.value.__cause__).connection_invalidated
    async with db.session() as session:
        assert await sql(session, "SELECT 1") == 1
    # One that dies in the pool, unseen, is replaced at the checkout.
    async with Database(db.engine.url) as other:
        async with other.read_session() as session:
            number = await sql(session, who)
        async with db.read_session() as killer:
            await sql(killer, kill.format(number))
        await asyncio.sleep(0.1)
        async with other.read_session() as session:
            assert await sql(session, who) != number


async def test_no_connection(db: Database, driver: str, tmp_path: Path) -> None:
    url = db.engine.url
    wrong = [
        url.set(host="127.0.0.1", port=1).difference_update_query(["host"]),  # nobody listens
        url.set(username="nobody", password="wrong"),
        url.set(database="nonesuch"),
    ]
    if driver.startswith("sqlite"):
        wrong = [url.set(database=str(tmp_path / "missing" / "x.db"))]
    for each in wrong:
        async with Database(each) as other:
            with pytest.raises(Unavailable) as caught:
                async with other.session() as session:
                    await sql(session, "SELECT 1")
            await asyncio.sleep(0.05)  # aiosqlite's thread ends
        is_conflict_free(caught.value, Unavailable, "no connection")
        assert "wrong" not in str(caught.value)


async def test_no_free_connection(db: Database) -> None:
    settings = DatabaseSettings.model_construct(
        url=db.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    async with Database(settings) as one, one.session() as session:
        await sql(session, "SELECT 1")
        with pytest.raises(Unavailable) as caught:
            async with one.session() as other:
                await sql(other, "SELECT 1")
    is_conflict_free(caught.value, Unavailable, "no free connection")
    assert isinstance(caught.value.__cause__, PoolTimeout)


async def test_own_trouble_with_files_is_not_the_databases(db: Database) -> None:
    for error in (ConnectionRefusedError("mine"), TimeoutError("mine"), FileNotFoundError("mine")):
        with pytest.raises(type(error), match="mine"):
            async with db.session() as session:
                await sql(session, "SELECT 1")
                raise error


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # it is what happens then
async def test_lazy_load_is_not_a_lost_connection(db: Database) -> None:
    await stored(db)
    async with Database(db.engine.url) as other:  # a connection must be made first
        async with db.session() as session:
            item = await session.get_one(Item, ITEM)
        with pytest.raises(MissingGreenlet):
            async with other.session() as session:
                session.add(item)
                _ = item.tags


# -- for clients ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "extra"),
    [
        (TransientError("again"), 503, {}),
        (Unavailable("gone"), 503, {}),
        (InvalidFilter("which"), 422, {}),
        (InvalidCursor("whose"), 422, {}),
        (NotFound("no"), 404, {}),
        (NotFound("no", [TAG, (1, "b")]), 404, {"keys": [str(TAG), [1, "b"]]}),
        (NotFound("no", [object()]), 404, {}),
        (StaleData("old"), 409, {}),
    ],
)
async def test_response(error: ServiceError, status: int, extra: dict[str, Any]) -> None:
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        response = await client.get("/")
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, body["status"], body["detail"]) == (status, status, str(error))
    assert body.keys() - {"type", "title", "status", "detail"} == extra.keys()
    assert extra.items() <= body.items()
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)


# -- values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"sold_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - naive is the point
        {"sold_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        {"kind": 5},
        {"note": "half of a pair: \ud800"},
    ],
    ids=["naive", "beyond UTC", "no member", "no Unicode"],
)
async def test_value_that_the_type_refuses(db: Database, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue) as caught:
        async with db.session() as session:
            session.add(_bad(**values))
    assert caught.value.__cause__ is not None


async def test_own_errors_are_not_bad_values(db: Database) -> None:
    for error in (ValueError("mine"), UnicodeEncodeError("ascii", "ä", 0, 1, "mine")):
        with pytest.raises(type(error), match="mine"):
            async with db.session():
                raise error
    with pytest.raises(DBAPIError):
        async with db.session() as session:
            await sql(session, "SELEKT 1")


async def test_own_overflow_is_not_a_bad_value(db: Database) -> None:
    with pytest.raises(OverflowError):
        async with db.session():
            _ = 10.0**400


@pytest.mark.only("sqlite", "postgresql")  # MariaDB has no index over an expression
async def test_an_index_over_an_expression_is_named(db: Database) -> None:
    async with db.session() as session:
        await sql(session, "CREATE UNIQUE INDEX uq_tag_lower ON tag (lower(name))")
    try:
        with pytest.raises(UniqueViolation) as caught:
            async with db.session() as session:
                session.add_all([Tag(name="Red"), Tag(name="red")])
        assert caught.value.constraint == "uq_tag_lower"
    finally:
        async with db.session() as session:
            await sql(session, "DROP INDEX uq_tag_lower")
