"""Disks that are full, and an SQLite file that another process has locked."""
# ruff: noqa: PT012  # a unit of work that fails has several statements

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event
from sqlmodel import select

from app.db import Database, TransientError, Unavailable
from app.models import Team
from tests.clusters import MariaDB, PostgresCluster

from .harness import Api, database_with_tables, names, new_name

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

MEGABYTES = 8


async def store(database: Database, count: int = 1) -> set[str]:
    stored = {new_name() for _ in range(count)}
    async with database.session() as session:
        session.add_all([Team(name=name, headquarters="x" * 200) for name in stored])
    return stored


async def until_full(database: Database) -> set[str]:
    """Store until the database refuses; what it has acknowledged. It must be `Unavailable`."""
    acknowledged: set[str] = set()
    with pytest.raises(Unavailable) as raised:
        for _ in range(MEGABYTES * 1_000_000 // (500 * 200)):  # a row has more than 200 bytes
            acknowledged |= await store(database, 500)
    assert type(raised.value) is Unavailable  # to run it again would not help
    return acknowledged


@contextmanager
def small_disk(owner: str | None) -> Generator[Path]:
    """A file system of some megabytes."""
    folder = Path(tempfile.mkdtemp(prefix="asm-disk-"))
    mount = [
        "/bin/mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={MEGABYTES}m,mode=0777",
        "tmpfs",
        str(folder),
    ]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        if not mounted:
            pytest.skip("a small file system cannot be mounted here (needs root)")
        if owner is not None:
            shutil.chown(folder, owner)
        yield folder
    finally:
        if mounted:
            subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


async def test_postgresql_disk_full(driver: str) -> None:
    """`Unavailable`; what was acknowledged stays, and when there is room again it goes on."""
    with PostgresCluster() as primary, small_disk(primary.user) as disk:
        ballast = disk / "ballast"
        space, data = disk / "space", bytes(2_000_000)
        space.mkdir()
        if primary.user:
            shutil.chown(space, primary.user)
        ballast.write_bytes(data)
        primary.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        primary.execute("GRANT CREATE ON TABLESPACE small TO app")
        primary.execute("ALTER ROLE app SET default_tablespace = small")
        async with database_with_tables(primary.url(driver), pool_size=2) as database:
            acknowledged = await until_full(database)
            assert names(primary) == acknowledged
            async with database.read_session() as session:  # reads go on
                assert len((await session.exec(select(Team.name))).all()) == len(acknowledged)
            ballast.unlink()
            acknowledged |= await store(database, 500)
        assert names(primary) == acknowledged


async def test_mariadb_disk_full(mysql_driver: str) -> None:
    """The same, for a table space that may not grow, until it gets a second file."""
    space = "innodb-data-file-path"
    with MariaDB(settings={"innodb-file-per-table": "0", space: "ibdata1:12M"}) as server:
        async with database_with_tables(server.url(mysql_driver), pool_size=2) as database:
            acknowledged = await until_full(database)
            assert names(server) == acknowledged
            async with database.read_session() as session:  # reads go on
                assert len((await session.exec(select(Team.name))).all()) == len(acknowledged)
            server.settings[space] += ";ibdata2:12M"
            server.restart()
            acknowledged |= await store(database, 500)
        assert names(server) == acknowledged


# -- SQLite ----------------------------------------------------------------------------


def file_url(folder: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(folder / "app.db"))


def names_in(url: URL) -> set[str]:
    connection = sqlite3.connect(str(url.database))
    try:
        return {name for (name,) in connection.execute("SELECT name FROM team")}
    finally:
        connection.close()


async def test_sqlite_disk_full(tmp_path: Path) -> None:
    """The same, for a file that may not grow."""
    url = file_url(tmp_path)
    pages = 200

    async with database_with_tables(url) as database:

        @event.listens_for(database.engine.sync_engine, "begin")
        def limit(connection: Any) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        acknowledged = await until_full(database)
        assert names_in(url) == acknowledged
        pages *= 2
        acknowledged |= await store(database, 500)
    assert names_in(url) == acknowledged


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO team (name, headquarters, created_at, updated_at)"
                   " VALUES ('other', '', '2026-01-01', '2026-01-01')")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


@contextmanager
def locked(url: URL) -> Generator[subprocess.Popen[str]]:
    """Another process has a write transaction open; it commits when it gets a line."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(url.database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def release(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


@asynccontextmanager
async def waiting(database: Database) -> AsyncGenerator[asyncio.Task[set[str]]]:
    """A write that has begun to wait for the lock."""
    task = asyncio.create_task(store(database))
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done
    yield task


async def test_sqlite_lock_released_in_time(tmp_path: Path) -> None:
    """A write waits for the other process, and goes on; meanwhile reads are answered."""
    url = file_url(tmp_path)
    async with database_with_tables(url) as database:
        with locked(url) as process:
            async with waiting(database) as write:
                async with database.read_session() as session:
                    assert (await session.exec(select(Team))).all() == []
                release(process)
                stored = await write
        assert names_in(url) == stored | {"other"}


async def test_sqlite_process_with_the_lock_killed(tmp_path: Path) -> None:
    """What it had not committed is gone, and the write goes on."""
    url = file_url(tmp_path)
    async with database_with_tables(url) as database:
        with locked(url) as process:
            async with waiting(database) as write:
                process.send_signal(signal.SIGKILL)
                stored = await write
        assert names_in(url) == stored


async def test_sqlite_lock_not_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`TransientError` after `SQLITE_LOCK_TIMEOUT`; with the lock free, the next one goes on."""
    url = file_url(tmp_path)
    timeout = 1.0
    monkeypatch.setattr("app.db.database.SQLITE_LOCK_TIMEOUT", timeout)
    async with database_with_tables(url) as database:
        with locked(url) as process:
            start = time.monotonic()
            with pytest.raises(TransientError):
                await store(database)
            assert time.monotonic() - start >= timeout
            release(process)
        stored = await store(database)
        assert names_in(url) == stored | {"other"}


async def test_sqlite_locked_over_http(tmp_path: Path) -> None:
    """503 with Retry-After, for those who wait in turn as well; reads are 200."""
    url = file_url(tmp_path)
    with Api(url, tmp_path) as api:
        async with api.client() as client:
            with locked(url) as process:
                answers = await asyncio.gather(
                    *(client.post("/teams", json={"name": new_name()}) for _ in range(3)),
                    client.get("/teams"),
                )
                assert [answer.status_code for answer in answers] == [503, 503, 503, 200]
                assert {answer.headers.get("retry-after") for answer in answers[:3]} == {"1"}
                release(process)
            created = await client.post("/teams", json={"name": "mine"})
            assert created.status_code == 201
    assert names_in(url) == {"other", "mine"}
