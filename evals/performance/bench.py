"""Measure ServiceBase and its peers: `make bench`, or `make bench ARGS='--quick'`.

All run in one process, in rounds, in random order; a figure is the median over the rounds of the
ratio to the raw ORM in the same round. CPU is that of this process and, for a PostgreSQL on this
machine, of the server's processes for its connections. Every result is checked before it is
timed, in the table too; a wrong one gets a footnote. Writes are undone between measurements.

A PostgreSQL of its own is started, unless ASYNC_SQLMODEL_POSTGRES_URL names one where databases
may be created. The report and the plot are also written to `.bench/`.
"""

import argparse
import asyncio
import gc
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqlalchemy import event, text

from app.db import Database
from tests.databases import Servers

from .contestants import CONTESTANTS, Contestant
from .report import Cell, Results, markdown, plot
from .workload import Data, Operation, contents, is_postgresql, operations, stored

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / ".bench"
DATABASES = ("sqlite", "postgresql")
ROUNDS, BULK_ROUNDS, PEAK_ROUNDS = 15, 7, 3
SEED = 2026


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# --- measuring ------------------------------------------------------------------------


@dataclass(frozen=True)
class Clock:
    """CPU seconds of this process, and of the server's processes for its connections."""

    servers: tuple[Path, ...]

    @classmethod
    async def of(cls, db: Database) -> "Clock":
        if not is_postgresql(db):
            return cls(())
        async with db.engine.connect() as connection:
            mine = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
            pids = (await connection.scalars(mine)).all()
        name = str(db.engine.url.database).encode()
        processes = [Path(f"/proc/{pid}") for pid in pids]
        here = [each for each in processes if _command(each).find(name) >= 0]
        return cls(tuple(each / "schedstat" for each in here))

    def cpu(self) -> float:
        server = sum(int(each.read_text().split()[0]) for each in self.servers)
        return time.process_time() + server / 1e9


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # the server is on another machine, or this is not Linux
        return b""


