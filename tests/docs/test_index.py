"""Text to terms, sections to an index, a query to what answers it."""

import re
import sqlite3
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docsearch import Section
from docsearch.index import CHUNK, FORMAT, build, chunks, tokens, unclosed
from docsearch.search import Hit, Index, find, lookup
from docsearch.words import STOP, searched, stem, terms

META = {"format": str(FORMAT), "library": "lib", "version": "1.0"}
URL = "https://docs.example"

Make = Callable[..., Index]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Builds an index of the sections that it is given, and opens it."""
    opened: list[Index] = []

    def make(*sections: Section, **options: Any) -> Index:
        file = tmp_path / f"{len(opened)}.sqlite"
        build(file, sections, META, **options)
        opened.append(Index(file))
        return opened[-1]

    yield make
    for index in opened:
        index.close()


def prose(title: str, text: str, *path: str, page: str = "page", **more: Any) -> Section:
    anchor = re.sub(r"\W+", "-", title.lower())
    return Section(title, path, f"{URL}/{page}.html#{anchor}", text, **more)


def api(name: str, text: str) -> Section:
    title = ".".join(name.split(".")[1:])
    return Section(title, (), f"{URL}/api.html#{name}", f"{title}()\n\n{text}", names=(name,))


def ask(index: Index, query: str) -> list[str]:
    return [hit.title for hit in find([(index, None)], query)]


def titles(hits: Sequence[Hit]) -> list[str]:
    return [hit.title for hit in hits]


# -- words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forms",
    [
        "query queries querying queried",
        "load loads loading loaded loader",
        "commit commits committing committed",
        "class classes",
        "add adds adding added",
        "call calls calling called",
        "filter filters filtering filtered",
        "alias aliases aliased",
        "roll rolls rolling rolled",
        "apply applies applying applied",
        "map maps mapping mapped mapper",
        "cache caches caching cached",
        "expire expires expiring expired",
        "exceed exceeds exceeding exceeded",
        "index indexes indexing indexed",
        "process processes processing processed",
        "refresh refreshes refreshing refreshed",
        "status statuses",
    ],
)
def test_the_forms_of_a_word_are_one_term(forms: str) -> None:
    assert len({stem(form) for form in forms.split()}) == 1


def test_words_that_differ_are_different_terms() -> None:
    words = (
        "session select selection insert update delete class close flush fetch row role rollback"
    )
    words += " commit column collection relation relationship table type key async sync pool poll"
    words += " single string stream schema server"
    assert len({stem(word) for word in words.split()}) == len(words.split())


def test_a_name_is_a_term_as_a_whole_and_by_its_parts() -> None:
    assert list(terms("AsyncSession.run_sync")) == [
        "asyncsession",
        "async",
        "session",
        "run_sync",
        "run",
        "sync",
    ]
    assert {"http", "2.1.9", "init"} <= set(terms("HTTPServer 2.1.9 __init__"))


@pytest.mark.parametrize("name", ["SQLite", "PostgreSQL", "MySQL", "MariaDB", "JSONB", "URLs"])
def test_a_name_that_is_not_made_of_parts_is_one_term(name: str) -> None:
    assert list(terms(name)) == [stem(name.lower())]


def test_a_version_is_one_term() -> None:
    assert list(terms("from 1.4 to 2.1")) == ["from", "1.4", "to", "2.1"]


@settings(deadline=None)
@given(st.text())
def test_a_query_is_read_as_a_text_is(text: str) -> None:
    assert set(searched(text)) <= set(terms(text))
    assert set(terms(text)) == set(terms(text.swapcase().swapcase())) or not text.isascii()


def test_a_query_has_each_term_once_and_none_that_says_nothing() -> None:
    assert searched("How do I load the session when loading a Session?") == ["load", "session"]
    assert not {"how", "the", "sqlalchemy"} & set(searched("how the sqlalchemy pool"))


def test_a_word_is_not_dropped_because_its_stem_says_nothing() -> None:
    assert {"work", "works"} <= STOP
    assert searched("how do workers start") == [stem("workers"), stem("start")]


def test_a_query_of_words_that_say_nothing_is_searched_for_them() -> None:
    assert searched("how to use it") == ["how", "to", "use", "it"]
    assert searched("?!") == []


# -- chunks ------------------------------------------------------------------------


def paragraph(words: int, word: str = "word") -> str:
    return " ".join([word] * words)


def test_a_short_text_is_one_chunk() -> None:
    assert chunks("One.\n\nTwo.\n\n```\ncode\n\ncode\n```") == [
        "One.\n\nTwo.\n\n```\ncode\n\ncode\n```"
    ]
    assert chunks("") == []


def test_a_text_is_cut_between_blocks() -> None:
    blocks = [paragraph(150, word) for word in ("first", "second", "third", "fourth")]
    pieces = chunks("\n\n".join(blocks))
    assert len(pieces) > 1
    assert "\n\n".join(pieces) == "\n\n".join(blocks)
    assert [block for piece in pieces for block in piece.split("\n\n")] == blocks
    assert max(map(tokens, pieces)) <= CHUNK


@pytest.mark.parametrize("mark", ["```", "````", "~~~"])
def test_a_fence_is_whole_whatever_its_size(mark: str) -> None:
    inner = "```" if mark != "```" else "~~~"
    code = "\n\n".join(f"x{number} = {'y' * 80}" for number in range(60))
    fence = f"{mark}python\n{code}\n\n{inner}\n{mark}"
    assert tokens(fence) > 2 * CHUNK
    pieces = chunks(f"{paragraph(40)}\n{fence}\n{paragraph(300)}")
    assert [piece for piece in pieces if fence in piece]
    assert not any(unclosed(piece) for piece in pieces)


def test_a_fence_that_is_not_closed_is() -> None:
    assert chunks("Text.\n\n~~~~py\nx\n\n~~~\ny") == ["Text.\n\n~~~~py\nx\n\n~~~\ny\n~~~~"]


def test_code_within_a_line_is_not_a_fence() -> None:
    text = f"```x``` is code.\n\n{paragraph(400)}\n\nEnd."
    assert "`" * 3 not in chunks(text)[-1]
    assert unclosed("```x``` is code") == ""


def test_a_line_of_backticks_is_read_once() -> None:
    """Of the square of three million, nobody would see the end."""
    assert unclosed("`" * 3_000_000 + "a`") == ""


@pytest.mark.parametrize(
    "long",
    [
        "\n".join(f"- item {number} {paragraph(8)}" for number in range(100)),
        " ".join(f"Sentence {number} {paragraph(8)}." for number in range(100)),
    ],
    ids=["list", "paragraph"],
)
@pytest.mark.parametrize("place", ["{}", "{}\n\nEnd.", "Begin.\n\n{}"])
def test_a_block_that_is_too_long_is_cut_at_lines_or_sentences(long: str, place: str) -> None:
    pieces = chunks(place.format(long))
    assert max(map(tokens, pieces)) < 1.1 * CHUNK
    assert all(re.match(r"- item|Sentence|Begin|End", piece) for piece in pieces)


_LINE = st.sampled_from(
    [
        "",
        "",
        "```",
        "```python",
        "````",
        "~~~",
        "- item",
        "Text. More `x`. ",
        "  deep",
        "word " * 300,
    ]
)


@settings(deadline=None)
@given(st.lists(_LINE, max_size=30).map("\n".join))
def test_nothing_of_a_text_is_lost(text: str) -> None:
    pieces = chunks(text)
    kept = "\n".join(pieces).split()
    assert kept[: len(text.split())] == text.split()
    assert not set("".join(kept[len(text.split()) :])) - set("`~")  # the end of a fence
    assert not any(unclosed(piece) for piece in pieces)


# -- the file ----------------------------------------------------------------------


def test_each_chunk_is_found_by_its_words_alone(make: Make) -> None:
    """Numbers and weights come out of the packed bytes as they went in."""
    names = [f"{a}{b}{c}q" for a in "abcdefg" for b in string.ascii_lowercase for c in "xyz"]
    index = make(*(prose(f"T{name}", f"{name} common") for name in names))
    for name in names[::20]:
        assert titles(index.search(name)) == [f"T{name}"]
    assert all(score > 0 for hit in index.search("common") for score in hit.scores.values())
    assert len(index.search(names[0])[0].scores) == 1


def test_an_index_holds_its_sections(make: Make) -> None:
    long = "\n\n".join(paragraph(250, word) for word in ("alpha", "beta", "gamma"))
    done: list[float] = []
    index = make(prose("Short", "x"), prose("Long", long, "Page", "Part"), progress=done.append)
    (hit,) = index.search("beta")
    assert (hit.title, hit.path, hit.url) == ("Long", ("Page", "Part"), f"{URL}/page.html#long")
    assert "\n\n".join(text for _, text in hit.texts()) == long
    assert [text for number, text in hit.texts() if number in hit.scores] == [
        text for _, text in hit.texts() if "beta" in text
    ]
    assert index.meta == META
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_an_index_of_nothing_finds_nothing(make: Make) -> None:
    assert ask(make(), "anything at all") == []


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "x", [], {**META, "format": str(FORMAT + 1)})
    with pytest.raises(ValueError, match=f"{FORMAT + 1}, not {FORMAT}"):
        Index(tmp_path / "x")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "gone", "other"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "x"
    build(file, [prose(f"T{number}", paragraph(99)) for number in range(99)], META)
    whole = file.read_bytes()
    if damage == "other":
        file.unlink()
        sqlite3.connect(file).execute("CREATE TABLE meta (other TEXT)").connection.close()
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "text": b"<html>", "cut": whole[:-5000]}[damage])
    with pytest.raises((sqlite3.Error, ValueError)):
        Index(file)


def test_reading_changes_nothing(make: Make, tmp_path: Path) -> None:
    index = make(prose("A", "words"))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        index.rows("DELETE FROM chunk RETURNING id, text")
    assert [file.name for file in tmp_path.iterdir()] == ["0.sqlite"]


def test_no_extension_of_sqlite_is_needed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some Pythons come without FTS5: no virtual table, no function that others may lack."""
    connect = sqlite3.connect
    denied: list[str] = []
    seen: set[int] = set()

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        seen.add(action)
        plain = action != sqlite3.SQLITE_FUNCTION or second in {"length", "like"}
        if action != sqlite3.SQLITE_CREATE_VTABLE and plain:
            return sqlite3.SQLITE_OK
        denied.append(f"{first} {second}")
        return sqlite3.SQLITE_DENY

    def guarded(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_authorizer(authorize)
        return connection

    monkeypatch.setattr(sqlite3, "connect", guarded)
    index = make(prose("A", "words"), api("lib.b", "words"))
    assert ask(index, "words") != []
    assert titles(lookup([(index, None)], "lib.b")) == ["b"]
    assert titles(index.titles_near("a title: wordless b")) == []
    assert sqlite3.SQLITE_CREATE_TABLE in seen
    assert denied == []
    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
        guarded(":memory:").execute("CREATE VIRTUAL TABLE t USING fts5(x)")


# -- the search ----------------------------------------------------------------------


FILLER = [prose(f"Filler{c}", paragraph(20, f"filler{c}")) for c in string.ascii_lowercase[:20]]


def test_all_words_of_a_query_go_before_one_of_them_often(make: Make) -> None:
    index = make(
        prose("Often", paragraph(30, "greenlet")),
        prose("All", "A greenlet spawn was not called in this context of asyncio."),
        *FILLER,
    )
    assert ask(index, "greenlet spawn asyncio")[:2] == ["All", "Often"]


def test_a_word_of_the_title_goes_before_one_of_the_text(make: Make) -> None:
    index = make(
        prose("About pools", "The savepoint is one thing among these many others here."),
        prose("Savepoint", "It is one thing among these many others here, about pools."),
        *FILLER,
    )
    assert ask(index, "savepoint")[0] == "Savepoint"


def test_a_section_is_found_by_other_words_that_it_is_known_by(make: Make) -> None:
    index = make(prose("A", "text", also=("limit of size overflow reached",)), *FILLER)
    assert ask(index, "overflow reached") == ["A"]


def test_a_prior_makes_a_section_go_last(make: Make) -> None:
    sections = prose("Old", "words", page="a"), prose("New", "words", page="b")

    def prior(section: Section) -> float:
        return 0.5 if section.title == "Old" else 1.0

    index = make(*sections, prior=prior)
    assert ask(index, "words") == ["New", "Old"]


def test_the_second_chunk_of_a_section_is_no_second_hit(make: Make) -> None:
    long = "\n\n".join(paragraph(250, word) for word in ("alpha", "alpha", "alpha"))
    assert ask(make(prose("Long", long), *FILLER), "alpha") == ["Long"]


PASTED = """Traceback (most recent call last):
  File "/srv/app/main.py", line 12, in read
    heroes = await session.scalars(select(Filler))
             ^^^^^^^^^^^^^^^^^^^^^
sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 10 reached{}
[SQL: SELECT fillera.id, fillerb FROM fillerc WHERE fillerd = ?]
[parameters: ('fillere', [1, 2])]
(Background on this error at: https://sqlalche.me/e/21/3o7r)
"""


@pytest.mark.parametrize(
    "query",
    [
        "https://sqlalche.me/e/21/3o7r",
        "(Background on this error at: https://sqlalche.me/e/20/3o7r)",
        "why https://sqlalche.me/e/14/3o7r when I fillera fillerb",
        PASTED.format(""),
        PASTED.format(", connection timed out").replace("\n", " "),
    ],
)
def test_the_code_of_an_error_gives_its_section(make: Make, query: str) -> None:
    errors = prose("Errors", "Words on fillera.", anchors=("error-3o7r", "error-xd2s"))
    index = make(*FILLER, errors, prose("QueuePool", "QueuePool limit of size overflow reached"))
    assert ask(index, query)[0] == "Errors"


def test_the_message_of_a_traceback_is_what_is_searched(make: Make) -> None:
    index = make(*FILLER, prose("Pools", "QueuePool limit of size overflow reached"))
    assert ask(index, PASTED.format("")) == ["Pools"]


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_statement_that_an_error_quotes_is_not_searched(make: Make, quote: str) -> None:
    index = make(*FILLER, prose("Strings", "ObjectNotExecutableError"), prose("Names", "account"))
    error = "ObjectNotExecutableError: Not an executable object: 'SELECT * FROM account'"
    assert ask(index, error.replace("'", quote)) == ["Strings"]


ENTRIES = [
    api("lib.Session.execute", "Runs a statement."),
    api("lib.Session.get", "One by its key."),
    api("lib.scoped_session.execute", "Runs a statement in a scoped session, a statement it runs."),
    api("lib.Connection.execute", "Runs a statement on a connection."),
    api("lib.selectinload", "Loads a collection eagerly."),
]
PROSE = [
    prose("Eager loading", "With selectinload, selectinload and selectinload a collection."),
    prose("Statements", "How to execute a statement: session.execute, Session.execute, execute."),
]


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("selectinload", "selectinload"),
        ("selectinload()", "selectinload"),
        ("`selectinload`", "selectinload"),
        ("lib.selectinload", "selectinload"),
        ("Session.execute", "Session.execute"),
        ("session.execute", "Session.execute"),
        ("Connection.execute", "Connection.execute"),
        ("db_session.get", "Session.get"),
    ],
)
def test_a_name_alone_gives_its_entry_first(make: Make, query: str, title: str) -> None:
    assert ask(make(*PROSE, *ENTRIES, *FILLER), query)[0] == title


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("how to run a statement with Session.execute", "Session.execute"),
        ("how to run a statement with Connection.execute", "Connection.execute"),
        ("does selectinload() work with a collection", "selectinload"),
        ("await my_session.get(Hero, 1) gives nothing", "Session.get"),
        ("fillera fillerb fillerc and lib.selectinload", "selectinload"),
    ],
)
def test_a_name_in_a_question_gives_its_entry_among_the_first_two(
    make: Make, query: str, title: str
) -> None:
    assert title in ask(make(*PROSE, *ENTRIES, *FILLER), query)[:2]


