"""The folder of index files. A file is complete or not there; a version's never changes."""

import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .index import FORMAT

LIMIT = 300_000_000
"""Bytes of all index files; those not used for longest go first."""

WAIT = 300.0
"""Seconds that a process waits for another one that builds."""

_OURS = re.compile(r"[a-z]+-[^-]+-[a-z0-9]+-f(\d+)\.sqlite")

STALE = 3600.0
"""Seconds after which a file that was not finished never will be."""


@dataclass(frozen=True, slots=True)
class Entry:
    file: Path
    library: str
    version: str
    source: str
    bytes: int
    age: float
    """Seconds since it was built or last confirmed."""


class Cache:
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or _default()
        self.scratch: tempfile.TemporaryDirectory[str] | None = None
        self.written = Path()
        """Where the file of the last `writing` is."""

    def file(self, library: str, version: str, source: str) -> Path:
        return self.folder / f"{library}-{version}-{source}-f{FORMAT}.sqlite"

    def entries(self) -> Iterator[Entry]:
        """What is cached, the last used first."""
        found: list[tuple[Path, os.stat_result]] = []
        for file in self._files(f"*-*-*-f{FORMAT}.sqlite"):
            with suppress(FileNotFoundError):  # another process swept it
                found.append((file, file.stat()))
        for file, stat in sorted(found, key=lambda each: -each[1].st_atime):
            library, version, source, _ = file.name.rsplit("-", 3)
            yield Entry(file, library, version, source, stat.st_size, time.time() - stat.st_mtime)

    def used(self, file: Path) -> None:
        """Remembers when a file was used: reading alone does not, on most systems."""
        with suppress(OSError):
            os.utime(file, (time.time(), file.stat().st_mtime))

    @contextmanager
    def alone(self, say: Callable[[str], None] = lambda _: None) -> Generator[bool]:
        """One process at a time is within this block; the others wait, and `say` so. Yields False
        if the folder cannot be written: then there is nobody to wait for.
        """
        lock = self._lock(say)
        try:
            yield lock is not None
        finally:
            if lock:
                lock.close()

    def _lock(self, say: Callable[[str], None]) -> sqlite3.Connection | None:
        """A lock that every system has, and that ends with the process that holds it."""
        lock = None
        waited = 0.0
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = sqlite3.connect(self.folder / "lock", timeout=0, isolation_level=None)
            while not _taken(lock):
                if not waited:
                    say("waiting for another process that builds")
                if waited > WAIT:
                    raise OSError(f"no lock in {WAIT} s")
                time.sleep(0.1)  # not SQLite's own waiting, which Ctrl-C does not end
                waited += 0.1
        except (OSError, sqlite3.Error):
            if lock:
                lock.close()
            return None
        return lock

    @contextmanager
    def writing(self, file: Path) -> Generator[Path]:
        """A new file to write, which gets the name `file` when the block ends without an error.

        Where the cache cannot be written it is in a temporary folder, gone with the process; then
        `written` says where.
        """
        self.written = file
        try:
            handle, name = tempfile.mkstemp(prefix=".index-", suffix=".new", dir=self.folder)
        except OSError:
            self.scratch = self.scratch or tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            self.written = Path(self.scratch.name) / file.name
            handle, name = tempfile.mkstemp(suffix=".new", dir=self.scratch.name)
        os.close(handle)
        temporary = Path(name)
        temporary.unlink()  # SQLite makes it; the name is ours
        try:
            yield temporary
            temporary.replace(self.written)
        finally:
            temporary.unlink(missing_ok=True)
        self._sweep(keep=file)

    def _sweep(self, keep: Path) -> None:
        """Other formats, what a killed process left, and the least used beyond the limit."""
        # Only names of ours: the folder may hold somebody's databases as well.
        old = [
            file
            for file in self._files("*-*-*-f*.sqlite")
            if (match := _OURS.fullmatch(file.name)) and match[1] != str(FORMAT)
        ]
        for file in self._files(".index-*.new"):
            with suppress(OSError):
                old += [file] if time.time() - file.stat().st_mtime > STALE else []
        total = 0
        for entry in self.entries():
            total += entry.bytes
            if total > LIMIT and entry.file != keep:
                old.append(entry.file)
        for file in old:
            with suppress(OSError):  # in use, on Windows
                file.unlink()

    def _files(self, pattern: str) -> list[Path]:
        with suppress(OSError):
            return list(self.folder.glob(pattern))
        return []


def _taken(lock: sqlite3.Connection) -> bool:
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _default() -> Path:
    name = "async-sqlmodel-docs"
    if chosen := os.environ.get("ASYNC_SQLMODEL_DOCS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / name
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / name
