"""The example app under uvicorn, behind it PgBouncer in transaction mode and PostgreSQL.

These are the numbers that the guide recommends; each is there for a reason:

- the app: `DATABASE_POOLER=true`, 2 workers x `DATABASE_POOL_SIZE=20`, `DATABASE_MAX_OVERFLOW=0`.
  A connection to PgBouncer is cheap, so all are kept; one beyond the pool would be made anew for
  every request that wants it.
- PgBouncer: `max_client_conn=200`, more than the 40 that the workers open together, with room
  for a deployment where old and new workers overlap. `default_pool_size=20` server connections
  for 40 clients: few backends that are busy beat many that wait for the same cores.
  `server_login_retry=1` second. With its default the app answered 503 for 15 s after a restart
  that took less than one.
- PostgreSQL: `max_connections=100` (the default), above PgBouncer's 20 and what is connected past
  it. fsync and synchronous_commit are on: what was acknowledged is on the disk.
"""

import asyncio
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from app.db import Database
from app.models import Hero
from tests.clusters import HOST, PgBouncer, PostgresCluster, free_port

WORKERS = 2
POOL_SIZE = 20  # of each worker
SERVER_CONNECTIONS = 20  # of PgBouncer
CLIENT_CONNECTIONS = 200
START_SECONDS = END_SECONDS = 60  # generous: the machine may have other work


def pgbouncer(cluster: PostgresCluster) -> PgBouncer:
    return PgBouncer(
        cluster.url(),
        default_pool_size=SERVER_CONNECTIONS,
        max_client_conn=CLIENT_CONNECTIONS,
        settings={"server_login_retry": "1"},
    )


def create_tables(url: URL) -> None:
    async def create() -> None:
        async with Database(url) as database:
            await database.create_tables(Hero.metadata)

    asyncio.run(create())


class App:
    """The example app in uvicorn's processes, until the block ends or `stop` is called."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self._log = process, port, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def started(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the app did not start:\n{self.log[-2000:]}")
        return self.log.count("Application startup complete") == WORKERS

    def health(self) -> None:
        urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=30).close()

    def stop(self) -> None:
        """SIGTERM, and wait until all of its processes have ended."""
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RuntimeError(f"the app ignores SIGTERM:\n{self.log[-2000:]}") from None


@contextmanager
def serving(url: URL, folder: Path) -> Generator[App]:
    """Start it, and wait until every worker listens.

    Args:
        url: of the database, through PgBouncer.
        folder: for its log, and without a `.env`, which the app would read.
    """
    port, log = free_port(), folder / "app.log"
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--host", HOST]
    command += ["--port", str(port), "--workers", str(WORKERS), "--no-access-log"]
    clean = {name: each for name, each in os.environ.items() if not name.startswith("DATABASE_")}
    settings = {
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "DATABASE_POOLER": "true",
        "DATABASE_POOL_SIZE": str(POOL_SIZE),
        "DATABASE_MAX_OVERFLOW": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),  # the same packages; the app is one of them
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=clean | settings, cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
    server = App(process, port, log)
    try:
        if not wait_until(server.started, START_SECONDS):
            raise RuntimeError(f"the app did not start:\n{server.log[-2000:]}")
        server.health()
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
