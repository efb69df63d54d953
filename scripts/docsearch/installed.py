"""Signatures, docstrings and agent skills of an installed distribution, read as text.

Nothing of it is imported or run: its files are those that its own RECORD lists.
"""

import ast
import csv
import gc
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path, PurePosixPath
from textwrap import indent
from typing import TYPE_CHECKING, NamedTuple

from . import Section, Unavailable
from .releases import same_version

if TYPE_CHECKING:
    from importlib.metadata import Distribution

SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendor", "vendored"}
LINE_WIDTH = 100
LARGEST_FILE = 4_000_000
"""Bytes. Larger files of Python are generated, and would cost seconds each."""
MOST_BASES = 50
"""Private ones of a class, whose methods are shown as its own."""


def docstrings(library: str, version: str, paths: list[Path]) -> list[Section]:
    """A section for each documented or exported function, class and method of `library`, named
    as users import it. Files that cannot be read or parsed are left out.

    Raises Unavailable if this version is not installed in `paths`.
    """
    distribution = _distribution(library, paths)
    if distribution is None:
        raise Unavailable(f"{library} is not installed in {', '.join(map(str, paths)) or 'any'}")
    if not same_version(distribution.version, version):
        raise Unavailable(f"{library} {distribution.version} is installed, not {version}")
    collects = gc.isenabled()
    gc.disable()  # syntax trees are many objects that all stay: a fifth of the time
    try:
        return list(_sections(_modules(distribution)))
    finally:
        if collects:
            gc.enable()


def skills(library: str, paths: list[Path]) -> list[Section]:
    """The pages that the package brings for agents: `<package>/.agents/skills/*/**/*.md`."""
    from . import markdown

    distribution = _distribution(library, paths)
    found: list[Section] = []
    for name, text in _texts(distribution, (".md",)) if distribution else ():
        if PurePosixPath(name).parts[1:3] == (".agents", "skills"):
            page = text.decode("utf-8", "replace")
            found += markdown.sections(page, page_url=name)
    return found


def _distribution(library: str, paths: list[Path]) -> "Distribution | None":
    from importlib.metadata import distributions

    return next(iter(distributions(name=library, path=[str(path) for path in paths])), None)


def _texts(distribution: "Distribution", suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    try:
        files = dict.fromkeys(distribution.files or ())  # one listed many times is read once
    except (TypeError, ValueError, csv.Error) as error:
        raise Unavailable(f"its RECORD, the list of its files, is broken: {error}") from error
    for file in files:
        if file.suffix not in suffixes or ".." in file.parts or file.is_absolute():
            continue
        with suppress(OSError):
            text = _content(Path(str(distribution.locate_file(file))))
            if text is not None:
                yield file.as_posix(), text


def _content(path: Path) -> bytes | None:
    """None if it is too large, or no file: a pipe would hang. Installers make links into their
    cache; a link to a file of another kind is somebody's trick.
    """
    if not path.is_file() or path.resolve().suffix != path.suffix:
        return None
    with path.open("rb") as file:
        text = file.read(LARGEST_FILE + 1)  # what a size says is not true of all
    return text if len(text) <= LARGEST_FILE else None


# Modules


_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef


class _Import(NamedTuple):
    module: str
    name: str
    exported: bool
    """By `import x as x`, `import *`, or because the importing module is a package's front."""


@dataclass(slots=True)
class _Module:
    name: str
    file: str
    public: set[str] | None = None
    """`__all__`, if it is there and plain."""
    definitions: dict[str, list[_Definition]] = field(default_factory=dict[str, list[_Definition]])
    """Several of one name: overloads."""
    imports: dict[str, _Import] = field(default_factory=dict[str, _Import])
    stars: list[str] = field(default_factory=list[str])
    docs: dict[str, str] | None = None
    """The first docstring of each name of a method, once they are asked for."""

    def exports(self, name: str) -> bool:
        if self.public is not None:
            return name in self.public
        return not name.startswith("_") and (
            name in self.definitions or (name in self.imports and self.imports[name].exported)
        )


def _modules(distribution: "Distribution") -> dict[str, _Module]:
    modules: dict[str, _Module] = {}
    for file, text in _texts(distribution, (".py", ".pyi")):
        parts = PurePosixPath(file).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts[:-1]) or not all(map(str.isidentifier, parts)):
            continue
        front = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if front else parts)
        if name in modules and file.endswith(".py"):
            continue  # the stub beside it has the true signatures
        tree = _parsed(text)
        if tree is not None:
            modules[name] = _Module(name, file)
            _read(tree.body, modules[name], front)
    return modules


