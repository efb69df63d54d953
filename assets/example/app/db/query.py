"""Filters, sorting and eager loading, by name.

Names are resolved against the mapped class and nothing else; what is not there raises
`InvalidQuery` with the choices. A misspelt filter is never dropped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from typing import Any, cast

from sqlalchemy import ARRAY, JSON, ColumnElement, TypeDecorator
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Mapper, joinedload, selectinload
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import AutoString, SQLModel, UTCDateTime

from .errors import InvalidQuery

Condition = ColumnElement[bool]
SortKey = str | ColumnElement[Any] | Mapped[Any]
OrderBy = SortKey | Sequence[SortKey]
Load = str | ORMOption | Sequence[str | ORMOption]

_Operator = Callable[[Any, Any], Condition]


def _text(method: str) -> _Operator:
    # autoescape: % and _ in the text match themselves.
    def apply(column: Any, value: Any) -> Condition:
        _check_text(column, value)
        condition: Condition = getattr(column, method)(value, autoescape=True)
        return condition

    return apply


def _pattern(method: str) -> _Operator:
    def apply(column: Any, value: Any) -> Condition:
        _check_text(column, value)
        condition: Condition = getattr(column, method)(value)
        return condition

    return apply


def _check_text(column: Any, value: Any) -> None:
    """PostgreSQL has no LIKE for other types; the others would convert silently."""
    if not isinstance(value, str):
        raise InvalidQuery(f"takes text, not {_kind(value)}")
    if "\0" in value:  # ends the pattern on SQLite, and so matches every row
        raise InvalidQuery("takes text without NUL characters")
    kind = _python_type(column)
    if kind is not None and kind is not str:
        raise InvalidQuery(f"takes a text column, not one of {kind.__name__}")


def _equal(compare: _Operator) -> _Operator:
    def apply(column: Any, value: Any) -> Condition:
        if value is not None:
            _check_type(column, value)
        return compare(column, value)

    return apply


def _ordered(compare: _Operator) -> _Operator:
    def apply(column: Any, value: Any) -> Condition:
        if value is None:
            raise InvalidQuery("takes a value; for NULL use is_null")
        _check_type(column, value)
        return compare(column, value)

    return apply


def _identical(compare: _Operator) -> _Operator:
    def apply(column: Any, value: Any) -> Condition:
        if value is not None and not isinstance(value, bool):
            raise InvalidQuery(f"takes None, True or False, not {_kind(value)}")
        return compare(column, value)

    return apply


_ALSO: dict[type, tuple[type, ...]] = {float: (int, Decimal), Decimal: (int, float)}


def _check_type(column: Any, value: Any) -> None:
    """Refuse a value of another type than the column's.

    MySQL converts it and matches wrong rows (`price = 'abc'` is true where the price
    is 0), SQLite matches none, PostgreSQL answers with a programming error.
    """
    kind = _python_type(column)
    if kind is None or is_expression(value):
        return
    # A bool is an int for Python only.
    wrong = kind is not bool and isinstance(value, bool)
    if wrong or not isinstance(value, (kind, *_ALSO.get(kind, ()))):
        known = getattr(column.type, "enums", ())  # names of the members, as stored
        if not (issubclass(kind, Enum) and value in known):
            raise InvalidQuery(f"takes {kind.__name__}, not {_kind(value)}")
    naive = isinstance(value, datetime) and value.tzinfo is None
    if naive and isinstance(column.type, UTCDateTime):
        raise InvalidQuery("takes a datetime with a time zone, e.g. datetime.now(UTC)")


def _python_type(column: Any) -> type[Any] | None:
    """The type of a column's values; None where it cannot be told."""
    kind = column.type
    if isinstance(kind, AutoString | UTCDateTime):  # SQLModel's own
        kind = kind.impl_instance
    if isinstance(kind, TypeDecorator | JSON | ARRAY):
        return None
    try:
        return cast(type[Any], kind.python_type)
    except NotImplementedError:
        return None


def _kind(value: object) -> str:
    return type(value).__name__


_NO_LIST: tuple[type, ...] = (str, bytes, dict)


def _members(value: Any) -> list[Any]:
    if isinstance(value, _NO_LIST) or not hasattr(value, "__iter__"):
        raise InvalidQuery(f"takes a list, not {_kind(value)}")
    members = list(value)
    if any(member is None for member in members):
        raise InvalidQuery("takes a list without None; for NULL use is_null")
    return members


def _among(compare: _Operator) -> _Operator:
    def apply(column: Any, value: Any) -> Condition:
        members = _members(value)
        for member in members:
            _check_type(column, member)
        return compare(column, members)

    return apply


def _between(column: Any, bounds: list[Any]) -> Condition:
    if len(bounds) != 2:
        raise InvalidQuery(f"takes two bounds, not {len(bounds)}")
    condition: Condition = column.between(bounds[0], bounds[1])
    return condition


def _is_null(column: Any, value: Any) -> Condition:
    if not isinstance(value, bool):
        raise InvalidQuery(f"takes True or False, not {_kind(value)}")
    condition: Condition = column.is_(None) if value else column.is_not(None)
    return condition


OPERATORS: dict[str, _Operator] = {
    "eq": _equal(lambda column, value: column == value),
    "ne": _equal(lambda column, value: column != value),
    "gt": _ordered(lambda column, value: column > value),
    "gte": _ordered(lambda column, value: column >= value),
    "lt": _ordered(lambda column, value: column < value),
    "lte": _ordered(lambda column, value: column <= value),
    "in": _among(lambda column, members: column.in_(members)),
    "not_in": _among(lambda column, members: column.not_in(members)),
    "between": _among(_between),
    "is_null": _is_null,
    "is": _identical(lambda column, value: column.is_(value)),
    "is_not": _identical(lambda column, value: column.is_not(value)),
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
}
"""Operators of `field__op=value`. Text operators match `%` and `_` literally; `like`
and its kin take a pattern. Without an operator the filter is `eq`. A value has the type
of its column: "5" is not taken for an integer."""


