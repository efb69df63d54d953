"""The pytest side: collects Markdown files, runs their sections."""

import fnmatch
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar, cast

import pytest
from sqlalchemy import URL

from tests.clusters import pgbouncer_for, primary_and_standby
from tests.databases import DATABASES, Servers, Unavailable, required

from .document import Block, Document, DocumentError, Section, parse
from .style import problems
from .summary import Blocks, Summary

ROOT = Path(__file__).parents[2]
_SERVERS = pytest.StashKey[Servers]()
_ZYGOTE = pytest.StashKey["Zygote"]()
_UPDATES = pytest.StashKey[dict[Path, dict[int, str]]]()
_Run = TypeVar("_Run", bound="RunItem")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mdtest", "Markdown documents as tests")
    group.addoption(
        "--databases",
        default=",".join(DATABASES),
        help="Databases to run on, e.g. sqlite,postgresql (default: all)",
    )
    group.addoption(
        "--section-timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="A section of a document that takes longer fails (default: 120)",
    )
    group.addoption(
        "--keep-folders",
        action="store_true",
        help="Keep the project folders of sections that fail, and say where they are",
    )
    group.addoption(
        "--flip",
        action="store_true",
        help="Exchange the promises of each Wrong: and Right: pair, instead of running sections; "
        "what then does not fail proves nothing",
    )
    parser.addini("mdtest", "Markdown documents that are tests (patterns)", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    chosen = _chosen(config)
    unknown = sorted(set(chosen) - set(DATABASES))
    if unknown:
        names = ", ".join(DATABASES)
        raise pytest.UsageError(f"--databases: unknown {', '.join(unknown)}; choose from {names}")
    try:
        demanded = required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if left_out := sorted(demanded - set(chosen)):
        names = ", ".join(left_out)
        raise pytest.UsageError(f"REQUIRE_DATABASES names {names}; --databases leaves it out")
    config.stash[_SERVERS] = servers = Servers()
    config.stash[_UPDATES] = {}
    if not config.getoption("flip"):  # which does not run what the documents say
        config.pluginmanager.register(Summary(config, chosen), "mdtest-summary")
    # A stopped run stops its servers: these signals take the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    if hasattr(config, "workerinput") or config.getoption("collectonly"):
        return
    workers = config.getoption("numprocesses", None)
    if workers and config.getoption("update_examples"):
        raise pytest.UsageError("--update-examples rewrites documents: run it without -n")
    if not workers:
        # Servers start when first asked for, but a run that lacks one ends at once.
        chosen = [database for database in chosen if database in demanded]
    for database in chosen:  # before xdist's workers, which find them in the environment
        try:
            servers.start(database)
        except Unavailable as error:
            if database in demanded:
                raise pytest.UsageError(f"{database} is required: {error}") from None
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    zygote = config.stash.get(_ZYGOTE, None)
    if zygote is not None:
        zygote.stop()
    servers = config.stash.get(_SERVERS, None)
    if servers is not None:
        servers.stop()


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Servers:
    """The database servers of this run."""
    return pytestconfig.stash[_SERVERS]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests with a `database` argument run once on each database."""
    if "database" in metafunc.fixturenames:
        metafunc.parametrize("database", wanted(metafunc))


def wanted(metafunc: pytest.Metafunc) -> list[str]:
    """The chosen databases, without those that `@pytest.mark.only("mysql")` leaves out."""
    only = metafunc.definition.get_closest_marker("only")
    chosen = _chosen(metafunc.config)
    return [each for each in chosen if only is None or each in only.args]


def _chosen(config: pytest.Config) -> list[str]:
    option = cast(str, config.getoption("--databases"))
    return [name.strip() for name in option.split(",") if name.strip()]


# -- collection ----------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".md" or not file_path.is_relative_to(parent.config.rootpath):
        return None
    relative = file_path.relative_to(parent.config.rootpath).as_posix()
    if any(fnmatch.fnmatch(relative, pattern) for pattern in parent.config.getini("mdtest")):
        return MarkdownFile.make(parent, path=file_path)
    return None


class _Made:
    """`from_parent` of pytest, with types."""

    @classmethod
    def make(cls, parent: pytest.Collector, **arguments: Any) -> Self:
        return cast(Self, cast(Any, cls).from_parent(parent, **arguments))


class MarkdownFile(_Made, pytest.File):
    """A document: one item for its style, one for each section and database."""

    def collect(self) -> Iterable[pytest.Item]:
        where = self.path.relative_to(self.config.rootpath)
        try:
            document = parse(where, self.path.read_text("utf-8"))
        except DocumentError as error:
            raise self.CollectError(str(error)) from None
        if self.config.getoption("flip"):
            yield from self._flipped(document)
            return
        yield StyleItem.make(self, name="style", document=document)
        tested: set[int] = set()
        for title, section in document.tests():
            tested |= {block.line for block in section.program()}
            for database in self._databases(section):
                yield self._item(SectionItem, title, document, section, database)
        for block in document.blocks():
            if block.line not in tested:
                raise self.CollectError(f"{where}:{block.line}: no test runs this block")

    def _flipped(self, document: Document) -> Iterable[pytest.Item]:
        for title, section in document.tests():
            wrong = [block for block in section.blocks if block.role == "wrong"]
            right = [block for block in section.blocks if block.role == "right"]
            if len(wrong) != len(right):
                raise self.CollectError(f"{self.path}: {title}: not as many wrong as right")
            for database, pair in product(self._databases(section), zip(wrong, right, strict=True)):
                for flipped in _exchanged(*pair, database):
                    name = f"{title}, {flipped.role}"
                    item = self._item(FlippedItem, name, document, section, database)
                    item.flipped = flipped
                    yield item

    def _databases(self, section: Section) -> list[str]:
        chosen = _chosen(self.config)
        return [each for each in chosen if not section.databases or each in section.databases]

    def _item(
        self, kind: "type[_Run]", title: str, document: Document, section: Section, database: str
    ) -> "_Run":
        name = f"{title}[{database}]"
        return kind.make(
            self,
            name=name,
            # As text, so that pytest reads it as it reads its own cache (--lf).
            nodeid=f"{self.nodeid}::{name}",
            document=document,
            section=section,
            database=database,
        )


def _exchanged(wrong: Block, right: Block, database: str) -> Iterator[Block]:
    """The wrong example without its promise, and the right one with it."""
    promise = wrong.expected(database)
    if promise is None:
        return
    yield replace(wrong, raises=())
    if right.language == "python" and not right.name:  # a command or a file promises nothing
        last = right.line + right.code.rstrip().count("\n")
        yield replace(right, raises=(replace(promise, line=last),))


class MarkdownItem(_Made, pytest.Item):
    """Reports a `MarkdownFailure` without a traceback of the harness."""

    def repr_failure(
        self,
        excinfo: pytest.ExceptionInfo[BaseException],
        style: Literal["long", "short", "line", "no", "native", "value", "auto"] | None = None,
    ) -> Any:
        if isinstance(excinfo.value, MarkdownFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)


class StyleItem(MarkdownItem):
    """Lint and format of every Python block."""

    document: Document

    def __init__(self, *, document: Document, **kwargs: Any) -> None:
        cast(Any, super()).__init__(**kwargs)
        self.document = document

    def runtest(self) -> None:
        found = problems(self.document)
        if found:
            raise MarkdownFailure("\n".join(found))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name


class RunItem(MarkdownItem):
    """Runs a section on a database."""

    document: Document
    section: Section
    database: str

    def __init__(
        self, *, document: Document, section: Section, database: str, **kwargs: Any
    ) -> None:
        cast(Any, super()).__init__(**kwargs)
        self.document = document
        self.section = section
        self.database = database
        self.add_marker(database)

    def program(self) -> list[Block]:
        return self.section.program()

    def runtest(self) -> None:
        for name, least in self.section.versions:
            if too_old := older(name, least):
                pytest.skip(f"since {name} {least}: {too_old}")
        with self._scratch() as scratch, self._servers(scratch) as variables:
            self._check(scratch, self._run(scratch, variables))

    @contextmanager
    def _scratch(self) -> Generator[Path]:
        """Holds the project folder and, beside it, what the document must not see."""
        scratch = Path(tempfile.mkdtemp(prefix="mdtest-")).resolve()
        try:
            skills = scratch / "project" / ".agents" / "skills"
            skills.mkdir(parents=True)
            (skills / "async-sqlmodel").symlink_to(ROOT)
            yield scratch
        except MarkdownFailure as failure:
            if not self.config.getoption("keep_folders"):
                raise
            kept = Path(tempfile.mkdtemp(prefix="kept-mdtest-"))
            shutil.copytree(scratch, kept, symlinks=True, dirs_exist_ok=True)
            raise MarkdownFailure(f"{failure}\n\nfolder: {kept / 'project'}") from None
        finally:
            shutil.rmtree(scratch)

    @contextmanager
    def _servers(self, scratch: Path) -> Generator[dict[str, str]]:
        """What the section runs against, as variables of its environment."""
        with ExitStack() as cleanup:
            try:
                urls = self._start(scratch, cleanup)
            except Unavailable as error:
                if self.database in required():
                    raise MarkdownFailure(f"{self.database} is required: {error}") from None
                pytest.skip(str(error))
            except RuntimeError as error:
                raise MarkdownFailure(str(error)) from None
            yield {name: url.render_as_string(hide_password=False) for name, url in urls.items()}

    def _start(self, scratch: Path, cleanup: ExitStack) -> dict[str, URL]:
        if self.section.server == "standby":
            primary, standby = cleanup.enter_context(primary_and_standby())
            return {
                "DATABASE_URL": primary.url(user="postgres"),
                "DATABASE_REPLICA_URL": standby.url(user="postgres"),
            }
        servers = self.config.stash[_SERVERS]
        url = servers.create(self.database, scratch)
        cleanup.callback(servers.drop, url)
        if self.section.server == "pgbouncer":
            url = cleanup.enter_context(pgbouncer_for(url))
        return {"DATABASE_URL": url}

    def _run(self, scratch: Path, variables: dict[str, str]) -> dict[str, Any]:
        folder = scratch / "project"
        job = {
            "document": str(self.path),
            "folder": str(folder),
            "scratch": str(scratch),
            "database": self.database,
            "databases": self.section.databases or DATABASES,
            "environment": {
                **variables,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(folder),
            },
            "blocks": [asdict(block) for block in self.program()],
            "inherited": len(self.section.inherited()),
            "timeout": self.config.getoption("section_timeout"),
            "update": self.config.getoption("update_examples"),
        }
        stash = self.config.stash
        if _ZYGOTE not in stash:
            stash[_ZYGOTE] = Zygote()
        try:
            return stash[_ZYGOTE].run(job)
        except BaseException:  # Ctrl-C: the section ends before its folder goes
            stash[_ZYGOTE].stop()
            del stash[_ZYGOTE]
            raise

    def _check(self, scratch: Path, result: dict[str, Any]) -> None:
        where = self.document.path
        if "died" in result:
            output = (scratch / "output").read_text(errors="replace")[-4000:]
            raise MarkdownFailure(
                f"{where}:{self.section.line}: the process of the section ended: "
                f"{result['died']}\n{result.get('details', '')}{output}"
            )
        outcomes = [
            (block.line, outcome)
            for block, outcome in zip(self.program(), result["outcomes"], strict=True)
        ]
        self.user_properties.append(("mdtest", [each for each in outcomes if each[1]]))
        updates = self.config.stash[_UPDATES].setdefault(self.path, {})
        updates |= {int(line): code for line, code in result["updates"].items()}
        if result["failure"]:
            failure = cast(dict[str, Any], result["failure"])
            line = cast(int, failure["line"])
            row = self.path.read_text("utf-8").split("\n")[line - 1].strip()
            text = f"{where}:{line}: {failure['message']}\n\n    {row}\n\n{failure['details']}"
            raise MarkdownFailure(text.rstrip())
        for line, outcome in outcomes:
            if not outcome:
                raise MarkdownFailure(f"{where}:{line}: nothing looked at this block")

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.section.line - 1, self.name


class SectionItem(RunItem):
    """A section as it stands."""

    def blocks(self) -> Blocks:
        """What the item stands for in the summary."""
        lines = [block.line for block in self.program()]
        return Blocks(str(self.document.path), self.database, lines)


class FlippedItem(RunItem):
    """A section in which a wrong example is told to be right, or the other way round."""

    flipped: Block

    def program(self) -> list[Block]:
        blocks = super().program()
        return [self.flipped if each.line == self.flipped.line else each for each in blocks]

    def runtest(self) -> None:
        first = self.flipped.line
        try:
            super().runtest()
        except MarkdownFailure as failure:
            _, line, _ = str(failure).split(":", 2)
            if first <= int(line) <= first + self.flipped.code.count("\n"):
                return
            raise
        raise MarkdownFailure(f"{self.document.path}:{first}: flipped, and nothing noticed")


def older(name: str, least: str) -> str:
    """What is installed, where that is older or nothing."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return "not installed"
    numbers = [tuple(map(int, re.findall(r"\d+", each))) for each in (found, least)]
    return f"{found} is installed" if numbers[0] < numbers[1] else ""


class MarkdownFailure(Exception):
    """A message for people: `path:line: what is wrong`."""


# -- processes -----------------------------------------------------------------


class Zygote:
    """Client of `zygote`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mdtest.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job in a forked child; a child that hangs is killed."""
        requests, answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        requests.write(json.dumps(job, default=sorted) + "\n")
        requests.flush()
        child = json.loads(answers.readline())["pid"]
        # The child ends itself in time, and says where it was, unless it is wedged.
        ready, _, _ = select.select([answers], [], [], job["timeout"] + 10)
        if not ready:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        result: dict[str, Any] = json.loads(answers.readline())
        if not ready:
            result = {"died": f"no end after {job['timeout']:g} s"}
        return result

    def stop(self) -> None:
        """End the process, and the child that it may be running."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# -- --update-examples ---------------------------------------------------------


@pytest.hookimpl(hookwrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Write the `#>` lines of `--update-examples` back into the documents."""
    yield
    for path, updates in session.config.stash[_UPDATES].items():
        if updates:
            _rewrite(path, updates)


def _rewrite(path: Path, updates: dict[int, str]) -> None:
    lines = path.read_text("utf-8").splitlines(keepends=True)
    blocks: dict[int, Block] = {block.line: block for block in parse(path).blocks()}
    for line in sorted(updates, reverse=True):
        code = blocks[line].code
        indent = lines[line - 1].removesuffix(code.splitlines(keepends=True)[0])
        new = [indent + each for each in updates[line].splitlines(keepends=True)]
        lines[line - 1 : line - 1 + code.count("\n")] = new
    path.write_text("".join(lines), "utf-8")
