"""What `fetch_docs.py` is made of: find, read, index and search the official documentation.

Arrows go one way. releases and sdists say which version and where it is; transfer and archive
bring it; sphinx, markdown, rst, site_index, live and installed read it into `Section`s; sources
puts these together; words, index, search and passages never fetch.
"""

from dataclasses import dataclass, field

FOUND, NOTHING_FOUND, USAGE, UNAVAILABLE, NO_SUCH_VERSION, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes."""


class Failed(Exception):
    """Ends the program: one line for the reader, and the exit code."""

    def __init__(self, message: str, code: int = UNAVAILABLE) -> None:
        super().__init__(message)
        self.code = code


class Unavailable(Exception):
    """A source has not got it, or cannot be reached; the next one may. One line that says
    what was asked for, where, and what came instead.
    """


@dataclass(slots=True)
class Section:
    """A piece of documentation below one heading, or one entry of an API reference."""

    title: str
    """The heading, or the dotted name as the page shows it: `Session.scalars`."""
    path: tuple[str, ...]
    """The titles above it, outermost (the page's) first."""
    url: str
    """With the anchor, if it has one: `https://host/page.html#anchor`."""
    text: str
    """Markdown. Code is in ``` fences; the heading itself is not repeated."""
    names: tuple[str, ...] = field(default=())
    """What it defines, as it is imported: `sqlalchemy.orm.Session.scalars`. Empty for prose."""
    anchors: tuple[str, ...] = field(default=())
    """Other anchors of the page that lead here."""
    also: tuple[str, ...] = field(default=())
    """Words that it is found by and that its text lacks: messages of an error, old titles."""
