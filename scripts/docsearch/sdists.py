"""Where the sdist of a version is: on the index that the user's own settings of uv or pip name.

A project's settings are not read: with an override, uv builds what they name, and an index of
theirs would make the documentation that other projects get, too.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import NO_SUCH_VERSION, Failed, Unavailable
from .releases import highest, same_version, version_key

if TYPE_CHECKING:
    from unearth import Package, PackageFinder

UV_SECONDS = 60
PIP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Sdist:
    """A source archive on the user's index."""

    url: str
    """https, or `file:` where the user's settings name a folder."""
    sha256: str


def find_sdist(library: str, version: str | None, *, offline: bool) -> tuple[str, Sdist]:
    """The version (None: the newest) and its sdist: asked of uv, else of the index that pip's
    settings name. Nothing is downloaded but index pages.

    Raises Failed(NO_SUCH_VERSION) if the index has not got that version, and Unavailable if
    it cannot be asked or has no usable sdist.
    """
    problems: list[str] = []
    for ask in (_ask_uv, _ask_pip):
        try:
            return ask(library, version, offline)
        except Unavailable as problem:
            problems.append(str(problem))
    raise Unavailable("; ".join(problems))


# The index, asked through uv


def _ask_uv(library: str, version: str | None, offline: bool) -> tuple[str, Sdist]:
    """By `uv pip compile --no-deps`, which reads index pages only: with no dependencies to
    find, it needs the metadata of no file, and so builds nothing.
    """
    try:
        entry = _compile(f"{library}=={version}" if version else library, offline)
    except Unavailable as error:
        if version and not offline and "there is no version of" in str(error):
            raise Failed(_no_such_version(library, version), NO_SUCH_VERSION) from None
        raise
    found = str(entry.get("version"))
    if version and not same_version(found, version):
        raise Unavailable(f"uv's settings replace {library} {version} by {found}")
    match entry.get("sdist"):
        case {"url": str(url), "hashes": {"sha256": str(digest)}}:
            _require_https(url)
            return version or found, Sdist(url, digest)
        case _:
            raise Unavailable(f"{library} {found} has no sdist with a sha256 on uv's index")


def _no_such_version(library: str, version: str) -> str:
    text = f"{library} {version} is not on your index"
    try:
        before = _compile(f"{library}<{version}", offline=False)
    except Unavailable:
        return text
    return f"{text}; the nearest before it is {before.get('version')}"


def _compile(requirement: str, offline: bool) -> dict[str, Any]:
    """The package's entry in uv's answer. Raises Unavailable with what uv says instead."""
    import subprocess
    import tomllib

    command = [
        *_uv(),
        *("pip", "compile", "-", "--no-deps", "--format", "pylock.toml", "--no-header"),
        *("--no-progress", "--quiet", "--color", "never"),
        *("--python", sys.executable),  # the project's own Python need not be started
        *(["--offline"] if offline else []),
    ]
    try:
        done = subprocess.run(
            command,
            input=requirement,
            cwd=_users_folder(),  # uv reads the settings of where it stands
            env={"UV_HTTP_RETRIES": "1", **os.environ},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=UV_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"uv gave no answer within {UV_SECONDS} s") from None
    except OSError as error:
        raise Unavailable(f"uv cannot be started: {error}") from None
    if done.returncode != 0:
        raise Unavailable(f"uv finds no {requirement}: {_one_line(done.stderr)}")
    try:
        entry: dict[str, Any] = tomllib.loads(done.stdout)["packages"][0]
    except (ValueError, LookupError) as error:
        raise Unavailable(f"uv's answer is not a pylock.toml: {_one_line(error)}") from None
    return entry


def _users_folder() -> Path:
    """Where no project is but the user's own."""
    home = Path.home()
    return home if home.is_dir() else Path(home.anchor)


def _uv() -> list[str]:
    """How to start uv. Raises Unavailable without one."""
    import importlib.util
    import shutil

    found = shutil.which("uv")
    # Windows looks into the current folder first, which may be the project
    if found and Path(found).absolute().parent.resolve() != Path.cwd().resolve():
        return [str(Path(found).absolute())]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-P", "-m", "uv"]  # -P: not a uv.py lying in the project
    raise Unavailable("uv is not installed")


