"""What `field__op=value` means: checks of the value, and SQL that holds on every database.

Plain columns, array columns (PostgreSQL) and JSON documents have a table of operators
each; date parts make a number or a date of a column. Where databases spell something
differently, one `sql_template` holds a template for each of them. The dialect is known when a
statement is compiled, not before: an operator that the database lacks raises then.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Integer,
    String,
    bindparam,
    func,
    literal,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from .errors import InvalidFilter
from .mapping import check_type, kind_of, python_type, stored_type

Condition = ColumnElement[bool]
Operator = Callable[[Any, Any], Condition]


# -- SQL per database -----------------------------------------------------------


class _PerDialect(FunctionElement[Any]):
    """SQL from a template per dialect, which names the arguments that it needs."""

    name: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]]
    templates: ClassVar[Mapping[str, str]]

    def template(self, dialect: Dialect) -> str:
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        choices = {"mariadb": ("mariadb", "mysql"), "default": ("postgresql",)}.get(name, (name,))
        # "default": print(statement), without an engine
        found = next((each for each in choices if each in self.templates), None)
        if found and self.templates[found]:
            return self.templates[found]
        known = ", ".join(each for each, template in self.templates.items() if template)
        raise InvalidFilter(f"{self.name} is not available on {name}; it is on {known}")


class _Arguments(dict[str, str]):
    """Compiled arguments by name. One that no template names would leave parameters over."""

    def __init__(self, element: _PerDialect, compiler: SQLCompiler, options: Any) -> None:
        super().__init__()
        self._element, self._compiler, self._options = element, compiler, options

    def __missing__(self, name: str) -> str:
        argument = list(self._element.clauses)[self._element.arguments.index(name)]
        self[name] = self._compiler.process(argument, **self._options)
        return self[name]


@compiles(_PerDialect)
def _render(element: _PerDialect, compiler: SQLCompiler, **options: Any) -> str:
    return element.template(compiler.dialect).format_map(_Arguments(element, compiler, options))


def sql_template(
    name: str, arguments: str, kind: TypeEngine[Any], **templates: str
) -> Callable[..., ColumnElement[Any]]:
    """A function that makes SQL of its arguments.

    Args:
        name: what an error calls it.
        arguments: their names, separated by blanks.
        kind: the type of the result.
        templates: SQL by dialect; `mysql` is for MariaDB too, unless there is `mariadb`.
            An empty one: MariaDB cannot do what MySQL can.
    """
    return type(
        f"_{name}",
        (_PerDialect,),
        {
            "inherit_cache": True,  # the class and the arguments say all
            "name": name,
            "arguments": tuple(arguments.split()),
            "type": kind,
            "templates": templates,
        },
    )


# -- plain columns --------------------------------------------------------------


def _text(method: str) -> Operator:
    # autoescape: % and _ in the text match themselves.
    def apply(column: Any, value: Any) -> Condition:
        _check_text(column, value)
        condition: Condition = getattr(column, method)(value, autoescape=True)
        return condition

    return apply


def _pattern(method: str) -> Operator:
    def apply(column: Any, value: Any) -> Condition:
        _check_text(column, value)
        condition: Condition = getattr(column, method)(value)
        return condition

    return apply


def _check_text(column: Any, value: Any) -> None:
    """PostgreSQL has no LIKE for other types; the others would convert silently."""
    if not isinstance(value, str):
        raise InvalidFilter(f"takes text, not {kind_of(value)}")
    if "\0" in value:  # ends the pattern on SQLite, and so matches every row
        raise InvalidFilter("takes text without NUL characters")
    kind = python_type(column)
    if kind is not None and kind is not str:
        raise InvalidFilter(f"takes a text column, not one of {kind.__name__}")


def _equal(compare: Operator) -> Operator:
    def apply(column: Any, value: Any) -> Condition:
        if value is not None:
            check_type(column, value)
        return compare(column, value)

    return apply


def _ordered(compare: Operator) -> Operator:
    def apply(column: Any, value: Any) -> Condition:
        check_not_none(value)
        check_type(column, value)
        if isinstance(value, bool):
            raise InvalidFilter("does not order True and False; use eq")
        return compare(column, value)

    return apply


def check_not_none(value: Any) -> None:
    if value is None:
        raise InvalidFilter("takes a value; for NULL use is_null")


def _identical(compare: Operator) -> Operator:
    def apply(column: Any, value: Any) -> Condition:
        check_identity(value)
        return compare(column, value)

    return apply


def check_identity(value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise InvalidFilter(f"takes None, True or False, not {kind_of(value)}")


_NO_LIST: tuple[type, ...] = (str, bytes, dict)


def members_of(value: Any) -> list[Any]:
    if isinstance(value, _NO_LIST) or not hasattr(value, "__iter__"):
        raise InvalidFilter(f"takes a list, not {kind_of(value)}")
    members = list(value)
    if any(member is None for member in members):
        raise InvalidFilter("takes a list without None; for NULL use is_null")
    return members


def _among(compare: Operator) -> Operator:
    def apply(column: Any, value: Any) -> Condition:
        members = members_of(value)
        for member in members:
            check_type(column, member)
        return compare(column, members)

    return apply


MAX_MEMBERS = 30_000
"""Values of one list: PostgreSQL takes 32,767 parameters in a statement."""


def _bound_members(column: Any, members: list[Any]) -> Any:
    if len(members) > MAX_MEMBERS:
        raise InvalidFilter(
            f"takes at most {MAX_MEMBERS} values, not {len(members)}; for keys there is get_by_ids"
        )
    # SQLAlchemy would give all of them the type of the first one.
    return bindparam("members", members, column.type, expanding=True, unique=True)


def _between(column: Any, bounds: list[Any]) -> Condition:
    if len(bounds) != 2:
        raise InvalidFilter(f"takes two bounds, not {len(bounds)}")
    condition: Condition = column.between(bounds[0], bounds[1])
    return condition


def _is_null(column: Any, value: Any) -> Condition:
    check_flag(value)
    condition: Condition = column.is_(None) if value else column.is_not(None)
    return condition


def check_flag(value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidFilter(f"takes True or False, not {kind_of(value)}")


def _iexact(column: Any, value: Any) -> Condition:
    _check_text(column, value)
    return func.lower(column) == func.lower(value)


# SQLAlchemy gives SQLite a `regexp` function: Python's re.search. MariaDB and MySQL
# take the case from the collation, unless told.
_REGEX = {
    False: sql_template(
        "regex",
        "column pattern",
        Boolean(),
        sqlite="({column} REGEXP {pattern})",
        postgresql="({column} ~ {pattern})",
        mysql="REGEXP_LIKE({column}, {pattern}, 'c')",
        mariadb="({column} REGEXP CONCAT('(?-i)', {pattern}))",
    ),
    True: sql_template(
        "iregex",
        "column pattern",
        Boolean(),
        sqlite="({column} REGEXP '(?i)' || {pattern})",
        postgresql="({column} ~* {pattern})",
        mysql="REGEXP_LIKE({column}, {pattern}, 'i')",
        mariadb="({column} REGEXP CONCAT('(?i)', {pattern}))",
    ),
}


def _regex(ignore_case: bool) -> Operator:
    def apply(column: Any, value: Any) -> Condition:
        _check_text(column, value)
        try:
            re.compile(value)
            re.compile(f"(?i){value}")  # as SQLite gets it
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidFilter(f"takes a regular expression, not {value!r}: {error}") from None
        return _REGEX[ignore_case](column, literal(value, String()))

    return apply


_MATCH_TEXT = sql_template(
    "match",
    "column query",
    Boolean(),
    postgresql="(to_tsvector({column}) @@ websearch_to_tsquery({query}))",
)
_MATCH_VECTOR = sql_template(
    "match",
    "column query",
    Boolean(),
    postgresql="({column} @@ websearch_to_tsquery({query}))",
)


def _match(column: Any, value: Any) -> Condition:
    vector = isinstance(column.type, TSVECTOR)  # made of text, but no text to SQLAlchemy
    _check_text(literal("") if vector else column, value)
    search = _MATCH_VECTOR if vector else _MATCH_TEXT
    return search(column, literal(value, String()))


def _only(wanted: str) -> Operator:
    def apply(column: Any, _value: Any) -> Condition:
        kind = python_type(column)
        found = kind.__name__ if kind else repr(column.type)
        raise InvalidFilter(f"takes {wanted} column, not one of {found}")

    return apply


PLAIN: dict[str, Operator] = {
    "eq": _equal(lambda column, value: column == value),
    "ne": _equal(lambda column, value: column != value),
    "gt": _ordered(lambda column, value: column > value),
    "gte": _ordered(lambda column, value: column >= value),
    "lt": _ordered(lambda column, value: column < value),
    "lte": _ordered(lambda column, value: column <= value),
    "in": _among(lambda column, members: column.in_(_bound_members(column, members))),
    "not_in": _among(lambda column, members: column.not_in(_bound_members(column, members))),
    "between": _among(_between),
    "is_null": _is_null,
    "is": _identical(lambda column, value: column.is_(value)),
    "is_not": _identical(lambda column, value: column.is_not(value)),
}
TEXT: dict[str, Operator] = {
    "like": _pattern("like"),
    "not_like": _pattern("not_like"),
    "ilike": _pattern("ilike"),
    "not_ilike": _pattern("not_ilike"),
    "contains": _text("contains"),
    "icontains": _text("icontains"),
    "startswith": _text("startswith"),
    "istartswith": _text("istartswith"),
    "endswith": _text("endswith"),
    "iendswith": _text("iendswith"),
    "iexact": _iexact,
    "regex": _regex(ignore_case=False),
    "iregex": _regex(ignore_case=True),
    "match": _match,
}
OPERATORS: dict[str, Operator] = {
    **PLAIN,
    **TEXT,
    "contained_by": _only("an array"),
    "overlap": _only("an array"),
    "has_key": _only("a JSON"),
}
"""Operators of `field__op=value`. Without an operator the filter is `eq`. A value has
the type of its column: "5" is not taken for an integer.

