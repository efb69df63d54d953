"""Which version of a library the project uses. Nothing of the project is run: lock files and
metadata are read as text.
"""

import os
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from . import USAGE, Failed

ROOT_MARKS = ("pyproject.toml", "uv.lock", "pylock.toml", "requirements.txt", ".git")
LOCKS = ("uv.lock", "pylock.toml", "pylock.*.toml", "poetry.lock", "pdm.lock")
REQUIREMENTS = ("requirements.txt", "requirements*.txt", "requirements/*.txt")


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a library, and why that one."""

    library: str
    version: str
    origin: str
    """`--version`, `uv.lock`, `installed in .venv`, `pin in pyproject.toml` ..."""
    sha256: str = ""
    """Of its sdist, if the lock file names it. (The address is not taken from there: a project
    could name any, and what comes from it would be everybody's documentation.)
    """
    notes: tuple[str, ...] = ()
    """Files that could not be read on the way, one line each."""


def project_root(start: Path) -> Path:
    """The nearest folder, from `start` upwards, that looks like a project; else `start`. Folders of
    another owner are not looked at: a file in a shared one would decide for all below it.
    """
    start = start.absolute()
    owner = _owner(start)
    for folder in (start, *start.parents):
        if owner is not None and _owner(folder) != owner:
            break
        if any((folder / mark).exists() for mark in ROOT_MARKS):
            return folder
    return start


def _owner(folder: Path) -> int | None:
    try:
        return folder.stat().st_uid
    except OSError:
        return None


def site_packages(root: Path) -> list[Path]:
    """Where the project's environment keeps its packages; no code of it is run."""
    return _environment(root)[1]


def find_release(library: str, root: Path, wanted: str | None) -> Release | None:
    """The version of `library` (a normalised name) that the project at `root` uses.

    In this order: `wanted`, lock files, what is installed, an exact pin in pyproject.toml.
    None if none of them says. Raises Failed(USAGE) if `wanted` is not a version.
    """
    if wanted is not None:
        return Release(library, _checked(wanted), "--version")
    notes: list[str] = []
    where, paths = _environment(root)
    installed = _installed(library, paths)
    locked = next(_locked(library, root, notes), None)
    if locked:
        version, origin, digest = locked
        if installed and version_key(installed) != version_key(version):
            origin += f"; {installed} is installed"
        return Release(library, version, origin, digest, tuple(notes))
    if installed:
        return Release(library, installed, f"installed in {where}", "", tuple(notes))
    pin = _pinned(library, root, notes)
    return Release(library, pin, "pin in pyproject.toml", "", tuple(notes)) if pin else None


# Versions

_VERSION = re.compile(
    r"""v? (?:(?P<epoch>\d{1,9})!)? (?P<release>\d{1,9}(?:\.\d{1,9}){0,9})
    (?:[-_.]? (?P<pre>a|b|c|rc|alpha|beta|pre|preview) [-_.]? (?P<pre_number>\d{0,9}))?
    (?:-(?P<implicit>\d{1,9}) | [-_.]? (?P<post>post|rev|r) [-_.]? (?P<post_number>\d{0,9}))?
    (?:[-_.]? (?P<dev>dev) [-_.]? (?P<dev_number>\d{0,9}))?
    (?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_PRE = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}


def version_key(version: str) -> tuple[Any, ...] | None:
    """Sorts and compares versions as PEP 440 does; local parts are ignored. None: not one.

    `packaging` does this too, but takes longer to import than all that a cached query needs.
    """
    match = _VERSION.fullmatch(version.strip())
    if match is None:
        return None
    release = [int(part) for part in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    post = int(match["implicit"] or match["post_number"] or 0)
    after = post if match["implicit"] or match["post"] else -1
    if match["pre"]:
        name = match["pre"].lower()
        before = (_PRE.get(name, name), int(match["pre_number"] or 0))
    else:  # "" sorts before any letter: 2.1.dev1 comes before 2.1a1
        before = ("" if match["dev"] and after < 0 else "~", 0)
    dev = (0, int(match["dev_number"] or 0)) if match["dev"] else (1, 0)
    return (int(match["epoch"] or 0), release, before, after, dev)


def _checked(wanted: str) -> str:
    if version_key(wanted) is None:
        raise Failed(f"--version {wanted!r} is not a version; 2.1.9 would be one", USAGE)
    return wanted.strip().lower().removeprefix("v")


def highest(versions: list[str]) -> str:
    return max(versions, key=lambda version: version_key(version) or ())


def same_version(one: str, other: str) -> bool:
    return version_key(one) is not None and version_key(one) == version_key(other)


# Lock files

_Locked = tuple[str, str, str]
"""Version, origin, sha256 of the sdist or ""."""
_PACKAGE = re.compile(r"^\[\[packages?\]\]", re.MULTILINE)


def _upwards(root: Path) -> list[Path]:
    """From `root` to the repository's top: a workspace keeps one lock file and one .venv there.
    Outside a repository only `root`: what lies in folders above may be anybody's.
    """
    folders = [root, *root.parents]
    top = next((n for n, folder in enumerate(folders) if (folder / ".git").exists()), 0)
    return folders[: top + 1]


def _locked(library: str, root: Path, notes: list[str]) -> Iterator[_Locked]:
    """What each lock file says, the one that counts first."""
    readers = [(name, _lock_entries) for name in LOCKS]
    readers += [(name, _requirement_pins) for name in REQUIREMENTS]
    seen: set[Path] = set()
    for folder in _upwards(root):
        for pattern, read in readers:
            for path in sorted(set(folder.glob(pattern)) - seen):
                seen.add(path)
                try:
                    found = read(_text(path), library)
                except (OSError, ValueError, RecursionError) as error:  # also of TOML, encoding
                    notes.append(f"{path.name} cannot be read: {error}")
                    continue
                yield from _chosen(path.relative_to(folder).as_posix(), found)


def _chosen(name: str, found: dict[str, str]) -> Iterator[_Locked]:
    if not found:
        return
    version = highest(list(found))
    others = [other for other in found if other != version]
    origin = f"{name}, the highest there; also {', '.join(others)}" if others else name
    yield version, origin, found[version]


def _lock_entries(text: str, library: str) -> dict[str, str]:
    """The versions in a lock file's blocks of that package, with their sdists.

    Only these blocks are parsed: for a large file, ten times as fast as all of it.
    """
    name = re.compile(rf"^name\s*=\s*[\"']{_name_pattern(library)}[\"']", _FLAGS)
    starts = [match.start() for match in _PACKAGE.finditer(text)] + [len(text)]
    found: dict[str, str] = {}
    for match in name.finditer(text):
        block = bisect_right(starts, match.start())
        if block == 0:
            continue  # above the first package
        entry = _parse_block(text[starts[block - 1] : starts[block]])
        version = entry.get("version")
        own = name.match(f"name = {entry.get('name')!r}")  # not of a table within the package
        if own and isinstance(version, str) and version_key(version):
            found[version] = _digest(entry)
    return found


def _parse_block(text: str) -> dict[str, Any]:
    import tomllib

    document: dict[str, Any] = tomllib.loads(text)
    return (document.get("package") or document["packages"])[0]  # type: ignore[no-any-return]


def _digest(entry: dict[str, Any]) -> str:
    """From `sdist = { hash = "sha256:..." }` or `sdist = { hashes = { sha256 = "..." } }`."""
    match entry.get("sdist"):
        case {"hashes": {"sha256": str(digest)}} | {"hash": str(digest)}:
            digest = digest.removeprefix("sha256:")
            return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else ""
        case _:
            return ""


_FLAGS = re.MULTILINE | re.IGNORECASE


def _name_pattern(library: str) -> str:
    return r"[-_.]+".join(map(re.escape, library.split("-")))


def _requirement_pins(text: str, library: str) -> dict[str, str]:
    pin = re.compile(
        rf"^[ \t]*+{_name_pattern(library)}[ \t]*+"
        r"(?:\[[^\]\n]*\][ \t]*+)?===?[ \t]*+([^\s;,#\\]++)",
        _FLAGS,
    )
    return {version: "" for version in pin.findall(text) if version_key(version)}


def _pinned(library: str, root: Path, notes: list[str]) -> str | None:
    """The exact pin in pyproject.toml: dependencies, extras, dependency groups."""
    path = root / "pyproject.toml"
    if not path.exists():
        return None
    import tomllib

    try:
        project = tomllib.loads(_text(path))
        tables = project.get("project", {})
        lists = [
            tables.get("dependencies", []),
            *tables.get("optional-dependencies", {}).values(),
            *project.get("dependency-groups", {}).values(),
        ]
        lines = [line for entries in lists for line in entries if isinstance(line, str)]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        notes.append(f"pyproject.toml cannot be read: {error}")
        return None
    pins = list(_requirement_pins("\n".join(lines), library))
    return highest(pins) if pins else None


# What is installed


def _environment(root: Path) -> tuple[str, list[Path]]:
    """The environment's name for the reader, and its folders of packages."""
    for name, prefix in _prefixes(root):
        # lib64 is a link to lib on some systems; Windows has Lib without a version
        folders = [*prefix.glob("lib*/py*3*/site-packages"), prefix / "Lib" / "site-packages"]
        found = {folder.resolve() for folder in folders if folder.is_dir()}
        if found:
            return name, sorted(found, reverse=True)
    ours = [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    return "the running Python", ours


def _prefixes(root: Path) -> Iterator[tuple[str, Path]]:
    if named := os.environ.get("UV_PROJECT_ENVIRONMENT"):
        yield named, root / named
    for folder in _upwards(root):
        yield ".venv", folder / ".venv"
        yield "venv", folder / "venv"
    active = os.environ.get("VIRTUAL_ENV")
    # `uv run --script` sets it to the script's own environment, which is nobody's project
    own = "UV_RUN_RECURSION_DEPTH" in os.environ and active == sys.prefix
    if active and not own:
        yield active, Path(active)
    if conda := os.environ.get("CONDA_PREFIX"):
        yield conda, Path(conda)


def _installed(library: str, paths: list[Path]) -> str | None:
    """The version that the metadata folder tells. (Importing importlib.metadata alone takes
    three times as long as reading it here.)
    """
    folder = re.compile(rf"{_name_pattern(library)}-[^-]+.*\.(dist|egg)-info", re.IGNORECASE)
    for path in paths:
        try:
            names = [name for name in os.listdir(path) if folder.fullmatch(name)]  # noqa: PTH208
        except OSError:
            continue
        versions = [version for name in names if (version := _metadata_version(path / name))]
        if versions:
            return highest(versions)
    return None


def _metadata_version(folder: Path) -> str | None:
    for name in ("METADATA", "PKG-INFO"):
        try:
            text = _text(folder / name)
        except (OSError, ValueError):
            continue
        match = re.search(r"^Version:\s*(\S+)", text, re.MULTILINE)
        if match and version_key(match[1]):
            return match[1]
    return None


# Files

LARGEST = 50_000_000
"""Bytes. A lock file of a thousand packages has 3 million."""


def _text(path: Path) -> str:
    """Raises OSError for what is no file of a usual size: a pipe would hang, a device never end."""
    stat = path.stat()
    if not S_ISREG(stat.st_mode) or stat.st_size > LARGEST:
        raise OSError("not a regular file of a usual size")
    return path.read_text(encoding="utf-8")
