"""reStructuredText to sections: small pages, each with one thing in it."""

import sys
from textwrap import dedent
from types import FrameType

import pytest

from docsearch import Section
from docsearch.rst import clean_inline, sections

PAGE = "https://docs.test/page.html"


def read(text: str, files: dict[str, str] | None = None) -> list[Section]:
    return sections(dedent(text), page_url=PAGE, include=(files or {}).get)


def body(text: str) -> str:
    """The text of the first section of a page with this text below its title."""
    return read("Title\n=====\n\n" + dedent(text))[0].text


def anchor(section: Section) -> str:
    return section.url.removeprefix(PAGE).removeprefix("#")


# -- inline ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("``a  b`` and ``c\nd``", "`a b` and `c d`"),
        ("``a`b``", "`` a`b ``"),
        (":py:class:`~a.b.C` and :meth:`x.y()`", "`C` and `x.y()`"),
        (":class:`list <python:list>`", "`list`"),
        (":class:`a.Range\\\n<a.types.Range>`,", "`a.Range`,"),
        (":ref:`some text <label>` or :ref:`label`", "some text or label"),
        (":ref:`over\nlines<label>`", "over\nlines"),
        (
            "`Connection.close()`, `~Cursor.fetchone` and `!str`",
            "`Connection.close()`, `fetchone` and `str`",
        ),
        (":pep:`675` :samp:`f({x})` :sql:`LISTEN`", "PEP 675 `f(x)` `LISTEN`"),
        ("`link <https://x.test/a>`_, `a page`_, `here`__", "link, a page, here"),
        ("`<https://x.test>`_", "https://x.test"),
        ("``%s``\\ -style \\*args", "`%s`-style *args"),
        ("a note [#f1]_ and [2]_ but a[0]", "a note [#f1] and [2] but a[0]"),
        ("name_ and __init__ and |x| and :a", "name_ and __init__ and |x| and :a"),
        ("one ` tick, `` two", "one ` tick, `` two"),
    ],
)
def test_roles_and_references_are_their_text(source: str, text: str) -> None:
    assert clean_inline(source) == text


def test_names_that_the_page_defines_are_known() -> None:
    text = """\
        Pyre_ is not a_name, this__ is |what|__ and |unknown|.

        .. _pyre: https://x.test
        .. __: https://x.test
        .. |what| replace:: **never** use ``%``
            to merge
        """
    assert body(text) == "Pyre is not a_name, this is **never** use `%` to merge and |unknown|."


# -- titles ------------------------------------------------------------------------


def test_titles_make_sections_their_style_the_level() -> None:
    found = read("""\
        Before.

        ====
        Page
        ====

        Intro.

        Part
        ====

        A.

        Deep one
        ~~~~~~~~
        B.

        Last
        ====

        C.
        """)
    assert [(each.title, each.path, each.url, each.text) for each in found] == [
        ("page.html", (), PAGE, "Before."),
        ("Page", (), f"{PAGE}#page", "Intro."),
        ("Part", ("Page",), f"{PAGE}#part", "A."),
        ("Deep one", ("Page", "Part"), f"{PAGE}#deep-one", "B."),
        ("Last", ("Page",), f"{PAGE}#last", "C."),
    ]


@pytest.mark.parametrize(
    ("title", "shown", "anchor_"),
    [
        ("The `!Connection` class", "The Connection class", "the-connection-class"),
        ("Use :class:`asyncpg.Record`?  Now", "Use asyncpg.Record?  Now", "use-asyncpg-record-now"),
        ("``a_b()`` -- it", "a_b() -- it", "a-b-it"),
        ("1.2 Größe & Übung", "1.2 Größe & Übung", "groe-ubung"),
        ("日本語", "日本語", "id1"),
        ("aiosqlite\\: x", "aiosqlite: x", "aiosqlite-x"),
    ],
)
def test_an_anchor_is_made_as_docutils_does(title: str, shown: str, anchor_: str) -> None:
    (section,) = read(f"{title}\n{'=' * 40}\n\ntext")
    assert (section.title, anchor(section)) == (shown, anchor_)


def test_taken_anchors_are_numbered_with_footnotes_and_nameless_targets() -> None:
    page = "A\n=\n\nx [#]_\n\n.. __: y\n\nSame\n----\n\nx\n\nSame\n----\n\nx\n\nSame\n----\n\nx"
    assert [anchor(each) for each in read(page)] == ["a", "same", "id3", "id4"]


def test_labels_are_anchors_of_what_follows() -> None:
    found = read("""\
        .. _First_Label:

        .. index:: x

        .. _second:

        Page
        ====

        .. _inner:

        Text.

        .. _usage:

        Usage
        -----

        Text.
        """)
    assert [(anchor(each), each.anchors) for each in found] == [
        ("page", ("first-label", "second", "inner")),
        ("usage", ()),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a\n\n-----\n\nb",  # a transition
        "a row\n-----",  # no blank line above it
        "\na long line\n--",
        "::\n\n    Code\n    ----\n",
        "====  ====\na     b\n====  ====\n**Class**\n----------\n1     2\n====  ====",
    ],
)
def test_not_every_line_of_dashes_underlines_a_title(text: str) -> None:
    assert len(read(f"Title\n=====\n\nline\n{text}\n\nafter")) == 1


