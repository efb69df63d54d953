"""Many rows in one statement: INSERT, UPDATE and upsert, on each database.

The rows travel as one JSON parameter that the database unfolds in FROM (`json_each`,
`json_array_elements`, `JSON_TABLE`): the text of the statement is the same for any number
of rows and any pattern of NULLs, and the limits on parameters do not apply. JSON cannot
carry every type (`carries`): bytes, arrays and ranges go another way.
"""

import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    Interval,
    Numeric,
    PrimaryKeyConstraint,
    String,
    Subquery,
    Table,
    TextClause,
    Time,
    TypeDecorator,
    UniqueConstraint,
    Update,
    Uuid,
    and_,
    func,
    null,
    select,
    text,
    true,
    update,
)
from sqlalchemy import Select as CoreSelect
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.types import TypeEngine
from sqlmodel import SQLModel

from .base import SoftDeleteMixin, TimestampMixin, VersionMixin
from .errors import InvalidQuery, InvalidValue
from .mapping import cached, mapper_of

CHUNK = 5_000
"""Rows per statement: bounds the size of the parameter (MySQL refuses packets over 16 MB)."""

_JSON_SAFE = (
    Integer, String, Enum, Boolean, Float, Numeric, Uuid, DateTime, Date, Time, JSON,
)  # fmt: skip
_MYSQL = {"mysql", "mariadb"}


# -- rows as a FROM clause -------------------------------------------------------------


def carries(dialect: Dialect, columns: Iterable[Column[Any]]) -> bool:
    """Whether JSON can carry the values of these columns on this database."""
    return all(isinstance(_stored(dialect, column), _JSON_SAFE) for column in columns)


def fits(dialect: Dialect, values: Iterable[Sequence[Any]]) -> bool:
    """Whether JSON can carry these values; some databases change some in silence.

    Integers beyond 64 bits; everywhere but on PostgreSQL infinity and NaN; on SQLite text
    with NUL, which ends there. Drivers keep or refuse them.
    """
    return not any(_changed(dialect.name, each) for each in values)


def _changed(database: str, values: Sequence[Any]) -> bool:
    # By type first: the rows are many, and most types need no look at each value.
    kinds = {value.__class__ for value in values}
    if any(issubclass(kind, int) for kind in kinds) and any(
        isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values
    ):
        return True
    if database == "sqlite" and any(issubclass(kind, str) for kind in kinds):
        return any(isinstance(value, str) and "\0" in value for value in values)
    if database != "postgresql" and any(issubclass(kind, float) for kind in kinds):
        return any(isinstance(value, float) and not isfinite(value) for value in values)
    return False


def _stored(dialect: Dialect, column: Column[Any]) -> TypeEngine[Any]:
    """What is under the column's type: the impl of a TypeDecorator, the variant of a dialect."""
    kind: TypeEngine[Any] = column.type.dialect_impl(dialect)
    while isinstance(kind, TypeDecorator) and not isinstance(kind, Interval):
        kind = kind.impl_instance
    return kind


def source(
    dialect: Dialect,
    columns: Sequence[Column[Any]],
    values: Sequence[Sequence[Any]],
    compared: Container[int] = (),
) -> Subquery:
    """Rows as a subquery `src`, with columns `c0`, `c1`, ... and their number `n` from 1 on.

    Args:
        dialect: of the connection.
        columns: whose types the values have.
        values: the values by column: as many sequences as there are columns, of one length.
        compared: places of columns that are compared with stored ones.

    Raises:
        InvalidValue: a value that the column's type refuses.
    """
    try:
        bound = [_bound(dialect, *each) for each in zip(columns, values, strict=True)]
        rows = to_json([*zip(*bound, strict=True)], inf_nan_mode="strings").decode()
    except (ValueError, TypeError, LookupError) as error:
        raise InvalidValue("A value does not fit its column.") from error
    if dialect.name == "postgresql":
        unfolded = _postgresql(dialect, columns)
    elif dialect.name == "sqlite":
        unfolded = _sqlite(columns)
    else:
        unfolded = _mysql(dialect, columns, compared)
    types: dict[str, Any] = {f"c{place}": column.type for place, column in enumerate(columns)}
    return text(unfolded).bindparams(rows=rows).columns(n=Integer, **types).subquery("src")


