"""What is installed into a user's project: its layout, size, links and versions.

Each check is a function that returns what is wrong. It is called on this repository, and
on something bad, so that it cannot pass by looking at nothing.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.mdtest.document import slug

ROOT = Path(__file__).resolve().parent.parent
NAME = "async-sqlmodel"
FIRST_VERSION = "0.1.0"

AGENT_PARTS = ("SKILL.md", "references/", "scripts/", "assets/")
# Installers copy every tracked file into the user's project. Most of it is proof; an agent
# runs and copies the second kind, and reads the third. 440 kB of the second are the words
# that look-ups are searched by.
SIZES = (
    ("installed", ("",), 285, 4_300_000),
    ("of it for agents", AGENT_PARTS, 175, 2_500_000),
    ("of it to read", ("SKILL.md", "references/"), 105, 1_300_000),
    ("of it to search, an entry at a time", ("references/pitfalls",), 65, 900_000),
)
SKILL_MAX_LINES, REFERENCE_MAX_LINES, REFERENCE_MAX_BYTES = 300, 260, 14_000
PITFALLS_MAX_LINES, PITFALLS_MAX_BYTES = 410, 15_000  # nobody reads one from top to bottom

NOT_FILES = {"__pycache__", ".git", ".demo", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
REQUIREMENTS = ("requirements.txt", "requirements-sqlalchemy20.txt", "requirements-bench.txt")


def tracked(root: Path) -> list[str]:
    """The files that a commit of everything would hold; also outside git."""
    top = git(root, "rev-parse", "--show-toplevel")
    if top and Path(top.rstrip("\n")).resolve() == root.resolve():
        listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
        names = set(listed.split("\0")) - {""}
    else:  # an unpacked archive
        names = {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_symlink() or path.is_file()
        }
        names = {name for name in names if not _is_rubbish(name)}
    return sorted(name for name in names if os.path.lexists(root / name))


def git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git or no repository."""
    # A hook sets GIT_DIR and the like, which would win over -C.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    # A checkout may belong to another user, as in a CI container.
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout


def _is_rubbish(name: str) -> bool:
    parts = name.split("/")
    return any(part in NOT_FILES or part.startswith(".venv") for part in parts)


def copy_tracked(root: Path, target: Path) -> Path:
    """What `git clone` would give, of the files as they are now."""
    for name in tracked(root):
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, destination, follow_symlinks=False)
    return target


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def documents(root: Path) -> list[Path]:
    pages = [root / name for name in ("SKILL.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return pages + references(root)


def references(root: Path) -> list[Path]:
    return sorted((root / "references").glob("*.md"))


# --- front matter ---------------------------------------------------------------------


def front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    data: dict[str, Any] | None = yaml.safe_load(match[1]) if match else None
    return data or {}


def front_matter_problems(text: str) -> Iterator[str]:
    """The rules that every client accepts; each of them alone accepts more."""
    data = front_matter(text)
    unknown = data.keys() - {"name", "description", "license", "metadata"}
    if unknown:
        yield f"keys that some clients refuse: {', '.join(sorted(unknown))}"
    if data.get("name") != NAME:
        yield f"name is {data.get('name')!r}, not {NAME!r}"
    if data.get("license") != "MIT":
        yield f"license is {data.get('license')!r}, not 'MIT'"
    description = str(data.get("description") or "")
    if not 1 <= len(description) <= 1024:
        yield f"description has {len(description)} characters; 1 to 1024 are allowed"
    if set("<>") & set(description):
        yield "description holds an angle bracket"
    metadata: dict[str, Any] = data.get("metadata") or {}
    for key, value in metadata.items():
        if not isinstance(value, str):
            yield f"metadata.{key} is not a string: {value!r}"


def test_front_matter() -> None:
    assert list(front_matter_problems((ROOT / "SKILL.md").read_text())) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: async-sqlmodel", "name: Async"), "name is 'Async'"),
        (("license: MIT", "license: GPL"), "license is 'GPL'"),
        (("license: MIT", "license: MIT\nallowed-tools: Bash"), "refuse: allowed-tools"),
        (("Async", "x" * 1100), "description has 11"),
        (("description: Async", "description: "), "description has 0"),
        (("Async", "Async <b>"), "angle bracket"),
        (("'0.1.0'", "0.1"), "metadata.version is not a string"),
        (("---\n", "--\n"), "name is None"),
    ],
)
def test_front_matter_is_looked_at(change: tuple[str, str], message: str) -> None:
    good = (
        "---\nname: async-sqlmodel\ndescription: Async\nlicense: MIT\n"
        "metadata:\n  version: '0.1.0'\n---\n"
    )
    assert list(front_matter_problems(good)) == []
    assert message in "\n".join(front_matter_problems(good.replace(*change)))


