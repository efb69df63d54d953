"""Mutation check: change one operator of the layer, and see whether a test notices.

`make mutants`, or for a part `make mutants ARGS='--files paging sorting:61 --survivors'`, or
`make mutants ARGS='--databases sqlite --sample 200'`.

What is changed, one at a time: comparisons (`<` to `<=` and to `>=`, `==`, `is` and `in` to
their opposites), `and` and `or`, a dropped `not`, integers (one more), `+` and `-` of numbers,
bounds of slices (one more), True and False. What is not, because no behaviour hangs on it or
because it only words an error; the report counts it: annotations, overloads, `if
TYPE_CHECKING`, what a `raise` or an f-string holds, `zip(strict=...)`, `dataclass(frozen=...)`,
flags that let SQLAlchemy cache.

First the tests run unchanged, under coverage, to learn which test executes which line. Each
mutant then gets the tests that execute its statement: those of SQLite first, the other
databases' only where SQLite's noticed nothing. All of it happens on a snapshot in a temporary
folder; a mutant exists only in the memory of a forked process. What no test executes has
survived, so a run without PostgreSQL and MariaDB counts their branches as survivors. The order
is random: after Ctrl-C the report is about a sample.

Exit status 1: fewer than 90 % died, there was nothing to change, the tests were red before, or a
test that killed fails by itself too.
"""

import argparse
import ast
import difflib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from itertools import accumulate, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
SURVEY = ROOT / ".mutants" / "survey.json"  # kept: the same files need no second one
DATABASES = ("sqlite", "postgresql", "mysql")
LAYER = "assets/example/app/db"
TESTS = "tests/layer"
MODULES = (
    "reading", "service", "bulk", "paging", "sorting", "filters", "operators", "json_operators",
    "aggregates", "loading", "transactions", "client_query",
)  # fmt: skip
ENOUGH = 0.9


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# --- mutants --------------------------------------------------------------------------

