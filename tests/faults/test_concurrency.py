"""Transactions that are in each other's way, made to be so."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database, TransientError
from app.db.database import IsolationLevel
from app.models import Hero
from tests.clusters import PostgresCluster, Server

from .conftest import Report
from .harness import PATIENCE, database_with_tables

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

TASKS, INCREMENTS = 10, 100


@pytest.fixture
async def heroes(server: Server, driver: str) -> AsyncGenerator[Database]:
    """With two heroes, whose power is 0."""
    if isinstance(server, PostgresCluster):
        server.configure(deadlock_timeout="50ms")  # by default it looks for them after 1 s
    async with database_with_tables(server.url(driver)) as database:
        await two_heroes(database)
        yield database


async def two_heroes(database: Database) -> None:
    async with database.session() as session:
        session.add_all([Hero(name=name, secret_name="x") for name in ("one", "two")])


async def powers(database: Database) -> list[int]:
    async with database.read_session(primary=True) as session:
        return list((await session.exec(select(Hero.power).order_by(col(Hero.name)))).all())


async def strengthen(session: AsyncSession, name: str) -> None:
    change = update(Hero).where(col(Hero.name) == name).values(power=col(Hero.power) + 1)
    await session.exec(change)


class Meeting:
    """Where the first attempts of two transactions wait for each other, once."""

    def __init__(self) -> None:
        self._barrier = asyncio.Barrier(2)
        self.attempts = 0

    async def join(self) -> None:
        self.attempts += 1
        if self.attempts <= 2:
            async with asyncio.timeout(PATIENCE):
                await self._barrier.wait()


async def test_deadlock(heroes: Database) -> None:
    """One of the two is told so by `TransientError`, nothing of it is stored, the other ends."""
    meeting = Meeting()

    async def in_order(first: str, second: str) -> None:
        async with heroes.session() as session:
            await strengthen(session, first)
            await meeting.join()
            await strengthen(session, second)

    outcomes = await asyncio.gather(
        in_order("one", "two"), in_order("two", "one"), return_exceptions=True
    )
    assert [type(each) for each in outcomes if each is not None] == [TransientError]
    assert await powers(heroes) == [1, 1]


async def test_deadlock_is_run_again(heroes: Database) -> None:
    """`run_transaction` gets both through, with one attempt more."""
    meeting = Meeting()

    async def in_order(first: str, second: str) -> None:
        async def work(session: AsyncSession) -> None:
            await strengthen(session, first)
            await meeting.join()
            await strengthen(session, second)

        await heroes.run_transaction(work)

    await asyncio.gather(in_order("one", "two"), in_order("two", "one"))
    assert await powers(heroes) == [2, 2]
    assert meeting.attempts >= 3


async def test_serialization_failure(heroes: Database) -> None:
    """Of two SERIALIZABLE transactions that read what the other writes, one must not commit."""
    meeting = Meeting()

    async def take_over(read: str, written: str) -> None:
        async with heroes.session("SERIALIZABLE") as session:
            power = (await session.exec(select(Hero.power).where(Hero.name == read))).one()
            await meeting.join()
            hero = (await session.exec(select(Hero).where(Hero.name == written))).one()
            hero.power = power + 1

    outcomes = await asyncio.gather(
        take_over("one", "two"), take_over("two", "one"), return_exceptions=True
    )
    assert [type(each) for each in outcomes if each is not None] == [TransientError]
    assert sorted(await powers(heroes)) == [0, 1]


async def test_serialization_failure_is_run_again(heroes: Database) -> None:
    """With `run_transaction` it is as if one came after the other: 1, and then 2."""
    meeting = Meeting()

    async def take_over(read: str, written: str) -> None:
        async def work(session: AsyncSession) -> None:
            power = (await session.exec(select(Hero.power).where(Hero.name == read))).one()
            await meeting.join()
            hero = (await session.exec(select(Hero).where(Hero.name == written))).one()
            hero.power = power + 1

        await heroes.run_transaction(work, isolation_level="SERIALIZABLE")

    await asyncio.gather(take_over("one", "two"), take_over("two", "one"))
    assert sorted(await powers(heroes)) == [1, 2]
    assert meeting.attempts >= 3


async def increments(database: Database, level: IsolationLevel) -> int:
    """Read, add one, write: a hundred times, by ten tasks; how many attempts it took."""
    attempts = 0

    async def work(session: AsyncSession) -> None:
        nonlocal attempts
        attempts += 1
        hero = (await session.exec(select(Hero).where(Hero.name == "one"))).one()
        hero.power += 1

    async def task() -> None:
        for _ in range(INCREMENTS // TASKS):
            await database.run_transaction(work, attempts=1000, isolation_level=level)

    await asyncio.gather(*(task() for _ in range(TASKS)))
    return attempts


async def test_contended_increments(heroes: Database, report: Report) -> None:
    """None is lost: SERIALIZABLE refuses the ones that have read an old value."""
    attempts = await increments(heroes, "SERIALIZABLE")
    assert await powers(heroes) == [INCREMENTS, 0]
    report(f"{INCREMENTS} increments by {TASKS} tasks in {attempts} attempts")


async def test_contended_increments_on_sqlite(tmp_path: Path) -> None:
    """None is lost: writers come one after the other."""
    url = URL.create("sqlite+aiosqlite", database=str(tmp_path / "app.db"))
    async with database_with_tables(url) as database:
        await two_heroes(database)
        assert await increments(database, "SERIALIZABLE") == INCREMENTS
        assert await powers(database) == [INCREMENTS, 0]
