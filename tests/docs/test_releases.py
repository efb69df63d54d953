"""Which version a project uses, and where its sdist is: real uv and unearth on a local index."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from packaging.version import Version

from docsearch import NO_SUCH_VERSION, USAGE, Failed, Unavailable
from docsearch.releases import (
    Release,
    find_release,
    project_root,
    site_packages,
    version_key,
)
from docsearch.sdists import Sdist, find_sdist

DIGEST = "ab" * 32
URL = "https://index.example/files/sqlalchemy-2.1.9.tar.gz"

UV_LOCK = f"""version = 1
revision = 3

[[package]]
name = "sqlalchemy-utils"
version = "0.41"
source = {{ registry = "https://index.example/simple" }}
dependencies = [
    {{ name = "sqlalchemy" }},
]

[[package]]
name = "sqlalchemy"
version = "2.1.9"
source = {{ registry = "https://index.example/simple" }}
sdist = {{ url = "{URL}", hash = "sha256:{DIGEST}", size = 10657094 }}
wheels = [
    {{ url = "https://index.example/sqlalchemy-2.1.9-py3-none-any.whl", hash = "sha256:00" }},
]

[package.optional-dependencies]
asyncio = [
    {{ name = "greenlet" }},
]

[[package]]
name = "typing-extensions"
version = "4.16"
"""
PYLOCK = f"""lock-version = "1.0"
created-by = "uv"

[[packages]]
name = "greenlet"
version = "3.2"

[[packages]]
name = "sqlalchemy"
version = "2.1.9"

[packages.sdist]
url = "{URL}"
size = 10657094

[packages.sdist.hashes]
sha256 = "{DIGEST}"

[[packages.wheels]]
name = "sqlalchemy-2.1.9-py3-none-any.whl"
"""
POETRY_LOCK = """[[package]]
name = "SQLAlchemy"
version = "2.1.9"
description = ""
files = [
    {file = "sqlalchemy-2.1.9.tar.gz", hash = "sha256:00"},
]

[package.dependencies]
greenlet = {version = ">=1", optional = true}

[metadata]
lock-version = "2.1"
"""
HASHED = """# made by a compiler
greenlet==3.2 --hash=sha256:00
sqlalchemy[asyncio]==2.1.9 ; python_version >= "3.11" \\
    --hash=sha256:01 \\
    --hash=sha256:02
"""


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of the settings of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_")):
            monkeypatch.delenv(name)
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project, with an environment that has nothing of interest."""
    root = tmp_path / "project"
    (root / ".git").mkdir(parents=True)
    install(root / ".venv", "other-1.0.dist-info", "1.0")
    return root


