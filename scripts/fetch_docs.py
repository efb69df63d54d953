#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["httpx>=0.28", "markdown-it-py>=3"]
# ///
"""Passages of the official documentation of exactly the version that a project has installed.

No account, no key; the query never leaves the machine. The first question about a version
downloads its documentation once and indexes it, later ones need no network.
"""

import argparse
import json
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - macOS still has 3.9 as python3
    sys.exit(f"fetch_docs.py needs Python 3.11 or newer; {sys.executable} is older")

from docsearch import (
    FOUND,
    INTERRUPTED,
    NO_SUCH_VERSION,
    NOTHING_FOUND,
    UNAVAILABLE,
    USAGE,
    Failed,
    Unavailable,
)
from docsearch.cache import Cache
from docsearch.index import tokens
from docsearch.libraries import LIBRARIES, Library
from docsearch.passages import MOST, as_object, as_text, choose, one_line
from docsearch.releases import Release, find_release, project_root, site_packages
from docsearch.search import Hit, Index, Searched, find, lookup
from docsearch.sources import EXACT, Request, open_index

LEAST, HARD_LIMIT = 200, 8_000
"""Tokens: less holds no passage below its header, more is a page to read and not an answer."""

EPILOG = f"""\
libraries: {", ".join(LIBRARIES)}. A question about sqlmodel also
searches SQLAlchemy's pages on asyncio, sessions, queries and errors.

examples:
  fetch_docs.py sqlalchemy "eager load a collection with AsyncSession"
  fetch_docs.py sqlalchemy "QueuePool limit of size 5 overflow 10 reached"
  fetch_docs.py sqlalchemy https://sqlalche.me/e/21/xd2s
  fetch_docs.py alembic --symbol op.batch_alter_table
  fetch_docs.py sqlalchemy ADDRESS        a whole section, by an address of an earlier reply
  pytest 2>&1 | tail -5 | fetch_docs.py sqlalchemy -
  fetch_docs.py --warm sqlalchemy alembic

version: --version, else the project's lock file, its environment, an exact pin, else the
newest. It is printed with where it was found; another one is never used silently.

size: 1,500 tokens are four or five passages. More of one: its address as the query, with
--max-tokens 4000.

sources, first that has it: the cache; the sdist of that version from your package index (rendered
pages of SQLAlchemy and Alembic, sources of asyncpg); the Git tag's archive on GitHub (SQLModel,
FastAPI, psycopg, pydantic, aiosqlite); the live site; docstrings and skills of what is installed.
Tag archives and live sites were built and tested against a local copy of their routes, not
against the sites themselves.

exit codes: {FOUND} found, {NOTHING_FOUND} nothing found, {USAGE} usage, {UNAVAILABLE} no source \
could be reached,
{NO_SUCH_VERSION} no such version.
environment: ASYNC_SQLMODEL_DOCS_CACHE (folder), UV_OFFLINE, HTTPS_PROXY, SSL_CERT_FILE and what
uv and pip read.
"""


