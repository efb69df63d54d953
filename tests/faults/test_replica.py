"""A streaming standby: reads come from it, and it takes the primary's place."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlmodel import func, select

from app.db import Database
from app.models import Team
from tests.clusters import PostgresCluster, Standby, primary_and_standby

from .conftest import Report
from .harness import (
    Api,
    database_with_tables,
    names,
    new_name,
    posting,
    reading,
    under_load,
)

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]


@pytest.fixture
def pair() -> Generator[tuple[PostgresCluster, Standby]]:
    with primary_and_standby() as pair:
        yield pair


Pair = tuple[PostgresCluster, Standby]


async def store(database: Database) -> str:
    name = new_name()
    async with database.session() as session:
        session.add(Team(name=name))
    return name


async def visible(database: Database, *, primary: bool = False) -> set[str]:
    async with database.read_session(primary=primary) as session:
        return set((await session.exec(select(Team.name))).all())


async def test_reads_come_from_the_standby(pair: Pair, driver: str) -> None:
    """`read_session()` is on the standby; `session()` and `read_session(primary=True)` are not."""
    primary, standby = pair
    url, replica_url = primary.url(driver), standby.url(driver)
    on_standby = select(func.pg_is_in_recovery())
    async with database_with_tables(url, replica_url=replica_url) as database:
        async with database.read_session() as session:
            assert (await session.exec(on_standby)).one() is True
        async with database.read_session(primary=True) as session:
            assert (await session.exec(on_standby)).one() is False
        async with database.session() as session:
            assert (await session.exec(on_standby)).one() is False


@pytest.mark.parametrize("on_primary", [False, True], ids=["standby", "primary"])
async def test_a_write_in_a_read_session_is_refused(
    pair: Pair, driver: str, *, on_primary: bool
) -> None:
    """The database refuses it, and nothing is stored."""
    primary, standby = pair
    url, replica_url = primary.url(driver), standby.url(driver)
    async with database_with_tables(url, replica_url=replica_url) as database:
        standby.wait_for()
        with pytest.raises(DBAPIError, match="read-only transaction"):
            async with database.read_session(primary=on_primary) as session:
                session.add(Team(name="refused"))
                await session.flush()
        await store(database)
        assert len(names(primary)) == 1


async def test_a_standby_that_is_behind(pair: Pair, driver: str) -> None:
    """What was just written is not there yet, and is with `primary=True`."""
    primary, standby = pair
    url, replica_url = primary.url(driver), standby.url(driver)
    async with database_with_tables(url, replica_url=replica_url) as database:
        standby.wait_for()
        standby.pause()
        name = await store(database)
        assert await visible(database) == set()
        assert await visible(database, primary=True) == {name}
        standby.resume()
        standby.wait_for()
        assert await visible(database) == {name}


async def test_standby_down(pair: Pair, driver: str, tmp_path: Path) -> None:
    """Reads are 503, writes and `/health` go on; reads come back with the standby."""
    primary, standby = pair
    replica_url = standby.url(driver).render_as_string()
    with Api(primary.url(driver), tmp_path, replica_url=replica_url) as api:
        standby.wait_for()
        async with api.client() as client:

            async def statuses() -> list[int]:
                answers = await asyncio.gather(
                    client.get("/teams"),
                    client.post("/teams", json={"name": new_name()}),
                    client.get("/health"),
                )
                for answer in answers:
                    assert (answer.status_code == 503) == ("retry-after" in answer.headers)
                return [answer.status_code for answer in answers]

            assert await statuses() == [200, 201, 200]
            standby.stop()
            assert await statuses() == [503, 201, 200]
            standby.start()
            assert await statuses() == [200, 201, 200]
    assert len(names(primary)) == 3


async def test_primary_down(pair: Pair, driver: str, tmp_path: Path) -> None:
    """Reads go on, writes and `/health` are 503; they come back with the primary."""
    primary, standby = pair
    replica_url = standby.url(driver).render_as_string()
    with Api(primary.url(driver), tmp_path, replica_url=replica_url) as api:
        standby.wait_for()
        async with api.client() as client:
            created = await client.post("/teams", json={"name": "before"})
            assert created.status_code == 201
            standby.wait_for()
            primary.stop()
            listed = await client.get("/teams")
            assert [team["name"] for team in listed.json()["items"]] == ["before"]
            assert (await client.post("/teams", json={"name": "lost"})).status_code == 503
            assert (await client.get("/health")).status_code == 503
            primary.start()
            assert (await client.post("/teams", json={"name": "after"})).status_code == 201
    assert names(primary) == {"before", "after"}


def either(primary: PostgresCluster, standby: Standby, driver: str) -> URL:
    """Whichever of the two takes writes, as both drivers and SQLAlchemy understand it."""
    hosts = tuple(f"{server.host}:{server.port}" for server in (primary, standby))
    query = {"host": hosts, "target_session_attrs": "read-write"}
    return primary.url(driver).set(host=None, port=None, query=query)


async def test_failover(driver: str, tmp_path: Path, report: Report) -> None:
    """The primary crashes under load, and its synchronous standby is promoted: every answer in
    between is 503, the app finds the new primary by itself, no acknowledged write is lost.
    """
    with PostgresCluster() as primary, Standby(primary, synchronous=True) as standby:
        standby.wait_for()
        options = {"pool_size": 5, "max_overflow": 5, "connect_timeout": 2}
        with Api(either(primary, standby, driver), tmp_path, **options) as api:
            async with api.client() as client:
                async with under_load(posting(client), reading(client)) as ledger:
                    await ledger.more(50)
                    primary.stop("immediate")
                    away = ledger.answers[503]
                    await ledger.wait_for(lambda: ledger.answers[503] > away)
                    standby.promote()
                    seconds = await ledger.more(50)
                assert set(ledger.answers) == {200, 201, 503}
                assert ledger.lost(standby) == set()
    report(f"{ledger}; lost 0; first write {seconds:.2f} s after the promotion")
