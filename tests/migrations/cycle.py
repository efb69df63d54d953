"""From an empty folder to migrated tables, printed as it runs: python -m tests.migrations.cycle

A scaffold, an edited model, `alembic revision --autogenerate`, upgrade, downgrade, upgrade,
check; then a second revision on tables that have rows. Afterwards the names of all constraints
and indexes, which must be the same on each database.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.databases import DATABASES, Servers

SCAFFOLD = Path(__file__).parents[2] / "scripts" / "scaffold.py"
Say = Callable[[str], None]
ResultT = TypeVar("ResultT")

FIRST_EDIT = (
    "class Hero(HeroBase, table=True):\n",
    """class Rank(StrEnum):
    ROOKIE = "rookie"
    MASTER = "master"


class Gadget(SQLModel, table=True):
    __table_args__ = (CheckConstraint("price >= 0", name="price_positive"),)

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=50, unique=True)
    rank: Rank = Rank.ROOKIE
    price: Decimal = Field(max_digits=10, decimal_places=2)
    details: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    notes: str = ""
    made_at: datetime | None = None
    hero_id: RowId = Field(foreign_key="hero.id", ondelete="CASCADE", index=True)


class Hero(HeroBase, table=True):
""",
)
SECOND_EDIT = (
    "    made_at: datetime | None = None\n",
    """    made_at: datetime | None = None
    second_rank: Rank | None = None
    weight: int = Field(default=1, index=True, sa_column_kwargs={"server_default": "1"})
    code: UUID | None = Field(default=None, unique=True)
    __table_args__ = (CheckConstraint("price >= 0", name="price_positive"),)
""",
)
IMPORTS = """\
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID
from typing import Any, Annotated, Optional

