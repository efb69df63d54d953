"""Pages: by offset with a total, and by cursor (keyset pagination).

A cursor names the last row that was seen by the values of its sort keys, and the next
page is found by them: as fast on page 1,000 as on page 1 with an index over the keys,
and rows that come or go meanwhile move no other row to another page.
"""

import hashlib
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeGuard, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter
from pydantic.errors import PydanticUserError
from sqlalchemy import (
    ColumnElement,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    Numeric,
    TypeDecorator,
    and_,
    bindparam,
    false,
    func,
    literal,
    or_,
    true,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine
from sqlmodel import SQLModel, select
from sqlmodel.sql.expression import Select, SelectOfScalar

from .errors import InvalidCursor, InvalidQuery
from .mapping import cached, kind_of, mapper_of, python_type
from .sorting import OrderBy, SortKey, as_keys, build_order, sort_keys

__all__ = [
    "CursorPage",
    "Keyset",
    "OrderBy",
    "Page",
    "build_order",
    "check_count",
    "check_slice",
    "count_statement",
    "known_total",
]

ModelT = TypeVar("ModelT", bound=SQLModel)
ItemT = TypeVar("ItemT")

# As a response model a page validates and filters its items; pydantic would otherwise
# trust an instance, and send rows as they are.
_REVALIDATE = ConfigDict(revalidate_instances="always")


# -- by offset -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """A slice of rows.

    Args:
        total: how many rows there are in all; None where they were not counted.
        has_more: whether rows follow.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _REVALIDATE

    items: list[ItemT]
    total: int | None
    limit: int
    offset: int
    has_more: bool


_MOST = 2**31 - 2
"""Drivers send LIMIT and OFFSET as 32-bit integers, and one row more is asked for."""


def check_slice(limit: int | None, offset: int = 0) -> None:
    """Refuse a limit or an offset that is no count of rows.

    Raises:
        InvalidQuery: not an integer, negative, or beyond 2**31 - 2.
    """
    if limit is not None:
        check_count("limit", limit)
    check_count("offset", offset)


def check_count(name: str, value: object, least: int = 0) -> None:
    """Refuse what is no count of rows, under the name of its argument."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidQuery(f"{name} takes an integer, not {kind_of(value)}")
    if value < least:
        problem = f"be at least {least}" if least else "not be negative"
        raise InvalidQuery(f"{name} must {problem}: {value}")
    if value > _MOST:
        raise InvalidQuery(f"{name} must not be above {_MOST}: {value}")


def known_total(offset: int, limit: int | None, got: int) -> int | None:
    """The number of rows in all, where a page tells it without a COUNT; else None.

    Args:
        limit: rows that were asked for.
        got: rows that came.
    """
    full = limit is not None and got >= limit
    past_the_end = got == 0 and offset > 0
    return None if full or past_the_end else offset + got


def count_statement(
    model: type[SQLModel], where: Sequence[ColumnElement[bool]] = (), cap: int | None = None
) -> SelectOfScalar[int]:
    """The statement that counts rows.

    Args:
        cap: stop counting after this many; one more then means "more than that".

    SQL: `SELECT count(*) FROM model WHERE ...`, or with `cap`
    `SELECT count(*) FROM (SELECT 1 FROM model WHERE ... LIMIT cap + 1)`.

    Raises:
        InvalidQuery: `cap` is no count of rows.
    """
    if cap is None:
        return select(func.count()).select_from(model).where(*where)
    check_count("cap", cap)
    rows = select(literal(1)).select_from(model).where(*where).limit(cap + 1)
    return select(func.count()).select_from(rows.subquery())


# -- by cursor -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CursorPage(Generic[ItemT]):
    """Rows, and the cursors of the pages beside them.

    Args:
        next_cursor: None when no row followed.
        previous_cursor: None when no row came before.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _REVALIDATE

    items: list[ItemT]
    next_cursor: str | None
    previous_cursor: str | None
    limit: int


class Keyset(Generic[ModelT]):
    """One page of a walk by cursor: the statement, and what its rows mean.

        keyset = Keyset(Hero, "-power", limit=20, cursor=cursor)
        statement = keyset.statement().where(...)
        rows = (await session.exec(statement, params=keyset.parameters)).all()
        page = keyset.page(rows)

    Works for keys that are nullable, not unique, mixed in direction or columns of a
    to-one relation; the primary key breaks ties. Use the same filters on every page of
    a walk: a cursor is a place in an order and knows nothing of them.

    A cursor shows the values of its sort keys to whoever holds it: it is encoded, not
    encrypted, and its checksum finds damage, not intent. A row whose sort keys change
    during the walk may be seen twice or not at all.

    Args:
        order_by: names of sort keys, as for `build_order`; no SQL expressions.
        limit: rows on a page, at least 1.
        cursor: of a page of this model and order; None for the first page.
        deleted: as for `build_order`.

    SQL: one SELECT of `limit + 1` rows. A key that can be NULL and sorts before it is
    compared by `key >= value OR key IS NULL`, which an index helps less.

    Raises:
        InvalidQuery: unknown field or relation, an expression, a key of a type that does
            not fit into a cursor, a bad limit.
        InvalidCursor: changed, cut, or made for another model or order.
    """

    def __init__(
        self,
        model: type[ModelT],
        order_by: OrderBy = (),
        *,
        limit: int = 50,
        cursor: str | None = None,
        deleted: bool = False,
    ) -> None:
        check_count("limit", limit, least=1)
        names = as_keys(order_by)
        for name in names:
            if not isinstance(name, str):
                raise InvalidQuery("pages by cursor sort by names of fields, not by expressions")
        self.limit = limit
        self._walk = _walk(mapper_of(model), tuple(cast(list[str], names)), deleted)
        self._place = None if cursor is None else self._walk.decode(cursor)

    def statement(self) -> Select[Any]:
        """SELECT of the model and its sort keys; add your own `where` and `options`.

        Execute it with `parameters`. The keys are read beside the row, not from it: a row
        that the session already has keeps its old values, and some drivers round what they
        read.
        """
        return self._walk.statement(self._place)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of `statement`."""
        values = () if self._place is None else self._place.values
        return {"keyset_limit": self.limit + 1, **_parameters(values)}

    def page(self, rows: Sequence[Any]) -> CursorPage[ModelT]:
        """The page that the rows of `statement` make.

        The first page has no previous and the last one no next cursor. Where the rows
        after a cursor were deleted meanwhile, the page is empty and its one cursor leads
        back to the rows that were seen last.
        """
        place = self._place
        more = len(rows) > self.limit
        rows = rows[: self.limit]
        if not rows:
            return self._empty(place)
        # There are rows where the walk came from, unless it turned back there.
        behind = place is not None and not place.turned
        if place and place.back:
            rows, before, after = rows[::-1], more, behind
        else:
            before, after = behind, more
        return CursorPage(
            items=[row[0] for row in rows],
            next_cursor=self._cursor(rows[-1][1:], back=False) if after else None,
            previous_cursor=self._cursor(rows[0][1:], back=True) if before else None,
            limit=self.limit,
        )

    def _empty(self, place: "_Place | None") -> CursorPage[ModelT]:
        following = previous = None
        if place and not place.turned:
            back = self._cursor(place.values, back=not place.back, turned=True)
            following, previous = (back, None) if place.back else (None, back)
        return CursorPage([], following, previous, self.limit)

    def _cursor(self, values: Sequence[Any], *, back: bool, turned: bool = False) -> str:
        return self._walk.encode(_Place(tuple(values), back, turned))


class _Place(NamedTuple):
    """What a cursor says.

    Args:
        values: of the sort keys, of the row that was seen last.
        back: whether the walk goes towards the first row.
        turned: whether it turned at an empty page: the row itself comes once more.
    """

    values: tuple[Any, ...]
    back: bool
    turned: bool


@dataclass(frozen=True, eq=False)
class _Walk:
    """What all pages over one model in one order share."""

    name: str
    keys: tuple[SortKey, ...]
    types: tuple[TypeEngine[Any], ...]
    values: TypeAdapter[tuple[Any, ...]]
    forward: Select[Any]
    backward: Select[Any]
    signature: bytes
    enums: bool
    # Built once for each pattern of NULLs: what a page costs is the parameters.
    statements: dict[tuple[bool, ...], Select[Any]] = field(
        default_factory=dict[tuple[bool, ...], Select[Any]]
    )

    def statement(self, place: _Place | None) -> Select[Any]:
        if place is None:
            return self.forward
        shape = (place.back, place.turned, *(value is None for value in place.values))
        # An ENUM's condition lists the members, and so depends on the value.
        known = None if self.enums else self.statements.get(shape)
        if known is not None:
            return known
        keys = [key.reversed() for key in self.keys] if place.back else self.keys
        points = [
            _Point(key, None if value is None else bindparam(f"keyset_{i}", type_=kind), value)
            for i, (key, kind, value) in enumerate(zip(keys, self.types, place.values, strict=True))
        ]
        whole = self.backward if place.back else self.forward
        statement = whole.where(_after(points, place.turned))
        self.statements[shape] = statement
        return statement

    # A cursor is base64url of: checksum (8 bytes), version (1), flags (1), signature of
    # model and order (8), and the values as JSON.

    def encode(self, place: _Place) -> str:
        flags = place.back | place.turned << 1
        body = bytes([_VERSION, flags]) + self.signature + self.values.dump_json(place.values)
        cursor = _text(_digest(body) + body)
        if len(cursor) > _LONGEST:
            names = ", ".join(key.name for key in self.keys)
            raise InvalidQuery(
                f"order_by: the values of {names} are too long for a cursor "
                f"({len(cursor)} characters, {_LONGEST} at most); sort by shorter ones"
            )
        return cursor

    def decode(self, cursor: str) -> _Place:
        body = _body(cursor)
        version, flags, signature, values = body[0], body[1], body[2:10], body[10:]
        if version != _VERSION:
            raise _invalid("was made by another version of this service")
        if signature != self.signature:
            raise _invalid(f"was made for another list or order than {self.name}")
        try:
            place = _Place(self.values.validate_json(values), bool(flags & 1), bool(flags & 2))
        except ValueError:
            raise _invalid(f"holds values that {self.name} does not have") from None
        return place


_VERSION = 1
_LONGEST = 4096  # characters; servers and proxies take URLs of about 8,000
_SHORTEST = 18  # bytes: a cursor without values


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _body(cursor: object) -> bytes:
    """What a cursor holds, its checksum checked and taken off."""
    if not isinstance(cursor, str):
        raise _invalid(f"is text, not {kind_of(cursor)}")
    if len(cursor) > _LONGEST:
        raise _invalid(f"is too long ({len(cursor)} characters, {_LONGEST} at most)")
    try:
        raw = b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _invalid("has characters or a length that no cursor has") from None
    checksum, body = raw[:8], raw[8:]
    # base64 has several spellings for some bytes; only one of them is ours.
    if len(raw) < _SHORTEST or checksum != _digest(body) or _text(raw) != cursor:
        raise _invalid("was changed or cut")
    return body


def _invalid(problem: str) -> InvalidCursor:
    return InvalidCursor(f"The cursor {problem}; start again without a cursor.")


@cached
def _walk(mapper: Mapper[Any], order_by: tuple[str, ...], deleted: bool) -> _Walk:
    model: type[SQLModel] = mapper.class_
    keys = sort_keys(model, order_by, deleted=deleted)
    columns = [_readable(key.expression) for key in keys]
    # Not select(): it wants to know how many columns there are.
    statement: Select[Any] = Select(model, *columns)
    statement = statement.limit(bindparam("keyset_limit", type_=Integer))
    spelled = ", ".join(_spelling(key) for key in keys)
    return _Walk(
        name=f"{model.__name__} by {spelled}",
        keys=keys,
        types=tuple(column.type for column in columns),
        values=_adapter(keys, [column.type for column in columns]),
        forward=statement.order_by(*(key.order for key in keys)),
        backward=statement.order_by(*(key.reversed().order for key in keys)),
        signature=_digest(f"{mapper.local_table} by {spelled}".encode()),
        enums=any(_is_native_enum(column.type) for column in columns),
    )


def _parameters(values: Sequence[Any]) -> dict[str, Any]:
    return {f"keyset_{place}": value for place, value in enumerate(values) if value is not None}


def _spelling(key: SortKey) -> str:
    name = f"-{key.name}" if key.descending else key.name
    if not key.nullable or key.nulls_first == key.descending:
        return name
    return f"{name}__nulls_first" if key.nulls_first else f"{name}__nulls_last"


# -- values of keys --------------------------------------------------------------


def _readable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """The column as it must be read, so that comparing with what was read is exact.

    MySQL rounds FLOAT to six digits when it sends it; SQLite has no decimals and stores
    a float, which SQLAlchemy rounds.
    """
    # Labels: without, SQLAlchemy looks for them under the name that the row's own column has.
    if isinstance(column.type, Float):
        return sql_cast(column, Double).label(None)
    if isinstance(column.type, Numeric):
        return type_coerce(column, _StoredDecimal()).label(None)
    return column


class _StoredDecimal(TypeDecorator[Decimal]):
    """A decimal with all the digits that are stored."""

    impl = Numeric
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Double() if dialect.name == "sqlite" else Numeric())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return float(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return Decimal(repr(value)) if isinstance(value, int | float) else value


def _annotation(key: SortKey, kind: TypeEngine[Any]) -> Any:
    """The type of a key's values, for pydantic."""
    if isinstance(kind, _StoredDecimal):
        known: Any = Annotated[Decimal, Field(allow_inf_nan=True)]
    elif isinstance(kind, Float):
        known = float
    elif isinstance(kind, Enum) and kind.enum_class is not None:
        # By name, as it is stored: any object may be the value.
        members = kind.enum_class.__members__
        known = Annotated[
            kind.enum_class,
            BeforeValidator(lambda name: members.get(str(name))),
            PlainSerializer(lambda member: member.name),
        ]
    elif isinstance(kind, Enum):
        known = Literal[tuple(kind.enums)]
    else:
        known = python_type(key.expression)
        if known is None or known is object:  # a type of your own; NullType
            known = key.annotation
    if known is None:
        raise InvalidQuery(f"order_by: the type of {key.name} is not known, and no cursor holds it")
    return known | None if key.nullable else known


def _adapter(
    keys: Sequence[SortKey], kinds: Sequence[TypeEngine[Any]]
) -> TypeAdapter[tuple[Any, ...]]:
    """Writes and reads the values of all keys as JSON."""
    annotations = [_annotation(key, kind) for key, kind in zip(keys, kinds, strict=True)]
    config = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings"
    )
    try:
        kind: Any = GenericAlias(tuple, tuple(annotations))
        return TypeAdapter(kind, config=config)
    except PydanticUserError as error:
        names = ", ".join(key.name for key in keys)
        raise InvalidQuery(f"order_by: no cursor holds the values of {names}: {error}") from error


