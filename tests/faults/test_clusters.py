"""The servers that the other tests break: they start, can be broken, and leave nothing."""
# ruff: noqa: PT012

import asyncio
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.clusters import (
    HOST,
    MariaDB,
    PgBouncer,
    PostgresCluster,
    Proxy,
    pgbouncer_for,
    primary_and_standby,
)
from tests.databases import Unavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:  # pytest's; the servers run as another user
            folder.chmod(folder.stat().st_mode | 0o001)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", [PostgresCluster, MariaDB])
def test_a_test_that_fails_leaves_nothing(
    kind: type[PostgresCluster] | type[MariaDB], temporary: Path
) -> None:
    server = kind()
    with pytest.raises(ZeroDivisionError), server:
        assert len(list(temporary.iterdir())) == 1
        raise ZeroDivisionError
    assert list(temporary.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))


def test_a_server_that_does_not_start_says_why(temporary: Path) -> None:
    with pytest.raises(RuntimeError, match='unrecognized configuration parameter "nonsense"'):
        PostgresCluster(settings={"nonsense": "1"}).__enter__()
    assert list(temporary.iterdir()) == []


def test_the_owner_of_the_database_is_no_superuser(primary: PostgresCluster) -> None:
    with psycopg.connect(str(primary.url(""))) as connection:
        connection.execute("CREATE TABLE mine (x int)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE ROLE other")


async def test_pgbouncer_for_any_url(primary: PostgresCluster, driver: str) -> None:
    primary.execute("CREATE DATABASE other OWNER app")
    with pgbouncer_for(primary.url(driver, database="other")) as url:
        assert url.port != primary.port
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            found = await connection.execute(text("SELECT current_user, current_database()"))
            assert found.one() == ("app", "other")
        await engine.dispose()


def test_pgbouncer_that_is_not_installed(
    primary: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(shutil, "which", nowhere)
    with pytest.raises(Unavailable, match="apt install pgbouncer"):
        PgBouncer(primary.url()).__enter__()


def test_standby_follows_and_is_promoted() -> None:
    with primary_and_standby() as (primary, standby):
        primary.execute("CREATE TABLE numbers (x int)")
        standby.wait_for()
        assert standby.execute("SELECT count(*) FROM numbers") == [(0,)]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("INSERT INTO numbers VALUES (1)")
        primary.stop("immediate")
        standby.promote()
        standby.execute("INSERT INTO numbers VALUES (1)")


async def test_proxy_holds_back_and_delivers() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with Proxy(HOST, port) as network:
            reader, writer = await asyncio.open_connection(network.host, network.port)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"

            network.stall()
            writer.write(b"two")
            answer = asyncio.create_task(reader.readexactly(3))
            done, _ = await asyncio.wait([answer], timeout=0.2)
            assert not done
            network.resume()
            assert await answer == b"two"

            network.cut_at(b"COMMIT", answered=True)
            writer.write(b"COMMIT")
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(6)
            writer.close()

            reader, writer = await asyncio.open_connection(network.host, network.port)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            network.cut()
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
            assert network.connections == 0
