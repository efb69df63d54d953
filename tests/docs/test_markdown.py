"""MkDocs' Markdown and search indexes to sections: small pages, each with one thing in it."""

import json
import sys
from collections.abc import Callable
from textwrap import dedent
from types import FrameType

import pytest

from docsearch import Section, Unavailable
from docsearch.markdown import page_path, resolve, sections
from docsearch.site_index import from_search_index

FILES = {
    "docs_src/a.py": "one\ntwo\nthree\nfour\nfive\n",
    "docs_src/page.html": "<p>\n",
    "docs_src/ticks.py": '"""\n```\nx\n```\n"""',
    "docs_src/end.py": "x\n```",
    "docs_src/crlf.py": "one\r\ntwo\r\n",
    "docs_src/feed.py": "one\n\x0c\nthree",
    "secret.py": "secret",
}
PAGE = "https://docs.test/page/"


def read(text: str) -> list[Section]:
    return sections(dedent(text), page_url=PAGE)


def body(text: str) -> str:
    """The text of a page that is one section."""
    (section,) = read(text)
    return section.text


def anchors(text: str) -> list[str]:
    return [section.url.partition("#")[2] for section in read(text)]


# -- includes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "code"),
    [
        ("{* ../../docs_src/a.py *}", "one\ntwo\nthree\nfour\nfive"),
        ("{* ./docs_src/a.py ln[2:3] hl[3] *}", "two\nthree"),
        ('{* docs_src/a.py hl[1] title["app/a.py"] ln[1:2,5] *}', "one\ntwo\n...\nfive"),
        ("{* docs_src/a.py ln[0] *}", "one\ntwo\nthree\nfour\nfive"),
        ("{* docs_src/a.py ln[4:] *}", "four\nfive"),
        ("{* docs_src/a.py ln[4:900000] *}", "four\nfive"),
        ("{* docs_src/a.py ln[x] *}", "one\ntwo\nthree\nfour\nfive"),
        ("{* docs_src/a.py ln[9] *}", "one\ntwo\nthree\nfour\nfive"),
        ("{!> ../../../docs_src/a.py !}", "one\ntwo\nthree\nfour\nfive"),
        ("{!../../docs_src/a.py!}", "one\ntwo\nthree\nfour\nfive"),
        ("{!./docs_src/a.py[ln:4-5]!}", "four\nfive"),
        ("{!> docs_src/a.py[ln:1,3]!}", "one\n...\nthree"),
        ("{* docs_src/crlf.py *}", "one\ntwo"),
        ("{* docs_src/feed.py ln[3] *}", "three"),
    ],
)
def test_an_include_is_replaced_by_the_lines_that_it_names(include: str, code: str) -> None:
    assert resolve(f"a\n\n{include}\n\nb", FILES.get) == f"a\n\n```python\n{code}\n```\n\nb"


def test_within_a_fence_only_the_line_of_the_include_is_replaced() -> None:
    page = "```Python hl_lines='1'\n# Code above\n{!> ../docs_src/a.py[ln:1]!}\n```"
    assert resolve(page, FILES.get) == "```Python hl_lines='1'\n# Code above\none\n```"
    listed = "- ```\n  {! docs_src/page.html !}\n  ```\n{* docs_src/page.html *}"
    assert resolve(listed, FILES.get) == "- ```\n  <p>\n  ```\n```html\n<p>\n```"


def test_an_include_keeps_its_indent() -> None:
    assert resolve("    {* docs_src/a.py ln[1] *}", FILES.get) == (
        "    ```python\n    one\n    ```"
    )


def test_code_with_a_fence_in_it_gets_a_longer_one() -> None:
    code = FILES["docs_src/ticks.py"]
    assert resolve("{* docs_src/ticks.py *}", FILES.get) == f"````python\n{code}\n````"
    assert resolve("```\n{! docs_src/ticks.py !}\n```", FILES.get) == f"````\n{code}\n````"
    assert resolve("```\n{! docs_src/ticks.py !}", FILES.get) == f"````\n{code}"
    assert resolve("```\n{! docs_src/end.py !}", FILES.get) == "````\nx\n```"
    assert body(resolve("# T\n\n{* docs_src/ticks.py *}\n\nend", FILES.get)).endswith("````\n\nend")


