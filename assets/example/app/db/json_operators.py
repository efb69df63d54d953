"""What `field__key__op=value` means: operators on places in JSON documents.

PostgreSQL gets a jsonb value. SQLite and MySQL get a document and a path, which is text.
A stored value of another JSON type than the filter's is NULL for the filter, so documents
of different shapes never raise.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeGuard

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    Numeric,
    String,
    and_,
    case,
    func,
    literal,
    literal_column,
    or_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from .errors import InvalidFilter
from .mapping import kind_of
from .operators import (
    PLAIN,
    TEXT,
    Condition,
    Operator,
    check_flag,
    check_identity,
    check_not_none,
    members_of,
    sql_template,
)

_EXTRACT = "JSON_EXTRACT({document}, {path})"  # MySQL
_WHERE = "value document path"  # the arguments that say where

_KIND = sql_template(
    "kind",
    _WHERE,
    String(),
    postgresql="jsonb_typeof({value})",
    sqlite="json_type({document}, {path})",
    mysql=f"LOWER(JSON_TYPE({_EXTRACT}))",
)
"""`object`, `array`, `null` or, spelled as the database does, another type; NULL where
there is nothing."""


class _JsonNumber(Numeric[Any]):
    """Numbers, compared exactly: never as floats, where Python's value is none."""

    cache_ok = True

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        return BigInteger() if isinstance(value, int) else self


_VALUES: dict[type, Callable[..., ColumnElement[Any]]] = {
    str: sql_template(
        "text",
        _WHERE,
        String(),
        postgresql="(CASE WHEN jsonb_typeof({value}) = 'string' THEN {value} #>> '{{}}' END)",
        sqlite="(CASE WHEN json_type({document}, {path}) = 'text'"
        " THEN json_extract({document}, {path}) END)",
        mysql=f"(CASE WHEN JSON_TYPE({_EXTRACT}) = 'STRING'"
        f" THEN CONVERT(JSON_UNQUOTE({_EXTRACT}) USING utf8mb4) COLLATE utf8mb4_bin END)",
    ),
    Decimal: sql_template(
        "number",
        _WHERE,
        _JsonNumber(),
        postgresql="(CASE WHEN jsonb_typeof({value}) = 'number' THEN CAST({value} AS NUMERIC) END)",
        sqlite="(CASE WHEN json_type({document}, {path}) IN ('integer', 'real')"
        " THEN json_extract({document}, {path}) END)",
        mysql=f"(CASE WHEN JSON_TYPE({_EXTRACT})"
        " IN ('INTEGER', 'UNSIGNED INTEGER', 'DOUBLE', 'DECIMAL')"
        f" THEN CAST(JSON_UNQUOTE({_EXTRACT}) AS DECIMAL(65, 30)) END)",
    ),
    bool: sql_template(
        "boolean",
        _WHERE,
        Boolean(),
        postgresql="(CASE WHEN jsonb_typeof({value}) = 'boolean'"
        " THEN CAST({value} AS BOOLEAN) END)",
        sqlite="(CASE json_type({document}, {path}) WHEN 'true' THEN 1 WHEN 'false' THEN 0 END)",
        mysql=f"(CASE WHEN JSON_TYPE({_EXTRACT}) = 'BOOLEAN'"
        f" THEN JSON_UNQUOTE({_EXTRACT}) = 'true' END)",
    ),
}
_SIZE = sql_template(
    "size",
    "document path",
    Integer(),
    sqlite="(SELECT count(*) FROM json_each({document}, {path}))",
    mysql="JSON_LENGTH({document}, {path})",
)
_APPEND = sql_template(
    "path", "path step", String(), sqlite="({path} || {step})", mysql="CONCAT({path}, {step})"
)
# Digits are an index in a list and a key elsewhere. MySQL takes any value for a list of one.
_INDEX_OR_KEY = sql_template(
    "path",
    "document path index key",
    String(),
    sqlite="(CASE json_type({document}, {path})"
    " WHEN 'array' THEN {path} || {index} ELSE {path} || {key} END)",
    mysql=f"(CASE JSON_TYPE({_EXTRACT})"
    " WHEN 'ARRAY' THEN CONCAT({path}, {index}) ELSE CONCAT({path}, {key}) END)",
)
# What json_each yields is no JSON: text without quotes, 1 for true.
_AS_JSON = (
    "CASE {alias}.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'"
    " WHEN 'object' THEN {alias}.value WHEN 'array' THEN {alias}.value"
    " ELSE json_quote({alias}.value) END"
)
# SQLite and MariaDB compare a path with the text of the stored document, where SQLAlchemy
# writes escapes: for `é` that is `\u00e9`. json_each decodes; MariaDB gets both spellings.
_KEY_ARGUMENTS = "document path key escaped raw"
_KEY_IN_SQLITE = (
    f"(SELECT {_AS_JSON.replace('{alias}', 'pair')}"
    " FROM json_each({document}, {path}) AS pair WHERE pair.key = {key})"
)
_KEY_IN_MYSQL = (
    "COALESCE(JSON_EXTRACT({document}, CONCAT({path}, {escaped})),"
    " JSON_EXTRACT({document}, CONCAT({path}, {raw})))"
)
_ODD_KEY = sql_template("key", _KEY_ARGUMENTS, JSON(), sqlite=_KEY_IN_SQLITE, mysql=_KEY_IN_MYSQL)
# MariaDB's paths take a leading minus for a position from the end, also within quotes.
_MINUS_KEY = sql_template(
    "a JSON key that begins with '-'",
    _KEY_ARGUMENTS,
    JSON(),
    sqlite=_KEY_IN_SQLITE,
    mysql=_KEY_IN_MYSQL,
    mariadb="",
)
_MEMBER = sql_template("member", "alias", JSON(), sqlite=f"({_AS_JSON})", mysql="{alias}.item")
_ANY_MEMBER = sql_template(
    "member",
    "document path alias condition",
    Boolean(),
    sqlite="EXISTS (SELECT 1 FROM json_each({document}, {path}) AS {alias} WHERE {condition})",
    mysql=f"EXISTS (SELECT 1 FROM JSON_TABLE({_EXTRACT}, '$[*]'"
    " COLUMNS (item JSON PATH '$')) AS {alias} WHERE {condition})",
)
_EITHER = sql_template(
    "condition",
    "native portable",
    Boolean(),
    postgresql="({native})",
    sqlite="({portable})",
    mysql="({portable})",
)


