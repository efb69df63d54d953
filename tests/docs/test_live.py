"""The search index of a live Sphinx site: which pages it gives, and what a strange one does."""

import json
from typing import Any

import pytest

from docsearch import Unavailable
from docsearch.live import best_pages, pages
from docsearch.transfer import Transfer

from .server import Answer, Internet

INDEX: dict[str, Any] = {
    "docnames": ["intro", "batch", "ops"],
    "alltitles": {"Batch mode": [[1, "batch"]]},
    "objects": {"alembic.op": [[2, 0, 1, "", "add_column"]]},
    "terms": {"batch": [0, 1], "column": 2},
}


def test_pages_by_titles_objects_and_words() -> None:
    assert best_pages("batch mode", INDEX) == ["batch", "intro"]
    assert best_pages("add_column", INDEX) == ["ops"]
    assert best_pages("unrelated", INDEX) == []


STRANGE: list[dict[str, Any]] = [
    {"docnames": 5},
    {"docnames": [1, 2, 3]},
    {"docnames": []},
    {"alltitles": []},
    {"alltitles": {"batch": [[5]]}},
    {"alltitles": {"batch": [["x"]]}},
    {"alltitles": {"batch": [{}]}},
    {"alltitles": {"batch": [[[]]]}},
    {"objects": {"batch": [1]}},
    {"objects": {"x": [[]]}},
    {"terms": {"batch": {}}},
    {"terms": {"batch": "x"}},
    {"terms": {"batch": [1, "x"]}},
]


@pytest.mark.parametrize("strange", STRANGE, ids=str)
def test_an_index_in_another_form_is_none(strange: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match="not a search index of Sphinx"):
        best_pages("batch", INDEX | strange)


def test_half_a_character_is_none() -> None:
    assert best_pages("batch", INDEX | {"docnames": ["a", "b\ud800", "c"]}) == ["b?", "a"]


@pytest.mark.parametrize(
    "content", [b"[" * 9, b'{"a":' + b"[" * 200_000 + b"}", json.dumps({"a": 1}).encode()]
)
def test_what_is_no_index_is_named(online: Internet, content: bytes) -> None:
    online.route("s.test", "/s.js", Answer(body=content, headers={"Content-Type": "text/plain"}))
    with pytest.raises(Unavailable, match=r"^https://s\.test/s\.js: not a search index of Sphinx"):
        pages("batch", "https://s.test/", ["s.js"], Transfer(frozenset({"s.test"}), say=print))


def test_a_title_with_many_words_and_places() -> None:
    """Only its words in the query are counted: of the product, nobody would see the end."""
    title = " ".join(f"w{number}" for number in range(100_000))
    index = INDEX | {"alltitles": {title: [[1]] * 200_000}}
    assert best_pages("w77", index) == ["batch"]


def test_a_module_with_a_long_name_and_many_objects() -> None:
    index = INDEX | {"objects": {"a." * 500_000: [[2, 0, 1, "", "drop"]] * 10_000}}
    assert best_pages("drop", index) == ["ops"]