def _bound(dialect: Dialect, column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """The values as the driver would get them."""
    process = column.type.dialect_impl(dialect).bind_processor(dialect)
    if process is None:
        return values
    bound = [*map(process, values)]
    if dialect.driver.startswith("psycopg") and isinstance(_stored(dialect, column), JSON):
        # psycopg's wrapper, which turns the document into text when it is sent.
        return [
            (value.dumps or json.dumps)(value.obj) if hasattr(value, "obj") else value
            for value in bound
        ]
    return bound


def _is_text(dialect: Dialect, column: Column[Any]) -> bool:
    kind = _stored(dialect, column)
    return isinstance(kind, String) and not isinstance(kind, Enum)


def _postgresql(dialect: Dialect, columns: Sequence[Column[Any]]) -> str:
    parts = ["r.n AS n"]
    for place, column in enumerate(columns):
        value = f"r.value ->> {place}"
        if not _is_text(dialect, column):  # a cast to VARCHAR(5) would cut text off in silence
            value = f"CAST({value} AS {column.type.compile(dialect)})"
        parts.append(f"{value} AS c{place}")
    return (
        f"SELECT {', '.join(parts)} FROM json_array_elements(CAST(:rows AS JSON)) "
        "WITH ORDINALITY AS r(value, n)"
    )


def _sqlite(columns: Sequence[Column[Any]]) -> str:
    parts = [f"json_extract(value, '$[{place}]') AS c{place}" for place in range(len(columns))]
    return f"SELECT key + 1 AS n, {', '.join(parts)} FROM json_each(:rows)"


def _mysql(dialect: Dialect, columns: Sequence[Column[Any]], compared: Container[int]) -> str:
    unfolded, parts = ["n FOR ORDINALITY"], ["r.n"]
    for place, column in enumerate(columns):
        # Text: the table refuses what does not fit, where JSON_TABLE would cut it off in
        # silence. But points in time are read as such only with their type, and an integer
        # is found by an index only when it is compared as one.
        kind = _stored(dialect, column)
        ddl = "BIGINT" if isinstance(kind, Integer) and place in compared else "LONGTEXT"
        if isinstance(kind, DateTime | Date | Time):
            ddl = column.type.compile(dialect)
        unfolded.append(f"c{place} {ddl} PATH '$[{place}]'")
        parts.append(f"r.c{place}")
        if column.type.compile(dialect) == "UUID":  # MariaDB's own type
            parts[-1] = f"CAST(r.c{place} AS UUID) AS c{place}"
    return (
        f"SELECT {', '.join(parts)} FROM JSON_TABLE(:rows, '$[*]' "
        f"COLUMNS ({', '.join(unfolded)})) AS r"
    )


# -- complete rows from payloads -------------------------------------------------------


class _Omitted:
    """The database fills the column."""


OMITTED: Any = _Omitted()


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one shape.

    Attributes:
        names: attributes that get a value; the others are the database's.
        values: their values, by attribute.
        given: attributes to overwrite in a stored row; the rest are defaults.
        places: where each row stood in the input, from 0 on.
    """

    names: tuple[str, ...]
    values: list[list[Any]]
    given: frozenset[str]
    places: Sequence[int]

    def chunks(self) -> Iterable["Rows"]:
        """Parts of at most `CHUNK` rows."""
        for start in range(0, len(self.places), CHUNK):
            part = slice(start, start + CHUNK)
            values = [each[part] for each in self.values]
            yield Rows(self.names, values, self.given, self.places[part])

    def mappings(self) -> list[dict[str, Any]]:
        """One dict per row, by attribute."""
        return [dict(zip(self.names, row, strict=True)) for row in zip(*self.values, strict=True)]


def columns_of(model: type[SQLModel]) -> dict[str, Column[Any]]:
    """The table's columns by attribute."""
    mapper = mapper_of(model)
    return {
        attribute.key: attribute.columns[0]
        for attribute in mapper.column_attrs
        if isinstance(attribute.columns[0], Column)
    }


def complete(
    model: type[SQLModel],
    items: Sequence[BaseModel],
    constants: Mapping[str, Any],
    *,
    overwriting: bool = False,
) -> list[Rows]:
    """Rows to insert, from payloads of one class: defaults filled in, grouped by shape.

    A value of None that was not sent, and None for a column that the database or the
    table's own default fills, leave the column to them.

    Args:
        model: the `table=True` class.
        items: payloads, all of one class.
        constants: attributes with the same value in each row.
        overwriting: rows of one shape were also given the same attributes.

    Raises:
        InvalidValue: a value breaks a rule that the model has and the payload's class has
            not.
    """
    schema = type(items[0])
    sent = [item.model_fields_set for item in items]
    columns: dict[str, list[Any]] = {}
    for name, column in columns_of(model).items():
        if name in constants:
            values = _checked(model, None, name, [constants[name]], [{name}]) * len(items)
        elif name in schema.model_fields:
            values = _checked(model, schema, name, [getattr(item, name) for item in items], sent)
        else:
            values = [None] * len(items)
        if name not in constants and any(value is None for value in values):
            default = _default(model, name, column)
            values = [
                default() if value is None and name not in given else value
                for value, given in zip(values, sent, strict=True)
            ]
        if column.server_default is not None or column is column.table.autoincrement_column:
            values = [OMITTED if value is None else value for value in values]
        columns[name] = values
    given = [frozenset(each).union(constants) if overwriting else frozenset[str]() for each in sent]
    return [*_by_shape(columns, given)]


def _by_shape(columns: Mapping[str, list[Any]], given: Sequence[frozenset[str]]) -> Iterable[Rows]:
    partly = [values for values in columns.values() if any(each is OMITTED for each in values)]
    shapes: dict[Any, list[int]] = {}
    for place, overwritten in enumerate(given):
        omitted = tuple(values[place] is OMITTED for values in partly)
        shapes.setdefault((omitted, overwritten), []).append(place)
    for (_, overwritten), places in shapes.items():
        names = tuple(name for name in columns if columns[name][places[0]] is not OMITTED)
        values = [
            columns[name] if len(shapes) == 1 else [columns[name][place] for place in places]
            for name in names
        ]
        yield Rows(names, values, overwritten, places)


def _default(model: type[SQLModel], name: str, column: Column[Any]) -> Callable[[], Any]:
    """What a column without a value gets: the field's default, or the table's own."""
    field = model.model_fields.get(name)
    if field is not None and field.default_factory is not None:
        return cast(Callable[[], Any], field.default_factory)
    default = None if field is None or field.is_required() else field.default
    if default is None and column.default is not None:
        default = OMITTED
    return lambda: default


def _checked(
    model: type[SQLModel],
    schema: type[BaseModel] | None,
    name: str,
    values: list[Any],
    sent: Sequence[set[str]],
) -> list[Any]:
    """The values, validated where the model's field says more than the payload's."""
    rule = _rule(model, schema, name)
    if rule is None:
        return values
    checked: list[Any] = []
    for place, (value, given) in enumerate(zip(values, sent, strict=True)):
        try:
            says_nothing = value is None and name not in given
            checked.append(None if says_nothing else rule.validate_python(value))
        except ValidationError as error:
            found = error.errors(include_input=False, include_url=False)[0]["msg"]
            item = "" if schema is None else f"item {place}: "
            message = f"{item}{model.__name__} is not valid: {name}: {found}"
            raise InvalidValue(message, columns=(name,)) from error
    return checked


@cached
def _rule(
    model: type[SQLModel], schema: type[BaseModel] | None, name: str
) -> TypeAdapter[Any] | None:
    field = model.model_fields.get(name)
    known = schema.model_fields.get(name) if schema is not None else None
    if field is None or (
        known is not None
        and known.annotation == field.annotation
        and known.metadata == field.metadata
    ):
        return None
    kind: Any = field.annotation
    for rule in field.metadata:
        kind = Annotated[kind, rule]
    return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))


