"""Markdown as MkDocs and Zensical build it, and the search index of such a site, to sections.

`resolve` puts the included code into a page; `sections` splits it. The lines of the source
are kept, without what only a browser needs: HTML, images, targets of links, attribute lists,
the syntax of blocks and tabs. markdown-it-py says what is code, what is a heading and what
is text. Each step takes time in proportion to the text, whatever the text is.
"""

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from html import unescape
from itertools import pairwise
from typing import TYPE_CHECKING

from . import Section

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?(`{3,}(?=[^`]*$)|~{3,})")


def _lines(text: str) -> list[str]:
    """Not `splitlines`: a form feed in code is not the end of a line."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _opens(line: str) -> str:
    """The mark of a fence that begins here, or ''."""
    match = _FENCE.match(line)
    return match[1] if match else ""


def _closes(line: str, mark: str) -> bool:
    end = line.strip(" \t>")
    return end.startswith(mark) and not end.strip(mark[0])


def _mark(code: Iterable[str], mark: str = "```") -> str:
    """A mark for a fence around these lines: longer than any that they begin with."""
    marks = [_opens(line) for line in code]
    longest = max((len(each) for each in marks if each[:1] == mark[0]), default=0)
    return mark[0] * max(len(mark), longest + 1)


# -- includes ----------------------------------------------------------------------

MAX_INCLUDED = 2_000_000
"""Characters of code that one page may include: a page can name a large file many times."""

_LEADING = re.compile(r"^(?:\.{1,2}/)+")
_STAR_LINES = re.compile(r"(?<!\S)ln\[([^\[\]]*)\]")
_BANG_LINES = re.compile(r"\[ln:([^\[\]]*)\]$")
_RANGE = re.compile(r"\s*(\d{0,6})\s*([:-]?)\s*(\d{0,6})\s*")
_MAX_RANGES = 50


def resolve(text: str, read: Callable[[str], str | None]) -> str:
    """The page with the code in place of its includes.

    Understands `{* ../../docs_src/a.py ln[1:5,9] *}`, `{!> ../../docs_src/a.py !}` and
    `{!./docs_src/a.py[ln:42-68]!}`, each alone on its line. `read` gets a path from the
    repository's root and returns the file's text or None. An include of a file that is not
    there, or not in the repository, becomes a line that says so.
    """
    left = MAX_INCLUDED

    def included(path: str, wanted: str) -> list[str] | str:
        nonlocal left
        if left <= 0:
            return "example left out, the page includes too much"
        inside = _inside(path)
        code = read(inside) if inside else None
        if code is None:
            return "example not found"
        left -= len(code)
        return _selected(code, wanted)

    out: list[str] = []
    for mark, block in _blocks(_lines(text)):
        out += _replaced(block, mark, included)
    return "\n".join(out)


def _blocks(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Fenced blocks with their mark, and every other line by itself with ''."""
    mark, block = "", list[str]()
    for line in lines:
        if mark:
            block.append(line)
            if _closes(line, mark):
                yield mark, block
                mark = ""
        elif mark := _opens(line):
            block = [line]
        else:
            yield "", [line]
    if mark:
        yield mark, block


def _replaced(
    block: list[str], mark: str, included: Callable[[str, str], list[str] | str]
) -> list[str]:
    """The block with its includes done: within its fence, which may need a longer mark then,
    or with a fence of their own.
    """
    out: list[str] = []
    wide = mark
    for line in block:
        include = _include(line)
        if include is None:
            out.append(line)
            continue
        path, wanted = include
        indent = line[: len(line) - len(line.lstrip())]
        code = included(path, wanted)
        if isinstance(code, str):
            code = [f"({code}: {_LEADING.sub('', path[:200])})"]
        elif mark:
            wide = _mark(code, wide)
        else:
            own = _mark(code)
            code = [own + _language(path), *code, own]
        out += [indent + each if each else "" for each in code]
    if wide != mark:
        out[0] = out[0].replace(mark, wide, 1)
        if _closes(block[-1], mark):
            out[-1] = out[-1].replace(mark, wide, 1)
    return out


def _include(line: str) -> tuple[str, str] | None:
    """(path, lines) that the line includes."""
    body = line.strip()
    if len(body) < 5:
        return None
    if body.startswith("{*") and body.endswith("*}"):
        path, _, options = body[2:-2].strip().partition(" ")
        match = _STAR_LINES.search(options)
        return path, match[1] if match else ""
    if body.startswith("{!") and body.endswith("!}"):
        path = body[2:-2].lstrip(">").strip()
        match = _BANG_LINES.search(path)
        return (path[: match.start()], match[1]) if match else (path, "")
    return None


