"""How often a look-up finds a section that answers: `make eval-docs`.

Questions with the sections that answer them stand in two files beside this one, each question in
two forms (a sentence, keywords): `dev.toml`, which the search was tuned on, and `test.toml`, which
it was not. A section counts where it is among the first 1, 3 or 5, and where its text
is in a reply of 1,500 tokens. The documentation itself is fetched as a user's is, and cached.
"""

import argparse
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import fetch_docs
from docsearch.archive import members
from docsearch.libraries import LIBRARIES
from docsearch.passages import choose
from docsearch.search import Hit, Searched, find
from docsearch.sources import asked, sdist_archive

HERE = Path(__file__).parent
PARTS = ("dev", "test")
FORMS = ("natural", "keywords")
BUDGET = 1500
BOUNDS = {"natural": {3: 0.94, 5: 0.97}, "keywords": {3: 0.97, 5: 0.98}}
"""What the test part must reach with `--check`."""

SOURCES = {"fastapi": "sdist", "sqlmodel": "installed", "pydantic": "installed"}
"""Where not the first source is asked: their first is the Git tag, which not every network
reaches, and a question is about one text. The sdist of FastAPI 0.109.0 is the tag's text."""


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    library: str
    kind: str
    natural: str
    keywords: str
    accept: tuple[str, ...]
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    form: str
    rank: int | None
    """Of the first right section, from 1."""
    in_budget: bool
    tokens: int
    first: str
    """The address of the first hit."""


def questions(part: str, libraries: Sequence[str]) -> list[Question]:
    found: list[Question] = []
    for name in PARTS if part == "all" else (part,):
        for entry in tomllib.loads((HERE / f"{name}.toml").read_text("utf-8"))["question"]:
            entry["accept"] = tuple(entry["accept"])
            found.append(Question(**entry))
    return [each for each in found if not libraries or each.library in libraries]


def right(question: Question, searched: Searched) -> set[tuple[str, str]]:
    """(library, URL) of each accepted section. Raises `LookupError` for one that is not there."""
    found: set[tuple[str, str]] = set()
    for accepted in question.accept:
        same = {
            (hit.index.meta["library"], hit.url) for hit in _accepted(accepted, question, searched)
        }
        if not same:
            raise LookupError(f"{question.id}: {accepted} is not in the documentation")
        found |= same
    return found


def _accepted(accepted: str, question: Question, searched: Searched) -> Iterable[Hit]:
    scheme, _, name = accepted.rpartition(":")
    if scheme == "symbol":
        return [hit for index, _ in searched for hit in index.named(name)]
    page, _, anchor = name.partition("#")
    if scheme == "skill":
        page, anchor = "SKILL.md", name
    library = scheme if scheme in LIBRARIES else question.library
    return [
        hit
        for index, _ in searched
        if index.meta["library"] == library
        for hit in index.anchored(anchor)
        if hit.url.partition("#")[0].endswith(f"/{page}")
    ]


def answer(question: Question, form: str, searched: Searched) -> Answer:
    accepted = right(question, searched)
    hits = find(searched, getattr(question, form))
    ranks = [at for at, hit in enumerate(hits, 1) if _key(hit) in accepted]
    passages, _ = choose(hits, BUDGET)
    return Answer(
        question,
        form,
        ranks[0] if ranks else None,
        any(_key(each.hit) in accepted for each in passages),
        sum(each.cost for each in passages),
        hits[0].url if hits else "",
    )


def _key(hit: Hit) -> tuple[str, str]:
    return hit.index.meta["library"], hit.url


class Shelf:
    """The indexes of each library and version, opened once."""

    def __init__(self) -> None:
        self.docs = fetch_docs.Docs(fetch_docs.parser().parse_args([]))
        self.open: dict[tuple[str, str | None], Searched] = {}

    def searched(self, library: str, version: str | None) -> Searched:
        key = library, version
        if key not in self.open:
            source = SOURCES.get(library, "auto")
            index, _, notes = self.docs.open(LIBRARIES[library], version, source)
            self.open[key] = [(index, None)]
            self.open[key] += fetch_docs.also_sqlalchemy(
                self.docs, LIBRARIES[library], index, notes
            )
            print(f"{library} {index.meta['version']}: {index.meta['source']}", file=sys.stderr)
        return self.open[key]