def test_of_entries_with_the_same_last_name_one_is_among_the_first(make: Make) -> None:
    weak = prose("Weak", f"{paragraph(250)} statement")
    index = make(*PROSE, *ENTRIES, weak, *FILLER)
    same = {"Session.execute", "scoped_session.execute", "Connection.execute"}
    for query in ("execute a statement", "execute a statement with Session.execute"):
        found = ask(index, query)
        assert len(found) == len(set(found))
        assert same <= set(found)
        assert len(same.intersection(found[: found.index("Weak")])) == 1


def test_two_names_that_are_both_asked_for_are_both_given(make: Make) -> None:
    found = ask(make(*PROSE, *ENTRIES, *FILLER), "Session.execute or Connection.execute, which one")
    assert {"Session.execute", "Connection.execute"} <= set(found[:3])


def test_of_several_names_one_goes_before_prose(make: Make) -> None:
    prose_of_all = [
        prose(f"Prose{number}", "Session.execute or Session.get, which for a row?")
        for number in range(3)
    ]
    found = ask(make(*prose_of_all, *ENTRIES, *FILLER), "Session.execute or Session.get for a row")
    assert found[1] in {"Session.execute", "Session.get"}
    assert {found[0], found[2], found[3]} == {"Prose0", "Prose1", "Prose2"}
    assert found[4] in {"Session.execute", "Session.get"}