@pytest.mark.parametrize(
    "path",
    [
        "docs_src/none.py",
        "docs_src/../../secret.py",
        "docs_src/../../../etc/passwd",
        "/etc/passwd",
        "../../../../etc/passwd",
        "..",
        "docs_src\\..\\secret.py",
        "C:/secret.py",
        "https://docs.test/x.py",
    ],
)
def test_what_is_not_in_the_repository_is_not_read(path: str) -> None:
    asked: list[str] = []

    def read(name: str) -> str | None:
        asked.append(name)
        return FILES.get(name)

    shown = path.removeprefix("../../../../")
    assert resolve(f"{{* {path} *}}", read) == f"(example not found: {shown})"
    assert resolve(f"```\n{{!> {path} !}}\n```", read) == f"```\n(example not found: {shown})\n```"
    assert set(asked) <= {"docs_src/none.py", "etc/passwd"}


def test_text_that_only_looks_like_an_include_stays() -> None:
    page = 'data = {**note.dict(), "id": 1}\n{*}\n{!}\n{# x #}\nread {* docs_src/a.py *} here'
    assert resolve(page, FILES.get) == page


def test_a_page_cannot_include_without_end() -> None:
    reads: list[str] = []

    def large(name: str) -> str:
        reads.append(name)
        return "x" * 900_000

    page = resolve("{* docs_src/a.py *}\n" * 100, large)
    assert len(reads) == 3
    assert page.count("(example left out, the page includes too much: docs_src/a.py)") == 97


# -- sections ----------------------------------------------------------------------


def test_sections_have_titles_above_them_and_anchors() -> None:
    found = read("""\
        # Page

        Intro.

        ## First `part`

        A.

        ### Deep

        B.

        Second
        ------

        C.
        """)
    assert [(each.title, each.path, each.url, each.text) for each in found] == [
        ("Page", (), f"{PAGE}#page", "Intro."),
        ("First part", ("Page",), f"{PAGE}#first-part", "A."),
        ("Deep", ("Page", "First part"), f"{PAGE}#deep", "B."),
        ("Second", ("Page",), f"{PAGE}#second", "C."),
    ]


def test_text_above_the_first_heading_has_the_name_of_the_page() -> None:
    found = sections("before\n\n# A\n\na", page_url="x/skill.md")
    assert [(each.title, each.path) for each in found] == [("skill.md", ()), ("A", ())]


def test_headings_without_text_are_left_out_but_stand_in_the_path() -> None:
    found = read("# A\n\n## B\n\n![logo](x.png)\n\n### C\n\n```\ncode\n```\n")
    assert [(each.title, each.path) for each in found] == [("C", ("A", "B"))]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Own { #other.id }", "other.id"),
        ("Own {#other}", "other"),
        ("Own {: #other .cls }", "other"),
        ("Class {.cls}", "class"),
        ("To `async` or not?", "to-async-or-not"),
        ("**FastAPI** &amp; *friends*", "fastapi-friends"),
        ("`a_b` -- __init__", "a_b-init"),
        ("About `request.state`", "about-requeststate"),
        ("Use [a link](x.md#y){.internal-link} <abbr title='x'>ABC</abbr>", "use-a-link-abc"),
        ("Über naïve Größe", "uber-naive-groe"),
        ("日本語", "_1"),
        ("{ }", "_1"),
        ("/users/{user_id}", "usersuser_id"),
        ("`{x=1}`", "x1"),
    ],
)
def test_an_anchor_is_given_or_made_of_the_title(heading: str, anchor: str) -> None:
    assert anchors(f"## {heading}\n\ntext") == [anchor]


def test_taken_anchors_are_numbered_those_that_are_given_come_first() -> None:
    titles = ["Same", "Same", "Same_1", "Other", "Same", "日本", "日本", "X { #other }"]
    assert anchors("\n\n".join(f"# {title}\n\ntext" for title in titles)) == [
        "same", "same_1", "same_2", "other_1", "same_3", "_1", "_2", "other",
    ]  # fmt: skip


def test_a_title_is_plain_text() -> None:
    (section,) = read("# Use `Depends` with **`yield`** { #x }\n\ntext")
    assert section.title == "Use Depends with yield"


def test_headings_in_code_and_comments_are_none() -> None:
    page = "# A\n\n```\n# not one\n```\n\n    # nor this\n\n<!--\n# hidden\n-->\n\ntext"
    assert [each.title for each in read(page)] == ["A"]
    assert "hidden" not in body(page)


def test_front_matter_is_dropped_and_its_title_names_the_text_before_headings() -> None:
    found = read('---\nhide: x\ntitle: "The Page"\n---\nIntro.\n\n# A\n\na')
    assert [(each.title, each.url, each.text) for each in found] == [
        ("The Page", PAGE, "Intro."),
        ("A", f"{PAGE}#a", "a"),
    ]
    assert body("---\n\nno end") == "---\n\nno end"


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    found = read("\ufeff# A\r\n\r\none\r\ntwo\r\n\r\n```py\r\nx\r\n```\r\n")
    assert [(each.title, each.text) for each in found] == [("A", "one\ntwo\n\n```py\nx\n```")]


