"""Run one section: inside a process, folder and database of its own.

`run` is called in a forked child of `zygote`; it takes and returns plain JSON values.
"""

import ast
import asyncio
import builtins
import configparser
import contextlib
import difflib
import gc
import importlib
import inspect
import io
import json
import linecache
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
import traceback
import types
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import coverage
import yaml
from dotenv import dotenv_values
from pytest_examples import CodeExample, run_code
from pytest_examples.config import ExamplesConfig
from sqlalchemy import text as sql_text
from sqlalchemy.ext.asyncio import create_async_engine

from .document import LINE_LENGTH, Block, Raises

ROOT = Path(__file__).parents[2]
_print = builtins.print
# Of Python processes that bash starts; coverage reads the variable in each of them.
_COVERAGE = """[run]
data_file = {data}
parallel = true
include = {folder}/*
concurrency = greenlet, thread
sigterm = true
disable_warnings = no-data-collected, module-not-measured
"""


class Failure(Exception):
    """A block did not do what the document says."""

    def __init__(self, line: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.details = details


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run the blocks of a section in order.

    Args:
        job: `document` (absolute path), `folder`, `scratch` (for files that the document
            must not see), `database`, `databases` (all of the section), `environment`,
            `blocks` (dicts of `Block`), `inherited` (how many of them), `timeout`
            (seconds), `update` (rewrite `#>` lines instead of checking them).

    Returns:
        `outcomes`: for each block "run", "checked", "replaced" (an inherited file that
        the section overwrites) or ""; `failure`: None, or `line`, `message`, `details`;
        `updates`: line of a block -> its new code.
    """
    _leave_the_harness(job)
    section = _Section(job)
    failure = None
    try:
        section.run()
    except Failure as error:
        failure = {"line": error.line, "message": error.message, "details": error.details}
    return {"outcomes": section.outcomes, "failure": failure, "updates": section.updates}


def _leave_the_harness(job: dict[str, Any]) -> None:
    """The document finds what its reader has: nothing of this repository or of pytest."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_", "DATABASE_", "PYTHONPATH")):
            del os.environ[name]
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.path[:] = [job["folder"], *(each for each in sys.path if each not in {"", str(ROOT)})]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.argv = ["main"]
    # Deprecations, what SQLAlchemy warns of, and coroutines that nobody awaits.
    warnings.simplefilter("error", DeprecationWarning)
    warnings.simplefilter("error", RuntimeWarning)


def block_from_json(value: dict[str, Any]) -> Block:
    """The reverse of `dataclasses.asdict`, as JSON leaves it."""
    markers: list[dict[str, Any]] = value["raises"]
    for each in markers:
        each["databases"] = frozenset(each["databases"])
    value["raises"] = tuple(Raises(**each) for each in markers)
    return Block(**value)