Text operators match `%` and `_` literally; `like` and its kin take a pattern. `regex`
and `iregex` are the database's own (Python's on SQLite, where the pattern runs in the
process): classes, anchors, groups and quantifiers agree, look-around does not. `match` is
PostgreSQL's full text search, in the words of a search box; to have it indexed, give the
table a TSVECTOR column and match that.

`contains` means text in a text column, members in an array, a part of a JSON document;
`contained_by` and `overlap` are for arrays, `has_key` for JSON. Arrays and `match` exist
on PostgreSQL; elsewhere they raise InvalidFilter when the statement is sent.

NULL is as in SQL, on every database: a comparison with it is neither true nor false, and
NOT leaves it so. `age__ne=30` and `not_(age=30)` leave out rows without an age."""


# -- arrays ---------------------------------------------------------------------


def _array(name: str, operator: str) -> Operator:
    compare = sql_template(
        name, "column members", Boolean(), postgresql=f"({{column}} {operator} {{members}})"
    )

    def apply(column: Any, value: Any) -> Condition:
        members = members_of(value)
        member_type = type_coerce(column, column.type.item_type)
        for member in members:
            check_type(member_type, member)
        return compare(column, literal(members, column.type))

    return apply


ARRAY_OPERATORS: dict[str, Operator] = {
    **PLAIN,
    "contains": _array("contains", "@>"),
    "contained_by": _array("contained_by", "<@"),
    "overlap": _array("overlap", "&&"),
}


# -- date parts -----------------------------------------------------------------


def _part(name: str, sqlite: str) -> Callable[..., ColumnElement[Any]]:
    return sql_template(
        name,
        "column",
        Integer(),
        # A second of PostgreSQL has a fraction, which a cast would round.
        postgresql=f"CAST(FLOOR(EXTRACT({name} FROM {{column}})) AS INTEGER)",
        sqlite=sqlite,
        mysql=f"EXTRACT({name} FROM {{column}})",
    )


def _strftime(code: str) -> str:
    return f"CAST(strftime('{code}', {{column}}) AS INTEGER)"


_DAYS = {
    "year": _part("year", _strftime("%Y")),
    "quarter": _part("quarter", f"(({_strftime('%m')} + 2) / 3)"),
    "month": _part("month", _strftime("%m")),
    "day": _part("day", _strftime("%d")),
    "date": sql_template(
        "date",
        "column",
        Date(),
        postgresql="CAST({column} AS DATE)",
        sqlite="date({column})",
        mysql="DATE({column})",
    ),
}
_TIMES = {
    "hour": _part("hour", _strftime("%H")),
    "minute": _part("minute", _strftime("%M")),
    "second": _part("second", _strftime("%S")),
}
DATE_PARTS = (*_DAYS, *_TIMES)
"""Parts of dates, each to be compared like a column: `created_at__year__gte=2026`.

`date` compares with a `datetime.date`, the others with an integer. A column with a time
zone is taken in UTC, one without as it is stored. An index on the column does not help;
a range of the column itself (`created_at__gte=...`) uses it."""

# PostgreSQL would take the session's time zone. The others store aware values in UTC.
_IN_UTC = sql_template(
    "utc",
    "column",
    DateTime(),
    postgresql="({column} AT TIME ZONE 'UTC')",
    sqlite="{column}",
    mysql="{column}",
)


def date_parts(kind: TypeEngine[Any]) -> Mapping[str, Callable[..., ColumnElement[Any]]]:
    """The parts that values of a column type have."""
    kind = stored_type(kind)
    if isinstance(kind, DateTime):
        return _DAYS | _TIMES
    return _DAYS if isinstance(kind, Date) else {}


def date_part(column: Any, name: str) -> ColumnElement[Any]:
    """A part of a date column.

    Raises:
        InvalidFilter: the column holds no dates, or no time of day.
    """
    parts = date_parts(column.type)
    if name not in parts:
        wanted = "a datetime" if name in _TIMES else "a date or datetime"
        _only(wanted)(column, None)
    aware = getattr(stored_type(column.type), "timezone", False)
    return parts[name](_IN_UTC(column) if aware else column)