def _inside(path: str) -> str | None:
    """The path from the repository's root; None if it leads out of it."""
    clean = posixpath.normpath(_LEADING.sub("", path))
    leaves = clean in {".", ".."} or clean.startswith(("/", "../"))
    return None if leaves or "\\" in clean or ":" in clean else clean


def _language(path: str) -> str:
    suffix = posixpath.splitext(path)[1][1:]
    return "python" if suffix == "py" else suffix if suffix.isalnum() else ""


def _selected(code: str, wanted: str) -> list[str]:
    """The wanted lines (`1:5,9`, `42-68`), a line with `...` where some are left out between
    them. All of them if none are wanted.
    """
    lines = _lines(code.rstrip())
    numbers: set[int] = set()
    for part in wanted.split(",")[:_MAX_RANGES]:
        match = _RANGE.fullmatch(part)
        if match and (match[1] or match[3]):
            first = int(match[1] or 1)
            last = int(match[3] or len(lines)) if match[2] else first
            numbers.update(range(max(first, 1), min(last, len(lines)) + 1))
    out: list[str] = []
    previous = 0
    for number in sorted(numbers):
        if out and number != previous + 1:
            out.append("...")
        out.append(lines[number - 1])
        previous = number
    return out or lines


# -- blocks and tabs ---------------------------------------------------------------

_INDENTED = re.compile(r'(!!!|\?\?\?\+?)[ \t]+([\w-]++)[^"]*+(?:"(.*)")?$|===[+!]?[ \t]+"(.*)"$')
_SLASHES = re.compile(r"(/{3,})[ \t]*([A-Za-z][\w-]*)[ \t]*(?:\|[ \t]*(.*))?$")
_OPTION = re.compile(r"[ \t]{4,}[\w-]+:")
_VARIANT = re.compile(r"Python \d|(?:non-)?Annotated")


@dataclass(frozen=True, slots=True)
class _Block:
    title: str
    tab: bool
    closing: str  # '///', or '' for one whose content is indented
    indent: int = 0
    shown: bool = True


def _block(line: str) -> _Block | None:
    """The admonition, details or tab that begins at this line."""
    text = line.strip()
    if match := _SLASHES.fullmatch(text):
        closing, kind, title = match[1], match[2], match[3]
        return _Block(_titled(kind, title), kind == "tab", closing, _indent(line))
    if match := _INDENTED.fullmatch(text):
        kind, title, tab = match[2], match[3], match[4]
        return _Block(_titled(kind, tab or title), tab is not None, "", _indent(line))
    return None


def _titled(kind: str, title: str | None) -> str:
    if title is None:
        return "" if kind in {"html", "tab", "details"} else kind.capitalize()
    return title.replace("**", "").strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


