"""What an installed distribution tells of itself: the real packages, and one that is a mess."""

import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from docsearch import Section, Unavailable, installed

VENV = [Path(entry) for entry in sys.path if entry.endswith("site-packages")]


def named(sections: list[Section]) -> dict[str, Section]:
    return {name: section for section in sections for name in section.names}


def of(library: str) -> dict[str, Section]:
    return named(installed.docstrings(library, version(library), VENV))


# The real packages


def test_a_method_without_a_docstring_has_its_signature() -> None:
    found = of("sqlmodel")["sqlmodel.ext.asyncio.session.AsyncSession.exec"]
    assert found.title == "AsyncSession.exec"
    assert found.path == ("sqlmodel.ext.asyncio.session",)
    assert found.text.startswith("```python\nasync def exec(\n    self,\n    statement: Select[")
    assert "\n    execution_options: Mapping[str, Any] = util.EMPTY_DICT,\n" in found.text
    file, _, line = found.url.partition("#L")
    assert file == "sqlmodel/ext/asyncio/session.py"
    lines = (VENV[0] / file).read_text(encoding="utf-8").splitlines()
    assert lines[int(line) - 1].strip() == "async def exec("


def test_the_doc_of_annotated_parameters() -> None:
    found = of("fastapi")["fastapi.Depends"]
    signature, _, rest = found.text.partition("\n```\n")
    assert "    scope: Literal['function', 'request'] | None = None," in signature
    assert "Doc(" not in found.text
    assert rest.strip().startswith("Declare a FastAPI dependency.")
    assert "\n- `scope`: Mainly for dependencies with `yield`, define when the" in rest
    assert found.names == ("fastapi.Depends", "fastapi.param_functions.Depends")


def test_a_stub_tells_the_true_signature() -> None:
    found = of("alembic")["alembic.op.alter_column"]
    assert "    server_default: _ServerDefaultArgument = False,\n" in found.text
    assert "**kw: Any" in found.text
    assert found.url.startswith("alembic/op.pyi#L")
    assert "`sqlalchemy.types.Boolean`" in found.text
    assert ":class:" not in found.text


def test_sqlalchemy_under_the_names_that_users_import() -> None:
    sections = installed.docstrings("sqlalchemy", version("sqlalchemy"), VENV)
    found = named(sections)
    assert len(sections) <= 6_000
    load = found["sqlalchemy.orm.selectinload"]
    assert (load.title, load.path) == ("selectinload", ("sqlalchemy.orm",))
    assert "using\nSELECT IN eager loading." in load.text
    assert "sqlalchemy.orm.strategy_options.selectinload" in load.names
    assert found["sqlalchemy.orm.Load.selectinload"].title == "Load.selectinload"
    assert found["sqlalchemy.select"].names[0] == "sqlalchemy.select"
    assert found["sqlalchemy.orm.mapped_column"].path == ("sqlalchemy.orm",)
    assert found["sqlalchemy.ext.asyncio.AsyncSession.run_sync"].text.startswith("```python\nasync")
    assert not [name for name in found if name.startswith("sqlalchemy.testing.")]
    assert len({section.names[0] for section in sections}) == len(sections)


def test_pydantic_and_aiosqlite() -> None:
    assert "mode: Literal['json', 'python']" in of("pydantic")["pydantic.BaseModel.model_dump"].text
    connect = of("aiosqlite")["aiosqlite.connect"]
    assert connect.text.endswith("Create and return a connection proxy to the sqlite database.")


def test_the_skills_that_packages_bring() -> None:
    found = installed.skills("fastapi", VENV)
    assert found
    assert {section.url.split("#")[0] for section in found} >= {
        "fastapi/.agents/skills/fastapi/SKILL.md",
        "fastapi/.agents/skills/fastapi/references/dependencies.md",
    }
    assert installed.skills("pydantic", VENV) == []
    assert installed.skills("no-such-library", VENV) == []


def test_another_version_is_not_passed_off() -> None:
    there = version("sqlmodel")
    with pytest.raises(Unavailable, match=f"sqlmodel {there} is installed, not 0.0.1"):
        installed.docstrings("sqlmodel", "0.0.1", VENV)
    with pytest.raises(Unavailable, match="no-such-library is not installed"):
        installed.docstrings("no-such-library", "1.0", VENV)


# A package that is a mess


