"""scripts/scaffold.py: what it writes, what it refuses, and that the app it lays down works."""

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.databases import DRIVERS, Servers

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "scaffold.py"
EXAMPLE = ROOT / "assets" / "example"
MIGRATIONS = EXAMPLE.parent / "alembic"
LAYER_FILES = sorted(path.name for path in (EXAMPLE / "app" / "db").glob("*.py"))
PROOF = ("--prove", "--venv", sys.prefix)

KEYS = {
    *("command", "directory", "package", "target", "created", "unchanged", "overwritten"),
    *("written", "dry_run", "dependencies_missing", "next", "prove", "error"),
}


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.out)
        assert set(report) == KEYS
        return report


Environment = Mapping[str, str]
NONE: Environment = {}


def clean_environment(more: Environment = NONE) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DATABASE_")}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **more}


def scaffold(
    *arguments: str | Path, script: Path = SCRIPT, limit: int | None = None, env: Environment = NONE
) -> Result:
    """Run the script; `limit` is the largest file, in bytes, that it can write."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

    done = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(env),
        preexec_fn=small_files if limit else None,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def refused(*arguments: str | Path, env: Environment = NONE) -> str:
    """Run it where it must refuse; the error."""
    result = scaffold(*arguments, "--json", env=env)
    assert result.code == 2, result
    error: str = result.report["error"]
    assert error
    assert error in result.err
    return error


def project(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def snapshot(folder: Path) -> dict[str, Any]:
    """Every path below, with content, target or None, and its time of change."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        content: Any = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = (path.read_bytes(), path.stat().st_mtime_ns)
        found[path.relative_to(folder).as_posix()] = content
    return found


