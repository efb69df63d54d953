"""Sections to an index: one SQLite file, plain tables, no extension such as FTS5.

meta(key, value)                    library, version, source and so on
section(id, title, path, url, prior)
chunk(id, section, text)            at most about CHUNK tokens, in the order of the text
also(chunk)                         those that are other words for their section, not its text
term(term, chunks)                  pairs of uint32 chunk and float32 BM25 weight, packed
name(name, section)                 `selectinload`, `sqlalchemy.orm.selectinload`
anchor(anchor, section)             `error-xd2s`
"""

import math
import re
import sqlite3
import sys
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from . import Section
from .words import terms

FORMAT = 3
"""Of the file and of what the readers make: a change of either makes old files useless."""

CHUNK = 350
"""Tokens. Small enough that four fit a reply of 1,500, large enough for a thought and its code."""

K1, B = 1.2, 0.75
RARITY = 3.5
"""The most that a rare word counts (as the logarithm of its rarity): in a question, what few
sections have is more often the example of who asks than what the answer is about."""
TITLE, PATH, LATER = 4.0, 1.5, 0.5
"""How many times a word of the title and of the titles above counts; LATER is for those of a
section's second and later chunks.
"""

_SCHEMA = """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE section (id INTEGER PRIMARY KEY, title TEXT NOT NULL, path TEXT NOT NULL,
        url TEXT NOT NULL, api INTEGER NOT NULL, prior REAL NOT NULL);
    CREATE TABLE chunk (id INTEGER PRIMARY KEY, section INTEGER NOT NULL, text TEXT NOT NULL);
    CREATE INDEX chunk_section ON chunk (section);
    CREATE TABLE also (chunk INTEGER PRIMARY KEY);
    CREATE TABLE term (term TEXT PRIMARY KEY, chunks BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE name (name TEXT NOT NULL, section INTEGER NOT NULL,
        PRIMARY KEY (name, section)) WITHOUT ROWID;
    CREATE TABLE anchor (anchor TEXT NOT NULL, section INTEGER NOT NULL,
        PRIMARY KEY (anchor, section)) WITHOUT ROWID;
"""

_FENCE = re.compile(r"^\s*(`{3,}+(?!.*`)|~{3,})")  # not `` ```code``` `` within a line