class _Section:
    def __init__(self, job: dict[str, Any]) -> None:
        self.document = Path(job["document"])
        self.folder = Path(job["folder"])
        self.scratch = Path(job["scratch"])
        self.database: str = job["database"]
        self.databases: list[str] = job["databases"]
        self.blocks = [block_from_json(each) for each in job["blocks"]]
        self.inherited: int = job["inherited"]
        self.timeout: float = job["timeout"]
        self.update: bool = job["update"]
        self.outcomes = ["" for _ in self.blocks]
        self.updates: dict[int, str] = {}
        self.output = ""  # of the bash block before
        self.raised_at: dict[int, int] = {}  # first line of a block -> line that raised
        self.files: dict[str, int] = {}  # name -> index of the block that the file now holds
        self.stale: set[str] = set()  # files that were replaced after their import
        self.lost: list[tuple[BaseException, int]] = []
        self.main = types.ModuleType("__main__")
        self.main.__file__ = str(self.document)
        self.tracer = coverage.Coverage(
            data_file=None,
            include=[str(self.document), f"{self.folder}/*"],
            concurrency=["greenlet", "thread"],
            config_file=False,
        )
        self.runner: asyncio.Runner

    def run(self) -> None:
        sys.modules["__main__"] = self.main
        linecache.checkcache()
        with self._alarm(), asyncio.Runner() as self.runner:
            self._watch()
            self.tracer.start()
            try:
                for index, block in enumerate(self.blocks):
                    self._within(block, lambda: self._handle(index, block))  # noqa: B023
                for name, index in self.files.items():
                    self._within(self.blocks[index], lambda: self._load(name))  # noqa: B023
            finally:
                self.tracer.stop()
        if self.lost:
            error, line = self.lost[0]
            line = line or self.blocks[-1].line
            raise Failure(line, f"{type(error).__name__}: {error}", _traceback(error))
        for index in self.files.values():
            self._file_ran(index)
        ran = set(self.tracer.get_data().lines(str(self.document)) or [])
        for block in self.blocks:
            if block.language == "python" and not block.name:
                self._every_statement(block, ran)

    @contextlib.contextmanager
    def _alarm(self) -> Generator[None]:
        """The way out of a hang is that of Ctrl-C, which asyncio knows."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, self.timeout)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _within(self, block: Block, step: Callable[[], None]) -> None:
        try:
            step()
        except KeyboardInterrupt as error:
            lines = _inside(block, self._lines(error)) or [block.line]
            message = f"no end after {self.timeout:g} s"
            raise Failure(lines[-1], message, _traceback(error)) from None

    def _watch(self) -> None:
        """Errors that Python only prints: in tasks, threads and finalizers."""

        def lose(error: BaseException | None) -> None:
            if error is None:
                return
            lines = self._lines(error)
            frame = inspect.currentframe()
            while frame is not None and not lines:
                if frame.f_code.co_filename == str(self.document):
                    lines = [frame.f_lineno]
                frame = frame.f_back
            self.lost.append((error, lines[-1] if lines else 0))

        sys.unraisablehook = lambda hook: lose(hook.exc_value)
        threading.excepthook = lambda hook: lose(hook.exc_value)
        self.runner.get_loop().set_exception_handler(
            lambda _, context: lose(context.get("exception") or RuntimeError(context["message"]))
        )

    def _handle(self, index: int, block: Block) -> None:
        if block.name:
            self._replace(block)
            target = self.folder / block.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, "utf-8")
            importlib.invalidate_caches()
            if block.language == "python":
                self.files[block.name] = index  # "run" when it was
                return
        handlers: dict[str, Callable[[Block], str]] = {
            "python": self._python,
            "bash": self._bash,
            "text": self._text,
            "sql": self._sql,
        }
        self.outcomes[index] = handlers.get(block.language, self._parse)(block)

    # -- python ----------------------------------------------------------------

    def _python(self, block: Block) -> str:
        source = "\n" * (block.line - 1) + block.code  # line numbers of the document
        expected = block.expected(self.database)
        prints = run_code.InsertPrintStatements(
            self.document,
            ExamplesConfig(line_length=LINE_LENGTH),
            enable=True,
            print_callback=None,
            include_print=None,
        )
        error: BaseException | None = None
        try:
            code = compile(
                source,
                str(self.document),
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                dont_inherit=True,
            )
            with prints, _print_to_files():
                if code.co_flags & inspect.CO_COROUTINE:
                    self.runner.run(_call(code, vars(self.main)))
                else:
                    exec(code, vars(self.main))  # noqa: S102
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            error = raised
        if error is not None or self.lost:
            self._check_raised(block, expected, error)
            error = None
            gc.collect()  # or a coroutine in a cycle with the error blames the next block
            self.lost.clear()
        elif expected:
            wanted = f"{expected.name}: {expected.text}" if expected.text else expected.name
            raise Failure(expected.line, f"does not raise {wanted}")
        self._check_prints(block, prints)
        return "run"

    def _check_raised(
        self, block: Block, expected: Raises | None, error: BaseException | None
    ) -> None:
        if error is None:
            error, line = self.lost[0]
            inside = [line or block.line]
        else:
            inside = _inside(block, self._lines(error))
        line = inside[-1] if inside else block.line
        name = type(error).__name__
        details = _traceback(error)
        if expected is None:
            raise Failure(line, f"{name}: {error}", details)
        if name not in expected.name.split(" | "):
            raise Failure(line, f"raises {name}, not {expected.name}: {error}", details)
        if expected.text not in str(error):
            raise Failure(
                line, f"the message of {name} does not hold {expected.text!r}: {error}", details
            )
        first, last = _statement(block, expected.line)
        if not any(first <= each <= last for each in inside):
            raise Failure(line, f"{name} is raised here, not on line {expected.line}", details)
        # What the wrong example leaves behind is part of it.
        for value in vars(self.main).values():
            if inspect.iscoroutine(value):
                value.close()
        self.lost.clear()
        self.raised_at[block.line] = line

    def _lines(self, error: BaseException) -> list[int]:
        """Lines of the document on the way to the error, also to those that it hides."""
        lines = [
            frame.lineno
            for each in reversed(_chain(error))  # a translated error hides where it arose
            for frame in traceback.extract_tb(each.__traceback__)
            if frame.filename == str(self.document) and frame.lineno
        ]
        if isinstance(error, SyntaxError) and error.filename == str(self.document):
            lines.append(error.lineno or 0)
        return lines

    def _check_prints(self, block: Block, prints: run_code.InsertPrintStatements) -> None:
        example = CodeExample.create(block.code, path=self.document, start_line=block.line - 1)
        statements = prints.print_statements()
        for statement in statements:
            statement.line_no -= block.line - 1
            if not 1 <= statement.line_no <= _height(block):
                raise Failure(
                    block.line,
                    f"print in a function of another block (line "
                    f"{statement.line_no + block.line - 1}): return the value, print it here",
                )
        # In a loop, all that one print prints stands below it.
        statements.sort(key=lambda statement: statement.line_no)
        printed = prints.updated_print_statements(example)
        if printed is None:
            return
        if self.update:
            self.updates[block.line] = printed
            return
        offset, difference = _difference(block.code, printed, "printed")
        raise Failure(block.line + offset, "prints something else than its #> lines", difference)

    # -- python files ------------------------------------------------------------

    def _replace(self, block: Block) -> None:
        """The file that the block becomes may hold an earlier block, which must have run."""
        assert block.name
        index = self.files.pop(block.name, None)
        if index is None:
            return
        path = str(self.folder / block.name)
        in_process = _is_imported(path)
        if in_process or self._lines_in_bash(path):
            self._file_ran(index)
        elif index < self.inherited:  # another section runs it
            self.outcomes[index] = "replaced"
        else:
            message = f"nothing runs this file before line {block.line} replaces it"
            raise Failure(self.blocks[index].line, message)
        if in_process:
            self.stale.add(block.name)
        for data in self._bash_data():
            Path(data.data_filename()).unlink()

    def _load(self, name: str) -> None:
        """Import a file that neither the program nor bash has used."""
        path = str(self.folder / name)
        if _is_imported(path) or self._lines_in_bash(path):
            return
        module = ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__")
        block = self.blocks[self.files[name]]
        try:
            importlib.import_module(module)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [each.lineno or 1 for each in frames if each.filename == path]
            line = block.line + (lines[-1] if lines else 1) - 1
            message = f"{type(error).__name__}: {error}"
            raise Failure(line, message, _traceback(error)) from error

    def _file_ran(self, index: int) -> None:
        block = self.blocks[index]
        assert block.name
        path = str(self.folder / block.name)
        lines = self._lines_in_bash(path)
        if block.name not in self.stale:
            lines |= set(self.tracer.get_data().lines(path) or [])
        self._every_statement(block, {line + block.line - 1 for line in lines})
        self.outcomes[index] = "run"

    def _bash_data(self) -> list[coverage.CoverageData]:
        found: list[coverage.CoverageData] = []
        for path in self.scratch.glob("coverage.*"):
            data = coverage.CoverageData(str(path))
            data.read()
            found.append(data)
        return found

    def _lines_in_bash(self, path: str) -> set[int]:
        return {line for data in self._bash_data() for line in data.lines(path) or []}

    def _every_statement(self, block: Block, ran: set[int]) -> None:
        stopped = self.raised_at.get(block.line)
        promises = [block.expected(each) for each in self.databases if each != self.database]
        for first, last in _statements(block):
            if ran & set(range(first, last + 1)):
                continue
            if stopped is not None:
                if any(promise is None or promise.line >= first for promise in promises):
                    continue  # it runs on that database
                message = f"never runs: the block ends with the error on line {stopped}"
                raise Failure(first, message)
            raise Failure(first, f"never runs on {self.database}: use it, or cut it")

    # -- the rest --------------------------------------------------------------

    def _bash(self, block: Block) -> str:
        environment = dict(os.environ)
        if self.files:
            settings = self.scratch / "coveragerc"
            settings.write_text(
                _COVERAGE.format(data=self.scratch / "coverage", folder=self.folder)
            )
            environment["COVERAGE_PROCESS_START"] = str(settings)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            raise Failure(block.line, f"exit status {done.returncode}", done.stdout)
        self.output = done.stdout
        importlib.invalidate_caches()
        return "run"

    def _text(self, block: Block) -> str:
        wanted, got = _lines(block.code), _lines(self.output)
        if wanted != got:
            offset, difference = _difference("\n".join(wanted), "\n".join(got), "run")
            raise Failure(block.line + offset, "not the output of the block above", difference)
        return "checked"

    def _sql(self, block: Block) -> str:
        statements = [
            each
            for each in re.split(r";\s*(?:\n|$)", block.code)
            if re.sub(r"--.*", "", each).strip()
        ]

        async def execute() -> None:
            engine = create_async_engine(os.environ["DATABASE_URL"])
            async with engine.begin() as connection:
                for statement in statements:
                    await connection.execute(sql_text(statement.replace(":", r"\:")))
            await engine.dispose()

        try:
            self.runner.run(execute())
        except Exception as error:
            raise Failure(block.line, f"{type(error).__name__}: {error}") from error
        return "run"

    def _parse(self, block: Block) -> str:
        parsers: dict[str, Callable[[str], object]] = {
            "toml": tomllib.loads,
            "ini": lambda code: configparser.ConfigParser().read_string(code),
            "yaml": yaml.safe_load,
            "json": json.loads,
            "mako": importlib.import_module("mako.template").Template,  # no type stubs
            "dotenv": _dotenv,
        }
        try:
            parsers[block.language](block.code)
        except Exception as error:
            raise Failure(block.line, f"not {block.language}: {error}") from error
        return "checked"


async def _call(code: types.CodeType, namespace: dict[str, Any]) -> None:
    await eval(code, namespace)  # noqa: S307


@contextlib.contextmanager
def _print_to_files() -> Generator[None]:
    """`print(file=...)` writes, which the stand-in of pytest-examples does not: traceback and
    logging use it.
    """
    recorded = builtins.print

    def write(*values: object, file: Any = None, **how: Any) -> None:
        if file is None or file is sys.stdout:
            recorded(*values, **how)
        else:
            _print(*values, file=file, **how)

    with patch("builtins.print", write):
        yield


def _dotenv(code: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        values = dotenv_values(stream=io.StringIO(code))
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    if not values or None in values.values() or len(values) != len(lines):
        raise ValueError("each line must be NAME=value")


def _is_imported(path: str) -> bool:
    return any(getattr(each, "__file__", None) == path for each in list(sys.modules.values()))


def _print_location(example: CodeExample, line_no: int) -> tuple[int, int]:
    """Last line and column of the statement on this line, from 1 and 0.

    In place of pytest-examples' own, which does not look into `match`, `finally` and
    most `else`, and guesses the end of a statement.
    """
    found = (line_no, 0)
    for node in ast.walk(ast.parse(example.source)):  # inner ones last
        if isinstance(node, ast.stmt) and node.lineno <= line_no <= (
            node.end_lineno or node.lineno
        ):
            found = (node.end_lineno or node.lineno, node.col_offset)
    return found


run_code.find_print_location = _print_location
run_code.parent_frame_id += 1  # `write` of _print_to_files stands between


def _lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.strip("\n").splitlines()]


def _difference(document: str, actual: str, name: str) -> tuple[int, str]:
    """Lines before the first one that differs, and a diff."""
    before, after = document.splitlines(), actual.splitlines()
    pairs = zip(before, after, strict=False)
    shorter = min(len(before), len(after))
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), shorter)
    diff = difflib.unified_diff(before, after, "document", name, lineterm="")
    return max(min(same, len(before) - 1), 0), "\n".join(diff)


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and those that led to it, the first one last."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _inside(block: Block, lines: list[int]) -> list[int]:
    return [line for line in lines if block.line <= line < block.line + _height(block)]


def _height(block: Block) -> int:
    return block.code.count("\n") + 1


def _traceback(error: BaseException) -> str:
    """The traceback without the harness's own frames."""
    here = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(here) and "/asyncio/" not in frame.filename
    ]
    text = "".join(traceback.format_list(frames[-8:]))
    return text + "".join(traceback.format_exception_only(error))


