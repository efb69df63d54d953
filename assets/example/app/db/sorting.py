"""Sort keys by name, and the same order on every database.

    "name"             ascending
    "-age"             descending
    "shop__name"       a column of a to-one relation, at any depth
    "-age__nulls_last" where NULL goes: `__nulls_first` or `__nulls_last`

NULL counts as the largest value unless a key says otherwise, as on PostgreSQL: last
going up, first going down. Values sort as the database has it: its collation for text,
and for enums the order of declaration (PostgreSQL, MySQL but for columns of relations)
or the name (SQLite, MySQL for columns of relations).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard, cast

from sqlalchemy import ClauseElement, ColumnElement, ScalarSelect, UnaryExpression, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, Mapper, aliased
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlmodel import SQLModel

from .base import SoftDeleteMixin
from .errors import InvalidQuery
from .mapping import cached, kind_of, mapper_of, unknown

OrderKey = str | ColumnElement[Any] | Mapped[Any]
OrderBy = OrderKey | Sequence[OrderKey]


@dataclass(frozen=True, eq=False)
class SortKey:
    """A sort key, resolved against the mapped class.

    Args:
        name: as in the model, e.g. `shop__name`; without sign and suffix.
        expression: the column, or for a relation's column a scalar subquery.
        annotation: type of the field in its model; None where it has none.
    """

    name: str
    expression: ColumnElement[Any]
    annotation: Any
    descending: bool
    nulls_first: bool
    nullable: bool

    @property
    def related(self) -> bool:
        """Whether this is a column of a relation."""
        return isinstance(self.expression, ScalarSelect)

    def reversed(self) -> "SortKey":
        return replace(self, descending=not self.descending, nulls_first=not self.nulls_first)

    @cached_property
    def order(self) -> ColumnElement[Any]:
        """The element of ORDER BY."""
        column = self.expression
        ordered = column.desc() if self.descending else column.asc()
        return _NullsPlaced(ordered, self.nulls_first) if self.nullable else ordered


def build_order(
    model: type[SQLModel], order_by: OrderBy, *, deleted: bool = False
) -> list[ColumnElement[Any]]:
    """The elements of ORDER BY.

    The primary key is appended, in the direction of the last key, so that rows with equal
    keys keep their order from one page to the next. A relation's column is sorted by through a subquery: neither FROM
    nor the number of rows changes.

    Args:
        order_by: names as described above, and SQL expressions, which are used as they are.
        deleted: whether soft-deleted rows of relations count; else they sort as no row.

    Raises:
        InvalidQuery: unknown field or relation, or a relation to many rows.
    """
    keys = as_keys(order_by)
    # The named keys, in order, and after them what breaks ties.
    names = [key for key in keys if isinstance(key, str)]
    resolved = iter(sort_keys(model, names, deleted=deleted))
    order = [
        next(resolved).order if isinstance(key, str) else cast(ColumnElement[Any], key)
        for key in keys
    ]
    return [*order, *(key.order for key in resolved)]


def as_keys(order_by: OrderBy) -> list[OrderKey]:
    """`order_by` as a list, of which one key alone is a short form."""
    if isinstance(order_by, str) or _is_sql(order_by):
        return [order_by]
    if not isinstance(cast(object, order_by), Sequence):
        raise InvalidQuery(f"order_by takes names and SQL expressions, not {kind_of(order_by)}")
    keys = list(cast(Sequence[OrderKey], order_by))
    for key in keys:
        if not isinstance(key, str) and not _is_sql(key):
            raise InvalidQuery(f"order_by takes names and SQL expressions, not {kind_of(key)}")
    return keys


def _is_sql(key: object) -> TypeGuard[ColumnElement[Any] | Mapped[Any]]:
    # Columns, expressions and text(); mapped attributes, also those of an alias.
    return isinstance(key, ClauseElement) or hasattr(key, "__clause_element__")


def sort_keys(
    model: type[SQLModel], order_by: Sequence[str], *, deleted: bool = False
) -> tuple[SortKey, ...]:
    """The keys with these names, and the primary key's columns that are not among them.

    They are parsed once per model and order.

    Raises:
        InvalidQuery: as for `build_order`.
    """
    return _sort_keys(mapper_of(model), tuple(order_by), deleted)


@cached
def _sort_keys(
    mapper: Mapper[Any], order_by: tuple[str, ...], deleted: bool
) -> tuple[SortKey, ...]:
    model: type[SQLModel] = mapper.class_
    keys = [_parse(model, key, deleted) for key in order_by]
    named = {key.name for key in keys}
    primary = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    # In the direction of the last key: an index over both gives the order, either way.
    sign = "-" if keys and keys[-1].descending else ""
    keys += [_parse(model, sign + name, deleted) for name in primary if name not in named]
    return tuple(keys)


_PLACES = {"__nulls_first": True, "__nulls_last": False}


def _parse(model: type[SQLModel], key: str, deleted: bool) -> SortKey:
    name = key.removeprefix("-")
    descending = nulls_first = name != key
    for suffix, first in _PLACES.items():
        if name.endswith(suffix):
            name, nulls_first = name.removesuffix(suffix), first
            break
    expression, nullable, annotation = _resolve(model, model, name, deleted)
    return SortKey(name, expression, annotation, descending, nulls_first, nullable)


_Resolved = tuple[ColumnElement[Any], bool, Any]


def _resolve(model: type[SQLModel], entity: Any, path: str, deleted: bool) -> _Resolved:
    """Expression, whether it can be NULL, and annotation; `entity`: the model or its alias."""
    mapper = mapper_of(model)
    if path in mapper.column_attrs:
        column = mapper.column_attrs[path].columns[0]
        field = model.model_fields.get(path)
        # What is no column of a table, such as a column_property, may be NULL.
        nullable = bool(getattr(column, "nullable", True))
        return getattr(entity, path), nullable, field and field.annotation
    name, _, rest = path.partition("__")
    if name in mapper.relationships:
        return _related(model, entity, name, rest, deleted)
    if name in mapper.column_attrs:
        places = " or ".join(_PLACES)
        raise InvalidQuery(f"order_by: {name} takes {places} after it, not {'__' + rest!r}")
    to_one = [each.key for each in mapper.relationships if not each.uselist]
    choices = [*mapper.column_attrs.keys(), *to_one]
    raise InvalidQuery(f"order_by: {unknown(model, 'field', name, choices)}")


def _related(model: type[SQLModel], entity: Any, name: str, rest: str, deleted: bool) -> _Resolved:
    relation = mapper_of(model).relationships[name]
    target: type[SQLModel] = relation.mapper.class_
    if relation.uselist:
        raise InvalidQuery(
            f"order_by: {model.__name__}.{name} leads to many rows of {target.__name__}, and "
            "which of them to sort by is not known; sort by an expression, e.g. a subquery "
            "with min() or count()"
        )
    if not rest:
        example = next(iter(mapper_of(target).column_attrs)).key
        raise InvalidQuery(
            f"order_by: {model.__name__}.{name} is a relation; sort by one of its fields, "
            f"e.g. {name}__{example}"
        )
    # An alias: the relation may lead back to the same table.
    alias = aliased(target)
    value, _, annotation = _resolve(target, alias, rest, deleted)
    statement = select(value).select_from(alias).where(getattr(entity, name).of_type(alias))
    if not deleted and issubclass(target, SoftDeleteMixin):
        statement = statement.where(cast(Any, alias).deleted_at.is_(None))
    # No related row: NULL.
    return statement.correlate(entity).scalar_subquery(), True, annotation


class _NullsPlaced(UnaryExpression[Any]):
    """`column ASC NULLS LAST` and its kin, in the words of each database.

    Nothing is added where the database does that anyway: an index without NULLS FIRST
    or LAST then still gives the order.
    """

    inherit_cache = True

    def __init__(self, ordered: UnaryExpression[Any], nulls_first: bool) -> None:
        super().__init__(
            ordered,
            modifier=operators.nulls_first_op if nulls_first else operators.nulls_last_op,
        )

    @property
    def by_default(self) -> str:
        """Which value NULL must be for the database's own order to be this one."""
        ordered = cast(UnaryExpression[Any], self.element)
        descending = ordered.modifier is operators.desc_op
        first = self.modifier is operators.nulls_first_op
        return "largest" if first == descending else "smallest"


