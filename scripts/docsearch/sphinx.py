"""Sphinx's HTML pages, as the sdists of SQLAlchemy and Alembic carry them, to sections.

A page is read in one pass. The pages are the output of one program, well-formed and long
(SQLAlchemy: 239 pages, 50 MB), so a regular expression finds the tags: a general HTML
parser takes four times as long, one that makes Markdown twenty times.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from . import Section
from .markdown import unescaped

# Possessive: what is not a tag fails at once, and the time stays linear.
_TOKEN = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*+)([^<>]*+)>|([^<]++|<)")
_PLAIN_SPAN = re.compile(r"</span>|<span(?![^<>]*\bid=)[^<>]*>")  # colours: most of all tags
_ATTRIBUTE = re.compile(r'(?<![\w-])([\w-]++)="([^"]*)"')
_SPACE = re.compile(r"\s+")
_FENCES = re.compile("`{3,}")
_MOVED = re.compile(r"\b(has|have) (been )?moved\b|^moved to\b", re.IGNORECASE)

_SKIPPED_TAGS = {"script", "style", "nav", "button", "svg", "head", "footer"}
_SKIPPED_CLASSES = {
    "headerlink",
    "paramlink",
    "viewcode-link",
    "code-annotations-key",
    "code-non-annotations-key",
    "seealso",  # links without an address are of no use
    "class-members",  # each member is an entry of its own
    "inherited-member",
    "class-bases",
    "toctree-wrapper",
    "contents",
    "orm-header",
    "core-header",
    "sidebar",
}
_LANGUAGES = {
    "default": "python",
    "python3": "python",
    "pycon+sql": "pycon",
    "python+sql": "python",
}
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
# They have no end to skip to: <img> and the like never do, that of <span> is removed above.
_NOT_SKIPPED = {"section", "span", "img", "br", "hr", "input", "link", "meta", "wbr"}

_DEEPEST = 50
"""Sections and entries within each other; what is deeper is text of the last. Real: 6."""
_DEEPEST_LIST = 8
"""Levels that are indented: each line of a list has its indent."""


@dataclass(slots=True)
class _Open:
    """A section or an entry whose end has not come yet."""

    anchor: str
    entry: bool = False
    names: list[str] = field(default_factory=list[str])
    title: str = ""
    aliases: list[str] = field(default_factory=list[str])
    blocks: list[tuple[str, bool]] = field(
        default_factory=list[tuple[str, bool]]
    )  # text, tight to the one before
    target: str = ""  # of its first link: where a section that moved is now


class _Page:
    def __init__(self, url: str) -> None:
        self.url = url
        self.sections: list[Section] = []
        self.moved: list[tuple[str, str]] = []
        self.open: list[_Open] = []
        self.deeper = 0  # sections that are open and were not begun
        self.lists: list[str] = []  # "ul", "ol", "dl", and for those of an API "py", "glossary"
        self.depth = 0  # how many of them are "ul" or "ol"
        self.words: list[str] = []
        self.marker = ""
        self.language = ""
        self.raw = False  # within <pre> or a signature
        self.row = False  # of a table
        self.rows = 0
        self.term = False
        self.named = False  # since the last <dt> of an entry nothing came
        self.aliases: list[str] = []  # ids just before a heading

    # -- tags

    def feed(self, html: str) -> None:
        skipping, depth = "", 0
        for match in _TOKEN.finditer(_PLAIN_SPAN.sub("", _without_comments(html))):
            closing, tag, rest, text = match.groups()
            tag = tag and tag.lower()
            if skipping:
                if tag == skipping:
                    depth += -1 if closing else 1
                    skipping = skipping if depth else ""
                continue
            if tag is None:
                if self.open:
                    self.words.append(text)
                continue
            if closing:
                self.end(tag)
                continue
            attributes = dict(_ATTRIBUTE.findall(rest)) if rest else {}
            classes = attributes.get("class", "").split()
            skipped = tag in _SKIPPED_TAGS or not _SKIPPED_CLASSES.isdisjoint(classes)
            if skipped and tag not in _NOT_SKIPPED:
                skipping, depth = tag, 1
                continue
            self.start(tag, attributes, classes)
        while self.open:  # of a page that is cut
            self.end("section")

    def start(self, tag: str, attributes: dict[str, str], classes: list[str]) -> None:
        anchor = attributes.get("id", "")
        if tag == "section":
            self.settle()
            if len(self.open) < _DEEPEST:
                self.open.append(_Open(anchor))
            else:
                self.deeper += 1
        elif not self.open:
            return
        elif tag == "span":
            top = self.open[-1]
            (top.aliases if top.title or top.entry else self.aliases).append(anchor)
        elif tag in _HEADINGS or tag in {"p", "div", "table", "blockquote", "aside"}:
            self.flush()
            self.language = next(
                (c[10:] for c in classes if c.startswith("highlight-")), self.language
            )
        elif tag == "tr":
            self.flush()
            self.row = True
        elif tag == "pre":
            self.flush(cell=False)
            self.raw = True
        elif tag in {"ul", "ol", "dl"}:
            self.flush(cell=False)
            self.named = False
            own = {"py", "glossary"}.intersection(classes)
            self.lists.append(own.pop() if own else tag)
            self.depth += self.lists[-1] in {"ul", "ol"}
        elif tag == "li":
            self.flush()
            self.marker = "1. " if self.lists[-1:] == ["ol"] else "- "
        elif tag == "dt":
            self.flush()
            self.begin_term(anchor)
        elif tag == "dd":
            self.flush()
            self.named = False
        elif tag == "code" and not self.raw:
            self.words.append("`")
        elif tag in {"strong", "b"} and not self.raw:
            self.words.append("**")
        elif tag == "a" and not self.open[-1].target:
            self.open[-1].target = unescaped(attributes.get("href", ""))
        elif tag == "br":
            self.words.append("\n" if self.raw else " ")

    def end(self, tag: str) -> None:
        if not self.open:
            return
        if tag == "section":
            self.settle()
            if self.deeper:
                self.deeper -= 1
                return
            while self.open[-1].entry:
                self.close()
            self.close()
        elif tag in _HEADINGS:
            title = self.take()
            if not self.open[-1].entry and not self.open[-1].title:
                self.open[-1].title = title
                self.open[-1].aliases += self.aliases
                self.aliases = []
            elif title:
                self.block(f"**{title}**")
        elif tag == "pre":
            self.end_code()
        elif tag == "dt":
            self.end_term()
        elif tag in {"ul", "ol", "dl"}:
            self.flush()
            kind = self.lists.pop() if self.lists else ""
            self.depth -= kind in {"ul", "ol"}
            if kind in {"py", "glossary"} and self.open[-1].entry:
                self.close()
        elif tag in {"td", "th"}:
            self.words.append(" | ")
        elif tag == "tr":
            self.row = False
            self.flush(tight=self.rows > 0)
            self.rows += 1
        elif tag == "table":
            self.flush()
            self.rows = 0
        elif tag == "li":
            self.flush()
            self.marker = ""
        elif tag in {"p", "div", "dd", "blockquote", "aside"}:
            self.flush()
        elif tag == "code" and not self.raw:
            self.words.append("`")
        elif tag in {"strong", "b"} and not self.raw:
            self.words.append("**")

    def begin_term(self, anchor: str) -> None:
        top = self.open[-1]
        if self.lists[-1:] == ["py"] and not anchor and not (top.entry and self.named):
            self.lists[-1] = "dl"  # an entry that cannot be linked to: a part of what is around it
        if self.lists[-1:] == ["py"] and len(self.open) >= _DEEPEST:
            self.lists[-1] = "dl"
        if not self.lists or self.lists[-1] not in {"py", "glossary"}:
            self.term = True
            return
        if top.entry and self.named:  # another name, or an overload, of the entry above
            top.aliases.append(anchor)
        else:
            if top.entry and self.lists[-1] == "glossary":
                self.close()
            top = _Open(anchor, entry=True)
            self.open.append(top)
        if self.lists[-1] == "py":
            top.names += [anchor] if anchor else []
            self.raw = True

    def end_term(self) -> None:
        text = self.take()
        top = self.open[-1]
        if self.term:
            self.term = False
            if text:
                self.block(f"**{text}**")
        elif self.raw:
            self.raw, self.named = False, True
            top.title = top.title or _short(next(iter(top.names), ""))
            top.blocks.append((f"```python\n{_signature(text)}\n```", False))
        elif top.entry:
            self.named = True
            top.title = f"{top.title}, {text}" if top.title else text

    def end_code(self) -> None:
        code = unescaped("".join(self.words)).strip("\n").rstrip()
        self.words, self.raw = [], False
        if code.strip():
            language = _LANGUAGES.get(self.language, self.language).replace("text", "")
            mark = "`" * (max(map(len, _FENCES.findall(code)), default=2) + 1)
            self.open[-1].blocks.append((f"{mark}{language}\n{code}\n{mark}", False))

    # -- text

    def take(self) -> str:
        text = _SPACE.sub(" ", unescaped("".join(self.words))).strip()
        self.words = []
        return text

    def settle(self) -> None:
        """Before a section begins or ends: what a page left open does not reach beyond."""
        self.raw = self.row = self.term = self.named = False
        self.marker = ""
        self.flush()

    def flush(self, *, tight: bool = False, cell: bool = True) -> None:
        """What was read is a block. Within a row of a table it is not, unless `cell` is false."""
        if self.raw or not self.open:
            return
        self.row = self.row and cell
        if self.row:
            self.words.append(" ")
            return
        text = self.take().strip("|").strip()
        if text:
            self.block(text, tight=tight)

    def block(self, text: str, *, tight: bool = False) -> None:
        indent = "  " * min(max(self.depth - 1, 0), _DEEPEST_LIST)
        if self.marker:
            text, tight, self.marker = indent + self.marker + text, True, ""
        elif self.depth:
            text, tight = indent + "  " + text, True
        self.open[-1].blocks.append((text, tight))

    def close(self) -> None:
        """The end of a section or an entry: what it holds is complete."""
        done = self.open.pop()
        text = ""
        for block, tight in done.blocks:
            text += ("\n" if tight and not text.endswith("```") else "\n\n") + block
        text = text.strip()
        if not done.title or not text:
            return
        if len(text) < 600 and _MOVED.search(text):
            self.moved.append((done.target, done.title))
            return
        self.sections.append(
            Section(
                title=done.title,
                path=tuple(each.title for each in self.open if each.title),
                url=f"{self.url}#{done.anchor}" if done.anchor else self.url,
                text=text,
                names=tuple(done.names),
                anchors=tuple(each for each in done.aliases if each),
            )
        )


def _without_comments(html: str) -> str:
    parts = html.split("<!--")
    return parts[0] + "".join(part.partition("-->")[2] for part in parts[1:])


def _short(name: str) -> str:
    """`sqlalchemy.orm.Session.get` -> `Session.get`; `alembic.op.add_column` -> `op.add_column`."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part[:1].isupper():
            return ".".join(parts[at:])
    return ".".join(parts[-2:]) if parts[-2:-1] == ["op"] else parts[-1]