@contextmanager
def counted(db: Database) -> Generator[list[str]]:
    """The statements that are sent in the block."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    event.listen(db.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(db.engine.sync_engine, "before_cursor_execute", note)


class Bench:
    """The measurements on one database."""

    def __init__(self, db: Database, data: Data, options: argparse.Namespace) -> None:
        self.db, self.data, self.options = db, data, options
        self.contestants: dict[str, Contestant] = {}
        self.missing: dict[str, str] = {}
        self.random = random.Random(SEED)  # noqa: S311 - the order of rounds
        for name, contestant in CONTESTANTS.items():
            try:
                self.contestants[name] = contestant(db, data.heroes)
            except ImportError as error:
                self.missing[name] = f"not installed ({error})"

    async def run(self, chosen: list[Operation]) -> Results:
        """Measure these operations."""
        results: Results = {}
        gc.collect()
        gc.freeze()  # the expected rows are not the libraries' garbage to look through
        for operation in chosen:
            say(f"{self.db.engine.dialect.name}: {operation.title}")
            cells = {name: await self._check(name, operation) for name in CONTESTANTS}
            await self._measure(operation, cells)
            results[operation.name] = cells
        return results

    async def _check(self, name: str, operation: Operation) -> Cell:
        """Call once, look at the result and count the statements."""
        if name in self.missing:
            return Cell(status="not installed", note=self.missing[name])
        contestant = self.contestants[name]
        if not hasattr(contestant, operation.method):
            return Cell(status="-")
        cell = Cell(note=contestant.notes.get(operation.method, ""))
        call = getattr(contestant, operation.method)
        try:
            await contestant.before(operation.method)
            with counted(self.db) as statements:
                result = await call(*operation.arguments(0))
            cell.statements = len(statements)
            cell.wrong = difference(operation.seen(result), operation.returns(0))
            if operation.writes and not cell.wrong:
                cell.wrong = await self._difference_in_table(operation)
        except Exception as error:
            missing = isinstance(error, AttributeError)
            cell.status = "not there" if missing else "fails"
            cell.note = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if operation.writes:
            await self.data.undo(self.db)
        return cell

    async def _difference_in_table(self, operation: Operation) -> str:
        assert operation.writes is not None
        expected = contents(self.data.heroes.values()) | contents(operation.writes(0))
        wrong = difference(await stored(self.db), expected)
        return wrong and f"in the table: {wrong}"

    async def _measure(self, operation: Operation, cells: dict[str, Cell]) -> None:
        names = [name for name, cell in cells.items() if not cell.status]
        calls = max(1, operation.calls // 3) if self.options.quick else operation.calls
        clock = await Clock.of(self.db)
        for number in range(self._rounds(operation)):
            self.random.shuffle(names)
            for name in names:
                call = getattr(self.contestants[name], operation.method)
                arguments = [operation.arguments(number * calls + n) for n in range(calls)]
                gc.collect()
                cpu, wall = clock.cpu(), time.perf_counter()
                for each in arguments:
                    await call(*each)
                cells[name].wall.append((time.perf_counter() - wall) / calls)
                cells[name].cpu.append((clock.cpu() - cpu) / calls)
                if operation.writes:
                    await self.data.undo(self.db)
            say(f"  round {number + 1} of {self._rounds(operation)}")

    def _rounds(self, operation: Operation) -> int:
        rounds = BULK_ROUNDS if operation.bulk else ROUNDS
        return int(self.options.rounds or (rounds // 4 if self.options.quick else rounds))


def difference(found: Any, expected: Any) -> str:
    """Empty, or the first difference in words."""
    if found == expected:
        return ""
    if expected.__class__ is dict:
        codes = sorted({*found, *expected})
        found, expected = ([each.get(code) for code in codes] for each in (found, expected))
    if expected.__class__ is list:
        if len(found) != len(expected):
            return f"{len(found)} rows in place of {len(expected)}"
        pairs = zip(found, expected, strict=True)
        found, expected = next((one, other) for one, other in pairs if one != other)
    if found.__class__ is expected.__class__ is tuple and len(found) == len(expected):
        found, expected = zip(
            *((one, other) for one, other in zip(found, expected, strict=True) if one != other),
            strict=True,
        )
    return f"{found!r:.120} in place of {expected!r:.120}"


# --- peak memory, in a process of its own ---------------------------------------------


async def peak(url: str, name: str) -> float:
    """MiB above the start that `stream` takes at its highest."""
    async with Database(url) as db:
        contestant: Any = CONTESTANTS[name](db, {})
        await contestant.find(0)  # connections, caches
        gc.collect()
        before = _reset_peak()
        await contestant.stream()
        return (_memory("VmHWM") - before) / 1024


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_peaks(url: str, cells: dict[str, Cell], rounds: int) -> None:
    """Fill in `peak`, the median of some processes."""
    if not Path("/proc/self/clear_refs").exists():
        say("peak memory needs Linux; left out")
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, cell in cells.items():
        if cell.status or not CONTESTANTS[name].title:
            continue
        say(f"  peak memory of {name}")
        command = [sys.executable, "-m", "evals.performance.bench", "--peak", name, "--url", url]
        answers = [
            subprocess.run(
                command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
            )
            for _ in range(rounds)
        ]
        cell.peak = statistics.median(float(answer.stdout) for answer in answers)


# --- the run --------------------------------------------------------------------------


async def bench(url: Any, data: Data, options: argparse.Namespace) -> Results:
    """Measure on an empty database."""
    chosen = [each for each in operations(data) if each.name in options.operations]
    async with Database(url) as db:
        say(f"{db.engine.dialect.name}: creating {len(data.heroes)} heroes")
        await data.create(db)
        results = await Bench(db, data, options).run(chosen)
    if "stream" in results:
        text_url = url.render_as_string(hide_password=False)
        measure_peaks(text_url, results["stream"], 1 if options.quick else PEAK_ROUNDS)
    return results


def versions() -> str:
    names = ["sqlalchemy", "sqlmodel", "asyncpg", "aiosqlite"]
    names += [each.package for each in CONTESTANTS.values() if each.package]
    found: list[str] = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"Python {sys.version.split()[0]}, " + ", ".join(found)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [operation.name for operation in operations(Data())]
    parser = argparse.ArgumentParser(
        prog="make bench ARGS='...'",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--databases", type=choices(DATABASES), default=DATABASES, help=",".join(DATABASES)
    )
    parser.add_argument("--operations", type=choices(names), default=names, help=",".join(names))
    parser.add_argument(
        "--rounds", type=positive, help=f"of each operation; {ROUNDS} or {BULK_ROUNDS}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and calls: a look only")
    parser.add_argument("--peak", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def choices(known: Any) -> Callable[[str], list[str]]:
    """An argument that is one or more of these names, with commas."""

    def parse_names(value: str) -> list[str]:
        names = value.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse_names


def stop(number: int, _frame: object) -> None:
    """End as by Ctrl-C: the server and the folder go, too."""
    sys.exit(128 + number)


def main() -> None:
    """Run, print the tables, write them and the plot."""
    options = parse()
    if options.peak:
        print(asyncio.run(peak(options.url, options.peak)))
        return
    signal.signal(signal.SIGTERM, stop)
    started = time.monotonic()
    data, servers = Data(), Servers()
    chosen = [each for each in operations(data) if each.name in options.operations]
    results: dict[str, Results] = {}
    with tempfile.TemporaryDirectory(prefix="asm-bench-") as folder:
        for database in options.databases:
            url = servers.create(database, Path(folder))
            try:
                results[database] = asyncio.run(bench(url, data, options))
            finally:
                servers.drop(url)
    OUTPUT.mkdir(exist_ok=True)
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    minutes = (time.monotonic() - started) / 60
    header = f"{versions()}; {os.cpu_count()} CPUs, load {load}; {minutes:.1f} minutes"
    report = markdown(header, chosen, results)
    (OUTPUT / "results.md").write_text(report)
    print(report)
    problem = plot(OUTPUT / "results.png", chosen, results)
    say(problem or f"Written: {OUTPUT.name}/results.md, {OUTPUT.name}/results.png")


if __name__ == "__main__":
    main()