# -- text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("See [the *docs*](../a.md#b){.internal-link target=_blank}.", "See the *docs*."),
        ('A [link](https://x.test/a_(b) "Title") here', "A link here"),
        ("A [link](<a b.md>) and\n[one over\nlines](x)", "A link and\none over\nlines"),
        ("text [![badge](a.svg)](b)![x [y]](c.png){width=1}!", "text !"),
        ("<https://docs.test/a> and [x] and f(a[0])", "https://docs.test/a and [x] and f(a[0])"),
        ("Use <abbr title='a, b'>DI</abbr> <!-- not\nthis --> now<br>here", "Use DI  now here"),
        ("`<b>` and ``[a](b) ` <i>`` <b>bold</b>", "`<b>` and ``[a](b) ` <i>`` bold"),
        ("<code>x</code> \\<b> a < b", "`x` \\<b> a < b"),
        ("`code`{.python} /users/{id} {x}", "`code` /users/{id} {x}"),
        ("one <!-- never closed", "one"),
        ("a ` b [c](d)", "a ` b c"),
        ("](a) [b](", "](a) [b]("),
        ("* a\n\n    b [c](d)\n\n> q <b>r</b>", "* a\n\n    b c\n\n> q r"),
        ("| a | b |\n|---|---|\n| [x](y) | `|` |", "| a | b |\n|---|---|\n| x | `|` |"),
        ("a\n\n\n\nb  \n", "a\n\nb"),
        ("smile :smile: 🎉", "smile :smile: 🎉"),
        ("<div class='a'>\n\ntext\n\n</div>\n", "text"),
        ("<p align='center'>\n  <em>a</em> &amp; b\n</p>\n", "a & b"),
        ("<ul>\n<li>a</li>\n<li><p>b</p></li>\n</ul>", "- a\n- b"),
        ("<script>\nalert(1)\n</script>\n\ntext", "text"),
    ],
)
def test_what_only_a_browser_needs_is_dropped(source: str, text: str) -> None:
    assert body(f"# T\n\n{source}") == text


@pytest.mark.parametrize(
    ("opening", "shown"),
    [
        ("```Python hl_lines='1 2'", "```python"),
        ('```hl_lines="4"', "```"),
        ("``` { .python .annotate }", "```python"),
        ("~~~ c++ title='x'", "~~~c++"),
        ("````", "````"),
    ],
)
def test_a_fence_keeps_its_language_only(opening: str, shown: str) -> None:
    mark = shown.rstrip("pythonc+")
    code = "a\n\n\n[b](c) <i>"
    assert body(f"# T\n\n{opening}\n{code}\n{mark}") == f"{shown}\n{code}\n{mark}"


def test_fences_within_fences_and_lists() -> None:
    nested = "````\n```python\nx\n```\n````"
    assert body(f"# T\n\n{nested}") == nested
    listed = "- a:\n\n  ```python\n  x\n  ```\n\n- b"
    assert body(f"# T\n\n{listed.replace('python', 'Python hl_lines=1')}") == listed


def test_a_fence_without_end_ends_with_the_page() -> None:
    found = read("# A\n\n```python\nx = 1\n\n# B\n")
    assert [(each.title, each.text) for each in found] == [("A", "```python\nx = 1\n\n# B\n```")]
    assert body("# A\n\n> ```\n> x") == "> ```\n> x\n> ```"


def test_indented_code_becomes_a_fence() -> None:
    assert body("# T\n\ntext\n\n    a\n      b\n\n    ```\n") == "text\n\n````\na\n  b\n\n```\n````"


def test_colours_in_the_output_of_commands_are_dropped() -> None:
    page = "# T\n\n```console\n$ x\n<span style='color: green;'>INFO</span>: <class 'int'>\n```"
    assert body(page) == "```console\n$ x\nINFO: <class 'int'>\n```"
    assert "<span>" in body("# T\n\n```html\n<span>x</span>\n```")


