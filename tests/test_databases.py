"""The servers that the other tests run on."""

import asyncio
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from .databases import DATABASES, DRIVERS, URL_VARIABLES, Servers, Unavailable, required


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[Servers]:
    """Servers that see no other ones, with their folders in `tmp_path`."""
    for name in URL_VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    servers = Servers()
    yield servers
    servers.stop()


def names_of(url: URL, statement: str) -> list[str]:
    async def ask() -> list[str]:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            found = list(await connection.scalars(text(statement)))
        await engine.dispose()
        return found

    return asyncio.run(ask())


LIST = {
    "postgresql": "SELECT datname FROM pg_database",
    "mysql": "SELECT schema_name FROM information_schema.schemata",
}


@pytest.mark.parametrize("position", [0, 1])
def test_create_and_drop(servers: Servers, database: str, position: int, tmp_path: Path) -> None:
    driver = DRIVERS[database][min(position, len(DRIVERS[database]) - 1)]
    try:
        one, two = (servers.create(database, tmp_path, driver) for _ in range(2))
    except Unavailable as error:
        if database in required():
            raise
        pytest.skip(str(error))
    assert one.drivername == f"{database}+{driver}"
    assert one.database != two.database
    assert names_of(one, "SELECT 'ready'") == ["ready"]
    if database != "sqlite":
        assert {one.database, two.database} <= set(names_of(one, LIST[database]))
    servers.drop(one)
    if database != "sqlite":
        assert one.database not in names_of(two, LIST[database])
    servers.drop(two)


def test_stop_ends_the_server_and_removes_its_folder(alone: Servers, tmp_path: Path) -> None:
    alone.start("sqlite")
    assert list(tmp_path.glob("asm-*")) == []
    alone.start("postgresql")
    assert len(list(tmp_path.glob("asm-pg-*"))) == 1
    url = os.environ[URL_VARIABLES["postgresql"]]
    psycopg.connect(url).close()
    alone.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    assert list(tmp_path.glob("asm-*")) == []
    assert URL_VARIABLES["postgresql"] not in os.environ
    alone.stop()  # twice is fine


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "ASYNC_SQLMODEL_POSTGRES_URL is not a URL like postgresql://user@host/"),
        ("mysql://u@localhost/", "ASYNC_SQLMODEL_POSTGRES_URL starts with mysql, not postgresql"),
        ("postgresql://u@127.0.0.1:1/x", "ASYNC_SQLMODEL_POSTGRES_URL: .*refused"),
    ],
)
def test_a_given_url_that_leads_nowhere(
    alone: Servers, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setenv(URL_VARIABLES["postgresql"], url)
    with pytest.raises(RuntimeError, match=message) as first:
        alone.url("postgresql")
    with pytest.raises(RuntimeError, match=message) as again:
        alone.url("postgresql")
    assert again.value is first.value  # no second attempt


@pytest.fixture
def given(servers: Servers) -> str:
    return servers.url("postgresql").render_as_string(hide_password=False)


def test_a_given_server_is_used_and_left_running(
    given: str, alone: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(URL_VARIABLES["postgresql"], given)
    alone.drop(alone.create("postgresql", tmp_path))
    alone.stop()
    assert list(tmp_path.glob("asm-*")) == []
    psycopg.connect(given).close()


def test_absent_mariadb_says_what_to_install(
    alone: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("mariadbd") is None
    with pytest.raises(Unavailable, match=r"install mariadb-server .* ASYNC_SQLMODEL_MYSQL_URL"):
        alone.start("mysql")


def test_a_server_that_does_not_start_says_why(
    alone: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, script in {"mariadbd": "echo no luck; exit 1", "mariadb-install-db": ""}.items():
        tool = tmp_path / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="mariadbd did not start:\nno luck"):
        alone.start("mysql")
    assert list(tmp_path.glob("asm-*")) == []


def test_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_DATABASES", "sqlite, mysql")
    assert required() == {"sqlite", "mysql"}
    monkeypatch.setenv("REQUIRE_DATABASES", "")
    assert required() == set()
    monkeypatch.setenv("REQUIRE_DATABASES", "oracle")
    with pytest.raises(ValueError, match=f"oracle; known: {', '.join(DATABASES)}"):
        required()
