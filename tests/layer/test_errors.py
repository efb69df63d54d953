"""Every rule of the tables, broken on every driver: the same error on all of them."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
import copy
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import (
    CheckViolation,
    Conflict,
    Database,
    ForeignKeyViolation,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    NotNullViolation,
    ServiceError,
    StaleData,
    UniqueViolation,
    translate_errors,
)

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
    NotFound("no"),
    MultipleFound("two"),
    InvalidQuery("what"),
    InvalidValue("long", None, "item", ("name",)),
    NotNullViolation("none", None, "item", ("name",)),
    CheckViolation("rule", "ck_item_price_positive", "item"),
    Conflict("clash", "ex_item", "item", ("name", "price")),
    UniqueViolation("again", "uq_tag_name", "tag", ("name",)),
    ForeignKeyViolation("gone", "fk_item_shop_id_shop", "item", ("shop_id",)),
    StaleData("old"),
]


def _pickled(error: ServiceError) -> ServiceError:
    return cast(ServiceError, pickle.loads(pickle.dumps(error)))  # noqa: S301


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


# -- not the caller's fault: passed on as SQLAlchemy's error --------------------


async def test_deadlock_is_not_a_conflict(db: Database, driver: str) -> None:
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
            with pytest.raises(OperationalError, match="locked"), translate_errors():
                await connection.exec_driver_sql("DELETE FROM tag")
            await connection.exec_driver_sql("PRAGMA busy_timeout = 5000")
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
    assert isinstance(errors[0], DBAPIError)
    assert "eadlock" in str(errors[0])


WAIT = {
    "postgresql": ("SET LOCAL lock_timeout = 50", "lock timeout|LockNotAvailable"),
    "mysql": ("SET SESSION innodb_lock_wait_timeout = 0", "Lock wait timeout"),
}


@pytest.mark.only("postgresql", "mysql")
async def test_lock_timeout_is_not_a_conflict(db: Database, driver: str) -> None:
    await stored(db)
    setting, message = WAIT[driver.partition("-")[0]]
    async with db.sessions() as holder:
        (await holder.get_one(Shop, SHOP)).name = "held"
        await holder.flush()
        with pytest.raises(DBAPIError, match=message):
            async with db.session() as session:
                await sql(session, setting)
                await sql(session, "UPDATE shop SET name = 'mine'")


KILL = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mysql": ("SELECT connection_id()", "KILL {}"),
}


@pytest.mark.only("postgresql", "mysql")
async def test_lost_connection_is_not_a_conflict_and_the_pool_recovers(
    db: Database, driver: str
) -> None:
    who, kill = KILL[driver.partition("-")[0]]
    with pytest.raises(DBAPIError) as caught:
        async with db.session() as session, db.sessions() as killer:
            await sql(killer, kill.format(await sql(session, who)))
            await sql(session, "SELECT 1")
    assert caught.value.connection_invalidated
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
