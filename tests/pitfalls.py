"""The index of pitfalls, `references/pitfalls.md`, made from the entries of the area pages.

`make index` writes it; `tests/test_pitfalls.py` compares it, and checks the entries.

An entry is a second-level section of a `references/pitfalls-*.md` page: a list with
Symptom, Cause, Cure and perhaps "New since 2025", then the blocks, of which one stands
below `Wrong:` and one below `Right:`.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mdtest.document import Block, Section, parse, slug

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "references"
INDEX = FOLDER / "pitfalls.md"

FIELDS = {"Symptom": 280, "Cause": 150, "Cure": 130, "New since 2025": 260}
"""What an entry says of itself, and in how many characters; all but the last must be there."""
MAX_TITLE, MAX_LINES = 72, 59
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}

_FIELD = re.compile(r"^- \*\*(?P<name>[^*]+)\*\*: (?P<text>.*(?:\n  .*)*)", re.MULTILINE)
_ERROR = re.compile(r"`([A-Z]\w+): ([^`]+)`")


@dataclass(frozen=True)
class Entry:
    """One pitfall."""

    page: str
    """Name of the file in `references/`."""
    section: Section
    text: str
    """All of it, from its heading on."""
    raw_title: str
    """With the backticks."""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.section.line}"

    @property
    def fields(self) -> dict[str, str]:
        prose = re.sub(r"^```.*?^```", "", self.text, flags=re.DOTALL | re.MULTILINE)
        found = _FIELD.findall(prose)
        return {name: " ".join(text.split()) for name, text in found}

    @property
    def area(self) -> str:
        return self.page.removeprefix("pitfalls-").removesuffix(".md")

    @property
    def anchor(self) -> str:
        return slug(self.section.title)

    def blocks(self, role: str) -> list[Block]:
        return [block for block in self.section.blocks if block.role == role]


def entries(folder: Path = FOLDER) -> list[Entry]:
    """Of all area pages, in the order of their names."""
    found: list[Entry] = []
    for path in sorted(folder.glob("pitfalls-*.md")):
        lines = path.read_text("utf-8").splitlines()
        starts = [each for each in parse(path).sections if each.level]
        for section in starts:
            if section.level != 2 or section.title in {"Contents", "See also"}:
                continue
            later = [each.line for each in starts if each.line > section.line and each.level <= 2]
            text = "\n".join(lines[section.line - 1 : (later or [len(lines) + 1])[0] - 1])
            raw_title = lines[section.line - 1].removeprefix("## ").strip()
            found.append(Entry(path.name, section, text.rstrip(), raw_title))
    return found


def problems(entry: Entry) -> Iterator[str]:
    """What keeps a reader who greps for the symptom from landing on the cure."""
    fields, lines = entry.fields, entry.text.count("\n") + 1
    if len(entry.section.title) > MAX_TITLE:
        yield f"{entry.where}: the title has more than {MAX_TITLE} characters"
    if lines > MAX_LINES:
        yield f"{entry.where}: {lines} lines; at most {MAX_LINES}"
    for name, most in FIELDS.items():
        if not fields.get(name) and name != "New since 2025":
            yield f"{entry.where}: no {name}"
        elif len(fields.get(name, "")) > most:
            yield f"{entry.where}: {name} has {len(fields[name])} characters; at most {most}"
    for name in fields.keys() - FIELDS.keys():
        yield f"{entry.where}: unknown field {name!r}"
    wrong, right = entry.blocks("wrong"), entry.blocks("right")
    if (len(wrong), len(right)) != (1, 1):
        yield f"{entry.where}: {len(wrong)} wrong and {len(right)} right examples, not one each"
    # The text that a developer pastes is the one that the wrong example proves.
    errors = dict(_ERROR.findall(fields.get("Symptom", "")))
    promises = [each for block in wrong for each in block.raises]
    if errors and not any(
        each.text in errors[name] or errors[name] in each.text
        for each in promises
        for name in each.name.split(" | ")
        if name in errors
    ):
        yield f"{entry.where}: no wrong example raises what Symptom says: {', '.join(errors)}"


def index(found: list[Entry]) -> str:
    """The page: how to search it, and one line for each entry."""
    areas = list(dict.fromkeys(entry.area for entry in found))
    contents = " · ".join(f"[{area}](#{area})" for area in areas)
    parts = [
        _HEAD.format(count=len(found), contents=contents),
        *(_part(area, [each for each in found if each.area == area]) for area in areas),
    ]
    return "\n".join(parts)


_HEAD = """# Pitfalls: the index of symptoms

Read this when something fails or is silently wrong: {count} mistakes, each proven to fail as its
entry says and to work when done right. Search for the words of the error, in one command; a hit
in a `pitfalls-*.md` page is the entry itself, with both versions of the code:

```bash
cd .agents/skills/async-sqlmodel/references
grep -n "greenlet_spawn has not been called" pitfalls*.md
```

Not here? The official documentation, with the error's own words or its `https://sqlalche.me` link:
`uv run .agents/skills/async-sqlmodel/scripts/fetch_docs.py sqlalchemy "QueuePool limit"`

A line is symptom: cause. *Cure.* Page and line of the entry. **New**: otherwise before 2025,
so memory is likely wrong.

## Contents

{contents}
"""


def _part(area: str, found: list[Entry]) -> str:
    return "\n".join([f"## {area}", "", *map(_line, found), ""])


def _line(entry: Entry) -> str:
    fields = entry.fields
    # What a developer pastes; of a silent mistake the title says it.
    error = _ERROR.search(fields["Symptom"])
    symptom = fields["Symptom"].rstrip(".") if error else entry.raw_title
    databases = entry.section.own_databases
    notes = [", ".join(NAMES[name] for name in NAMES if name in databases)] if databases else []
    notes += [f"{name} {version}+" for name, version in entry.section.own_versions]
    notes += ["**New**"] if "New since 2025" in fields else []
    tail = f" ({'; '.join(notes)})" if notes else ""
    link = f"[{entry.area}:{entry.section.line}]({entry.page}#{entry.anchor})"
    return f"- {symptom}: {fields['Cause']} *{fields['Cure']}* {link}{tail}"


def main() -> int:
    found = entries()
    wrong = [problem for entry in found for problem in problems(entry)]
    if wrong or not found:
        print("\n".join(wrong) or "no entry found", file=sys.stderr)
        return 1
    INDEX.write_text(index(found), "utf-8")
    print(f"{INDEX.relative_to(ROOT)}: {len(found)} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
