"""What `assets/alembic/env.py` promises, on each database, with Alembic as users run it."""

import re
import textwrap
from collections.abc import Generator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.databases import Servers

from .cycle import Failed, Project, cycle, lay

MODELS = """\
from sqlmodel import Field, SQLModel

import app.db


class Team(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=50, unique=True)


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=50)
    team_id: int = Field(foreign_key="team.id", ondelete="CASCADE", index=True)
"""
ROWS = (
    "INSERT INTO team (id, name) VALUES (1, 'Preventers')",
    "INSERT INTO hero (name, team_id) VALUES ('Deadpond', 1)",
)


@pytest.fixture
def url(servers: Servers, tmp_path: Path, database: str) -> Generator[URL]:
    """An empty database."""
    made = servers.create_for_test(database, tmp_path)
    yield made
    servers.drop(made)


@pytest.fixture
def project(tmp_path: Path, url: URL) -> Project:
    """Two tables, not migrated yet."""
    folder = tmp_path / "project"
    folder.mkdir()
    return lay(folder, url, MODELS)


def migrated(project: Project) -> Project:
    """A first revision, and a row in each table."""
    project.run("alembic", "revision", "--autogenerate", "-m", "first", "--rev-id", "first")
    project.run("alembic", "upgrade", "head")
    project.execute(*ROWS)
    return project


def revise(project: Project, name: str, after: str, upgrade: str, head: str = "") -> None:
    """A revision by hand."""
    body = textwrap.indent(textwrap.dedent(upgrade).strip(), "    ")
    (project.folder / "migrations" / "versions" / f"{name}.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"{head}\nrevision = {name!r}\ndown_revision = {after!r}\n\n\n"
        f"def upgrade() -> None:\n{body}\n\n\ndef downgrade() -> None:\n    pass\n"
    )


def version(project: Project) -> list[str]:
    return [str(row[0]) for row in project.execute("SELECT version_num FROM alembic_version")]


def script(project: Project, code: str) -> str:
    """Run Python in the project."""
    return project.run("-c", textwrap.dedent(code))


def fails(project: Project, *command: str) -> str:
    """The output of a command that must fail."""
    with pytest.raises(Failed) as failed:
        project.run(*command)
    return str(failed.value)


def upgrades_at_once(project: Project, count: int) -> list[str]:
    """What so many `alembic upgrade head` print; each of them must succeed, and none hang."""
    processes = [project.start("-m", "alembic", "upgrade", "head") for _ in range(count)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)
    return outputs


def test_from_an_empty_folder(servers: Servers, tmp_path: Path, url: URL) -> None:
    """As `python -m tests.migrations.cycle` prints it: the same names as on SQLite."""
    folders = [tmp_path / "one", tmp_path / "lite"]
    for folder in folders:
        folder.mkdir()
    names = cycle(folders[0], url)
    if url.get_backend_name() != "sqlite":
        assert names == cycle(folders[1], servers.create("sqlite", tmp_path))
    assert names["hero"] >= {"ck_hero_power_range", "fk_hero_team_id_team", "uq_hero_name"}


# -- several processes -----------------------------------------------------------------


def test_sixteen_processes_at_once(project: Project) -> None:
    """One applies the revisions, none fails, each ends with the database at head."""
    migrated(project)
    for name, after in (("two", "first"), ("three", "two"), ("four", "three")):
        revise(project, name, after, f"op.execute('CREATE TABLE t_{name} (id INTEGER)')")
    outputs = upgrades_at_once(project, 16)
    applied = [re.findall(r"Running upgrade \w+ -> (\w+)", output) for output in outputs]
    assert sorted(applied)[-1] == ["two", "three", "four"]
    assert sorted(applied)[:15] == [[]] * 15
    assert version(project) == ["four"]


@pytest.mark.only("sqlite")
def test_a_long_migration_of_sqlite_is_waited_for(project: Project) -> None:
    """Longer than the 5 s that a statement waits for the write lock."""
    migrated(project)
    revise(project, "two", "first", "import time\ntime.sleep(7)")
    outputs = upgrades_at_once(project, 4)
    assert sum("Running upgrade" in output for output in outputs) == 1