def _parsed(text: bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a docstring is not our reader's concern
            return ast.parse(text)
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ):  # which: Python's versions differ
        return None


def _read(body: Iterable[ast.stmt], module: _Module, front: bool) -> None:
    waiting = [*body][::-1]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                module.definitions.setdefault(node.name, []).append(node)
            case ast.ImportFrom():
                _read_import(node, module, front)
            case ast.If() | ast.Try():  # TYPE_CHECKING, optional parts
                waiting += [*node.body, *node.orelse][::-1]  # `elif` may nest without end
            case ast.Assign(targets=[ast.Name("__all__")], value=ast.List() | ast.Tuple() as value):
                names = [each.value for each in value.elts if isinstance(each, ast.Constant)]
                module.public = {name for name in names if isinstance(name, str)}
            case _:
                pass


def _read_import(node: ast.ImportFrom, module: _Module, front: bool) -> None:
    source = node.module or ""
    if node.level:
        package = module.name.split(".")
        keep = len(package) - node.level + (1 if front else 0)
        source = ".".join([*package[: max(keep, 0)], *([source] if source else [])])
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            exported = front or alias.asname == alias.name
            module.imports[alias.asname or alias.name] = _Import(source, alias.name, exported)


# Under which names users import a definition


_Origin = tuple[str, str]


def _public_names(modules: dict[str, _Module]) -> dict[_Origin, list[str]]:
    names: dict[_Origin, list[str]] = {}
    for module in modules.values():
        if _is_private(module.name):
            continue
        for name in sorted(_exported(module.name, modules, set())):
            origin = _origin((module.name, name), modules)
            if origin:
                names.setdefault(origin, []).append(f"{module.name}.{name}")
    return names


def _is_private(dotted: str) -> bool:
    return any(part.startswith("_") for part in dotted.split("."))


def _exported(name: str, modules: dict[str, _Module], seen: set[str]) -> set[str]:
    if name in seen or name not in modules:
        return set()
    seen.add(name)
    module = modules[name]
    found = {each for each in (*module.definitions, *module.imports) if module.exports(each)}
    for star in module.stars:
        found |= _exported(star, modules, seen)
    return found


def _origin(wanted: _Origin, modules: dict[str, _Module]) -> _Origin | None:
    """Where the name is defined: imports are followed, also in circles. None: not here."""
    waiting, seen = [wanted], set[_Origin]()
    while waiting:
        here = waiting.pop()
        module = modules.get(here[0])
        if module is None or here in seen:
            continue
        seen.add(here)
        if here[1] in module.definitions:
            return here
        if imported := module.imports.get(here[1]):
            waiting.append((imported.module, imported.name))
        waiting += [(star, here[1]) for star in module.stars]
    return None


# Sections


class _Method(NamedTuple):
    nodes: list[_Function]
    """Several: overloads."""
    module: _Module


def _sections(modules: dict[str, _Module]) -> Iterator[Section]:
    for (where, name), known in _public_names(modules).items():
        module = modules[where]
        names = _ordered({*known, f"{where}.{name}"})
        nodes = module.definitions[name]
        if isinstance(nodes[-1], ast.ClassDef):
            yield from _class(nodes[-1], names, module, modules)
        else:
            functions = [node for node in nodes if isinstance(node, _Function)]
            yield from _function(_last(names[0]), names, _Method(functions, module))


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _ordered(names: set[str]) -> tuple[str, ...]:
    """Public ones first, then the shortest."""
    return tuple(sorted(names, key=lambda name: (_is_private(name), name.count("."), name)))


