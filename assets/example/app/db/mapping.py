"""What a mapped class has: its mapper, its attributes and their types, by name."""

from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar, cast

from sqlalchemy import ARRAY, JSON, ColumnElement, Interval, TypeDecorator
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.types import TypeEngine
from sqlmodel import AutoString, SQLModel, UTCDateTime

from .errors import InvalidFilter

P = ParamSpec("P")
T = TypeVar("T")


def cached(function: Callable[P, T]) -> Callable[P, T]:
    """Compute once for the same arguments, of which some thousands are remembered.

    What names mean is asked for in every call and never changes. (Typed here: type
    checkers do not know that a model class can be hashed.)
    """
    return cast(Callable[P, T], lru_cache(maxsize=4096)(function))


@cached
def mapper_of(model: type[SQLModel]) -> Mapper[Any]:
    """The mapper of a `table=True` class.

    Raises:
        TypeError: the class has no table.
    """
    mapper = cast(Mapper[Any] | None, sa_inspect(model, raiseerr=False))
    if mapper is None:
        raise TypeError(f"{model.__name__} has no table; declare it with table=True")
    return mapper


def is_expression(value: object) -> bool:
    """Whether a value is SQL: a mapped attribute such as `Hero.age`, or what is made of it."""
    return isinstance(value, ColumnElement | InstrumentedAttribute)


def attribute_of(model: type[SQLModel], name: str) -> InstrumentedAttribute[Any]:
    attribute: InstrumentedAttribute[Any] = getattr(model, name)
    return attribute


def unknown(model: type[Any], kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence: what is not there, what was probably meant, what there is."""
    known = sorted(choices)
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    listed = ", ".join(known) or "none"
    return f"{model.__name__} has no {kind} {name!r}{hint} There are: {listed}."


_ALSO: dict[type, tuple[type, ...]] = {float: (int, Decimal), Decimal: (int, float)}


def check_type(column: Any, value: Any) -> None:
    """Refuse a value of another type than the column's.

    MySQL converts it and matches wrong rows (`price = 'abc'` is true where the price
    is 0), SQLite matches none, PostgreSQL answers with a programming error.
    """
    kind = python_type(column)
    if kind is None or is_expression(value):
        return
    # A bool is an int for Python only.
    wrong = kind is not bool and isinstance(value, bool)
    # And a datetime is a date: PostgreSQL and SQLite would cut it off, MySQL compares it.
    wrong = wrong or (kind is date and isinstance(value, datetime))
    if wrong or not isinstance(value, (kind, *_ALSO.get(kind, ()))):
        known = getattr(column.type, "enums", ())  # names of the members, as stored
        if not (issubclass(kind, Enum) and value in known):
            raise InvalidFilter(f"takes {kind.__name__}, not {kind_of(value)}")
    naive = isinstance(value, datetime) and value.tzinfo is None
    if naive and isinstance(column.type, UTCDateTime):
        raise InvalidFilter("takes a datetime with a time zone, e.g. datetime.now(UTC)")


def python_type(column: Any) -> type[Any] | None:
    """The type of a column's values; None where it cannot be told."""
    return _python_type(column.type)


@cached  # asked for every value of every filter
def _python_type(kind: TypeEngine[Any]) -> type[Any] | None:
    if isinstance(kind, AutoString | UTCDateTime):  # SQLModel's own
        kind = kind.impl_instance
    if isinstance(kind, TypeDecorator | JSON | ARRAY):
        return None
    try:
        return kind.python_type
    except NotImplementedError:
        return None


def stored_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type beneath `TypeDecorator`s: JSON for one of your own that wraps JSON."""
    # Interval is one around a datetime, on databases without intervals; it is no date.
    while isinstance(kind, TypeDecorator) and not isinstance(kind, Interval):
        kind = kind.impl_instance
    return kind


def kind_of(value: object) -> str:
    return type(value).__name__
