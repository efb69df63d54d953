#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Lay the async SQLModel layer into a project, or start a new FastAPI app on it.

Standard library only. Nothing of the project that it looks at is imported or run,
except by `new --prove`, which runs the app that was just laid down.
"""

import argparse
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from keyword import iskeyword
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:  # imported where it is used: `add` has to be quick
    import subprocess

if sys.version_info < (3, 11):  # noqa: UP036 - macOS still has 3.9 as python3
    sys.exit(f"scaffold.py needs Python 3.11 or newer; {sys.executable} is older")

EXAMPLE = Path(__file__).resolve().parent.parent / "assets" / "example"
LAYER = EXAMPLE / "app" / "db"
MIGRATIONS = EXAMPLE.parent / "alembic"

OK, PROOF_FAILED, REFUSED, NOT_WRITTEN, INTERRUPTED = 0, 1, 2, 3, 130

DRIVERS: dict[str, tuple[str, ...]] = {
    "sqlite": ("aiosqlite",),
    "postgresql": ("asyncpg", "psycopg"),
    "mysql": ("aiomysql", "asyncmy"),
}
"""The first driver of a database is its default. tests/test_scaffold.py compares this
with the layer."""

DRIVER_DEPENDENCIES: dict[str, tuple[str, ...]] = {
    "aiosqlite": ("aiosqlite>=0.20",),
    "asyncpg": ("asyncpg>=0.30",),
    "psycopg": ("psycopg[binary]>=3.2",),
    # cryptography: MySQL 8 passwords (caching_sha2_password) over a plain connection.
    # pymysql: with 1.2, aiomysql 0.3.2 cannot send bytes. asyncmy: CVE-2025-65896.
    "aiomysql": ("aiomysql>=0.3", "pymysql>=1.1.1,<1.2", "cryptography>=42"),
    "asyncmy": ("asyncmy>=0.2.12", "cryptography>=42"),
}
SERVE = "uvicorn app.main:app --reload"
LOOK = """\
Look: http://127.0.0.1:8000/docs, and in this order at
app/models.py, app/services.py, app/api.py, app/main.py; app/db/ is the layer, .env has the URL"""
SQLITE_URL = "sqlite+aiosqlite:///./app.db"
PLACEHOLDERS = {
    "postgresql": "app:change-me@localhost:5432/app",
    "mysql": "app:change-me@localhost:3306/app",
}
LAYER_DEPENDENCIES = ("fastapi>=0.121", "sqlmodel[asyncio]>=0.0.45", "pydantic-settings>=2.7")
"""What `app/db` imports, a driver aside; a test compares it with the example's pyproject.toml."""

MIGRATION_DEPENDENCIES: tuple[str, ...] = ("alembic>=1.20",)
ENUM_DEPENDENCIES = ("alembic-postgresql-enum>=1.11",)
"""What `migrations/env.py` imports besides; the second one on PostgreSQL, for its ENUM types."""

NOT_LOOKED_AT = {"alembic", "docs", "env", "migrations", "node_modules", "scripts", "tests", "venv"}
"""Besides hidden folders and virtual environments. Nobody's application is in there."""

EPILOG = """\
examples:
  scaffold.py new shop --prove                     a new app on SQLite, shown working
  scaffold.py new shop --database postgresql --url postgresql://me:pw@host/shop
  scaffold.py add . --dry-run                      what the layer would write here
  scaffold.py add . --package src/shop --json
  scaffold.py add . --migrations                   and Alembic for it

  new  lays down a whole FastAPI app: models, services, API, tests, migrations, .env. DIR must
       be new or empty. --prove installs it into DIR/.venv, starts it, and talks HTTP to it.
  add  lays only the layer into PACKAGE/db/ of an existing project. Its pyproject.toml
       and requirements are read, not edited: what they lack is reported. --migrations
       adds alembic.ini and migrations/, and leaves a layer alone that is there.

Files with the same content are left alone; a file that differs stops everything,
unless --force. All is checked first: nothing is written when anything is refused.

exit codes:
  0  done (or, with --dry-run, could be done)
  1  --prove: an answer was not the expected one, or the app did not install or start
  2  refused: bad arguments, or a file would be overwritten; nothing was written
  3  a write failed; what had been written was undone
  130  interrupted

--json: one object on stdout with command, directory, package, target, created,
  unchanged, overwritten (relative paths), written, dry_run, dependencies_missing, next,
  prove {ok, url, steps}, error. The rest of the talk goes to stderr.
"""


class Refused(Exception):
    """Nothing was written; the message says what was wrong and what would be right."""


class NotWritten(Exception):
    """A write failed, and the files are as they were."""


class ProofFailed(Exception):
    """The app that was laid down did not do what it should."""


# -- what would be written -------------------------------------------------------------


@dataclass
class File:
    """Content for one path, relative to the project; mode None is the usual one."""

    path: PurePosixPath
    content: bytes
    mode: int | None = None


@dataclass
class Plan:
    """Files of one run, sorted by what writing them means."""

    directory: Path
    created: list[File] = field(default_factory=list[File])
    unchanged: list[File] = field(default_factory=list[File])
    overwritten: list[File] = field(default_factory=list[File])


def make_plan(directory: Path, files: Iterable[File]) -> Plan:
    """Compare the files with what is there.

    Raises:
        Refused: a path leaves the directory through a symbolic link, or a folder
            stands where a file must go, or the other way round.
    """
    plan = Plan(directory)
    for file in files:
        path = directory / file.path
        _check_place(directory, path)
        if not os.path.lexists(path):
            plan.created.append(file)
        elif path.is_file() and _read(path) == file.content:
            plan.unchanged.append(file)
        else:
            plan.overwritten.append(file)
    return plan


