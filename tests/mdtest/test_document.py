"""What a document may not contain, and how it falls into sections."""

from pathlib import Path

import pytest

from .document import DocumentError, parse

PYTHON = "```python\nx = 1\n```\n"

REFUSED = {
    "no block": ("# Title\n\nOnly words.\n", 1, "no code block"),
    "untyped fence": ("```\nx = 1\n```\n", 1, "fence without a language"),
    "unknown language": ("```rust\nlet x = 1;\n```\n", 1, "no check for language 'rust'; known: "),
    "language with attributes": ('```python title="x"\nx = 1\n```\n', 1, "no check for language"),
    "capital language": ("```Python\nx = 1\n```\n", 1, "no check for language 'Python'"),
    "empty block": ("```python\n\n```\n", 1, "nothing in this block runs"),
    "only comments": ("```python\n# words\n```\n", 1, "nothing in this block runs"),
    "only dots": ("```python\n...\n```\n", 1, "nothing in this block runs"),
    "only comments in bash": ("```bash\n# words\n```\n", 1, "nothing in this block runs"),
    "only comments in SQL": ("```sql\n-- words\n```\n", 1, "nothing in this block runs"),
    "indented block": (PYTHON + "\nText:\n\n    y = 2\n", 7, "indented code block"),
    "unnamed configuration": ("# T\n\n```toml\na = 1\n```\n", 3, "without the name of its file"),
    "label without a block": (PYTHON + "\n`app/x.py`:\n\nWords.\n", 5, "no block follows"),
    "label at the end": (PYTHON + "\n`app/x.py`:\n", 5, "no block follows"),
    "two labels": (f"`a.py`:\n\n`b.py`:\n\n{PYTHON}", 1, "`a.py`: names a file, but no block"),
    "label without a colon": (f"`app/x.py`\n\n{PYTHON}", 1, "put `path`: on a line of its own"),
    "label in a sentence": (f"This is `app/x.py`:\n\n{PYTHON}", 1, "on a line of its own"),
    "absolute path": (f"`/etc/x.py`:\n\n{PYTHON}", 3, "leaves the project folder"),
    "path upwards": (f"`app/../../x.py`:\n\n{PYTHON}", 3, "leaves the project folder"),
    "text without bash": (PYTHON + "\n```text\n1\n```\n", 5, "not the output of a bash block"),
    "text after text": (
        "```bash\necho 1\n```\n\n```text\n1\n```\n\n```text\n1\n```\n",
        9,
        "not the output of a bash block",
    ),
    "named text": ("```bash\necho 1\n```\n\n`x.txt`:\n\n```text\n1\n```\n", 7, "not the output"),
    "unknown database": (f"Databases: Oracle.\n\n{PYTHON}", 1, "unknown database oracle; known: "),
    "databases joined by and": (f"Databases: SQLite and MySQL.\n\n{PYTHON}", 1, "unknown database"),
    "databases too late": (PYTHON + "\nDatabases: SQLite.\n", 5, "before the first block"),
    "since without a version": (f"Since: SQLAlchemy.\n\n{PYTHON}", 1, "write Since: Name 1.2"),
    "unknown server": (
        f"Databases: PostgreSQL.\n\nServers: Redis.\n\n{PYTHON}",
        3,
        "unknown server Redis; known: pgbouncer, standby",
    ),
    "server of another database": (
        f"Servers: PgBouncer.\n\n{PYTHON}",
        1,
        "stands below Databases: PostgreSQL.",
    ),
    "server too late": (
        f"Databases: PostgreSQL.\n\n{PYTHON}\nServers: standby.\n",
        7,
        "before the first block",
    ),
    "since in words": (f"Since: SQLAlchemy 2.1 and 2.2.\n\n{PYTHON}", 1, "write Since: Name 1.2"),
    "since too late": (PYTHON + "\nSince: SQLAlchemy 2.1.\n", 5, "before the first block"),
    "wrong without a promise": (f"Wrong:\n\n{PYTHON}", 3, "promises nothing"),
    "right with one": ("Right: so.\n\n```python\nx()  # raises: E\n```\n", 3, "raises"),
    "heading in a list": (f"- # Title\n\n{PYTHON}", 1, "heading in a list or a quote"),
    "heading in a quote": (f"> # Title\n\n{PYTHON}", 1, "heading in a list or a quote"),
    "code in a comment": (f"<!--\n```python\ny\n```\n-->\n\n{PYTHON}", 1, "code in HTML"),
    "code in HTML": (f"<details>\n```python\ny\n```\n</details>\n\n{PYTHON}", 1, "code in HTML"),
    "pre": (f"<pre>y = 2</pre>\n\n{PYTHON}", 1, "code in HTML"),
}