@cached
def has_rules(model: type[SQLModel], schema: type[BaseModel]) -> bool:
    """Whether rows of the model have to be made and validated one by one.

    Where the model has validators that the payload's class has not; and where the payload
    is a table class, which SQLModel does not validate.
    """
    return hasattr(schema, "__table__") or not _validators(model) <= _validators(schema)


def _validators(schema: type[BaseModel]) -> set[Any]:
    found = schema.__pydantic_decorators__
    kinds = (
        found.field_validators,
        found.model_validators,
        found.validators,
        found.root_validators,
    )
    return {getattr(each.func, "__func__", each.func) for kind in kinds for each in kind.values()}


# -- statements ------------------------------------------------------------------------


def plain(model: type[SQLModel], event: str) -> bool:
    """Whether statements may write the rows of a model past the ORM's unit of work.

    Not where hooks want to see each row (`before_insert`, `@validates`), and not where a
    row is spread over the tables of an inheritance.
    """
    mapper = mapper_of(model)
    hooks = sum(
        1 for name in (f"before_{event}", f"after_{event}") for _ in getattr(mapper.dispatch, name)
    )
    if event == "update" and issubclass(model, TimestampMixin):
        hooks -= 1  # its listener does for flushes what `onupdate` does for statements
    return not (
        hooks or mapper.validators or mapper.inherits or mapper.polymorphic_on is not None
    ) and isinstance(mapper.local_table, Table)