def install(prefix: Path, folder: str, version: str) -> Path:
    packages = prefix / "lib" / "python3.12" / "site-packages"
    (packages / folder).mkdir(parents=True, exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: SQLAlchemy\nVersion: {version}\n\nVersion: 99\n"
    (packages / folder / "METADATA").write_text(text)
    return packages


def release(root: Path, wanted: str | None = None) -> Release:
    found = find_release("sqlalchemy", root, wanted)
    assert found is not None
    return found


# The version


@pytest.mark.parametrize(
    ("file", "text", "digest"),
    [
        ("uv.lock", UV_LOCK, DIGEST),
        ("uv.lock", UV_LOCK.replace("\n", "\r\n"), DIGEST),
        ("pylock.toml", PYLOCK, DIGEST),
        ("pylock.dev.toml", PYLOCK, DIGEST),
        ("poetry.lock", POETRY_LOCK, ""),
        ("pdm.lock", POETRY_LOCK, ""),
        ("requirements.txt", HASHED, ""),
        ("requirements-dev.txt", "SQLAlchemy == 2.1.9  # why\nsqlalchemy-utils==1.0\n", ""),
        ("requirements/base.txt", "sqlalchemy===2.1.9\n", ""),
    ],
)
def test_a_lock_file_says(root: Path, file: str, text: str, digest: str) -> None:
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_bytes(text.encode())
    assert find_release("sqlalchemy", root, None) == Release("sqlalchemy", "2.1.9", file, digest)


def test_the_order_of_what_says(root: Path) -> None:
    assert find_release("sqlalchemy", root, None) is None
    (root / "pyproject.toml").write_text('[project]\ndependencies = ["sqlalchemy==2.0.1"]\n')
    assert (release(root).version, release(root).origin) == ("2.0.1", "pin in pyproject.toml")
    install(root / ".venv", "sqlalchemy-2.0.2.dist-info", "2.0.2")
    assert (release(root).version, release(root).origin) == ("2.0.2", "installed in .venv")
    (root / "requirements.txt").write_text("sqlalchemy==2.0.3\n")
    assert release(root).version == "2.0.3"
    (root / "uv.lock").write_text(UV_LOCK)
    assert (release(root).version, release(root).origin) == ("2.1.9", "uv.lock; 2.0.2 is installed")
    wanted = release(root, "v2.0.45")
    assert (wanted.version, wanted.origin) == ("2.0.45", "--version")


def test_installed_as_locked_needs_no_word(root: Path) -> None:
    install(root / ".venv", "sqlalchemy-2.1.9.dist-info", "2.1.9")
    (root / "uv.lock").write_text(UV_LOCK)
    assert release(root).origin == "uv.lock"


def test_several_versions_in_a_lock(root: Path) -> None:
    old = UV_LOCK.replace("2.1.9", "2.1.10b1") + UV_LOCK.partition("revision = 3")[2]
    (root / "uv.lock").write_text(old)
    assert release(root).version == "2.1.10b1"
    assert release(root).origin == "uv.lock, the highest there; also 2.1.9"


@pytest.mark.parametrize(
    ("broken", "note"),
    [
        (UV_LOCK.replace('version = "2.1.9"', "<<<<<<< HEAD"), "uv.lock cannot be read: "),
        (UV_LOCK.replace('version = "2.1.9"', 'version = "2.1'), "uv.lock cannot be read: "),
        (b'name = "\xff"', "uv.lock cannot be read: 'utf-8'"),
    ],
)
def test_a_broken_lock_is_told_and_passed_over(root: Path, broken: str | bytes, note: str) -> None:
    (root / "uv.lock").write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    (root / "requirements.txt").write_text("sqlalchemy==2.0.3\n")
    found = release(root)
    assert (found.version, found.origin) == ("2.0.3", "requirements.txt")
    assert len(found.notes) == 1
    assert found.notes[0].startswith(note)


def test_only_the_block_of_the_package_is_parsed(root: Path) -> None:
    (root / "uv.lock").write_text(UV_LOCK + "\n[[package]]\nname = this is not TOML\n")
    assert release(root).version == "2.1.9"


def test_a_broken_pyproject_is_no_pin(root: Path) -> None:
    (root / "pyproject.toml").write_text("[project\n")
    assert find_release("sqlalchemy", root, None) is None
    (root / "pyproject.toml").write_text("project = 1\n")
    assert find_release("sqlalchemy", root, None) is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('[project]\ndependencies = ["SQLAlchemy[asyncio] == 2.0.1"]', "2.0.1"),
        ('[project.optional-dependencies]\nx = ["sqlalchemy==2.0.1"]', "2.0.1"),
        ('[dependency-groups]\nx = [{include-group = "y"}, "sqlalchemy==2.0.1"]', "2.0.1"),
        ('[project]\ndependencies = ["sqlalchemy>=2.0.1", "sqlalchemy-utils==1"]', None),
        ('[project]\ndependencies = ["sqlalchemy==2.0.*"]', None),
    ],
)
def test_pins_in_pyproject(root: Path, text: str, version: str | None) -> None:
    (root / "pyproject.toml").write_text(text)
    found = find_release("sqlalchemy", root, None)
    assert (found.version if found else None) == version


@pytest.mark.parametrize("digest", ["", "md5:" + DIGEST[:32], DIGEST[:-1], "../" + DIGEST])
def test_a_hash_that_is_none(root: Path, digest: str) -> None:
    (root / "uv.lock").write_text(UV_LOCK.replace(f"sha256:{DIGEST}", digest))
    assert (release(root).version, release(root).sha256) == ("2.1.9", "")