@pytest.mark.only("postgresql")
def test_who_waits_does_not_stop_a_concurrent_index(project: Project) -> None:
    """CREATE INDEX CONCURRENTLY waits for every snapshot; two processes must not deadlock."""
    migrated(project)
    revise(
        project,
        "index",
        "first",
        """
        with op.get_context().autocommit_block():
            op.execute("SELECT pg_sleep(1.5)")  # the other one waits by now
            op.create_index("ix_name", "hero", ["name"], postgresql_concurrently=True)
        """,
    )
    outputs = upgrades_at_once(project, 2)
    assert sum("waiting" in output for output in outputs) == 1
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_name'::regclass"
    assert project.execute(valid) == [(True,)]


@pytest.mark.only("postgresql", "mysql")
def test_a_lock_on_the_table_is_not_waited_for_for_long(project: Project) -> None:
    """It ends with an error, and the next start goes on."""
    migrated(project)
    revise(project, "two", "first", "op.add_column('hero', sa.Column('age', sa.Integer()))")
    env = project.folder / "migrations" / "env.py"
    env.write_text(env.read_text().replace("LOCK_TIMEOUT = 5", "LOCK_TIMEOUT = 1"))
    code = """
        import asyncio, subprocess, sys
        from app.db import Database, DatabaseSettings
        from app.models import Hero
        from sqlmodel import select

        async def main() -> None:
            async with Database(DatabaseSettings()).session() as session:
                await session.exec(select(Hero))
                done = await asyncio.to_thread(
                    subprocess.run, [sys.executable, "-m", "alembic", "upgrade", "head"]
                )
                print("exit code", done.returncode)

        asyncio.run(main())
    """
    output = script(project, code)
    assert "exit code 1" in output
    assert "lock timeout" in output or "Lock wait timeout" in output
    assert version(project) == ["first"]
    project.run("alembic", "upgrade", "head")
    assert version(project) == ["two"]


@pytest.mark.only("postgresql")
def test_the_statement_timeout_of_the_app_is_not_that_of_migrations(project: Project) -> None:
    migrated(project)
    project.execute(f"ALTER DATABASE {project.url.database} SET statement_timeout = '300ms'")
    revise(project, "two", "first", "op.execute('SELECT pg_sleep(0.6)')")
    project.run("alembic", "upgrade", "head")
    assert version(project) == ["two"]


@pytest.mark.only("postgresql")
def test_naive_timestamps_are_read_as_utc(project: Project) -> None:
    """PostgreSQL would take them for times in the zone of the session."""
    models = project.folder / "app" / "models.py"
    naive = MODELS.replace("import app.db", "from datetime import datetime\n\nimport app.db")
    naive = naive.replace("import Field", "import DateTime, Field")
    column = "    end: datetime | None = Field(default=None, sa_type=DateTime)\n"
    models.write_text(naive + column)
    migrated(project)
    project.execute(
        "UPDATE hero SET \"end\" = '2026-07-01 12\\:00'",
        f"ALTER DATABASE {project.url.database} SET timezone = 'America/New_York'",
    )
    models.write_text(naive + column.replace(", sa_type=DateTime", ""))
    project.run("alembic", "revision", "--autogenerate", "-m", "aware", "--rev-id", "aware")
    assert "USING \"end\" AT TIME ZONE 'UTC'" in project.revision().replace("\\'", "'")
    for command, where in (("upgrade head", ""), ("downgrade -1", "AT TIME ZONE 'UTC'")):
        project.run("alembic", *command.split())
        seconds = f'SELECT extract(epoch FROM ("end" {where}))\\:\\:bigint FROM hero'  # noqa: S608
        assert project.execute(seconds) == [(1782907200,)], command


# -- failures --------------------------------------------------------------------------


def test_a_revision_that_fails(project: Project) -> None:
    """What came before it stays: on SQLite nothing, where all is one transaction."""
    migrated(project)
    revise(project, "two", "first", "op.execute('CREATE TABLE two (id INTEGER)')")
    revise(
        project,
        "three",
        "two",
        "op.execute('CREATE TABLE three (id INTEGER)')\nop.execute('SELECT * FROM nowhere')",
    )
    assert "nowhere" in fails(project, "alembic", "upgrade", "head")
    backend = project.url.get_backend_name()
    assert version(project) == ["first" if backend == "sqlite" else "two"]
    tables = {"alembic_version", "hero", "team", "two", "three"}
    tables -= {"postgresql": {"three"}, "sqlite": {"two", "three"}}.get(backend, set())
    assert project.names().keys() == tables


