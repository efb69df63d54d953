"""Deliberately broken documents turn a run red; good ones are green.

All of them are run once, in one pytest of their own; each test looks at one document.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from .test_plugin import run

LIMIT = 2  # seconds
MODELS = """```python
from sqlmodel import Field, SQLModel

from app.db import Database, DatabaseSettings


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
```
"""


def python(*blocks: str) -> str:
    return "# T\n\n" + "\n".join(f"```python\n{block}\n```\n" for block in blocks)


def file(name: str, language: str, code: str, rest: str = "") -> str:
    return f"# T\n\n`{name}`:\n\n```{language}\n{code}\n```\n\n{rest}"


def bash(code: str, output: str | None = None) -> str:
    text = "" if output is None else f"\n```text\n{output}\n```\n"
    return f"# T\n\n```bash\n{code}\n```\n{text}"


# name -> document, line, part of the message. The first line of the first block is 4.
BROKEN = {
    "raises": (python("x = 1\nx.y"), 5, "AttributeError: 'int' object has no attribute 'y'"),
    "raises-in-a-function": (python("def f():\n    1 / 0\n\n\nf()"), 5, "ZeroDivisionError"),
    "raises-in-a-second-block": (python("x = 1", "x.y"), 8, "AttributeError"),
    "does-not-raise": (python("x = 1  # raises: ValueError"), 4, "does not raise ValueError"),
    "does-not-raise-here": (
        python("x = 1  # raises[sqlite]: ValueError: no"),
        4,
        "does not raise ValueError: no",
    ),
    "raises-elsewhere": (python("int('x')  # raises[mysql]: ValueError"), 4, "ValueError: inv"),
    "another-class": (python("int('x')  # raises: TypeError"), 4, "raises ValueError, not TypeE"),
    "a-base-class": (python("int('x')  # raises: Exception"), 4, "raises ValueError, not Exc"),
    "another-message": (
        python("int('x')  # raises: ValueError: out of range"),
        4,
        "the message of ValueError does not hold 'out of range'",
    ),
    "another-line": (
        python("int('x')\nint('y')  # raises: ValueError"),
        4,
        "ValueError is raised here, not on line 5",
    ),
    "another-line-of-a-with": (
        python(
            "import contextlib\n\nwith contextlib.suppress():  # raises: ValueError\n    int('x')"
        ),
        7,
        "ValueError is raised here, not on line 6",
    ),
    "after-the-error": (
        python("int('x')  # raises: ValueError\nx = 1"),
        5,
        "never runs: the block ends with the error on line 4",
    ),
    "syntax": (python("x ="), 4, "SyntaxError"),
    "system-exit": (python("raise SystemExit"), 4, "SystemExit"),
    "output-drifted": (python("print(2)\n#> 1"), 5, "prints something else"),
    "output-missing": (python("x = 1\nprint(x)"), 5, "prints something else"),
    "output-of-a-loop": (python("for x in (1, 2):\n    print(x)\n    #> 1"), 6, "prints something"),
    "output-too-long": (python("print(1)\n#> 1\n#> 2"), 6, "prints something else"),
    "output-of-a-function": (
        python("def f():\n    print(1)", "f()"),
        9,
        "print in a function of another block (line 5)",
    ),
    "function-never-runs": (python("def f():\n    return 1"), 5, "never runs on sqlite"),
    "branch-never-runs": (python("x = 1\nif not x:\n    x = 2"), 6, "never runs on sqlite"),
    "else-never-runs": (python("x = 1\nif x:\n    x = 2\nelse:\n    x = 3"), 8, "never runs"),
    "except-never-runs": (python("try:\n    x = 1\nexcept E:\n    x = 2"), 7, "never runs"),
    "case-never-runs": (
        python("match 1:\n    case 1:\n        x = 1\n    case _:\n        x = 2"),
        8,
        "never runs",
    ),
    "async-for-never-runs": (
        python("async def f():\n    for x in []:\n        yield x\n\n\nasync for x in f():\n    x"),
        6,
        "never runs",
    ),
    "file-never-runs": (file("a.py", "python", "def f():\n    return 1"), 7, "never runs"),
    "file-raises": (file("a.py", "python", "x = 1\nx.y"), 7, "AttributeError"),
    "file-that-is-not-found": (file("a-b/c.py", "python", "from . import d"), 6, "ImportError"),
    "test-file-never-runs": (
        file("test_a.py", "python", "def f():\n    return 1\n\n\ndef test() -> None:\n    assert 1")
        + bash("python -m pytest -q")[5:],
        7,
        "never runs",
    ),
    "file-replaced-before-it-ran": (
        file("a.py", "python", "x = 1") + file("a.py", "python", "x = 2")[5:],
        6,
        "nothing runs this file before line 12 replaces it",
    ),
    "file-replaced-too-late": (
        file("a.py", "python", "x = 1")
        + "```python\nimport a\n\nassert a.x == 1\n```\n"
        + file("a.py", "python", "x = 2")[5:],
        17,
        "never runs",
    ),
    "bash-fails": (bash("true\nfalse\necho after"), 4, "exit status 1"),
    "bash-fails-in-a-pipe": (bash("false | cat"), 4, "exit status 1"),
    "bash-unset-variable": (bash("echo $NO_SUCH_VARIABLE"), 4, "unbound variable"),
    "text-drifted": (bash("echo 1; echo 2", "1\n3"), 9, "not the output of the block above"),
    "text-too-short": (bash("echo 1; echo 2", "1"), 8, "not the output of the block above"),
    "sql-fails": ("# T\n\n```sql\nSELECT * FROM nowhere;\n```\n", 4, "no such table: nowhere"),
    "toml": (file("a.toml", "toml", "a = "), 6, "not toml: "),
    "ini": (file("a.ini", "ini", "a = 1"), 6, "not ini: "),
    "yaml": (file("a.yaml", "yaml", "a: [1"), 6, "not yaml: "),
    "json": (file("a.json", "json", '{"a": 1,}'), 6, "not json: "),
    "mako": (file("a.mako", "mako", "${a"), 6, "not mako: "),
    "dotenv": (file(".env", "dotenv", "A=1\nB"), 6, "not dotenv: each line must be NAME=value"),
    "exits": (python("import os\n\nos._exit(0)"), 1, "the process of the section ended: exit stat"),
    "killed": (
        python("import os\nimport signal\n\nos.kill(os.getpid(), signal.SIGKILL)"),
        1,
        "the process of the section ended: SIGKILL",
    ),
    "hangs": (python("import time\n\ntime.sleep(60)"), 6, f"no end after {LIMIT} s"),
    "hangs-in-await": (
        python("import asyncio\n\n\nasync def f():\n    await asyncio.sleep(60)\n\n\nawait f()"),
        8,
        f"no end after {LIMIT} s",
    ),
    "hangs-in-bash": (bash("sleep 61"), 4, f"no end after {LIMIT} s"),
    "misformatted": (python("x = 'a'"), 4, "not formatted"),
    "too-long": (python(f"x = {'1 + ' * 40}1"), 4, "not formatted"),
    "unsorted": (python("import sys\nimport os\n\nprint(os, sys)"), 4, "I001"),
    "undefined-name": (python("def f():\n    return y"), 5, "F821"),
    "unused-import": (python("import os"), 4, "F401"),
    "two-prints-on-a-line": (python("print(1); print(2)"), 4, "E702"),
    "deprecated": (
        python("import warnings\n\nwarnings.warn('old', DeprecationWarning, stacklevel=1)"),
        6,
        "DeprecationWarning: old",
    ),
    "deprecated-in-sqlmodel": (
        python("from sqlmodel import SQLModel\n\nSQLModel().dict()"),
        6,
        "DeprecationWarning: ",
    ),
    "never-awaited": (
        python("async def f():\n    pass\n\n\nawait f()\nf()"),
        9,
        "RuntimeWarning: coroutine 'f' was never awaited",
    ),
    "error-in-a-task": (
        python(
            "import asyncio\n\n\nasync def f():\n    1 / 0\n\n\n"
            "task = asyncio.create_task(f())\nawait asyncio.sleep(0)\ndel task"
        ),
        8,
        "ZeroDivisionError",
    ),
    "error-in-a-thread": (
        python(
            "import threading\n\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()"
        ),
        6,
        "ZeroDivisionError",
    ),
    "imports-the-harness": (python("import tests.databases"), 4, "ModuleNotFoundError"),
    "imports-the-repository": (python("import conftest"), 4, "ModuleNotFoundError"),
    "an-untyped-fence": ("# T\n\n```\nx\n```\n", 3, "fence without a language"),
    "no-block": ("# T\n", 1, "no code block"),
}

GOOD = {
    "program": python("x = 1", "x += 1\nassert x == 2", "print(x)\n#> 2"),
    "await": python("import asyncio\n\nawait asyncio.sleep(0)", "await asyncio.sleep(0)"),
    "inherited": """# T

