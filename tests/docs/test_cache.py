"""The cache folder: complete files or none, whoever else is there."""

import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from docsearch import Section, cache
from docsearch.cache import Cache
from docsearch.index import FORMAT, build
from docsearch.search import Index

META = {"format": str(FORMAT), "library": "lib", "version": "1.0"}
SCRIPTS = Path(cache.__file__).parents[1]

Run = Callable[[str], subprocess.Popen[str]]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {"lock", "lock-journal"}


def put(cached: Cache, version: str, content: bytes = b"x", *, used: float = 0) -> Path:
    """A file that was last used so many seconds ago."""
    file = cached.file("lib", version, "sdist")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (time.time() - used, time.time() - used))
    return file


def write(cached: Cache, version: str) -> Path:
    file = cached.file("lib", version, "sdist")
    with cached.alone(), cached.writing(file) as new:
        build(new, [Section("Title", (), "https://docs.example/", "words")], META)
    return file


@pytest.fixture
def cached(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def run(cached: Cache) -> Iterator[Run]:
    """Starts a program that has this cache; it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(FORMAT)],
            cwd=SCRIPTS,
            env={**os.environ, "ASYNC_SQLMODEL_DOCS_CACHE": str(cached.folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


# -- one process -------------------------------------------------------------------


def test_a_file_has_its_name_when_it_is_complete(cached: Cache) -> None:
    file = cached.file("lib", "1.0", "sdist")
    with cached.alone() as alone, cached.writing(file) as new:
        assert alone
        build(new, [], META)
        assert not file.exists()
        assert new.parent == file.parent  # a move to another disk would be a copy
    assert names(cached.folder) == {file.name}
    assert cached.written == file
    Index(file).close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_and_what_was_there(
    cached: Cache, error: type[BaseException]
) -> None:
    file = put(cached, "1.0", b"before")
    other = cached.file("lib", "2.0", "sdist")

    def fail(file: Path) -> None:
        with cached.alone(), cached.writing(file) as new:
            new.write_bytes(b"half")
            raise error

    for each in (file, other):
        with pytest.raises(error):
            fail(each)
    assert names(cached.folder) == {file.name}
    assert file.read_bytes() == b"before"
    with cached.alone() as alone:  # and nobody is locked out
        assert alone


def test_a_damaged_file_is_replaced(cached: Cache) -> None:
    file = put(cached, "1.0", b"<html>not an index")
    with pytest.raises((sqlite3.Error, ValueError)):
        Index(file)
    assert write(cached, "1.0") == file
    Index(file).close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_only_its_owner_can_enter_the_folder(cached: Cache) -> None:
    before = os.umask(0)
    try:
        write(cached, "1.0")
    finally:
        os.umask(before)
    assert cached.folder.stat().st_mode & 0o777 == 0o700


def test_the_entries_are_what_is_there_the_last_used_first(cached: Cache) -> None:
    assert list(cached.entries()) == []
    old, new = put(cached, "1.0", b"x" * 10, used=7200), put(cached, "2.0.0b1", used=60)
    (cached.folder / "other.txt").touch()
    assert [each.file for each in cached.entries()] == [new, old]
    cached.used(old)
    first, second = cached.entries()
    assert (first.file, first.library, first.version, first.source) == (old, "lib", "1.0", "sdist")
    assert (second.version, first.bytes) == ("2.0.0b1", 10)
    tag = cached.file("two-words", "1.0", "tag")
    tag.touch()
    assert [each.library for each in cached.entries() if each.file == tag] == ["two-words"]
    assert first.age >= 7200 > second.age >= 60  # being used makes it no younger


# -- sweeping ----------------------------------------------------------------------


def test_the_least_used_files_go_first_and_never_the_new_one(
    cached: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LIMIT", 250)
    rare, often = put(cached, "1", b"x" * 100, used=300), put(cached, "2", b"x" * 100, used=10)
    middle = put(cached, "3", b"x" * 100, used=200)
    file = cached.file("lib", "4", "sdist")
    with cached.writing(file) as new:
        new.write_bytes(b"x" * 100)
    assert names(cached.folder) == {file.name, often.name}
    assert not rare.exists()
    assert not middle.exists()
    with cached.writing(rare) as new:
        new.write_bytes(b"x" * 999)
    assert names(cached.folder) == {rare.name}


def test_other_formats_and_what_was_never_finished_is_swept(cached: Cache) -> None:
    other = put(cached, "1.0").rename(cached.folder / f"lib-1.0-sdist-f{FORMAT + 1}.sqlite")
    stale, fresh = cached.folder / ".index-a.new", cached.folder / ".index-b.new"
    foreign = [cached.folder / name for name in ("notes.txt", ".a.new", "app.sqlite")]
    for file in (stale, fresh, *foreign):
        file.touch()
    for file in (stale, *foreign):
        os.utime(file, (0, 0))
    kept = put(cached, "2.0")
    written = write(cached, "3.0")
    assert not other.exists()
    assert names(cached.folder) == {*(file.name for file in (fresh, *foreign, kept, written))}


# -- where nothing can be written ------------------------------------------------------


def test_without_a_folder_the_index_is_used_and_gone_afterwards(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cached = Cache(tmp_path / "file" / "cache")
    with cached.alone() as alone:
        assert not alone
    file = write(cached, "1.0")
    index = Index(cached.written)
    assert [hit.title for hit in index.search("words")] == ["Title"]
    index.close()
    assert not file.exists()
    assert list(cached.entries()) == []
    cached.used(file)
    assert names(tmp_path) == {"file"}
    scratch = cached.written.parent
    assert names(scratch) == {file.name}
    del cached
    assert not scratch.exists()


READ_ONLY = """
    import os, sys
    from docsearch.cache import Cache
    from docsearch.index import build
    from docsearch.search import Index

    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    cached = Cache()
    file = cached.file("lib", "1.0", "sdist")
    old = file.read_bytes()
    with cached.alone() as alone, cached.writing(file) as new:
        build(new, [], {"format": sys.argv[1], "library": "lib"})
    Index(cached.written).close()
    print(alone, file.read_bytes() == old, cached.written)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_a_folder_that_is_read_only_is_left_as_it_is(cached: Cache, run: Run) -> None:
    file = put(cached, "1.0", b"old")
    chain = [cached.folder, *cached.folder.parents]
    modes = {folder: folder.stat().st_mode for folder in chain}
    try:
        for folder in chain[1:]:
            if modes[folder] & 0o005 != 0o005:
                folder.chmod(modes[folder] | 0o005)  # pytest's folders are root's alone
        cached.folder.chmod(0o555)
        done = run(READ_ONLY)
        said, _ = done.communicate(timeout=60)
    finally:
        for folder in chain:
            if folder.stat().st_mode != modes[folder]:
                folder.chmod(modes[folder])
    assert done.returncode == 0
    alone, same, written = said.split(maxsplit=2)
    assert (alone, same) == ("False", "True")
    assert not Path(written.strip()).parent.exists()
    assert names(cached.folder) == {file.name}


# -- two processes ---------------------------------------------------------------------


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


BUILDER = """
    import sys
    from docsearch.cache import Cache
    from docsearch.index import build

    cached = Cache()
    file = cached.file("lib", "1.0", "sdist")
    print("waits", flush=True)
    with cached.alone():
        print("builds" if not file.exists() else "finds", flush=True)
        if not file.exists():
            sys.stdin.readline()
            with cached.writing(file) as new:
                build(new, [], {"format": sys.argv[1]})
"""


def test_of_two_processes_one_builds_and_the_other_finds(cached: Cache, run: Run) -> None:
    first = run(BUILDER)
    assert heard(first) == "waits"
    assert heard(first) == "builds"
    second = run(BUILDER)
    assert heard(second) == "waits"
    assert names(cached.folder) == set()
    first.communicate("go on\n", timeout=60)
    said, _ = second.communicate("never needed\n", timeout=60)
    assert said == "finds\n"
    assert (first.returncode, second.returncode) == (0, 0)


def test_who_waited_for_long_enough_goes_on(cached: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WAIT", 0.01)
    with cached.alone() as first, cached.alone() as second:
        assert (first, second) == (True, False)
        Index(write(cached, "1.0")).close()


def test_a_process_that_was_killed_locks_nobody_out(cached: Cache, run: Run) -> None:
    first = run(BUILDER)
    assert heard(first) == "waits"
    assert heard(first) == "builds"
    first.kill()
    first.wait(60)
    with cached.alone() as alone:
        assert alone


def test_a_lock_that_is_none_stops_nobody(cached: Cache) -> None:
    cached.folder.mkdir()
    (cached.folder / "lock").write_text("something else, long enough to be read as a header" * 9)
    with cached.alone() as alone:
        assert not alone
    Index(write(cached, "1.0")).close()


# -- where it is -------------------------------------------------------------------------


def test_the_environment_says_where_the_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "async-sqlmodel-docs"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for variable in ("ASYNC_SQLMODEL_DOCS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    folders = {"linux": ".cache", "darwin": "Library/Caches", "win32": "AppData/Local"}
    for platform, folder in folders.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert Cache().folder == tmp_path / folder / name
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert Cache().folder == tmp_path / "local" / name
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().folder == tmp_path / "xdg" / name
    monkeypatch.setenv("ASYNC_SQLMODEL_DOCS_CACHE", "~/chosen")
    assert Cache().folder == tmp_path / "chosen"