def agentskills(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skills_ref.cli", "validate", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_agentskills_validates_a_clone(tmp_path: Path) -> None:
    clone = copy_tracked(ROOT, tmp_path / NAME)
    answer = agentskills(clone)
    assert answer.returncode == 0, answer.stdout + answer.stderr

    clone.rename(tmp_path / "elsewhere")
    assert agentskills(tmp_path / "elsewhere").returncode == 1


# --- layout and size ------------------------------------------------------------------


def layout_problems(root: Path) -> Iterator[str]:
    for name in tracked(root):
        file = Path(name).name
        if (root / name).is_symlink():
            yield f"{name}: a symlink; some installers refuse it, some copy its target"
        if file == "SKILL.md" and name != "SKILL.md":
            yield f"{name}: clients would load it as a second skill"
        if file == "metadata.json":
            yield f"{name}: installers leave out files of this name"
        if name in {"AGENTS.md", "CLAUDE.md", "GEMINI.md"}:
            yield f"{name}: would give orders to agents in users' projects"
        if name.startswith(".claude-plugin/") and file != "marketplace.json":
            yield f"{name}: beside a root SKILL.md it changes the skill's name in some clients"
    if not (root / "SKILL.md").is_file():
        yield "no SKILL.md"


def test_layout() -> None:
    assert list(layout_problems(ROOT)) == []


@pytest.mark.parametrize(
    "name",
    [
        "tests/x/SKILL.md",
        "evals/metadata.json",
        "AGENTS.md",
        "CLAUDE.md",
        ".claude-plugin/plugin.json",
    ],
)
def test_layout_is_looked_at(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"SKILL.md": "x"})
    assert list(layout_problems(tmp_path)) == []
    write(tmp_path, {name: "x"})
    assert [problem.split(":")[0] for problem in layout_problems(tmp_path)] == [name]