# -- the condition ---------------------------------------------------------------


class _Point(NamedTuple):
    """A sort key and its value in the row that was seen last."""

    key: SortKey
    bound: ColumnElement[Any] | None  # the value as a parameter; None for NULL
    value: Any


def _after(points: Sequence[_Point], inclusive: bool) -> ColumnElement[bool]:
    """Rows that come after a point, or with `inclusive` at it.

    `a >= :a AND (a > :a OR id > :id)`: where `a` has reached its value and is not beyond
    it, it is equal, and the next key decides. An index serves the part before AND, which
    it would not do for `a > :a OR (a = :a AND id > :id)`.
    """
    first, *rest = points
    if not rest:
        return _from(first, inclusive)
    return and_(_from(first, True), or_(_from(first, False), _after(rest, inclusive)))


def _from(point: _Point, inclusive: bool) -> ColumnElement[bool]:
    """Where one key is beyond its value in the order, or with `inclusive` at it."""
    key, bound, value = point
    column = key.expression
    if bound is None:
        if key.nulls_first:
            return true() if inclusive else column.is_not(None)
        return column.is_(None) if inclusive else false()
    if key.descending:
        beyond = column <= bound if inclusive else column < bound
    else:
        beyond = column >= bound if inclusive else column > bound
    if isinstance(column.type, Enum) and column.type.native_enum and not key.related:
        members = _members(column.type, value, key.descending, inclusive)
        beyond = _EnumFrom(beyond, column.in_(members))
    return or_(beyond, column.is_(None)) if key.nullable and not key.nulls_first else beyond


def _is_native_enum(kind: TypeEngine[Any]) -> TypeGuard[Enum]:
    return isinstance(kind, Enum) and kind.native_enum


def _members(kind: Enum, value: Any, descending: bool, inclusive: bool) -> list[Any]:
    members: list[Any] = list(kind.enum_class or kind.enums)
    if descending:
        members.reverse()
    return members[members.index(value) + (not inclusive) :]


class _EnumFrom(FunctionElement[bool]):
    """A comparison of an ENUM column; MySQL sorts it by declaration, but compares it as text.

    What comes out of a subquery it sorts as text too.
    """

    inherit_cache = True
    name = "enum_from"


@compiles(_EnumFrom)
def _compared(element: _EnumFrom, compiler: SQLCompiler, **kw: Any) -> str:
    comparison, _ = element.clauses
    return compiler.process(comparison, **kw)


@compiles(_EnumFrom, "mysql", "mariadb")
def _listed(element: _EnumFrom, compiler: SQLCompiler, **kw: Any) -> str:
    _, members = element.clauses
    return f"({compiler.process(members, **kw)})"