def test_the_name_in_a_table_of_another_package_is_not_its_name(root: Path) -> None:
    (root / "uv.lock").write_text(
        '[[package]]\nname = "other"\nversion = "9"\n[package.metadata]\nname = "sqlalchemy"\n'
    )
    assert find_release("sqlalchemy", root, None) is None


@pytest.mark.parametrize("text", ["[" * 3000, "sqlalchemy" + " " * 1_000_000, "9" * 100_000])
def test_hostile_files_end(root: Path, text: str) -> None:
    for name in ("pyproject.toml", "requirements.txt"):
        (root / name).write_text(text)
    (root / "uv.lock").write_text('[[package]]\nname = "sqlalchemy"\n' * 20_000 + text)
    install(root / ".venv", "sqlalchemy-2.0.2.dist-info", "9" * 5000)
    assert find_release("sqlalchemy", root, None) is None


def test_a_folder_of_somebody_else_is_not_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uv.lock").touch()
    mine = tmp_path / "mine"
    mine.mkdir()
    assert project_root(mine) == tmp_path
    real = Path.stat

    def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = real(self, follow_symlinks=follow_symlinks)
        return os.stat_result([*found[:4], found.st_uid + 1 * (self == tmp_path), *found[5:]])

    monkeypatch.setattr(Path, "stat", stat)
    assert project_root(mine) == mine


def test_an_invalid_version_is_the_callers_mistake(root: Path) -> None:
    with pytest.raises(Failed, match=r"--version '2\.1 or newer' is not a version") as failed:
        find_release("sqlalchemy", root, "2.1 or newer")
    assert failed.value.code == USAGE


ORDERED = (  # noqa: SIM905
    "0.9 1.0.dev3 1.0a1.dev2 1.0a1 1.0a2 1.0b1 1.0rc1 1.0rc2.post1 1.0 1.0.post1.dev1 1.0.post1"
    " 1.0.1 1.2 1.10 2.0.45 1!0.1"
).split()


def test_versions_sort_as_in_packaging() -> None:
    assert sorted(ORDERED, key=Version) == ORDERED
    for lower, higher in pairwise(ORDERED):
        assert (version_key(lower) or ()) < (version_key(higher) or ()), (lower, higher)
    for same in (("1.0", "v1", "1.0.0", " 1.0 ", "1.0+local.1"), ("2b1", "2.0.beta-1", "2.0B1")):
        assert len({str(version_key(version)) for version in same}) == 1
    for wrong in ("", "x", "1..0", "1.0-", "2.*", "1.0 or newer", "\u0661"):
        assert version_key(wrong) is None


# The environment


def test_the_environment_of_the_project(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root / ".venv")
    member = root / "packages" / "api"
    member.mkdir(parents=True)
    assert set(site_packages(member)) <= {Path(entry) for entry in sys.path}
    conda = install(tmp_path / "conda", "x", "1")
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    assert site_packages(member) == [conda]
    active = install(tmp_path / "active", "x", "1")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "active"))
    assert site_packages(member) == [active]
    near = install(root / ".venv", "x", "1")
    assert site_packages(member) == [near]
    named = install(member / "env", "x", "1")
    monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", "env")
    assert site_packages(member) == [named]


def test_the_environment_of_the_script_is_not_the_projects(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root / ".venv")
    conda = install(tmp_path / "conda", "x", "1")
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert conda not in site_packages(root)
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert site_packages(root) == [conda]


def test_a_workspace_keeps_its_lock_at_the_top(root: Path) -> None:
    member = root / "packages" / "api"
    member.mkdir(parents=True)
    (member / "pyproject.toml").write_text("[project]\n")
    (root / "uv.lock").write_text(UV_LOCK)
    assert project_root(member / "src") == member
    assert release(member).origin == "uv.lock"


def test_nothing_above_the_repository_counts(root: Path) -> None:
    (root.parent / "uv.lock").write_text(UV_LOCK)
    install(root.parent / ".venv", "SQLAlchemy-2.0.2.dist-info", "2.0.2")
    (root / "pyproject.toml").write_text("[project]\n")
    assert find_release("sqlalchemy", root, None) is None
    (root / ".git").rmdir()
    assert find_release("sqlalchemy", root, None) is None