_COMPARISONS = {
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "is": ("is not",),
    "is not": ("is",),
    "in": ("not in",),
    "not in": ("in",),
}
_COMPARISON = re.compile(r"\bnot\s+in\b|\bis\s+not\b|\bin\b|\bis\b|[<>=!]=|[<>]")
_JUNCTION = re.compile(r"\b(and|or)\b")
_SIGN = re.compile(r"[+-]")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        module: name of the file, without `.py`.
        line: where the change is.
        start, end, new: these bytes of the file become these.
        lines: a test that executes one of them can notice.
        at_import: the lines run when the module is imported, before any test.
    """

    module: str
    line: int
    start: int
    end: int
    new: bytes
    lines: range
    at_import: bool

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.end :]


class Finder:
    """Finds the mutants of a file, in `mutants`; counts in `excluded` what is left alone."""

    def __init__(self, module: str, source: bytes) -> None:
        self.module, self.source = module, source
        self.mutants: list[Mutant] = []
        self.excluded: Counter[str] = Counter()
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        tree = ast.parse(source)
        for statement in tree.body:
            self._walk(statement, statement, None, inside=False)

    def _walk(self, node: ast.AST, owner: ast.stmt, why_not: str | None, *, inside: bool) -> None:
        """`owner`: the statement that a node belongs to; `inside`: a function, which has it."""
        why_not = why_not or _excluded(node)
        for start, end, new in self._edits(node):
            if why_not:
                self.excluded[why_not] += 1
            else:
                where = self._lines(node, owner, inside)
                at_import = not inside and not isinstance(owner, _FUNCTIONS)
                line = self.source[:start].count(b"\n") + 1
                self.mutants.append(
                    Mutant(self.module, line, start, end, new.encode(), where, at_import)
                )
        annotations = (getattr(node, "annotation", None), getattr(node, "returns", None))
        for child in ast.iter_child_nodes(node):
            reason = why_not or ("annotations" if child in annotations else None)
            owned = child if isinstance(child, ast.stmt) else owner
            body = isinstance(node, _FUNCTIONS) and child in node.body
            self._walk(child, owned, reason, inside=inside or body)

    def _lines(self, node: ast.AST, owner: ast.stmt, inside: bool) -> range:
        body: list[ast.stmt] = getattr(owner, "body", [])
        if isinstance(owner, _FUNCTIONS):  # a default: who calls the function
            return range(body[0].lineno, (owner.end_lineno or 0) + 1)
        if not inside:  # a lambda in a table: who calls it
            return range(getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) + 1)
        return range(owner.lineno, body[0].lineno if body else (owner.end_lineno or 0) + 1)

    def _edits(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        match node:
            case ast.Compare(left=left, comparators=others):
                for one, two in pairwise([left, *others]):
                    start, end, text = self._between(one, two, _COMPARISON)
                    for new in _COMPARISONS[" ".join(text.split())]:
                        yield start, end, new
            case ast.BoolOp(values=values):
                for one, two in pairwise(values):
                    start, end, text = self._between(one, two, _JUNCTION)
                    yield start, end, "or" if text == "and" else "and"
            case ast.UnaryOp(op=ast.Not()):
                start, _ = self._span(node)
                yield start, start + len("not"), ""
            case ast.BinOp(left=one, op=ast.Add() | ast.Sub(), right=two):
                if not _is_text(one) and not _is_text(two):
                    start, end, text = self._between(one, two, _SIGN)
                    yield start, end, "-" if text == "+" else "+"
            case ast.Slice(lower=lower, upper=upper):
                for bound in (lower, upper):
                    if bound is not None and not _is_number(bound):
                        start, end = self._span(bound)
                        yield start, end, f"({self.source[start:end].decode()}) + 1"
            case ast.Constant(value=bool(value)):
                yield *self._span(node), str(not value)
            case ast.Constant(value=int(value)):
                yield *self._span(node), str(value + 1)
            case _:
                pass

    def _span(self, node: ast.expr) -> tuple[int, int]:
        end = self._starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        return self._starts[node.lineno - 1] + node.col_offset, end

    def _between(
        self, one: ast.expr, two: ast.expr, operator: re.Pattern[str]
    ) -> tuple[int, int, str]:
        """Where the operator between two operands stands, and how it is spelled."""
        (_, start), (end, _) = self._span(one), self._span(two)
        text = self.source[start:end].decode("latin-1")
        found = operator.search(re.sub("#.*", lambda comment: " " * len(comment[0]), text))
        if found is None:  # in an f-string, which Python 3.11 does not place; never changed
            return start, end, "==" if operator is _COMPARISON else ""
        return start + found.start(), start + found.end(), found[0]


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _excluded(node: ast.AST) -> str | None:
    match node:
        case ast.Raise() | ast.JoinedStr():
            return "messages"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return "if TYPE_CHECKING"
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            names = [getattr(each, "id", "") for each in node.decorator_list]
            return "overloads" if "overload" in names else None
        case ast.keyword(arg="strict", value=ast.Constant()):
            return "zip(strict=...)"
        case ast.Call(func=ast.Name(id="dataclass")):
            return "dataclass(...)"
        case ast.Assign(targets=[ast.Name(id="cache_ok" | "inherit_cache")]):
            return "SQLAlchemy's caching"
        case _:
            return None


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    text = isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    return text or isinstance(node, ast.JoinedStr | ast.List | ast.Tuple)


def _is_number(node: ast.expr) -> bool:  # has its own mutant
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


# --- running tests in forked processes ------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended: "green", "red" or "timeout"; by which test."""

    result: str
    test: str = ""


class _Chosen:
    """Runs the named tests in the order of their names; tells the first one that fails."""

    def __init__(self, tests: Sequence[str], tell: Callable[[str], object]) -> None:
        self._order = {test: place for place, test in enumerate(tests)}
        self._tell = tell

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order),
            key=lambda item: self._order[item.nodeid],
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._tell(f"{report.nodeid}\n")