def can_insert(dialect: Dialect, model: type[SQLModel], rows: Rows) -> bool:
    """Whether INSERT ... SELECT from `source` can write these rows."""
    columns = columns_of(model)
    # A default of the table that is no constant is computed for each row by VALUES only.
    computed = any(
        column.default is not None and not column.default.is_scalar
        for name, column in columns.items()
        if name not in rows.names
    )
    targets = [columns[name] for name in rows.names]
    return not computed and carries(dialect, targets) and fits(dialect, rows.values)


def table_of(model: type[SQLModel]) -> Table:
    """The table of a model that has one, and no more."""
    return cast(Table, mapper_of(model).local_table)


def insert_from(dialect: Dialect, model: type[SQLModel], rows: Rows) -> Any:
    """INSERT INTO table (...) SELECT ... FROM the rows, in their order.

    Returns the `insert` of the dialect, so that ON CONFLICT and RETURNING can follow.
    """
    columns = columns_of(model)
    targets = [columns[name] for name in rows.names]
    src = source(dialect, targets, rows.values)
    # WHERE: else SQLite takes ON CONFLICT for the ON of a join.
    chosen = select(*(src.c[f"c{place}"] for place in range(len(targets))))
    chosen = chosen.where(true()).order_by(src.c.n)
    statement = _INSERT[dialect.name](table_of(model))
    return statement.from_select([column.name for column in targets], chosen)


def insert_one(dialect: Dialect, model: type[SQLModel], values: Mapping[str, Any]) -> Any:
    """INSERT INTO table (...) VALUES (...) of one row, by attribute."""
    columns = columns_of(model)
    statement = _INSERT[dialect.name](table_of(model))
    return statement.values({columns[name]: value for name, value in values.items()})


_INSERT: dict[str, Callable[[Table], Any]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
    "mysql": mysql.insert,
    "mariadb": mysql.insert,
}


@dataclass(frozen=True, slots=True)
class Key:
    """A unique key: its attributes, and the condition of a partial index."""

    names: tuple[str, ...]
    where: Any = None

    @property
    def within(self) -> Sequence[Any]:
        """The condition of a partial index, if it is one, for WHERE."""
        return () if self.where is None else (self.where,)


def unique_key(dialect: Dialect, model: type[SQLModel], on: str | Sequence[str]) -> Key:
    """The unique key over these attributes.

    Raises:
        InvalidQuery: there is none; names those that there are.
    """
    names = (on,) if isinstance(on, str) else tuple(on)
    keys = unique_keys(dialect, model)
    for key in keys:
        if {*key.names} == {*names}:
            return key
    listed = sorted(", ".join(key.names) for key in keys)
    raise InvalidQuery(
        f"{model.__name__} has no unique key over ({', '.join(names)}). "
        f"There are: ({'), ('.join(listed)})."
    )


def unique_keys(dialect: Dialect, model: type[SQLModel]) -> list[Key]:
    """All unique keys of a table: primary key, constraints, indexes over columns."""
    attributes = {column: name for name, column in columns_of(model).items()}
    table, keys = table_of(model), list[Key]()
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint | PrimaryKeyConstraint):
            keys.append(Key(tuple(attributes[column] for column in constraint.columns)))
    for index in table.indexes:
        if index.unique and all(isinstance(each, Column) for each in index.expressions):
            where = index.dialect_options[dialect.name].get("where")
            keys.append(Key(tuple(attributes[column] for column in index.columns), where))
    return keys


def check_keys(model: type[SQLModel], key: Key, rows: Sequence[Rows]) -> None:
    """Refuse keys that cannot name a row: without a value, or given twice.

    Raises:
        InvalidValue: names the key.
    """
    seen: dict[tuple[Any, ...], int] = {}
    name = ", ".join(key.names)
    for each in rows:
        by_name = dict(zip(each.names, each.values, strict=True))
        missing = [part for part in key.names if part not in by_name or None in by_name[part]]
        if missing:
            wanted = ", ".join(missing)
            raise InvalidValue(
                f"{model.__name__}: a row without a value for {wanted} cannot be found by "
                f"the key ({name})",
                columns=tuple(missing),
            )
        keys = zip(*(by_name[part] for part in key.names), strict=True)
        for place, values in zip(each.places, keys, strict=True):
            if values in seen:
                pair = " and ".join(map(str, sorted((seen[values], place))))
                raise InvalidValue(
                    f"{model.__name__}: items {pair} have the same key ({name})",
                    columns=key.names,
                )
            seen[values] = place