@pytest.mark.only("sqlite")
def test_sqlite_keeps_child_rows_and_foreign_keys(project: Project) -> None:
    migrated(project)
    revise(
        project,
        "two",
        "first",
        """
        with op.batch_alter_table("team") as batch_op:
            batch_op.alter_column("name", type_=sa.String(80), existing_type=sa.String(50))
        """,
    )
    project.run("alembic", "upgrade", "head")
    assert project.execute("SELECT name, team_id FROM hero") == [("Deadpond", 1)]
    assert project.execute("PRAGMA foreign_key_check") == []

    project.execute(
        "CREATE TRIGGER t AFTER INSERT ON team BEGIN SELECT 1; END",
        "CREATE INDEX ix_lower ON team (lower(name))",
        "CREATE INDEX ix_name ON team (name)",
    )
    alter = """
    with op.batch_alter_table("team", recreate="always"):
        pass
    """
    revise(project, "more", "two", alter)
    output = project.run("alembic", "upgrade", "head")
    assert "trigger t of table team is gone" in output
    assert "index ix_lower of table team is gone" in output
    assert "ix_name" not in output

    revise(project, "three", "more", "op.execute('DELETE FROM team')")
    output = fails(project, "alembic", "upgrade", "head")
    assert "revision three: 1 rows refer to rows that are not there" in output
    assert version(project) == ["more"]
    assert project.execute("SELECT name FROM team") == [("Preventers",)]


def test_no_models(project: Project) -> None:
    (project.folder / "app" / "models.py").write_text("")
    for command in (("revision", "--autogenerate", "-m", "x"), ("upgrade", "head"), ("check",)):
        assert "no tables: import the modules" in fails(project, "alembic", *command)


def test_a_constraint_without_a_name(project: Project) -> None:
    models = MODELS.replace("import app.db\n", "")
    check = '    __table_args__ = (sa.CheckConstraint("id > 0"),)\n    id:'
    models = "import sqlalchemy as sa\n" + models.replace("    id:", check, 1)
    (project.folder / "app" / "models.py").write_text(models)
    output = fails(project, "alembic", "revision", "--autogenerate", "-m", "x")
    assert "requires that constraint is explicitly named" in output


def test_tables_that_no_migration_made(project: Project) -> None:
    """create_all first: autogenerate would find nothing, and production would lack the tables."""
    create = """
        import asyncio, app.models
        from app.db import Database, DatabaseSettings

        async def main() -> None:
            async with Database(DatabaseSettings()) as database:
                await database.create_tables()

        asyncio.run(main())
    """
    script(project, create)
    output = fails(project, "alembic", "revision", "--autogenerate", "-m", "first")
    assert "hero, team: these tables exist, but no migration made them" in output
    project.execute("DROP TABLE hero", "DROP TABLE team")
    migrated(project)
    with pytest.raises(Failed, match="Alembic migrates this database"):
        script(project, create)


# -- ways to call it -------------------------------------------------------------------

INSIDE = """
    import asyncio
    from alembic import command
    from alembic.config import Config

    async def main() -> None:
        command.upgrade(Config("alembic.ini"), "head")  # in the way of the loop, and it works
        await asyncio.to_thread(command.downgrade, Config("alembic.ini"), "base")
        await asyncio.to_thread(command.upgrade, Config("alembic.ini"), "head")

    asyncio.run(main())
"""
GIVEN = """
    import asyncio, sys
    from alembic import command
    from alembic.config import Config
    from app.db import Database, DatabaseSettings
    from sqlalchemy import text

    def upgrade(connection, config):
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def main() -> None:
        database = Database(DatabaseSettings())
        async with database.engine.connect() as connection:
            if "begun" in sys.argv:
                await connection.execute(text("SELECT 1"))
            await connection.run_sync(upgrade, Config("alembic.ini"))
            await connection.commit()
        async with database.engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                print("keys", (await connection.execute(text("PRAGMA foreign_keys"))).scalar())
        await database.close()

    asyncio.run(main())
"""


def test_inside_a_running_loop_and_on_a_connection(project: Project) -> None:
    project.run("alembic", "revision", "--autogenerate", "-m", "first", "--rev-id", "first")
    script(project, INSIDE)
    assert version(project) == ["first"]
    project.run("alembic", "downgrade", "base")
    output = script(project, GIVEN)
    assert version(project) == ["first"]
    if project.url.get_backend_name() == "sqlite":
        assert "keys 1" in output
        with pytest.raises(Failed, match="the connection has begun a transaction"):
            project.run("-c", textwrap.dedent(GIVEN), "begun")