def _check_place(directory: Path, path: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        raise Refused(f"{path} leads out of {directory} through a symbolic link; remove the link")
    if path.is_dir():
        raise Refused(f"{path} is a folder, and a file must go there; move it away")
    for parent in path.parents:
        if parent.is_dir():
            return
        if os.path.lexists(parent):
            raise Refused(f"{parent} is a file, and a folder must go there; move it away")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


# -- writing: all or nothing -----------------------------------------------------------


def write(plan: Plan) -> None:
    """Write what the plan creates and overwrites; undo it all when one write fails.

    Every file is first written beside its place under a temporary name, so a full disk
    or a missing permission shows before the first visible change.

    Raises:
        NotWritten: a write failed; the files are as they were.
    """
    undo: list[Callable[[], object]] = []
    suffix = f".scaffold-{os.getpid()}"
    backups: list[Path] = []
    try:
        staged: list[tuple[Path, Path]] = []
        for file in [*plan.created, *plan.overwritten]:
            path = plan.directory / file.path
            for folder in reversed([path.parent, *path.parent.parents]):
                if not folder.is_dir():
                    folder.mkdir()
                    undo.append(folder.rmdir)
            temporary = path.with_name(path.name + suffix)
            undo.append(partial(temporary.unlink, missing_ok=True))
            _write_new(temporary, file)
            staged.append((temporary, path))
        for temporary, path in staged:
            if os.path.lexists(path):
                backup = path.with_name(path.name + suffix + "-old")
                backups.append(backup)
                undo.append(partial(backup.replace, path))
                path.rename(backup)
            else:
                undo.append(partial(path.unlink, missing_ok=True))
            temporary.rename(path)
    except BaseException as error:  # Ctrl-C as well
        for step in reversed(undo):
            with suppress(OSError):
                step()
        if isinstance(error, OSError):
            where = error.filename or plan.directory
            raise NotWritten(f"{where}: {error.strerror}; all was put back") from error
        raise
    for backup in backups:
        backup.unlink(missing_ok=True)


def _write_new(path: Path, file: File) -> None:
    mode = 0o666 if file.mode is None else file.mode
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as output:
        output.write(file.content)


# -- sources ---------------------------------------------------------------------------


def _source(folder: Path, target: PurePosixPath) -> Iterator[File]:
    """The files of an assets folder; not what running it leaves behind."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        leftover = (
            path.suffix in {".pyc", ".db", ".db-wal", ".db-shm"}
            or path.name == ".env"
            or any(part == "__pycache__" or part.startswith(".") for part in relative.parts[:-1])
        )
        if path.is_file() and not leftover:
            yield File(target / relative.as_posix(), path.read_bytes())


# -- add -------------------------------------------------------------------------------


@dataclass
class Package:
    """Where the layer goes: `path` relative to the project, `name` to import it by."""

    path: PurePosixPath
    name: str
    new_inits: list[File] = field(default_factory=list[File])


def find_package(directory: Path, wanted: str | None) -> Package:
    """The package that `wanted` names, or the only one that the project can mean.

    Raises:
        Refused: several packages could be meant, or the name cannot be a package.
    """
    if wanted is not None:
        return _package(directory, _named(directory, wanted))
    roots = [directory, directory / "src"]
    found = [path for root in roots for path in _candidates(root)]
    if not found:  # one level deeper: backend/app
        found = [path for root in _folders(directory) for path in _candidates(root)]
    if len(found) > 1:
        found = [path for path in found if _makes_app(path)] or found
    if len(found) > 1:
        names = ", ".join(path.relative_to(directory).as_posix() for path in sorted(found))
        raise Refused(f"several packages could take the layer: {names}; choose with --package")
    return _package(directory, found[0] if found else directory / "app")


def _named(directory: Path, wanted: str) -> Path:
    text = wanted.strip().removeprefix("./").rstrip("/")
    parts = text.split("/") if "/" in text else text.split(".")
    for part in parts:
        if not part.isidentifier() or iskeyword(part):
            raise Refused(
                f"--package {wanted!r}: {part!r} is not a name that Python can import; "
                "expected e.g. app, shop.core or src/shop"
            )
    in_src = directory.joinpath("src", *parts)
    return in_src if in_src.is_dir() else directory.joinpath(*parts)


def _package(directory: Path, path: Path) -> Package:
    relative = path.relative_to(directory)
    for module in (path.with_suffix(".py"), path / "db.py"):
        if module.is_file():
            raise Refused(
                f"{module} would be hidden by a package of the same name; rename it, or choose "
                "another place, e.g. --package NAME or --package NAME.storage"
            )
    inits: list[File] = []
    names: list[str] = []
    for depth in range(1, len(relative.parts) + 1):
        folder = directory.joinpath(*relative.parts[:depth])
        new = not folder.exists() and not (depth == 1 and folder.name == "src")
        if new:
            init = PurePosixPath(folder.relative_to(directory).as_posix(), "__init__.py")
            inits.append(File(init, b""))
        if new or (folder / "__init__.py").exists() or folder == path:
            names.append(folder.name)
        else:
            names.clear()
    return Package(PurePosixPath(relative.as_posix()), ".".join(names), inits)


def _folders(root: Path) -> list[Path]:
    """Folders that may hold a project's own code."""
    if not root.is_dir():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if path.name.isidentifier()
        and path.name not in NOT_LOOKED_AT
        and not path.is_symlink()
        and path.is_dir()
        and not (path / "pyvenv.cfg").exists()
    )