def on_conflict_update(
    dialect: Dialect, model: type[SQLModel], statement: Any, key: Key, given: Iterable[str]
) -> Any:
    """Add: where the key is taken, overwrite what was given, and nothing else.

    `onupdate` values are set, a version is counted up, a soft-deleted row comes back.
    """
    columns = columns_of(model)
    mysql_like = dialect.name in _MYSQL
    new = statement.inserted if mysql_like else statement.excluded
    changes: dict[str, Any] = {
        columns[name].name: new[columns[name].name]
        for name in columns
        if name in given and name not in key.names
    }
    for name, change in touched(model, given).items():
        _check_text(model, table_of(model).c[name], change)
        changes[name] = change
    if issubclass(model, SoftDeleteMixin):
        changes.setdefault("deleted_at", null())
    if not changes:  # DO NOTHING would return no row
        column = columns[key.names[0]]
        changes[column.name] = column
    if not mysql_like:
        elements = [columns[name] for name in key.names]
        return statement.on_conflict_do_update(
            index_elements=elements, index_where=key.where, set_=changes
        )
    # Any unique key sets it off there. The row of another key stays as it is; the caller
    # finds no row with this key, and knows.
    table = table_of(model)
    same = and_(*(columns[name] == new[columns[name].name] for name in key.names))
    return statement.on_duplicate_key_update(
        {name: func.if_(same, change, table.c[name]) for name, change in changes.items()}
    )


def _check_text(model: type[SQLModel], column: Column[Any], change: Any) -> None:
    """Refuse SQL text that does not say whose column it means: the stored row's or the new one's.

    PostgreSQL calls that ambiguous.
    """
    for name in table_of(model).columns.keys() if isinstance(change, TextClause) else ():
        if re.search(rf"(?<![\w.\"`]){re.escape(name)}\b", change.text):
            raise InvalidQuery(
                f"onupdate of {model.__name__}.{column.key} is SQL text that does not name the "
                f"table of {name}; write {column.table.name}.{name}, or a column expression"
            )


def touched(model: type[SQLModel], given: Iterable[str]) -> dict[str, Any]:
    """What an UPDATE changes besides: the version, and columns with `onupdate`, by column."""
    changes: dict[str, Any] = {}
    for name, column in columns_of(model).items():
        if name == "version" and issubclass(model, VersionMixin):
            changes[column.name] = column + 1
        elif column.onupdate is not None and name not in given:
            rule: Any = column.onupdate
            changes[column.name] = rule.arg(None) if rule.is_callable else rule.arg
    return changes


def update_from(
    dialect: Dialect,
    model: type[SQLModel],
    names: Sequence[str],
    values: Sequence[Sequence[Any]],
    constants: Mapping[str, Any],
    conditions: Sequence[Any] = (),
) -> Update:
    """UPDATE table SET ... FROM the rows, matched by primary key.

    Args:
        dialect: of the connection.
        model: the `table=True` class.
        names: the attributes of `values`; those of the primary key, and `version` on a
            `VersionMixin` model, say which row it is, the others are set.
        values: by attribute.
        constants: attributes with one value or SQL expression for all rows.
        conditions: more of WHERE.
    """
    columns = columns_of(model)
    matched = {*table_of(model).primary_key.columns}
    keys = {name for name in names if columns[name] in matched}
    if issubclass(model, VersionMixin):
        keys |= {"version"} & {*names}
    compared = {place for place, name in enumerate(names) if name in keys}
    src = source(dialect, [columns[name] for name in names], values, compared)
    new = {name: src.c[f"c{place}"] for place, name in enumerate(names)}
    changes: dict[Any, Any] = {columns[name]: new[name] for name in names if name not in keys}
    changes |= {columns[name]: value for name, value in constants.items()}
    if issubclass(model, VersionMixin):
        changes[columns["version"]] = columns["version"] + 1
    where = [columns[name] == new[name] for name in names if name in keys]
    return update(table_of(model)).where(*where, *conditions).values(changes)


def keyed(dialect: Dialect, model: type[SQLModel], key: Key, rows: Rows) -> CoreSelect[Any]:
    """SELECT the stored rows with these keys, in the order of the rows.

    A row that has another value in a column of another unique key than was given is not
    the one that was written: on MySQL that key was taken by a third row.
    """
    columns = columns_of(model)
    others = {name for each in unique_keys(dialect, model) for name in each.names} & rows.given
    names = [*key.names, *sorted(others.difference(key.names))]
    by_name = dict(zip(rows.names, rows.values, strict=True))
    parts = [columns[name] for name in names]
    src = source(dialect, parts, [by_name[name] for name in names], range(len(names)))
    same = [
        column == src.c[f"c{place}"]
        if place < len(key.names)
        else column.is_not_distinct_from(src.c[f"c{place}"])
        for place, column in enumerate(parts)
    ]
    joined = select(*columns.values()).join_from(src, table_of(model), and_(*same, *key.within))
    return joined.order_by(src.c.n)