NOTES = 4
"""Lines that say why, at most."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failed(f"{message} (--help shows how it is used)", USAGE)


def parser() -> argparse.ArgumentParser:
    result = Parser(
        prog="fetch_docs.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("library", nargs="?", metavar="LIBRARY", help="one of those below")
    add("query", nargs="*", help="a question, keywords, an error text; - reads standard input")
    add("--symbol", metavar="NAME", help="the entry of a name: sqlalchemy.orm.selectinload")
    add("--version", metavar="V", help="instead of the project's")
    add("--max-tokens", type=int, default=1500, metavar="N", help="size of the reply (1500)")
    add("-k", type=int, default=MOST, metavar="N", help=f"at most so many passages ({MOST})")
    add("--url-only", action="store_true", help="titles and addresses, no text")
    add("--json", action="store_true", help="one object")
    add("--offline", action="store_true", help="only what is cached or installed")
    add("--refresh", action="store_true", help="build the index anew")
    add("--source", default="auto", metavar="S", help="auto, sdist, tag, site, pages or installed")
    add("--project", type=Path, default=Path(), metavar="DIR", help="the project's folder (.)")
    add(
        "--warm",
        action="store_true",
        help="build the indexes of those named, or of the project's",
    )
    add("--list", action="store_true", help="what is cached")
    return result


class Progress:
    """On stderr: a bar on a terminal, one line otherwise; nothing at all when nothing is built."""

    def __init__(self) -> None:
        self.bar = sys.stderr.isatty()
        self.text = ""
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        text = one_line(text)
        if not self.bar and not self.text:
            print(f"{text}, once for this version ...", file=sys.stderr)
        self.text = text
        self.part(0.0)

    def part(self, done: float) -> None:
        if self.bar:
            filled = round(24 * done)
            print(
                f"\r\x1b[K[{'#' * filled}{'.' * (24 - filled)}] {self.text[:50]}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        if self.bar and self.text:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Docs:
    """One run: the project and the cache."""

    def __init__(self, args: argparse.Namespace) -> None:
        if not args.project.is_dir():
            raise Failed(f"--project {args.project}: no such folder", USAGE)
        self.args = args
        self.root = project_root(args.project.resolve())
        self.offline: bool = args.offline or os.environ.get("UV_OFFLINE", "").lower() in (
            "1",
            "true",
            "yes",
            "on",
        )
        self.cache = Cache()
        self.progress = Progress()

    def release(self, library: Library, wanted: str | None) -> Release:
        release = find_release(library.name, self.root, wanted)
        if release is not None:
            return release
        if self.offline:
            cached = [each for each in self.cache.entries() if each.library == library.name]
            if not cached:
                raise Failed(f"offline, and no version of {library.name} is installed or cached")
            return Release(
                library.name, cached[0].version, "not in the project; last used from the cache"
            )
        from docsearch.sdists import find_sdist

        try:
            version, _ = find_sdist(library.name, None, offline=False)
        except Unavailable as error:
            raise Failed(f"no version of {library.name} in the project; {error}") from error
        return Release(library.name, version, "not in the project; newest on your index")

    def request(self, library: Library, wanted: str | None, source: str) -> Request:
        release = self.release(library, wanted)
        return Request(
            library,
            release,
            site_packages(self.root),
            self.cache,
            self.progress,
            offline=self.offline,
            refresh=self.args.refresh,
            source=source,
            query=" ".join([*self.args.query, self.args.symbol or ""]),
            notes=[*release.notes],
        )

    def open(
        self, library: Library, wanted: str | None, source: str
    ) -> tuple[Index, Release, list[str]]:
        request = self.request(library, wanted, source)
        return open_index(request), request.release, request.notes


def library_of(name: str | None) -> Library:
    if name is None:
        raise Failed('no library given; expected LIBRARY "QUERY" (--help shows examples)', USAGE)
    known = LIBRARIES.get(name.lower().replace("_", "-"))
    if known is None:
        raise Failed(
            f"unknown library {name[:60]!r}; expected one of {', '.join(LIBRARIES)},"
            " and then the query",
            USAGE,
        )
    return known


def ask(args: argparse.Namespace) -> int:
    """The reply to a query or for a symbol, printed."""
    library = library_of(args.library)
    if args.query == ["-"]:
        args.query = [sys.stdin.read() if sys.stdin else ""]
    query = " ".join(args.query)
    if bool(query.strip()) == bool(args.symbol):
        raise Failed(
            "expected a query or --symbol NAME, one of the two; - reads standard input", USAGE
        )
    if not LEAST <= args.max_tokens <= HARD_LIMIT:
        raise Failed(f"--max-tokens {args.max_tokens}: expected {LEAST} to {HARD_LIMIT}", USAGE)
    if not 1 <= args.k <= 20:
        raise Failed(f"-k {args.k}: expected 1 to 20", USAGE)
    try:
        return answer(args, library, query)
    except (
        sqlite3.DatabaseError,
        ValueError,
    ):  # a cached file is damaged where opening it does not look
        args.refresh = True
        return answer(args, library, query)


def answer(args: argparse.Namespace, library: Library, query: str) -> int:
    docs = Docs(args)
    index, release, notes = docs.open(library, args.version, args.source)
    indexes: Searched = [(index, None)]
    indexes += also_sqlalchemy(docs, library, index, notes)
    hits = lookup(indexes, args.symbol) if args.symbol else find(indexes, query)
    if args.symbol and hits:
        notes += not_quite(hits[0], args.symbol)
    meta = {
        "library": library.name,
        "version": index.meta["version"],
        "version_from": origin_of(index, release),
        "source": source_of(index),
        "notes": [one_line(note) for note in dict.fromkeys(notes)],
    }
    if not hits:
        return nothing(args, meta, index, args.symbol or query)
    show(args, meta, hits)
    return FOUND


def also_sqlalchemy(docs: Docs, library: Library, own: Index, notes: list[str]) -> Searched:
    """SQLModel's own documentation says little about asyncio; SQLAlchemy's does."""
    if not library.with_sqlalchemy:
        return []
    try:
        index, release, more = docs.open(LIBRARIES["sqlalchemy"], None, "auto")
    except Failed as error:
        notes.append(f"without SQLAlchemy's pages: {error}")
        return []
    notes.append(
        f"with sqlalchemy {index.meta['version']} ({origin_of(index, release)}),"
        f" source: {source_of(index)}"
    )
    notes += [f"sqlalchemy {note}" for note in more]
    if index.meta["source"] not in EXACT:
        return [(index, None)]
    # Where SQLModel's own pages could not be had, the rest of SQLAlchemy's may answer as well.
    rest = 0.6 if own.meta["source"] == "installed" else 0.0
    pages = library.with_sqlalchemy
    return [(index, lambda url: 1.0 if any(f"/{page}" in url for page in pages) else rest)]


def not_quite(hit: Hit, wanted: str) -> list[str]:
    """That there is no such name, where only its last part was found: what stands before it may
    be a variable, or a slip.
    """
    owner, _, name = wanted.strip().removesuffix("()").rpartition(".")
    if owner.rpartition(".")[2].replace("_", "").lower() in hit.title.lower():
        return []
    return [f"there is no {wanted[:100]}; these are called {name[:60]}"]


def origin_of(index: Index, release: Release) -> str:
    """Why this version; of a substitute, for which one."""
    origin = one_line(release.origin)[:120]  # names of the project's files are in it
    wanted = index.meta.get("wanted")
    return f"instead of {one_line(wanted)}, {origin}" if wanted else origin


def source_of(index: Index) -> str:
    digest = index.meta.get("sha256", "")
    return index.meta["source"] + (f" sha256:{digest[:12]}" if digest else "")


def header(meta: dict[str, Any], found: str, longest_note: int) -> str:
    """What was searched, what was found, and why other sources were passed over."""
    first = (
        f"docs: {meta['library']} {meta['version']} ({meta['version_from']})"
        f" | source: {meta['source']} | {found}"
    )
    notes = [f"note: {note[:longest_note]}" for note in meta["notes"][:NOTES]]
    more = len(meta["notes"]) - len(notes)
    return "\n".join([first, *notes, *([f"note: and {more} more"] if more > 0 else [])])


def show(args: argparse.Namespace, meta: dict[str, Any], hits: Sequence[Hit]) -> None:
    def above(count: int, cost: int) -> str:
        found = f"{count} passages, about {cost} tokens"
        return header(meta, found, args.max_tokens // 2)  # characters: four notes take half of it

    largest = tokens(above(args.k, args.max_tokens) + "\n")
    passages, more = choose(hits, args.max_tokens, args.k, header=largest)
    if args.json:
        print(json.dumps(as_object(passages, more, meta), ensure_ascii=False))
        return
    top = above(len(passages), sum(passage.cost for passage in passages))
    if not args.url_only:
        print(as_text(passages, more, top))
        return
    print(top)
    for hit in [each.hit for each in passages] + more:
        above_it = f" ({one_line(hit.path[-1])})" if hit.path else ""
        print(f"{one_line(hit.title)}{above_it}  {one_line(hit.url)}")


def nothing(args: argparse.Namespace, meta: dict[str, Any], index: Index, wanted: str) -> int:
    near = index.titles_near(wanted)
    if args.json:
        print(json.dumps(as_object([], near, meta), ensure_ascii=False))
        return NOTHING_FOUND
    print(header(meta, f"nothing found for {one_line(wanted)[:200]!r}", args.max_tokens // 2))
    for hit in near:
        print(f"near: {one_line(hit.title)}  {one_line(hit.url)}")
    return NOTHING_FOUND


def warm(args: argparse.Namespace) -> int:
    """Builds the indexes of the libraries that are named, or that the project has; goes on after
    one that failed.
    """
    docs = Docs(args)
    if args.library:
        libraries = [library_of(name) for name in [args.library, *args.query]]
    else:
        known = LIBRARIES.values()
        libraries = [each for each in known if find_release(each.name, docs.root, None)]
        if not libraries:
            raise Failed("the project has none of the libraries; name those to build", USAGE)
    code = FOUND
    done: list[dict[str, Any]] = []
    for library in libraries:
        started = time.monotonic()
        try:
            index, release, notes = docs.open(library, args.version, args.source)
        except Failed as error:
            code = error.code
            done.append({"library": library.name, "error": one_line(str(error))})
            continue
        done.append(
            {
                "library": library.name,
                "version": index.meta["version"],
                "version_from": origin_of(index, release),
                "source": source_of(index),
                "seconds": round(time.monotonic() - started, 2),
                "notes": [one_line(note) for note in notes],
            }
        )
    print_rows(args, done)
    return code


def listed(args: argparse.Namespace) -> int:
    entries = [
        {
            "library": each.library,
            "version": each.version,
            "source": each.source,
            "kB": each.bytes // 1000,
            "hours_old": round(each.age / 3600, 1),
        }
        for each in Cache().entries()
    ]
    print_rows(args, entries)
    if not args.json:
        print(f"in {Cache().folder}")
    return FOUND


def print_rows(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        print(
            "  ".join(
                f"{key}: {value}" if key not in ("library", "version") else str(value)
                for key, value in row.items()
                if value not in ([], "")
            )
        )


def main(argv: Sequence[str] | None = None) -> int:
    # Windows consoles and pipes may not know the characters of the documentation.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a closed one is None
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        args = parser().parse_intermixed_args(argv)
        if args.list:
            return listed(args)
        return warm(args) if args.warm else ask(args)
    except Failed as error:
        lines = [one_line(line) for line in str(error).splitlines()]
        if "--json" in (sys.argv[1:] if argv is None else argv):
            print(json.dumps({"error": " ".join(lines), "code": error.code}, ensure_ascii=False))
        print("fetch_docs.py:", "\n  ".join(lines), file=sys.stderr)
        return error.code
    except ModuleNotFoundError as error:
        print(
            f"fetch_docs.py: {error.name} is missing, which a first look-up needs; run it as"
            f" `uv run {sys.argv[0]} ...`, or `{Path(sys.executable).name} -m pip install"
            " httpx markdown-it-py unearth`",
            file=sys.stderr,
        )
        return UNAVAILABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FOUND
    except (
        Exception
    ) as error:  # a line instead of a traceback, and no code that means something else
        print(f"fetch_docs.py: {one_line(f'{type(error).__name__}: {error}')}", file=sys.stderr)
        return UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