def _candidates(root: Path) -> list[Path]:
    """Packages directly under `root`; a folder without __init__.py if it makes an app."""
    return [
        path
        for path in _folders(root)
        if (path / "__init__.py").is_file()
        or (path.name != "src" and any(path.glob("*.py")) and _makes_app(path))
    ]


def _makes_app(package: Path) -> bool:
    """Whether the text of one of its modules calls `FastAPI(`."""
    for module in package.glob("*.py"):
        with suppress(OSError):
            if re.search(rb"\bFastAPI\(", module.read_bytes()):
                return True
    return any(_makes_app(folder) for folder in _folders(package))


def missing_dependencies(directory: Path, migrations: bool) -> list[str]:
    """Requirements of the layer that no file of the project names, with their bounds."""
    named = _named_requirements(directory)
    # The extra brings greenlet, which SQLAlchemy 2.1 leaves out.
    greenlet = "greenlet" in named or "asyncio" in named.get("sqlmodel", "") + named.get(
        "sqlalchemy", ""
    )

    def lacks(requirement: str) -> bool:
        text = named.get(_distribution(requirement))
        return text is None or _too_old(text, requirement)

    missing = [
        each for each in LAYER_DEPENDENCIES if lacks(each) or ("asyncio" in each and not greenlet)
    ]
    if not any(driver in named for driver in DRIVER_DEPENDENCIES):
        missing += DRIVER_DEPENDENCIES["aiosqlite"]
    if migrations:
        wanted = MIGRATION_DEPENDENCIES
        if any(driver in named for driver in DRIVERS["postgresql"]):
            wanted += ENUM_DEPENDENCIES
        missing += filter(lacks, wanted)
    return missing


def _too_old(text: str, requirement: str) -> bool:
    """Whether a bound of the project's is below what the layer needs: `==1.2`, `<1.2`, and
    `>=1.2` too, since a lock file may hold just that.
    """
    least, *_ = re.findall(r">=([\d.]+)", requirement)
    bounds = re.findall(r"(?:[=~<>]=|[<^])\s*(\d[\d.]*)", text)
    return any(_version(bound) < _version(least) for bound in bounds)


