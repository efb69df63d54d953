"""From a library and a version to an index: each source in its order, none passed over silently."""

import posixpath
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit
from zlib import crc32

from . import NO_SUCH_VERSION, Failed, Section, Unavailable
from .cache import Cache
from .libraries import Library
from .releases import Release
from .search import Index

if TYPE_CHECKING:  # on the cold path only
    from .sdists import Sdist
    from .transfer import Transfer

DAY, HOUR = 86_400.0, 3_600.0
EXACT = {"sdist", "tag"}
"""Sources that belong to one version and never change."""

ASKED = Path(__file__).parent / "asked"
"""Our own words, one file a library: never shown, only searched."""

SECTIONS = 40_000
"""More than that is no documentation of these: the largest has 6,500."""

TITLE, ADDRESS = 120, 400
"""Characters. What stands outside of the quotation is short."""

ARCHIVE_LIMIT = 64_000_000
SITE_LIMIT = 16_000_000
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_]*")


class Progress(Protocol):
    def say(self, text: str) -> None: ...
    def part(self, done: float) -> None: ...
    def end(self) -> None: ...


@dataclass(slots=True)
class Request:
    """What is wanted, and how far one may go for it."""

    library: Library
    release: Release
    packages: list[Path]
    """Folders of the project's installed packages."""
    cache: Cache
    progress: Progress
    offline: bool = False
    refresh: bool = False
    source: str = "auto"
    query: str = ""
    notes: list[str] = field(default_factory=list[str])
    """Why sources before the one that served were passed over."""


def open_index(request: Request) -> Index:
    """The index of the best source that can be had. Raises `Failed` when none can."""
    if not _VERSION.fullmatch(request.release.version):
        raise Failed(f"{request.release.version!r} is not a version", NO_SUCH_VERSION)
    refresh = request.refresh and not request.offline
    if not refresh and (index := _cached(request)):
        return index
    with request.cache.alone(request.progress.say) as alone:
        # Another process may have built it while this one waited.
        if alone and not refresh and (index := _cached(request)):
            return index
        try:
            return _build(request)
        finally:
            request.progress.end()


def _file(request: Request, source: str) -> Path:
    """Of an installed package, one for each folder that it is in: another project's may be
    another text.
    """
    if source == "installed":
        source += f"{crc32(str(request.packages).encode()):08x}"
    return request.cache.file(request.library.name, request.release.version, source)


def _sources(request: Request) -> tuple[str, ...]:
    if request.source == "auto":
        return request.library.sources
    if request.source in request.library.sources:
        return (request.source,)
    raise Failed(
        f"{request.library.name} has no source {request.source!r};"
        f" it has {', '.join(request.library.sources)}",
        2,
    )


def _cached(request: Request) -> Index | None:
    """An index that is there: of an exact source at any age, of another one while it is young."""
    for source in _sources(request):
        file = _file(request, source)
        if not file.exists() or (source == "pages" and not request.offline):
            continue
        try:
            index = Index(file)
        except (sqlite3.Error, ValueError, OSError):
            continue  # damaged: it is built anew, over this one
        age = datetime.now(UTC).timestamp() - file.stat().st_mtime
        locked = request.release.sha256
        if source == "sdist" and locked and index.meta.get("sha256") != locked:
            index.close()
            continue
        tried = index.meta.get("tried") == "True" or request.source != "auto"
        young = tried and age < (DAY if source == "site" else HOUR)
        if source in EXACT or request.offline or young:
            request.cache.used(file)
            if source != _sources(request)[0] and index.meta.get("notes"):
                request.notes.append(
                    f"not from {_sources(request)[0]}, which could not be had {round(age / 60)}"
                    " minutes ago (--refresh tries again)"
                )
            return index
        index.close()
    return None