class _Unfolded:
    """The lines without the syntax of MkDocs' blocks: content is not indented, titles are in
    bold. Of tabs that show one example for several Pythons, only the first; no preview of
    the whole file after an extract of it.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines: list[str] = []
        self.open: list[_Block] = []
        self.depth = 0  # how many of them have indented content
        self.mark = ""  # of the fence that the line is in
        self.after_tab = False
        self.last = ""  # line that is not blank
        self.options = False  # lines of a block's options may come
        for line in lines:
            self.add(line)

    def add(self, line: str) -> None:
        options, self.options = self.options, False
        if not line.strip():
            self.emit("")
            return
        self.leave(_indent(line))
        text = line[min(4 * self.depth, _indent(line)) :]
        if self.mark:
            self.mark = "" if _closes(text, self.mark) else self.mark
            self.emit(text)
        elif options and _OPTION.match(text):
            self.options = True
        elif self.open and self.open[-1].closing == text.strip():
            self.after_tab = self.open.pop().tab
        elif block := _block(line):
            self.enter(block)
        else:
            self.mark = _opens(text)
            self.after_tab = False
            self.emit(text)

    def emit(self, text: str) -> None:
        if not self.open or self.open[-1].shown:
            self.lines.append(text)
            self.last = text.strip() or self.last

    def leave(self, indent: int) -> None:
        """Ends the blocks, and the fence in them, that a line with this indent is not in."""
        while self.open and not self.open[-1].closing and indent < self.open[-1].indent + 4:
            if self.mark:
                self.emit(self.mark)
                self.mark = ""
            self.after_tab = self.open.pop().tab
            self.depth -= 1

    def enter(self, block: _Block) -> None:
        variant = block.tab and _VARIANT.match(block.title) is not None
        preview = "Full file preview" in block.title and self.last.startswith(("```", "~~~"))
        repeats = preview or (variant and self.after_tab)
        if block.title and not variant and not repeats:
            for each in ("", f"{' ' * (block.indent - 4 * self.depth)}**{block.title}**", ""):
                self.emit(each)
        shown = not repeats and (not self.open or self.open[-1].shown)
        self.open.append(replace(block, shown=shown))
        self.depth += not block.closing
        self.options = bool(block.closing)
        self.after_tab = False


# -- inline ------------------------------------------------------------------------

_TICKS = re.compile("`+")
_SPECIAL = re.compile(r"[\\`<\[\]{]|!\[")
TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]*+)([^<>]*+)>")  # possessive: linear
_AUTOLINK = re.compile(r"<([a-z][a-z0-9+.-]{1,31}:[^\s<>]*)>")
_DESTINATION = re.compile(
    r"\(\s*+(?:<[^<>\n]*>|(?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*+\))*+)"
    r"(?:\s++(?:\"[^\"]*\"|'[^']*'))?\s*+\)"
)
_PAIR = r"(?:[.#][\w:.-]+|[\w-]+=(?:\"[^\"{}]*\"|'[^'{}]*'|[^\s\"'{}]+))"
_ATTRIBUTES = re.compile(rf"\{{:?\s*{_PAIR}(?:\s+{_PAIR})*\s*\}}")
_MAX_SYNTAX = 1000  # characters of one target or attribute list: no scan goes further


class _Inline:
    """One paragraph without HTML, images, targets of links and attribute lists."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.out: list[str] = []
        self.brackets: list[int] = []  # where in `out` they stand
        self.ticks: dict[int, list[int]] = {}  # starts of the runs of backticks, last first
        for run in reversed(list(_TICKS.finditer(text))):
            self.ticks.setdefault(len(run[0]), []).append(run.start())

    def cleaned(self) -> str:
        while match := _SPECIAL.search(self.text, self.at):
            self.out.append(self.text[self.at : match.start()])
            self.at = match.start()
            self.special(match[0])
        self.out.append(self.text[self.at :])
        return "".join(self.out)

    def take(self, length: int) -> None:
        self.out.append(self.text[self.at : self.at + length])
        self.at += length

    def skip(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at, self.at + _MAX_SYNTAX)
        self.at = match.end() if match else self.at
        return match

    def special(self, mark: str) -> None:
        if mark == "\\":
            self.take(2)
        elif mark == "`":
            self.code()
        elif mark == "<":
            self.html()
        elif mark in {"[", "!["}:
            self.brackets.append(len(self.out))
            self.take(len(mark))
        elif mark == "]":
            self.link()
        elif not self.skip(_ATTRIBUTES):
            self.take(1)

    def code(self) -> None:
        run = _TICKS.match(self.text, self.at)
        length = len(run[0]) if run else 1
        starts = self.ticks.get(length, [])
        while starts and starts[-1] <= self.at:
            starts.pop()
        self.take(starts[-1] + length - self.at if starts else length)

    def html(self) -> None:
        if self.text.startswith("<!--", self.at):
            end = self.text.find("-->", self.at)
            self.at = end + 3 if end > 0 else len(self.text)
        elif match := self.skip(_AUTOLINK):
            self.out.append(match[1])
        elif match := self.skip(TAG):
            self.out.append({"code": "`", "br": " "}.get(match[2].lower(), ""))
        else:
            self.take(1)

    def link(self) -> None:
        start = self.brackets.pop() if self.brackets else None
        self.at += 1
        if start is None or not self.skip(_DESTINATION):
            self.out.append("]")
            return
        if self.out[start] == "![":
            del self.out[start:]
        else:
            self.out[start] = ""


# -- HTML --------------------------------------------------------------------------

_BLOCK_TAG = re.compile(
    "article|aside|blockquote|center|dd|details|div|dl|dt|figcaption|figure|footer|form|h[1-6]|"
    "header|hr|main|nav|ol|p|section|summary|table|tbody|thead|tr|ul"
)
_UNSEEN = {"script", "style", "template", "svg"}
_SPACE = re.compile(r"\s+")
_CODE_LANGUAGE = re.compile(r"\blanguage-([\w+-]+)")