def in_project(folder: Path, code: str) -> str:
    """What a Python program prints that runs in this folder."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("scaffold", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaffold"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# -- one fact, one place ---------------------------------------------------------------


def test_drivers_and_dependencies_are_those_of_the_layer() -> None:
    script = load_script()
    code = "import json; from app.db.database import DRIVERS; print(json.dumps(DRIVERS))"
    layer = json.loads(in_project(EXAMPLE, code))
    assert layer.pop("mariadb") == layer["mysql"]
    assert {name: tuple(drivers) for name, drivers in layer.items()} == script.DRIVERS

    example = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    wanted = {*script.LAYER_DEPENDENCIES, *script.MIGRATION_DEPENDENCIES}
    assert wanted <= set(example["project"]["dependencies"])
    house = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["layer"]
    assert {each for group in script.DRIVER_DEPENDENCIES.values() for each in group} <= set(house)
    assert {each for group in script.DRIVERS.values() for each in group} == set(
        script.DRIVER_DEPENDENCIES
    )


def test_help_fits_a_screen_and_names_the_exit_codes_and_keys() -> None:
    result = scaffold("--help")
    assert result.code == 0
    assert len(result.out.splitlines()) <= 40
    for word in ("examples:", "exit codes:", "--prove", "--dry-run", "--force", *KEYS):
        assert word in result.out, word
    assert scaffold("new", "--help").code == scaffold("add", "--help").code == 0


# -- add: where the layer goes ---------------------------------------------------------

APP = "from fastapi import FastAPI\n\napp = FastAPI()\n"


@pytest.mark.parametrize(
    ("files", "arguments", "name", "target"),
    [
        pytest.param({}, [], "app", "app/db", id="empty"),
        pytest.param({"app/__init__.py": ""}, [], "app", "app/db", id="flat"),
        pytest.param({"shop/__init__.py": ""}, [], "shop", "shop/db", id="flat-named"),
        pytest.param({"src/shop/__init__.py": ""}, [], "shop", "src/shop/db", id="src"),
        pytest.param({"app/models.py": ""}, [], "app", "app/db", id="no-init"),
        pytest.param({"web/main.py": APP}, [], "web", "web/db", id="namespace-with-app"),
        pytest.param(
            {"a/__init__.py": "", "b/__init__.py": "", "b/api/main.py": APP},
            [],
            "b",
            "b/db",
            id="the-one-with-the-app",
        ),
        pytest.param(
            {"backend/app/__init__.py": "", "backend/app/main.py": APP, "frontend/x.js": ""},
            [],
            "app",
            "backend/app/db",
            id="backend-folder",
        ),
        pytest.param(
            {
                ".agents/skills/x/__init__.py": APP,
                ".venv/lib/__init__.py": APP,
                "node_modules/x/__init__.py": APP,
                "tests/__init__.py": APP,
                "py3/pyvenv.cfg": "",
                "py3/__init__.py": APP,
                "shop/__init__.py": "",
            },
            [],
            "shop",
            "shop/db",
            id="not-looked-at",
        ),
        pytest.param(
            {"a/__init__.py": APP, "b/__init__.py": APP},
            ["--package", "b"],
            "b",
            "b/db",
            id="chosen",
        ),
        pytest.param(
            {"shop/__init__.py": ""}, ["--package", "shop.core"], "shop.core", "shop/core/db"
        ),
        pytest.param({}, ["--package", "src/shop"], "shop", "src/shop/db", id="new-in-src"),
        pytest.param(
            {"src/shop/__init__.py": ""}, ["--package", "shop"], "shop", "src/shop/db", id="in-src"
        ),
    ],
)
def test_add_finds_the_package(
    tmp_path: Path, files: dict[str, str], arguments: list[str], name: str, target: str
) -> None:
    project(tmp_path, files)
    before = snapshot(tmp_path)
    report = scaffold("add", tmp_path, *arguments, "--json").report
    assert (report["package"], report["target"], report["error"]) == (name, target, None)
    assert report["written"] is True

    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before
    written = {path for path in after.keys() - before.keys() if (tmp_path / path).is_file()}
    assert written == set(report["created"])
    assert sorted(Path(p).name for p in written if p.startswith(f"{target}/")) == LAYER_FILES
    assert {Path(p).name for p in written if not p.startswith(f"{target}/")} <= {"__init__.py"}
    root = tmp_path / target.removesuffix("/db").removesuffix(name.replace(".", "/"))
    assert in_project(root, f"import {name}.db as db; print(db.ServiceBase.__name__)")


def test_add_makes_a_package_only_where_there_was_no_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "app/__init__.py" in scaffold("add", tmp_path / "empty", "--json").report["created"]
    namespace = project(tmp_path / "namespace", {"app/models.py": ""})
    scaffold("add", namespace)
    assert not (namespace / "app" / "__init__.py").exists()
    source = tmp_path / "source"
    source.mkdir()
    scaffold("add", source, "--package", "src/shop")
    assert (source / "src" / "shop" / "__init__.py").exists()
    assert not (source / "src" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        pytest.param(
            {"a/__init__.py": "", "src/b/__init__.py": ""},
            [],
            ["a, src/b", "--package"],
            id="ambiguous",
        ),
        pytest.param(
            {"a/__init__.py": APP, "b/__init__.py": APP, "c/__init__.py": ""},
            [],
            ["a, b;", "--package"],
            id="two-apps",
        ),
        pytest.param({}, ["--package", "my-app"], ["'my-app'", "shop.core"], id="bad-name"),
        pytest.param({}, ["--package", "../x"], ["'..'"], id="outside"),
        pytest.param({}, ["--package", "class"], ["'class'"], id="keyword"),
        pytest.param({"app.py": APP}, [], ["app.py", "hidden"], id="module"),
        pytest.param(
            {"app/__init__.py": "", "app/db.py": ""}, [], ["app/db.py", "hidden"], id="db-module"
        ),
        pytest.param({"__init__.py": ""}, [], ["is a package itself", "--package"], id="package"),
        pytest.param({"app/db/web.py/x": ""}, [], ["web.py is a folder"], id="folder-for-file"),
        pytest.param(
            {"app/__init__.py": "", "app/db": ""}, [], ["db is a file"], id="file-for-folder"
        ),
    ],
)
def test_add_refuses(
    tmp_path: Path, files: dict[str, str], arguments: list[str], words: list[str]
) -> None:
    project(tmp_path, files)
    before = snapshot(tmp_path)
    for force in ([], ["--force"]):
        error = refused("add", tmp_path, *arguments, *force)
        for word in words:
            assert word in error
        assert snapshot(tmp_path) == before


def test_add_needs_a_folder(tmp_path: Path) -> None:
    assert "is not a folder" in refused("add", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


# -- both: what is written, and when nothing is ----------------------------------------


def test_dry_run_reports_and_writes_nothing(tmp_path: Path) -> None:
    folder = project(tmp_path / "old", {"app/__init__.py": ""})
    before = snapshot(tmp_path)
    dry = scaffold("add", folder, "--dry-run", "--json").report
    assert (dry["written"], dry["dry_run"]) == (False, True)
    assert scaffold("new", tmp_path / "new", "--dry-run", "--prove", "--json").report["created"]
    people = scaffold("add", folder, "--dry-run")
    assert "would be created" in people.out
    assert snapshot(tmp_path) == before
    assert scaffold("add", folder, "--json").report["created"] == dry["created"]


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "add").mkdir()
    for command, others in (("add", {"app/__init__.py"}), ("new", set[str]())):
        first = scaffold(command, tmp_path / command, "--json").report
        before = snapshot(tmp_path)
        again = scaffold(command, tmp_path / command, "--json").report
        assert (again["created"], again["overwritten"], again["error"]) == ([], [], None)
        # The new package's __init__.py is the project's own from now on.
        assert set(again["unchanged"]) == set(first["created"]) - others
        assert snapshot(tmp_path) == before


def test_a_file_that_differs_stops_everything(tmp_path: Path) -> None:
    folder = project(tmp_path, {"app/__init__.py": "", "app/db/filters.py": "mine = 1\n"})
    before = snapshot(folder)
    error = refused("add", folder)
    assert "--force would overwrite app/db/filters.py" in error
    assert snapshot(folder) == before

    report = scaffold("add", folder, "--force", "--json").report
    assert report["overwritten"] == ["app/db/filters.py"]
    source = EXAMPLE / "app" / "db" / "filters.py"
    assert (folder / "app" / "db" / "filters.py").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in (folder / "app" / "db").iterdir()) == LAYER_FILES


def test_a_write_that_fails_is_undone(tmp_path: Path) -> None:
    folder = project(tmp_path, {"app/__init__.py": "", "app/db/base.py": "mine = 1\n"})
    before = snapshot(folder)
    # Real: the larger files of the layer do not fit.
    result = scaffold("add", folder, "--force", "--json", limit=5000)
    assert result.code == 3
    assert "all was put back" in result.report["error"]
    assert result.report["written"] is False
    assert snapshot(folder) == before

    result = scaffold("new", folder / "fresh", "--json", limit=5000)
    assert result.code == 3
    assert snapshot(folder) == before


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", range(1, 10))
def test_a_rename_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, at: int
) -> None:
    # A file system does not fail a rename on request: the call is made to.
    script = load_script()
    files = {"app/__init__.py": "", "app/db/base.py": "mine = 1\n", "app/db/web.py": "mine = 2\n"}
    folder = project(tmp_path, files)
    before = snapshot(folder)
    rename, calls = Path.rename, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == at:
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    code = script.main(["add", str(folder), "--force"])
    assert code == (3 if isinstance(failure, OSError) else 130)
    assert calls == at
    assert snapshot(folder) == before


@pytest.mark.parametrize("link", ["app/db", "app", "app/db/web.py"])
def test_a_link_that_leaves_the_project_is_not_followed(tmp_path: Path, link: str) -> None:
    folder = project(tmp_path / "project", {"README.md": ""})
    outside = project(tmp_path / "outside", {"web.py": "mine = 1\n"})
    (folder / link).parent.mkdir(parents=True, exist_ok=True)
    (folder / link).symlink_to(outside / "web.py" if link.endswith(".py") else outside)
    before = snapshot(tmp_path)
    for force in ([], ["--force"]):
        assert "through a symbolic link" in refused("add", folder, *force)
    assert snapshot(tmp_path) == before


def test_the_skill_may_be_reached_through_a_link(tmp_path: Path) -> None:
    skills = tmp_path / ".agents" / "skills"
    skills.mkdir(parents=True)
    (skills / "async-sqlmodel").symlink_to(ROOT)
    script = skills / "async-sqlmodel" / "scripts" / "scaffold.py"
    report = scaffold("add", tmp_path, "--json", script=script).report
    assert report["target"] == "app/db"
    assert in_project(tmp_path, "import app.db; print(app.db.__name__)") == "app.db"
    fresh = scaffold("new", tmp_path / "shop", "--json", script=script).report
    assert ".env" in fresh["created"]


def test_bad_arguments_are_json_too(tmp_path: Path) -> None:
    assert "invalid choice" in refused("make", tmp_path)
    assert "DIR" in refused("add")
    assert "--nope" in refused("add", tmp_path, "--nope")
    assert list(tmp_path.iterdir()) == []


# -- add: what the project lacks -------------------------------------------------------

WHOLE = ["fastapi>=0.121", "sqlmodel[asyncio]>=0.0.45", "pydantic-settings>=2.7"]


def table(*requirements: str) -> str:
    return f"[project]\nname = 'x'\ndependencies = {list(requirements)}\n"


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        pytest.param({}, [*WHOLE, "aiosqlite>=0.20"], id="nothing"),
        pytest.param({"pyproject.toml": table(*WHOLE, "asyncpg")}, [], id="all"),
        pytest.param(
            {"requirements.txt": "FastAPI\nsqlmodel\ngreenlet\npydantic_settings  # x\naiomysql\n"},
            [],
            id="requirements",
        ),
        pytest.param(
            {"pyproject.toml": table("fastapi", "sqlmodel", "pytest-asyncio", "psycopg[binary]")},
            WHOLE[1:],
            id="no-greenlet",
        ),
        pytest.param(
            {"requirements-prod.txt": "fastapi==0.110.0\nsqlmodel[asyncio]<0.0.30\nasyncmy\n"},
            WHOLE,
            id="too-old",
        ),
        pytest.param(
            {"pyproject.toml": table("fastapi>=0.100", "sqlmodel[asyncio]>=0.0.14,<1", "asyncpg")},
            WHOLE,  # a lock file may hold 0.100
            id="lower-bounds-too-low",
        ),
        pytest.param(
            {
                "pyproject.toml": "[tool.poetry.dependencies]\nfastapi = '*'\naiosqlite = '*'\n"
                "pydantic-settings = '*'\nsqlmodel = {extras = ['asyncio'], version = '*'}\n"
            },
            [],
            id="poetry",
        ),
        pytest.param({"pyproject.toml": "[[["}, [*WHOLE, "aiosqlite>=0.20"], id="not-toml"),
        pytest.param(
            {"pyproject.toml": "project = 1"}, [*WHOLE, "aiosqlite>=0.20"], id="not-a-project"
        ),
    ],
)
def test_missing_dependencies(tmp_path: Path, files: dict[str, str], missing: list[str]) -> None:
    before = snapshot(project(tmp_path, files))
    result = scaffold("add", tmp_path, "--json")
    assert result.report["dependencies_missing"] == missing
    odd = files.get("pyproject.toml") in ("[[[", "project = 1")
    assert ("cannot be understood" in result.err) == odd
    install = [step for step in result.report["next"] if step.startswith("Install")]
    assert len(install) == bool(missing)
    if missing:
        assert "python -m pip install" in install[0] or "poetry add" in install[0]
        assert all(each in install[0].replace("'", "") for each in missing)
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"uv.lock": ""}, "uv add"),
        ({"pyproject.toml": "[tool.poetry]\nname = 'x'\n"}, "poetry add"),
        ({"pdm.lock": ""}, "pdm add"),
        ({"requirements.txt": ""}, "python -m pip install"),
    ],
)
def test_the_install_command_is_the_projects_own(
    tmp_path: Path, files: dict[str, str], command: str
) -> None:
    report = scaffold("add", project(tmp_path, files), "--json").report
    assert f": {command} 'fastapi>=0.121' 'sqlmodel[asyncio]>=0.0.45'" in report["next"][0]


def test_the_next_steps_work(tmp_path: Path) -> None:
    report = scaffold("add", tmp_path, "--json").report
    settings, lifespan, session = (step.partition("\n")[2] for step in report["next"][-3:])
    project(tmp_path, {".env": settings})
    model = """
        from sqlmodel import Field, SQLModel

        class HeroPublic(SQLModel):
            name: str

        class HeroCreate(HeroPublic):
            pass

        class Hero(HeroPublic, table=True):
            id: int | None = Field(default=None, primary_key=True)
    """
    body = """
            hero = Hero.model_validate(data)
            session.add(hero)
            await session.flush()
            return hero
    """
    call = """
        from fastapi.testclient import TestClient

        with TestClient(app) as client:
            answer = client.post("/heroes", json={"name": "Deadpond"})
        print(answer.status_code, answer.json())
    """
    session = session.removesuffix(" ...") + textwrap.indent(textwrap.dedent(body), "    ")
    parts = [textwrap.dedent(model), lifespan, session, textwrap.dedent(call)]
    # A table needs the layer's names for its constraints: the layer is imported first.
    printed = in_project(tmp_path, "import app.db\n" + "\n".join(parts))
    assert printed == "201 {'name': 'Deadpond'}"


# -- add --migrations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "arguments", "root", "name"),
    [
        pytest.param({}, [], "%(here)s", "app", id="empty"),
        pytest.param({"src/shop/__init__.py": ""}, [], "%(here)s/src", "shop", id="src"),
        pytest.param(
            {"backend/app/__init__.py": APP}, [], "%(here)s/backend", "app", id="backend-folder"
        ),
        pytest.param(
            {"shop/__init__.py": ""}, ["--package", "shop.core"], "%(here)s", "shop.core", id="deep"
        ),
    ],
)
def test_add_migrations_names_the_package(
    tmp_path: Path, files: dict[str, str], arguments: list[str], root: str, name: str
) -> None:
    project(tmp_path, files)
    report = scaffold("add", tmp_path, "--migrations", *arguments, "--json").report
    assert {"alembic.ini", "migrations/env.py"} <= set(report["created"])
    assert "alembic>=1.20" in report["dependencies_missing"]
    assert "DATABASE_CREATE_TABLES=true" not in "".join(report["next"])
    assert "alembic upgrade head" in report["next"][-1]
    assert f"prepend_sys_path = {root}\n" in (tmp_path / "alembic.ini").read_text()
    env = (tmp_path / "migrations/env.py").read_text()
    assert f"from {name}.db import Database, DatabaseSettings\n" in env
    assert f'MODELS = "{name.partition(".")[0]}"\n' in env


def test_add_migrations_leaves_a_layer_alone_that_is_there(tmp_path: Path) -> None:
    scaffold("add", tmp_path)
    changed = tmp_path / "app/db/base.py"
    changed.write_text("# mine")
    report = scaffold("add", tmp_path, "--migrations", "--json").report
    assert sorted(report["created"]) == [
        "alembic.ini",
        "migrations/env.py",
        "migrations/script.py.mako",
    ]
    assert changed.read_text() == "# mine"


def test_new_takes_the_option_that_it_does_not_need(tmp_path: Path) -> None:
    with_option = scaffold("new", tmp_path / "a", "--migrations", "--json").report["created"]
    without = scaffold("new", tmp_path / "b", "--json").report["created"]
    assert with_option == without
    assert "migrations/env.py" in without


@pytest.mark.parametrize(
    ("dependencies", "missing"),
    [
        (["asyncpg"], ["alembic>=1.20", "alembic-postgresql-enum>=1.11"]),
        (["psycopg", "alembic>=1.16"], ["alembic>=1.20", "alembic-postgresql-enum>=1.11"]),
        (["aiomysql", "alembic"], []),
    ],
)
def test_what_migrations_need(tmp_path: Path, dependencies: list[str], missing: list[str]) -> None:
    project(tmp_path, {"pyproject.toml": table(*WHOLE, *dependencies)})
    report = scaffold("add", tmp_path, "--migrations", "--json").report
    assert report["dependencies_missing"] == missing


def test_a_project_that_has_migrations_keeps_them(tmp_path: Path) -> None:
    project(tmp_path, {"pyproject.toml": "[tool.alembic]\nscript_location = 'alembic'\n"})
    result = scaffold("add", tmp_path, "--migrations", "--json")
    assert (result.code, result.report["written"]) == (2, False)
    assert "the project has migrations" in result.report["error"]
    (tmp_path / "pyproject.toml").unlink()
    project(tmp_path, {"alembic.ini": "[alembic]\n"})
    result = scaffold("add", tmp_path, "--migrations", "--json")
    assert (result.code, result.report["written"]) == (2, False)
    assert "alembic.ini" in result.report["error"]


# -- new -------------------------------------------------------------------------------

# `family`: an argument called `database` would be filled in by tests/mdtest.
EVERY_DRIVER = pytest.mark.parametrize(
    ("family", "driver"),
    [
        pytest.param(
            database, driver, id=f"{database}-{driver}", marks=getattr(pytest.mark, database)
        )
        for database, drivers in DRIVERS.items()
        for driver in drivers
    ],
)


@EVERY_DRIVER
def test_new_for_every_driver(tmp_path: Path, family: str, driver: str) -> None:
    folder = tmp_path / "My Shop"
    arguments = ["--database", family, "--driver", driver]
    report = scaffold("new", folder, *arguments, "--json").report
    assert report["error"] is None
    files = {path for path, content in snapshot(folder).items() if content}
    assert files == set(report["created"])

    toml = tomllib.loads((folder / "pyproject.toml").read_text())
    assert toml["project"]["name"] == "my-shop"
    wanted = toml["project"]["dependencies"]
    drivers = [each for each in wanted if re.match(r"aio|async|psycopg", each)]
    assert [re.split(r"[\[>]", each)[0] for each in drivers] == [driver]
    assert any("cryptography" in each for each in wanted) == (family == "mysql")
    # Its tests run on SQLite by default.
    assert ("aiosqlite>=0.20" in toml["dependency-groups"]["dev"]) == (family != "sqlite")
    assert all(each in "".join(report["next"]) for each in wanted)

    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    code = "from app.db import DatabaseSettings as S; print(S().url.drivername, S().create_tables)"
    assert in_project(folder, code) == f"{family}+{driver} True"
    placeholder = any("placeholder" in step for step in report["next"])
    assert placeholder == (family != "sqlite")

    sources = {
        "alembic.ini": MIGRATIONS / "alembic.ini",
        "migrations/env.py": MIGRATIONS / "env.py",
        "migrations/script.py.mako": MIGRATIONS / "script.py.mako",
    }
    changed = {".env", "pyproject.toml", "alembic.ini"}
    for name in files - changed:
        source = sources.get(name, EXAMPLE / name)
        assert (folder / name).read_bytes() == source.read_bytes()
    plugin = any(each.startswith("alembic-postgresql-enum") for each in wanted)
    assert plugin == (family == "postgresql")


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        ([], "sqlite+aiosqlite:///./app.db"),
        (["--driver", "psycopg"], "postgresql+psycopg://app:change-me@localhost:5432/app"),
        (["--url", "postgres://me:p%40ss@db/shop"], "postgresql+asyncpg://me:p%40ss@db/shop"),
        (
            ["--url", "postgresql://me@db/shop?sslmode=require", "--driver", "psycopg"],
            "postgresql+psycopg://me@db/shop?sslmode=require",
        ),
        (["--url", "mariadb://me@db/shop"], "mariadb+aiomysql://me@db/shop"),
        (["--url", "sqlite:////var/lib/my shop.db"], "sqlite+aiosqlite:////var/lib/my shop.db"),
    ],
)
def test_the_url_that_the_app_reads(tmp_path: Path, arguments: list[str], url: str) -> None:
    result = scaffold("new", tmp_path, *arguments)
    assert result.code == 0, result.err
    assert f"DATABASE_URL={url}\n" in (tmp_path / ".env").read_text()
    code = "from dotenv import dotenv_values as d; print(d('.env')['DATABASE_URL'])"
    assert in_project(tmp_path, code) == url
    in_project(tmp_path, "from app.db import DatabaseSettings as S; S()")
    for secret in ("p%40ss", "change-me"):
        assert secret not in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--database", "postgresql", "--driver", "aiomysql"], ["aiomysql", "asyncpg or psycopg"]),
        (["--database", "sqlite", "--driver", "asyncpg"], ["use aiosqlite"]),
        (["--driver", "psycopg2"], ["psycopg2", "asyncpg"]),
        (["--database", "oracle"], ["oracle", "sqlite"]),
        (["--url", "postgresql+psycopg2://me:secret@db/x"], ["psycopg2", "asyncpg or psycopg"]),
        (["--url", "postgresql://me:secret@db/x", "--database", "mysql"], ["--database says"]),
        (["--url", "postgresql+asyncpg://db/x", "--driver", "psycopg"], ["--driver says"]),
        (["--url", "oracle://me:secret@db/x"], ["oracle", "postgresql"]),
        (["--url", "secret"], ["driver://user:password@host"]),
        (["--url", "postgresql://me:secret@db"], ["names no database"]),
        (["--url", "postgresql://me:secret@x@db/x"], ["percent-encode"]),
        (["--url", "postgresql://me:secret/x@db/x"], ["percent-encode"]),
        (["--url", "postgresql://me:secret#x@db/x"], ["percent-encode"]),
        (["--url", "postgresql://me:1/secret@db/x"], ["percent-encode"]),
        (["--url", "mysql://me:secret@db:port/x"], ["percent-encode"]),
        (["--url", "sqlite:///a${HOME}.db"], ["percent-encode"]),
        (["--url", "sqlite:///a.db\nDATABASE_ECHO=true"], ["percent-encode"]),
        (["--name", "no spaces"], ["'no spaces'", "my-shop"]),
        (["--keep"], ["--prove"]),
        (["--prove", "--keep"], ["--json"]),
        (["--prove", "--database", "postgresql"], ["--url", "DATABASE_URL"]),
        (["--prove", "--venv", "/nowhere"], ["/nowhere", "bin/python"]),
        (["--prove", "--port", "99999"], ["99999"]),
    ],
)
def test_new_refuses(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    result = scaffold("new", tmp_path / "x", *arguments, "--json")
    assert result.code == 2
    for word in words:
        assert word in result.report["error"]
    if arguments[-1] != "secret":
        assert "secret" not in result.out + result.err
    assert list(tmp_path.iterdir()) == []


def test_new_wants_an_empty_folder(tmp_path: Path) -> None:
    folder = project(tmp_path / "x", {"notes.txt": "mine", ".git/config": ""})
    before = snapshot(folder)
    assert "is not empty (there is notes.txt)" in refused("new", folder)
    assert snapshot(folder) == before
    assert scaffold("new", folder, "--force").code == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "app" / "main.py").exists()

    hidden = project(tmp_path / "y", {".git/config": "", ".agents/skills/x.md": ""})
    assert scaffold("new", hidden).code == 0
    (tmp_path / "file").write_text("mine")
    assert "is not a folder" in refused("new", tmp_path / "file")

    (hidden / "app" / "main.py").write_text("mine")
    before = snapshot(hidden)
    assert "--force would overwrite app/main.py" in refused("new", hidden)
    assert snapshot(hidden) == before


# -- the proof -------------------------------------------------------------------------


@EVERY_DRIVER
def test_prove(servers: Servers, tmp_path: Path, family: str, driver: str) -> None:
    url = servers.create_for_test(family, tmp_path, driver)
    text = url.render_as_string(hide_password=False)
    try:
        for _ in range(2):  # also on a database that has been proven before
            result = scaffold("new", tmp_path / "shop", "--url", text, *PROOF, "--json")
            assert result.code == 0, result.err
            proof = result.report["prove"]
            assert proof["ok"] is True
            found = {(step["method"], step["status"]) for step in proof["steps"]}
            assert found >= {
                *(("POST", 201), ("GET", 200), ("PUT", 200), ("PATCH", 200)),
                *(("POST", 409), ("GET", 404), ("GET", 422), ("DELETE", 204)),
            }
            assert '"constraint": "uq_hero_name"' in result.err
            assert not answers(proof["url"])
    finally:
        servers.drop(url)


def test_prove_with_the_url_of_the_environment(servers: Servers, tmp_path: Path) -> None:
    url = servers.create_for_test("postgresql", tmp_path, "asyncpg")
    text = url.render_as_string(hide_password=False)
    try:
        arguments = ["--database", "postgresql", *PROOF]
        result = scaffold("new", tmp_path / "shop", *arguments, env={"DATABASE_URL": text})
    finally:
        servers.drop(url)
    assert result.code == 0, result.err
    assert "all 18 answers were as expected" in result.out
    assert "Keep DATABASE_URL set" in result.out
    assert str(url.database) not in (tmp_path / "shop" / ".env").read_text()

    # And it must be one of the database that was asked for.
    error = refused(
        "new", tmp_path / "y", "--database", "mysql", "--prove", env={"DATABASE_URL": text}
    )
    assert "DATABASE_URL" in error
    assert not (tmp_path / "y").exists()


def test_prove_leaves_a_database_alone_that_was_not_meant(tmp_path: Path) -> None:
    other = f"sqlite+aiosqlite:///{tmp_path / 'other.db'}"
    shell = {"DATABASE_URL": other, "DATABASE_PASSWORD": "of another server"}
    result = scaffold("new", tmp_path / "x", *PROOF, env=shell)
    assert result.code == 0, result.err
    assert (tmp_path / "x" / "app.db").exists()
    assert not (tmp_path / "other.db").exists()


def answers(url: str) -> bool:
    port = int(url.rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("app/main.py", "app = create_app()", "app = create_apps()", "the app did not start"),
        ("app/db/database.py", "await session.commit()", "await session.rollback()", "status"),
        ("app/api.py", 'page(load="team", ', "page(", "GET /heroes?"),
        ("app/db/service.py", "in changes.items()}\n        w", "in ()}\n        w", "PATCH"),
        ("app/db/web.py", '"constraint": error.constraint', '"constraint": None', "uq_hero_name"),
        ("app/db/web.py", '"application/problem+json")', '"application/json")', "Content-Type"),
    ],
)  # fmt: skip
def test_prove_fails_when_the_app_is_broken(
    tmp_path: Path, file: str, old: str, new: str, words: str
) -> None:
    skill = tmp_path / "skill"
    shutil.copytree(ROOT / "assets", skill / "assets")
    (skill / "scripts").mkdir()
    script = Path(shutil.copy(SCRIPT, skill / "scripts"))
    path = skill / "assets" / "example" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))

    result = scaffold("new", tmp_path / "x", *PROOF, "--json", script=script)
    assert result.code == 1
    report = result.report
    assert words in report["error"]
    assert (report["written"], report["prove"]["ok"]) == (True, False)
    assert "the end of the server's log" in result.err
    assert not answers(report["prove"]["url"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_keep_serves_until_it_is_stopped(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "new", tmp_path / "x", *PROOF, "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    url = ""
    try:
        assert process.stdout
        for line in process.stdout:
            if found := re.match(r"serving (http://127\.0\.0\.1:\d+)/docs until Ctrl-C", line):
                url = found[1]
                break
        assert url
        assert answers(url)
        process.send_signal(how)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "Keep it running: cd" in out
    assert not answers(url)


def test_an_interrupted_proof_stops_the_server(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "new", tmp_path / "x", *PROOF],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    port = ""
    try:
        assert process.stdout
        for line in process.stdout:
            if found := re.match(r"starting the app on port (\d+)", line):
                port = found[1]
            if line.startswith(" 1."):
                break
        assert answers(f":{port}")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "interrupted" in err
    assert not answers(f":{port}")


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        error = refused("new", tmp_path / "x", "--prove", "--port", port)
    assert f"--port {port} cannot be used" in error
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_lacks_something_is_refused(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    error = refused("new", tmp_path / "x", "--prove", "--venv", tmp_path / "venv")
    assert re.search(r"venv lacks .*fastapi.*sqlmodel.*uvicorn", error)
    assert not (tmp_path / "x").exists()


def test_prove_makes_an_environment_and_uses_it_again(tmp_path: Path) -> None:
    # pip finds what it should install through the .pth file, so it needs no network.
    venv = tmp_path / "x" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = sysconfig.get_path("purelib")
    (venv / "lib" / version / "site-packages" / "here.pth").write_text(packages)

    first = scaffold("new", tmp_path / "x", "--prove", env={"PIP_NO_INDEX": "1"})
    assert first.code == 0, first.err
    assert "installing aiosqlite>=0.20, alembic>=1.20, fastapi>=" in first.out
    assert ".venv/bin/python -m uvicorn app.main:app" in first.out
    again = scaffold("new", tmp_path / "x", "--prove", env={"PIP_NO_INDEX": "1"})
    assert again.code == 0, again.err
    assert "has what the app needs" in again.out
    assert "installing" not in again.out

    # Other requirements, another installation; what cannot be installed is said.
    other = scaffold(
        *("new", tmp_path / "x", "--prove", "--force", "--url", "mysql://me@127.0.0.1:1/x"),
        env={"PIP_NO_INDEX": "1"},
    )
    assert other.code == 1
    assert "installing aiomysql" in other.out
    assert "the app did not start" in other.err
