"""The pytest side: collects Markdown files, runs their sections, prints what was covered."""

import dataclasses
import fnmatch
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO, Any, cast

import pytest

from tests.databases import DATABASES, Servers, Unavailable, required

from .document import Block, Document, DocumentError, Section, parse
from .style import problems

ROOT = Path(__file__).parents[2]
SECTION_TIMEOUT = 120
_SERVERS = pytest.StashKey[Servers]()
_ZYGOTE = pytest.StashKey["Zygote"]()
_DOCUMENTS = pytest.StashKey[dict[str, Document]]()
_SEEN = pytest.StashKey[list[tuple[str, list[tuple[int, str]]]]]()
_UPDATES = pytest.StashKey[dict[Path, dict[int, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mdtest", "Markdown documents as tests")
    group.addoption(
        "--databases",
        default=",".join(DATABASES),
        help="Databases to run on, e.g. sqlite,postgresql (default: all)",
    )
    parser.addini("mdtest", "Markdown documents that are tests (patterns)", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    chosen = _chosen(config)
    unknown = set(chosen) - set(DATABASES)
    if unknown:
        names = ", ".join(DATABASES)
        raise pytest.UsageError(f"--databases: unknown {sorted(unknown)}; choose from {names}")
    try:
        demanded = required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_SERVERS] = servers = Servers()
    config.stash[_DOCUMENTS] = {}
    config.stash[_SEEN] = []
    config.stash[_UPDATES] = {}
    if hasattr(config, "workerinput"):
        return
    # A stopped run stops its servers: SIGTERM takes the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if demanded or getattr(config.option, "numprocesses", None):
        # Before xdist starts its workers, which find the servers in the environment.
        for database in chosen:
            if database != "sqlite":
                try:
                    servers.url(database)
                except Unavailable as error:
                    if database in demanded:
                        raise pytest.UsageError(f"{database} is required: {error}") from None


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
        metafunc.parametrize("database", _chosen(metafunc.config))


def _chosen(config: pytest.Config) -> list[str]:
    return [name.strip() for name in config.getoption("--databases").split(",") if name.strip()]


# -- collection ----------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "MarkdownFile | None":
    if file_path.suffix != ".md" or not file_path.is_relative_to(parent.config.rootpath):
        return None
    relative = file_path.relative_to(parent.config.rootpath).as_posix()
    if any(fnmatch.fnmatch(relative, pattern) for pattern in parent.config.getini("mdtest")):
        return cast(MarkdownFile, MarkdownFile.from_parent(parent, path=file_path))
    return None


class MarkdownFile(pytest.File):
    """A document: one item for its style, one for each section and database."""

    def collect(self) -> Iterable[pytest.Item]:
        try:
            document = parse(self.path)
        except DocumentError as error:
            raise self.CollectError(str(error)) from None
        self.config.stash[_DOCUMENTS][str(self.path)] = document
        yield StyleItem.from_parent(self, name="style", document=document)
        tested: set[int] = set()
        for title, section in document.tests():
            tested |= {block.line for block in section.program()}
            for database in _chosen(self.config):
                if not section.databases or database in section.databases:
                    yield SectionItem.from_parent(
                        self,
                        name=f"{title}[{database}]",
                        document=document,
                        section=section,
                        database=database,
                    )
        for block in document.blocks():
            if block.line not in tested:
                raise self.CollectError(f"{self.path}:{block.line}: no test runs this block")


class StyleItem(pytest.Item):
    """Lint and format of every Python block."""

    def __init__(self, *, document: Document, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.document = document

    def runtest(self) -> None:
        found = problems(self.document)
        if found:
            raise MarkdownFailure("\n".join(found))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *_: Any) -> Any:
        return _report(super().repr_failure, excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name


class SectionItem(pytest.Item):
    """A section on a database."""

    def __init__(
        self, *, document: Document, section: Section, database: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.document = document
        self.section = section
        self.database = database
        self.add_marker(database)

    def runtest(self) -> None:
        servers = self.config.stash[_SERVERS]
        folder = Path(tempfile.mkdtemp(prefix="mdtest-"))
        self._run(servers, folder)
        shutil.rmtree(folder)  # a failed section leaves its folder to look at

    def _run(self, servers: Servers, folder: Path) -> None:
        skills = folder / ".agents" / "skills"
        skills.mkdir(parents=True)
        (skills / "async-sqlmodel").symlink_to(ROOT)
        try:
            url = servers.create(self.database, folder)
        except Unavailable as error:
            if self.database in required():
                raise MarkdownFailure(f"{self.database} is required: {error}") from None
            pytest.skip(str(error))
        blocks = self.section.program()
        try:
            result = self._zygote().run(
                {
                    "document": str(self.path),
                    "folder": str(folder),
                    "database": self.database,
                    "environment": {
                        "DATABASE_URL": url.render_as_string(hide_password=False),
                        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                        "HOME": str(folder),
                    },
                    "blocks": [dataclasses.asdict(block) for block in blocks],
                    "update": self.config.getoption("update_examples"),
                }
            )
        finally:
            servers.drop(url)
        where = self.path.relative_to(self.config.rootpath)
        if "died" in result:
            output = (folder / ".output").read_text(errors="replace")[-4000:]
            raise MarkdownFailure(
                f"{where}:{self.section.line}: the process of the section ended: "
                f"{result['died']}\n{result.get('details', '')}{output}"
            )
        handled = [
            (block.line, outcome)
            for block, outcome in zip(blocks, result["outcomes"], strict=True)
            if outcome
        ]
        self.user_properties.append(("mdtest", (str(self.path), self.database, handled)))
        updates = self.config.stash[_UPDATES].setdefault(self.path, {})
        updates |= {int(line): code for line, code in result["updates"].items()}
        if result["failure"]:
            failure = result["failure"]
            text = f"{where}:{failure['line']}: {failure['message']}"
            if self.document.path.exists():
                lines = self.document.path.read_text("utf-8").splitlines()
                text += f"\n\n    {lines[failure['line'] - 1].strip()}\n"
            raise MarkdownFailure(f"{text}\n{failure['details']}".rstrip() + f"\n\nfolder: {folder}")
        unaccounted = [block.line for block in blocks if block.line not in dict(handled)]
        if unaccounted:
            raise MarkdownFailure(f"{where}: nothing looked at the blocks on lines {unaccounted}")

    def _zygote(self) -> "Zygote":
        if _ZYGOTE not in self.config.stash:
            self.config.stash[_ZYGOTE] = Zygote()
        return self.config.stash[_ZYGOTE]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *_: Any) -> Any:
        return _report(super().repr_failure, excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.section.line - 1, self.name


class MarkdownFailure(Exception):
    """A message for people: no Python traceback of the harness."""


def _report(fallback: Any, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    if isinstance(excinfo.value, MarkdownFailure):
        return str(excinfo.value)
    return fallback(excinfo)


# -- processes -----------------------------------------------------------------


class Zygote:
    """Client of `zygote`."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.mdtest.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job in a forked child; a child that hangs is killed."""
        requests, answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        requests.write(json.dumps(job, default=sorted) + "\n")
        requests.flush()
        child = json.loads(answers.readline())["pid"]
        ready, _, _ = select.select([answers], [], [], SECTION_TIMEOUT)
        if not ready:
            os.kill(child, signal.SIGKILL)
        result: dict[str, Any] = json.loads(answers.readline())
        if not ready:
            result = {"died": f"no end after {SECTION_TIMEOUT} s"}
        return result

    def stop(self) -> None:
        cast(IO[str], self._process.stdin).close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


# -- what was covered ----------------------------------------------------------


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "mdtest" and report.when == "call":
            _COVERED.append(cast(Any, value))


_COVERED: list[tuple[str, str, list[tuple[int, str]]]] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Blocks found, and on how many each database ran or checked them."""
    if not _COVERED:
        return
    documents = {path: parse(Path(path)) for path in sorted({path for path, _, _ in _COVERED})}
    databases = _chosen(config)
    done: dict[tuple[str, int], set[str]] = {}
    outcomes: dict[tuple[str, int], str] = {}
    for path, database, handled in _COVERED:
        for line, outcome in handled:
            done.setdefault((path, line), set()).add(database)
            outcomes[path, line] = outcome

    found: Counter[str] = Counter()
    ran: Counter[tuple[str, str]] = Counter()
    checked: Counter[str] = Counter()
    unaccounted: Counter[str] = Counter()
    wrong = 0
    for path, document in documents.items():
        for block in document.blocks():
            found[block.language] += 1
            wrong += bool(block.raises)
            seen = done.get((path, block.line), set())
            if outcomes.get((path, block.line)) == "checked":
                checked[block.language] += 1
            for database in seen if outcomes.get((path, block.line)) == "run" else ():
                ran[block.language, database] += 1
            unaccounted[block.language] += not seen

    write = terminalreporter.write_line
    terminalreporter.section(f"blocks in {len(documents)} documents")
    columns = "".join(f"{f'run: {name}':>17}" for name in databases)
    write(f"{'language':<10}{'found':>7}{columns}{'checked':>10}{'unaccounted':>13}")
    for language in [*sorted(found), "all"]:
        def total(counter: Counter[Any], *key: str) -> int:
            if language != "all":
                return counter[(language, *key) if key else language]
            return sum(counter[(each, *key) if key else each] for each in found)

        cells = "".join(f"{total(ran, name):>17}" for name in databases)
        write(
            f"{language:<10}{total(found):>7}{cells}{total(checked):>10}{total(unaccounted):>13}"
        )
    write(f"{wrong} of the Python blocks are wrong examples that raise what they say")


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
        height = blocks[line].code.count("\n")
        lines[line - 1 : line - 1 + height] = updates[line].splitlines(keepends=True)
    path.write_text("".join(lines), "utf-8")