def _fork(work: Callable[[Callable[[str], object]], int], seconds: float) -> tuple[int, str]:
    """Do work in a child; its exit status (minus a signal's number), and what it told."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(reader)
            log = os.open(f"log-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(seconds))
            with os.fdopen(writer, "w") as told:
                code = work(told.write)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    try:
        with os.fdopen(reader) as told:
            text = told.read()
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    log_file = Path(f"log-{child}")
    code = os.waitstatus_to_exitcode(status)
    if code not in {0, 1, 2} and code >= 0:
        raise RuntimeError(f"pytest ended with {code}:\n{log_file.read_text()[-3000:]}")
    log_file.unlink()
    shutil.rmtree(f"tmp-{child}", ignore_errors=True)
    return code, text.partition("\n")[0]


def _pytest(paths: Iterable[str], databases: str, plugin: object, *options: str) -> int:
    os.environ["REQUIRE_DATABASES"] = databases  # a missing server is an error, not a skip
    return int(
        pytest.main(
            [*paths, "-q", "-p", "no:cacheprovider", f"--basetemp=tmp-{os.getpid()}",
             f"--databases={databases}", *options],
            plugins=[plugin],
        )
    )  # fmt: skip


def run(mutant: Mutant | None, tests: Sequence[str], databases: str, seconds: float) -> Outcome:
    """Run tests, until one fails, on the layer with a change."""

    def work(tell: Callable[[str], object]) -> int:
        if mutant is not None:
            _import_changed(mutant)
        try:
            for name in ("app.db", "tests.layer.models"):  # what the conftest imports
                importlib.import_module(name)
        except Exception as error:
            traceback.print_exc()
            tell(f"import: {type(error).__name__}\n")
            return 1
        paths = dict.fromkeys(test.partition("::")[0] for test in tests)
        return _pytest(paths, databases, _Chosen(tests, tell), "-x")

    code, test = _fork(work, seconds)
    if code == -signal.SIGALRM:
        return Outcome("timeout")
    return Outcome("red" if code else "green", test or (f"exit {code}" if code else ""))


def _import_changed(mutant: Mutant) -> None:
    path = Path(LAYER, f"{mutant.module}.py").resolve()
    changed = mutant.apply(path.read_bytes())
    get_code = SourceFileLoader.get_code

    def get_changed(self: Any, name: str) -> Any:
        return compile(changed, path, "exec") if self.path == str(path) else get_code(self, name)

    setattr(SourceFileLoader, "get_code", get_changed)  # noqa: B010 - typed as final


# --- which test executes which line ---------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """Seconds of each test, tests by module and line, and the tests that failed."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]
    failed: list[str]

    def tests(self, mutant: Mutant) -> set[str]:
        """The tests that can notice a mutant."""
        lines = self.lines[mutant.module]
        found = {test for line in mutant.lines for test in lines.get(line, ())}
        if not found and mutant.at_import:
            found = {test for tests in lines.values() for test in tests}
        return found


class _Watch:
    def __init__(self, watched: coverage.Coverage) -> None:
        self._coverage = watched
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        for name, module in [*sys.modules.items()]:
            if name.startswith("app."):  # what was computed for an earlier test
                for value in vars(module).values():
                    getattr(value, "cache_clear", int)()
        self._coverage.switch_context(item.nodeid)
        result = yield
        self._coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def survey_file(databases: str, path: str) -> dict[str, Any]:
    """A survey of one file of tests, as JSON: `[seconds, lines, failed]`."""

    def work(tell: Callable[[str], object]) -> int:
        watched = coverage.Coverage(
            data_file=None, include=[f"{LAYER}/*"], concurrency=["greenlet", "thread"]
        )
        watched.start()
        watch = _Watch(watched)
        code = _pytest([path], databases, watch)
        if code:
            shutil.copy(f"log-{os.getpid()}", f"red-{Path(path).stem}")
        watched.stop()
        data = watched.get_data()
        lines = {
            module: data.contexts_by_lineno(str(Path(LAYER, f"{module}.py").resolve()))
            for module in MODULES
        }
        failed = [*watch.failed] or ([path] if code else [])
        tell(json.dumps({"seconds": watch.seconds, "lines": lines, "failed": failed}))
        return 0

    found: dict[str, Any] = json.loads(_fork(work, 3600)[1])
    say(f"  {path}: {len(found['seconds'])} tests, {sum(found['seconds'].values()):.0f} s")
    return found


def survey(pool: Any, databases: str, paths: Sequence[str]) -> Survey:
    """A survey of the snapshot, made now, or before if the files were the same."""
    files = sorted(Path().glob(f"{LAYER}/*.py")) + sorted(Path("tests").rglob("*.py"))
    digest = hashlib.sha256(f"{sys.version} {databases} {paths}".encode())
    for file in files:
        digest.update(file.read_bytes())
    stored: dict[str, Any] = json.loads(SURVEY.read_text()) if SURVEY.exists() else {}
    if stored.get("digest") != digest.hexdigest():
        say("The unchanged layer: which test executes which line")
        parts = pool.imap_unordered(partial(survey_file, databases), paths, chunksize=1)
        stored = {"digest": digest.hexdigest(), "parts": [*parts]}
        SURVEY.parent.mkdir(exist_ok=True)
        SURVEY.write_text(json.dumps(stored))
    result = Survey({}, {module: defaultdict(list) for module in MODULES}, [])
    for part in stored["parts"]:
        result.seconds.update(part["seconds"])
        result.failed.extend(part["failed"])
        for module, lines in part["lines"].items():
            for line, tests in lines.items():
                result.lines[module][int(line)] += [test for test in tests if test]
    return result