def _class(
    node: ast.ClassDef, names: tuple[str, ...], module: _Module, modules: dict[str, _Module]
) -> Iterator[Section]:
    title = _last(names[0])
    methods = _methods(node, module, modules)
    start = methods.pop("__init__").nodes[-1] if "__init__" in methods else None
    bases = ", ".join(map(_source, node.bases))
    signature = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    doc = _doc(node)
    if start:
        signature += "\n" + indent(_signature(start), "    ")
        doc = "\n\n".join(filter(None, (doc, _doc(start))))
    yield _section(title, names, f"{module.file}#L{node.lineno}", signature, doc, start)
    for name, method in methods.items():
        if not name.startswith("_"):
            under = tuple(f"{parent}.{name}" for parent in names)
            yield from _function(f"{title}.{name}", under, method)
    for attribute, text in _attributes(node):
        name = _source(attribute.target)
        under = tuple(f"{parent}.{name}" for parent in names)
        line = f"{module.file}#L{attribute.lineno}"
        yield _section(f"{title}.{name}", under, line, _source(attribute), text, None)


def _attributes(node: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    """The annotated attributes with a string below them, which says what they are."""
    for attribute, below in pairwise(node.body):
        match attribute, below:
            case ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                yield attribute, cleandoc(text)
            case _:
                pass


def _methods(
    node: ast.ClassDef, module: _Module, modules: dict[str, _Module]
) -> dict[str, _Method]:
    """Of the class and its private bases: those users know by this class only."""
    waiting, seen = [(node, module)], set[_Origin]()
    owners: list[dict[str, _Method]] = []
    while waiting and len(owners) < MOST_BASES:
        node, module = waiting.pop()
        owners.append(_own_methods(node, module))
        waiting += [*_private_bases(node, module, modules, seen)][::-1]
    found: dict[str, _Method] = {}
    for own in reversed(owners):
        found |= own
    return found


def _private_bases(
    node: ast.ClassDef, module: _Module, modules: dict[str, _Module], seen: set[_Origin]
) -> Iterator[tuple[ast.ClassDef, _Module]]:
    """Those that are not in `seen`; adds them to it, for each way to them doubles the work."""
    for base in node.bases:
        origin = _origin((module.name, _source(base)), modules)
        if origin and origin[1].startswith("_") and origin not in seen:
            seen.add(origin)
            parent = modules[origin[0]].definitions[origin[1]][-1]
            if isinstance(parent, ast.ClassDef):
                yield parent, modules[origin[0]]


def _own_methods(node: ast.ClassDef, module: _Module) -> dict[str, _Method]:
    own: dict[str, _Method] = {}
    for each in node.body:
        if isinstance(each, _Function):
            own.setdefault(each.name, _Method([], module)).nodes.append(each)
    return own


def _function(title: str, names: tuple[str, ...], function: _Method) -> Iterator[Section]:
    last = function.nodes[-1]
    docs = filter(None, [_doc(node) for node in reversed(function.nodes)])
    doc = next(docs, "") or _doc_of_method(last, function.module)
    # A stub has nothing but overloads; else the last one is the function itself
    shown = function.nodes if _has_decorator(last, "overload") else [last]
    signature = "\n".join(map(_signature, shown))
    yield _section(title, names, f"{function.module.file}#L{last.lineno}", signature, doc, last)


def _section(
    title: str,
    names: tuple[str, ...],
    url: str,
    signature: str,
    doc: str,
    parameters_of: _Function | None,
) -> Section:
    parts = [f"```python\n{signature}\n```", _cleaned(doc)]
    if parameters_of:
        parts.append("\n".join(_described(parameters_of)))
    text = "\n\n".join(filter(None, parts)).encode("utf-8", "replace").decode()  # lone surrogates
    return Section(title, (names[0].removesuffix(f".{title}"),), url, text, names)


# Text


_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`(?:[^`<]*<)?[~!.]*+([^`<>]+)>?`")


def _cleaned(doc: str) -> str:
    """Sphinx roles and ``literals`` as Markdown has them."""
    doc = _ROLE.sub(lambda role: f"`{role[1]}`", doc)
    return re.sub(r"``([^`\n]+)``", r"`\1`", doc)


def _source(node: ast.AST) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:  # a generated expression, a thousand terms long
        return "..."


def _doc(node: _Definition) -> str:
    return (ast.get_docstring(node) or "").strip()


def _doc_of_method(function: _Function, module: _Module) -> str:
    """SQLAlchemy documents `selectinload` at the method that it hands its arguments to."""
    used = {each.attr for each in ast.walk(function) if isinstance(each, ast.Attribute)}
    if function.name not in used:
        return ""
    if module.docs is None:
        module.docs = _docs_of_methods(module)
    return module.docs.get(function.name, "")


def _docs_of_methods(module: _Module) -> dict[str, str]:
    docs: dict[str, str] = {}
    for nodes in module.definitions.values():
        for each in getattr(nodes[-1], "body", ()):
            if isinstance(each, _Function) and each.name not in docs and (doc := _doc(each)):
                docs[each.name] = doc
    return docs


def _has_decorator(node: _Function, name: str) -> bool:
    return any(_last(_source(each)) == name for each in node.decorator_list)


_SHOWN_DECORATORS = (
    "overload",
    "property",
    "classmethod",
    "staticmethod",
    "contextmanager",
    "asynccontextmanager",
)


def _signature(node: _Function) -> str:
    """With annotations and defaults, without `Doc(...)`; a line for each parameter if long."""
    shown = [name for name in _SHOWN_DECORATORS if _has_decorator(node, name)]
    decorators = "".join(f"@{name}\n" for name in shown)
    start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {_source(node.returns)}" if node.returns else ""
    parameters = list(_parameters(node.args))
    line = f"{start} {node.name}({', '.join(parameters)}){result}: ..."
    if len(line) > LINE_WIDTH:
        inner = "".join(f"    {each},\n" for each in parameters)
        line = f"{start} {node.name}(\n{inner}){result}: ..."
    return decorators + line


def _parameters(args: ast.arguments) -> Iterator[str]:
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    for number, (each, default) in enumerate(zip(positional, defaults, strict=True), start=1):
        yield _parameter(each, default)
        if number == len(args.posonlyargs):
            yield "/"
    if args.vararg:
        yield "*" + _parameter(args.vararg, None)
    elif args.kwonlyargs:
        yield "*"
    for each, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _parameter(each, default)
    if args.kwarg:
        yield "**" + _parameter(args.kwarg, None)


def _parameter(parameter: ast.arg, default: ast.expr | None) -> str:
    text = parameter.arg
    if parameter.annotation:
        text += f": {_source(_without_doc(parameter.annotation))}"
    if default is None:
        return text
    return f"{text} = {_source(default)}" if parameter.annotation else f"{text}={_source(default)}"


def _annotated(annotation: ast.expr | None) -> list[ast.expr]:
    """The parts of `Annotated[...]`; empty if it is something else."""
    match annotation:
        case ast.Subscript(
            ast.Name("Annotated") | ast.Attribute(attr="Annotated"), ast.Tuple(parts)
        ):
            return parts
        case _:
            return []


def _doc_text(part: ast.expr) -> str:
    match part:
        case ast.Call(ast.Name("Doc") | ast.Attribute(attr="Doc"), [ast.Constant(str(text)), *_]):
            return cleandoc(text)
        case _:
            return ""


def _without_doc(annotation: ast.expr) -> ast.expr:
    parts = _annotated(annotation)
    kept = [part for part in parts if not _doc_text(part)]
    match annotation:
        case ast.Subscript(value) if len(kept) < len(parts):
            rest = ast.Subscript(value, ast.Tuple(kept, ast.Load()), ast.Load())
            return rest if len(kept) > 1 else kept[0]
        case _:
            return annotation


def _described(node: _Function) -> Iterator[str]:
    """A list item for each parameter with a `Doc` text."""
    args = node.args
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    for each in filter(None, every):
        for text in filter(None, map(_doc_text, _annotated(each.annotation))):
            yield f"- `{each.arg}`: {indent(text, '  ').lstrip()}"