FILES = {
    "__init__.py": b"""
from ._private import hidden as shown
from .circle import around
from .stars import *
from missing import nothing
from . import circle as circle
""",
    "_private.py": b'''
def hidden(first, /, second: int = 2, *rest, third="x", **more) -> "list[int]":
    """Says :class:`~a.b.Thing` and ``literal``."""

def kept_private():
    """Nobody is told."""

class _Base(_Base, _Base):
    def inherited(self):
        """From the private base."""
    def size(self):
        """Of the private base."""
''',
    "circle.py": b"""
from .other import around
""",
    "other.py": b'''
from .circle import around
from ._private import _Base

class Loop(Loop):
    """Its own parent."""

class Child(_Base, _Base):
    @property
    def size(self): "How large."
    def _private(self): "Not shown."
    @overload
    def get(self, a: int) -> int: ...
    @overload
    def get(self, a: str) -> str: ...
    def get(self, a):
        """Documented once."""
''',
    "stars.py": b'''
__all__ = ["starred", "absent"]
from .stars import *
def starred(value: Annotated[int, Doc("How many."), Gt(0)] = 1): ...
def unlisted():
    """Not in __all__."""
''',
    "broken.py": b"def (:\n",
    "null.py": b"x = 1\0\n",
    "latin.py": b'def late():\n    """caf\xe9"""\n',
    "coded.py": b'# coding: latin-1\ndef coded():\n    """caf\xe9 \\ud800 \\d"""\n',
    "deep.py": b"def deep(a=" + b"-" * 50 + b"1, b=" + b"+".join([b"1"] * 1500) + b"): ...\n",
    "nested.py": b"x = " + b"(" * 5_000 + b")" * 5_000 + b"\n",
    "tests/__init__.py": b'def helper():\n    """Of the tests."""\n',
    "both.pyi": b'def both(true: bool) -> None:\n    """From the stub."""\n',
    "both.py": b"def both(*args, **kw): ...\n",
    ".agents/skills/mess/SKILL.md": b"# Mess\n\nHow to use it: caf\xe9.\n",
    "empty.py": b"",
}


@pytest.fixture
def mess(tmp_path: Path) -> Path:
    info = tmp_path / "mess-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mess\nVersion: 1.0\n")
    for name, text in FILES.items():
        (tmp_path / "mess" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mess" / name).write_bytes(text)
    outside = tmp_path.parent / "outside.py"
    outside.write_text('def outside():\n    """Not of this package."""\n')
    (tmp_path / "outside.md").write_text("# Outside\n\nNot of this package.\n")
    listed = [*FILES, "gone.py", "../../outside.py", ".agents/skills/../../../outside.md"]
    lines = ["../outside.py,,", f"{outside},,", *(f"mess/{name},," for name in listed)]
    (info / "RECORD").write_text("\n".join(lines))
    return tmp_path


def test_a_mess_is_read_as_far_as_it_goes(mess: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = named(installed.docstrings("mess", "1.0", [mess]))
    assert {name for name in found if name.count(".") == 1} == {
        "mess.shown",
        "mess.starred",
    }
    assert set(found) - {"mess.shown", "mess.starred"} == {
        "mess._private.hidden",
        "mess.stars.starred",
        "mess.other.Loop",
        "mess.other.Child",
        "mess.other.Child.size",
        "mess.other.Child.get",
        "mess.other.Child.inherited",
        "mess.coded.coded",
        "mess.deep.deep",
        "mess.both.both",
    }


def test_what_a_section_holds(mess: Path) -> None:
    found = named(installed.docstrings("mess", "1.0", [mess]))
    assert found["mess.shown"] == Section(
        title="shown",
        path=("mess",),
        url="mess/_private.py#L2",
        text=(
            "```python\n"
            "def hidden(first, /, second: int = 2, *rest, third='x', **more) -> 'list[int]': ...\n"
            "```\n\n"
            "Says `a.b.Thing` and `literal`."
        ),
        names=("mess.shown", "mess._private.hidden"),
    )
    assert found["mess.starred"].text == (
        "```python\ndef starred(value: Annotated[int, Gt(0)] = 1): ...\n```\n\n- `value`: How many."
    )
    child = found["mess.other.Child.get"]
    assert child.text == "```python\ndef get(self, a): ...\n```\n\nDocumented once."
    assert "@property\ndef size(self): ..." in found["mess.other.Child.size"].text
    assert found["mess.other.Child.size"].text.endswith("How large.")
    inherited = found["mess.other.Child.inherited"]
    assert (inherited.title, inherited.url) == ("Child.inherited", "mess/_private.py#L9")
    assert found["mess.both.both"].text.endswith("-> None: ...\n```\n\nFrom the stub.")
    assert "def deep(a=" in found["mess.deep.deep"].text
    assert "1, b=...): ..." in found["mess.deep.deep"].text
    assert found["mess.coded.coded"].text.endswith("caf\xe9 ? \\d")


def test_the_skill_of_a_mess(mess: Path) -> None:
    (found,) = installed.skills("mess", [mess])
    assert (found.title, found.text) == ("Mess", "How to use it: caf\ufffd.")
    assert found.url.split("#")[0] == "mess/.agents/skills/mess/SKILL.md"


# A package that somebody made to be a trap


Make = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path) -> Make:
    """Makes a package `trap` of the files, or with another RECORD."""

    def make(files: dict[str, str], record: str = "") -> Path:
        info = tmp_path / "trap-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n")
        for name, text in files.items():
            file = tmp_path / "trap" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (info / "RECORD").write_text(record or "\n".join(f"trap/{name},," for name in files))
        return tmp_path

    return make