def _version(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _named_requirements(directory: Path) -> dict[str, str]:
    """Distribution name -> its requirements, from pyproject.toml and requirements*.txt."""
    texts: list[str] = []
    for path in sorted(directory.glob("requirements*.txt")):
        texts += path.read_text(encoding="utf-8", errors="replace").splitlines()
    pyproject = directory / "pyproject.toml"
    if pyproject.is_file():
        import tomllib

        try:
            texts += _strings(tomllib.loads(pyproject.read_text(encoding="utf-8")))
        except (ValueError, AttributeError, TypeError) as error:
            _warn(f"{pyproject} cannot be understood, so its dependencies are not known: {error}")
    named: dict[str, str] = {}
    for text in texts:
        requirement = text.partition(";")[0].partition(" #")[0]  # no markers, no comments
        if name := _distribution(requirement):
            named[name] = f"{named.get(name, '')} {requirement}"
    return named


def _strings(document: dict[str, Any]) -> Iterator[str]:
    """The requirements of pyproject.toml: standard tables, and Poetry's."""
    project: dict[str, Any] = document.get("project", {})
    lists: list[Any] = [project.get("dependencies", [])]
    lists += project.get("optional-dependencies", {}).values()
    lists += document.get("dependency-groups", {}).values()
    for requirements in lists:
        yield from (text for text in requirements if isinstance(text, str))
    poetry: dict[str, Any] = document.get("tool", {}).get("poetry", {})
    for name, value in poetry.get("dependencies", {}).items():
        yield f"{name} {value}"  # {'extras': ['asyncio'], ...} is as good as text


def _distribution(requirement: str) -> str:
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def _install_command(directory: Path, requirements: list[str]) -> str:
    pyproject = directory / "pyproject.toml"
    text = pyproject.read_text(encoding="utf-8", errors="replace") if pyproject.is_file() else ""
    tool = "python -m pip install"
    for name in ("uv", "poetry", "pdm"):
        if (directory / f"{name}.lock").exists() or f"[tool.{name}]" in text:
            tool = f"{name} add"
            break
    return f"{tool} {' '.join(shlex.quote(each) for each in requirements)}"


TABLES_STEP = "\nDATABASE_CREATE_TABLES=true  # while you develop; then migrations"
ADD_STEPS = (
    """\
Settings: in .env, or in the environment (postgresql+asyncpg://..., mysql+aiomysql://...):
DATABASE_URL={url}{tables}""",
    """\
Lifespan, where the app is made:
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from {package}.db import Database, DatabaseSettings
from {package}.db.web import add_error_handlers

@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with Database(DatabaseSettings()) as database:
        app.state.database = database
        yield

app = FastAPI(lifespan=lifespan)
add_error_handlers(app)""",
    """\
Session in endpoints; it is committed before the response is sent:
from {package}.db.web import SessionDep

@app.post("/heroes", status_code=201)
async def create_hero(data: HeroCreate, session: SessionDep) -> HeroPublic: ...""",
)


MIGRATION_STEPS = """\
Migrations, in place of tables at start. Rows that matter: references/revision-history.md of the
skill, "Tables that exist". Else delete what DATABASE_CREATE_TABLES has made, and:
DATABASE_CREATE_TABLES=false  # in .env
alembic revision --autogenerate -m "first tables"
alembic upgrade head"""


def migration_files(directory: Path, package: Package) -> list[File]:
    """`alembic.ini` and `migrations/`, for the models of this package.

    Raises:
        Refused: the project has an Alembic environment already.
    """
    pyproject = directory / "pyproject.toml"
    if pyproject.is_file() and b"[tool.alembic]" in _read(pyproject):
        raise Refused(
            f"{pyproject} has [tool.alembic]: the project has migrations. Compare its env.py "
            f"with {MIGRATIONS / 'env.py'}, and take what it lacks"
        )
    # The folder that the package is imported from: the project's, or src, or backend.
    depth = len(package.name.split("."))
    root = PurePosixPath("%(here)s", *package.path.parts[:-depth])
    files: list[File] = []
    for file in _source(MIGRATIONS, PurePosixPath()):
        text = file.content.decode()
        if str(file.path) == "alembic.ini":
            text = _replace(text, "prepend_sys_path = .\n", f"prepend_sys_path = {root}\n")
        else:
            file.path = "migrations" / file.path
        if file.path.name == "env.py":
            text = _replace(text, "from app.db import", f"from {package.name}.db import")
            text = _replace(text, "from app.db.base", f"from {package.name}.db.base")
            models = package.name.partition(".")[0]
            text = _replace(text, 'MODELS = "app"', f'MODELS = "{models}"')
        file.content = text.encode()
        files.append(file)
    return files


def add(run: "Run") -> None:
    directory: Path = run.args.directory
    if not directory.is_dir():
        raise Refused(f"{directory} is not a folder; `add` needs a project, `new` makes one")
    if (directory / "__init__.py").is_file():
        raise Refused(
            f"{directory} is a package itself; give the project's folder, and the package with "
            f"--package {directory.resolve().name}"
        )
    package = find_package(directory, run.args.package)
    target = package.path / "db"
    migrations: bool = run.args.migrations
    has_layer = migrations and (directory / target / "__init__.py").is_file()
    missing = missing_dependencies(directory, migrations)
    tables = "" if migrations else TABLES_STEP
    steps = (
        []
        if has_layer
        else [
            each.format(package=package.name, url=SQLITE_URL, tables=tables) for each in ADD_STEPS
        ]
    )
    if migrations:
        steps.append(MIGRATION_STEPS)
    if missing:
        steps.insert(0, f"Install what is missing: {_install_command(directory, missing)}")
    run.report |= {
        "package": package.name,
        "target": str(target),
        "dependencies_missing": missing,
        "next": steps,
    }
    files = [] if has_layer else [*package.new_inits, *_source(LAYER, target)]
    if migrations:
        files += migration_files(directory, package)
    run.lay(make_plan(directory, files))


# -- new -------------------------------------------------------------------------------


def new(run: "Run") -> None:
    args, directory = run.args, run.args.directory
    if not args.prove and (args.keep or args.port or args.venv):
        raise Refused("--keep, --port and --venv belong to --prove")
    if args.keep and args.json:
        raise Refused("--keep serves until Ctrl-C, and --json reports at the end; choose one")
    url, database = choose_database(args.database, args.driver, args.url)
    files = new_files(url, project_name(directory, args.name))
    run.report |= {"package": "app", "target": "."}

    seen = _visible(directory)
    plan = make_plan(directory, files)
    if seen and plan.created and not args.force:
        raise Refused(
            f"{directory} is not empty (there is {', '.join(seen[:3])}); choose a new folder, "
            "use `add` to lay only the layer, or --force to write among what is there"
        )
    placeholder = database != "sqlite" and args.url is None
    proof = None
    if args.prove:
        proof = Proof(run, files, _url_to_prove(database) if placeholder else url)
    run.lay(plan)
    run.say(f"{directory / '.env'}: DATABASE_URL={_without_password(url)}")
    if proof is None:
        run.report["next"] = new_steps(directory, files, placeholder)
    elif not args.dry_run:
        proof.prove()


def _url_to_prove(database: str) -> str:
    given = os.environ.get("DATABASE_URL")
    if not given:
        raise Refused(
            f"--prove needs a {database} database: pass --url "
            f"{database}://user:password@host:port/name, or set DATABASE_URL (which is then "
            "not written to .env)"
        )
    try:
        return choose_database(database, None, given)[0]
    except Refused as error:
        raise Refused(f"DATABASE_URL in the environment: {error}") from None


def choose_database(database: str | None, driver: str | None, url: str | None) -> tuple[str, str]:
    """A URL with its driver spelled out, and the name of the database.

    Raises:
        Refused: the three contradict each other, or the URL cannot work.
    """
    if url is not None:
        return _given_url(database, driver, url)
    if database is None:
        known = (each for each, drivers in DRIVERS.items() if driver in drivers)
        database = next(known, "sqlite")
    driver = _check_driver(driver, database)
    if database == "sqlite":
        return SQLITE_URL, database
    return f"{database}+{driver}://{PLACEHOLDERS[database]}", database


def _given_url(database: str | None, driver: str | None, url: str) -> tuple[str, str]:
    match = re.match(r"([a-z0-9]+)(?:\+([a-z0-9_]+))?://", url)
    if match is None:
        raise Refused("--url: expected driver://user:password@host:port/name")
    dialect = {"postgres": "postgresql"}.get(match[1], match[1])
    family = {"mariadb": "mysql"}.get(dialect, dialect)
    if family not in DRIVERS:
        raise Refused(f"--url: unsupported database {match[1]!r}; use {_choices(DRIVERS)}")
    if database not in (None, family):
        raise Refused(f"--url is for {family}, and --database says {database}")
    if match[2] and driver not in (None, match[2]):
        raise Refused(f"--url names the driver {match[2]}, and --driver says {driver}")
    driver = _check_driver(match[2] or driver, family)
    url = f"{dialect}+{driver}://{url[match.end() :]}"
    _check_url(url, family)
    return url, family


def _check_driver(driver: str | None, database: str) -> str:
    if driver is None:
        return DRIVERS[database][0]
    if driver not in DRIVERS[database]:
        raise Refused(
            f"driver {driver!r} is not an asynchronous driver of {database}; "
            f"use {_choices(DRIVERS[database])}"
        )
    return driver


def _check_url(url: str, database: str) -> None:
    # What .env would read differently from what was given.
    if re.search(r"[\x00-\x1f\x7f]|\s#|\$\{|\s$", url):
        raise Refused("--url: percent-encode spaces, '#' and '$'")
    if database == "sqlite":
        return
    try:
        parts = urlsplit(url)
        _ = parts.port  # not a number where the password holds a slash
    except ValueError:
        raise Refused(_ENCODE) from None
    if parts.netloc.count("@") > 1 or "@" in parts.path:
        raise Refused(_ENCODE)
    if not parts.path.strip("/"):
        raise Refused("--url names no database; expected .../name at the end")


_ENCODE = "--url: percent-encode the characters @ / : ? # [ ] where they are in the password"


def _choices(names: Iterable[str]) -> str:
    return " or ".join(names)


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url)