from sqlalchemy import JSON
"""
ROWS = (
    "INSERT INTO hero (name, power, secret_name) VALUES ('Deadpond', 1, 'Dive')",
    """INSERT INTO gadget (name, {rank}, price, details, notes, hero_id)
    SELECT 'Hook', 'MASTER', 9.99, '{{}}', '', id FROM hero""",
)


class Failed(Exception):
    """A command ended with an exit code other than 0; the message is its output."""


class Project:
    """A scaffolded app, and the commands that are run in its folder."""

    def __init__(self, folder: Path, url: URL, say: Say = print) -> None:
        self.folder = folder
        self.url = url
        self.say = say

    def run(self, *command: str) -> str:
        """Run `alembic` or a script of Python; what it printed, both streams together.

        Raises:
            Failed: an exit code other than 0.
        """
        self.say(f"$ {' '.join(Path(each).name for each in command)}")
        module = ("-m",) if command[0] == "alembic" else ()
        process = self.start(*module, *command)
        output, _ = process.communicate()
        for line in output.splitlines():
            if re.match(r"INFO Running|WARNING|ERROR|Generating|No new|FAILED", line):
                self.say("  " + re.sub(r"/\S*/", "", line))
        if process.returncode:
            raise Failed(output)
        return output

    def environment(self) -> dict[str, str]:
        """The variables of this process, those of the tests aside."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DATABASE_", "PYTEST_", "PYTHONPATH"))
        }
        url = self.url.render_as_string(hide_password=False)
        return {**kept, "DATABASE_URL": url, "DATABASE_CREATE_TABLES": "false"}

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """The same, without waiting."""
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def scaffold(self) -> None:
        """`scaffold.py new`, and the imports that the edits need."""
        self.run(str(SCAFFOLD), "new", ".", "--database", self.url.get_backend_name())
        self.edit("from typing import Annotated, Optional\n\n", IMPORTS)

    def edit(self, old: str, new: str) -> None:
        """Change app/models.py."""
        models = self.folder / "app" / "models.py"
        before = models.read_text("utf-8")
        assert before.count(old) == 1, f"{old!r} is in app/models.py {before.count(old)} times"
        models.write_text(before.replace(old, new), "utf-8")

    def revision(self) -> str:
        """The text of the newest revision."""
        files = sorted((self.folder / "migrations" / "versions").glob("*.py"))
        return max(files, key=lambda path: path.stat().st_mtime_ns).read_text("utf-8")

    def execute(self, *statements: str) -> list[Sequence[object]]:
        """Run SQL in one transaction; the rows of the last statement."""

        def run(connection: Connection) -> list[Sequence[object]]:
            results = [connection.execute(text(each)) for each in statements]
            return [tuple(row) for row in results[-1]] if results[-1].returns_rows else []

        return self._connected(run)

    def names(self) -> dict[str, set[str]]:
        """Table -> the names of its constraints and indexes.

        Primary keys aside: MySQL and MariaDB call each of them PRIMARY.
        """

        def read(connection: Connection) -> dict[str, set[str]]:
            look = inspect(connection)
            return {
                table: {
                    str(each["name"])
                    for each in (
                        *look.get_unique_constraints(table),
                        *look.get_foreign_keys(table),
                        *look.get_check_constraints(table),
                        *look.get_indexes(table),
                    )
                    if not str(each.get("sqltext", "")).startswith("json_valid")  # MariaDB's JSON
                }
                for table in look.get_table_names()
            }

        return self._connected(read)

    def _connected(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """What `work` returns, in a transaction on a connection of its own."""

        async def run() -> ResultT:
            engine = create_async_engine(self.url)
            try:
                async with engine.begin() as connection:
                    return await connection.run_sync(work)
            finally:
                await engine.dispose()

        return asyncio.run(run())


def lay(folder: Path, url: URL, models: str, say: Say = print) -> Project:
    """An empty folder with the layer, these models in app/models.py, and migrations."""
    project = Project(folder, url, say)
    project.run(str(SCAFFOLD), "add", ".", "--migrations")
    (folder / "app" / "models.py").write_text(models, "utf-8")
    return project


def cycle(folder: Path, url: URL, say: Say = print) -> dict[str, set[str]]:
    """The whole way in this empty folder; the names of the constraints at its end.

    Raises:
        Failed: a command did.
        AssertionError: a row is lost, or a constraint has no name.
    """
    project = Project(folder, url, say)
    project.scaffold()
    project.edit(*FIRST_EDIT)
    project.run("alembic", "revision", "--autogenerate", "-m", "first tables")
    for command in ("upgrade head", "downgrade base", "upgrade head", "check"):
        project.run("alembic", *command.split())

    rank = "`rank`" if url.get_backend_name() == "mysql" else '"rank"'
    project.execute(*(each.format(rank=rank) for each in ROWS))
    project.edit(*SECOND_EDIT)
    project.run("alembic", "revision", "--autogenerate", "-m", "gadgets have a weight")
    for command in ("upgrade head", "downgrade -1", "upgrade head", "check"):
        project.run("alembic", *command.split())
    rows = project.execute("SELECT name, weight, hero_id IS NOT NULL FROM gadget")
    assert [tuple(map(str, row)) for row in rows] in ([("Hook", "1", "1")], [("Hook", "1", "True")])

    names = project.names()
    assert "None" not in set().union(*names.values())
    return names


def main() -> int:
    servers = Servers()
    found: dict[str, dict[str, set[str]]] = {}
    for database in DATABASES:
        print(f"\n== {database}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            url = servers.create(database, Path(folder))
            project = Path(folder, "shop")
            project.mkdir()
            found[database] = cycle(project, url)
            servers.drop(url)
    print("\n== names of constraints and indexes, the same on each database")
    for table, names in sorted(found["sqlite"].items()):
        print(f"{table}: {', '.join(sorted(names)) or 'a primary key only'}")
    same = all(each == found["sqlite"] for each in found.values())
    print("the same on all" if same else f"THEY DIFFER: {found}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