def _build(request: Request) -> Index:
    name, version = request.library.name, request.release.version
    for source in _sources(request):
        if request.offline and source != "installed":
            continue
        try:
            sections, facts = _READERS[source](request)
        except Unavailable as error:
            request.notes.append(f"{source}: {error}")
            kept = _cached(request) if request.refresh else None
            if kept and kept.meta["source"] == source:  # better than what comes next
                return kept
            continue
        except (Failed, ModuleNotFoundError, MemoryError):
            raise
        except Exception as error:  # of a reader, on a text that nobody thought of
            request.notes.append(f"{source}: cannot be read ({type(error).__name__}: {error})")
            continue
        if not sections:
            request.notes.append(f"{source}: no documentation in it")
            continue
        facts |= {
            "library": name,
            "version": facts.get("version", version),
            "source": source,
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "notes": "\n".join(request.notes),
            # What was made without trying what comes before it is no answer to who wants that.
            "tried": str(not request.offline and request.source == "auto"),
        }
        return _write(request, source, sections, facts)
    reasons = ";\n".join(request.notes) or (
        f"offline, and nothing is cached or installed of {name} {version}"
    )
    raise Failed(f"no documentation of {name} {version}:\n{reasons}")


def _write(request: Request, source: str, sections: list[Section], facts: dict[str, str]) -> Index:
    from .index import FORMAT, build

    request.progress.say(f"indexing {len(sections)} sections")
    file = _file(request, source)
    site = request.library.address(request.library.site, request.release.version)
    words = asked(request.library.name)
    sections = list({each.url: each for each in reversed(sections) if _sane(each)}.values())[::-1]
    if len(sections) > SECTIONS:
        raise Failed(
            f"{source} of {request.library.name} has {len(sections)} sections: not indexed"
        )
    for section in sections:
        section.title = section.title[:TITLE]
        section.path = tuple(title[:TITLE] for title in section.path[:8])
        for place in (section.url.removeprefix(site), *section.names):
            section.also += words.get(place, ())

    def prior(section: Section) -> float:
        return _prior(request.library, section.url.removeprefix(site))

    try:
        with request.cache.writing(file) as new:
            build(
                new,
                sections,
                {**facts, "format": str(FORMAT)},
                prior=prior,
                progress=lambda done: request.progress.part(0.6 + 0.4 * done),
            )
    except (sqlite3.OperationalError, OSError) as error:
        raise Failed(f"the index cannot be written below {file.parent}: {error}") from error
    if request.cache.written != file:
        request.notes.append(f"{request.cache.folder} cannot be written: this index is not kept")
    return Index(request.cache.written)


def _sane(section: Section) -> bool:
    """Whether its address is one: it is printed outside of the quotation."""
    return len(section.url) <= ADDRESS and not re.search(r"\s", section.url)


def asked(name: str) -> dict[str, tuple[str, ...]]:
    """The words that people ask in, where the documentation has others, by page and anchor or by
    the name of an API entry.
    """
    file = ASKED / f"{name}.txt"
    found: dict[str, tuple[str, ...]] = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        place, mark, words = line.partition("|")
        if mark and not place.startswith("#"):
            found[place.strip()] = (*found.get(place.strip(), ()), words.strip())
    return found


def _prior(library: Library, page: str) -> float:
    """Of the longest prefix that the table has."""
    prefixes = [prefix for prefix in library.prior if page.startswith(prefix)]
    return library.prior[max(prefixes, key=len)] if prefixes else 1.0


# -- one function a source ---------------------------------------------------------

Found = tuple[list[Section], dict[str, str]]


def transfer(request: Request) -> "Transfer":
    from .transfer import Transfer

    return Transfer(
        request.library.hosts,
        offline=request.offline,
        state=request.cache.folder,
        say=request.progress.say,
    )


def _sdist(request: Request) -> Found:
    """The source distribution of the exact version, from the index that the project uses."""
    archive, digest = sdist_archive(request)
    return _read_archive(request, archive), {"sha256": digest}