# PostgreSQL's json has no operators; a cast from jsonb to jsonb is none, and leaves the
# column to its GIN index.
_DOCUMENT = sql_template(
    "JSON",
    "column",
    JSON(),
    postgresql="CAST({column} AS JSONB)",
    sqlite="{column}",
    mysql="{column}",
)

_SIGNED = re.compile(r"\s+\d+|\s*[+-]\d+")


@dataclass(frozen=True, slots=True)
class JsonPlace:
    """A place in the document of a JSON column.

    Args:
        root: the document, and `keys` the way from there, for PostgreSQL.
        document: for the others; with the SQL of a path, where there is one, and the
            text that comes behind it.
    """

    root: ColumnElement[Any]
    document: ColumnElement[Any]
    keys: tuple[str, ...] = ()
    dynamic: ColumnElement[Any] | None = None
    fixed: str = "$"

    @classmethod
    def of_column(cls, column: Any) -> "JsonPlace":
        document = _DOCUMENT(column)
        return cls(root=document, document=document)

    @property
    def path(self) -> ColumnElement[Any]:
        text = literal(self.fixed, String())
        if self.dynamic is None:
            return text
        return _APPEND(self.dynamic, text) if self.fixed else self.dynamic

    @property
    def value(self) -> ColumnElement[Any]:
        if not self.keys:
            return self.root
        keys = [literal(key, String()) for key in self.keys]
        if not any(_SIGNED.fullmatch(key) for key in self.keys):
            return func.jsonb_extract_path(self.root, *keys, type_=JSONB())
        value = self.root
        # One by one: there -1 is the end of a list, which `->` takes for a key.
        for key, bound in zip(self.keys, keys, strict=True):
            if _SIGNED.fullmatch(key):
                value = value.op("->", return_type=JSONB())(bound)
            else:
                value = func.jsonb_extract_path(value, bound, type_=JSONB())
        return value

    @property
    def kind(self) -> ColumnElement[Any]:
        return _KIND(self.value, self.document, self.path)

    @property
    def size(self) -> ColumnElement[Any]:
        """How many members an object or list has; not for PostgreSQL."""
        return _SIZE(self.document, self.path)

    def typed(self, kind: type) -> ColumnElement[Any]:
        """The value, when it has this type: str, Decimal or bool; else NULL."""
        return _VALUES[kind](self.value, self.document, self.path)

    def key(self, key: str) -> "JsonPlace":
        keys = (*self.keys, key)
        if re.fullmatch(r"(?!-)[ !#-[\]-~]+", key):  # ASCII without quotes and backslashes
            return replace(self, keys=keys, fixed=f'{self.fixed}."{key}"')
        steps = [f".{json.dumps(key, ensure_ascii=escape)}" for escape in (True, False)]
        texts = [literal(text, String()) for text in (key, *steps)]
        lookup = _MINUS_KEY if key.startswith("-") else _ODD_KEY
        document = lookup(self.document, self.path, *texts)
        return JsonPlace(self.root, document, keys)

    def index(self, index: int) -> "JsonPlace":
        """A member of what is known to be a list; not for PostgreSQL."""
        return replace(self, fixed=f"{self.fixed}[{index}]")

    def segment(self, text: str) -> "JsonPlace":
        """One part of a filter's name: a key, or digits for a position in a list."""
        # More digits than nine are no position for any database.
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            return self.key(text)
        steps = (literal(step, String()) for step in (f"[{int(text)}]", f'."{text}"'))
        dynamic = _INDEX_OR_KEY(self.document, self.path, *steps)
        return replace(self, keys=(*self.keys, text), dynamic=dynamic, fixed="")

    def has_kind(self, kind: str) -> Condition:
        """Whether it is an `object`, an `array` or `null`; TRUE or FALSE."""
        return (self.kind == kind).is_(True)

    @classmethod
    def of_member(cls, depth: int) -> "JsonPlace":
        """A member of the list that `any_member` with this depth goes through."""
        member = _MEMBER(_alias(depth))
        return cls(root=member, document=member)

    def any_member(self, condition: Condition, depth: int) -> Condition:
        """Whether the condition holds for a member of a list; not for PostgreSQL."""
        found = _ANY_MEMBER(self.document, self.path, _alias(depth), condition)
        return and_(self.has_kind("array"), found)


