"""Each test breaks servers of its own: `python -m pytest tests/faults`, on two cores 4 minutes.

A docstring says what the layer promises. What was lost is counted: whatever was acknowledged,
by a 2xx answer or by a `session()` block that ended, has to be there afterwards.
"""

import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.clusters import MariaDB, PostgresCluster, Server
from tests.databases import Unavailable, required
from tests.mdtest.plugin import wanted

HERE = Path(__file__).parent
SECONDS = 150  # for one test; PATIENCE for one step is shorter, and says more
sys.path.insert(0, str(HERE.parents[1] / "assets" / "example"))

# Nothing of the app is imported here: a run of the whole suite loads this file as well, and its
# other tests have tables of their own.
SERVERS: dict[str, Callable[[], Server]] = {"postgresql": PostgresCluster, "mysql": MariaDB}
DRIVERS = {
    "asyncpg": "postgresql",
    "psycopg": "postgresql",
    "aiomysql": "mysql",
    "asyncmy": "mysql",
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Only for who asks for this folder: a run of the whole suite leaves it out."""
    asked = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    if any(path.is_relative_to(HERE) for path in asked):
        return None  # what pytest says
    return collection_path.is_relative_to(HERE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `driver` argument runs once on each: with `server` all, else PostgreSQL's."""
    databases = wanted(metafunc)
    drivers = [driver for driver, database in DRIVERS.items() if database in databases]
    names = metafunc.fixturenames
    if "mysql_driver" in names:
        metafunc.parametrize("mysql_driver", [each for each in drivers if DRIVERS[each] == "mysql"])
    elif "driver" in names:
        every = "server" in names
        metafunc.parametrize(
            "driver", [each for each in drivers if every or DRIVERS[each] == "postgresql"]
        )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a .env of this folder nor DATABASE_* of this shell reaches a test."""
    for name in [name for name in os.environ if name.startswith("DATABASE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that hangs fails, with the place where it does. Again and again: what a cancelled
    task does at its end may hang as well.
    """

    def fail(*_: object) -> None:
        raise TimeoutError(f"{item.name} took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 5)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A server that is not installed skips the test, unless its database is required."""
    return (yield from _skipping(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _skipping(item))


def _skipping(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except Unavailable as error:
        if _database(item) in required():
            raise
        pytest.skip(str(error))


def _database(item: pytest.Item) -> str:
    call = getattr(item, "callspec", None)
    drivers = [DRIVERS[each] for each in call.params.values() if each in DRIVERS] if call else []
    return drivers[0] if drivers else "postgresql"


@pytest.fixture
def server(driver: str) -> Generator[Server]:
    """A server of the driver's kind, which belongs to this test."""
    with SERVERS[DRIVERS[driver]]() as server:
        yield server


@pytest.fixture
def primary() -> Generator[PostgresCluster]:
    """A PostgreSQL, which belongs to this test."""
    with PostgresCluster() as primary:
        yield primary


Report = Callable[[str], None]


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Print a line of figures at the end of the run."""
    return lambda line: record_property("report", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"{test.nodeid.rpartition('::')[2]}: {line}"
        for test in terminalreporter.getreports("passed")
        for name, line in test.user_properties
        if name == "report"
    ]
    if lines:
        terminalreporter.section("what was counted")
        terminalreporter.write_line("\n".join(lines))