# --- the check ------------------------------------------------------------------------


def database_of(test: str) -> str:
    parameters = test.partition("[")[2]
    return next((name for name in DATABASES if f"{name}-" in parameters), DATABASES[0])


Round = tuple[str, list[str], float]
Verdict = tuple[Mutant, Outcome, str]


def rounds(
    mutant: Mutant, surveyed: Survey, databases: Sequence[str], most: float
) -> Iterator[Round]:
    """What to try a mutant with: database, tests and their seconds; near and fast ones first.

    Args:
        most: seconds of tests for each database; the slowest are left out.
    """
    found = surveyed.tests(mutant)
    for database in databases:
        tests = [test for test in found if database_of(test) == database]
        tests.sort(key=lambda test: surveyed.seconds[test])
        spent = accumulate(surveyed.seconds[test] for test in tests)
        chosen = [test for test, total in zip(tests, spent, strict=True) if total <= most]
        chosen = chosen or tests[:1]
        hits = Counter(test.partition("::")[0] for test in chosen)
        hits[f"{TESTS}/test_{mutant.module}.py"] *= len(found)
        near = max(hits, key=lambda path: hits[path])
        # Importing the other files of tests takes longer than most mutants live.
        for first in (True, False):
            if part := [test for test in chosen if test.startswith(near) is first]:
                yield database, part, sum(surveyed.seconds[test] for test in part)


def judge(job: tuple[Mutant, list[Round]]) -> Verdict:
    """The mutant, how its last round ended, and on which database ("" where no test ran)."""
    mutant, tries = job
    outcome, database = Outcome("green"), ""
    for database, tests, seconds in tries:
        outcome = run(mutant, tests, database, 60 + 10 * seconds)
        if outcome.result != "green":
            break
    return mutant, outcome, database


def report(verdicts: Sequence[Verdict], excluded: Counter[str], databases: Sequence[str]) -> str:
    lines = [
        "| File | Mutants | Killed | " + " | ".join(f"on {name}" for name in databases)
        + " | by timeout | Survived | no test runs it |",
        "|---|" + "---:|" * (5 + len(databases)),
    ]  # fmt: skip
    named = {module: [each for each in verdicts if each[0].module == module] for module in MODULES}
    for name, group in [*named.items(), ("all", list(verdicts))]:
        if not group:
            continue
        dead = [each for each in group if each[1].result != "green"]
        timeouts = sum(outcome.result == "timeout" for _, outcome, _ in dead)
        killers = Counter(database for _, _, database in dead)
        unseen = sum(not database for _, _, database in group)
        cells = [len(group), f"{len(dead)} ({len(dead) / len(group):.0%})"]
        cells += [*(killers[name] for name in databases), timeouts, len(group) - len(dead), unseen]
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    left = ", ".join(f"{name} {number}" for name, number in sorted(excluded.items())) or "nothing"
    return "\n".join([*lines, "", f"Not changed: {left}."])


def describe(verdict: Verdict, diff: bool) -> str:
    mutant, _, database = verdict
    source = Path(LAYER, f"{mutant.module}.py").read_bytes()
    old, new = (text.decode().splitlines() for text in (source, mutant.apply(source)))
    column = mutant.start - source.rfind(b"\n", 0, mutant.start)
    place = f"{mutant.module}.py:{mutant.line}:{column}{'' if database else ' (no test runs it)'}"
    if diff:
        return "\n".join([place, *[*difflib.unified_diff(old, new, lineterm="", n=2)][2:]])
    changed = source[mutant.start : mutant.end].decode()
    return f"{place}: {changed!r} to {mutant.new.decode()!r}: {old[mutant.line - 1].strip()}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which changes of the layer no test notices.")
    parser.add_argument("--databases", default=",".join(DATABASES))
    parser.add_argument(
        "--files", nargs="+", default=MODULES, metavar="NAME[:LINE]", help="e.g. paging filters:61"
    )
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="only these files of tests")
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants, chosen at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--most", type=float, default=20, metavar="SECONDS", help="of tests per mutant and database"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--survivors", action="store_true", help="show each as a diff")
    options = parser.parse_args()
    for name in options.files:
        if name.partition(":")[0] not in MODULES:
            parser.error(f"--files: {name} is none of {', '.join(MODULES)}")
    return options