# -- blocks and tabs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("/// note | The *title*\n\nin\n\n///\n\nout", "**The *title***\n\nin\n\nout"),
        ("/// tip\nin\n///\nout", "**Tip**\n\nin\nout"),
        ("/// details | More\n    type: tip\n    open: true\n\nin\n\n///", "**More**\n\nin"),
        ("/// note\n\n    key: code\n\n///", "**Note**\n\n```\nkey: code\n```"),
        ('!!! note "Title"\n    in\n\n    more\n\nout', "**Title**\n\nin\n\nmore\n\nout"),
        ("!!! warning\n    in\n\nout", "**Warning**\n\nin\n\nout"),
        ('!!! tip ""\n    in', "in"),
        ('??? note inline end "**A** b"\n    in', "**A b**\n\nin"),
        ("* a\n\n    !!! tip\n        in\n\n    out", "* a\n\n    **Tip**\n\n    in\n\n    out"),
        ("/// a\n//// b\nin\n////\nstill\n///\nout", "**A**\n\n**B**\n\nin\nstill\nout"),
        ("!!! a\n    /// b\nout\n", "**A**\n\n**B**\n\nout"),
        ("/// comment without a pipe or end", "/// comment without a pipe or end"),
        ("```\n/// note\n!!! tip\n    x\n```", "```\n/// note\n!!! tip\n    x\n```"),
        ("!!! note\n    ```\n    x\nout", "**Note**\n\n```\nx\n```\nout"),
    ],
)
def test_blocks_are_plain_text_with_a_bold_title(source: str, text: str) -> None:
    assert body(f"# T\n\n{source}") == text


@pytest.mark.parametrize("form", ["=== ", "//// tab | "])
def test_of_tabs_for_several_pythons_only_the_first_is_kept(form: str) -> None:
    def tab(title: str, text: str) -> str:
        if form == "=== ":
            return f'=== "{title}"\n\n    ```Python\n    {text}\n    ```\n\n'
        return f"//// tab | {title}\n\n```Python\n{text}\n```\n\n////\n\n"

    group = (
        tab("Python 3.10+", "new")
        + tab("Python 3.8+", "old")
        + tab("Python 3.8+ non-Annotated", "x")
    )
    page = f"# T\n\n{group}between\n\n{group}{tab('Linux', 'ls')}{tab('Windows', 'dir')}end"
    new = "```python\nnew\n```"
    others = "**Linux**\n\n```python\nls\n```\n\n**Windows**\n\n```python\ndir\n```"
    assert body(page) == f"{new}\n\nbetween\n\n{new}\n\n{others}\n\nend"


def test_a_preview_of_the_whole_file_is_dropped_after_an_extract() -> None:
    preview = "/// details | 👀 Full file preview\n\n```Python\nwhole\n```\n\n///\n\n"
    assert body(f"# T\n\n```\nextract\n```\n\n{preview}end") == "```\nextract\n```\n\nend"
    assert "whole" in body(f"# T\n\ntext\n\n{preview}end")


# -- addresses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("tutorial/sql-databases.md", "tutorial/sql-databases/"),
        ("tutorial/index.md", "tutorial/"),
        ("index.md", ""),
        ("README.md", ""),
        ("about.md", "about/"),
    ],
)
def test_a_page_is_a_folder_of_the_site(name: str, path: str) -> None:
    assert page_path(name) == path


# -- search indexes ----------------------------------------------------------------


def index(*entries: dict[str, object], key: str = "items") -> bytes:
    return json.dumps({"config": {}, key: entries}).encode()


def test_the_index_of_zensical() -> None:
    path = ["Tutorial", "The &amp; page"]
    data = index(
        {
            "location": "a/",
            "level": 1,
            "title": "The &amp; page",
            "text": "<p>In.</p>",
            "path": path,
        },
        {"location": "a/#b", "level": 2, "title": "B <code>x</code>", "text": "", "path": path},
        {"location": "a/#c", "level": 3, "title": "C", "text": "<p>c</p>", "path": path},
        {"location": "a/#d", "level": 2, "title": "D", "text": "d", "path": path},
        {"location": "b/", "level": 1, "title": "Next", "text": "n"},
        {"location": "c/#x", "level": 3, "title": "X", "text": "x"},
    )
    assert [
        (s.title, s.path, s.url, s.text) for s in from_search_index(data, "https://s.test/")
    ] == [
        ("The & page", ("Tutorial",), "https://s.test/a/", "In."),
        ("C", ("Tutorial", "The & page", "B x"), "https://s.test/a/#c", "c"),
        ("D", ("Tutorial", "The & page"), "https://s.test/a/#d", "d"),
        ("Next", (), "https://s.test/b/", "n"),
        ("X", (), "https://s.test/c/#x", "x"),
    ]


