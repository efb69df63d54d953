"""The example app as a process, load on it, and a ledger of what it has acknowledged."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self
from uuid import uuid4

import httpx
from sqlalchemy import URL

from app.db import Database, DatabaseSettings, Unavailable
from app.models import Team
from tests.clusters import HOST, Server, Standby, free_port

EXAMPLE = Path(__file__).parents[2] / "assets" / "example"

CREATED, OK = 201, 200

# For what is bounded by nothing but the machine: a test fails there, and does not hang.
PATIENCE = 60.0


def settings(url: URL, **options: object) -> DatabaseSettings:
    return DatabaseSettings.model_validate({"url": url, **options})


@asynccontextmanager
async def database_with_tables(url: URL, **options: object) -> AsyncGenerator[Database]:
    """The layer itself, with the tables of the example app."""
    async with Database(settings(url, create_tables=True, **options)) as database:
        yield database


class Api:
    """The example app, served by uvicorn in a process of its own.

    Args:
        url: its database, where it creates its tables.
        folder: where it runs; its output goes there.
        settings: more of `DATABASE_*`, in lower case.
    """

    def __init__(self, url: URL, folder: Path, **settings: object) -> None:
        self.url = f"http://{HOST}:{free_port()}"
        self._folder = folder
        given = {"url": url.render_as_string(hide_password=False), "create_tables": "true"}
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PYTHONPATH": str(EXAMPLE),
            **{
                f"DATABASE_{name.upper()}": str(value) for name, value in (given | settings).items()
            },
        }

    def __enter__(self) -> Self:
        with (self._folder / "uvicorn.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "uvicorn", "app.main:app"),
                    *("--host", HOST, "--port", self.url.rpartition(":")[2]),
                    *("--log-level", "warning"),
                ],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                httpx.get(f"{self.url}/openapi.json")
            except httpx.TransportError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"uvicorn did not start:\n{self.log}") from None
                time.sleep(0.05)
            else:
                return

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None)
        )

    def terminate(self) -> None:
        """Ask it to end, as a process manager does."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        return self._process.wait(PATIENCE)

    @property
    def log(self) -> str:
        return (self._folder / "uvicorn.log").read_text(errors="replace")


# -- load ------------------------------------------------------------------------------


class Ledger:
    """What was acknowledged, and what else was answered.

    Attributes:
        acknowledged: the names that must be stored.
        answers: how often each status code, or class of error, came.
    """

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.answers: Counter[int | str] = Counter()
        self._changed = asyncio.Event()

    def acknowledge(self, name: str) -> None:
        self.acknowledged.add(name)
        self._changed.set()

    def count(self, answer: int | str) -> None:
        self.answers[answer] += 1
        self._changed.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something that was counted makes it true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def more(self, count: int) -> float:
        """Wait for that many more acknowledged writes; the seconds until the first one."""
        start, before = time.monotonic(), len(self.acknowledged)
        await self.wait_for(lambda: len(self.acknowledged) > before)
        seconds = time.monotonic() - start
        await self.wait_for(lambda: len(self.acknowledged) >= before + count)
        return seconds

    def lost(self, server: Server | Standby) -> set[str]:
        """What was acknowledged, and is not there."""
        return self.acknowledged - names(server)

    def __str__(self) -> str:
        answers = ", ".join(f"{answer}: {count}" for answer, count in self.answers.items())
        return f"{len(self.acknowledged)} writes acknowledged; answers {answers}"


Step = Callable[[Ledger], Awaitable[None]]


@asynccontextmanager
async def under_load(*steps: Step, tasks: int = 8) -> AsyncGenerator[Ledger]:
    """Run each step again and again in that many tasks, until the block ends."""
    ledger, ended = Ledger(), asyncio.Event()

    async def repeat(step: Step) -> None:
        while not ended.is_set():
            await step(ledger)

    async with asyncio.TaskGroup() as group:
        for step in steps * tasks:
            group.create_task(repeat(step))
        try:
            yield ledger
        finally:
            ended.set()


def posting(client: httpx.AsyncClient) -> Step:
    """A team, over HTTP. What else than 201 or 503 comes is counted, for the test to refuse."""

    async def step(ledger: Ledger) -> None:
        name = new_name()
        answer = await client.post("/teams", json={"name": name})
        ledger.count(answer.status_code)
        if answer.status_code == CREATED:
            ledger.acknowledge(name)
        else:
            await retry_after(answer)

    return step


def reading(client: httpx.AsyncClient) -> Step:
    """A page of teams, over HTTP."""

    async def step(ledger: Ledger) -> None:
        answer = await client.get("/teams", params={"limit": 5})
        ledger.count(answer.status_code)
        if answer.status_code != OK:
            await retry_after(answer)

    return step


def storing(database: Database) -> Step:
    """A team, through the layer."""

    async def step(ledger: Ledger) -> None:
        name = new_name()
        try:
            async with database.session() as session:
                session.add(Team(name=name))
        except Unavailable as error:
            ledger.count(type(error).__name__)
            await asyncio.sleep(0.02)
        else:
            ledger.acknowledge(name)

    return step


async def retry_after(answer: httpx.Response) -> None:
    """Be a client that waits a little, though not as long as it is asked to."""
    assert answer.headers.get("retry-after") == "1", answer.text
    await asyncio.sleep(0.02)


def new_name() -> str:
    return uuid4().hex


def names(server: Server | Standby) -> set[str]:
    """The teams that are stored."""
    return {name for (name,) in server.execute("SELECT name FROM team")}


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until a server has come to what it does in its own time."""
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.02)
