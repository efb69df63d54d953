"""Text to the terms that are indexed and searched: one way for both."""

import re
from collections.abc import Iterator

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|\d+(?:\.\d+)*")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ONE_WORD = {"sqlite", "postgresql", "mysql", "mariadb", "jsonb", "urls", "ids", "pks", "fks"}
"""Written with capitals in the middle, and not made of parts: SQLite is neither SQ nor Lite."""
_DOUBLED = re.compile(r"([bdfgklmnprt])\1$")

_STOP = """
a able about actually after again aiosqlite alembic all already always am an and another any
anybody anyone anything app apparently application apps are as ask asks asyncpg at be been
before best but by can cannot code comes correct could did do does doing don during each else
every everybody everything exactly fastapi for from get gets getting give go goes going gone
got had happen happens has have having here how however i if in inside instead into is isn it
its just keep keeps know later let like ll look looks lot make many may me mean means more
most much my need needs never no now of off old on once one only onto or others our out
outside over own please possible project proper properly psycopg put puts pydantic python
really right s same say says see seem seems several shall should show shows side simply since
so some somebody somehow someone something sqlalchemy sqlmodel still such sure t take takes
tell than that the their them then there these they thing things this those though three
through to too tries try trying two under until up upon us use used uses using ve very via
want wants was way ways we well were what whatever when whenever where whether which while who
why will with without won work works would yet you your yourself
"""
STOP = frozenset(_STOP.split())
"""Not searched for: they say nothing, or each page of the library has them."""


def terms(text: str, stop: frozenset[str] = frozenset()) -> Iterator[str]:
    """The words of a text that are not in `stop`, stemmed; names in code as a whole and by their
    parts.

    `AsyncSession.run_sync` gives asyncsession, async, session, run_sync, run, sync.
    """
    for match in _WORD.finditer(text):
        word = match[0].strip("_")
        lower = word.lower()
        if not word or lower in stop:
            continue
        plain = word.islower() or word.istitle() or word.isupper() or lower in _ONE_WORD
        if plain and lower.isalpha():
            yield stem(lower)
            continue
        yield lower
        if lower[0].isdigit():  # 2.1 is not 2 and 1
            continue
        parts = _PARTS.findall(word)
        if len(parts) > 1:
            yield from (stem(part) for part in map(str.lower, parts) if part not in stop)


def searched(query: str) -> list[str]:
    """The terms of a query, each once, in its order, without the words that say nothing."""
    return list(dict.fromkeys(terms(query, STOP))) or list(dict.fromkeys(terms(query)))


def stem(word: str) -> str:
    """A light stemmer for English: load, loads, loading, loaded are one; so are query, queries."""
    if len(word) < 4 or not word.isascii():
        return word
    if word.endswith(("ies", "ied")) and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("ss", "us", "is", "ias")):
        word = word[:-1]
    if word.endswith("ing") and len(word) > 5:
        word = word[:-3]
    elif word.endswith("ed") and not word.endswith("eed") and len(word) > 4:
        word = word[:-2]
    if word.endswith("er") and len(word) > 5:  # also filtering, as it is filter
        word = word[:-2]
    if len(word) > 3:  # not add, as adding is add; but roll, as rolling is rol
        word = _DOUBLED.sub(r"\1", word)
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return word