def test_symlinks_and_a_missing_skill_are_seen(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert "link: a symlink" in "\n".join(layout_problems(tmp_path))
    assert "no SKILL.md" in list(layout_problems(tmp_path))


def size(root: Path, parts: tuple[str, ...] = ("",)) -> tuple[int, int]:
    """Number of files and of bytes under the given prefixes."""
    files = [name for name in tracked(root) if name.startswith(parts)]
    return len(files), sum((root / name).lstat().st_size for name in files)


def size_report(root: Path) -> str:
    lines = [
        (what, *size(root, parts), max_files, max_total)
        for what, parts, max_files, max_total in SIZES
    ]
    return "\n".join(
        f"{what}: {files} files of at most {max_files}, "
        f"{total / 1000:.0f} kB of at most {max_total / 1000:.0f} kB"
        for what, files, total, max_files, max_total in lines
    )


@pytest.mark.parametrize(("parts", "max_files", "max_total"), [each[1:] for each in SIZES])
def test_installed_size(parts: tuple[str, ...], max_files: int, max_total: int) -> None:
    print(size_report(ROOT))
    files, total = size(ROOT, parts)
    assert 5 < files <= max_files
    assert total <= max_total


def test_size_counts_what_would_be_tracked(tmp_path: Path) -> None:
    write(tmp_path, {"SKILL.md": "12", "assets/a": "345", "tests/t": "6789", ".venv/big": "0" * 99})
    assert size(tmp_path) == (3, 9)
    assert size(tmp_path, AGENT_PARTS) == (2, 5)

    assert git(tmp_path, "init", "--quiet") is not None
    write(tmp_path, {".gitignore": ".venv/\nassets/\n"})
    assert tracked(tmp_path) == [".gitignore", "SKILL.md", "tests/t"]


# --- documents ------------------------------------------------------------------------


def text_of(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def headings(tokens: list[Token]) -> dict[str, int]:
    """Anchor -> level, with GitHub's anchors."""
    found: dict[str, int] = {}
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            anchor = base = slug(text_of(inline))
            number = 0
            while anchor in found:
                number += 1
                anchor = f"{base}-{number}"
            found[anchor] = int(opening.tag[1:])
    return found


def parse(path: Path) -> list[Token]:
    text = path.read_text()
    if text.startswith("---\n"):
        text = text.split("\n---\n", 1)[-1]
    return MarkdownIt().enable("table").parse(text)


def links(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        for child in token.children or []:
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield str(target)


def code(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        if token.type in {"fence", "code_block"}:
            yield token.content
        yield from (child.content for child in token.children or [] if child.type == "code_inline")


# In a reference, `tests/` and `scripts/` may be the user's own.
AGENT_FOLDERS = "assets|references"
ALL_FOLDERS = AGENT_FOLDERS + "|scripts|tests|evals|[.]ci|[.]github|[.]claude-plugin"


def link_problems(root: Path) -> Iterator[str]:
    """Links, anchors, and paths in code that name files of this repository."""
    files = tracked(root)
    folders = {str(parent) for name in files for parent in Path(name).parents}
    seen = 0
    for page in documents(root):
        if not page.is_file():
            yield f"{page.relative_to(root)}: missing"
            continue
        here = page.relative_to(root).as_posix()
        tokens = parse(page)
        for link in links(tokens):
            if re.match(r"[a-z]+:", link):
                continue
            seen += 1
            target, _, anchor = unquote(link).partition("#")
            path = Path(os.path.normpath(Path(here).parent / target)).as_posix() if target else here
            if path not in files and path not in folders:
                yield f"{here}: {link}: no such file"
            elif anchor and anchor not in headings(parse(root / path)):
                yield f"{here}: {link}: no such heading"
        ours = AGENT_FOLDERS if page.parent.name == "references" else ALL_FOLDERS
        for text in code(tokens):
            for path in re.findall(rf"(?<![\w./-])(?:{ours})/[\w./*-]*[\w*]", text):
                if path not in folders and not any(fnmatch(name, path) for name in files):
                    yield f"{here}: `{path}`: no such file"
    if not seen:
        yield "no link found"


def test_links() -> None:
    assert list(link_problems(ROOT)) == []


PAGES = {"README.md": "# R\n", "CONTRIBUTING.md": "# C\n", "CHANGELOG.md": "# L\n"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](references/b.md)", "references/b.md: no such file"),
        ("![a](b.png)", "b.png: no such file"),
        ("[a](#other)", "#other: no such heading"),
        ("[a](references/a.md#part-two)", "references/a.md#part-two: no such heading"),
        ("`scripts/no.py --help`", "`scripts/no.py`: no such file"),
        ("```bash\npython scripts/no.py\n```", "`scripts/no.py`: no such file"),
        ("`references/no-*.md`", "`references/no-*.md`: no such file"),
        ("| a |\n|---|\n| [x](no.md) |", "no.md: no such file"),
    ],
)
def test_links_are_looked_at(tmp_path: Path, text: str, problem: str) -> None:
    good = (
        "# Skill\n[a](references/a.md#part-one), [b](#skill), [c](https://example.com/x#y), "
        "`references/`, `references/*.md`\n\n"
    )
    write(tmp_path, {**PAGES, "SKILL.md": good, "references/a.md": "# A\n\n## Part `one`\n"})
    assert list(link_problems(tmp_path)) == []
    write(tmp_path, {"SKILL.md": good + text})
    assert list(link_problems(tmp_path)) == [f"SKILL.md: {problem}"]


def test_missing_pages_and_links_are_seen(tmp_path: Path) -> None:
    write(tmp_path, {**PAGES})
    assert list(link_problems(tmp_path)) == ["SKILL.md: missing", "no link found"]


def reference_problems(path: Path) -> Iterator[str]:
    """Short; opens with "Read this when" and a table of contents that names every part."""
    lines = len(path.read_text().splitlines())
    max_lines, max_bytes = REFERENCE_MAX_LINES, REFERENCE_MAX_BYTES
    if path.name.startswith("pitfalls-"):
        max_lines, max_bytes = PITFALLS_MAX_LINES, PITFALLS_MAX_BYTES
    if path.name != "pitfalls.md":  # the index: a line for each entry
        if lines > max_lines:
            yield f"{path.name}: {lines} lines; at most {max_lines}"
        size = path.stat().st_size  # or long lines would hide how much there is to read
        if size > max_bytes:
            yield f"{path.name}: {size} bytes; at most {max_bytes}"
    tokens = parse(path)
    paragraphs = [
        text_of(inline) for opening, inline in pairwise(tokens) if opening.type == "paragraph_open"
    ]
    if not paragraphs or not paragraphs[0].startswith("Read this when"):
        yield f'{path.name}: the first paragraph does not start with "Read this when"'
    starts = [index for index, token in enumerate(tokens) if token.type == "heading_open"]
    contents: set[str] = set()
    for start, end in pairwise([*starts, len(tokens)]):
        if text_of(tokens[start + 1]) == "Contents":
            contents = {link[1:] for link in links(tokens[start:end]) if link.startswith("#")}
    parts = {anchor for anchor, level in headings(tokens).items() if level == 2}
    missing = parts - contents - {"contents", "see-also"}
    if missing or not contents:
        yield f"{path.name}: not in the table of contents: {', '.join(sorted(missing)) or 'all'}"


def test_references() -> None:
    pages = references(ROOT)
    assert len(pages) >= 3
    assert [problem for page in pages for problem in reference_problems(page)] == []


def test_references_are_looked_at(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    contents = "## Contents\n\n- [One](#one)\n- [Two](#two)\n"
    good = f"# T\n\nRead this when x.\n\n{contents}\n## One\n\n## Two\n"
    for text, problem in (
        (good, ""),
        (good + "\nx\n" * 140, "lines; at most 260"),
        (good + "x" * 14_000, "bytes; at most 14000"),
        (good.replace("Read", "Open"), "does not start"),
        (good.replace("- [Two](#two)\n", ""), "table of contents: two"),
        (good.replace("## Contents", "Contents"), "table of contents: one, two"),
    ):
        page.write_text(text)
        problems = list(reference_problems(page))
        assert len(problems) == bool(problem), problems
        assert problem in "".join(problems)


def test_pitfalls_may_be_longer(tmp_path: Path) -> None:
    head = "# T\n\nRead this when x.\n\n## Contents\n\n[One](#one)\n\n## One\n"
    for name, lines, found in (
        ("pitfalls-x.md", 1, 0),
        ("pitfalls-x.md", 2, 1),
        ("pitfalls.md", 2, 0),
    ):
        (tmp_path / name).write_text(head + "\nx\n" * 150 * lines)
        assert len(list(reference_problems(tmp_path / name))) == found


def router_problems(root: Path) -> Iterator[str]:
    """SKILL.md routes to every reference; those about pitfalls are found by a search."""
    pages = {page.name for page in references(root) if not page.name.startswith("pitfalls")}
    text = (root / "SKILL.md").read_text().partition("\n## Open when\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w-]+\.md)`", text))
    yield from sorted(f"{name}: SKILL.md does not route to it" for name in pages - named)
    yield from sorted(
        f"{name}: SKILL.md routes to it, and it is not there" for name in named - pages
    )


def test_router() -> None:
    assert list(router_problems(ROOT)) == []


def test_router_is_looked_at(tmp_path: Path) -> None:
    router = "# S\n`b.md`\n\n## Open when\n\n| a | `a.md` |\n\n## After\n`c.md`\n"
    pages = {"references/a.md": "", "references/b.md": "", "references/pitfalls-x.md": ""}
    write(tmp_path, {"SKILL.md": router.replace("`a.md`", "`d.md`"), **pages})
    assert list(router_problems(tmp_path)) == [
        "a.md: SKILL.md does not route to it",
        "b.md: SKILL.md does not route to it",
        "d.md: SKILL.md routes to it, and it is not there",
    ]


def test_skill_is_short() -> None:
    assert 50 < len((ROOT / "SKILL.md").read_text().splitlines()) <= SKILL_MAX_LINES


def unknown_targets(makefile: str, pages: list[str]) -> set[str]:
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = {name for page in pages for name in re.findall(r"\bmake ([a-z][a-z0-9-]*)", page)}
    assert named, "no page names a make target"
    return named - targets


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = ["\n".join(code(parse(ROOT / name))) for name in ("README.md", "CONTRIBUTING.md")]
    pages += re.findall(r"^step .*", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert unknown_targets(makefile, pages) == set()
    assert unknown_targets(makefile, ["make test\nmake coffee"]) == {"coffee"}


# --- requirements and versions --------------------------------------------------------


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)", text, re.MULTILINE))


def requirement_problems(text: str) -> Iterator[str]:
    """Names, versions and hashes; nothing that says where to download."""
    for entry in re.sub(r"\\\n", "", text).splitlines():
        if entry.startswith("#"):
            comment = entry
        else:
            comment = ""
            if not re.fullmatch(
                r"[a-z0-9-]+==[\w.]+( ; [^\\/:]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry
            ):
                yield f"not name==version --hash=sha256:...: {entry[:80]}"
        if re.search(r"://|/|\bindex\b", comment):
            yield f"an address: {comment}"
    if not pins(text):
        yield "no requirement"


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements(name: str) -> None:
    assert list(requirement_problems((ROOT / name).read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.com/simple",
        "# from https://example.com/simple",
        "ruff==1.0",
        "ruff>=1.0 --hash=sha256:" + "0" * 64,
        "ruff==1.0 --hash=md5:" + "0" * 32,
        "ruff @ file:///wheels/ruff.whl --hash=sha256:" + "0" * 64,
        "-r other.txt",
    ],
)
def test_requirements_are_looked_at(line: str) -> None:
    good = "# made by\na==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:" + "0" * 64 + "\n"
    assert list(requirement_problems(good)) == []
    assert len(list(requirement_problems(good + line))) == 1
    assert list(requirement_problems("")) == ["no requirement"]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def test_requirements_hold_both_sqlalchemys_and_every_tool() -> None:
    newest, older, bench = (pins((ROOT / name).read_text()) for name in REQUIREMENTS)
    assert newest.keys() & bench.keys() == set()  # laid over it: what is there stays
    assert newest["sqlalchemy"].startswith("2.1.")
    assert list(older) == ["sqlalchemy"]  # takes the place of the newest one
    assert older["sqlalchemy"].startswith("2.0.")
    groups = pyproject()["dependency-groups"]
    listed: list[Any] = groups["layer"] + groups["dev"]
    wanted = {distribution(each) for each in listed if isinstance(each, str)}
    assert len(wanted) > 20
    assert wanted - newest.keys() == set()


def test_the_layer_is_tested_with_what_projects_are_told_to_install() -> None:
    example = tomllib.loads((ROOT / "assets/example/pyproject.toml").read_text())
    scaffold = runpy.run_path(str(ROOT / "scripts/scaffold.py"))
    told = {
        *example["project"]["dependencies"],
        *scaffold["ENUM_DEPENDENCIES"],
        *(each for some in scaffold["DRIVER_DEPENDENCIES"].values() for each in some),
    }
    assert set(pyproject()["dependency-groups"]["layer"]) == told


def versions(root: Path) -> dict[str, str]:
    marketplace = json.loads((root / ".claude-plugin/marketplace.json").read_text())
    changelog = (root / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[?([0-9][\w.]*)", changelog, re.MULTILINE)
    return {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text())["project"][
            "version"
        ],
        "marketplace.json": marketplace["plugins"][0]["version"],
        "SKILL.md": front_matter((root / "SKILL.md").read_text())["metadata"]["version"],
        "CHANGELOG.md": released[0] if released else FIRST_VERSION,
    }


def test_versions_agree() -> None:
    found = versions(ROOT)
    assert len(set(found.values())) == 1, found
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_versions_are_read_from_each_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pyproject.toml": '[project]\nversion = "1"\n',
            ".claude-plugin/marketplace.json": '{"plugins": [{"version": "2"}]}',
            "SKILL.md": '---\nmetadata:\n  version: "3"\n---\n',
            "CHANGELOG.md": "## [Unreleased]\n\n## [4.0] - 2026-12-01\n\n## [0.1.0]\n",
        },
    )
    assert list(versions(tmp_path).values()) == ["1", "2", "3", "4.0"]


def test_marketplace() -> None:
    text = (ROOT / ".claude-plugin/marketplace.json").read_text()
    assert not set("<>") & set(text)
    marketplace = json.loads(text)
    (plugin,) = marketplace["plugins"]
    assert (marketplace["name"], plugin["name"], plugin["source"]) == (NAME, NAME, "./")


# --- traces ---------------------------------------------------------------------------


def machine_paths(root: Path) -> Iterator[str]:
    """Paths of the machine on which a file was made."""
    for name in tracked(root):
        text = (root / name).read_text(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r"(?<![\w.}-])/(?:work|root|opt|Users|home/\w+)/[\w.]", line):
                yield f"{name}:{number}: {line.strip()[:80]}"


def test_no_machine_paths(tmp_path: Path) -> None:
    assert list(machine_paths(ROOT)) == []
    write(tmp_path, {"a.txt": f"fine: a/{'root'}/x, /{'root'}\nbad: /{'root'}/.cache/x\n"})
    assert list(machine_paths(tmp_path)) == [f"a.txt:2: bad: /{'root'}/.cache/x"]


if __name__ == "__main__":
    print(size_report(ROOT))


# --- triggers -------------------------------------------------------------------------


def trigger_problems(triggers: dict[str, Any]) -> Iterator[str]:
    """Enough requests of both kinds, none twice."""
    for kind in ("open", "leave"):
        if len(triggers.get(kind, [])) < 10:
            yield f"{kind}: fewer than 10 requests"
    requests: list[str] = [*triggers.get("open", []), *triggers.get("leave", [])]
    for request in {each for each in requests if requests.count(each) > 1}:
        yield f"twice: {request}"


def test_triggers() -> None:
    triggers = json.loads((ROOT / "evals/triggers.json").read_text())
    assert list(trigger_problems(triggers)) == []
    # Pasted errors are found by their own words, so the description must hold some.
    description = front_matter((ROOT / "SKILL.md").read_text())["description"]
    errors = ["MissingGreenlet", "greenlet_spawn", "QueuePool limit", "PendingRollbackError"]
    errors += ["another operation is in progress", "offset-naive and offset-aware"]
    for error in errors:
        assert error in description
        assert any(error in request for request in triggers["open"])


def test_triggers_are_looked_at() -> None:
    few = {"open": ["a"] * 10, "leave": ["a"]}
    assert list(trigger_problems(few)) == ["leave: fewer than 10 requests", "twice: a"]