def _statements(block: Block) -> list[tuple[int, int]]:
    """Lines of the document, first and last, of every statement that can run.

    Of a compound statement only its head: its body is listed on its own.
    """
    found: list[tuple[int, int]] = []

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # docstring, or ...
            if isinstance(node, ast.Global | ast.Nonlocal):
                continue
            if isinstance(node, ast.AnnAssign) and node.value is None:
                continue  # a declaration
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                visit(node.orelse)
                continue
            nested: list[ast.stmt] = [
                child
                for name in ("body", "orelse", "finalbody")
                for child in getattr(node, name, [])
            ]
            for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                nested += part.body
            last = min((child.lineno for child in nested), default=0) - 1
            if last < node.lineno:
                last = node.lineno if nested else (node.end_lineno or node.lineno)
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            if not isinstance(node, ast.Try | ast.TryStar):
                found.append((start + block.line - 1, last + block.line - 1))
            visit(nested)

    with contextlib.suppress(SyntaxError):  # running it says so
        compile(block.code, "", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        visit(ast.parse(block.code).body)
    return found


def _statement(block: Block, line: int) -> tuple[int, int]:
    """First and last line of the statement, or head of one, that covers this line."""
    covering = [each for each in _statements(block) if each[0] <= line <= each[1]]
    return covering[-1] if covering else (line, line)
