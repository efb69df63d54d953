"""Savepoints, lost transactions, isolation levels and retries, with real parallel sessions."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, inspect, update
from sqlalchemy.exc import DBAPIError, MissingGreenlet, StatementError
from sqlalchemy.orm import selectinload, with_loader_criteria
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import (
    Database,
    DatabaseSettings,
    ForeignKeyViolation,
    ServiceError,
    Unavailable,
    UniqueViolation,
)
from app.db.database import IsolationLevel
from app.db.errors import TransientError
from app.db.transactions import pause, run_transaction, transaction

from .conftest import Counter
from .models import Item, ItemTag, Later, Shop, Tag, sql

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

SHOP, ITEM, TAG = UUID(int=1), UUID(int=2), UUID(int=3)


async def stored(db: Database) -> None:
    """A shop with two items, and one tag on the first of them."""
    async with db.session() as session:
        session.add_all([Shop(id=SHOP, name="north"), Tag(id=TAG, name="red")])
        await session.flush()
        session.add_all(
            [
                Item(id=ITEM, name="saw", price=5, stock=3, note="sharp", shop_id=SHOP),
                Item(id=UUID(int=4), name="axe", shop_id=SHOP),
            ]
        )
        await session.flush()
        session.add(ItemTag(item_id=ITEM, tag_id=TAG, weight=7))


async def tags(db: Database) -> list[str]:
    async with db.read_session() as session:
        return list((await session.exec(select(Tag.name).order_by(Tag.name))).all())


# -- transaction() --------------------------------------------------------------


async def test_outside_of_a_transaction_it_is_one(db: Database) -> None:
    async with db.sessions() as session:
        async with transaction(session):
            session.add(Tag(name="red"))
        assert not session.in_transaction()
        assert await tags(db) == ["red"]
        with pytest.raises(UniqueViolation):
            async with transaction(session):
                session.add_all([Tag(name="blue"), Tag(name="red")])
        with pytest.raises(KeyError):
            async with transaction(session):
                session.add(Tag(name="green"))
                await session.flush()
                raise KeyError
        async with transaction(session):
            session.add(Tag(name="white"))
    assert await tags(db) == ["red", "white"]


async def test_inside_of_one_it_is_a_savepoint(db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.session() as session:
            async with transaction(session):  # nothing was sent before
                session.add(Tag(name="red"))
            assert await sql(session, "SELECT name FROM tag") == "red"
            raise KeyError
    assert await tags(db) == []


async def test_caught_conflicts_leave_the_outer_levels_usable(db: Database) -> None:
    await stored(db)
    async with db.session() as session:
        session.add(Tag(name="level 0"))
        async with transaction(session):
            session.add(Tag(name="level 1"))
            with pytest.raises(UniqueViolation):  # by the flush at the end of the block
                async with transaction(session):
                    session.add(Tag(name="red"))
            with pytest.raises(ForeignKeyViolation):
                async with transaction(session):
                    session.add(Tag(name="lost with level 2"))
                    with pytest.raises(UniqueViolation):
                        async with transaction(session):
                            session.add(Tag(name="red"))
                            await session.flush()
                    async with transaction(session):
                        session.add(Tag(name="lost with outer"))
                    session.add(Item(name="x", shop_id=uuid4()))
            with pytest.raises(UniqueViolation):  # by a statement, not by a flush
                async with transaction(session):
                    statement = update(Tag).values(name="red").where(col(Tag.name) == "level 1")
                    await session.exec(statement)
            session.add(Tag(name="level 1 again"))
        session.add(Tag(name="level 0 again"))
    expected = ["level 0", "level 0 again", "level 1", "level 1 again", "red"]
    assert await tags(db) == expected


async def test_errors_of_the_caller_undo_the_block_and_pass(db: Database) -> None:
    async with db.session() as session:
        for error in (KeyError("mine"), asyncio.CancelledError()):
            with pytest.raises(type(error)) as caught:
                async with transaction(session):
                    session.add(Tag(name="lost"))
                    await session.flush()
                    raise error
            assert caught.value is error
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit, transaction(session):
                session.add(Tag(name="lost"))
                await session.flush()
                limit.reschedule(0)  # between two statements: else the connection is lost
                await asyncio.sleep(9)
        session.add(Tag(name="kept"))
    assert await tags(db) == ["kept"]


async def test_changed_rows_are_readable_after_a_rollback(
    db: Database, statements: Counter
) -> None:
    await stored(db)
    async with db.session() as session:
        options = selectinload(cast(Any, Shop.items)).selectinload(cast(Any, Item.tags))
        shop = (await session.exec(select(Shop).options(options))).one()
        red = await session.get_one(Tag, TAG)
        link = await session.get_one(ItemTag, (ITEM, TAG))
        saw, axe = sorted(shop.items, key=lambda item: item.id)
        with statements(db) as sent, pytest.raises(KeyError):
            async with transaction(session):
                saw.name, saw.price, saw.note = "broken", 6, None
                shop.name = "south"
                link.weight = 8
                shop.items.append(Item(name="new"))
                await session.flush()
                sent.clear()
                saw.stock = None  # never flushed
                raise KeyError
        assert [saw.name, saw.price, saw.note, saw.stock] == ["saw", 5, "sharp", 3]
        assert (shop.name, link.weight, axe.name, red.name) == ("north", 7, "axe", "red")
        assert {item.id for item in shop.items} == {saw.id, axe.id}
        assert [tag.id for tag in saw.tags] == [TAG]
        assert saw.shop is shop
        # Three classes, and the two collections of the changed rows. Their many-to-one
        # relation is in the session; `axe` and `red` were not changed.
        assert len([each for each in sent if each.startswith("SELECT")]) == 5
        assert sum(each.startswith("ROLLBACK") for each in sent) == 1
        shop.name = "east"
    async with db.read_session() as session:
        assert await sql(session, "SELECT name FROM shop") == "east"


async def test_rows_changed_in_a_failed_flush_are_readable(db: Database) -> None:
    await stored(db)
    async with db.session() as session:
        axe = await session.get_one(Item, UUID(int=4), options=[selectinload(cast(Any, Item.shop))])
        with pytest.raises(UniqueViolation):
            async with transaction(session):
                axe.name = "saw"
        assert axe.name == "axe"
        assert axe.shop is not None
        assert axe.shop.name == "north"


async def test_rows_changed_by_an_update_statement_are_readable(db: Database) -> None:
    await stored(db)
    async with db.session() as session:
        items = (await session.exec(select(Item).order_by(Item.name))).all()
        with pytest.raises(KeyError):
            async with transaction(session):
                await session.exec(update(Item).values(price=99).where(col(Item.price) < 50))
                raise KeyError
        assert [item.price for item in items] == [0, 5]


async def test_reloaded_relations_keep_the_conditions_they_were_loaded_with(
    db: Database,
) -> None:
    await stored(db)
    async with db.session() as session:
        cheap = with_loader_criteria(Item, col(Item.price) < 3)
        shop = (
            await session.exec(select(Shop).options(selectinload(cast(Any, Shop.items)), cheap))
        ).one()
        with pytest.raises(KeyError):
            async with transaction(session):
                shop.name = "south"
                await session.flush()
                raise KeyError
        assert [item.name for item in shop.items] == ["axe"]


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # what a lazy load leaves behind
async def test_rows_that_are_gone_are_left_alone(db: Database) -> None:
    await stored(db)
    async with db.session() as session:
        red = await session.get_one(Tag, TAG)
        shop = await session.get_one(Shop, SHOP)
        await sql(session, "DELETE FROM itemtag")
        await sql(session, "DELETE FROM tag")
        with pytest.raises(KeyError):
            async with transaction(session):
                with session.no_autoflush:
                    red.name, shop.name = "blue", "south"
                    raise KeyError
        assert shop.name == "north"
        with pytest.raises((MissingGreenlet, StatementError)):
            _ = red.name
        session.expunge(red)


async def test_rows_that_were_created_or_deleted_in_the_block(db: Database) -> None:
    await stored(db)
    async with db.session() as session:
        link, new = await session.get_one(ItemTag, (ITEM, TAG)), Tag(name="blue")
        with pytest.raises(KeyError):
            async with transaction(session):
                await session.delete(link)
                session.add(new)
                await session.flush()
                raise KeyError
        assert (link.weight, new.name) == (7, "blue")
        assert inspect(new).transient
        link.weight = 9
    async with db.read_session() as session:
        assert await sql(session, "SELECT weight FROM itemtag") == 9


async def test_many_changed_rows(db: Database, statements: Counter) -> None:
    async with db.session() as session:
        rows = [Tag(name=f"{n:04}") for n in range(501)]
        session.add_all(rows)
        await session.flush()
        with statements(db) as sent, pytest.raises(KeyError):
            async with transaction(session):
                for row in rows:
                    row.name += "!"
                await session.flush()
                sent.clear()
                raise KeyError
        assert [row.name for row in rows] == [f"{n:04}" for n in range(501)]
        assert len(sent) == 3  # ROLLBACK TO SAVEPOINT, and 500 rows at a time


async def test_block_that_ends_the_transaction_itself(db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.session() as session, transaction(session):
            session.add(Tag(name="lost"))
            await session.rollback()
            raise KeyError
    await stored(db)
    async with db.session() as session:
        shop = await session.get_one(Shop, SHOP)
        with pytest.raises(KeyError):
            async with transaction(session):
                shop.name = "south"
                await session.rollback()
                raise KeyError
        assert not session.in_transaction()  # and none was begun to read rows again
    async with db.read_session() as session:
        assert await sql(session, "SELECT name FROM shop") == "north"
    assert await tags(db) == ["red"]


# -- transactions that the database has given up ---------------------------------


async def deadlock(db: Database, unit: Callable[[AsyncSession, str, str], Awaitable[None]]) -> Any:
    """Runs `unit` twice at once, with the same two items in different order."""
    async with db.session() as session:
        session.add_all([Item(name="a"), Item(name="b")])

    async def run(first: str, second: str) -> None:
        async with db.session() as session:
            await unit(session, first, second)

    async with asyncio.timeout(20):  # a unit that fails early leaves the other one at the barrier
        return await asyncio.gather(run("a", "b"), run("b", "a"), return_exceptions=True)


async def raise_price(session: AsyncSession, name: str) -> None:
    """Locks the item. The price has no index, whose locks would reach other rows."""
    row = (await session.exec(select(Item).where(Item.name == name))).one()
    row.price = cast(int, col(Item.price) + 1)
    await session.flush()


def raised(name: str) -> Any:
    """The same as one statement."""
    return update(Item).values(price=col(Item.price) + 1).where(col(Item.name) == name)


async def prices(db: Database) -> list[int]:
    async with db.read_session() as session:
        return list((await session.exec(select(Item.price).order_by(Item.name))).all())


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("nested", ["ours", "SQLAlchemy's"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("how", ["flush", "statement"])
async def test_deadlock_in_a_savepoint(db: Database, nested: str, own: bool, how: str) -> None:
    both_hold = asyncio.Barrier(2)
    begin: Any = transaction if nested == "ours" else AsyncSession.begin_nested

    async def unit(session: AsyncSession, first: str, second: str) -> None:
        await raise_price(session, first)
        await both_hold.wait()
        async with begin(session):
            try:
                if how == "flush":
                    await raise_price(session, second)
                else:
                    await session.exec(raised(second))
            except (DBAPIError, TransientError):
                if not own:
                    raise
                raise KeyError("mine") from None

    results = await deadlock(db, unit)
    errors = [each for each in results if each is not None]
    assert len(errors) == 1  # and not "SAVEPOINT does not exist"
    if not own:
        assert type(errors[0]) is TransientError
        assert "deadlock" in str(errors[0])
    elif nested == "ours":
        assert type(errors[0]) is KeyError
    assert await prices(db) == [1, 1]


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("how", ["no savepoint", "savepoint", "flush"])
async def test_swallowed_deadlock_never_stores_a_half(db: Database, driver: str, how: str) -> None:
    both_hold = asyncio.Barrier(2)

    async def unit(session: AsyncSession, first: str, second: str) -> None:
        await raise_price(session, first)
        await both_hold.wait()
        with suppress(DBAPIError, TransientError):
            if how == "savepoint":
                async with transaction(session):
                    await raise_price(session, second)
            elif how == "flush":
                await raise_price(session, second)
            else:
                await session.exec(raised(second))

    results = await deadlock(db, unit)
    errors = [each for each in results if each is not None]
    if how == "savepoint" and driver.startswith("postgresql"):
        # The savepoint brought the transaction back: its first half is whole, and asked for.
        assert errors == []
        assert sorted(await prices(db)) == [1, 2]
        return
    assert len(errors) == 1
    if how != "flush":  # there SQLAlchemy refuses the commit: PendingRollbackError
        assert type(errors[0]) is TransientError
    assert await prices(db) == [1, 1]  # of the one that got through


@pytest.mark.only("postgresql")
async def test_swallowed_error_fails_the_commit(db: Database, url: Any) -> None:
    settings = DatabaseSettings.model_construct(url=url, pool_size=1, max_overflow=0)
    await stored(db)
    async with Database(settings) as one:
        with pytest.raises(UniqueViolation):
            async with one.session() as session:
                session.add(Tag(name="lost in silence"))
                await session.flush()
                with pytest.raises(DBAPIError):
                    await sql(session, "UPDATE item SET name = 'x'")
        with pytest.raises(UniqueViolation):  # the cause, not "transaction is aborted"
            async with one.session() as session:
                with pytest.raises(DBAPIError):
                    await sql(session, "UPDATE item SET name = 'x'")
                await sql(session, "SELECT 1")
        with pytest.raises(DBAPIError, match="SELEKT"):
            async with one.session() as session:
                with pytest.raises(DBAPIError):
                    await sql(session, "SELEKT 1")
        async with one.session() as session:
            with pytest.raises(DBAPIError):
                async with session.begin_nested():
                    await sql(session, "UPDATE item SET name = 'x'")
            session.add(Tag(name="kept"))
        async with one.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(DBAPIError):
                await connection.exec_driver_sql("SELEKT 1")
            await connection.exec_driver_sql("UPDATE tag SET name = 'stored' WHERE name = 'red'")
            await connection.commit()
        async with one.session() as session:
            session.add(Tag(name="next"))
    assert await tags(db) == ["kept", "next", "stored"]


@pytest.mark.only("postgresql")
async def test_error_that_the_driver_found_leaves_the_transaction_alone(
    db: Database, driver: str
) -> None:
    """Arguments that asyncpg refuses itself: the server has not seen them."""
    if driver == "postgresql-psycopg":  # leaves it to the server
        return
    async with db.session() as session:
        session.add(Tag(name="kept"))
        await session.flush()
        with pytest.raises(DBAPIError):
            await session.exec(cast(Any, select(Item).where(col(Item.price) == 2**70)))
    assert await tags(db) == ["kept"]


KILL = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mysql": ("SELECT connection_id()", "KILL {}"),
}


@pytest.mark.only("postgresql", "mysql")
async def test_lost_connection_in_a_savepoint(db: Database, driver: str) -> None:
    """Rows cannot be read again then; the loss is what the caller hears of."""
    who, kill = KILL[driver.partition("-")[0]]
    await stored(db)
    with pytest.raises(Unavailable, match="connection lost") as caught:
        async with db.session() as session, transaction(session):
            shop = await session.get_one(Shop, SHOP)
            shop.name = "south"
            await session.flush()
            async with db.session() as killer:
                await sql(killer, kill.format(await sql(session, who)))
            await sql(session, "SELECT 1")
    assert type(caught.value) is Unavailable
    async with db.read_session() as session:
        assert await sql(session, "SELECT name FROM shop") == "north"


# -- session() ------------------------------------------------------------------


async def test_session_begins_at_once_and_sends_nothing(db: Database) -> None:
    begun: list[object] = []
    event.listen(db.engine.sync_engine, "begin", begun.append)
    async with db.session() as session:
        assert session.in_transaction()
        assert "Connections in pool: 0" in db.engine.pool.status()
    assert begun == []
    async with db.session() as session:
        await sql(session, "SELECT 1")
    assert len(begun) == 1


LEVELS: dict[str, dict[IsolationLevel, str]] = {
    "sqlite": {"SERIALIZABLE": ""},
    "postgresql": {
        "READ COMMITTED": "read committed",
        "REPEATABLE READ": "repeatable read",
        "SERIALIZABLE": "serializable",
    },
    "mysql": {
        "READ UNCOMMITTED": "READ-UNCOMMITTED",
        "REPEATABLE READ": "REPEATABLE-READ",
        "SERIALIZABLE": "SERIALIZABLE",
    },
}
ASK = {
    "postgresql": ("SHOW transaction_isolation", "read committed"),
    "mysql": ("SELECT @@session.tx_isolation", "READ-COMMITTED"),
}


async def test_isolation_level_is_of_one_transaction(db: Database, driver: str, url: Any) -> None:
    database = driver.partition("-")[0]
    settings = DatabaseSettings.model_construct(url=url, pool_size=1, max_overflow=0)
    async with Database(settings) as one:  # with one connection, to see what it left there
        for level, shown in LEVELS[database].items():
            with suppress(KeyError):
                async with one.session(level) as session:
                    if database != "sqlite":
                        assert await sql(session, ASK[database][0]) == shown
                    session.add(Tag(name=level))
                    await session.flush()
                    raise KeyError
            async with one.session(isolation_level=level) as session:
                session.add(Tag(name=level))
            async with one.session() as session:
                if database != "sqlite":
                    assert await sql(session, ASK[database][0]) == ASK[database][1]
            async with one.read_session() as session:
                if database != "sqlite":
                    assert await sql(session, ASK[database][0]) == ASK[database][1]
    assert await tags(db) == sorted(LEVELS[database])


async def test_unknown_isolation_level(db: Database, driver: str) -> None:
    database = driver.partition("-")[0]
    refused = ["serialisable", "AUTOCOMMIT", ""]
    if database == "sqlite":
        refused.append("READ COMMITTED")
    for level in refused:
        with pytest.raises(ValueError, match=rf"{database} has no isolation level '{level}'") as e:
            async with db.session(cast(IsolationLevel, level)):
                pass
        assert "There are: " in str(e.value)
        assert "SERIALIZABLE" in str(e.value)
    with pytest.raises(ValueError, match="did you mean 'SERIALIZABLE'"):
        await db.run_transaction(_nothing, isolation_level=cast(IsolationLevel, "serialisable"))


async def _nothing(_session: AsyncSession) -> None:
    """A unit of work without work."""


@pytest.mark.only("postgresql", "sqlite")
async def test_error_of_commit_is_translated(db: Database) -> None:
    with pytest.raises(ForeignKeyViolation):
        async with db.sessions() as session, transaction(session):
            session.add(Later(shop_id=uuid4()))
    with pytest.raises(ForeignKeyViolation):
        async with db.session() as session, transaction(session):
            session.add(Later(shop_id=uuid4()))


@pytest.mark.only("postgresql")
async def test_serialization_failure_at_commit(db: Database) -> None:
    """Write skew: each counts the tags and adds one; in any order one would count more."""
    with pytest.raises(TransientError, match="serialization failure") as caught:
        async with db.session("SERIALIZABLE") as late:
            await late.exec(select(func.count()).select_from(Tag))
            async with db.session("SERIALIZABLE") as early:
                await early.exec(select(func.count()).select_from(Tag))
                late.add(Tag(name="late"))
                await late.flush()
                early.add(Tag(name="early"))
    assert cast(DBAPIError, caught.value.__cause__).statement is None  # it was COMMIT
    assert await tags(db) == ["early"]


# -- run_transaction() ----------------------------------------------------------


@pytest.mark.only("postgresql", "mysql")
async def test_deadlock_is_run_again(db: Database) -> None:
    async with db.session() as session:
        session.add_all([Item(name="a"), Item(name="b")])
    both_hold = asyncio.Barrier(2)
    attempts: list[str] = []

    async def run(first: str, second: str) -> str:
        async def unit(session: AsyncSession) -> str:
            attempts.append(first)
            await raise_price(session, first)
            if attempts.count(first) == 1:
                await both_hold.wait()
            await raise_price(session, second)
            return first

        return await db.run_transaction(unit)

    async with asyncio.timeout(20):
        assert [*await asyncio.gather(run("a", "b"), run("b", "a"))] == ["a", "b"]
    assert len(attempts) == 3
    assert await prices(db) == [2, 2]


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_serialization_failure_is_run_again(db: Database, level: IsolationLevel) -> None:
    async with db.session() as session:
        session.add(Shop(id=SHOP, name="0"))
    both_read = asyncio.Barrier(2)
    attempts = 0

    async def increment(session: AsyncSession) -> None:
        nonlocal attempts
        attempts += 1
        shop = await session.get_one(Shop, SHOP)
        if attempts <= 2:
            await both_read.wait()
        shop.name = str(int(shop.name) + 1)

    await asyncio.gather(*(db.run_transaction(increment, isolation_level=level) for _ in range(2)))
    assert attempts == 3
    async with db.read_session() as session:
        assert await sql(session, "SELECT name FROM shop") == "2"


@pytest.mark.only("sqlite")
async def test_busy_database_is_tried_again(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{Database.__module__}.SQLITE_LOCK_TIMEOUT", 0.05)
    attempts = 0

    async def add(session: AsyncSession) -> None:
        nonlocal attempts
        attempts += 1
        session.add(Tag(name="late"))

    async with db.engine.connect() as holder:
        await holder.exec_driver_sql("DELETE FROM tag")  # BEGIN IMMEDIATE before it
        with pytest.raises(TransientError, match="database is locked"):
            await db.run_transaction(add, attempts=1)
        waiting = asyncio.create_task(db.run_transaction(add, attempts=20))
        while attempts < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await holder.rollback()
        await waiting
    assert attempts >= 4
    assert await tags(db) == ["late"]


async def test_each_attempt_has_a_session_of_its_own(db: Database) -> None:
    seen: list[AsyncSession] = []

    async def unit(session: AsyncSession) -> int:
        assert session not in seen
        seen.append(session)
        session.add(Tag(name=f"attempt {len(seen)}"))
        await session.flush()
        if len(seen) < 3:
            raise TransientError("again")
        return len(seen)

    assert await db.run_transaction(unit, attempts=3) == 3
    assert await tags(db) == ["attempt 3"]


@pytest.mark.parametrize("attempts", [1, 3])
async def test_the_last_error_passes(db: Database, attempts: int) -> None:
    errors = [TransientError(f"{n}") for n in range(5)]
    left = iter(errors)

    async def unit(session: AsyncSession) -> None:
        session.add(Tag(name="lost"))
        raise next(left)

    with pytest.raises(TransientError) as caught:
        await db.run_transaction(unit, attempts=attempts)
    assert caught.value is errors[attempts - 1]
    assert await tags(db) == []


@pytest.mark.parametrize(
    "error", [Unavailable("lost"), UniqueViolation("again"), KeyError(), asyncio.CancelledError()]
)
async def test_other_errors_pass_at_once(db: Database, error: BaseException) -> None:
    calls = 0

    async def unit(_session: AsyncSession) -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)):
        await db.run_transaction(unit)
    assert calls == 1


async def test_waiting_for_the_next_attempt_can_be_cancelled(db: Database) -> None:
    calls = 0

    async def unit(_session: AsyncSession) -> None:
        nonlocal calls
        calls += 1
        raise TransientError("again")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await db.run_transaction(unit, attempts=1000)
    before = calls
    await asyncio.sleep(0.1)
    assert calls == before > 1


async def test_attempts_below_one(db: Database) -> None:
    for attempts in (0, -1):
        with pytest.raises(ValueError, match=f"attempts must be 1 or more, not {attempts}"):
            await db.run_transaction(_nothing, attempts=attempts)
        with pytest.raises(ValueError, match="attempts"):
            await run_transaction(db.session, _nothing, attempts=attempts)


def test_pauses_grow_vary_and_end_below_a_second() -> None:
    for attempt, longest in [(0, 0.02), (1, 0.04), (3, 0.16), (6, 1.0), (900, 1.0)]:
        pauses = [pause(attempt) for _ in range(200)]
        assert longest / 2 <= min(pauses) < longest * 0.6
        assert longest * 0.9 < max(pauses) <= longest
    assert issubclass(TransientError, ServiceError)
