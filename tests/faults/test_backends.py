"""Connections that the server ends: in a transaction, at COMMIT, idle in the pool."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import text
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database, Unavailable
from app.models import Team
from tests.clusters import MariaDB, PostgresCluster, Server

from .harness import database_with_tables, eventually, names, new_name

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]


async def kill(server: Server, session: AsyncSession) -> None:
    """End the session's connection, as an operator or a failing server does."""
    if isinstance(server, PostgresCluster):
        own = await session.scalar(text("SELECT pg_backend_pid()"))
        killed = await asyncio.to_thread(server.kill_backends, f"pid = {own}")
    else:
        own = await session.scalar(text("SELECT CONNECTION_ID()"))
        killed = await asyncio.to_thread(server.kill_backends, f"id = {own}")
    assert killed == 1


async def works(database: Database) -> None:
    async with database.session() as session:
        session.add(Team(name=new_name()))
    async with database.read_session() as session:
        (await session.exec(select(Team))).all()


@pytest.mark.parametrize("at_commit", [False, True], ids=["statement", "commit"])
async def test_killed_in_a_transaction(server: Server, driver: str, *, at_commit: bool) -> None:
    """`Unavailable`, not `TransientError`; nothing of it is stored; the next session works."""
    async with database_with_tables(server.url(driver), pool_size=1, max_overflow=0) as database:
        with pytest.raises(Unavailable) as raised:
            async with database.session() as session:
                session.add(Team(name="half"))
                await session.flush()
                await kill(server, session)
                if not at_commit:
                    session.add(Team(name="the other half"))
                    await session.flush()
        assert type(raised.value) is Unavailable
        assert names(server) == set()
        await works(database)


async def test_killed_in_a_read_session(server: Server, driver: str) -> None:
    """At most `Unavailable`; the next session works."""
    async with database_with_tables(server.url(driver), pool_size=1, max_overflow=0) as database:
        try:
            async with database.read_session() as session:
                await kill(server, session)
        except Unavailable:
            pass
        with pytest.raises(Unavailable):
            async with database.read_session() as session:
                await kill(server, session)
                await session.exec(select(Team))
        await works(database)


async def test_a_lost_connection_is_not_tried_again(server: Server, driver: str) -> None:
    """`run_transaction` runs the callback once: the COMMIT may have reached the database."""
    runs = 0

    async def work(session: AsyncSession) -> None:
        nonlocal runs
        runs += 1
        session.add(Team(name="once"))
        await session.flush()
        await kill(server, session)

    async with database_with_tables(server.url(driver)) as database:
        with pytest.raises(Unavailable):
            await database.run_transaction(work)
    assert runs == 1


async def fill(database: Database, connections: int) -> None:
    """Leave that many idle connections in the pool."""
    async with AsyncExitStack() as stack:
        for _ in range(connections):
            session = await stack.enter_async_context(database.read_session())
            await session.exec(select(Team))


async def test_killed_while_idle(server: Server, driver: str) -> None:
    """No error at all: each connection is asked, and replaced, before it is used."""
    async with database_with_tables(server.url(driver), pool_size=5, max_overflow=0) as database:
        await fill(database, 5)
        assert await asyncio.to_thread(server.kill_backends) == 5
        await asyncio.gather(*(works(database) for _ in range(20)))
        assert len(names(server)) == 20
        assert server.backends() <= 5


async def test_restarted_while_idle(server: Server, driver: str) -> None:
    """No error at all, as above, also where the whole server was away."""
    async with database_with_tables(server.url(driver), pool_size=5, max_overflow=0) as database:
        await fill(database, 5)
        await asyncio.to_thread(server.restart)
        await asyncio.gather(*(works(database) for _ in range(20)))
        assert len(names(server)) == 20


async def test_closed_by_the_server_after_its_idle_timeout(server: Server, driver: str) -> None:
    """No error at all (MariaDB: `wait_timeout`, PostgreSQL: `idle_session_timeout`)."""
    if isinstance(server, MariaDB):
        server.execute("SET GLOBAL wait_timeout = 1")
    else:
        server.configure(idle_session_timeout="200ms")
    async with database_with_tables(server.url(driver), pool_size=3, max_overflow=0) as database:
        await fill(database, 3)
        await eventually(lambda: server.backends() == 0)
        await asyncio.gather(*(works(database) for _ in range(10)))
        assert len(names(server)) == 10


async def test_idle_in_a_transaction_for_too_long(primary: PostgresCluster, driver: str) -> None:
    """`Unavailable`, as the server has ended it (`idle_in_transaction_session_timeout`)."""
    primary.configure(idle_in_transaction_session_timeout="200ms")
    async with database_with_tables(primary.url(driver), pool_size=1, max_overflow=0) as database:
        with pytest.raises(Unavailable) as raised:
            async with database.session() as session:
                session.add(Team(name="slow"))
                await session.flush()
                await eventually(lambda: primary.backends() == 0)
        assert type(raised.value) is Unavailable
        assert names(primary) == set()
        await works(database)