`app/__init__.py`:

```python
NAME = "app"
```

```bash
echo made > made.txt
```

## One

```python
import app

print(app.NAME)
#> app
```

## Two

```bash
cat made.txt
mv made.txt moved.txt
```

```text
made
```

### Below

```bash
cat moved.txt
```

## Another app

`app/__init__.py`:

```python
NAME = "other"
```

```python
import app

print(app.NAME)
#> other
```
""",
    "layer": "# T\n\n```bash\npython .agents/skills/async-sqlmodel/scripts/scaffold.py add .\n```\n"
    "\n## S\n\n"
    + MODELS
    + """
```python
from app.db import UniqueViolation

database = Database(DatabaseSettings())
await database.create_tables()
async with database.session() as session:
    session.add(Hero(name="Deadpond"))
async with database.session() as session:
    session.add(Hero(name="Deadpond"))
    await session.flush()  # raises: UniqueViolation
```

```sql
UPDATE hero SET name = 'a:b';
SELECT 1
```

```python
from sqlmodel import select

async with database.session() as session:
    print((await session.exec(select(Hero.name))).all())
    #> ['a:b']
```
""".replace("from app.db import UniqueViolation\n\n", ""),
    "raises": python(
        "int('x')  # raises: ValueError",
        "# raises: ValueError: invalid literal\nint('x')",
        "int(\n    'x',  # raises: ValueError\n)".replace("'", '"'),
        "def f():\n    int('x')  # raises: ValueError\n\n\nf()",
        "int('x')  # raises[sqlite, mysql]: ValueError\ny = 1",
        "int('x')  # raises[sqlite]: ValueError\nint('x')  # raises[postgresql]: ValueError\ny = 1",
        "x = 1",
    ).replace("'", '"'),
    "syntax-error": python("async def f():\n    yield from ()  # raises: SyntaxError"),
    "never-awaited": python(
        "async def f():\n    return 1\n\n\nf().real  # raises: AttributeError",
        "x = f()\nx.real  # raises: AttributeError",
        "x = await f()",
        "f()  # raises: RuntimeWarning: never awaited",
    ),
    "prints": python(
        "for x in (1, 2):\n    print(x)\n    #> 1\n    #> 2\n    print(-x)\n    #> -1\n    #> -2",
        "def f(x):\n    if x:\n        print(x)\n        #> 1\n    else:\n        print('no')\n"
        "        #> no\n\n\nf(1)\nf(0)",
        "try:\n    print(1)\n    #> 1\nfinally:\n    print(2)\n    #> 2",
        "match 1:\n    case 1:\n        print(1)\n        #> 1",
        "print(\n    1,\n    [-x for x in (1, 2)],  # a comment\n)\n#> 1 [-1, -2]",
        "print(1)\n#> 1\nprint(2, 3, sep='-')\n#> 2-3",
    ).replace("'", '"'),
    "statements": python(
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from collections import abc\n\n\n"
        'class A:\n    """Words."""\n\n    x: "abc.Sized"\n\n    @property\n    def y(self):\n'
        '        """Words."""\n        return lambda: 1\n\n\nA().y()',
        "while True:\n    break\nelse_ = [x for x in (1, 2) if x]\nwith open('/dev/null') as f:\n"
        "    pass".replace("'", '"'),
    ),
    "files": file(".env", "dotenv", "# words\nA=1\nB='x y'")
    + file("a.toml", "toml", "a = 1")[5:]
    + file("a.ini", "ini", "[a]\nb = %(here)s")[5:]
    + file("a.yaml", "yaml", "a: 1")[5:]
    + file("a.json", "json", '{"a": 1}')[5:]
    + file("a.mako", "mako", "${a}")[5:]
    + bash("ls -A", ".agents\n.env\na.ini\na.json\na.mako\na.toml\na.yaml")[5:],
    "files-run-by-bash": file("main.py", "python", 'if __name__ == "__main__":\n    print(1)')
    + bash("python main.py", "1")[5:]
    + file("main.py", "python", 'if __name__ == "__main__":\n    print(2)')[5:]
    + bash("python main.py", "2")[5:],
    "a-server-in-the-background": bash("sleep 62 > log 2>&1 &"),
    "Größe": "# Größe\r\n\r\n```python\r\nprint('ü')\r\n#> ü\r\n```\r\n".replace("'", '"'),
    "print-to-a-file": python(
        "import io\n\ntext = io.StringIO()\nprint(1, file=text)\nprint(text.getvalue() == '1\\n')\n"
        "#> True".replace("'", '"')
    ),
    "other-database": f"# T\n\nDatabases: PostgreSQL.\n\n{python('x = 1')[5:]}",
}


def failures(folder: Path) -> dict[str, str]:
    """Document -> what pytest says of it."""
    texts = {name: text for name, (text, _, _) in BROKEN.items()} | {
        f"good-{name}": text for name, text in GOOD.items()
    }
    found = dict.fromkeys(texts, "")
    for hanging in (False, True):
        part = folder / f"hanging-{hanging}"
        part.mkdir()
        for name, text in texts.items():
            if name.startswith("hangs") is hanging:
                (part / f"{name}.md").write_text(text, "utf-8", newline="")
        limit = LIMIT if hanging else 60  # which none should reach
        run(part, "-n2", f"--section-timeout={limit}", "--junitxml=result.xml")
        for case in ElementTree.parse(part / "result.xml").iter("testcase"):  # noqa: S314
            name = f"{case.get('classname')} {case.get('name')}".split(".md")[0].split()[0]
            for problem in [*case.iter("failure"), *case.iter("error")]:
                found[name] += f"{problem.text}\n"
    return found


def test_documents(tmp_path: Path) -> None:
    said = failures(tmp_path)  # one run for all: starting pytest takes the time
    not_red = {
        name: said[name]
        for name, (_, line, reason) in BROKEN.items()
        if f"{name}.md:{line}:" not in said[name] or reason not in said[name]
    }
    assert not_red == {}
    not_green = {name: said[f"good-{name}"] for name in GOOD if said[f"good-{name}"]}
    assert not_green == {}
