"""The best sections for a query, from an index. Nothing here leaves the machine."""

import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .index import FORMAT, unpacked
from .words import searched

CANDIDATES = 60
"""Sections that are looked at closely, of those that share a word with the query."""

SECOND = 0.3
"""What a section's second-best chunk adds to its best one."""

COVERAGE = 0.7
"""How much of a score depends on the share of the query's words that the section has."""

API = 0.7
"""Entries of an API reference against prose: the same words are more often an answer there."""

_ADDRESS = re.compile(r"https?://(?!sqlalche\.me)[^\s/]+/\S+|[\w/.-]+\.html(?:#\S+)?")
_RAISED = re.compile(
    r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|[a-z][A-Z]\w*)(?::|$)", re.MULTILINE
)
CODE = re.compile(r"(?:sqlalche\.me/e/\w+/|\berror-)([a-z0-9]{3,5})\b")
_IDENTIFIER = re.compile(
    # From the start of a word only: else the time is the square of the length of a word.
    r"(?<!\w)(?:[A-Za-z_]\w*(?:\.\w+)+|_*[A-Za-z]\w*_\w+|[A-Z][a-z0-9]+[A-Z]\w*|[a-z]\w+(?=\())"
)
_NOISE = re.compile(
    r"\[(?:SQL|parameters|cached since)[: ].*?(?:\]|$)"  # the statement, not the error
    r"|(?<=: )['\"](?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|WITH)\s[^\n]*"
    r"|\(Background on this error at:?\s*"
    r"|https?://\S+|0x[0-9a-f]+|\b\d+(?:,\d{3})+\b|Traceback \(most recent call last\):?"
    r"|\bFile \"[^\"]*\", line \d+[^\n]*(?:\n {4}[^\n]*)*",  # and the source below it
    re.DOTALL,
)


Terms = dict[str, float]
"""What each term of a query weighs."""


@dataclass(slots=True)
class Hit:
    """A section that answers."""

    index: "Index"
    section: int
    title: str
    path: tuple[str, ...]
    url: str
    api: bool
    score: float
    scores: dict[int, float] = field(default_factory=dict[int, float])
    """Of its chunks that have a word of the query."""

    def texts(self) -> list[tuple[int, str]]:
        """(number, text) of all its chunks that have text, in its order."""
        return self.index.rows(
            "SELECT id, text FROM chunk WHERE section = ? AND text <> '' ORDER BY id", self.section
        )


