"""Filters by name: `field=value`, `field__op=value`, `relation__field__op=value`.

Names are resolved against the mapped class and nothing else; what is not there raises
`InvalidFilter` with the choices. A misspelt filter is never dropped.

    await heroes.list(or_(age__lt=18, team__name="Z-Force"), not_(name__startswith="x"))
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import sqlalchemy as sa
from sqlalchemy import ColumnElement, TextClause
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.types import TypeEngine
from sqlmodel import SQLModel

from .base import SoftDeleteMixin
from .errors import InvalidFilter
from .json_operators import JSON_OPERATORS, JsonPlace
from .mapping import attribute_of, cached, kind_of, mapper_of, stored_type, unknown
from .operators import (
    ARRAY_OPERATORS,
    DATE_PARTS,
    OPERATORS,
    Condition,
    Operator,
    check_flag,
    date_part,
    date_parts,
)

__all__ = ["OPERATORS", "Condition", "Filter", "Where", "and_", "build_filters", "not_", "or_"]

_Connective = Literal["and_", "or_", "not_"]


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """Filters joined by AND or OR, or negated; made by `and_`, `or_` and `not_`.

    `a & b`, `a | b` and `~a` join it with more. A SQLAlchemy condition stands on the right
    there: `or_(age=30, name="x") & (col(Hero.power) > 5)`.
    """

    connective: _Connective
    parts: tuple["Where", ...]
    filters: Mapping[str, Any]

    def __and__(self, other: "Where") -> "Filter":
        return and_(self, other)

    def __or__(self, other: "Where") -> "Filter":
        return or_(self, other)

    def __invert__(self) -> "Filter":
        return not_(self)

    def __bool__(self) -> NoReturn:
        # `a and b` would be b, and drop a filter.
        raise TypeError("a Filter has no truth value; join filters with &, | and ~")


Where = Condition | Filter


def and_(*parts: Where, **filters: Any) -> Filter:
    """All of these: filters by name, other `Filter`s, SQLAlchemy conditions.

    Raises:
        InvalidFilter: there is none. `build_filters` checks the rest.
    """
    return _joined("and_", parts, filters)


def or_(*parts: Where, **filters: Any) -> Filter:
    """At least one of these; else like `and_`."""
    return _joined("or_", parts, filters)


def not_(*parts: Where, **filters: Any) -> Filter:
    """Not all of these; else like `and_`.

    As in SQL, what is neither true nor false stays so: `not_(age=30)` leaves out rows
    whose age is NULL. `or_(not_(age=30), age=None)` has them.
    """
    return _joined("not_", parts, filters)


def _joined(
    connective: _Connective, parts: tuple[Where, ...], filters: Mapping[str, Any]
) -> Filter:
    if not parts and not filters:
        raise InvalidFilter(f"{connective}() needs at least one filter")
    return Filter(connective, parts, filters)


def build_filters(
    model: type[SQLModel],
    filters: Mapping[str, Any],
    where: Iterable[Where] = (),
    *,
    deleted: bool = False,
) -> list[Condition]:
    """Conditions for filters by name, `Filter`s and SQLAlchemy conditions; all must hold.

    Names are `field`, `field__op` (see `OPERATORS`), `field__part__op` for dates (see
    `DATE_PARTS`) and `field__key__key__op` for JSON documents; any of them behind
    `relation__`, as often as there are relations.

    A filter across a relation is an EXISTS, so each row comes back once, also over
    to-many relations. Two filters across one relation may hold for different rows of it.

    In a JSON document, digits are a position where they meet a list. A value of another
    JSON type than the filter's counts as NULL, and so does an absent one; `is_null` takes
    absent and JSON null for the same. A last key that names an operator is one:
    `settings__contains__eq` reaches the key `contains`. On MySQL and MariaDB a number has
    35 digits before the point and 30 behind it; MariaDB has no way to a key that begins
    with `-`.

    Args:
        model: the `table=True` class.
        filters: values by name.
        where: `Filter`s and SQLAlchemy conditions.
        deleted: whether soft-deleted rows of relations count.

    Raises:
        InvalidFilter: unknown field, relation or operator, or a value that the operator
            does not take; names the filter and the choices. An operator that the database
            lacks raises it when the statement is sent.
    """
    return [
        *(_part(model, part, deleted) for part in where),
        *(_named(model, key, value, deleted) for key, value in filters.items()),
    ]


def _part(model: type[SQLModel], part: object, deleted: bool) -> Condition:
    if isinstance(part, Filter):
        conditions = build_filters(model, part.filters, part.parts, deleted=deleted)
        if part.connective == "or_":
            return sa.or_(*conditions)
        both = sa.and_(*conditions)
        return sa.not_(both) if part.connective == "not_" else both
    if isinstance(part, ColumnElement | QueryableAttribute | TextClause):
        return cast(Condition, part)
    example = f"{model.__name__}.{next(iter(mapper_of(model).column_attrs)).key}"
    raise InvalidFilter(
        f"where: takes SQLAlchemy conditions, e.g. col({example}) == 1, and and_(), or_() and "
        f"not_(), not {kind_of(part)}; filters by name are keywords"
    )


# -- names ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hop:
    """A relation on the way to a field."""

    has: Callable[..., Condition]
    deleted_at: Any  # that column of the related model; None without soft deletes

    def exists(self, condition: Condition | None, deleted: bool) -> Condition:
        there = None if deleted or self.deleted_at is None else self.deleted_at.is_(None)
        if condition is None or there is None:
            return self.has(there if condition is None else condition)
        return self.has(sa.and_(condition, there))


@dataclass(frozen=True, slots=True)
class _Name:
    """What the name of a filter stands for."""

    hops: tuple[_Hop, ...]
    target: Any = None  # a column, or a place in a document; None: the last relation itself
    operator: str = "is_null"
    apply: Operator = OPERATORS["is_null"]


def _named(model: type[SQLModel], key: str, value: Any, deleted: bool) -> Condition:
    name = _resolve(model, key)  # pyright: ignore[reportArgumentType] - a class has a hash
    if name.target is None:
        return _has_none(name.hops, key, value, deleted)
    try:
        condition = name.apply(name.target, value)
    except InvalidFilter as error:
        raise InvalidFilter(f"{key}: {name.operator} {error}") from None
    return _across(name.hops, condition, deleted)


def _has_none(hops: tuple[_Hop, ...], key: str, value: Any, deleted: bool) -> Condition:
    try:
        check_flag(value)
    except InvalidFilter as error:
        raise InvalidFilter(f"{key}: {error}") from None
    exists = hops[-1].exists(None, deleted)
    return _across(hops[:-1], ~exists if value else exists, deleted)


def _across(hops: tuple[_Hop, ...], condition: Condition, deleted: bool) -> Condition:
    for hop in reversed(hops):
        condition = hop.exists(condition, deleted)
    return condition


# Errors are not kept. The bound is for keys of JSON documents, of which there is no end.
@cached
def _resolve(model: type[SQLModel], key: str) -> _Name:
    hops: list[_Hop] = []
    name, rest = _split(key.split("__"))
    while name in (relations := mapper_of(model).relationships):
        attribute, owner = attribute_of(model, name), model
        many, model = relations[name].uselist, relations[name].mapper.class_
        soft = issubclass(model, SoftDeleteMixin)
        deleted_at = attribute_of(model, "deleted_at") if soft else None
        hops.append(_Hop(attribute.any if many else attribute.has, deleted_at))
        if rest == ["is_null"]:
            return _Name(tuple(hops))
        if not rest:
            raise InvalidFilter(
                f"{key}: {owner.__name__}.{name} is a relation; filter by one of its fields, "
                f"e.g. {key}__{next(iter(mapper_of(model).column_attrs)).key}=..."
            )
        name, rest = _split(rest)
    return _field(model, key, name, rest, tuple(hops))


def _split(names: list[str]) -> tuple[str, list[str]]:
    return names[0], names[1:]


def _field(
    model: type[SQLModel], key: str, name: str, rest: list[str], hops: tuple[_Hop, ...]
) -> _Name:
    mapper = mapper_of(model)
    if name not in mapper.column_attrs:
        choices = [*mapper.column_attrs.keys(), *mapper.relationships.keys()]
        raise InvalidFilter(f"{key}: {unknown(model, 'field', name, choices)}")
    target: Any = attribute_of(model, name).expression  # quicker than the attribute itself
    kind = target.type
    operators = operators_of(kind)
    if isinstance(stored_type(kind), sa.JSON):
        named = bool(rest) and rest[-1] in operators
        target = _place(key, target, rest[:-1] if named else rest)
        rest = rest[-1:] if named else []
    elif rest and rest[0] in DATE_PARTS:
        target = _part_of(key, target, rest[0])
        rest = rest[1:]
    operator = "__".join(rest) if rest else "eq"
    if operator not in operators:
        choices = [*operators, *date_parts(kind)]
        raise InvalidFilter(f"{key}: {unknown(model, 'operator', operator, choices)}")
    return _Name(hops, target, operator, operators[operator])


def _part_of(key: str, column: Any, name: str) -> ColumnElement[Any]:
    try:
        return date_part(column, name)
    except InvalidFilter as error:
        raise InvalidFilter(f"{key}: {name} {error}") from None


def _place(key: str, column: Any, path: list[str]) -> JsonPlace:
    place = JsonPlace.of_column(column)
    for segment in path:
        if not segment or "\0" in segment:
            raise InvalidFilter(f"{key}: {segment!r} is no key of a JSON document")
        place = place.segment(segment)
    return place


def operators_of(kind: TypeEngine[Any]) -> Mapping[str, Operator]:
    """The operators of a column type. Those of JSON take a `JsonPlace`."""
    kind = stored_type(kind)
    if isinstance(kind, sa.ARRAY):
        return ARRAY_OPERATORS
    return JSON_OPERATORS if isinstance(kind, sa.JSON) else OPERATORS
