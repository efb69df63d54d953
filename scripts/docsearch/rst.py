"""reStructuredText as Sphinx reads it (asyncpg, psycopg, aiosqlite), to sections.

A reader of its own: docutils does not know Sphinx's roles and directives, and would build a
tree of which only the text is wanted. It goes by indented blocks; what it does not know
stays as text. Nothing is run, and no file is read but through `include`.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from . import Section

# -- inline ------------------------------------------------------------------------

_INLINE = re.compile(
    r"``(?P<literal>.+?)``"
    r"|(?::(?P<role>[A-Za-z][\w:.+-]{0,40}):)?`(?P<text>(?!\s)[^`]+)`(?P<reference>_{0,2})"
    r"|\\(?P<escaped>.)"
    r"|(?<![\w|])\|(?P<replaced>[^\s|][^|\n]{0,60})\|_{0,2}"
    r"|(?P<note>\[[#*\w]{1,40}\])_(?!\w)"
    r"|(?<![\w`])(?P<word>[^\W_]\w*?)(?P<marks>__?)(?!\w)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:\s|(.))", re.DOTALL)
_PROSE = {
    "abbr",
    "any",
    "doc",
    "download",
    "emphasis",
    "guilabel",
    "numref",
    "ref",
    "strong",
    "term",
}


@dataclass(slots=True)
class _Names:
    """What a page defines for its paragraphs."""

    targets: set[str] = field(default_factory=set[str])
    """Of links, in lower case; `_` if there are some without a name."""
    replacements: dict[str, str] = field(default_factory=dict[str, str])
    notes: int = 0
    """References to footnotes so far: docutils numbers them with the titles."""

    def clean(self, text: str) -> str:
        return _INLINE.sub(self._one, text)

    def _one(self, match: re.Match[str]) -> str:
        if match["literal"]:
            return _code(match["literal"])
        if match["text"]:
            return _role(match["role"], match["text"], is_link=bool(match["reference"]))
        if match["escaped"]:
            return match["escaped"].strip()
        if match["replaced"]:
            return self.replacements.get(match["replaced"], match[0])
        if match["note"]:
            self.notes += 1
            return match["note"]
        target = "_" if match["marks"] == "__" else match["word"].lower()
        return match["word"] if target in self.targets else match[0]


def clean_inline(text: str) -> str:
    """A paragraph as Markdown: names in code are in backticks, of other roles and of
    references only the text is left.
    """
    return _Names().clean(text)


def _role(role: str | None, text: str, *, is_link: bool) -> str:
    text = _ESCAPE.sub(r"\1", text)
    shown = text
    if text.endswith(">") and "<" in text:
        before, _, target = text.rpartition("<")
        shown = before.strip() or target[:-1]
    kind = (role or "").rpartition(":")[2].lower()
    if is_link or kind in _PROSE:
        return shown
    if kind in {"pep", "rfc"}:
        return f"{kind.upper()} {shown}"
    if kind == "samp":
        shown = shown.replace("{", "").replace("}", "")
    elif shown.startswith("~"):
        shown = shown.rpartition(".")[2].lstrip("~")
    return _code(shown.removeprefix("!"))


def _code(text: str) -> str:
    text = " ".join(text.split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


# -- lines -------------------------------------------------------------------------

_EXPLICIT = re.compile(r" *\.\.(?: |$)")
_DIRECTIVE = re.compile(r"([A-Za-z][\w:.+-]*?) ?::(?: +(.*))?$")
_OPTION = re.compile(r" *:([\w-]+):")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*")
_LIST_ITEM = re.compile(r" *(?:[-*+•]|(?:\d+|[A-Za-z#])[.)]) +")
_BORDER = re.compile(r" *=+(?: +=+)+ *")
_RULE = re.compile(r"[ =-]+")
_LEADING = re.compile(r"^(?:\.{1,2}/)+")
MAX_INCLUDED = 2_000_000
"""Characters that one page may include."""


def _lines(text: str) -> list[str]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return [line.rstrip() for line in text.expandtabs(8).split("\n")]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _end(lines: list[str], start: int, indent: int) -> int:
    """Where the block that is indented by more than `indent` ends."""
    for at in range(start, len(lines)):
        if lines[at] and _indent(lines[at]) <= indent:
            return at
    return len(lines)


def _dedented(lines: Iterable[str]) -> list[str]:
    kept = list(lines)
    indent = min((_indent(line) for line in kept if line), default=0)
    kept = [line[indent:] for line in kept]
    while kept and not kept[0]:
        kept = kept[next((at for at, line in enumerate(kept) if line), len(kept)) :]
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _fence(code: Iterable[str], language: str = "") -> list[str]:
    lines = _dedented(code)
    ticks = max((len(run) for line in lines for run in re.findall("`{3,}", line)), default=2)
    mark = "`" * (ticks + 1)
    return [mark + language, *lines, mark] if lines else []


def _indented(lines: Iterable[str], indent: int) -> list[str]:
    return [" " * indent + line if line else "" for line in lines]


# -- titles and anchors ------------------------------------------------------------

_NOT_ID = re.compile(r"[^a-z0-9]+")
_ID_ENDS = re.compile(r"^[-0-9]+|-+$")


def _id(text: str) -> str:
    """The id that docutils makes of a title or a label."""
    ascii_only = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return _ID_ENDS.sub("", _NOT_ID.sub("-", " ".join(ascii_only.split())))


@dataclass(frozen=True, slots=True)
class _Title:
    text: str
    level: int
    start: int
    end: int


def _titles(lines: list[str]) -> Iterator[_Title]:
    """The titles of a page. What level a line of `=` means, the first use decides."""
    styles: list[str] = []
    for at, line in enumerate(lines):
        found = _title(lines, at) if line and (at == 0 or not lines[at - 1]) else None
        if found:
            text, style, length = found
            if style not in styles:
                styles.append(style)
            yield _Title(text, styles.index(style), at, at + length)


def _title(lines: list[str], at: int) -> tuple[str, str, int] | None:
    """(text, style, number of lines) of the title that begins at this line."""
    first, second, third = [*lines[at : at + 3], "", ""][:3]
    if _ADORNMENT.fullmatch(first):
        return (
            (second.strip(), first[0] * 2, 3) if _lined(second, first) and third == first else None
        )
    if _lined(first, second) and not first.startswith((" ", "..")):
        return first, second[0], 2
    return None


def _lined(text: str, line: str) -> bool:
    return bool(text and _ADORNMENT.fullmatch(line)) and len(line) >= min(len(text), 4)


# -- pages -------------------------------------------------------------------------

_CODE = {"code", "code-block", "sourcecode", "parsed-literal", "testcode", "doctest", "prompt"}
_MEMBERS = {"attribute", "classmethod", "decoratormethod", "method", "property", "staticmethod"}
_ENTRIES = _MEMBERS | {"class", "data", "decorator", "exception", "function"}
_NOTES = re.compile("attention|caution|danger|error|hint|important|note|seealso|tip|todo|warning")
_TITLED = {"admonition", "centered", "rubric", "sidebar", "table", "list-table", "topic"}
_VERSIONS = {
    "versionadded": "Added in version",
    "versionchanged": "Changed in version",
    "versionremoved": "Removed in version",
    "deprecated": "Deprecated since version",
}
_SILENT = re.compile(
    "autosummary|contents|cssclass|default-role|highlight|image|index|mdinclude|meta|raw|role|"
    "sectnum|tabularcolumns|testcleanup|testsetup|toctree"
)
_MAX_DEPTH = 20  # of directives within directives
_MAX_COLUMNS = 50
_MAX_TITLE = 500
_SIGNATURE = re.compile(r"(?:(?:async|class|classmethod|static|property) +)*([\w.]+)")
_FIELD = re.compile(r"^( *):(\w+)(?: ([^:\n]{1,80}))?:(?: |$)", re.MULTILINE)
_FIELDS = {"return": "Returns: ", "returns": "Returns: ", "rtype": "Return type: "}
_ARGUMENTS = {"arg", "argument", "key", "keyword", "param", "parameter"}


def sections(
    text: str, *, page_url: str, include: Callable[[str], str | None] | None = None
) -> list[Section]:
    """The sections of a page: by title, and one for each entry of an API (`.. class::`,
    `.. autofunction::`), with the anchors that Sphinx gives them.

    `include` gets a path as the page has it, without `../` in front, and returns the file's
    text or None. An entry of autodoc has no text if its directive has none: Sphinx puts the
    docstring there. Every other section has text.
    """
    page = _Page(page_url, include)
    lines = page.expanded(_lines(text))
    page.define(lines)
    titles = list(_titles(lines))
    starts = [title.end for title in titles]
    ends = [title.start for title in titles] + [len(lines)]
    page.chapter(_Title(page_url.rstrip("/").rpartition("/")[2], -1, 0, 0), lines[: ends[0]])
    for title, start, end in zip(titles, starts, ends[1:], strict=True):
        page.chapter(title, lines[start:end])
    return [each for each in page.sections if each.text or each.names]


class _Page:
    def __init__(self, url: str, include: Callable[[str], str | None] | None) -> None:
        self.url = url
        self.include = include
        self.left = MAX_INCLUDED
        self.names = _Names()
        self.sections: list[Section] = []
        self.above: list[tuple[int, str]] = []
        self.crumbs: tuple[str, ...] = ()  # of what is below the last title
        self.current = Section("", (), url, "")
        self.labels: list[str] = []  # wait for what follows
        self.ids: set[str] = set()
        self.serial = 0  # of the ids that docutils numbers
        self.module = ""
        self.scope = ""  # the class whose members come

    def read(self, path: str) -> str | None:
        text = self.include(_LEADING.sub("", path)) if self.include and self.left > 0 else None
        self.left -= len(text or "")
        return text

    def expanded(self, lines: list[str], depth: int = 0) -> list[str]:
        """The lines with the files that they include."""
        out: list[str] = []
        for line in lines:
            is_include = line.startswith(".. include:: ") and depth < 3
            text = self.read(line[13:].strip()) if is_include else None
            out += [line] if text is None else ["", *self.expanded(_lines(text), depth + 1), ""]
        return out

    def define(self, lines: list[str]) -> None:
        """Takes note of the targets and replacements, which may come after their use."""
        for at, line in enumerate(lines):
            first = line.lstrip()
            if first.startswith(".. |") and "| replace::" in first:
                name, _, text = first[4:].partition("| replace::")
                more = lines[at + 1 : at + 10]
                more = more[: _end(more, 0, _indent(line))]
                whole = " ".join([text, *more])[:_MAX_TITLE]
                self.names.replacements[name] = clean_inline(" ".join(whole.split()))
            elif first.startswith((".. __:", "__ ")):
                self.names.targets.add("_")
            elif first.startswith(".. _"):
                self.names.targets.add(first[4:].partition(":")[0].strip("`").lower())

    def chapter(self, title: _Title, lines: list[str]) -> None:
        while self.above and self.above[-1][0] >= title.level:
            self.above.pop()
        shown = self.names.clean(title.text[:_MAX_TITLE]).replace("`", "").replace("**", "")
        url = f"{self.url}#{self.anchor(shown)}" if title.level >= 0 else self.url
        path = tuple(each for _, each in self.above)
        self.current = Section(shown, path, url, "", anchors=self.take_labels(url))
        self.sections.append(self.current)
        if title.level >= 0:
            self.above.append((title.level, shown))
        self.crumbs = tuple(each for _, each in self.above)
        section = self.current
        section.text = "\n".join(self.render(lines)).strip("\n")

    def anchor(self, title: str) -> str:
        """A title's id, as docutils numbers those that are taken."""
        anchor = _id(title)
        if anchor and anchor not in self.ids:
            self.ids.add(anchor)
            return anchor
        self.serial += 1
        return anchor if anchor in self.labels else f"id{self.serial + self.names.notes}"

    def take_labels(self, url: str) -> tuple[str, ...]:
        labels, self.labels = self.labels, []
        return tuple(each for each in labels if each != url.partition("#")[2])

    def settle(self) -> None:
        """What waits is of the current section: text follows, no title."""
        if self.labels:
            self.current.anchors += self.take_labels(self.current.url)

    # -- blocks

    def render(self, lines: list[str], depth: int = 0) -> list[str]:
        """The lines as Markdown. Entries of an API in them become sections."""
        out: list[str] = []
        at = 0
        while at < len(lines):
            line = lines[at]
            start, indent = at, _indent(line)
            at += 1
            if not line:
                continue
            if _EXPLICIT.match(line):
                at = _end(lines, at, indent)
                block = self.explicit(lines[start:at], depth)
            else:
                at = next((i for i in range(at, len(lines)) if not lines[i]), len(lines))
                block, is_literal = self.paragraph(lines[start:at])
                if is_literal:
                    body, inner = at, _text_indent(lines[at - 1])
                    at = _end(lines, body, inner)
                    code = _indented(_fence(lines[body:at]), inner)
                    block += ["", *code] if block and code else code
            if block:
                out += ["", *block] if out else block
        return out

    def paragraph(self, lines: list[str]) -> tuple[list[str], bool]:
        """(the lines as Markdown, whether code follows)"""
        self.settle()
        first = lines[0].lstrip()
        if first.startswith(("+-", "+=")):
            return self.grid(_dedented(lines)), False
        if _BORDER.fullmatch(lines[0]):
            return [self.names.clean(each) for each in lines if not _RULE.fullmatch(each)], False
        if first.startswith(">>> "):
            return _indented(_fence(lines, "pycon"), _indent(lines[0])), False
        text = "\n".join(lines)
        is_literal = text.endswith("::")
        if is_literal:
            text = text[:-1] if text[-3:-2].strip() else text[:-2].rstrip()
        text = _FIELD.sub(_field, text)
        return self.names.clean(text).split("\n") if text.strip() else [], is_literal

    def grid(self, lines: list[str]) -> list[str]:
        """A table with borders, a row in a line."""
        edges = [at for at, sign in enumerate(lines[0]) if sign == "+"][:_MAX_COLUMNS]
        out: list[str] = []
        row: list[str] = []
        for line in lines:
            if not line.startswith("+"):
                row.append(line)
                continue
            if row:
                out.append(self.row(row, edges))
            if line.startswith("+="):
                out.append("|" + " --- |" * (len(edges) - 1))
            row = []
        return out

    def row(self, lines: list[str], edges: list[int]) -> str:
        cells = (
            self.names.clean("\n".join(line[left + 1 : right].strip() for line in lines))
            for left, right in pairwise(edges)
        )
        return "| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |"

    def explicit(self, block: list[str], depth: int) -> list[str]:
        """A directive, a target, a footnote; nothing for a comment."""
        indent = _indent(block[0])
        first = block[0].strip()[2:].strip()
        if first.startswith("_"):
            self.label(first, block[1:])
            return []
        if re.match(r"\[[^\]]{1,40}\] ", first):
            note = " ".join([first, *(line.strip() for line in block[1:])]).strip()
            return [" " * indent + self.names.clean(note)]
        match = _DIRECTIVE.match(first)
        if not match or depth > _MAX_DEPTH:
            return []
        name = match[1].lower().removeprefix("py:")
        return _indented(self.directive(name, match[2] or "", block[1:], depth), indent)

    def label(self, first: str, more: list[str]) -> None:
        name, _, address = first[1:].partition(":")
        self.serial += name == "_"
        anchor = _id(name.strip("`"))
        if anchor and anchor not in self.ids:
            self.ids.add(anchor)
            if not address.strip() and not any(more):
                self.labels.append(anchor)

    def directive(self, name: str, argument: str, body: list[str], depth: int) -> list[str]:
        kind = name.removeprefix("auto")
        if kind in _ENTRIES:
            self.entry(kind, argument, body, depth, auto=kind != name)
            return []
        if name in {"module", "currentmodule", "automodule"}:
            self.module = argument
            self.labels += [f"module-{argument}"] if name != "currentmodule" else []
            return self.render(_without_options(body), depth + 1)
        if _SILENT.fullmatch(name):
            return []
        self.settle()
        if name in _CODE:
            return self.code(name, argument, body)
        if name in {"include", "literalinclude"}:
            return self.included(name, argument)
        if _NOTES.fullmatch(name):
            text = [argument, *_dedented(body)]
            label = "See also" if name == "seealso" else name.capitalize()
            return [f"**{label}:**", "", *self.render(text, depth + 1)]
        if name in _VERSIONS:
            version, _, rest = argument.partition(" ")
            text = self.render([rest, *_dedented(body)], depth + 1)
            return [f"**{_VERSIONS[name]} {version}**", *([""] if text else []), *text]
        text = self.render(_without_options(body), depth + 1)
        if argument and name == "describe":
            return [_code(argument), "", *text]
        if argument and name in _TITLED:
            return [f"**{self.names.clean(argument)}**", "", *text]
        return text

    def code(self, name: str, argument: str, body: list[str]) -> list[str]:
        lines = _without_options(body)
        if name == "parsed-literal":
            return _fence(self.names.clean("\n".join(lines)).replace("`", "").split("\n"))
        language = {"doctest": "pycon", "testcode": "python"}.get(name, argument.lower())
        return _fence(lines, language if re.fullmatch(r"[\w+#.-]*", language) else "")

    def included(self, name: str, argument: str) -> list[str]:
        """Code; the text of other files is in place already."""
        text = self.read(argument) if name == "literalinclude" else None
        if text is None:
            return [f"(not found: {_LEADING.sub('', argument[:200])})"]
        return _fence(_lines(text), "python" if argument.endswith(".py") else "")

    # -- entries of an API

    def entry(self, kind: str, argument: str, body: list[str], depth: int, *, auto: bool) -> None:
        head_end = next((at for at, line in enumerate(body) if not line), len(body))
        head = [line.strip() for line in body[:head_end]]
        options = {match[1] for line in head if (match := _OPTION.match(line))}
        whole = "\n".join([argument, *(line for line in head if not _OPTION.match(line))])
        signatures = [" ".join(each.split()) for each in _joined(whole) if each.strip()]
        raw = [match[1] for each in signatures if (match := _SIGNATURE.match(each))]
        if not raw:
            return
        names = tuple(self.full_name(each, kind, auto=auto) for each in raw)
        code = [
            _shown(each, name, auto=auto) for each, name in zip(signatures, names, strict=False)
        ]
        section = self.entry_section(names, in_index=options.isdisjoint({"noindex", "no-index"}))
        saved = self.current, self.scope, self.crumbs
        self.current = section
        if kind in {"class", "exception"}:
            self.scope = names[0]
            self.crumbs = (*self.crumbs, section.title)
        fence = _fence(filter(None, code), "python")
        text = [section.text, *fence, "", *self.render(_dedented(body[head_end:]), depth + 1)]
        section.text = "\n".join(text).strip("\n")
        self.current, self.scope, self.crumbs = saved

    def entry_section(self, names: tuple[str, ...], *, in_index: bool) -> Section:
        """A new one, or the last if this is another signature of it."""
        last = self.sections[-1] if self.sections else None
        if last and last.names == names:
            return last
        url = f"{self.url}#{names[0]}" if in_index else self.current.url
        others = names[1:] if in_index else ()
        section = Section(_short(names[0]), self.crumbs, url, "", names)
        section.anchors = self.take_labels(url) + others
        self.sections.append(section)
        return section

    def full_name(self, name: str, kind: str, *, auto: bool) -> str:
        """As Sphinx finds it: autodoc takes what stands before the dot for the module."""
        if auto and name.count(".") > (kind in _MEMBERS):
            return name
        if self.scope:
            return f"{self.scope}.{name.removeprefix(_short(self.scope) + '.')}"
        return f"{self.module}.{name}" if self.module else name


