"""Read a Markdown document into sections and blocks, and refuse what cannot be tested."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

LINE_LENGTH = 100
DATA_LANGUAGES = frozenset({"toml", "ini", "yaml", "json", "mako", "dotenv"})
LANGUAGES = frozenset({"python", "bash", "text", "sql"}) | DATA_LANGUAGES

_LABEL = re.compile(r"`([^`\s]+)`:")
_PAIR = re.compile(r"(Wrong|Right)\b[^.]*:(\s|$)")
_SINCE = re.compile(r"Since:\s+(.+?)\.?")
_SERVERS = re.compile(r"Servers?:\s+(.+?)\.?")
_SERVER_NAMES = ("pgbouncer", "standby")
_VERSION = re.compile(r"(?P<name>[A-Za-z][\w.-]*) (?P<version>\d+(\.\d+)*)")
_NEARLY_LABEL = re.compile(r"`[^`\s]*\.(py|toml|ini|ya?ml|json|mako|env|sh|sql)`\W*$")
_DATABASES = re.compile(r"Databases?:\s+([\w, ]+?)\.?")
_DATABASE_NAMES = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
}
_RAISES = re.compile(
    r"#\s*raises(?:\[(?P<databases>[a-z, ]+)\])?:\s*"
    r"(?P<name>\w+(?: \| \w+)*)(?::\s*(?P<text>.+?))?\s*$"
)
# Comments that a reader takes for a promise, though nothing would check it.
_NEARLY_RAISES = re.compile(r"#+\s*raises?\b", re.I)
_NEARLY_OUTPUT = re.compile(r"#\s*[-=]*>")


def slug(heading: str) -> str:
    """GitHub's anchor of a heading, given without its markup."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


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
    role: str = ""
    """"wrong" or "right", as the paragraph above says; of a pair."""

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
    blocks: list[Block] = field(default_factory=list[Block])
    children: "list[Section]" = field(default_factory=list["Section"])
    own_databases: frozenset[str] = frozenset()
    own_versions: tuple[tuple[str, str], ...] = ()
    own_server: str = ""

    @property
    def server(self) -> str:
        """What stands beside PostgreSQL: "pgbouncer" before it, a "standby" of it, or ""."""
        return self.own_server or (self.parent.server if self.parent else "")

    @property
    def versions(self) -> tuple[tuple[str, str], ...]:
        """Distributions and their versions, from which on the section holds."""
        return (self.parent.versions if self.parent else ()) + self.own_versions

    @property
    def databases(self) -> frozenset[str]:
        """The databases that the text restricts the section to; empty for all."""
        if self.own_databases or self.parent is None:
            return self.own_databases
        return self.parent.databases

    def inherited(self) -> list[Block]:
        """Files and commands of the sections above."""
        if self.parent is None:
            return []
        shared = [
            block
            for block in self.parent.blocks
            if block.name or block.language not in {"python", "sql"}
        ]
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
        names: list[str] = []
        for section in found:
            name = section.title
            if titles.count(name) > 1 and section.parent:
                name = f"{section.parent.title} / {name}"
            name = name.replace("::", ":")  # which pytest splits ids at
            again = sum(each == name or each.startswith(f"{name} (") for each in names)
            names.append(f"{name} ({again + 1})" if again else name)
        return list(zip(names, found, strict=True))

    def blocks(self) -> list[Block]:
        return [block for section in self.sections for block in section.blocks]