# The index, asked with pip's settings


def _ask_pip(library: str, version: str | None, offline: bool) -> tuple[str, Sdist]:
    """With unearth, for those who have no uv."""
    finder = _finder(offline)
    asked = f"{library}=={version}" if version else library
    try:
        files = list(finder.find_matches(asked, allow_prereleases=version is not None))
        others = [] if files else list(finder.find_all_packages(library, allow_yanked=True))
    except Exception as error:  # of whichever HTTP client this release of unearth is built on
        raise Unavailable(f"pip's index cannot be asked for {asked}: {_one_line(error)}") from None
    if files:
        return _best(files)
    if version and others:
        raise Failed(_not_among(others, library, version), NO_SUCH_VERSION)
    raise Unavailable(f"pip's index lists no release of {library}")


def _best(files: "list[Package]") -> tuple[str, Sdist]:
    """The first sdist with a sha256 among the files of the best version, which is first."""
    version = str(files[0].version)
    sdists = [
        file.link
        for file in files
        if file.version == version and file.link.filename.endswith(".tar.gz")
    ]
    if not sdists:
        raise Unavailable(f"{files[0].name} {version} has no sdist on pip's index")
    for link in sdists:
        if digest := (link.hash_option or {}).get("sha256"):
            _require_https(link.url_without_fragment)
            return version, Sdist(link.url_without_fragment, digest[0])
    raise Unavailable(f"pip's index gives no sha256 for {sdists[0].filename}")


def _not_among(files: "list[Package]", library: str, version: str) -> str:
    wanted = version_key(version) or ()
    known = {file.version: version_key(file.version) for file in files if file.version}
    before = [name for name, key in known.items() if key and key < wanted]
    nearest = f"; the nearest before it is {highest(before)}" if before else ""
    return f"{library} {version} is not on your index{nearest}"


def _finder(offline: bool) -> "PackageFinder":
    try:
        from unearth import PackageFinder
    except ImportError:
        raise Unavailable("unearth, which reads pip's index, is not installed") from None
    import logging

    logging.getLogger("unearth").addHandler(logging.NullHandler())  # else it warns on stderr
    settings = _pip_settings()
    default = PackageFinder().sources[0]["url"]  # what pip and it use if nothing is configured
    indexes = [settings.get("index-url") or default, *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    folders = settings.get("find-links", "").split()
    links = [link for link in folders if "://" in link or Path(link).exists()]
    if not indexes and not links:
        raise Unavailable("pip's settings name no index")
    for url in (*indexes, *links):
        _require_https(url)
        if offline and url.startswith("https://"):
            raise Unavailable("offline: pip's index is not asked")
    return PackageFinder(index_urls=indexes, find_links=links, ignore_compatibility=True)


def _pip_settings() -> dict[str, str]:
    """What `pip install` would use: its files, then the environment."""
    settings: dict[str, str] = {}
    sections: dict[str, dict[str, str]] = {}
    for line in _pip_config().splitlines():
        key, equals, value = line.partition("=")
        section, dot, name = key.rpartition(".")
        if equals and dot:
            sections.setdefault(section, {})[name] = _unquoted(value)
    for section in ("global", "install"):
        settings |= sections.get(section, {})
    for name in ("index-url", "extra-index-url", "find-links", "no-index"):
        variable = "PIP_" + name.upper().replace("-", "_")
        if variable in os.environ:
            settings[name] = os.environ[variable]
    return settings


def _pip_config() -> str:
    import subprocess

    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pip", "config", "list"],  # -P: not a pip.py lying here
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_SECONDS,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return ""
    return done.stdout if done.returncode == 0 else ""  # uv's environments have no pip


def _unquoted(value: str) -> str:
    import ast

    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def _require_https(url: str) -> None:
    """Raises Unavailable for anything but https or a folder."""
    if "://" in url and not url.startswith(("file://", "https://")):
        raise Unavailable(f"{_one_line(url)} is not https, which is required of an index")


def _one_line(message: object) -> str:
    """Without the credentials of any address in it."""
    text = " ".join(str(message).split())
    return re.sub(r"(?<=//)[^/@\s]+@", "", text)[:400] or "no reason given"
