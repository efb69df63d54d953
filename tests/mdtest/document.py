"""Read a Markdown document into sections and blocks, and refuse what cannot be tested."""

import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

DATA_LANGUAGES = frozenset({"toml", "ini", "yaml", "json", "mako", "dotenv"})
LANGUAGES = frozenset({"python", "bash", "text", "sql"}) | DATA_LANGUAGES

_LABEL = re.compile(r"`([^`\s]+)`:")
_DATABASES = re.compile(r"Databases?:\s+([\w, ]+?)\.?")
_DATABASE_NAMES = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
}
_RAISES = re.compile(
    r"#\s*raises(?:\[(?P<databases>[a-z, ]+)\])?:\s*(?P<name>\w+)(?::\s*(?P<text>.+?))?\s*$"
)


class DocumentError(Exception):
    """What is wrong with a document, one `path:line: message` a line."""


@dataclass(frozen=True)
class Raises:
    """An exception that a wrong example promises."""

    line: int
    """Line of the document on which the statement that raises stands."""
    name: str
    text: str
    databases: frozenset[str]
    """Empty for all."""


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    language: str
    code: str
    line: int
    """Line of the document on which the code starts, from 1."""
    name: str | None = None
    """Path of the file that the block becomes."""
    raises: tuple[Raises, ...] = ()

    def expected(self, database: str) -> Raises | None:
        """The exception that this block must raise on this database."""
        for each in self.raises:
            if not each.databases or database in each.databases:
                return each
        return None


@dataclass
class Section:
    """A heading, and the blocks up to the next heading."""

    title: str
    level: int
    line: int
    parent: "Section | None"
    blocks: list[Block] = field(default_factory=list)
    children: "list[Section]" = field(default_factory=list)
    own_databases: frozenset[str] = frozenset()

    @property
    def databases(self) -> frozenset[str]:
        """The databases that the text restricts the section to; empty for all."""
        inherited = self.parent.databases if self.parent else frozenset()
        return self.own_databases or inherited

    def inherited(self) -> list[Block]:
        """Files and commands of the sections above."""
        if self.parent is None:
            return []
        shared = [block for block in self.parent.blocks if block.name or block.language == "bash"]
        return self.parent.inherited() + shared

    def program(self) -> list[Block]:
        """All blocks that the test of this section handles, in order."""
        return self.inherited() + self.blocks

    def has_test(self) -> bool:
        """Whether the section is a test, or only lays the ground for those below it."""
        if not self.blocks:
            return False
        if any(not block.name and block.language in {"python", "sql"} for block in self.blocks):
            return True
        return not any(child.is_or_has_test() for child in self.children)

    def is_or_has_test(self) -> bool:
        return self.has_test() or any(child.is_or_has_test() for child in self.children)


@dataclass
class Document:
    """A parsed document."""

    path: Path
    sections: list[Section]

    def tests(self) -> list[tuple[str, Section]]:
        """Unique names and the sections that are tests."""
        found = [section for section in self.sections if section.has_test()]
        titles = [section.title for section in found]
        return [
            (
                f"{section.parent.title} / {section.title}"
                if titles.count(section.title) > 1 and section.parent
                else section.title,
                section,
            )
            for section in found
        ]

    def blocks(self) -> list[Block]:
        return [block for section in self.sections for block in section.blocks]