def test_a_lookup_gives_the_entries_of_a_name(make: Make) -> None:
    index = make(*PROSE, *ENTRIES)
    assert titles(lookup([(index, None)], "lib.Session.get")) == ["Session.get"]
    assert titles(lookup([(index, None)], " anything.GET() ")) == ["Session.get"]
    assert set(titles(lookup([(index, None)], "execute"))) == {
        "Session.execute",
        "scoped_session.execute",
        "Connection.execute",
    }
    assert lookup([(index, None)], "statement") == []


def parameters(name: str, *params: str) -> Section:
    section = api(name, "\n".join(f"- **{each}** - what {each} does." for each in params))
    section.anchors = tuple(f"{name}.params.{each}" for each in params)
    return section


def test_a_parameter_leads_to_what_has_it(make: Make) -> None:
    filling = [f"p_{number}" for number in range(300)]
    index = make(*ENTRIES, parameters("lib.Engine.__init__", *filling, "pool_size"), *FILLER)
    for name in ("Engine.pool_size", "lib.Engine.pool_size", "pool_size"):
        (hit,) = lookup([(index, None)], name)
        assert hit.title == "Engine.__init__"
        (chunk,) = hit.scores
        assert "**pool_size**" in dict(hit.texts())[chunk]


def test_a_class_comes_with_its_constructor_and_members(make: Make) -> None:
    index = make(
        *ENTRIES, api("lib.Session", "A session."), api("lib.Session.__init__", "Makes one.")
    )
    assert titles(lookup([(index, None)], "Session")) == [
        *("Session", "Session.__init__", "Session.execute", "Session.get")
    ]


