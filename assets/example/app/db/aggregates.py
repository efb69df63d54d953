"""Counts, sums and extremes, of all rows or by group."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Double, Select, cast, func, literal, select
from sqlmodel import SQLModel

from .errors import InvalidQuery
from .mapping import python_type, unknown
from .sorting import SortKey, sort_keys

_NUMBERS: tuple[type, ...] = (int, float, Decimal)
_ORDERED: tuple[type, ...] = (*_NUMBERS, str, date, datetime, time, timedelta)


def _sum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    total = func.sum(column)
    # Else a Decimal on MySQL, and for BIGINT on PostgreSQL.
    return cast(total, BigInteger) if python_type(column) is int else total


FUNCTIONS: dict[str, tuple[Callable[[Any], ColumnElement[Any]], tuple[type, ...] | None]] = {
    "count": (func.count, None),
    "count_distinct": (lambda column: func.count(column.distinct()), None),
    "sum": (_sum, _NUMBERS),
    "avg": (lambda column: cast(func.avg(column), Double), _NUMBERS),
    "min": (func.min, _ORDERED),
    "max": (func.max, _ORDERED),
}
"""What a measure may compute, and the types that it takes. `avg` is a float, also of
decimals; all but the counts are None where there is no value."""


def aggregate_statement(
    model: type[SQLModel],
    measures: Mapping[str, str],
    where: Sequence[ColumnElement[bool]],
    *,
    group_by: str | Sequence[str] = (),
    order_by: str | Sequence[str] = (),
    limit: int | None = None,
    deleted: bool = False,
) -> Select[Any]:
    """SELECT of groups and measures; see `ReadService.aggregate`.

    SQL: `SELECT d.team__name, count(*) FROM (SELECT ... WHERE ...) AS d GROUP BY ...`. The
    inner SELECT has one row per row of the model, however many relations it follows.

    Raises:
        InvalidQuery: unknown field or function, a type that the function does not take, a
            name that means something else on a result row.
    """
    groups = (group_by,) if isinstance(group_by, str) else tuple(group_by)
    if not measures:
        raise InvalidQuery("aggregate needs a measure, e.g. {'rows': 'count'}")
    inner: dict[str, ColumnElement[Any]] = {}

    def field(where: str, path: str) -> None:
        if path not in inner:
            inner[path] = _resolve(model, where, path, deleted).label(f"f{len(inner)}")

    for path in groups:
        field("group_by", path)
    parsed: dict[str, tuple[str, str]] = {}
    for name, measure in measures.items():
        _check_name(name, groups)
        function, _, path = str(measure).partition(":")
        if function not in FUNCTIONS:
            raise InvalidQuery(f"{name}: {unknown(model, 'measure', function, FUNCTIONS)}")
        if path:
            field(name, path)
            _check_type(name, function, path, inner[path])
        elif function != "count":
            raise InvalidQuery(f"{name}: {function} takes a field: '{function}:power'")
        parsed[name] = function, path

    rows = select(*(inner.values() or [literal(1).label("f0")])).select_from(model)
    table = rows.where(*where).subquery("d")
    column = {path: table.c[f"f{place}"] for place, path in enumerate(inner)}
    outer: dict[str, Any] = {path: column[path].label(path) for path in groups}
    for name, (function, path) in parsed.items():
        compute, _ = FUNCTIONS[function]
        outer[name] = (compute(column[path]) if path else func.count()).label(name)
    statement: Any = select(*outer.values()).select_from(table)
    statement = statement.group_by(*(column[path] for path in groups))
    keys = (order_by,) if isinstance(order_by, str) else tuple(order_by)
    for key in (*keys, *groups):  # the groups last: one order, from one page to the next
        name = key.removeprefix("-")
        if name not in outer:
            raise InvalidQuery(f"order_by: {unknown(model, 'group or measure', name, outer)}")
        value = column[name] if name in column and name in groups else outer[name].element
        down = key != name
        statement = statement.order_by(SortKey(name, value, None, down, down, True).order)
    limited: Select[Any] = statement if limit is None else statement.limit(limit)
    return limited


def _resolve(model: type[SQLModel], where: str, path: str, deleted: bool) -> ColumnElement[Any]:
    try:
        return sort_keys(model, [path], deleted=deleted)[0].expression
    except InvalidQuery as error:
        raise InvalidQuery(str(error).replace("order_by:", f"{where}:", 1)) from None


def _check_name(name: str, groups: Sequence[str]) -> None:
    # A result row is a tuple: its own methods win over columns.
    if name in groups or name.startswith("_") or hasattr(tuple, name) or not name.isidentifier():
        raise InvalidQuery(
            f"aggregate: {name!r} cannot name a measure; it is a group, no identifier, or "
            "means something else on a row; e.g. 'total'"
        )


def _measurable(kind: type, accepted: tuple[type, ...]) -> bool:
    return issubclass(kind, accepted) and kind is not bool and not issubclass(kind, Enum)


def _check_type(name: str, function: str, path: str, column: ColumnElement[Any]) -> None:
    _, accepted = FUNCTIONS[function]
    kind = python_type(column)
    if accepted is not None and (kind is None or not _measurable(kind, accepted)):
        listed = ", ".join(each.__name__ for each in accepted)
        found = kind.__name__ if kind else str(column.type)
        raise InvalidQuery(f"{name}: {function} of {path} takes {listed}, not {found}")