def _alias(depth: int) -> ColumnElement[Any]:
    return literal_column(f"member{depth}")


def _is_object(value: object) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _normal(value: Any) -> Any:
    """A value as JSON has it, with exact numbers.

    Raises:
        InvalidFilter: JSON has no such value.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, int | float | Decimal) and math.isfinite(value):
        return Decimal(str(value))
    if _is_list(value):
        return [_normal(member) for member in value]
    if _is_object(value):
        if all(isinstance(key, str) for key in value):
            return {key: _normal(member) for key, member in value.items()}
        raise InvalidFilter("takes an object with text keys")
    wanted = "text, a finite number, True, False, a list or a dict"
    raise InvalidFilter(f"takes {wanted} for JSON, not {kind_of(value)}")


def _is_same(place: JsonPlace, value: Any) -> Condition:
    """Whether a place holds just this; TRUE or FALSE. Not for PostgreSQL."""
    if value is None:
        return place.has_kind("null")
    if _is_object(value):
        inner = [_is_same(place.key(key), member) for key, member in value.items()]
        return and_(place.has_kind("object"), place.size == len(value), *inner)
    if _is_list(value):
        inner = [_is_same(place.index(n), member) for n, member in enumerate(value)]
        return and_(place.has_kind("array"), place.size == len(value), *inner)
    same: Condition = place.typed(_scalar_type(value)) == value
    return same.is_(True)


def _holds(place: JsonPlace, value: Any, depth: int = 0) -> Condition:
    """Whether a place contains this, as PostgreSQL's `@>` has it; TRUE or FALSE.

    An object has these keys with values that contain these; a list has, for each of these
    members, one that contains it.
    """
    if _is_object(value):
        inner = [_holds(place.key(key), member, depth) for key, member in value.items()]
        return and_(place.has_kind("object"), *inner)
    if _is_list(value):
        found = JsonPlace.of_member(depth)
        inner = [place.any_member(_holds(found, member, depth + 1), depth) for member in value]
        return and_(place.has_kind("array"), *inner)
    return _is_same(place, value)


def _scalar_type(value: Any) -> type:
    if isinstance(value, bool | str):
        return bool if isinstance(value, bool) else str
    return Decimal


def _jsonb(value: Any) -> ColumnElement[Any]:
    return literal(_serializable(value), JSONB())


def _serializable(value: Any) -> Any:
    """The same value without Decimals, which `json` does not write."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if _is_object(value):
        return {key: _serializable(member) for key, member in value.items()}
    if _is_list(value):
        return [_serializable(member) for member in value]
    return value