REFUSED_IN_PYTHON = {
    "unknown database in raises": (
        "x = 1\ny()  # raises[mysqll]: E",
        2,
        "unknown databases: mysqll",
    ),
    "raises without a colon": ("x()  # raises IntegrityError", 1, "not a marker"),
    "raises without a space": ("x()\n#raises IntegrityError\ny()", 3, "not a marker"),
    "raise": ("x()  # raise: IntegrityError", 1, "not a marker"),
    "Raises": ("x()  # Raises: IntegrityError", 1, "not a marker"),
    "dotted name": ("x()  # raises: sqlalchemy.exc.IntegrityError", 1, "not a marker"),
    "two errors": ("x()  # raises: IntegrityError or DataError", 1, "not a marker"),
    "raises at the end": ("x()\n# raises: E", 2, "stands at no statement"),
    "two raises": ("x()  # raises: E\ny()  # raises: F", 2, "a second # raises"),
    "two raises overlap": ("x()  # raises: E\ny()  # raises[mysql]: F", 2, "a second # raises"),
    "output under an assignment": ("x = 1\n#> 1", 2, "output that is never checked"),
    "output at the top": ("#> 1\nprint(1)\n#> 1", 1, "output that is never checked"),
    "output after a gap": ("print(1)\n\n#> 1", 3, "output that is never checked"),
    "output under a conditional": ("print(1) if x else None\n#> 1", 2, "never checked"),
    "output at another depth": ("if x:\n    print(1)\n#> 1", 3, "output that is never checked"),
    "output without >": ("print(1)\n#> 1\n# => 1", 3, "output that is never checked"),
    "output with a space": ("print(1)\n# > 1", 2, "output that is never checked"),
    "output with an arrow": ("x = 1  # -> 1", 1, "output that is never checked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, line, reason = REFUSED[name]
    with pytest.raises(DocumentError) as caught:
        parse(Path("page.md"), text)
    assert str(caught.value).startswith(f"page.md:{line}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", REFUSED_IN_PYTHON)
def test_refused_in_python(name: str) -> None:
    code, line, reason = REFUSED_IN_PYTHON[name]
    with pytest.raises(DocumentError) as caught:
        parse(Path("page.md"), f"# T\n\n```python\n{code}\n```\n")
    assert str(caught.value).startswith(f"page.md:{line + 3}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("language", "code", "reason"),
    [
        ("python", "print(1)\n#> 1", "output in a named file is never checked"),
        ("python", "x()  # raises: E", "checked in an unnamed python block only"),
        ("bash", "false  # raises: E", "checked in an unnamed python block only"),
    ],
)
def test_refused_in_a_file(language: str, code: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(Path("page.md"), f"`x.y`:\n\n```{language}\n{code}\n```\n")


def test_raises_on_a_database_that_the_section_is_not_about() -> None:
    text = "Databases: SQLite.\n\n```python\nx()  # raises[mysql]: E\n```\n"
    with pytest.raises(DocumentError, match=r"page.md:4: .* not about"):
        parse(Path("page.md"), text)


def test_all_problems_are_listed() -> None:
    with pytest.raises(DocumentError) as caught:
        parse(Path("page.md"), "```\nx\n```\n\n```rust\ny\n```\n")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "page.md:1:",
        "page.md:5:",
    ]


FENCES = {
    "longer": "````python\nx = '```'\n````\n",
    "tildes": "~~~python\nx = 1\n~~~\n",
    "in a list": "1. Do:\n\n   ```python\n   x = 1\n   ```\n",
    "in a quote": "> ```python\n> x = 1\n> ```\n",
    "in a list in a list": "- a\n  - b\n    ```python\n    x = 1\n    ```\n",
    "after HTML": "<details>\n\n```python\nx = 1\n```\n\n</details>\n",
    "carriage returns": "# T\r\n\r\n```python\r\nx = 1\r\n```\r\n",
    "not ASCII": "# Größe\n\n```python\nx = 'ü'\n```\n",
    "unclosed": "```python\nx = 1\n",
}


@pytest.mark.parametrize("name", FENCES)
def test_fences(name: str) -> None:
    (block,) = parse(Path("page.md"), FENCES[name]).blocks()
    assert block.language == "python"
    assert block.code.startswith("x = ")
    assert "x = " in FENCES[name].splitlines()[block.line - 1]


def test_sections() -> None:
    text = f"""---
name: skill
description: Front matter is no heading.
---

# Page

```bash
true
```

```text
```

`a.py`:

{PYTHON}

Setext
------

{PYTHON}

### Deeper [brackets] a/b x::y

{PYTHON}

## Twice

### Same

{PYTHON}

### Same

{PYTHON}

## Words only
"""
    text = text.replace("```text\n```", "```text\n1\n```")
    tests = parse(Path("page.md"), text).tests()
    assert [name for name, _ in tests] == [
        "Setext",
        "Deeper [brackets] a/b x:y",
        "Twice / Same",
        "Twice / Same (2)",
    ]
    # Commands, their output and files of the sections above come first, programs do not.
    _, deeper = tests[1]
    assert [block.language for block in deeper.program()] == ["bash", "text", "python", "python"]
    assert deeper.program()[2].name == "a.py"


def test_databases_hold_for_the_sections_below() -> None:
    text = f"# A\n\nDatabases: PostgreSQL, MariaDB.\n\n## B\n\n{PYTHON}\n# C\n\n{PYTHON}"
    tests = dict(parse(Path("page.md"), text).tests())
    assert tests["B"].databases == {"postgresql", "mysql"}
    assert tests["C"].databases == set()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("x()  # raises: E", 1),
        ("# raises: E\nx()", 2),
        ("# raises: E\n\n# why\nx()", 4),
        ("f(\n    1,  # raises: E\n)", 2),
        ("if y:\n    # raises: E\n    x()", 3),
    ],
)
def test_markers(code: str, line: int) -> None:
    (block,) = parse(Path("page.md"), f"```python\n{code}\n```\n").blocks()
    assert [each.line for each in block.raises] == [line + 1]