class Index:
    """An index file, open for reading."""

    def __init__(self, file: Path) -> None:
        """Raises `sqlite3.Error` or `ValueError` if it is damaged or of another format."""
        uri = f"{file.resolve().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(uri, uri=True)
        try:
            self.meta: dict[str, str] = dict(
                self._connection.execute("SELECT key, value FROM meta")
            )
            if self.meta.get("format") != str(FORMAT):
                raise ValueError(f"{file}: format {self.meta.get('format')}, not {FORMAT}")
        except Exception:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def rows(self, statement: str, *parameters: object) -> list[tuple[int, str]]:
        return self._connection.execute(statement, parameters).fetchall()

    def _sections(self, rest: str, *parameters: object) -> list[Hit]:
        """`rest` is a constant of this module: what stands after the columns of a section."""
        rows = self._connection.execute(
            f"SELECT section.id, title, path, url, api, prior {rest}",
            parameters,
        )
        return [
            Hit(self, number, title, tuple(path.split("\n")) if path else (), url, bool(api), prior)
            for number, title, path, url, api, prior in rows
        ]

    def search(self, query: str, *, weigh: Callable[[str], float] | None = None) -> list[Hit]:
        """Sections that share words with the query, best first.

        `weigh` gives a factor for the score of a URL; 0 leaves it out.
        """
        weights: defaultdict[int, Terms] = defaultdict(dict)  # of each chunk
        most: Terms = {}
        for term in searched(query):
            row = self._connection.execute(
                "SELECT chunks FROM term WHERE term = ?", (term,)
            ).fetchone()
            if row is None:
                continue
            pairs = list(unpacked(row[0]))
            most[term] = max(weight for _, weight in pairs)
            for chunk, weight in pairs:
                weights[chunk][term] = weight
        also = {chunk for (chunk,) in self._connection.execute("SELECT chunk FROM also")}
        parts: defaultdict[int, dict[int, Terms]] = defaultdict(dict)
        known: dict[int, Terms] = {}
        for chunk, section in self._connection.execute("SELECT id, section FROM chunk"):
            if chunk in also:
                known[section] = weights.get(chunk, {})
            elif chunk in weights:
                parts[section][chunk] = weights[chunk]
        scored = {
            section: _scored(parts[section], known.get(section, {}), most)
            for section in [*parts, *(section for section in known if known[section])]
        }
        if weigh is not None:
            for section, url in self.rows("SELECT id, url FROM section"):
                if section in scored:
                    score, chunks = scored[section]
                    scored[section] = score * weigh(url), chunks
        best = sorted((each for each in scored if scored[each][0]), key=lambda at: -scored[at][0])
        found: list[Hit] = []
        for section in best[: 3 * CANDIDATES]:
            (hit,) = self._sections("FROM section WHERE id = ?", section)
            score, hit.scores = scored[section]
            hit.score *= score * (API if hit.api else 1.0)
            found.append(hit)
        return sorted(found, key=_best)[:CANDIDATES]

    def named(self, name: str) -> list[Hit]:
        """Entries that define a name: `sqlalchemy.orm.selectinload`, `Session.get`, `get`."""
        return self._sections(
            "FROM name JOIN section ON section.id = name.section WHERE name = ?"
            " ORDER BY prior DESC, length(url), section.id",
            name.lower().removesuffix("()"),
        )

    def parameter(self, section: int, name: str) -> dict[int, float]:
        """The chunk of an entry that says what a parameter is."""
        rows = self._connection.execute(
            "SELECT id FROM chunk WHERE section = ? AND text LIKE ? LIMIT 1",
            (section, f"%**{name}**%"),
        )
        return {chunk: 1.0 for (chunk,) in rows}

    def members(self, name: str) -> list[Hit]:
        """The entries below a class, its constructor first."""
        return self._sections(
            "FROM name JOIN section ON section.id = name.section WHERE name > ? AND name < ?"
            " ORDER BY name <> ?, name LIMIT 12",
            f"{name}.",
            f"{name}/",  # the character after the dot
            f"{name}.__init__",
        )

    def page(self, address: str) -> list[Hit]:
        """The section at an address, or the sections of a page; of any version's site."""
        page, _, anchor = re.sub(r"^https?://[^/]+/(?:en/\w+/)?", "", address).partition("#")
        rest = " AND anchor = ?" if anchor else ""
        return self._sections(
            "FROM section JOIN anchor ON section.id = anchor.section"
            f" WHERE url LIKE ?{rest} GROUP BY section.id ORDER BY section.id LIMIT 40",
            f"%/{page}#%",
            *([anchor] if anchor else []),
        )

    def anchored(self, anchor: str) -> list[Hit]:
        """Sections with an anchor: `error-xd2s`."""
        return self._sections(
            "FROM anchor JOIN section ON section.id = anchor.section WHERE anchor = ?", anchor
        )

    def titles_near(self, query: str, limit: int = 5) -> list[Hit]:
        """Sections whose titles are spelt like a word, or begin like it: for a query that found
        nothing.
        """
        from difflib import get_close_matches

        found: list[Hit] = []
        titles = {
            title.rpartition(".")[2]: title
            for _, title in self.rows("SELECT id, title FROM section")
        }
        for name in re.findall(r"\w{4,}", query)[:3]:
            for close in get_close_matches(name, list(titles), 2, 0.75):
                found += self._sections("FROM section WHERE title = ? LIMIT 1", titles[close])
        for word in re.findall(r"[^\W_]{4,}", query)[:20]:
            found += self._sections(
                "FROM section WHERE title LIKE ? ORDER BY prior DESC, length(title), id LIMIT ?",
                f"%{word[:6]}%",
                limit,
            )
        return list({hit.section: hit for hit in found}.values())[:limit]


def _scored(parts: Mapping[int, Terms], also: Terms, most: Terms) -> tuple[float, dict[int, float]]:
    """What a section's best chunk is worth and a share of the second, and what each of them is.

    The words that a section is known by besides count for each of its chunks, but a chunk is
    second by its own words: a long section does not have the same words twice.
    """
    whole = sum(most.values())

    def value(terms: Terms) -> float:
        share = sum(most[term] for term in terms) / whole
        return sum(terms.values()) * (1 - COVERAGE + COVERAGE * share)

    chunks = {
        chunk: value(own | {term: max(also[term], own.get(term, 0.0)) for term in also})
        for chunk, own in parts.items()
    }
    own = sorted((value(terms) for terms in parts.values()), reverse=True)
    return max(chunks.values(), default=value(also)) + SECOND * sum(own[1:2]), chunks


def _best(hit: Hit) -> tuple[float, str]:
    return -hit.score, hit.url


Searched = list[tuple[Index, Callable[[str], float] | None]]
"""Indexes, the one that was asked for first, each with what its addresses weigh (None: all 1)."""


