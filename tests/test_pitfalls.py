"""The entries about pitfalls, and their index."""

from pathlib import Path

import pytest

from tests.mdtest.plugin import older
from tests.pitfalls import INDEX, entries, index, problems

ENTRY = """# Pitfalls: x

Read this when x.

## Reading `a.b` raises

Databases: SQLite.

- **Symptom**: `KeyError: 'b'` or nothing
- **Cause**: it is not there.
- **Cure**: look first.

Wrong:

```python
{}["b"]  # raises: KeyError: 'b'
```

Right:

```python
{}.get("b")
```
"""


def test_there_are_many() -> None:
    assert len(entries()) >= 120


def test_entries() -> None:
    assert [problem for entry in entries() for problem in problems(entry)] == []


def test_titles_are_unique() -> None:
    titles = [entry.section.title for entry in entries()]
    assert sorted(titles) == sorted(set(titles))


def test_all_are_run_here() -> None:
    """Else `Since: SQLAlchemy 21.` would leave an entry out for ever."""
    versions = {each for entry in entries() for each in entry.section.versions}
    assert versions
    assert [(name, least) for name, least in versions if older(name, least)] == []


def test_index() -> None:
    """`make index` writes it."""
    assert INDEX.read_text("utf-8") == index(entries())


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", ""),
        ("## Reading", f"## {'Reading ' * 10}", "the title has more than"),
        ("- **Cause**: it is not there.\n", "", "no Cause"),
        ("**Cause**", "**Reason**", "unknown field 'Reason'"),
        ("look first", "look " * 30, "Cure has 151 characters"),
        ("Right:", "Better:", "1 wrong and 0 right examples"),
        ("\n\nWrong:", "\n\nWords.\n" * 30 + "\nWrong:", "lines; at most"),
        ("`KeyError: 'b'`", "`KeyError: 'c'`", "raises what Symptom says: KeyError"),
        ("`KeyError: 'b'`", "`IndexError: 'b'`", "raises what Symptom says: IndexError"),
    ],
)
def test_entries_are_looked_at(tmp_path: Path, old: str, new: str, problem: str) -> None:
    page = tmp_path / "pitfalls-x.md"
    page.write_text(ENTRY.replace(old, new, 1) if old else ENTRY)
    (entry,) = entries(tmp_path)
    found = "\n".join(problems(entry))
    assert problem in found
    assert bool(found) == bool(problem)


def test_a_line_of_the_index(tmp_path: Path) -> None:
    (tmp_path / "pitfalls-x.md").write_text(ENTRY)
    assert index(entries(tmp_path)).splitlines()[-1] == (
        "- `KeyError: 'b'` or nothing: it is not there. *look first.* "
        "[x:5](pitfalls-x.md#reading-ab-raises) (SQLite)"
    )
    silent = ENTRY.replace("`KeyError: 'b'` or nothing", "nothing is there")
    (tmp_path / "pitfalls-x.md").write_text(
        silent.replace("Databases: SQLite.", "Since: pytest 1.2.")
    )
    assert index(entries(tmp_path)).splitlines()[-1] == (
        "- Reading `a.b` raises: it is not there. *look first.* "
        "[x:5](pitfalls-x.md#reading-ab-raises) (pytest 1.2+)"
    )