def _json_compare(name: str) -> Operator:
    def apply(place: JsonPlace, value: Any) -> Condition:
        check_not_none(value)
        scalar = _scalar(value)
        return PLAIN[name](place.typed(_scalar_type(scalar)), scalar)

    return apply


def _json_equal(equal: bool) -> Operator:
    def apply(place: JsonPlace, value: Any) -> Condition:
        if value is None:
            return _json_is_null(place, equal)
        normal = _normal(value)
        if not isinstance(normal, dict | list):
            return PLAIN["eq" if equal else "ne"](place.typed(_scalar_type(normal)), normal)
        same = _EITHER(place.value == _jsonb(normal), _is_same(place, normal))
        kind = "object" if isinstance(normal, dict) else "array"
        return case((place.kind == kind, same if equal else ~same))

    return apply


def _json_among(name: str) -> Operator:
    def apply(place: JsonPlace, value: Any) -> Condition:
        members = [_scalar(member) for member in members_of(value)]
        kinds = {_scalar_type(member) for member in members} or {str}
        if len(kinds) > 1:
            raise InvalidFilter("takes values of one type: text, numbers, or True and False")
        if any(isinstance(member, Decimal) for member in members):
            members = [Decimal(member) for member in members]  # one type for the driver
        return PLAIN[name](place.typed(kinds.pop()), members)

    return apply


def _scalar(value: Any) -> Any:
    if _is_object(value) or _is_list(value):
        raise InvalidFilter(f"takes text, numbers, True or False, not {kind_of(value)}")
    return _normal(value)


def _json_is_null(place: JsonPlace, value: Any) -> Condition:
    check_flag(value)
    kind = func.coalesce(place.kind, "null")
    return kind == "null" if value else kind != "null"


def _json_identical(name: str) -> Operator:
    def apply(place: JsonPlace, value: Any) -> Condition:
        check_identity(value)
        if value is None:
            return _json_is_null(place, name == "is")
        return PLAIN[name](place.typed(bool), value)

    return apply


def _json_text(name: str) -> Operator:
    return lambda place, value: TEXT[name](place.typed(str), value)


def _json_contains(place: JsonPlace, value: Any) -> Condition:
    if value is None:
        raise InvalidFilter("takes a part of a document; for null use is_null")
    normal = _normal(value)
    native = place.value.bool_op("@>")(_jsonb(normal))
    portable = _holds(place, normal)
    if not isinstance(normal, dict | list):  # a list contains its scalars, at the top only
        member = JsonPlace.of_member(depth=0)
        portable = or_(portable, place.any_member(_is_same(member, normal), depth=0))
    return _EITHER(native, case((place.kind.is_not(None), portable)))


def _json_has_key(place: JsonPlace, value: Any) -> Condition:
    if not isinstance(value, str):
        raise InvalidFilter(f"takes a key, not {kind_of(value)}")
    # `?` is also true for a list with this text as a member, and for the text itself.
    native = and_(place.value.bool_op("?")(literal(value, String())), place.kind == "object")
    found = place.key(value).kind.is_not(None)
    return _EITHER(native, case((place.kind.is_not(None), found)))


JSON_OPERATORS: dict[str, Operator] = {
    "eq": _json_equal(equal=True),
    "ne": _json_equal(equal=False),
    **{name: _json_compare(name) for name in ("gt", "gte", "lt", "lte")},
    **{name: _json_among(name) for name in ("in", "not_in", "between")},
    "is_null": _json_is_null,
    "is": _json_identical("is"),
    "is_not": _json_identical("is_not"),
    **{name: _json_text(name) for name in TEXT},
    "contains": _json_contains,
    "has_key": _json_has_key,
}
