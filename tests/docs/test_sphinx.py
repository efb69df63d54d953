"""Rendered Sphinx pages to sections."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docsearch import Section
from docsearch.sphinx import error_messages, join_moved, sections

URL = "https://docs.example/page.html"


def read(html: str) -> dict[str, Section]:
    """The sections of a page by title."""
    found, _ = sections(html, page_url=URL)
    by_title = {section.title: section for section in found}
    assert len(by_title) == len(found)
    return by_title


def text(html: str) -> str:
    """What becomes of the body of a section."""
    return read(f'<section id="a"><h1>A</h1>{html}</section>')["A"].text


def entry(kind: str, name: str, body: str, *, also: str = "") -> str:
    return (
        f'<dl class="py {kind}"><dt class="sig sig-object py" id="{name}">'
        f'<em class="property"><span class="pre">{kind}</span></em> '
        f'<span class="sig-name">{name.rpartition(".")[2]}</span>'
        '<span class="sig-paren">(</span> <em>arg</em>: <span class="n">int</span> = 1'
        '<span class="sig-paren">)</span> → None'
        f'<a class="headerlink" href="#{name}">¶</a></dt>{also}<dd>{body}</dd></dl>'
    )


# -- prose -------------------------------------------------------------------------


def test_a_heading_begins_a_section_with_the_titles_above_it() -> None:
    found = read(
        '<p>before</p><section id="top"><h1>Session<a class="headerlink" href="#top">¶</a></h1>'
        '<p>First &amp; <em>last</em>\n  words.</p><section id="what"><h2>What it <code>does</code>'
        '</h2><p>Much.</p><section id="deep"><h3>Deep</h3><p>End.</p></section></section>'
        '<section id="next"><h2>Next</h2><p>More.</p></section></section><p>after</p>'
    )
    assert found["Session"] == Section("Session", (), f"{URL}#top", "First & last words.")
    assert found["What it `does`"].path == ("Session",)
    assert found["Deep"].path == ("Session", "What it `does`")
    assert found["Next"] == Section("Next", ("Session",), f"{URL}#next", "More.")


def test_other_anchors_lead_to_the_section_that_they_stand_in() -> None:
    found = read(
        '<section id="top"><span id="top-old"></span><h1>Top</h1><p>One.</p>'
        '<section id="sub"><span id="sub-old"></span><h2><span id="within"></span>Sub</h2>'
        '<p>Two.<span id="later"></span></p></section></section>'
    )
    assert found["Top"].anchors == ("top-old",)
    assert found["Sub"].anchors == ("sub-old", "within", "later")


def test_a_section_without_text_is_only_in_the_path_of_others() -> None:
    found = read('<section id="a"><h1>A</h1><section id="b"><h2>B</h2><p>x</p></section></section>')
    assert list(found) == ["B"]
    assert found["B"].path == ("A",)


@pytest.mark.parametrize("html", ["", "<p>Words.</p>", "<h1>Title</h1><p>Words.</p>", "a < b > c"])
def test_a_page_without_sections_has_none(html: str) -> None:
    assert sections(html, page_url=URL) == ([], [])


def test_code_keeps_its_lines_and_names_its_language() -> None:
    assert (
        text(
            '<p>So:</p><div class="highlight-python3 notranslate"><div class="highlight"><pre>'
            '<span></span><span class="k">if</span> a <span class="o">&lt;</span> b:\n'
            "    <b>c</b>()\n</pre></div></div><p>Then.</p>"
        )
        == "So:\n\n```python\nif a < b:\n    c()\n```\n\nThen."
    )


def test_plain_text_has_a_fence_without_a_language() -> None:
    assert text('<div class="highlight-text"><pre>a\nb</pre></div>') == "```\na\nb\n```"


def test_code_that_holds_a_fence_stays_within_its_own() -> None:
    code = "```python\nx\n```\n````\ny\n````"
    assert text(f"<pre>{code}</pre>") == f"`````\n{code}\n`````"


def test_lists_are_indented_and_close_together() -> None:
    assert (
        text(
            "<ul><li><p>one</p><ol><li><p>first</p></li><li><p>second</p></li></ol></li>"
            "<li></li><li><p>two</p><p>still two</p></li></ul><p>After.</p>"
        )
        == "- one\n  1. first\n  1. second\n- two\n  still two\n\nAfter."
    )


def test_an_empty_item_marks_nothing() -> None:
    assert text("<ul><li></li></ul><p>After.</p>") == "After."


def test_a_second_heading_is_text() -> None:
    assert text("<p>Words.</p><h2>More</h2><p>Also.</p>") == "Words.\n\n**More**\n\nAlso."


def test_a_definition_list_has_its_terms_in_bold() -> None:
    assert text("<dl class='simple'><dt>Term</dt><dd><p>Meaning.</p></dd></dl>") == (
        "**Term**\n\nMeaning."
    )


def test_a_table_has_a_line_for_each_row() -> None:
    table = text(
        "<table><tr><td>first</td></tr></table><p>These:</p><table><thead><tr><th><p>Name</p></th><th><p>Use</p></th></tr></thead><tbody>"
        "<tr><td><p><code>lazy</code></p></td><td><p>when</p><p>asked</p></td></tr>"
        "<tr><td><p>raise</p></td><td><p>never</p></td></tr></tbody></table><p>After.</p>"
    )
    assert re.sub(" +", " ", table) == (
        "first\n\nThese:\n\nName | Use\n`lazy` | when asked\nraise | never\n\nAfter."
    )


def test_code_in_a_table_is_code() -> None:
    table = text("<table><tr><td><p>a</p></td><td><pre>x = 1\ny = 2</pre></td></tr></table>")
    assert "```\nx = 1\ny = 2\n```" in table
    assert table.startswith("a")


def test_an_admonition_is_text() -> None:
    assert (
        text('<div class="admonition note"><p class="admonition-title">Note</p><p>Ah.</p></div>')
        == "Note\n\nAh."
    )


@pytest.mark.parametrize(
    "html",
    [
        '<a class="headerlink" href="#a">junk</a>',
        '<div class="admonition seealso"><p>See also</p><div><p>junk</p></div></div>',
        '<table class="class-members docutils"><tr><td>junk</td></tr></table>',
        "<nav><nav>a</nav><p>junk</p></nav>",
        "<script>junk()</script>",
        "<STYLE>junk</style >",
        "<!-- junk <p>junk</p> -->",
    ],
)
def test_what_is_no_text_is_dropped(html: str) -> None:
    assert text(f"<p>Kept.</p>{html}<p>Also.</p>") == "Kept.\n\nAlso."


@pytest.mark.parametrize(
    "tag", ['<img class="sidebar">', '<span id="x" class="headerlink"></span>', "<br class='nav'/>"]
)
def test_a_tag_that_has_no_end_hides_nothing(tag: str) -> None:
    assert text(f"<p>Kept.</p>{tag}<p>Also.</p>") == "Kept.\n\nAlso."


def test_an_unclosed_comment_hides_the_rest_and_no_more() -> None:
    found = read('<section id="a"><h1>A</h1><p>Kept.</p></section><!-- <section id="b"><h1>B</h1>')
    assert list(found) == ["A"]


# -- entries of an API ----------------------------------------------------------------


def test_an_entry_has_its_name_its_signature_and_the_entries_above_it() -> None:
    method = entry("method", "lib.orm.Session.get", "<p>Gets.</p>")
    found = read(
        '<section id="api"><h1>API</h1>'
        + entry("class", "lib.orm.Session", f"<p>Manages.</p>{method}<p>Goes on.</p>")
        + "</section>"
    )
    assert found["Session"] == Section(
        "Session",
        ("API",),
        f"{URL}#lib.orm.Session",
        "```python\nclass Session(arg: int = 1) → None\n```\n\nManages.\n\nGoes on.",
        names=("lib.orm.Session",),
    )
    assert found["Session.get"].path == ("API", "Session")
    assert found["Session.get"].url == f"{URL}#lib.orm.Session.get"
    assert "Gets." in found["Session.get"].text


def test_two_names_share_an_entry() -> None:
    second = '<dt class="sig" id="lib.Session.exec">exec()</dt>'
    html = entry("method", "lib.Session.execute", "<p>Runs.</p>", also=second)
    found = read(f'<section id="api"><h1>API</h1>{html}</section>')
    assert list(found) == ["Session.execute"]
    assert found["Session.execute"].names == ("lib.Session.execute", "lib.Session.exec")
    assert found["Session.execute"].anchors == ("lib.Session.exec",)
    assert found["Session.execute"].text.endswith("```python\nexec()\n```\n\nRuns.")


def test_an_overload_has_no_name_and_takes_no_text_away() -> None:
    html = entry("method", "lib.C.m", "<p>Runs.</p>", also='<dt class="sig">m(int)</dt>')
    found = read(f'<section id="api"><h1>API</h1>{html}</section>')
    assert found["C.m"].names == ("lib.C.m",)
    assert found["C.m"].text.endswith("```python\nm(int)\n```\n\nRuns.")


def test_entries_without_a_description_stay_apart() -> None:
    html = "".join(
        f'<dl class="py method"><dt id="lib.C.{name}">{name}()</dt></dl>' for name in "mn"
    )
    found = read(f'<section id="api"><h1>API</h1>{entry("class", "lib.C", html)}</section>')
    assert [found[title].names for title in ("C", "C.m", "C.n")] == [
        ("lib.C",),
        ("lib.C.m",),
        ("lib.C.n",),
    ]


def test_parameters_belong_to_their_entry() -> None:
    fields = (
        '<dl class="field-list"><dt><span id="fields"></span>Parameters:</dt><dd><ul>'
        '<li><p><span id="lib.f.params.a"></span><strong>a</strong>: what.</p></li></ul></dd></dl>'
    )
    named = entry("function", "lib.f", fields).replace("None", 'None<span id="old"></span>')
    found = read(
        f'<section id="api"><h1>API</h1>{named}'
        '<section id="after"><h2>After</h2><p>x</p></section></section>'
    )
    assert found["f"].text.endswith("**Parameters:**\n- **a**: what.")
    assert found["f"].anchors == ("old", "fields", "lib.f.params.a")
    assert found["After"].anchors == ()


def test_the_terms_of_a_glossary_are_entries_and_synonyms_share_one() -> None:
    found = read(
        '<section id="glossary"><h1>Glossary</h1><dl class="simple glossary">'
        '<dt id="term-ACID">ACID<a class="headerlink" href="#x">¶</a></dt>'
        '<dt id="term-ACID-model">ACID model</dt><dd><p>Four.</p></dd>'
        '<dt id="term-DDL">DDL</dt><dd><p>Language.</p></dd></dl><p>End.</p></section>'
    )
    assert found["ACID, ACID model"] == Section(
        "ACID, ACID model", ("Glossary",), f"{URL}#term-ACID", "Four.", anchors=("term-ACID-model",)
    )
    assert found["DDL"].text == "Language."
    assert found["Glossary"].text == "End."


# -- sections that moved ---------------------------------------------------------------


def test_a_stub_leads_to_where_its_text_is_now() -> None:
    found, moved = sections(
        '<section id="old"><h1>Old title</h1><p>This section has moved to '
        '<a href="new.html?a&amp;b#here">New</a>.</p></section>'
        '<section id="b"><h1>Kept</h1><p>A row that was moved.</p></section>',
        page_url=URL,
    )
    assert [section.title for section in found] == ["Kept"]
    assert moved == [("new.html?a&b#here", "Old title")]


def test_a_section_is_found_by_the_titles_of_its_stubs() -> None:
    main = Section("New", (), f"{URL}#new", "x", anchors=("alias",))
    other = Section("Other", (), f"{URL}#other", "x")
    join_moved(
        [main, other],
        [(f"{URL}#alias", "Old"), (f"{URL}#new", "Older"), (f"{URL}#gone", "Lost")],
    )
    assert main.also == ("Old", "Older")
    assert other.also == ()


# -- what no program would write --------------------------------------------------------


def test_a_page_that_is_cut_gives_what_is_there() -> None:
    found = read('<section id="a"><h1>A</h1><ul><li>one<section id="b"><h2>B</h2><p>two <b>three')
    assert "one" in found["A"].text
    assert "two" in found["B"].text


def test_what_a_section_leaves_open_does_not_reach_the_next() -> None:
    found = read(
        '<section id="a"><h1>A</h1><table><tr><td><p>cell</section>'
        '<section id="b"><h1>B</h1><p>one</p><p>two</p><pre>code</section>'
        '<section id="x"><h1>X</h1><dl class="py class"><dt id="lib.Y">Y()</dt><dd>five</section>'
        '<section id="c"><h1>C</h1><p>three</p><p>four</p></section>'
    )
    assert found["B"].text.startswith("one\n\ntwo")
    assert found["C"].text == "three\n\nfour"
    assert found["C"].path == ()
    assert found["Y"].path == ("X",)


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<a",
        "<<p>",
        "<span ",
        "<!--",
        "</dl>",
        "<dt>",
        "</dt>",
        "<pre></dt>",
        "<pre>",
        '<dl class="py"><dt>',
    ],
)
def test_garbage_ends(piece: str) -> None:
    html = f'<section id="a"><h1>A</h1><p>Words.</p>{piece * 20_000}'
    assert "Words." in read(html)["A"].text


@pytest.mark.parametrize(
    "piece",
    [
        "<" * 5_000_000,
        "<" + "a" * 5_000_000,
        "<p " + " " * 5_000_000,
        "<p " + "a" * 5_000_000 + ">",
        "<pre>" + "`" * 5_000_000 + "</pre>",
    ],
    ids=lambda piece: piece[:6],
)
def test_the_time_is_linear(piece: str) -> None:
    """Of the square of five million, nobody would see the end."""
    assert "Words." in text(f"<p>Words.</p>{piece}")


def test_lists_in_lists_are_indented_only_so_far() -> None:
    html = "<ul><li>x" * 20_000 + "</li></ul>" * 20_000
    lines = text(f"{html}<p>After.</p>").split("\n")
    assert lines[:3] == ["- x", "  - x", "    - x"]
    assert max(map(len, lines)) < 30
    assert lines[-1] == "After."  # no list is thought to be open


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ('<section id="s{0}"><h2>T{0}</h2>', "</section>"),
        ('<dl class="py class"><dt id="s{0}">T{0}</dt><dd>', "</dd></dl>"),
    ],
    ids=["sections", "entries"],
)
def test_what_is_nested_without_end_is_text_of_what_is_around_it(begin: str, end: str) -> None:
    inner = "".join(begin.format(number) + "<p>x</p>" for number in range(1_000))
    found = read(
        f'<section id="a"><h1>A</h1><p>one</p>{inner}{end * 1_000}</section>'
        '<section id="b"><h1>B</h1><p>two</p></section>'
    )
    deepest = max(found.values(), key=lambda section: len(section.path))
    assert 20 <= len(deepest.path) < 100
    assert "**T999**\n\nx" in deepest.text
    assert found["B"] == Section("B", (), f"{URL}#b", "two")


def test_the_end_of_a_term_that_was_not_begun() -> None:
    (section,), _ = sections('<section id="a"><pre>x</dt><h1>A</h1>', page_url=URL)
    assert section.title == "A"


@pytest.mark.parametrize("shape", ["<p>{}</p>", "<pre>{}</pre>", '<p><a href="{}">x</a></p>'])
def test_a_character_that_no_one_has(shape: str) -> None:
    """Python reads no number of so many digits."""
    assert "Words." in text(f"<p>Words.</p>{shape.format('&#' + '9' * 5_000 + ';')}")


# -- every address is real ---------------------------------------------------------------

_WORDS = st.sampled_from(["one", "two", "a &lt; b", "<code>c</code>", '<span id="s{}"></span>'])


def _filled(parts: list[str], shape: str) -> str:
    return shape.replace("@", "".join(parts))


_BLOCKS: st.SearchStrategy[str] = st.recursive(
    _WORDS.map(lambda word: f"<p>{word}</p>") | st.just("<pre>x</pre>") | _WORDS,
    lambda inner: st.builds(
        _filled,
        st.lists(inner, min_size=1, max_size=4),
        st.sampled_from(
            [
                '<section id="s{}"><h2>Title {}</h2>@</section>',
                '<span id="s{}"></span><section id="s{}"><h2>Title {}</h2>@</section>',
                '<dl class="py class"><dt id="s{}">C()</dt><dd>@</dd></dl>',
                '<dl class="py method"><dt id="s{}">m()</dt><dt id="s{}">n()</dt><dd>@</dd></dl>',
                '<dl class="glossary"><dt id="s{}">t</dt><dd>@</dd><dt id="s{}">u</dt></dl>',
                "<ul><li>@</li></ul>",
                "<table><tr><td>@</td></tr></table>",
                '<div class="seealso">@</div>',
                "<ul><li>@",  # not closed
            ]
        ),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(_BLOCKS, max_size=5))
def test_every_address_has_its_anchor_in_the_page(blocks: list[str]) -> None:
    html = f'<section id="top"><h1>Top</h1><p>x</p>{"".join(blocks)}</section>'
    for number in range(html.count("{}")):
        html = html.replace("{}", str(number), 1)
    ids = re.findall(r'id="([^"]*)"', html)
    found, _ = sections(html, page_url=URL)
    anchors = [section.url.removeprefix(f"{URL}#") for section in found]
    aliases = [alias for section in found for alias in section.anchors]
    assert set(anchors + aliases) <= set(ids)
    assert len(set(anchors)) == len(anchors)
    assert len(set(anchors + aliases)) == len(anchors + aliases)
    assert "top" in anchors


# -- messages of errors ------------------------------------------------------------------


def test_messages_of_errors_that_have_a_code() -> None:
    source = """
raise exc.MissingGreenlet("greenlet_spawn has not been called; " "can't await", code="xd2s")
raise exc.TimeoutError("limit of size %d reached" % size, f"timeout {t} s", code="3o7r")
raise exc.InvalidRequestError("no code here")
raise Error(message, code="none")
raise Error("not a constant", code=number)
"""
    assert list(error_messages(source)) == [
        ("xd2s", "greenlet_spawn has not been called; can't await"),
        ("3o7r", "limit of size %d reached timeout   s"),
    ]


@pytest.mark.parametrize(
    "source",
    ["f(code='x'", "f('m', code='x')\0", f"f('m', code='x'){'.a' * 100_000}", "code=" + "(" * 9999],
)
def test_a_source_that_is_not_python_has_no_messages(source: str) -> None:
    assert list(error_messages(source)) == []