# -- text --------------------------------------------------------------------------

TABLE = """\
+---+---------+
| a | b       |
+===+=========+
| x | :x:`y\\  |
|   | <z>`, w |
+---+---------+
"""


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            ".. code-block:: python\n   :linenos:\n\n   a\n\n     b\n\nend",
            "```python\na\n\n  b\n```\n\nend",
        ),
        (".. code::\n\n    SELECT\n", "```\nSELECT\n```"),
        (".. code-block:: Python\n\n    ```\n    x", "````python\n```\nx\n````"),
        ("like::\n\n    code\n\n    more\n\nend", "like:\n\n```\ncode\n\nmore\n```\n\nend"),
        ("like ::\n\n    code", "like\n\n```\ncode\n```"),
        ("like\n\n::\n\n    code", "like\n\n```\ncode\n```"),
        (
            "- item::\n\n    code\n\n  more\n\nend",
            "- item:\n\n  ```\n  code\n  ```\n\n  more\n\nend",
        ),
        ("no code::\n\nend", "no code:\n\nend"),
        (">>> 1\n1\n\nend", "```pycon\n>>> 1\n1\n```\n\nend"),
        (".. parsed-literal::\n\n    `!A`\n    \\|__ `B`", "```\nA\n|__ B\n```"),
        (
            ".. note::\n\n   One.\n\n   .. code:: sh\n\n      ls\n",
            "**Note:**\n\nOne.\n\n```sh\nls\n```",
        ),
        (".. Note:: one\n   two ``x``\n\nend", "**Note:**\n\none\ntwo `x`\n\nend"),
        (".. seealso:: :ref:`x <y>`", "**See also:**\n\nx"),
        (".. versionadded:: 0.18", "**Added in version 0.18**"),
        (".. versionchanged:: 3.1\n    Now.", "**Changed in version 3.1**\n\nNow."),
        (".. deprecated:: 2.0 Use x.", "**Deprecated since version 2.0**\n\nUse x."),
        (".. rubric:: Some `x`", "**Some `x`**"),
        (".. describe:: len(r)\n\n   Length.", "`len(r)`\n\nLength."),
        (".. index:: a\n   pair: b; c\n\n.. image:: a.png\n   :alt: b\n\ntext", "text"),
        (".. a comment\n   of two lines\n\n..\n   another\n\ntext", "text"),
        (".. toctree::\n   :maxdepth: 2\n\n   a\n\ntext", "text"),
        (".. unknown:: arg\n   :option: x\n\n   text", "text"),
        (".. [#f1] a\n   note", "[#f1] a note"),
        (
            ":param int size: bytes\n:returns: it\n:raises ValueError: if not\n:other: x",
            "- `size`: bytes\nReturns: it\n- raises `ValueError`: if not\n:other: x",
        ),
        ("* a ``x``\n* b\n\n  * c", "* a `x`\n* b\n\n  * c"),
        ("====  ====\n``a``  b\n====  ====", "`a`  b"),
        (TABLE, "| a | b |\n| --- | --- |\n| x | `y`, w |"),
    ],
)
def test_text_becomes_markdown(source: str, text: str) -> None:
    assert body(source) == text


def test_sections_without_text_are_left_out() -> None:
    assert [each.title for each in read("A\n=\n\n.. image:: x\n\nB\n-\n\nb\n\nC\n-\n")] == ["B"]


def test_windows_line_ends_tabs_and_a_byte_order_mark() -> None:
    (section,) = read("\ufeffA\r\n=\r\n\r\n.. code:: sh\r\n\r\n\tls\r\n\r\nend\r\n")
    assert (section.title, section.text) == ("A", "```sh\nls\n```\n\nend")


def test_directives_nested_without_end_do_not_exhaust_the_stack() -> None:
    deep = "".join(f"{' ' * at}.. note::\n" for at in range(2000))
    assert body(deep + " " * 2000 + "in").startswith("**Note:**")


# -- includes ----------------------------------------------------------------------


def test_files_are_included() -> None:
    files = {"README.rst": "Title\n=====\n\nfrom the file", "a/b.py": "x = 1\n"}
    page = ".. include:: ../README.rst\n\n.. literalinclude:: ./a/b.py\n   :lines: 1\n"
    (section,) = read(page, files)
    assert section.text == "from the file\n\n```python\nx = 1\n```"


def test_a_file_that_is_not_there_is_named() -> None:
    text = ".. include:: ../../no.txt\n\n.. literalinclude:: no.py\n"
    assert body(text) == "(not found: no.txt)\n\n(not found: no.py)"
    assert sections(text, page_url=PAGE)[0].text == "(not found: no.txt)\n\n(not found: no.py)"