def test_what_is_installed_under_another_spelling(root: Path) -> None:
    packages = install(root / ".venv", "SQLAlchemy-2.0.2.dist-info", "2.0.2")
    install(root / ".venv", "sqlalchemy_utils-41.0.dist-info", "41.0")
    (packages / "sqlalchemy-9.dist-info").mkdir()  # what a failed removal leaves behind
    assert release(root).version == "2.0.2"


def test_a_cached_query_imports_nothing_slow(root: Path) -> None:
    (root / "uv.lock").write_text(UV_LOCK)
    install(root / ".venv", "sqlalchemy-2.1.9.dist-info", "2.1.9")
    program = (
        "import sys; from pathlib import Path; from docsearch.releases import find_release\n"
        "assert find_release('sqlalchemy', Path(sys.argv[1]), None).version == '2.1.9'\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(root)],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {"importlib.metadata", "packaging", "subprocess", "unearth", "httpx"}
    assert "docsearch.releases" in done.stdout.split()
    assert not slow & set(done.stdout.split())


# The index


def sdist(folder: Path, version: str) -> None:
    """A source archive whose build backend would leave a file behind."""
    settings = '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n'
    files = {
        "PKG-INFO": f"Metadata-Version: 1.0\nName: demo\nVersion: {version}\n",
        "pyproject.toml": settings,
        "b.py": f"open({str(folder / 'BUILT')!r}, 'w').close()\n",
    }
    with tarfile.open(folder / f"demo-{version}.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"demo-{version}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def wheel(folder: Path, version: str) -> None:
    info = f"demo-{version}.dist-info"
    with zipfile.ZipFile(folder / f"demo-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: demo\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def write_page(folder: Path, *, hashes: bool = True) -> None:
    links: list[str] = []
    for file in sorted(folder.glob("demo-*")):
        digest = f"#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}" if hashes else ""
        links.append(f'<a href="{file.name}{digest}">{file.name}</a><br>')
    (folder / "index.html").write_text("<!doctype html>\n" + "\n".join(links))


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The page of one package on an index: 1.0 and 1.1 without wheels, 1.2 only as a wheel."""
    folder = tmp_path / "simple" / "demo"
    folder.mkdir(parents=True)
    sdist(folder, "1.0")
    sdist(folder, "1.1")
    sdist(folder, "1.3a1")
    wheel(folder, "1.2")
    write_page(folder)
    return folder


class Asked:
    """An index, asked through the settings of one tool; the other one's lead nowhere."""

    def __init__(self, tool: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tool, self.root, self.env = tool, root, monkeypatch
        self.offline = tool == "pip"  # uv then gives up on its index without asking it

    def configure(self, url: str) -> None:
        nowhere = "https://index.invalid/simple"
        self.env.setenv("UV_DEFAULT_INDEX", url if self.tool == "uv" else nowhere)
        self.env.setenv("PIP_INDEX_URL", url if self.tool == "pip" else nowhere)

    def find(self, version: str | None) -> tuple[str, Sdist]:
        return find_sdist("demo", version, offline=self.offline)


@pytest.fixture(params=["uv", "pip"])
def asked(
    request: pytest.FixtureRequest, root: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> Asked:
    asked = Asked(request.param, root, monkeypatch)
    asked.configure(demo.parent.as_uri())
    return asked


def test_the_sdist_of_a_version(asked: Asked, demo: Path) -> None:
    version, found = asked.find("1.0")
    archive = demo / "demo-1.0.tar.gz"
    assert version == "1.0"
    assert (found.url, found.sha256) == (
        archive.as_uri(),
        hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    assert not (demo / "BUILT").exists()


def test_the_newest_version(asked: Asked, demo: Path) -> None:
    (demo / "demo-1.2-py3-none-any.whl").unlink()
    write_page(demo)
    version, found = asked.find(None)
    assert (version, found.url) == ("1.1", (demo / "demo-1.1.tar.gz").as_uri())
    assert not (demo / "BUILT").exists()


def test_a_version_that_is_not_there(asked: Asked) -> None:
    with pytest.raises(Failed) as failed:
        asked.find("1.1.7")
    assert str(failed.value) == "demo 1.1.7 is not on your index; the nearest before it is 1.1"
    assert failed.value.code == NO_SUCH_VERSION


def test_a_version_without_an_sdist(asked: Asked) -> None:
    with pytest.raises(Unavailable, match=r"demo 1\.2 has no sdist "):
        asked.find("1.2")


def test_an_index_without_hashes(asked: Asked, demo: Path) -> None:
    write_page(demo, hashes=False)
    if asked.tool == "uv":  # reads the file to know its hash
        digest = hashlib.sha256((demo / "demo-1.0.tar.gz").read_bytes()).hexdigest()
        assert asked.find("1.0")[1].sha256 == digest
        assert not (demo / "BUILT").exists()
    else:
        with pytest.raises(Unavailable, match=r"gives no sha256 for demo-1\.0\.tar\.gz"):
            asked.find("1.0")


def test_an_index_without_the_package(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    asked.configure((tmp_path / "empty").as_uri())
    with pytest.raises(Unavailable, match="demo"):
        asked.find("1.0")


def test_credentials_are_not_printed(asked: Asked) -> None:
    asked.configure("https://user:hunter2@127.0.0.1:1/simple")
    with pytest.raises(Unavailable) as unavailable:
        asked.find("1.0")
    assert "hunter2" not in str(unavailable.value)
    assert "demo" in str(unavailable.value)


def test_uv_asks_the_index_that_the_users_settings_name(
    root: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that of a project, where the program runs."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.chdir(root)
    text = f'[[index]]\nurl = "{demo.parent.as_uri()}"\ndefault = true\n'
    (root / "uv.toml").write_text(text)
    with pytest.raises(Unavailable):
        find_sdist("demo", "1.0", offline=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").write_text(text)
    assert find_sdist("demo", "1.0", offline=True)[0] == "1.0"


def test_pips_settings_come_from_its_file(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://index.invalid/simple")
    (tmp_path / "empty").mkdir()
    lines = ["[global]", f"index-url = {(tmp_path / 'empty').as_uri()}"]
    lines += [f"extra-index-url = {(tmp_path / 'empty').as_uri()}", f"  {demo.parent.as_uri()}"]
    (tmp_path / "pip.conf").write_text("\n".join(lines))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert find_sdist("demo", "1.0", offline=True)[0] == "1.0"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match="pip's settings name no index"):
        find_sdist("demo", "1.0", offline=True)


def test_a_folder_of_archives_gives_no_hash(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://index.invalid/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    (demo / "index.html").unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{demo} {demo / 'missing'}")
    with pytest.raises(Unavailable, match=r"gives no sha256 for demo-1\.0\.tar\.gz"):
        find_sdist("demo", "1.0", offline=True)


def test_plain_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://index.invalid/simple")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:hunter2@index.example/simple")
    with pytest.raises(Unavailable, match=r"http://index\.example/simple is not https"):
        find_sdist("demo", "1.0", offline=True)


@pytest.fixture
def server(demo: Path) -> Iterator[tuple[str, list[str]]]:
    """The index on a server of this machine: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(demo.parent.parent))

        def log_request(self, code: object = "-", size: object = "-") -> None:  # noqa: ARG002
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("tool", ["UV_DEFAULT_INDEX", "PIP_INDEX_URL"])
def test_offline_asks_nobody(
    tool: str,
    offline: bool,
    root: Path,
    server: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, asked = server
    monkeypatch.setenv("UV_DEFAULT_INDEX", root.as_uri())
    monkeypatch.setenv("PIP_INDEX_URL", root.as_uri())
    monkeypatch.setenv(tool, url)
    if offline:
        with pytest.raises(Unavailable, match="demo"):
            find_sdist("demo", "1.0", offline=True)
        assert asked == []
    else:
        with pytest.raises(Unavailable, match="is not https"):
            find_sdist("demo", "1.0", offline=False)
        assert ("/simple/demo/" in asked) == (tool == "UV_DEFAULT_INDEX")


def test_modules_of_the_project_are_not_run(
    asked: Asked, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for name in ("uv", "pip", "unearth", "sitecustomize"):
        (root / f"{name}.py").write_text(f"open({str(root / 'RUN')!r}, 'w').close()\n")
    assert asked.find("1.0")[0] == "1.0"
    assert not (root / "RUN").exists()