def project_name(directory: Path, wanted: str | None) -> str:
    """`wanted`, or a name made of the folder's."""
    pattern = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
    if wanted is not None:
        if not re.fullmatch(pattern, wanted):
            raise Refused(
                f"--name {wanted!r}: expected letters, digits and . _ - between them, e.g. my-shop"
            )
        return wanted
    return re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-") or "app"


def new_files(url: str, name: str) -> list[File]:
    """The example app, on this database and under this name, and its `.env`."""
    driver = url.partition("://")[0].partition("+")[2]
    files: list[File] = []
    for file in _source(EXAMPLE, PurePosixPath()):
        if str(file.path) == "pyproject.toml":
            text = _replace(file.content.decode(), 'name = "app"\n', f'name = "{name}"\n')
            if driver in DRIVERS["postgresql"]:
                alembic, plugin = (
                    f'    "{each}",\n' for each in (*MIGRATION_DEPENDENCIES, *ENUM_DEPENDENCIES)
                )
                text = _replace(text, alembic, alembic + plugin)
            if driver != "aiosqlite":
                lines = "".join(f'    "{each}",\n' for each in DRIVER_DEPENDENCIES[driver])
                sqlite = f'    "{DRIVER_DEPENDENCIES["aiosqlite"][0]}",\n'
                text = _replace(text, sqlite, lines)
                # The app's own tests run on SQLite unless they are told otherwise.
                text = _replace(text, "dev = [\n", f"dev = [\n{sqlite}")
            file.content = text.encode()
        if str(file.path) == ".env.example":
            text = _replace(
                file.content.decode(), f"\nDATABASE_URL={SQLITE_URL}\n", f"\nDATABASE_URL={url}\n"
            )
            # 0600: it is where the password is.
            files.append(File(PurePosixPath(".env"), text.encode(), 0o600))
        files.append(file)
    return files + migration_files(EXAMPLE, Package(PurePosixPath("app"), "app"))