def parse(path: Path, text: str | None = None) -> Document:
    """Read a document.

    Raises:
        DocumentError: a block that nothing could look at (no language, an unknown one, a
            configuration file without a name, a name without a file, code in HTML), a
            promise that nothing would check, or no block at all.
    """
    source = path.read_text("utf-8") if text is None else text
    # Front matter is not Markdown: its closing line would make a heading of it.
    source = re.sub(
        r"\A---\n.*?^---\n", lambda m: "\n" * m[0].count("\n"), source, flags=re.S | re.M
    )
    problems: list[tuple[int, str]] = []
    top = Section(title=path.stem, level=0, line=1, parent=None)
    sections = [top]
    current = top
    label: tuple[str, int] | None = None
    role = ""

    tokens = MarkdownIt("commonmark").parse(source)
    for index, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 0
        if label is not None and token.type not in {"paragraph_close", "fence"}:
            problems.append((label[1], f"`{label[0]}`: names a file, but no block follows"))
            label = None
        if token.type == "heading_open":
            if token.level:
                problems.append((line, "heading in a list or a quote: it starts no section"))
            level = int(token.tag[1])
            parent = current
            while parent.level >= level and parent.parent is not None:
                parent = parent.parent
            title = tokens[index + 1].content.replace("`", "")
            role = ""
            current = Section(title=title, level=level, line=line, parent=parent)
            parent.children.append(current)
            sections.append(current)
        elif token.type == "inline" and tokens[index - 1].type == "paragraph_open":
            content = token.content.strip()
            if match := _LABEL.fullmatch(content):
                label = (match[1], line)
            elif match := _DATABASES.fullmatch(content):
                names = [name.strip().lower() for name in match[1].split(",")]
                unknown = [name for name in names if name not in _DATABASE_NAMES]
                if unknown:
                    known = ", ".join(_DATABASE_NAMES)
                    message = f"unknown database {', '.join(unknown)}; known: {known}"
                    problems.append((line, message))
                elif current.blocks:
                    problems.append((line, "Databases: must stand before the first block"))
                current.own_databases = frozenset(
                    _DATABASE_NAMES[name] for name in names if name in _DATABASE_NAMES
                )
            elif match := _SINCE.fullmatch(content):
                versions = [_VERSION.fullmatch(each) for each in match[1].split(", ")]
                if not all(versions):
                    message = f"Since: {match[1]}: write Since: Name 1.2, Other 3.4."
                    problems.append((line, message))
                elif current.blocks:
                    problems.append((line, "Since: must stand before the first block"))
                current.own_versions = tuple(
                    (each["name"], each["version"]) for each in versions if each
                )
            elif match := _SERVERS.fullmatch(content):
                current.own_server = match[1].lower()
                if current.own_server not in _SERVER_NAMES:
                    known = ", ".join(_SERVER_NAMES)
                    problems.append((line, f"unknown server {match[1]}; known: {known}"))
                elif set(current.databases) != {"postgresql"}:
                    problems.append((line, "Servers: stands below Databases: PostgreSQL."))
                elif current.blocks:
                    problems.append((line, "Servers: must stand before the first block"))
            elif match := _PAIR.match(content):
                role = match[1].lower()
            elif _NEARLY_LABEL.search(content) and tokens[index + 2].type == "fence":
                message = "to name the file of the block, put `path`: on a line of its own"
                problems.append((line, message))
        elif token.type == "code_block":
            problems.append((line, "indented code block; use a fence with a language"))
        elif token.type == "html_block" and re.search(r"```|~~~|<pre|<code", token.content):
            problems.append((line, "code in HTML or a comment is never run; leave an empty line"))
        elif token.type == "fence":
            name = label[0] if label else None
            label = None
            raises = tuple(_raises(token.content, line + 1))
            block = Block(token.info.strip(), token.content, line + 1, name, raises, role)
            role = ""
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


def _problems(block: Block, section: Section) -> Iterator[tuple[int, str]]:
    line = block.line - 1
    if not block.language:
        yield line, "fence without a language"
    elif block.language not in LANGUAGES:
        yield (
            line,
            f"no check for language {block.language!r}; known: {', '.join(sorted(LANGUAGES))}",
        )
    if block.name is None and not _does_something(block):
        yield line, "nothing in this block runs"
    if block.language in DATA_LANGUAGES and block.name is None:
        yield line, f"{block.language} block without the name of its file"
    if block.language == "text":
        before = section.blocks[-1] if section.blocks else None
        if block.name or before is None or before.language != "bash":
            yield line, "text block that is not the output of a bash block before it"
    if block.name and (block.name.startswith("/") or ".." in Path(block.name).parts):
        yield line, f"{block.name}: leaves the project folder"
    yield from _raises_problems(block, section)
    if block.role == "wrong" and not block.raises:
        yield line, "a wrong example that promises nothing: say # raises: Name"
    if block.role == "right" and block.raises:
        yield line, "a right example that raises"
    if block.language == "python":
        yield from _output_problems(block)