class Html:
    """HTML as Markdown, as far as a search index and the HTML within Markdown have it."""

    def __init__(self, html: str) -> None:
        self.blocks: list[str] = []
        self.words: list[str] = []
        self.items: list[str] = []  # markers of the open lists
        self.language: str | None = None  # not None: within <pre>
        self.unseen = ""
        at = 0
        html = _without_comments(html)
        for match in TAG.finditer(html):
            self.data(html[at : match.start()])
            self.tag(match[2].lower(), match[3], closing=bool(match[1]))
            at = match.end()
        self.data(html[at:])
        self.flush()

    def data(self, text: str) -> None:
        if text and not self.unseen:
            self.words.append(unescaped(text))

    def tag(self, name: str, attributes: str, *, closing: bool) -> None:
        if self.unseen:
            self.unseen = "" if closing and name == self.unseen else self.unseen
        elif name in _UNSEEN:
            self.unseen = "" if closing else name
        elif name == "pre":
            self.flush()
            self.language = None if closing else _code_language(attributes)
        elif self.language is not None:
            self.language = self.language or _code_language(attributes)
        elif name == "code":
            self.words.append("`")
        elif name == "br":
            self.words.append(" ")
        elif name in {"td", "th"}:
            self.words.append(" | " * closing)
        elif name == "li":
            self.flush()
            self.words.append(self.items[-1] if self.items and not closing else "")
        elif _BLOCK_TAG.fullmatch(name):
            self.block(name, closing=closing)

    def block(self, name: str, *, closing: bool) -> None:
        if name == "p" and (marker := "".join(self.words).strip()) in {"-", "1."}:
            self.words = [f"{marker} "]  # <li><p>: the paragraph goes on after the marker
            return
        self.flush()
        if name in {"ul", "ol"} and not closing:
            self.items.append("- " if name == "ul" else "1. ")
        elif name in {"ul", "ol"} and self.items:
            self.items.pop()

    def flush(self) -> None:
        text, self.words = "".join(self.words), []
        if self.language is not None:
            code = text.strip("\n").rstrip()
            mark = _mark(_lines(code))
            self.blocks += [f"{mark}{self.language}\n{code}\n{mark}"] if code else []
        elif text := _SPACE.sub(" ", text).strip().removesuffix("|").rstrip():
            self.blocks.append(text)

    def __str__(self) -> str:
        parts = [""]
        for block in self.blocks:
            tight = block.startswith(("- ", "1. ")) and not parts[-1].endswith("```")
            parts += ["\n" if tight else "\n\n", block]
        return "".join(parts).strip("\n")