def _replace(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise Refused(f"the skill's own assets are damaged: expected {old.strip()!r} once")
    return text.replace(old, new)


def _visible(directory: Path) -> list[str]:
    """What is in a folder, hidden things (.git, .agents, .venv) aside."""
    if not os.path.lexists(directory):
        return []
    if not directory.is_dir():
        raise Refused(f"{directory} is not a folder")
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def new_steps(directory: Path, files: list[File], placeholder: bool) -> list[str]:
    """What to do after `new` without a proof."""
    requirements = " ".join(shlex.quote(each) for each in project_requirements(files))
    make = f"python3 -m venv .venv && .venv/bin/python -m pip install {requirements}"
    steps = [
        f"Install: {_cd(directory)}{make}",
        f"Run: .venv/bin/python -m {SERVE}",
        LOOK,
        "Test: .venv/bin/python -m pytest",
        MIGRATION_STEPS.replace("alembic ", ".venv/bin/alembic "),
    ]
    if placeholder:
        steps.insert(
            0, f"Put your database's URL into {directory / '.env'}: a placeholder is there."
        )
    return steps


def _cd(directory: Path) -> str:
    here = directory.resolve() == Path.cwd()
    return "" if here else f"cd {shlex.quote(str(directory))} && "


def project_requirements(files: list[File]) -> list[str]:
    """What the new project's pyproject.toml asks for, its tests' needs included."""
    import tomllib

    content = next(file.content for file in files if str(file.path) == "pyproject.toml")
    return sorted(_strings(tomllib.loads(content.decode())))


# -- the proof -------------------------------------------------------------------------


class Proof:
    """Install the new app, start it, and talk HTTP to it.

    Args:
        run: the command.
        files: of the new project; its pyproject.toml says what to install.
        url: for the app's DATABASE_URL.

    Raises:
        Refused: something that the proof needs is not there. Nothing was written yet.
    """

    def __init__(self, run: "Run", files: list[File], url: str) -> None:
        self.run = run
        self.directory: Path = run.args.directory.resolve()
        self.requirements = project_requirements(files)
        self.url = url
        self.given: Path | None = run.args.venv
        if self.given:
            self._check_given(self.given, self.requirements)
        elif not (self.directory / ".venv").resolve().is_relative_to(self.directory):
            raise Refused(f"{self.directory / '.venv'} leads out of it; use it with --venv")
        self.port = _free_port(run.args.port)

    def _check_given(self, venv: Path, requirements: list[str]) -> None:
        python = _python(venv)
        if not python.exists():
            raise Refused(f"--venv {venv}: there is no {python}")
        code = (
            "import importlib.metadata as m, sys\n"
            "have = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()}\n"
            "print(*[n for n in sys.argv[1:] if n not in have])"
        )
        names = [_distribution(each) for each in requirements]
        try:
            missing = _output([str(python), "-I", "-c", code, *names]).split()
        except ProofFailed as error:
            raise Refused(f"--venv {venv}: {error}") from None
        if missing:
            raise Refused(f"--venv {venv} lacks {', '.join(missing)}; install them there first")

    def prove(self) -> None:
        import signal

        # A terminal that closes or `kill` must stop the server too, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        python = _python(self.given) if self.given else self._install()
        url = f"http://127.0.0.1:{self.port}"
        report: dict[str, Any] = {"ok": False, "url": url, "steps": []}
        self.run.report["prove"] = report
        with self._serving(python) as server:
            drive(Client(self.port, self.run.say, report["steps"]))
            report["ok"] = True
            self.run.say(f"\nall {len(report['steps'])} answers were as expected")
            if self.run.args.keep:
                with suppress(KeyboardInterrupt):
                    self.run.say(f"serving {url}/docs until Ctrl-C")
                    server.wait()
                    raise ProofFailed("the server stopped by itself")
        self.run.report["next"] = self._next(python)

    def _next(self, python: Path) -> list[str]:
        inside = python.is_relative_to(self.directory)
        command = shlex.quote(str(python.relative_to(self.directory) if inside else python))
        steps = [
            f"Keep it running: {_cd(self.directory)}{command} -m {SERVE}",
            LOOK,
            f"Test: {command} -m pytest",
            MIGRATION_STEPS.replace("alembic ", f"{command} -m alembic "),
        ]
        if f"DATABASE_URL={self.url}\n" not in (self.directory / ".env").read_text("utf-8"):
            steps.insert(0, "Keep DATABASE_URL set as it is now, or write it into .env.")
        return steps

    def _install(self) -> Path:
        """DIR/.venv with what the project needs; nothing to do when its stamp says so."""
        venv = self.directory / ".venv"
        python, stamp = _python(venv), venv / "scaffold.json"
        wanted = json.dumps({"python": sys.version, "requirements": self.requirements})
        if python.exists() and stamp.is_file() and stamp.read_text("utf-8") == wanted:
            self.run.say(f"{venv} has what the app needs")
            return python
        stamp.unlink(missing_ok=True)
        self.run.say(f"making {venv}")
        _output([sys.executable, "-m", "venv", str(venv)])
        self.run.say(f"installing {', '.join(self.requirements)}")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        _output([*pip, *self.requirements])
        stamp.write_text(wanted, "utf-8")
        return python

    @contextmanager
    def _serving(self, python: Path) -> Generator["subprocess.Popen[bytes]"]:
        """The app in a process of its own, stopped at the end whatever happens."""
        import subprocess
        import tempfile

        environment = {**os.environ, "DATABASE_URL": self.url, "DATABASE_CREATE_TABLES": "true"}
        if self.url.startswith("sqlite"):  # meant for a server that the shell knows
            environment.pop("DATABASE_PASSWORD", None)
        command = [str(python), "-m", "uvicorn", "app.main:app", "--port", str(self.port)]
        command += ["--workers", "1"]  # whatever WEB_CONCURRENCY says
        self.run.say(f"starting the app on port {self.port}, with DATABASE_CREATE_TABLES=true\n")
        with tempfile.TemporaryFile() as log:
            server = subprocess.Popen(
                [*command, "--host", "127.0.0.1"],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop it
            )
            try:
                _wait_for_health(server, self.port)
                yield server
            except Exception as error:
                log.seek(0)
                tail = log.read().decode(errors="replace").splitlines()[-30:]
                _warn("the end of the server's log:\n" + "\n".join(tail))
                if isinstance(error, ProofFailed):
                    raise
                raise ProofFailed(f"no proper answer: {error!r}") from error
            finally:
                server.terminate()
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()


def _python(venv: Path) -> Path:
    # absolute, not resolve: the link is what makes it the environment's Python
    return (venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")).absolute()


def _free_port(wanted: int) -> int:
    import socket

    with socket.socket() as probe:
        if os.name != "nt":  # as uvicorn does: a port in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError) as error:
            raise Refused(f"--port {wanted} cannot be used: {error}; 0 takes a free one") from None
        return int(probe.getsockname()[1])


def _output(command: list[str]) -> str:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ProofFailed(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise ProofFailed(f"{shlex.join(command[:4])} ... failed:\n{said}")
    return done.stdout


def _wait_for_health(server: "subprocess.Popen[bytes]", port: int, seconds: float = 30) -> None:
    import time

    client = Client(port, lambda _text: None, [])
    deadline = time.monotonic() + seconds
    while True:
        if server.poll() is not None:
            raise ProofFailed("the app did not start")
        with suppress(OSError):
            if client.send("GET", "/health")[0] == 200:
                return
        if time.monotonic() > deadline:
            raise ProofFailed(f"/health did not answer 200 within {seconds:.0f} s")
        time.sleep(0.1)


class Client:
    """Sends requests, shows them with their answers, and holds them against what is due.

    Args:
        port: of the server on 127.0.0.1.
        say: takes a line for people.
        steps: takes a record of every request.
    """

    def __init__(self, port: int, say: Callable[[str], None], steps: list[dict[str, Any]]) -> None:
        self.port = port
        self.say = say
        self.steps = steps

    def expect(
        self, title: str, method: str, path: str, body: Any = None, *, status: int, **members: Any
    ) -> Any:
        """Send, show, compare; the answer's JSON.

        Raises:
            ProofFailed: another status, or a member that is missing or different.
        """
        self.say(f"{len(self.steps) + 1:>2}. {title}")
        self.say(f"    {method} {path}" + (f"  {json.dumps(body)}" if body is not None else ""))
        got, kind, answer = self.send(method, path, body)
        self.say(f"    {got}" + (f"  {_abridged(answer)}" if answer is not None else ""))
        self.steps.append({"title": title, "method": method, "path": path, "status": got})
        wrong = f"status {got} in place of {status}" if got != status else ""
        if status in (404, 409) and kind != "application/problem+json":
            wrong = wrong or f"Content-Type {kind} in place of application/problem+json"
        wrong = wrong or _difference("the answer", members, answer if members else {})
        if wrong:
            raise ProofFailed(f"{title}: {method} {path}: {wrong}")
        return answer

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, str, Any]:
        """Status, media type and content of the answer: JSON, other text, or None."""
        from http.client import HTTPConnection  # unlike urllib, it never asks a proxy

        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            kind = (answer.getheader("Content-Type") or "").partition(";")[0]
            text = answer.read()
        finally:
            connection.close()
        if text and "json" in kind:
            return answer.status, kind, json.loads(text)
        return answer.status, kind, text.decode(errors="replace") or None


def _abridged(answer: Any, width: int = 300) -> str:
    text = json.dumps(answer, ensure_ascii=False)
    return text if len(text) <= width else f"{text[:width]}... ({len(text)} characters)"


def _difference(where: str, expected: Any, actual: Any) -> str:
    """The first member of `expected` that `actual` does not have; "" when it has them all."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        members, answer = cast("dict[str, Any]", expected), cast("dict[str, Any]", actual)
        for key, value in members.items():
            if key not in answer:
                return f"{where} has no {key}"
            if wrong := _difference(f"{where}.{key}", value, answer[key]):
                return wrong
        return ""
    if isinstance(expected, list) and isinstance(actual, list):
        due, got = cast("Sequence[Any]", expected), cast("Sequence[Any]", actual)
        if len(due) != len(got):
            return f"{where} has {len(got)} items, not {len(due)}"
        for index, pair in enumerate(zip(due, got, strict=True)):
            if wrong := _difference(f"{where}[{index}]", *pair):
                return wrong
        return ""
    return "" if expected == actual else f"{where} is {actual!r}, not {expected!r}"


def drive(client: Client) -> None:
    """Every kind of request that the app answers; removes what it created.

    Names are new in each run, so a database that somebody uses can be proven too.
    """
    import secrets

    expect, tag = client.expect, secrets.token_hex(3)
    team = {"name": f"Preventers {tag}", "headquarters": "Sharp Tower"}
    team_id = expect("create a team", "POST", "/teams", team, status=201, **team)["id"]

    deadpond = {"name": f"Deadpond {tag}", "secret_name": "Dive Wilson", "power": 70}
    hero = expect(
        "create a hero in the team; the answer keeps the secret name back",
        "POST",
        "/heroes",
        {**deadpond, "team_id": team_id},
        status=201,
        name=deadpond["name"],
        team_id=team_id,
    )
    if "secret_name" in hero:
        raise ProofFailed("the answer to POST /heroes holds secret_name")
    rusty = {"name": f"Rusty-Man {tag}", "secret_name": "Tommy Sharp", "power": 48}
    rusty_id = expect("and one without a team", "POST", "/heroes", rusty, status=201, team_id=None)[
        "id"
    ]

    expect(
        "list with filters: this name and at least this power, sorted, a page of 10",
        "GET",
        f"/heroes?name__icontains={tag}&power__gte=50&order_by=-power&limit=10",
        status=200,
        total=1,
        items=[{"name": deadpond["name"], "team": {"name": team["name"]}}],
    )
    expect(
        "a filter that does not exist is refused, not ignored",
        "GET",
        "/heroes?powr__gte=50",
        status=422,
    )

    hero_url, rusty_url = f"/heroes/{hero['id']}", f"/heroes/{rusty_id}"
    mentor = {"mentor_id": hero["id"]}
    expect("a hero as mentor of the other", "PUT", f"{rusty_url}/mentor", mentor, status=200)
    mission = {"title": f"Save the harbour {tag}"}
    mission_id = expect("create a mission", "POST", "/missions", mission, status=201)["id"]
    role = {"role": "lead"}
    mission_url = f"{hero_url}/missions/{mission_id}"
    expect("put a hero on it, with a role", "PUT", mission_url, role, status=200, **role)
    expect(
        "relations: team, apprentices, missions, loaded with the hero",
        "GET",
        hero_url,
        status=200,
        team={"name": team["name"]},
        apprentices=[{"name": rusty["name"]}],
        assignments=[{**role, "mission": mission}],
    )

    expect(
        "update what is sent, and nothing else",
        "PATCH",
        hero_url,
        {"power": 90},
        status=200,
        power=90,
        name=deadpond["name"],
        team_id=team_id,
    )
    expect(
        "update with null: an explicit null is written",
        "PATCH",
        hero_url,
        {"team_id": None},
        status=200,
        team_id=None,
        power=90,
    )

    expect(
        "conflict: the name is taken, and the answer names the constraint",
        "POST",
        "/heroes",
        rusty,
        status=409,
        constraint="uq_hero_name",
        columns=["name"],
    )
    expect("not found", "GET", f"/heroes/{2**31 - 1}", status=404)

    for path in (hero_url, rusty_url, f"/missions/{mission_id}", f"/teams/{team_id}"):
        expect("delete", "DELETE", path, status=204)
    expect("it is gone", "GET", hero_url, status=404)


# -- both ------------------------------------------------------------------------------


class Run:
    """One command: its arguments, and the report that --json prints."""

    def __init__(self, args: argparse.Namespace, report: dict[str, Any]) -> None:
        self.args = args
        self.report = report

    def say(self, text: str = "") -> None:
        """Talk to people; beside the JSON object, where one is asked for."""
        print(text, file=sys.stderr if self.args.json else sys.stdout, flush=True)

    def lay(self, plan: Plan) -> None:
        """Report the plan, and write it unless it is a dry run."""
        for kind in ("created", "unchanged", "overwritten"):
            self.report[kind] = [str(file.path) for file in getattr(plan, kind)]
        if plan.overwritten and not self.args.force:
            names = ", ".join(self.report["overwritten"])
            raise Refused(
                f"nothing was written: --force would overwrite {names} in {plan.directory}"
            )
        if not self.args.dry_run:
            write(plan)
            self.report["written"] = True
        would = "would be " if self.args.dry_run else ""
        for kind in ("created", "overwritten", "unchanged"):
            paths: list[str] = self.report[kind]
            if paths:
                self.say(f"{would if kind != 'unchanged' else ''}{kind} in {plan.directory}:")
                self.say(textwrap.indent(textwrap.fill(", ".join(paths), 88), "  "))

    def finish(self) -> None:
        """Say what is missing and what to do next."""
        if self.report["dependencies_missing"]:
            missing = ", ".join(self.report["dependencies_missing"])
            self.say(f"the project lacks: {missing}")
        for number, step in enumerate(self.report["next"], 1):
            first, *rest = step.splitlines()
            self.say(f"{number}. {first}")
            for line in rest:
                self.say(f"     {line}".rstrip())


def _warn(message: str) -> None:
    print(f"scaffold.py: {message}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Raises in place of exiting, so that --json covers bad arguments too."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="scaffold.py",
        description=(__doc__ or "").splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{new,add}")
    shared = Parser(add_help=False)
    shared.add_argument("directory", metavar="DIR", type=Path)
    shared.add_argument("--dry-run", action="store_true", help="check and report; write nothing")
    shared.add_argument("--force", action="store_true", help="overwrite files that differ")
    shared.add_argument("--migrations", action="store_true", help="Alembic; `new` always has it")
    shared.add_argument("--json", action="store_true", help="report as one JSON object")

    command = commands.add_parser("new", parents=[shared], description="Start a new app in DIR.")
    command.add_argument("--database", choices=DRIVERS, help="sqlite unless said otherwise")
    command.add_argument("--driver", choices=DRIVER_DEPENDENCIES, help="asyncpg or aiomysql first")
    command.add_argument("--url", help="for .env; names database and driver as well")
    command.add_argument("--name", help="of the project; else the folder's")
    command.add_argument("--prove", action="store_true", help="install, start, drive over HTTP")
    command.add_argument("--port", type=int, default=0, help="for --prove; else a free one")
    command.add_argument("--keep", action="store_true", help="after --prove, serve until Ctrl-C")
    command.add_argument("--venv", type=Path, help="prove with this environment; no pip")
    command.set_defaults(run=new)
    command = commands.add_parser("add", parents=[shared], description="Lay the layer into DIR.")
    command.add_argument("--package", metavar="PKG", help="e.g. app, shop.core, src/shop")
    command.set_defaults(run=add)
    return top


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    report: dict[str, Any] = {
        "command": None,
        "directory": None,
        "package": None,
        "target": None,
        "created": [],
        "unchanged": [],
        "overwritten": [],
        "written": False,
        "dry_run": "--dry-run" in argv,
        "dependencies_missing": [],
        "next": [],
        "prove": None,
        "error": None,
    }
    code = OK
    try:
        args = parser().parse_args(argv)
        report |= {"command": args.command, "directory": str(args.directory.resolve())}
        run = Run(args, report)
        args.run(run)
        run.finish()
    except Refused as error:
        code, report["error"] = REFUSED, str(error)
    except NotWritten as error:
        code, report["error"] = NOT_WRITTEN, str(error)
    except ProofFailed as error:
        code, report["error"] = PROOF_FAILED, str(error)
    except OSError as error:
        code, report["error"] = PROOF_FAILED if report["written"] else REFUSED, str(error)
    except KeyboardInterrupt:
        code, report["error"] = INTERRUPTED, "interrupted"
    if "--json" in argv:
        print(json.dumps(report, indent=2))
    if report["error"]:
        _warn(report["error"])
    return code


if __name__ == "__main__":
    sys.exit(main())