def sdist_archive(request: Request) -> tuple[bytes, str]:
    """The file and its sha256. Raises `Unavailable`."""
    from .sdists import find_sdist

    name, version = request.library.name, request.release.version
    request.progress.say(f"looking for the sdist of {name} {version}")
    _, sdist = find_sdist(name, version, offline=request.offline)
    locked = request.release.sha256
    if locked and sdist.sha256 != locked:
        raise Unavailable(
            f"{request.release.origin} names the sha256 {locked[:12]}..., your index"
            f" {sdist.sha256[:12]}...: not the same file"
        )
    return _download(request, sdist), sdist.sha256


def _download(request: Request, sdist: "Sdist") -> bytes:
    from urllib.request import url2pathname

    request.progress.say(f"downloading {request.library.name} {request.release.version}")
    parts = urlsplit(sdist.url)
    if parts.scheme == "file":  # the user's settings name a folder as an index
        return _read(Path(url2pathname(parts.path)), sdist.sha256)
    # The user's own index named this host, and the hash says what must come from it.
    response = transfer(request).get(
        sdist.url,
        limit=ARCHIVE_LIMIT,
        sha256=sdist.sha256,
        hosts=frozenset({parts.netloc.rpartition("@")[2]}),
    )
    request.progress.part(0.2)
    return response.content


def _read(file: Path, digest: str) -> bytes:
    try:
        if file.stat().st_size > ARCHIVE_LIMIT:
            raise Unavailable(f"{file} has more than {ARCHIVE_LIMIT} bytes")
        content = file.read_bytes()
    except OSError as error:
        raise Unavailable(f"{file}: {error.strerror}") from error
    if sha256(content).hexdigest() != digest:
        raise Unavailable(f"{file} has not the sha256 that the index names, {digest}")
    return content


def _tag(request: Request) -> Found:
    """The archive of the version's Git tag: Markdown with its examples, or reStructuredText."""
    from .transfer import Missing

    library, version = request.library, request.release.version
    url = library.address(library.archive, version)
    request.progress.say(f"downloading {library.name} {version} from {url.split('/')[2]}")
    try:
        response = transfer(request).get(url, limit=ARCHIVE_LIMIT)
    except Missing as error:
        if request.release.origin == "--version":
            raise Failed(
                f"{library.name} has no version {version}: {error}", NO_SUCH_VERSION
            ) from error
        raise
    request.progress.part(0.2)
    return _read_archive(request, response.content), {
        "sha256": sha256(response.content).hexdigest()
    }


def _read_archive(request: Request, archive: bytes) -> list[Section]:
    from .archive import members

    library = request.library
    site = library.address(library.site, request.release.version)
    wanted = _wanted(library)
    files = {name: content.decode("utf-8", "replace") for name, content in members(archive, wanted)}
    request.progress.part(0.3)
    if library.html:
        return _html(library, site, files, request.progress.part)
    if library.markdown:
        return _markdown(library, site, files)
    return _with_docstrings(request, _rst(library, site, files))


def _wanted(library: Library) -> Callable[[str], bool]:
    """Which members of an archive are read."""
    folders = tuple(filter(None, (library.html, library.markdown, library.code, *library.rst)))
    endings = (".html",) if library.html else (".md",) if library.markdown else (".rst",)

    def wanted(name: str) -> bool:
        if library.code and name.startswith(library.code):
            return name.endswith(".py")
        if library.markdown and name.startswith("docs_src/"):
            return name.endswith((".py", ".html", ".toml", ".txt"))
        return name.startswith(folders) and name.endswith(endings)

    return wanted


def _html(
    library: Library, site: str, files: dict[str, str], part: Callable[[float], None]
) -> list[Section]:
    from . import sphinx

    found: list[Section] = []
    moved: list[tuple[str, str]] = []
    messages: dict[str, list[str]] = {}
    for at, (name, text) in enumerate(sorted(files.items())):
        if library.code and name.startswith(library.code):
            for code, message in sphinx.error_messages(text):
                messages.setdefault(f"error-{code}", []).append(message)
            continue
        page = name.removeprefix(library.html)
        if not _prior(library, page):
            continue
        sections, stubs = sphinx.sections(text, page_url=site + page)
        found += sections
        for target, title in stubs:
            moved.append((site + _joined(page, target), title))
        part(0.3 + 0.3 * at / len(files))
    sphinx.join_moved(found, moved)
    for section in found:
        for anchor in section.anchors:
            section.also += tuple(messages.get(anchor, ()))
    return found


