"""The libraries whose documentation can be fetched, and where each has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Library:
    """One library. `{version}` and `{minor}` (`21` or `2.14`) in addresses are replaced."""

    name: str
    sources: tuple[str, ...]
    """In the order in which they are tried: `sdist`, `tag`, `site`, `pages`, `installed`."""
    site: str
    """Where a section's page stands for readers; ends with a slash."""
    archive: str = ""
    """The archive of a Git tag. One request: sites that serve single files limit them."""
    html: str = ""
    """The folder of rendered pages in the sdist."""
    markdown: str = ""
    """The folder of Markdown pages in the tag's archive (and in sdists of old versions)."""
    rst: tuple[str, ...] = ()
    """Folders or files of reStructuredText, in the sdist or the tag's archive."""
    code: str = ""
    """The folder of Python code in the sdist whose errors carry codes."""
    search_index: tuple[str, ...] = ()
    """Files of the site with all its text (`site`) or its titles (`pages`); the first that is
    there is taken."""
    prior: Mapping[str, float] = field(default_factory=dict[str, float])
    """Factors for the score of pages whose path starts so; 0 leaves them out."""
    with_sqlalchemy: tuple[str, ...] = ()
    """Pages of SQLAlchemy's documentation that are searched as well."""

    def address(self, template: str, version: str) -> str:
        major, _, rest = version.partition(".")
        minor = rest.partition(".")[0]
        short = f"{major}{minor}" if self.name == "sqlalchemy" else f"{major}.{minor}"
        return template.format(version=version, minor=short)

    @property
    def hosts(self) -> frozenset[str]:
        addresses = [self.site, *([self.archive, _ARCHIVES] if self.archive else [])]
        return frozenset(address.split("/")[2] for address in addresses)


_ARCHIVES = "https://codeload.github.com/"  # where GitHub sends those who ask for an archive

_NOT_FOR_READERS = {"_modules/": 0.0, "_static/": 0.0, "genindex": 0.0, "search.html": 0.0}

LIBRARIES: Mapping[str, Library] = {
    each.name: each
    for each in (
        Library(
            "sqlalchemy",
            sources=("sdist", "pages", "installed"),
            site="https://docs.sqlalchemy.org/en/{minor}/",
            html="doc/",
            code="lib/",
            search_index=("searchindex.js",),
            prior=_NOT_FOR_READERS
            | {f"changelog/changelog_{old}": 0.0 for old in ("0", "10", "11", "12", "13", "14")}
            | {f"changelog/migration_{old}": 0.0 for old in ("0", "10", "11", "12", "13")}
            | {
                "changelog/changelog_": 0.4,
                "changelog/": 0.8,
                "dialects/mssql": 0.5,
                "dialects/oracle": 0.5,
                "orm/extensions/declarative/": 0.9,
                "orm/queryguide/query.html": 0.6,  # what was before select()
                "core/exceptions.html": 0.8,  # a line each; errors.html explains
            },
        ),
        Library(
            "alembic",
            sources=("sdist", "pages", "installed"),
            site="https://alembic.sqlalchemy.org/en/latest/",
            html="docs/",
            search_index=("searchindex.js",),
            prior=_NOT_FOR_READERS
            | {"build/": 0.0, "py-modindex": 0.0, "changelog": 0.4, "api/ddl": 0.4, "api/": 0.8},
        ),
        Library(
            "sqlmodel",
            sources=("tag", "sdist", "site", "installed"),
            site="https://sqlmodel.tiangolo.com/",
            archive="https://github.com/fastapi/sqlmodel/archive/refs/tags/{version}.tar.gz",
            markdown="docs/",
            search_index=("search.json", "search/search_index.json"),
            prior={"release-notes": 0.4, "management": 0.0, "contributing": 0.0},
            with_sqlalchemy=(
                "orm/extensions/asyncio.html",
                "orm/queryguide/",
                "orm/session_",
                "errors.html",
            ),
        ),
        Library(
            "fastapi",
            sources=("tag", "sdist", "site", "installed"),
            site="https://fastapi.tiangolo.com/",
            archive="https://github.com/fastapi/fastapi/archive/refs/tags/{version}.tar.gz",
            markdown="docs/en/docs/",
            search_index=("search.json", "search/search_index.json"),
            prior={
                "release-notes": 0.4,
                "newsletter": 0.0,
                "external-links": 0.0,
                "fastapi-people": 0.0,
                "management": 0.0,
                "contributing": 0.0,
            },
        ),
        Library(
            "asyncpg",
            sources=("sdist", "tag", "installed"),
            site="https://magicstack.github.io/asyncpg/current/",
            archive="https://github.com/MagicStack/asyncpg/archive/refs/tags/v{version}.tar.gz",
            rst=("docs/",),
        ),
        Library(
            "psycopg",
            sources=("tag", "pages", "installed"),
            site="https://www.psycopg.org/psycopg3/docs/",
            archive="https://github.com/psycopg/psycopg/archive/refs/tags/{version}.tar.gz",
            rst=("docs/",),
            search_index=("searchindex.js",),
            prior={"news": 0.4, "release": 0.0},
        ),
        Library(
            "aiosqlite",
            sources=("sdist", "tag", "installed"),
            site="https://aiosqlite.omnilib.dev/en/stable/",
            archive="https://github.com/omnilib/aiosqlite/archive/refs/tags/v{version}.tar.gz",
            rst=("docs/", "README.rst"),
            prior={"changelog": 0.4, "contributing": 0.0},
        ),
        Library(
            "pydantic",
            sources=("tag", "installed"),
            site="https://docs.pydantic.dev/{minor}/",
            archive="https://github.com/pydantic/pydantic/archive/refs/tags/v{version}.tar.gz",
            markdown="docs/",
            prior={"pydantic_people": 0.0, "contributing": 0.0, "changelog": 0.4},
        ),
    )
}