def _signature(text: str) -> str:
    return text.replace("( ", "(").replace(" )", ")")


def sections(html: str, *, page_url: str) -> tuple[list[Section], list[tuple[str, str]]]:
    """The sections of one page, and its stubs: (where the text is now, the stub's title).

    `page_url` is the page's address; sections get `#` and their anchor. Parts without a
    heading, navigation, tables of members and "See also" are left out.
    """
    page = _Page(page_url)
    page.feed(html)
    return page.sections, page.moved


def join_moved(found: list[Section], moved: Iterable[tuple[str, str]]) -> None:
    """Lets a section be found by the titles of the stubs that point to it, given with full URLs."""
    by_url = {anchor_url: each for each in found for anchor_url in _urls(each)}
    for target, title in moved:
        if section := by_url.get(target):
            section.also += (title,)


def _urls(section: Section) -> Iterator[str]:
    yield section.url
    page = section.url.partition("#")[0]
    for anchor in section.anchors:
        yield f"{page}#{anchor}"


# -- error messages ----------------------------------------------------------------


def error_messages(source: str) -> Iterator[tuple[str, str]]:
    """(code, message) of each error that a module of SQLAlchemy raises with a `code`.

    The documentation explains errors by code (`errors.html#error-xd2s`) and often does not
    hold the words of the message, which is what people have in hand.
    """
    if "code=" not in source and "code =" not in source:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "code" and (code := _text(keyword.value)):
                    message = " ".join(filter(None, (_text(each) for each in node.args)))
                    if message:
                        yield code, message


def _text(node: ast.AST) -> str:
    """The constant words of an expression of strings."""
    return " ".join(
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    )