def _joined(page: str, link: str) -> str:
    """Where a relative link of a page leads: `../core/pooling.html#x` from `orm/session.html`."""
    if link.startswith("#"):
        return page + link
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _markdown(library: Library, site: str, files: dict[str, str]) -> list[Section]:
    from . import markdown

    found: list[Section] = []
    for name, text in sorted(files.items()):
        page = name.removeprefix(library.markdown)
        if not name.startswith(library.markdown) or not page.endswith(".md"):
            continue
        if _prior(library, page):
            text = markdown.resolve(text, files.get)
            found += markdown.sections(text, page_url=site + markdown.page_path(page))
    return found


def _rst(library: Library, site: str, files: dict[str, str]) -> list[Section]:
    from . import rst

    found: list[Section] = []
    for name, text in sorted(files.items()):
        folder = next((each for each in library.rst if name.startswith(each)), "")
        page = name.removeprefix(folder).removesuffix(".rst") if name != folder else "index"
        if _prior(library, page):
            found += rst.sections(text, page_url=f"{site}{page}.html", include=files.get)
    return found


def _with_docstrings(request: Request, found: list[Section]) -> list[Section]:
    """What the source leaves to be filled in from the code (`autoclass`), filled in from the
    installed package, where that is of this version.
    """
    from . import installed

    name, version = request.library.name, request.release.version
    try:
        entries = installed.docstrings(name, version, request.packages)
    except Unavailable:
        entries = []
    by_name = {name: entry for entry in entries for name in entry.names}
    filled: list[Section] = []
    for section in found:
        name = next((name for name in section.names if name in by_name), "")
        if section.text or not name:
            filled.append(section)
            continue
        page = section.url.partition("#")[0]
        for member, entry in by_name.items():
            if member == name or member.startswith(f"{name}."):
                filled.append(replace(entry, path=section.path, url=f"{page}#{member}"))
    return [section for section in filled if section.text]


def _site(request: Request) -> Found:
    """The search index of the live site: all its text in one file, of the newest version."""
    from . import site_index
    from .transfer import Missing

    library, version = request.library, request.release.version
    site = library.address(library.site, version)
    client = transfer(request)
    for name in library.search_index:
        request.progress.say(f"downloading {site + name}")
        try:
            response = client.get(
                site + name, limit=SITE_LIMIT, media=("application/json", "text/")
            )
        except Missing:
            continue
        sections = site_index.from_search_index(response.content, site)
        return sections, {"version": "latest", "wanted": version}
    raise Unavailable(f"{site} has none of {', '.join(library.search_index)}")


def _pages(request: Request) -> Found:
    """Of the live site of a Sphinx project, the pages that fit the query. Another query needs
    other pages, so what was built is not taken from the cache again.
    """
    from . import live

    library, version = request.library, request.release.version
    if not request.query.strip():
        raise Unavailable("pages of the live site are chosen by a query, and there is none")
    site = library.address(library.site, version)
    request.progress.say(f"reading pages of {site}")
    found = live.pages(request.query, site, library.search_index, transfer(request))
    latest = f"latest {'.'.join(version.split('.')[:2])}" if "{minor}" in library.site else "latest"
    return found, {"version": latest, "wanted": version}


def _installed(request: Request) -> Found:
    """Signatures, docstrings, agent skills of the installed distribution; nothing is imported."""
    from . import installed

    name, version = request.library.name, request.release.version
    request.progress.say(f"reading the docstrings of the installed {name}")
    sections = installed.skills(name, request.packages)
    sections += installed.docstrings(name, version, request.packages)
    return sections, {}


_READERS: dict[str, Callable[[Request], Found]] = {
    "sdist": _sdist,
    "tag": _tag,
    "site": _site,
    "pages": _pages,
    "installed": _installed,
}
