"""Tables of the guide that an example does not print: compared with what they are about."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mdtest.document import parse

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "references" / "field-types.md"

# After the page's `app/items.py`: the columns of `Item` on three databases, and those of
# `Short` on MySQL.
COMPILE = """
import json
from sqlalchemy.dialects import mysql, postgresql, sqlite

def compiled(table, *dialects):
    columns = SQLModel.metadata.tables[table].columns
    return {c.name: [c.type.compile(d.dialect()) for d in dialects] for c in columns}

print(json.dumps([compiled("item", sqlite, postgresql, mysql), compiled("short", mysql)]))
"""


@pytest.fixture(scope="module")
def columns() -> dict[str, list[str]]:
    """Column name -> its types, as the page's models have them."""
    code = next(block.code for block in parse(PAGE).blocks() if block.name == "app/items.py")
    layer = ROOT / "assets" / "example"
    # A process of its own: the models would stay in SQLModel's registry.
    done = subprocess.run(
        [sys.executable, "-c", code + COMPILE],
        cwd=layer,
        capture_output=True,
        text=True,
        check=True,
    )
    item, short = json.loads(done.stdout)
    return {name: [*types, *short.get(name, [])] for name, types in item.items()}


def written(text: str) -> dict[str, list[str]]:
    """Column name -> the cells of its row, each up to a colon."""
    rows = re.findall(r"^\| `\w+` (\w+) \| (.*) \|$", text, re.MULTILINE)
    return {
        name: [cell.partition(":")[0].strip() for cell in cells.split("|") if cell.strip()]
        for name, cells in rows
    }


def test_field_types(columns: dict[str, list[str]]) -> None:
    assert len(columns) > 10
    assert written(PAGE.read_text()) == columns


@pytest.mark.parametrize(
    ("old", "new"),
    [("DATETIME(6)", "DATETIME"), ("| `int` count |", "| `int` amount |"), ("FLOAT:", "DOUBLE:")],
)
def test_field_types_are_looked_at(columns: dict[str, list[str]], old: str, new: str) -> None:
    text = PAGE.read_text()
    assert old in text
    assert written(text.replace(old, new, 1)) != columns
