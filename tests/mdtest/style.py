"""Lint and format the Python of a document, with pytest-examples."""

import re

from pytest_examples import CodeExample
from pytest_examples.config import ExamplesConfig
from pytest_examples.lint import FormatError, black_check, ruff_check

from .document import LINE_LENGTH, Block, Document

_BLOCK = ExamplesConfig(
    line_length=LINE_LENGTH,
    ruff_line_length=LINE_LENGTH,
    quotes="double",
    target_version="py311",
    isort=True,
    ruff_select=["E", "W", "I", "UP", "B", "DTZ", "ASYNC", "C4", "SIM", "PLE"],
    # Top-level await; expressions whose value is not used are what some examples show;
    # `yield from` in a coroutine is a wrong example, which must raise SyntaxError.
    ruff_ignore=["F", "PLE1142", "PLE1700", "B018", "E402"],
)
# Names: over the whole program of a section, as its blocks share them.
_PROGRAM = ExamplesConfig(
    line_length=LINE_LENGTH,
    quotes="either",
    target_version="py311",
    ruff_select=["F"],
    ruff_ignore=["F704", "PLE1142", "PLE1700", "B018", "E", "W", "I"],
)
_RUFF = (
    "--isolated",
    "--output-format=concise",
    "--config",
    "lint.isort.known-first-party = ['app', 'tests']",
)


def problems(document: Document) -> list[str]:
    """What ruff and black have to say, with lines of the document."""
    found: list[str] = []
    for section in document.sections:
        python = [block for block in section.blocks if block.language == "python"]
        for block in python:
            found += _check(document, block.code, block.line, _BLOCK, black=True)
        for program in [[block] for block in python if block.name] + [
            [block for block in python if not block.name]
        ]:
            if program:
                found += _check(document, _join(program), program[0].line, _PROGRAM, black=False)
    return found


def _join(blocks: list[Block]) -> str:
    """One source, each block on the lines on which it stands in the document."""
    first = blocks[0].line
    source = ""
    for block in blocks:
        source += "\n" * (block.line - first - source.count("\n")) + block.code
    return source


def _check(
    document: Document, code: str, line: int, config: ExamplesConfig, *, black: bool
) -> list[str]:
    example = CodeExample.create(code, path=document.path, start_line=line - 1)
    found: list[str] = []
    try:
        ruff_check(example, config, extra_ruff_args=_RUFF)
    except FormatError as error:
        found.append(str(error))
    if black:
        try:
            black_check(example, config)
        except FormatError as error:
            message = re.sub(r"^black failed", f"{document.path}:{line}: not formatted", str(error))
            found.append(message)
    return found
