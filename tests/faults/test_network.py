"""A network that swallows, delays and cuts, between the layer and its server."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database, Unavailable
from app.db.database import CLOSE_TIMEOUT
from app.models import Team
from tests.clusters import Proxy, Server

from .conftest import Report
from .harness import Api, database_with_tables, eventually, names

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

REQUEST_TIMEOUT = 2.0
# An answer comes after REQUEST_TIMEOUT and not after the 10 s of connect_timeout and
# pool_timeout; the seconds between are for a loaded machine.
MARGIN = 6.0


@pytest.fixture
def network(server: Server) -> Generator[Proxy]:
    with Proxy(server.host, server.port) as network:
        yield network


def checked_out(database: Database) -> int:
    pool = database.engine.pool
    assert isinstance(pool, AsyncAdaptedQueuePool)
    return pool.checkedout()


@asynccontextmanager
async def limit(seconds: float) -> AsyncGenerator[None]:
    """As `web.py` does it for a request: drivers that are slow to cancel are told twice."""
    async with asyncio.timeout(seconds + 0.3), asyncio.timeout(seconds):
        yield


@pytest.mark.parametrize("warm", [True, False], ids=["pooled", "connecting"])
async def test_stalled(
    server: Server, driver: str, network: Proxy, tmp_path: Path, report: Report, *, warm: bool
) -> None:
    """503 within `request_timeout`, whether a pooled connection is asked or a new one made;
    afterwards the pool is whole, and the server has no connection that the pool has not.
    """
    options = {"request_timeout": REQUEST_TIMEOUT, "pool_size": 3, "max_overflow": 0}
    url = network.url(server.url(driver))
    with Api(url, tmp_path, **options) as api:
        async with api.client() as client:

            async def post(count: int) -> list[int]:
                answers = await asyncio.gather(
                    *(client.post("/teams", json={"name": f"{count} {i}"}) for i in range(count))
                )
                return [answer.status_code for answer in answers]

            if warm:
                assert await post(3) == [201] * 3
            else:  # what the start had opened is closed
                await asyncio.to_thread(server.kill_backends)
            stored = names(server)

            network.stall()
            start = time.monotonic()
            assert await post(8) == [503] * 8  # of which 5 wait for the pool
            seconds = time.monotonic() - start
            assert seconds < REQUEST_TIMEOUT + MARGIN
            assert names(server) == stored

            network.resume()
            start = time.monotonic()
            await eventually(lambda: httpx.get(f"{api.url}/health").status_code == 200)
            again = time.monotonic() - start
            assert await post(20) == [201] * 20
            await eventually(lambda: server.backends() <= 3)
    report(f"503 after {seconds:.1f} s, of {REQUEST_TIMEOUT:g}; back {again:.2f} s after it")


async def test_close_does_not_wait_for_a_dead_network(
    server: Server, driver: str, network: Proxy
) -> None:
    """The lifespan ends in `CLOSE_TIMEOUT`, so that SIGTERM does; at once with most drivers."""
    url = network.url(server.url(driver))
    async with asyncio.timeout(CLOSE_TIMEOUT + MARGIN):
        async with database_with_tables(url) as database:
            async with database.session() as session:
                await session.exec(select(Team))
            network.stall()
    assert checked_out(database) == 0


async def test_stalled_in_a_statement(server: Server, driver: str, network: Proxy) -> None:
    """A cancelled session gives its connection up at once: the pool has it to give again."""
    url = network.url(server.url(driver))
    async with database_with_tables(url, pool_size=1, max_overflow=0) as database:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with database.session() as session:
                    session.add(Team(name="half"))
                    await session.flush()
                    network.stall()
                    async with limit(0.2):
                        await session.exec(select(Team))
            assert checked_out(database) == 0
            network.resume()
            async with asyncio.timeout(MARGIN), database.read_session() as session:
                await session.exec(select(Team))
        assert names(server) == set()
        await eventually(lambda: server.backends() <= 1)


async def test_delayed(server: Server, driver: str, network: Proxy) -> None:
    """A slow network is slow, and nothing else."""
    async with database_with_tables(network.url(server.url(driver))) as database:
        network.delay(0.05)

        async def store(name: str) -> None:
            async with database.session() as session:
                session.add(Team(name=name))

        start = time.monotonic()
        await asyncio.gather(*(store(f"team {number}") for number in range(10)))
        # BEGIN, INSERT, COMMIT: at least two answers, each with two delays.
        assert time.monotonic() - start > 4 * 0.05
    assert len(names(server)) == 10


@pytest.mark.parametrize("answered", [True, False], ids=["answer-lost", "commit-lost"])
async def test_cut_at_commit(
    server: Server, driver: str, network: Proxy, *, answered: bool
) -> None:
    """`Unavailable`, as nobody knows. All of the transaction is stored where the COMMIT got
    through, nothing of it where not. It is not tried again; the next session works.
    """
    url = network.url(server.url(driver))
    async with database_with_tables(url, pool_size=1, max_overflow=0) as database:
        runs = 0

        async def both(session: AsyncSession) -> None:
            nonlocal runs
            runs += 1
            session.add_all([Team(name="one"), Team(name="two")])
            await session.flush()
            network.cut_at(b"COMMIT", answered=answered)

        with pytest.raises(Unavailable) as raised:
            await database.run_transaction(both)
        assert type(raised.value) is Unavailable
        assert runs == 1
        await eventually(lambda: server.backends() == 0)  # what it had begun is rolled back
        assert names(server) == ({"one", "two"} if answered else set())

        async with database.session() as session:
            session.add(Team(name="three"))
        assert "three" in names(server)


async def test_stalled_at_commit(server: Server, driver: str, network: Proxy) -> None:
    """All of it is stored or nothing, also when the network delivers the COMMIT later."""
    async with database_with_tables(
        network.url(server.url(driver)), pool_size=1, max_overflow=0
    ) as database:

        @event.listens_for(database.engine.sync_engine, "commit")
        def stall(_connection: object) -> None:
            network.stall()

        with pytest.raises(TimeoutError):
            async with limit(0.5), database.session() as session:
                session.add_all([Team(name="one"), Team(name="two")])
        assert checked_out(database) == 0
        event.remove(database.engine.sync_engine, "commit", stall)
        network.resume()
        await eventually(lambda: server.backends() == 0)
        assert names(server) in ({"one", "two"}, set())

        async with database.session() as session:
            session.add(Team(name="three"))
        assert "three" in names(server)