def _does_something(block: Block) -> bool:
    """Whether the block is more than comments; in Python, than constants as well."""
    comment = "--" if block.language == "sql" else "#"
    rows = [row.strip() for row in block.code.splitlines()]
    if block.language == "text":
        return any(rows)
    if block.language == "python":
        with suppress(SyntaxError):  # running it will say so
            return any(
                not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
                for node in ast.parse(block.code).body
            )
    return any(row and not row.startswith(comment) for row in rows)


def _raises_problems(block: Block, section: Section) -> Iterator[tuple[int, str]]:
    taken: set[str] = set()
    databases = section.databases or frozenset(_DATABASE_NAMES.values())
    for each in block.raises:
        named = each.databases or databases
        if block.name or block.language != "python":
            yield each.line, "# raises is checked in an unnamed python block only"
        elif not each.name:
            yield each.line, "not a marker; write # raises: Name, or # raises[mysql]: Name: text"
        elif unknown := sorted(named - set(_DATABASE_NAMES.values())):
            yield each.line, f"# raises names unknown databases: {', '.join(unknown)}"
        elif not named <= databases:
            yield each.line, "# raises names a database that the section is not about"
        elif each.line >= block.line + block.code.count("\n"):
            yield each.line - 1, "# raises stands at no statement"
        elif taken & named:
            yield each.line, "a second # raises for a database: the block ends at the first"
        taken |= named


def _output_problems(block: Block) -> Iterator[tuple[int, str]]:
    """`#>` where nothing is compared, and comments that only look like it."""
    allowed: set[int] = set()
    prints = list(print_statements(block.code))
    rows = block.code.splitlines()
    for node in prints:
        row = (node.end_lineno or node.lineno) + 1
        prefix = " " * node.col_offset + "#>"
        while row <= len(rows) and rows[row - 1].startswith(prefix):
            allowed.add(row)
            row += 1
    for row, comment, _ in _comments(block.code):
        if not _NEARLY_OUTPUT.match(comment) or (row in allowed and not block.name):
            continue
        where = block.line + row - 1
        if block.name:
            yield where, "output in a named file is never checked; print in the main program"
        else:
            yield where, "output that is never checked; write #> lines right below a print(...)"


def print_statements(code: str) -> Iterator[ast.stmt]:
    """The statements that are a call of `print`, and nothing else."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return  # running it will say so
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
                yield node
            case _:
                pass


def _comments(code: str) -> list[tuple[int, str, bool]]:
    """Row, text, and whether it has the line for itself, of every comment."""
    found: list[tuple[int, str, bool]] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.COMMENT:
                alone = not token.line[: token.start[1]].strip()
                found.append((token.start[0], token.string, alone))
    except (tokenize.TokenError, SyntaxError):
        pass  # not Python, or Python that will not run
    return found


def _raises(code: str, first_line: int) -> Iterator[Raises]:
    """Markers; one that is not well-formed has no name."""
    comments = _comments(code)
    rows = code.splitlines()
    for row, comment, alone in comments:
        match = _RAISES.match(comment)
        if match is None and not _NEARLY_RAISES.match(comment):
            continue
        if alone:  # the statement below, past further comments
            while row <= len(rows) and (
                not rows[row - 1].strip() or rows[row - 1].lstrip()[0] == "#"
            ):
                row += 1
        databases = (match and match["databases"]) or ""
        yield Raises(
            line=first_line + row - 1,
            name=match["name"] if match else "",
            text=(match and match["text"]) or "",
            databases=frozenset(name.strip() for name in databases.split(",") if name.strip()),
        )