def test_the_class_that_is_most_like_what_stands_before_the_name_is_first(make: Make) -> None:
    entries = [api(f"lib.{name}.drop", "Drops.") for name in ("BatchOps", "Operations", "Table")]
    index = make(*entries, *FILLER)
    for name, title in {"op": "Operations", "batch_op": "BatchOps", "Tabel": "Table"}.items():
        assert lookup([(index, None)], f"{name}.drop")[0].title == f"{title}.drop"


def test_an_address_gives_its_section(make: Make) -> None:
    index = make(*PROSE, *ENTRIES, prose("Eager loading", "Elsewhere.", page="other"))
    for address in (f"{URL}/page.html#eager-loading", "page.html#eager-loading"):
        assert [hit.url for hit in find([(index, None)], address)] == [
            f"{URL}/page.html#eager-loading"
        ]
    assert ask(index, f"{URL}/page.html") == ["Eager loading", "Statements"]
    assert ask(index, f"{URL}/no.html#eager-loading") == []


def test_a_code_alone_and_the_last_of_two(make: Make) -> None:
    errors = [
        prose(title, "An error.", page="errors", anchors=(f"error-{code}",))
        for title, code in (("Cause", "gkpj"), ("Raised", "7s2a"))
    ]
    index = make(*errors, *FILLER)
    assert ask(index, "7s2a") == ["Raised"]
    links = "see https://sqlalche.me/e/21/gkpj and then https://sqlalche.me/e/21/7s2a"
    assert ask(index, links)[:2] == ["Raised", "Cause"]