def mapper_of(model: type[SQLModel]) -> Mapper[Any]:
    """The mapper of a `table=True` class.

    Raises:
        TypeError: the class has no table.
    """
    mapper = cast(Mapper[Any] | None, sa_inspect(model, raiseerr=False))
    if mapper is None:
        raise TypeError(f"{model.__name__} has no table; declare it with table=True")
    return mapper


def build_filters(model: type[SQLModel], filters: Mapping[str, Any]) -> list[Condition]:
    """Conditions for `field=value`, `field__op=value` and `relation__field__op=value`.

    A filter across a relation is an EXISTS, so each row comes back once, also over
    to-many relations.

    Raises:
        InvalidQuery: unknown field, relation or operator, or a value that the operator
            does not take; names the filter and the choices.
    """
    return [_condition(model, key, key.split("__"), value) for key, value in filters.items()]


def _condition(model: type[SQLModel], key: str, path: list[str], value: Any) -> Condition:
    mapper = mapper_of(model)
    name, *rest = path
    if name in mapper.relationships:
        related: type[SQLModel] = mapper.relationships[name].mapper.class_
        attribute = _attribute(model, name)
        exists = attribute.any if mapper.relationships[name].uselist else attribute.has
        if rest == ["is_null"]:
            if not isinstance(value, bool):
                raise InvalidQuery(f"{key}: takes True or False, not {_kind(value)}")
            return ~exists() if value else exists()
        if not rest:
            raise InvalidQuery(
                f"{key}: {model.__name__}.{name} is a relation; filter by one of its fields, "
                f"e.g. {key}__{next(iter(mapper_of(related).column_attrs)).key}=..."
            )
        return exists(_condition(related, key, rest, value))
    if name not in mapper.column_attrs:
        choices = [*mapper.column_attrs.keys(), *mapper.relationships.keys()]
        raise InvalidQuery(f"{key}: {unknown(model, 'field', name, choices)}")
    operator = "__".join(rest) or "eq"
    if operator not in OPERATORS:
        raise InvalidQuery(f"{key}: {unknown(model, 'operator', operator, OPERATORS)}")
    try:
        return OPERATORS[operator](_attribute(model, name), value)
    except InvalidQuery as error:
        raise InvalidQuery(f"{key}: {operator} {error}") from None


def build_order(model: type[SQLModel], order_by: OrderBy) -> list[ColumnElement[Any]]:
    """Sort expressions for `"name"`, `"-age"` (descending) and SQL expressions.

    The primary key is appended, so that rows with equal keys keep their order from one
    page to the next.

    Raises:
        InvalidQuery: unknown field.
    """
    mapper = mapper_of(model)
    one = isinstance(order_by, str) or is_expression(order_by)
    keys = [cast(SortKey, order_by)] if one else cast(Sequence[SortKey], order_by)
    order: list[ColumnElement[Any]] = []
    named: set[str] = set()
    for key in keys:
        if isinstance(key, str):
            name = key.removeprefix("-")
            if name not in mapper.column_attrs:
                choices = mapper.column_attrs.keys()
                raise InvalidQuery(f"order_by: {unknown(model, 'field', name, choices)}")
            column = _attribute(model, name)
            named.add(name)
            order.append(column.desc() if key.startswith("-") else column.asc())
        else:
            order.append(cast(ColumnElement[Any], key))
    for key_column in mapper.primary_key:
        name = mapper.get_property_by_column(key_column).key
        if name not in named:
            order.append(_attribute(model, name).asc())
    return order


def build_load(model: type[SQLModel], load: Load) -> list[ExecutableOption]:
    """Loader options for `"team"`, `"team.heroes"` and ready-made options.

    To-one relations are joined (no further statement), to-many relations come by one
    SELECT ... IN each, which LIMIT does not disturb.

    Raises:
        InvalidQuery: unknown relation.
    """
    paths = [load] if isinstance(load, str | ORMOption) else load
    options: list[ExecutableOption] = []
    for path in paths:
        if isinstance(path, ORMOption):
            options.append(path)
            continue
        target, option = model, None
        for name in path.split("."):
            relationships = mapper_of(target).relationships
            if name not in relationships:
                known = relationships.keys()
                raise InvalidQuery(f"load {path!r}: {unknown(target, 'relation', name, known)}")
            attribute = _attribute(target, name)
            many = relationships[name].uselist
            if option is None:
                option = selectinload(attribute) if many else joinedload(attribute)
            else:
                option = option.selectinload(attribute) if many else option.joinedload(attribute)
            target = relationships[name].mapper.class_
        if option is not None:
            options.append(option)
    return options


def is_expression(value: object) -> bool:
    """Whether a value is SQL: a mapped attribute such as `Hero.age`, or what is made of it."""
    return isinstance(value, ColumnElement | InstrumentedAttribute)


def _attribute(model: type[SQLModel], name: str) -> InstrumentedAttribute[Any]:
    attribute: InstrumentedAttribute[Any] = getattr(model, name)
    return attribute


def unknown(model: type[Any], kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence: what is not there, what was probably meant, what there is."""
    known = sorted(choices)
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    listed = ", ".join(known) or "none"
    return f"{model.__name__} has no {kind} {name!r}{hint} There are: {listed}."