def find(files: Sequence[str]) -> tuple[list[Mutant], Counter[str]]:
    """The mutants of files, or of lines such as `paging:61`."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for name in files:
        module, _, line = name.partition(":")
        wanted[module] |= {int(line)} if line else set()
    mutants: list[Mutant] = []
    excluded: Counter[str] = Counter()
    for module, lines in wanted.items():
        finder = Finder(module, Path(LAYER, f"{module}.py").read_bytes())
        mutants += [each for each in finder.mutants if not lines or each.line in lines]
        excluded += finder.excluded
    return mutants, excluded


def check(options: argparse.Namespace) -> int:
    databases = options.databases.split(",")
    mutants, excluded = find(options.files)
    random.Random(options.seed).shuffle(mutants)  # noqa: S311
    mutants = mutants[: options.sample]
    if not mutants:
        say("There is nothing to change.")
        return 1
    paths: list[str] = options.tests or [*map(str, Path(TESTS).glob("test_*.py"))]
    paths.sort(key=lambda path: (-Path(path).stat().st_size, path))
    began, verdicts = time.monotonic(), list[Verdict]()
    with get_context("fork").Pool(options.workers, initializer=leave_quietly) as pool:
        surveyed = survey(pool, options.databases, paths)
        if surveyed.failed or not surveyed.seconds:
            for log in Path().glob("red-*"):
                say(log.read_text()[-6000:])
            say("\n".join(["The tests are red without any change:", *sorted(surveyed.failed)]))
            return 1
        jobs = ((each, [*rounds(each, surveyed, databases, options.most)]) for each in mutants)
        with suppress(KeyboardInterrupt):  # a random part is a sample
            for each in pool.imap_unordered(judge, jobs):
                verdicts.append(each)
                dead = sum(outcome.result != "green" for _, outcome, _ in verdicts)
                if each[1].result == "green":
                    say(f"survived: {describe(each, diff=False)}")
                if len(verdicts) % 20 == 0:
                    minutes = (time.monotonic() - began) / 60
                    say(f"{len(verdicts)} of {len(mutants)}: {dead} died; {minutes:.1f} minutes")
    if len(verdicts) < len(mutants):
        say(f"Stopped after {len(verdicts)} of {len(mutants)}.")
    if not verdicts:
        return 1
    verdicts.sort(key=lambda each: (MODULES.index(each[0].module), each[0].start))
    killers = {(outcome.test, name) for _, outcome, name in verdicts if "::" in outcome.test}
    unreliable = control(killers, databases)
    print(report(verdicts, excluded, databases))
    survived = [each for each in verdicts if each[1].result == "green"]
    for each in survived:
        print(f"\n{describe(each, diff=True)}" if options.survivors else describe(each, diff=False))
    if unreliable:
        say("\n".join(["These tests killed, but fail without a change too:", *unreliable]))
    return int(bool(unreliable) or 1 - len(survived) / len(verdicts) < ENOUGH)


def leave_quietly() -> None:
    """In a worker: Ctrl-C is for the main process, which then ends this one."""

    def leave(_number: int, _frame: object) -> None:
        sys.exit()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)


def control(killers: Iterable[tuple[str, str]], databases: Sequence[str]) -> list[str]:
    """The tests that failed with a change, once more without: those that fail again."""
    failed: list[str] = []
    for database in databases:
        tests = sorted(test for test, name in killers if name == database)
        outcome = run(None, tests, database, 3600) if tests else Outcome("green")
        failed += [outcome.test] if outcome.result != "green" else []
    return failed


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the way out of Ctrl-C
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in ("assets/example", "tests"):
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, Path(folder, name), ignore=skipped)
        for name in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        os.chdir(folder)
        sys.path[:0] = [folder, f"{folder}/assets/example"]
        for name in ("sqlmodel.ext.asyncio.session", "fastapi.testclient", "hypothesis.stateful"):
            importlib.import_module(name)  # once, for all forked processes
        servers = importlib.import_module("tests.databases").Servers()
        try:
            for database in options.databases.split(","):
                servers.start(database)
            return check(options)
        finally:
            servers.stop()
            os.chdir(ROOT)


if __name__ == "__main__":
    sys.exit(main())