def test_an_apps_logging_is_left_alone(project: Project) -> None:
    project.run("alembic", "revision", "--autogenerate", "-m", "first", "--rev-id", "first")
    code = """
        import logging
        from alembic import command
        from alembic.config import Config

        mine = logging.getLogger("mine")
        before = logging.getLogger().handlers[:]
        command.upgrade(Config("alembic.ini"), "head")
        print(mine.disabled, logging.getLogger().handlers == before)
    """
    assert script(project, code).split()[-2:] == ["False", "True"]


def test_offline(project: Project) -> None:
    project.run("alembic", "revision", "--autogenerate", "-m", "first", "--rev-id", "first")
    output = project.run("alembic", "upgrade", "head", "--sql")
    assert "CREATE TABLE" in output
    assert "fk_hero_team_id_team" in output
    assert "INSERT INTO alembic_version (version_num) VALUES ('first')" in output


@pytest.mark.only("mysql")
def test_special_characters_in_the_url(project: Project) -> None:
    """alembic.ini would take % for an interpolation; env.py reads the URL itself."""
    password, user = "p%40:/@? #", f"u{project.url.database}"[:30]
    backslash = r"\:"  # or text() would see a parameter
    project.execute(
        f"CREATE USER '{user}'@'localhost' IDENTIFIED BY '{password.replace(':', backslash)}'",
        f"GRANT ALL ON `{project.url.database}`.* TO '{user}'@'localhost'",
    )
    project.url = project.url.set(username=user, password=password)
    migrated(project)
    assert version(project) == ["first"]


def test_settings_in_pyproject(project: Project) -> None:
    (project.folder / "alembic.ini").unlink()
    (project.folder / "pyproject.toml").write_text(
        '[tool.alembic]\nscript_location = "%(here)s/migrations"\nprepend_sys_path = ["."]\n'
    )
    migrated(project)
    assert version(project) == ["first"]


# -- autogenerate ----------------------------------------------------------------------


def test_no_change_is_no_revision(project: Project) -> None:
    migrated(project)
    output = project.run("alembic", "revision", "--autogenerate", "-m", "again")
    assert "nothing has changed" in output
    assert len(list((project.folder / "migrations" / "versions").glob("*.py"))) == 1
    assert re.match(
        r"\d{4}_\d\d_\d\d_\d{4}_first_first\.py",
        next((project.folder / "migrations" / "versions").glob("*.py")).name,
    )


def test_warnings_before_rows_are_lost(project: Project) -> None:
    migrated(project)
    models = project.folder / "app" / "models.py"
    text = MODELS.replace("    name: str = Field(max_length=50)\n", "    alias: str\n")
    models.write_text(text[: text.index("class Team")] + text[text.index("class Hero") :])
    models.write_text(models.read_text().replace('foreign_key="team.id", ondelete="CASCADE", ', ""))
    output = project.run("alembic", "revision", "--autogenerate", "-m", "x")
    assert "drops table team and its rows: no module of app has it" in output
    assert "drops hero.name and its values; was it renamed, use alter_column" in output
    assert "adds hero.alias, NOT NULL without server_default" in output


def test_every_module_with_a_table_is_imported(project: Project) -> None:
    """One that nobody imports would be dropped."""
    deep = project.folder / "app" / "deep"
    deep.mkdir()
    (deep / "tables.py").write_text(
        "import app.models\nfrom sqlmodel import Field, SQLModel\n\n\n"
        "class Deep(SQLModel, table=True):\n    id: int = Field(primary_key=True)\n"
    )
    (deep / "broken.py").write_text("raise RuntimeError('no table here: not imported')\n")
    migrated(project)
    assert "deep" in project.names()


def test_revisions_need_nothing_of_the_app(project: Project) -> None:
    """Types of SQLModel and of the app are written as those of SQLAlchemy."""
    models = project.folder / "app" / "models.py"
    models.write_text(
        MODELS.replace("import app.db", "from app.db import TimestampMixin").replace(
            "class Team(SQLModel", "class Team(TimestampMixin"
        )
    )
    migrated_text = migrated_revision(project)
    assert "sqlmodel" not in migrated_text
    assert "app" not in re.findall(r"import (\w+)|from (\w+)", migrated_text)
    assert "sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6)" in migrated_text


def migrated_revision(project: Project) -> str:
    project.run("alembic", "revision", "--autogenerate", "-m", "first", "--rev-id", "first")
    project.run("alembic", "upgrade", "head")
    project.run("alembic", "check")
    return project.revision()