def tokens(text: str) -> int:
    """An estimate: a quarter of the characters, about a tenth above what models count here."""
    return -(-len(text) // 4)


def build(
    file: Path,
    sections: Sequence[Section],
    meta: Mapping[str, str],
    *,
    prior: Callable[[Section], float] = lambda _: 1.0,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Writes the index to `file`, which must not exist. `prior` is a factor for a section's score;
    `progress` is called with 0 to 1.
    """
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        # A file that is not complete is never given its final name: no journal, no sync.
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        _write(connection, sections, prior, progress)
        connection.execute("COMMIT")
    finally:
        connection.close()


def _write(
    connection: sqlite3.Connection,
    sections: Sequence[Section],
    prior: Callable[[Section], float],
    progress: Callable[[float], None],
) -> None:
    postings: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    lengths: list[float] = []
    for number, section in enumerate(sections):
        connection.execute(
            "INSERT INTO section VALUES (?, ?, ?, ?, ?, ?)",
            (
                number,
                section.title,
                "\n".join(section.path),
                section.url,
                bool(section.names),
                prior(section),
            ),
        )
        for text, weights in _weighted(section):
            chunk = len(lengths)
            connection.execute("INSERT INTO chunk VALUES (?, ?, ?)", (chunk, number, text))
            if not text:
                connection.execute("INSERT INTO also VALUES (?)", (chunk,))
            lengths.append(sum(weights.values()))
            for term, weight in weights.items():
                postings[term].append((chunk, weight))
        connection.executemany(
            "INSERT OR IGNORE INTO name VALUES (?, ?)",
            ((name, number) for name in _names(section)),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO anchor VALUES (?, ?)",
            ((anchor, number) for anchor in _anchors(section)),
        )
        if number % 500 == 0:
            progress(0.7 * number / len(sections))
    connection.executemany("INSERT INTO term VALUES (?, ?)", _packed(postings, lengths))
    progress(1.0)


def _weighted(section: Section) -> Iterator[tuple[str, Mapping[str, float]]]:
    """The chunks of a section, and how often each has each term, those of the titles counted more.

    The words of `also` are a chunk of their own, without text: a long text beside them would hide
    them. The search counts them for each of the others.
    """
    also = " ".join(section.also)
    path = " ".join(section.path)
    for at, text in enumerate(chunks(section.text)):
        share = LATER if at else 1.0
        yield text, _frequencies((text, 1.0), (section.title, TITLE * share), (path, PATH * share))
    if also:
        yield "", _frequencies((also, 1.0), (section.title, 1.0), (path, 0.5))


def _frequencies(*fields: tuple[str, float]) -> Mapping[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for text, weight in fields:
        for term in terms(text):
            found[term] += weight
    return found


def _packed(
    postings: Mapping[str, list[tuple[int, float]]], lengths: Sequence[float]
) -> Iterator[tuple[str, bytes]]:
    """BM25 (Robertson): the weight of each term in each chunk, its rarity included."""
    count = len(lengths)
    average = sum(lengths) / count if count else 1.0
    for term, found in postings.items():
        rarity = min(math.log(1 + (count - len(found) + 0.5) / (len(found) + 0.5)), RARITY)
        numbers, weights = array("I"), array("f")
        for chunk, frequency in found:
            norm = K1 * (1 - B + B * lengths[chunk] / average)
            numbers.append(chunk)
            weights.append(rarity * frequency * (K1 + 1) / (frequency + norm))
        if sys.byteorder == "big":
            numbers.byteswap()
            weights.byteswap()
        yield term, numbers.tobytes() + weights.tobytes()


def unpacked(data: bytes) -> Iterator[tuple[int, float]]:
    """(chunk, weight) of each chunk that has the term."""
    numbers, weights = array("I"), array("f")
    half = len(data) // 2
    numbers.frombytes(data[:half])
    weights.frombytes(data[half:])
    if sys.byteorder == "big":
        numbers.byteswap()
        weights.byteswap()
    return zip(numbers, weights, strict=True)


def _names(section: Section) -> Iterator[str]:
    """Each name in full, and all that it ends with: `Session.get`, `get`; and of its parameters,
    with what they belong to or if they can be told from a word, `expire_on_commit`.
    """
    for name in section.names:
        parts = name.lower()[:300].split(".")[-8:]
        for at in range(len(parts)):
            yield ".".join(parts[at:])
    for anchor in section.anchors:
        owner, mark, parameter = anchor.lower()[:300].partition(".params.")
        if mark:
            parts = owner.removesuffix(".__init__").split(".")[-8:]
            for at in range(len(parts)):
                yield ".".join([*parts[at:], parameter])
            if "_" in parameter:
                yield parameter


def _anchors(section: Section) -> Iterator[str]:
    yield section.url.partition("#")[2]
    yield from section.anchors


def chunks(text: str, limit: int = CHUNK) -> list[str]:
    """A text in pieces of at most `limit` tokens and about the same size, cut between blocks. A
    fence stays whole, whatever its size.
    """
    even = -(-tokens(text) // -(-tokens(text) // limit)) if text else limit
    pieces: list[str] = []
    size = 0
    for block in _together(_blocks(text)):
        cost = tokens(block)
        if pieces and size < even and size + cost <= limit:
            pieces[-1] += "\n\n" + block
            size += cost
        else:
            pieces.append(block)
            size = cost
    return pieces


def _together(blocks: Iterable[str]) -> Iterator[str]:
    """A line that announces what follows ("E.g.:", "Tip"), and what follows, as one block."""
    announced = ""
    for block in blocks:
        before, _, last = f"{announced}\n\n{block}".strip("\n").rpartition("\n")
        if (last.endswith(":") or len(last) < 12) and not last.startswith(("`", "~")):
            if before.strip() and not announced:
                yield before.rstrip()
                before = ""
            announced = f"{before}\n{last}".strip("\n")
            continue
        yield f"{before}\n{last}" if before else last
        announced = ""
    if announced:
        yield announced


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, lists and fences, as they are separated by empty lines."""
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and not fence:
            if lines:
                yield from _short_enough("\n".join(lines))
            lines, fence = [line], mark[1]
        elif fence:
            lines.append(line)
            if _closes(line, fence):
                yield "\n".join(lines)
                lines, fence = [], ""
        elif line.strip():
            lines.append(line)
        elif lines:
            yield from _short_enough("\n".join(lines))
            lines = []
    if fence:
        yield "\n".join([*lines, fence])
    elif lines:
        yield from _short_enough("\n".join(lines))


def _closes(line: str, fence: str) -> bool:
    return line.strip().startswith(fence) and not line.strip().strip(fence[0])


def unclosed(text: str) -> str:
    """The fence that a text leaves open, or nothing."""
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif fence and _closes(line, fence):
            fence = ""
    return fence


def _short_enough(block: str) -> Iterable[str]:
    """A long list or paragraph, cut at line ends, and at sentences where a line is too long."""
    if tokens(block) <= CHUNK:
        return [block]
    parts: list[str] = []
    for line in block.split("\n"):
        cuts = re.split(r"(?<=[.!?]) (?=[A-Z`])", line) if tokens(line) > CHUNK else [line]
        for at, piece in enumerate(cuts):
            joiner = " " if at else "\n"
            if parts and tokens(parts[-1]) + tokens(piece) <= CHUNK:
                parts[-1] += joiner + piece
            else:
                parts.append(piece)
    return parts
