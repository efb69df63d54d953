"""PgBouncer in transaction mode: each transaction may be on another server connection."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
from collections.abc import Generator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy.exc import DBAPIError
from sqlmodel import Integer, String, func, literal_column, select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database, Unavailable
from app.models import Hero, HeroCreate, HeroUpdate, Team
from app.services import HeroService
from tests.clusters import PgBouncer, PostgresCluster

from .conftest import Report
from .harness import database_with_tables, names, new_name, storing, under_load

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

TASKS, ROUNDS, SERVER_CONNECTIONS = 24, 10, 3

prepared = select(literal_column("name", String)).select_from(text("pg_prepared_statements"))


@pytest.fixture
def pooler(primary: PostgresCluster) -> Generator[PgBouncer]:
    with PgBouncer(primary.url(), default_pool_size=SERVER_CONNECTIONS) as pooler:
        yield pooler


async def round_of_work(database: Database) -> int:
    """A bit of everything; the server process that the last part was on."""
    name = new_name()
    async with database.session() as session:
        heroes = HeroService(session)
        hero = await heroes.create(HeroCreate(name=name, secret_name="x", power=1))
        async with heroes.transaction():
            await heroes.update(hero, HeroUpdate(power=2))
        await heroes.list(id=hero.id, lock="update")
        key = hero.id
    assert key is not None

    async def strengthen(session: AsyncSession) -> None:
        await HeroService(session).update(key, HeroUpdate(power=3))

    await database.run_transaction(strengthen, isolation_level="REPEATABLE READ")
    async with database.read_session() as session:
        hero = await HeroService(session).get(key, load=("team", "apprentices"))
        assert hero.power == 3
        page = await HeroService(session).page(name__icontains=name, limit=5)
        assert [each.id for each in page.items] == [key]
        return await server_process(session)


async def server_process(session: AsyncSession) -> int:
    return (await session.exec(select(func.pg_backend_pid(type_=Integer)))).one()


async def same_statement(database: Database, times: int) -> None:
    """What psycopg prepares at the sixth time, if no read session (ROLLBACK) was between."""
    for _ in range(times):
        async with database.session() as session:
            await session.exec(select(Team))


async def mixed_workload(database: Database) -> set[int]:
    async def work() -> set[int]:
        return {await round_of_work(database) for _ in range(ROUNDS)}

    return set[int]().union(*await asyncio.gather(*(work() for _ in range(TASKS))))


async def test_mixed_workload(
    primary: PostgresCluster, pooler: PgBouncer, driver: str, report: Report
) -> None:
    """With DATABASE_POOLER no error, and nothing is left prepared on the server connections."""
    async with database_with_tables(pooler.url(driver), pooler=True, pool_size=12) as database:
        processes = await mixed_workload(database)
        await asyncio.gather(*(same_statement(database, 100) for _ in range(TASKS)))
        # It was shared: more clients than server connections, and more than one of these.
        assert 1 < len(processes) <= SERVER_CONNECTIONS
        assert primary.backends() <= SERVER_CONNECTIONS
        async with database.read_session() as session:
            assert (await session.exec(select(func.count()).select_from(Hero))).one() == (
                TASKS * ROUNDS
            )
            assert (await session.exec(select(func.min(Hero.power)))).one() == 3
        async with AsyncExitStack() as stack:  # all server connections at once
            sessions = [
                await stack.enter_async_context(database.session())
                for _ in range(SERVER_CONNECTIONS)
            ]
            assert {await server_process(session) for session in sessions} >= processes
            for session in sessions:
                assert (await session.exec(prepared)).all() == []
    report(f"{TASKS * ROUNDS} rounds on {len(processes)} server connections, no error")


async def test_without_the_setting_prepared_statements_get_lost(
    primary: PostgresCluster, driver: str
) -> None:
    """Without DATABASE_POOLER it fails, as the next transaction may be on a connection that
    has not prepared the statement, or has another one of that name.
    """
    # From 1.21 on PgBouncer can keep track of them, and by now it does by default.
    tracking = {"max_prepared_statements": "0"} if PgBouncer.version() >= (1, 21) else {}
    with PgBouncer(
        primary.url(), default_pool_size=SERVER_CONNECTIONS, settings=tracking
    ) as pooler:
        async with database_with_tables(pooler.url(driver), pool_size=12) as database:
            with pytest.raises(DBAPIError, match="prepared statement"):
                await asyncio.gather(*(same_statement(database, 100) for _ in range(TASKS)))


async def test_server_connections_killed_while_idle(
    primary: PostgresCluster, pooler: PgBouncer, driver: str
) -> None:
    """No error at all: PgBouncer and the pool replace them."""
    async with database_with_tables(pooler.url(driver), pooler=True, pool_size=5) as database:
        await asyncio.gather(*(round_of_work(database) for _ in range(5)))
        for _ in range(3):
            assert await asyncio.to_thread(primary.kill_backends) >= 1
            await asyncio.gather(*(round_of_work(database) for _ in range(5)))


async def test_server_connection_killed_in_a_transaction(
    primary: PostgresCluster, pooler: PgBouncer, driver: str
) -> None:
    """`Unavailable`; nothing of it is stored; the next session works."""
    async with database_with_tables(pooler.url(driver), pooler=True, pool_size=1) as database:
        with pytest.raises(Unavailable) as raised:
            async with database.session() as session:
                session.add(Team(name="half"))
                await session.flush()
                assert await asyncio.to_thread(primary.kill_backends) >= 1
        assert type(raised.value) is Unavailable
        assert names(primary) == set()
        await round_of_work(database)


async def test_server_restarted_behind_the_pooler(
    primary: PostgresCluster, driver: str, report: Report
) -> None:
    """While it is away `Unavailable`, after PgBouncer's `query_wait_timeout`; afterwards, and
    after its `server_login_retry`, the same pool works again.
    """
    waits = {"query_wait_timeout": "1"}  # by default 120 s: a request gives up earlier
    with PgBouncer(primary.url(), settings=waits) as pooler:
        async with database_with_tables(pooler.url(driver), pooler=True, pool_size=5) as database:
            async with under_load(storing(database), tasks=5) as ledger:
                await ledger.more(20)
                primary.stop()
                refused = ledger.answers["Unavailable"]
                await ledger.wait_for(lambda: ledger.answers["Unavailable"] >= refused + 5)
                primary.start()
                seconds = await ledger.more(20)
            assert set(ledger.answers) == {"Unavailable"}
            assert ledger.lost(primary) == set()
    report(f"{ledger}; lost 0; first write {seconds:.2f} s after the start")