def test_versions_hold_below() -> None:
    text = (
        f"# A\n\nSince: SQLAlchemy 2.1.\n\n## B\n\n{PYTHON}\n"
        f"## C\n\nSince: sqlmodel 0.0.45, FastAPI 0.121.\n\n{PYTHON}\n# D\n\n{PYTHON}"
    )
    above = ("SQLAlchemy", "2.1")
    assert [
        section.versions for section in parse(Path("page.md"), text).sections if section.blocks
    ] == [
        (above,),
        (above, ("sqlmodel", "0.0.45"), ("FastAPI", "0.121")),
        (),
    ]


def test_pairs() -> None:
    wrong = "```python\nx()  # raises: E\n```\n"
    text = f"# A\n\n{PYTHON}\nWrong:\n\n{wrong}\nRight: name it.\n\n{PYTHON}\n{PYTHON}"
    text += f"\nWrong is other prose. Not a label:\n\n{PYTHON}"
    roles = [block.role for block in parse(Path("page.md"), text).blocks()]
    assert roles == ["", "wrong", "right", "", ""]


def test_alternatives() -> None:
    text = "```python\nx()  # raises[mysql]: KeyError | IndexError: gone\n```\n"
    ((marker,),) = [block.raises for block in parse(Path("page.md"), text).blocks()]
    assert (marker.name, marker.text) == ("KeyError | IndexError", "gone")