@compiles(_NullsPlaced)
def _standard(element: _NullsPlaced, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.visit_unary(element, **kw)  # type: ignore[no-any-return,no-untyped-call]


@compiles(_NullsPlaced, "postgresql")
def _postgresql(element: _NullsPlaced, compiler: SQLCompiler, **kw: Any) -> str:
    if element.by_default == "largest":
        return compiler.process(element.element, **kw)
    return _standard(element, compiler, **kw)


@compiles(_NullsPlaced, "sqlite")
def _sqlite(element: _NullsPlaced, compiler: SQLCompiler, **kw: Any) -> str:
    if element.by_default == "smallest":
        return compiler.process(element.element, **kw)
    return _standard(element, compiler, **kw)


@compiles(_NullsPlaced, "mysql", "mariadb")
def _mysql(element: _NullsPlaced, compiler: SQLCompiler, **kw: Any) -> str:
    ordered = cast(UnaryExpression[Any], element.element)
    rendered = compiler.process(ordered, **kw)
    if element.by_default == "smallest":
        return rendered
    # It has no NULLS FIRST: sort by "is NULL" before the value.
    null = compiler.process(ordered.element.is_(None), **kw)
    last = element.modifier is operators.nulls_last_op
    return f"{null}{'' if last else ' DESC'}, {rendered}"