def _joined(text: str) -> list[str]:
    """The signatures in the lines after a directive: a backslash continues one."""
    return text.replace("\\\n", " ").split("\n")


def _shown(signature: str, name: str, *, auto: bool) -> str:
    """The signature with the name as the title has it; nothing if it says no more than that."""
    match = _SIGNATURE.match(signature)
    rest = signature[match.end() :].strip() if match else ""
    return "" if not rest or (auto and rest == "()") else _short(name) + rest


def _short(name: str) -> str:
    """`psycopg.Connection.close` -> `Connection.close`; `psycopg.sql.quote` -> `quote`."""
    parts = name.split(".")
    first = next((at for at, part in enumerate(parts) if part[:1].isupper()), len(parts) - 1)
    return ".".join(parts[first:])


def _text_indent(line: str) -> int:
    match = _LIST_ITEM.match(line)
    return match.end() if match else _indent(line)


def _without_options(body: list[str]) -> list[str]:
    start = next((at for at, line in enumerate(body) if not _OPTION.match(line)), len(body))
    return _dedented(body[start:])


def _field(match: re.Match[str]) -> str:
    """`:param int size: ...` -> "- `size`: ..."."""
    indent, kind, about = match[1], match[2], (match[3] or "").strip()
    if kind in _ARGUMENTS and about:
        return f"{indent}- ``{about.split()[-1]}``: "
    if kind in {"raise", "raises", "type"} and about:
        return f"{indent}- {kind} ``{about}``: "
    return indent + _FIELDS[kind] if kind in _FIELDS else match[0]
