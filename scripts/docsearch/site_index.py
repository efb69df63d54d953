"""The search index of a site that MkDocs or Zensical built: all its text in one file."""

import json
import re
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from . import Section, Unavailable
from .markdown import TAG, Html, unescaped

_SPACE = re.compile(r"\s+")

_URL = "/#%?=&;:@+,~!$'()*"  # characters of an address


def from_search_index(data: bytes, site: str) -> list[Section]:
    """The sections in `search.json` (Zensical) or `search/search_index.json` (MkDocs) of the
    site at the address `site`. Raises `Unavailable` if it is something else.
    """
    out: list[Section] = []
    page, above = None, list[tuple[int, str]]()
    for entry in _entries(data, site):
        if entry.page != page:
            page, above = entry.page, []
        while above and above[-1][0] >= entry.level:
            above.pop()
        # `path` ends with the page's title.
        own = tuple(title for level, title in above if level > 1 or not entry.path)
        if entry.text:
            url = f"{site.rstrip('/')}/{quote(entry.location, safe=_URL)}"
            out.append(Section(entry.title, entry.path + own, url, entry.text))
        above.append((entry.level, entry.title))
    return out


@dataclass(frozen=True, slots=True)
class _Entry:
    location: str
    page: str
    level: int
    title: str
    path: tuple[str, ...]
    text: str


def _entries(data: bytes, site: str) -> list[_Entry]:
    where = f"search index of {site}"
    try:
        index: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise Unavailable(f"{where}: not JSON, it begins with {data[:40]!r}") from None
    found = _object(index, where)
    entries = _list(found.get("items", found.get("docs")))
    if not entries:
        keys = ", ".join(repr(key)[:40] for key in list(found)[:5])
        raise Unavailable(f"{where}: expected a list as 'items' or 'docs', found the keys {keys}")
    return [_entry(each, f"{where}, entry {at}") for at, each in enumerate(entries)]


def _entry(value: object, where: str) -> _Entry:
    entry = _object(value, where)
    location, title, text = (_text(entry, name, where) for name in ("location", "title", "text"))
    location = location.lstrip("/")
    page, _, anchor = location.partition("#")
    level, path = entry.get("level"), entry.get("path")
    crumbs = [_encodable(str(each)) for each in _list(path)]
    return _Entry(
        location=location,
        page=page,
        level=min(max(level, 1), 6) if isinstance(level, int) else 2 if anchor else 1,
        title=_bare(title),
        path=tuple(map(_bare, crumbs if anchor else crumbs[:-1])),
        text=str(Html(text)),
    )


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unavailable(f"{where}: expected an object, found {_kind(value)}")
    return cast("dict[str, Any]", value)


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise Unavailable(f"{where}: expected text as {name!r}, found {_kind(value)}")
    return _encodable(value)


def _encodable(text: str) -> str:
    """JSON can hold half a character, which no address and no file can."""
    return text.encode("utf-8", "replace").decode()


def _kind(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _bare(html: str) -> str:
    return _SPACE.sub(" ", unescaped(TAG.sub("", html))).strip()
