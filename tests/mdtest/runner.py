"""Run one section: inside a process, folder and database of its own.

`run` is called in a forked child of `zygote`; it takes and returns plain JSON values.
"""

import ast
import asyncio
import configparser
import contextlib
import difflib
import importlib
import inspect
import io
import json
import linecache
import os
import re
import subprocess
import sys
import tomllib
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coverage
import yaml
from dotenv import dotenv_values
from mako.template import Template
from pytest_examples import CodeExample
from pytest_examples.config import ExamplesConfig
from pytest_examples.run_code import InsertPrintStatements
from sqlalchemy import text as sql_text
from sqlalchemy.ext.asyncio import create_async_engine

from .document import Block, Raises

LINE_LENGTH = 100
BASH_TIMEOUT = 120


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
        job: `document` (absolute path), `folder`, `database`, `environment`, `blocks`
            (dicts of `Block`), `update` (rewrite `#>` lines instead of checking them).

    Returns:
        `outcomes`: for each block "run", "checked" or ""; `failure`: None, or `line`,
        `message`, `details`; `updates`: line of a block -> its new code.
    """
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.path.insert(0, job["folder"])
    sys.argv = ["main"]
    section = _Section(
        Path(job["document"]),
        Path(job["folder"]),
        job["database"],
        [block_from_json(each) for each in job["blocks"]],
        update=job["update"],
    )
    failure = None
    try:
        section.run()
    except Failure as error:
        failure = {"line": error.line, "message": error.message, "details": error.details}
    return {"outcomes": section.outcomes, "failure": failure, "updates": section.updates}


def block_from_json(value: dict[str, Any]) -> Block:
    """The reverse of `dataclasses.asdict`, as JSON leaves it."""
    raises = tuple(
        Raises(**{**each, "databases": frozenset(each["databases"])}) for each in value["raises"]
    )
    return Block(**{**value, "raises": raises})


class _Section:
    def __init__(
        self, document: Path, folder: Path, database: str, blocks: list[Block], *, update: bool
    ) -> None:
        self.document = document
        self.folder = folder
        self.database = database
        self.blocks = blocks
        self.update = update
        self.outcomes = ["" for _ in blocks]
        self.updates: dict[int, str] = {}
        self.output = ""  # of the bash block before
        self.raised_at: dict[int, int] = {}  # first line of a block -> line that raised
        self.main = types.ModuleType("__main__")
        self.main.__file__ = str(document)
        self.runner: asyncio.Runner

    def run(self) -> None:
        sys.modules["__main__"] = self.main
        tracer = coverage.Coverage(
            data_file=None,
            include=[str(self.document), f"{self.folder}/*"],
            concurrency=["greenlet", "thread"],
            config_file=False,
        )
        linecache.checkcache()
        with asyncio.Runner() as self.runner:
            tracer.start()
            try:
                for index, block in enumerate(self.blocks):
                    self.outcomes[index] = self._handle(block)
                for index, block in enumerate(self.blocks):
                    if block.name and block.language == "python":
                        self.outcomes[index] = self._imported(block)
            finally:
                tracer.stop()
            self._all_lines_ran(tracer.get_data())

    def _handle(self, block: Block) -> str:
        if block.name:
            target = self.folder / block.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, "utf-8")
            importlib.invalidate_caches()
            if block.language == "python":
                return ""  # until it was imported
        handlers: dict[str, Callable[[Block], str]] = {
            "python": self._python,
            "bash": self._bash,
            "text": self._text,
            "sql": self._sql,
        }
        return handlers.get(block.language, self._parse)(block)

    # -- python ----------------------------------------------------------------

    def _python(self, block: Block) -> str:
        source = "\n" * (block.line - 1) + block.code  # line numbers of the document
        expected = block.expected(self.database)
        prints = InsertPrintStatements(
            self.document, ExamplesConfig(line_length=LINE_LENGTH), True, None, None
        )
        try:
            code = compile(
                source,
                str(self.document),
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                dont_inherit=True,
            )
            with prints:
                if code.co_flags & inspect.CO_COROUTINE:
                    self.runner.run(_call(code, vars(self.main)))
                else:
                    exec(code, vars(self.main))  # noqa: S102
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._check_raised(block, expected, error)
        else:
            if expected:
                wanted = f"{expected.name}: {expected.text}" if expected.text else expected.name
                raise Failure(expected.line, f"does not raise {wanted}")
        self._check_prints(block, prints)
        return "run"

    def _check_raised(
        self, block: Block, expected: Raises | None, error: BaseException
    ) -> None:
        lines = [
            frame.lineno
            for each in reversed(_chain(error))  # a translated error hides where it arose
            for frame in traceback.extract_tb(each.__traceback__)
            if frame.filename == str(self.document) and frame.lineno
        ]
        if isinstance(error, SyntaxError) and error.filename == str(self.document):
            lines.append(error.lineno or block.line)
        inside = [line for line in lines if block.line <= line < block.line + _height(block)]
        line = inside[-1] if inside else block.line
        name = type(error).__name__
        details = _traceback(error)
        if expected is None:
            raise Failure(line, f"{name}: {error}", details)
        if name != expected.name:
            raise Failure(line, f"raises {name}, not {expected.name}: {error}", details)
        if expected.text not in str(error):
            raise Failure(
                line, f"the message of {name} does not hold {expected.text!r}: {error}", details
            )
        first, last = _statement(block, expected.line)
        if not any(first <= each <= last for each in inside):
            raise Failure(line, f"{name} is raised here, not on line {expected.line}", details)
        self.raised_at[block.line] = line

    def _check_prints(self, block: Block, prints: InsertPrintStatements) -> None:
        example = CodeExample.create(block.code, path=self.document, start_line=block.line - 1)
        for statement in prints.print_statements():
            statement.line_no -= block.line - 1
            if not 1 <= statement.line_no <= _height(block):
                raise Failure(
                    block.line,
                    f"print in a function of another block (line "
                    f"{statement.line_no + block.line - 1}): return the value, print it here",
                )
        printed = prints.updated_print_statements(example)
        if printed is None:
            return
        if self.update:
            self.updates[block.line] = printed
            return
        difference = list(
            difflib.unified_diff(
                block.code.splitlines(), printed.splitlines(), "document", "printed", lineterm=""
            )
        )
        changed = re.search(r"@@ -(\d+)", "\n".join(difference))
        offset = int(changed[1]) - 1 if changed else 0
        raise Failure(
            block.line + offset, "prints something else than its #> lines", "\n".join(difference)
        )

    def _imported(self, block: Block) -> str:
        """Named files are imported by the program; else we import them, so that they run."""
        assert block.name
        path = self.folder / block.name
        loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        if str(path) not in loaded and not _is_run_by_bash(block, self.blocks):
            module = ".".join(Path(block.name).with_suffix("").parts).removesuffix(".__init__")
            try:
                importlib.import_module(module)
            except Exception as error:
                raise Failure(
                    block.line, f"{type(error).__name__}: {error}", _traceback(error)
                ) from error
        return "run"

    def _all_lines_ran(self, data: coverage.CoverageData) -> None:
        in_document = set(data.lines(str(self.document)) or [])
        for block in self.blocks:
            if block.language != "python" or _is_run_by_bash(block, self.blocks):
                continue
            if block.name:
                lines = data.lines(str(self.folder / block.name)) or []
                ran = {line + block.line - 1 for line in lines}
            else:
                ran = in_document
            stopped = self.raised_at.get(block.line)
            for first, last in _statements(block):
                if stopped is not None and first >= stopped:
                    continue
                if not ran & set(range(first, last + 1)):
                    raise Failure(first, f"never runs on {self.database}: use it, or cut it")

    # -- the rest --------------------------------------------------------------

    def _bash(self, block: Block) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BASH_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise Failure(block.line, f"exit status {done.returncode}", done.stdout)
        self.output = done.stdout
        importlib.invalidate_caches()
        return "run"

    def _text(self, block: Block) -> str:
        if block.code.strip() != self.output.strip():
            difference = difflib.unified_diff(
                block.code.splitlines(), self.output.splitlines(), "document", "run", lineterm=""
            )
            raise Failure(block.line, "not the output of the block above", "\n".join(difference))
        return "checked"

    def _sql(self, block: Block) -> str:
        async def execute() -> None:
            engine = create_async_engine(os.environ["DATABASE_URL"])
            async with engine.begin() as connection:
                for statement in re.split(r";\s*(?:\n|$)", block.code):
                    if statement.strip():
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
            "mako": Template,
            "dotenv": _dotenv,
        }
        try:
            parsers[block.language](block.code)
        except Exception as error:
            raise Failure(block.line, f"not {block.language}: {error}") from error
        return "checked"


async def _call(code: types.CodeType, namespace: dict[str, Any]) -> None:
    await eval(code, namespace)  # noqa: S307


def _dotenv(code: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        values = dotenv_values(stream=io.StringIO(code))
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    if not values or None in values.values() or len(values) != len(lines):
        raise ValueError("each line must be NAME=value")


def _is_run_by_bash(block: Block, blocks: list[Block]) -> bool:
    """Test files are run by a `pytest` command of the section, not imported."""
    if not block.name or not Path(block.name).name.startswith(("test_", "conftest")):
        return False
    return any(each.language == "bash" and "pytest" in each.code for each in blocks)


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and those that led to it, the first one last."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


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

    def visit(body: list[ast.stmt], *, function: bool) -> None:
        for node in body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # docstring, or ...
            if isinstance(node, ast.Global | ast.Nonlocal):
                continue
            if function and isinstance(node, ast.AnnAssign) and node.value is None:
                continue
            inner = [
                child
                for name in ("body", "orelse", "finalbody")
                for child in getattr(node, name, [])
            ]
            handlers = [child for each in getattr(node, "handlers", []) for child in each.body]
            cases = [child for each in getattr(node, "cases", []) for child in each.body]
            nested = inner + handlers + cases
            last = min((child.lineno for child in nested), default=0) - 1
            if last < node.lineno:
                last = node.lineno if nested else (node.end_lineno or node.lineno)
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            if not isinstance(node, ast.Try | ast.TryStar):
                found.append((start + block.line - 1, last + block.line - 1))
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            visit(nested, function=is_function or (function and not isinstance(node, ast.ClassDef)))

    try:
        visit(ast.parse(block.code).body, function=False)
    except SyntaxError:
        return []
    return found


def _statement(block: Block, line: int) -> tuple[int, int]:
    """First and last line of the innermost statement that starts on or covers this line."""
    best = (line, line)
    row = line - block.line + 1
    try:
        tree = ast.parse(block.code)
    except SyntaxError:
        return best
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            last = node.end_lineno or node.lineno
            if node.lineno <= row <= last:
                best = (node.lineno + block.line - 1, last + block.line - 1)
    return best
