"""Pages of a live Sphinx site, where no archive can be had: few, chosen by the site's search index.

Sites limit what programs may fetch, so it is the index and at most five pages a query.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from . import Section, Unavailable, sphinx
from .words import searched, stem, terms

if TYPE_CHECKING:
    from .transfer import Transfer

PAGES = 5
INDEX_LIMIT, PAGE_LIMIT = 16_000_000, 8_000_000
TITLE = 3.0
"""What a word in a title counts, against one in the text."""
LONGEST_NAME = 500
"""Of a module or class: it stands before each of its objects."""


def pages(query: str, site: str, names: Iterable[str], client: "Transfer") -> list[Section]:
    """The sections of the pages that fit the query best. `names` are the files that may hold the
    search index; `site` ends with a slash.
    """
    index = _search_index(site, names, client)
    found: list[Section] = []
    for page in best_pages(query, index)[:PAGES]:
        url = f"{site}{page}.html"
        html = client.get(url, limit=PAGE_LIMIT, media=("text/html",)).content
        sections, _ = sphinx.sections(html.decode("utf-8", "replace"), page_url=url)
        if not sections:
            raise Unavailable(f"{url}: a page without sections came, not documentation")
        found += sections
    return found


def _search_index(site: str, names: Iterable[str], client: "Transfer") -> Mapping[str, Any]:
    for name in names:
        text = client.get(
            site + name, limit=INDEX_LIMIT, media=("application/", "text/javascript", "text/plain")
        ).content.decode("utf-8", "replace")
        start, end = text.find("{"), text.rfind("}")
        try:
            index: Any = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            index = None
        if not isinstance(index, dict) or "docnames" not in index:
            raise Unavailable(f"{site}{name}: not a search index of Sphinx")
        return cast("Mapping[str, Any]", index)
    raise Unavailable(f"{site} has no search index that is known")


def best_pages(query: str, index: Mapping[str, Any]) -> list[str]:
    """Names of pages, best first, by the words of their titles and texts. Raises `Unavailable` if
    the index is not in the form that Sphinx gives it.
    """
    try:
        return _best_pages(set(searched(query)), index)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Unavailable(f"not a search index of Sphinx: {type(error).__name__}") from error


def _best_pages(words: set[str], index: Mapping[str, Any]) -> list[str]:
    names: list[str] = index["docnames"]
    by_word: defaultdict[str, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for title, places in index.get("alltitles", {}).items():
        for word in words.intersection(terms(title)):
            for place in places:
                by_word[word][place[0]] += TITLE
    for prefix, objects in index.get("objects", {}).items():
        for entry in objects:
            for word in words.intersection(terms(f"{prefix[:LONGEST_NAME]}.{entry[-1]}")):
                by_word[word][entry[0]] += TITLE
    for word, places in index.get("terms", {}).items():
        for page in cast("list[int]", places if isinstance(places, list) else [places]):
            by_word[stem(word)][page] += 1
    scores: defaultdict[int, float] = defaultdict(float)
    for word in words:
        found = by_word[word]
        rarity = math.log(1 + len(names) / (1 + len(found)))
        for page, weight in found.items():
            scores[page] += rarity * min(weight, 2 * TITLE)
    best = sorted(scores.items(), key=lambda each: (-each[1], each[0]))
    # JSON can hold half a character, which no address can.
    return [names[page].encode("utf-8", "replace").decode() for page, _ in best]