def test_a_file_that_includes_itself_ends() -> None:
    reads: list[str] = []

    def include(path: str) -> str:
        reads.append(path)
        return "x\n\n" + ".. include:: a.rst\n" * 500

    assert sections(include(""), page_url=PAGE, include=include)
    assert len(reads) < 300
    chain = sections("x\n\n.. include:: a", page_url=PAGE, include=lambda _: ".. include:: a")
    assert chain[0].text == "x\n\n(not found: a)"


# -- entries of an API -------------------------------------------------------------


def test_entries_are_sections_with_names_and_anchors() -> None:
    found = read("""\
        .. module:: pkg
            :synopsis: x

        Page
        ====

        Intro.

        .. class:: Row(*args)

           A row.

           .. describe:: len(r)

              Length.

           .. method:: values() -> list

              Values.

              .. note:: Lazy.

        After.

        .. currentmodule:: pkg.sql

        .. py:function:: quote(x, /)

           Quotes.
        """)
    assert [(each.title, each.path, anchor(each), each.names) for each in found] == [
        ("Page", (), "page", ()),
        ("Row", ("Page",), "pkg.Row", ("pkg.Row",)),
        ("Row.values", ("Page", "Row"), "pkg.Row.values", ("pkg.Row.values",)),
        ("quote", ("Page",), "pkg.sql.quote", ("pkg.sql.quote",)),
    ]
    assert [each.text for each in found] == [
        "Intro.\n\nAfter.",
        "```python\nRow(*args)\n```\n\nA row.\n\n`len(r)`\n\nLength.",
        "```python\nRow.values() -> list\n```\n\nValues.\n\n**Note:**\n\nLazy.",
        "```python\nquote(x, /)\n```\n\nQuotes.",
    ]
    assert found[0].anchors == ("module-pkg",)


def test_entries_of_autodoc() -> None:
    found = read("""\
        .. currentmodule:: pkg

        Page
        ====

        .. autofunction:: pkg.connection.connect

        .. autoclass:: Connection()
            :members: x

            Text.

            .. automethod:: close

            .. automethod:: Connection.open

            .. autoattribute:: info

                .. _info:

                It informs.

        .. automodule:: pkg.types
            :members:

        .. autoexception:: Broken
        """)
    assert [(anchor(each), each.title, each.text) for each in found] == [
        ("pkg.connection.connect", "connect", ""),
        ("pkg.Connection", "Connection", "Text."),
        ("pkg.Connection.close", "Connection.close", ""),
        ("pkg.Connection.open", "Connection.open", ""),
        ("pkg.Connection.info", "Connection.info", "It informs."),
        ("pkg.types.Broken", "Broken", ""),
    ]
    assert [each.anchors for each in found if each.text] == [(), ("info",)]


def test_several_signatures_and_names_are_one_entry() -> None:
    found = read("""\
        .. module:: p

        .. _label:

        .. method:: C.cursor(a, \\
               b=1) -> X
        .. method:: C.cursor(name)
            :noindex:

            Text.

        .. data::
            NULL
            DEFAULT

            Both.
        """)
    assert [(anchor(each), each.names, each.anchors, each.text) for each in found] == [
        (
            "p.C.cursor",
            ("p.C.cursor",),
            ("module-p", "label"),
            "```python\nC.cursor(a, b=1) -> X\n```\n```python\nC.cursor(name)\n```\n\nText.",
        ),
        ("p.NULL", ("p.NULL", "p.DEFAULT"), ("p.DEFAULT",), "Both."),
    ]


def test_an_entry_that_is_not_in_the_index_leads_to_where_it_stands() -> None:
    (section,) = read("Page\n====\n\n.. function:: f(x)\n   :no-index:\n\n   Text.")
    assert (section.title, anchor(section), section.names) == ("f", "page", ("f",))


# -- cost --------------------------------------------------------------------------


def calls(text: str) -> int:
    """How many functions reading this text calls, those in C included."""
    count = 0

    def profile(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        sections(text, page_url=PAGE)
    finally:
        sys.setprofile(before)
    return count


HOSTILE = [
    *("a", "`", "``", ":a:`", "a_", "|a", "\\", "a\n=\n\n", "- ", ".. a:: ", ".. _a:\n", "::\n\n "),
    *(".. class:: A\n\n", "+-", "+-+\n|\n", ".. note::\n", ".. |a| replace:: b\n", "[#a]_ "),
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_work_grows_no_faster_than_the_text(unit: str) -> None:
    calls(unit * 10)  # fills the cache of re
    assert calls(unit * (20_000 // len(unit))) < 6 * calls(unit * (5_000 // len(unit)))


def test_a_line_of_a_megabyte_is_read() -> None:
    assert (
        body("word ``code`` :class:`~a.B` name_ " * 30_000)
        == ("word `code` `B` name_ " * 30_000).strip()
    )