def find(indexes: Searched, query: str) -> list[Hit]:
    """What answers a query, best first: an address or error codes in it, then words and names."""
    query = _storable(query)
    if address := _ADDRESS.fullmatch(query.strip()):
        return [hit for index, _ in indexes for hit in index.page(address[0])]
    text = _NOISE.sub(" ", _message(query))
    sure: list[Hit] = []
    codes = [match[1] for match in CODE.finditer(query)]
    if _is_only_a_name(text):
        codes.append(text.strip())
    for code in reversed(codes):  # the last one is of the error that was raised in the end
        for index, _ in indexes:
            sure += index.anchored(f"error-{code}")
    hits = sorted(
        (hit for index, weigh in indexes for hit in index.search(text, weigh=weigh)), key=_best
    )
    named = _named(indexes, text, hits)
    if named and _is_only_a_name(text):
        sure += named
    else:
        hits[3:3] = named[1:]
        hits[1:1] = named[:1]
    return _collapsed([*sure, *hits], named)


def _storable(text: str) -> str:
    """Without lone surrogates, which a broken paste has and SQLite does not take."""
    return text.encode("utf-8", "replace").decode()


def _message(query: str) -> str:
    """Of a traceback, the last error and what it says; else all."""
    if "Traceback (most recent call last)" not in query:
        return query
    raised = list(_RAISED.finditer(query))
    return query[raised[-1].start() :] if raised else query


def lookup(indexes: Searched, name: str) -> list[Hit]:
    """The entries of a name, those of the library that was asked for first; of a class with its
    constructor and its members.
    """
    found: list[Hit] = []
    for index, _ in indexes:
        for hit in _by_suffix(index, _storable(name).strip()):
            found.append(hit)
            if hit.api and hit.title.rpartition(".")[2][:1].isupper():
                found += index.members(hit.url.partition("#")[2].lower())
    return list({_key(hit): hit for hit in found}.values())


def _is_only_a_name(text: str) -> bool:
    return len(text.split()) == 1


def _named(indexes: Searched, text: str, hits: list[Hit]) -> list[Hit]:
    """The entries of names that the query holds as code; of several, the one whose text
    answers the rest of the query best.
    """
    names = dict.fromkeys(match[0] for match in _IDENTIFIER.finditer(text))
    if _is_only_a_name(text):
        names.setdefault(text.strip().strip("`'\"").removesuffix("()"))
    rank = {_key(hit): at for at, hit in enumerate(hits)}
    found: list[Hit] = []
    for name in names:
        same = [hit for index, _ in indexes for hit in _by_suffix(index, name)]
        same.sort(key=lambda hit: rank.get(_key(hit), len(rank)))
        found += same[:1]
    return found


def _by_suffix(index: Index, name: str) -> list[Hit]:
    """`AsyncSession.get` if there is one, else `get`: the object in front may be a variable, and
    then the class that is most like it comes first (`op.add_column`: `Operations.add_column`).
    """
    parts = name.removesuffix("()").split(".")[-8:]
    for at in range(len(parts)):
        hits = index.named(".".join(parts[at:]))
        for hit in hits:
            if not _names(hit, parts[-1]):
                hit.scores = index.parameter(hit.section, parts[-1])
        if hits:
            owner = parts[at - 1].replace("_", "").lower() if at else ""
            return sorted(hits, key=lambda hit: (not _names(hit, parts[-1]), _unlike(hit, owner)))
    return []


def _names(hit: Hit, name: str) -> bool:
    """Whether it is the entry of that name, and not of something that has such a parameter."""
    return _last_name(hit).lower() == name.lower()


def _unlike(hit: Hit, owner: str) -> tuple[int, float]:
    """How little the class of an entry is like the object in front of its name."""
    from difflib import SequenceMatcher

    of = hit.title.rpartition(".")[0].lower()
    kind = 0 if of == owner else 1 if of.startswith(owner) else 2 if owner in of else 3
    return kind, -SequenceMatcher(None, of, owner).ratio()


def _collapsed(hits: list[Hit], named: list[Hit]) -> list[Hit]:
    """Each section once; of entries with the same last name (`Session.get`, `scoped_session.get`)
    those in `named`, else the first; the others at the end.
    """
    seen: set[tuple[int, int]] = set()
    asked_for = {_key(hit) for hit in named}
    last_names = {_last_name(hit) for hit in named}
    first: list[Hit] = []
    later: list[Hit] = []
    for hit in hits:
        key = _key(hit)
        if key in seen:
            continue
        seen.add(key)
        if hit.api and _last_name(hit) in last_names and key not in asked_for:
            later.append(hit)
            continue
        if hit.api:
            last_names.add(_last_name(hit))
        first.append(hit)
    return first + later


def _key(hit: Hit) -> tuple[int, int]:
    return id(hit.index), hit.section


def _last_name(hit: Hit) -> str:
    return hit.title.rpartition(".")[2]
