"""The folder of index files. A file is complete or not there; a version's never changes."""

import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .index import FORMAT

LIMIT = 300_000_000
"""Bytes of all index files; those not used for longest go first."""

WAIT = 300.0
"""Seconds that a process waits for another one that builds."""

_OURS = re.compile(r"[a-z]+-[^-]+-[a-z]+-f(\d+)\.sqlite")

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

    def file(self, library: str, version: str, source: str) -> Path:
        return self.folder / f"{library}-{version}-{source}-f{FORMAT}.sqlite"

    def entries(self) -> Iterator[Entry]:
        """What is cached, the last used first."""
        found: list[tuple[Path, os.stat_result]] = []
        for file in self._files(f"*-f{FORMAT}.sqlite"):
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
    def alone(self) -> Generator[bool]:
        """One process at a time is within this block; the others wait. Yields False if the folder
        cannot be written: then there is nobody to wait for.
        """
        lock = self._lock()
        try:
            yield lock is not None
        finally:
            if lock:
                lock.close()

    def _lock(self) -> sqlite3.Connection | None:
        """A lock that every system has, and that ends with the process that holds it."""
        lock = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = sqlite3.connect(self.folder / "lock", timeout=WAIT, isolation_level=None)
            lock.execute("BEGIN EXCLUSIVE")
        except (OSError, sqlite3.Error):
            if lock:
                lock.close()
            return None
        return lock

    @contextmanager
    def writing(self, file: Path) -> Generator[Path]:
        """A new file to write, which gets the name `file` when the block ends without an error.

        Where the cache cannot be written it is in a temporary folder, gone with the process; the
        name it got is then `written`.
        """
        try:
            handle, name = tempfile.mkstemp(prefix=".index-", suffix=".new", dir=self.folder)
        except OSError:
            self.scratch = self.scratch or tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            handle, name = tempfile.mkstemp(suffix=".new", dir=self.scratch.name)
        os.close(handle)
        temporary = Path(name)
        temporary.unlink()  # SQLite makes it; the name is ours
        try:
            yield temporary
            temporary.replace(temporary.parent / file.name)
        finally:
            temporary.unlink(missing_ok=True)
        self._sweep(keep=file)

    def written(self, file: Path) -> Path:
        """Where the file of the last `writing` is."""
        return Path(self.scratch.name) / file.name if self.scratch else file

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


def _default() -> Path:
    name = "async-sqlmodel-docs"
    if chosen := os.environ.get("ASYNC_SQLMODEL_DOCS_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / name
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / name