def invented(shelf: Shelf, library: str, version: str | None) -> tuple[int, list[str]]:
    """How many addresses an index holds, and those whose anchor is not an id in the page that the
    sdist has: read with a plain search for ids, not with the reader that made the index.
    """
    request = shelf.docs.request(LIBRARIES[library], version, "sdist")
    site = request.library.address(request.library.site, request.release.version)
    folder = request.library.html
    archive, _ = sdist_archive(request)
    known = {
        f"{site}{name.removeprefix(folder)}#{anchor}"
        for name, page in members(archive, lambda name: name.startswith(folder))
        if name.endswith(".html")
        for anchor in re.findall(r'\bid="([^"]+)"', page.decode())
    }
    index = shelf.searched(library, version)[0][0]
    urls = [url for _, url in index.rows("SELECT id, url FROM section")]
    return len(urls), [url for url in urls if url not in known]


def leading_nowhere(shelf: Shelf, library: str) -> tuple[int, list[str]]:
    """How many places have words that people ask in, and those that the documentation lacks."""
    index = shelf.searched(library, None)[0][0]
    site = LIBRARIES[library].address(LIBRARIES[library].site, index.meta["version"])
    urls = {url.removeprefix(site) for _, url in index.rows("SELECT id, url FROM section")}
    places = asked(library)
    return len(places), [place for place in places if place not in urls and not index.named(place)]


def table(answers: Sequence[Answer]) -> str:
    groups: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
    for each in answers:
        groups[each.form, "all"].append(each)
        groups[each.form, each.question.kind].append(each)
        groups[each.form, each.question.library].append(each)
    columns = "".join(f"{name:>8}" for name in ("hit@1", "hit@3", "hit@5", "MRR"))
    lines = [f"{'form':10}{'questions':14}{'n':>4}{columns}{'in budget':>11}{'tokens':>8}"]
    for (form, name), group in sorted(
        groups.items(), key=lambda each: (each[0][0], each[0][1] != "all")
    ):
        within = [mean((each.rank or 99) <= depth for each in group) for depth in (1, 3, 5)]
        lines.append(
            f"{form:10}{name:14}{len(group):4}"
            + "".join(f"{value:8.3f}" for value in within)
            + f"{mean(1 / each.rank if each.rank else 0 for each in group):8.3f}"
            + f"{mean(each.in_budget for each in group):11.3f}"
            + f"{mean(each.tokens for each in group):8.0f}"
        )
    return "\n".join(lines)


def check(shelf: Shelf, answers: Sequence[Answer]) -> bool:
    """Prints what is below its bound, or leads nowhere."""
    good = True
    for form, bounds in BOUNDS.items():
        group = [each for each in answers if each.form == form]
        for depth, bound in bounds.items():
            share = mean((each.rank or 99) <= depth for each in group)
            print(f"{form} hit@{depth}: {share:.3f}, bound {bound}")
            good &= share >= bound
    looked = [
        (f"addresses of {library} {version or ''}", invented(shelf, library, version))
        for library, version in list(shelf.open)
        if LIBRARIES[library].html
    ] + [
        (f"asked places of {library}", leading_nowhere(shelf, library))
        for library in ("sqlalchemy", "alembic", "asyncpg", "pydantic")
    ]
    for what, (count, wrong) in looked:
        print(f"{what}: {count}, not there: {len(wrong)} {' '.join(wrong[:5])}")
        good &= count > 0 and not wrong
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="make eval-docs", description=__doc__)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="test")
    parser.add_argument("--library", action="append", default=[], choices=list(LIBRARIES))
    parser.add_argument(
        "--check", action="store_true", help="fail below the bounds; check addresses"
    )
    parser.add_argument(
        "--misses", action="store_true", help="questions without a hit in the first 3"
    )
    args = parser.parse_args()
    shelf = Shelf()
    answers = [
        answer(question, form, shelf.searched(question.library, question.version))
        for question in questions(args.part, args.library)
        for form in FORMS
    ]
    if not answers:
        print("no questions were asked", file=sys.stderr)
        return 1
    print(table(answers))
    if args.check and not check(shelf, answers):
        return 1
    if args.misses:
        for each in answers:
            if (each.rank or 99) > 3:
                print(f"\n{each.question.id} {each.form}: rank {each.rank}; first {each.first}")
                print("  " + getattr(each.question, each.form).replace("\n", " ")[:300])
                print("  wanted " + " ".join(each.question.accept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