def test_words_that_are_spelt_almost_right_are_near(make: Make) -> None:
    index = make(*PROSE, *ENTRIES, *FILLER)
    assert titles(index.titles_near("selectinlaod"))[0] == "selectinload"


def test_several_indexes_are_searched_as_one(make: Make) -> None:
    one = make(prose("One", "alpha"), *FILLER)
    two = make(prose("Two", "alpha alpha"), *ENTRIES, *FILLER)
    hits = find([(one, None), (two, None)], "alpha")
    assert {(hit.index, hit.title) for hit in hits} == {(one, "One"), (two, "Two")}
    assert find([(one, None), (two, None)], "Session.get")[0].index is two


def test_pages_that_are_not_wanted_take_no_place_from_those_that_are(make: Make) -> None:
    """Also where a thousand others match better."""
    others = [prose(f"Alpha {number}", "alpha") for number in range(1000)]
    index = make(*others, prose("Wanted", f"{paragraph(90, 'beta')} alpha", page="asyncio"))
    hits = find([(index, lambda url: "/asyncio" in url)], "alpha")
    assert titles(hits) == ["Wanted"]
    assert "Wanted" not in ask(index, "alpha")


def test_nothing_is_found_and_what_is_near(make: Make) -> None:
    index = make(*PROSE, *ENTRIES)
    assert ask(index, "zebra giraffe") == []
    assert "selectinload" in titles(index.titles_near("selectinlod selectinloading"))
    near = index.titles_near("session sessions sessionmaker statement", limit=9)
    assert len({hit.section for hit in near}) == len(near) == 4
    assert index.titles_near("a % _ '") == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        "?",
        "%",
        "_",
        "'",
        '"; DROP TABLE chunk; --',
        "\0",
        "z\0q",
        "\ud800",
        "x \udcff.y",
        "(((",
        "zq." * 50_000,
        "z" * 100_000,
        "_" * 100_000,
        "Z" * 100_000,
        "zQ" * 50_000,
        "[SQL: " * 20_000,
        'File "' * 20_000,
        "code " * 20_000,
        "sqlalche.me/e/" * 10_000,
        " ".join(f"word{number}.name{number}" for number in range(7_000)),
    ],
    ids=lambda query: repr(query)[:12],
)
def test_a_strange_query_finds_nothing_and_ends(make: Make, query: str) -> None:
    index = make(*PROSE, *ENTRIES)
    assert ask(index, query) == []
    assert lookup([(index, None)], query) == []
    assert index.titles_near(query) == []
    assert "Eager loading" in ask(index, f"collection {query}")