def test_another_spelling_of_the_version_is_the_version(package: Make) -> None:
    site = package({"a.py": "def f(): ..."})
    assert named(installed.docstrings("trap", "1.0.0", [site]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_a_pipe_is_no_file(package: Make) -> None:
    site = package({"a.py": "def f(): ..."}, "trap/pipe.py,,\ntrap/a.py,,")
    os.mkfifo(site / "trap" / "pipe.py")
    assert set(named(installed.docstrings("trap", "1.0", [site]))) == {"trap.a.f"}


def test_a_large_file_is_left_out(package: Make) -> None:
    size = installed.LARGEST_FILE
    code = "def f(): ...\n#"
    site = package({"a.py": code.ljust(size, "#"), "b.py": code.ljust(size + 1, "#")})
    assert set(named(installed.docstrings("trap", "1.0", [site]))) == {"trap.a.f"}


def test_a_link_to_a_file_of_another_kind_is_not_followed(package: Make, tmp_path: Path) -> None:
    """Links to files of the same kind are: so uv installs from its cache, if it is told to."""
    skill = "trap/.agents/skills/{}/SKILL.md"
    site = package({"x.md": "", "a.py": ""}, f"{skill.format('a')},,\n{skill.format('b')},,")
    for name, target in {"a": "page.md", "b": "id_rsa"}.items():
        (tmp_path / target).write_text(f"# T\n\nText of {target}.")
        link = site / skill.format(name)
        link.parent.mkdir(parents=True)
        try:
            link.symlink_to(tmp_path / target)
        except OSError:
            pytest.skip("this user may not make links")
    assert [each.text for each in installed.skills("trap", [site])] == ["Text of page.md."]


@pytest.mark.parametrize("record", ["trap/a.py,b,c,d", "trap/a.py,,x", "a" * 200_000])
def test_a_broken_record_is_named(package: Make, record: str) -> None:
    site = package({"a.py": "def f(): ..."}, record)
    with pytest.raises(Unavailable, match="RECORD"):
        installed.docstrings("trap", "1.0", [site])


def test_branches_without_end(package: Make) -> None:
    code = "if a:\n def f0(): ...\n"
    code += "".join(f"elif a:\n def f{number}(): ...\n" for number in range(1, 1_200))
    found = named(installed.docstrings("trap", "1.0", [package({"a.py": code})]))
    # Pythons differ in whether they parse it: then all of it is there.
    assert len(found) in {0, 1_200}


def test_a_role_without_end_is_read_once(package: Make) -> None:
    """Of the square of three million, nobody would see the end."""
    code = f"def f():\n    ':a:`{'~' * 3_000_000}'"
    found = named(installed.docstrings("trap", "1.0", [package({"a.py": code})]))
    assert "~~~" in found["trap.a.f"].text


def test_methods_are_looked_through_once_a_module(package: Make) -> None:
    """A function for each that a method of its name may document."""
    count = 10_000
    code = "".join(f"def f{number}(x): x.f{number}\n" for number in range(count))
    code += "class C:\n def f7(self):\n  'Of the method.'\n def f7(self):\n  'Another.'\n"
    code += " x = 1\n" * 150_000
    found = named(installed.docstrings("trap", "1.0", [package({"a.py": code})]))
    assert len(found) == count + 2
    assert found["trap.a.f7"].text.endswith("Of the method.")


def test_each_private_base_is_read_once(package: Make) -> None:
    """There are 2 ** 40 ways to the last of them."""
    bases = [f"class _A{n}(_A{n + 1}, _A{n + 1}):\n def m{n}(self): ...\n" for n in range(40)]
    site = package({"a.py": "class A(_A0): ...\n" + "".join(bases)})
    found = named(installed.docstrings("trap", "1.0", [site]))
    assert set(found) == {"trap.a.A", *(f"trap.a.A.m{n}" for n in range(40))}


def test_no_endless_row_of_private_bases(package: Make) -> None:
    bases = [f"class _A{n}(_A{n + 1}):\n def m{n}(self): ...\n" for n in range(3_000)]
    site = package({"a.py": "class A(_A0): ...\n" + "".join(bases)})
    found = named(installed.docstrings("trap", "1.0", [site]))
    assert len(found) == installed.MOST_BASES
    assert "trap.a.A.m0" in found