def test_the_index_of_mkdocs_has_no_levels() -> None:
    data = index(
        {"location": "", "title": "Home", "text": "in"},
        {"location": "#b", "title": "B", "text": "b"},
        {"location": "#c d\n", "title": "C", "text": "c"},
        key="docs",
    )
    assert [(s.title, s.path, s.url) for s in from_search_index(data, "https://s.test")] == [
        ("Home", (), "https://s.test/"),
        ("B", ("Home",), "https://s.test/#b"),
        ("C", ("Home",), "https://s.test/#c%20d%0A"),
    ]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a <code>b &lt; c</code>\n d</p> <p>e</p>", "a `b < c` d\n\ne"),
        (
            "<p>x</p> <pre><b></b><code class='language-py'>a = 1\n\n  b &amp; c\n</code></pre>",
            "x\n\n```py\na = 1\n\n  b & c\n```",
        ),
        ("<pre>```\nx\n```</pre>", "````\n```\nx\n```\n````"),
        ("<ul> <li>a</li> <li> <p>b</p> <p>c</p> </li> </ul>", "- a\n- b\n\nc"),
        ("<pre>x</pre><ul><li>a</li></ul>", "```\nx\n```\n\n- a"),
        ("<ol><li>a</li><li>b</li></ol>z", "1. a\n1. b\n\nz"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a | b\n\nc"),
        ("a<!-- b --><script>c</script><style>d", "a"),
        ("a &#x41; &#99999999999999999999; < b", "a A \ufffd < b"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";"),
    ],
)
def test_html_becomes_markdown(html: str, text: str) -> None:
    (section,) = from_search_index(index({"location": "x", "title": "T", "text": html}), "s")
    assert section.text == text


def test_half_a_character_is_none() -> None:
    entry: dict[str, object] = {"location": "x#\ud800", "title": "T\ud800", "text": "t\ud800"}
    (section,) = from_search_index(index({**entry, "path": ["P\ud800", "T"]}), "s")
    assert section == Section("T?", ("P?", "T"), "s/x#?", "t?")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"<!DOCTYPE html><title>Not found</title>", "not JSON, it begins with b'<!DOCTYPE html>"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected an object, found list '[1]'"),
        (b'{"pages": [], "b": 1}', "found the keys 'pages', 'b'"),
        (b'{"items": {}}', "found the keys 'items'"),
        (b'{"docs": []}', "found the keys 'docs'"),
        (b'{"items": ["x"]}', "entry 0: expected an object, found str 'x'"),
        (index({"location": "", "title": "", "text": ""}, {}), "entry 1: expected text as 'loca"),
        (index({"location": 1}), "entry 0: expected text as 'location', found int '1'"),
        (index({"location": "", "title": None}), "expected text as 'title', found NoneType 'None'"),
        (index({"location": "", "title": ""}), "expected text as 'text', found NoneType 'None'"),
    ],
)
def test_what_is_no_search_index_is_named(data: bytes, found: str) -> None:
    with pytest.raises(Unavailable) as caught:
        from_search_index(data, "https://s.test")
    assert found in str(caught.value)
    assert "https://s.test" in str(caught.value)
    assert len(str(caught.value)) < 200


# -- cost --------------------------------------------------------------------------


def calls(work: Callable[[], object]) -> int:
    """How many functions it called, those in C included."""
    count = 0

    def profile(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


HOSTILE = [
    *("a", "`", "``  `", "[", "![", "](", "[a](b", "<", "<a ", "<!--", "{a=", "&#1", "<li><p>"),
    *("> ", "- ", "|a", "# x\n", "# x_1\n", "!!! a\n    ", "/// a\n", '=== "Python 3"\n'),
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_work_grows_no_faster_than_the_text(unit: str) -> None:
    def work(size: int) -> int:
        text = unit * (size // len(unit))
        data = index({"location": "x", "title": text, "text": text})
        return calls(lambda: (sections(text, page_url="x"), from_search_index(data, "x")))

    work(1000)  # fills the caches of re and the parser
    assert work(20_000) < 6 * work(5_000)


def test_a_line_of_a_megabyte_is_read() -> None:
    line = "word `code` [link](target) <b>bold</b> " * 25_000
    assert body(f"# T\n\n{line}") == ("word `code` link bold " * 25_000).strip()


def test_a_tag_without_end_is_read_once() -> None:
    """Of the square of five million, nobody would see the end."""
    tag = "<" + "a" * 5_000_000
    (section,) = from_search_index(index({"location": "x", "title": tag, "text": tag}), "s")
    assert (section.title, section.text) == (tag, tag)