def parse(path: Path, text: str | None = None) -> Document:
    """Read a document.

    Raises:
        DocumentError: a block that nothing could look at (no language, an unknown one, a
            configuration file without a name, a name without a file), a marker that means
            nothing, or no block at all.
    """
    source = path.read_text("utf-8") if text is None else text
    problems: list[tuple[int, str]] = []
    top = Section(title=path.stem, level=0, line=1, parent=None)
    sections = [top]
    current = top
    label: tuple[str, int] | None = None

    tokens = MarkdownIt("commonmark").parse(source)
    for index, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 0
        if label is not None and token.type not in {"paragraph_close", "fence"}:
            problems.append((label[1], f"`{label[0]}`: names a file, but no block follows"))
            label = None
        if token.type == "heading_open":
            level = int(token.tag[1])
            parent = current
            while parent.level >= level and parent.parent is not None:
                parent = parent.parent
            title = tokens[index + 1].content.replace("`", "")
            current = Section(title=title, level=level, line=line, parent=parent)
            parent.children.append(current)
            sections.append(current)
        elif token.type == "inline" and tokens[index - 1].type == "paragraph_open":
            if match := _LABEL.fullmatch(token.content.strip()):
                label = (match[1], line)
            elif match := _DATABASES.fullmatch(token.content.strip()):
                names = [name.strip().lower() for name in match[1].split(",")]
                unknown = [name for name in names if name not in _DATABASE_NAMES]
                if unknown:
                    problems.append((line, f"unknown database {', '.join(unknown)}"))
                elif current.blocks:
                    problems.append((line, "Databases: must stand before the first block"))
                current.own_databases = frozenset(
                    _DATABASE_NAMES[name] for name in names if name in _DATABASE_NAMES
                )
        elif token.type == "code_block":
            problems.append((line, "indented code block; use a fence with a language"))
        elif token.type == "fence":
            name = label[0] if label else None
            label = None
            language = token.info.strip()
            block = Block(language, token.content, line + 1, name, _raises(token.content, line + 1))
            problems += _problems(block, current)
            current.blocks.append(block)
    if label is not None:
        problems.append((label[1], f"`{label[0]}`: names a file, but no block follows"))
    if not any(section.blocks for section in sections):
        problems.append((1, "no code block: nothing here is tested"))
    if problems:
        lines = "\n".join(f"{path}:{line}: {message}" for line, message in sorted(problems))
        raise DocumentError(lines)
    return Document(path, sections)


def _problems(block: Block, section: Section) -> list[tuple[int, str]]:
    line = block.line - 1
    if not block.language:
        return [(line, "fence without a language")]
    if block.language not in LANGUAGES:
        known = ", ".join(sorted(LANGUAGES))
        return [(line, f"no check for language {block.language!r}; known: {known}")]
    found: list[tuple[int, str]] = []
    if block.language in DATA_LANGUAGES and block.name is None:
        found.append((line, f"{block.language} block without the name of its file"))
    if block.language == "text":
        before = section.blocks[-1] if section.blocks else None
        if before is None or before.language != "bash":
            found.append((line, "text block that is not the output of a bash block before it"))
    if block.name and (block.name.startswith("/") or ".." in Path(block.name).parts):
        found.append((line, f"{block.name}: leaves the project folder"))
    if block.name and block.language == "python" and re.search(r"^\s*#> ", block.code, re.M):
        found.append((line, "#> in a named file is never checked; print in the main program"))
    if block.name and block.raises:
        found.append((line, "# raises in a named file; let an unnamed block raise"))
    if not block.code.strip():
        found.append((line, "empty block"))
    for each in block.raises:
        unknown = each.databases - set(_DATABASE_NAMES.values())
        if unknown:
            found.append((each.line, f"# raises names unknown databases: {sorted(unknown)}"))
    return found


def _raises(code: str, first_line: int) -> tuple[Raises, ...]:
    found: list[Raises] = []
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError):
        return ()  # running it will say so
    for token in tokens:
        if token.type == tokenize.COMMENT and (match := _RAISES.match(token.string)):
            alone = not token.line[: token.start[1]].strip()
            row = token.start[0]
            if alone:  # the statement below, past further markers
                row = next(
                    later.start[0]
                    for later in tokens
                    if later.start[0] > row
                    and later.type
                    not in {
                        tokenize.COMMENT,
                        tokenize.NL,
                        tokenize.NEWLINE,
                        tokenize.INDENT,
                        tokenize.DEDENT,
                    }
                )
            databases = match["databases"]
            found.append(
                Raises(
                    line=first_line + row - 1,
                    name=match["name"],
                    text=match["text"] or "",
                    databases=frozenset(
                        name.strip() for name in (databases or "").split(",") if name.strip()
                    ),
                )
            )
    return tuple(found)