def unescaped(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:  # a character's number of thousands of digits
        return text


def _code_language(attributes: str) -> str:
    match = _CODE_LANGUAGE.search(attributes)
    return match[1] if match else ""


def _without_comments(html: str) -> str:
    first, *rest = html.split("<!--")
    return first + "".join(each.partition("-->")[2] for each in rest)


# -- sections ----------------------------------------------------------------------

_NOT_SLUG = re.compile(r"[^\w\s-]")
_DASHES = re.compile(r"[-\s]+")
_NUMBERED = re.compile(r"(.*)_([0-9]{1,9})")
_ANCHOR = re.compile(r"#([\w:.-]+)")
_COLOUR = re.compile(r"</?(?:span|font|style|b|u|i)\b[^<>]*>")  # in the output of commands
_MAX_HEADING = 500


@dataclass(slots=True)
class _Heading:
    level: int
    title: str
    anchor: str
    start: int
    end: int


def sections(text: str, *, page_url: str) -> list[Section]:
    """The sections of a page, by heading, those without text left out.

    `page_url` is the page's address. Text before the first heading has the title of the front
    matter, or else the page's name.
    """
    front, lines = _front_matter(_lines(text))
    source = _Unfolded(lines).lines
    tokens = _parser().parse("\n".join(source))
    headings = _headings(tokens)
    leaves = _leaves(tokens, source)
    name = front or page_url.rstrip("/").rpartition("/")[2]
    starts = [_Heading(0, name, "", 0, 0), *headings]
    ends = [each.start for each in headings] + [len(source)]
    above: list[_Heading] = []
    out: list[Section] = []
    for heading, end in zip(starts, ends, strict=True):
        while above and above[-1].level >= heading.level:
            above.pop()
        if body := _body(source, leaves, heading.end, end):
            crumbs = tuple(each.title for each in above)
            url = f"{page_url}#{heading.anchor}" if heading.anchor else page_url
            out.append(Section(heading.title, crumbs, url, body))
        if heading.level:
            above.append(heading)
    return out


def page_path(name: str) -> str:
    """Where the site has a page: `tutorial/sql-databases.md` is at `tutorial/sql-databases/`."""
    folder, stem = posixpath.split(name.removesuffix(".md"))
    own = "" if stem in {"index", "README"} else stem + "/"
    return f"{folder}/{own}" if folder else own


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").disable("inline")


def _front_matter(lines: list[str]) -> tuple[str, list[str]]:
    """(the title in it, the lines after it)"""
    if lines[0].rstrip() != "---":
        return "", lines
    end = next((at for at, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), 0)
    titles = [line[6:].strip(" '\"") for line in lines[:end] if line.startswith("title:")]
    return (titles or [""])[0], lines[end + 1 :] if end else lines


def _headings(tokens: "list[Token]") -> list[_Heading]:
    found: list[_Heading] = []
    for token, inline in pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            content = inline.content[:_MAX_HEADING].strip()
            own = _ATTRIBUTES.fullmatch(content, max(content.rfind("{"), 0))
            anchor = _ANCHOR.search(own[0]) if own else None
            title = _plain(_Inline(content[: own.start()] if own else content).cleaned())
            level = int(token.tag[1])
            found.append(_Heading(level, title, anchor[1] if anchor else "", *token.map))
    _number(found)
    return found


def _plain(inline: str) -> str:
    """The text of a heading as the page shows it."""
    parser = _parser()
    tokens: list[Token] = []
    parser.inline.parse(inline, parser, {}, tokens)
    shown = (
        " " if each.type == "softbreak" else each.content for each in tokens if _has_text(each)
    )
    return _SPACE.sub(" ", "".join(shown)).strip()


def _has_text(token: "Token") -> bool:
    return token.type in {"text", "text_special", "code_inline", "softbreak"}


def _number(headings: list[_Heading]) -> None:
    """Gives anchors to the headings without one, as python-markdown's `toc` does: a slug, with
    `_1`, `_2` where it is taken.
    """
    used = {each.anchor for each in headings}
    last: dict[str, tuple[str, int]] = {}  # by slug: the stem and number that it got last
    for heading in headings:
        if heading.anchor:
            continue
        slug = anchor = _slug(heading.title)
        while not anchor or anchor in used:
            match = _NUMBERED.fullmatch(slug)
            first = (match[1], int(match[2])) if match else (slug, 0)
            stem, number = last.get(slug, first)
            last[slug] = stem, number + 1
            anchor = f"{stem}_{number + 1}"
        used.add(anchor)
        heading.anchor = anchor


def _slug(title: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return _DASHES.sub("-", _NOT_SLUG.sub("", ascii_only).strip().lower())


@dataclass(frozen=True, slots=True)
class _Leaf:
    """What stands in the place of some lines of the source."""

    lines: list[str]
    end: int
    code: bool


def _leaves(tokens: "list[Token]", source: list[str]) -> dict[int, _Leaf]:
    leaves: dict[int, _Leaf] = {}
    for token in tokens:
        if not token.map or token.map[0] in leaves:  # the cells of a row have one line
            continue
        start, end = token.map
        lines = source[start:end]
        if token.type == "fence":
            leaves[start] = _Leaf(_fenced(lines, token), end, code=True)
        elif token.type == "code_block" and token.level == 0:
            code = token.content.strip("\n").split("\n")
            mark = _mark(code)
            leaves[start] = _Leaf([mark, *code, mark], end, code=True)
        elif token.type == "code_block":
            leaves[start] = _Leaf(lines, end, code=True)
        elif token.type == "html_block":
            leaves[start] = _Leaf(_lines(str(Html("\n".join(lines)))), end, code=False)
        elif token.type == "inline":
            text = _Inline("\n".join(lines)).cleaned()
            leaves[start] = _Leaf(_lines(text), end, code=False)
    return leaves


def _fenced(lines: list[str], token: "Token") -> list[str]:
    """A fence with nothing but the language after its mark, and with an end."""
    before = lines[0][: lines[0].index(token.markup)]
    language = re.match(r"\s*(?:\{\s*\.)?([\w+#-]*+)(?!=)", token.info)
    name = language[1].lower() if language else ""
    body = lines[1:]
    if not (body and _closes(body[-1], token.markup)):
        body.append(re.sub(r"[^\s>]", " ", before) + token.markup)
    if name == "console":
        body = [_COLOUR.sub("", line) for line in body]
    return [before + token.markup + name, *body]


def _body(source: list[str], leaves: dict[int, _Leaf], start: int, end: int) -> str:
    """The lines from `start` to `end` with their leaves in place, no two blank ones in a row."""
    out: list[str] = []
    while start < end:
        leaf = leaves.get(start) or _Leaf([source[start]], start + 1, code=False)
        start = leaf.end
        if leaf.code:
            out += leaf.lines
            continue
        for line in leaf.lines:
            if line.strip() or (out and out[-1]):
                out.append(line.rstrip())
    return "\n".join(out).strip("\n")
