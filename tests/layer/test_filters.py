"""Filters by name: the same rows on every database."""

import json
from collections.abc import AsyncGenerator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Optional, cast
from uuid import UUID

import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    URL,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Float,
    Integer,
    Interval,
    MetaData,
    Numeric,
    String,
    Table,
    TypeDecorator,
    Uuid,
    event,
    func,
    text,
)
from sqlalchemy import exists as sa_exists
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import registry
from sqlalchemy.sql import false, null, true
from sqlmodel import Field, Relationship, SQLModel, col, select

from app.db import Database, InvalidQuery
from app.db.base import NAMING_CONVENTION, SoftDeleteMixin, Timestamp
from app.db.errors import InvalidFilter
from app.db.filters import OPERATORS, Condition, Filter, and_, build_filters, not_, or_
from app.db.operators import DATE_PARTS

from .models import BALL, BLADE, KITE, NOON, NORTH, SAW, Item, ItemService, Kind

pytestmark = pytest.mark.anyio

ALL = {SAW, BLADE, BALL, KITE}


async def found(db: Database, model: type[SQLModel], *where: Any, **filters: Any) -> list[str]:
    return await rows_of(db, model, build_filters(model, filters, where))


async def rows_of(db: Database, model: Any, conditions: list[Condition]) -> list[str]:
    """Sorted names of the rows; their count and EXISTS must agree."""
    async with db.read_session() as session:
        rows = (await session.exec(select(model).where(*conditions))).all()
        count = select(func.count()).select_from(model).where(*conditions)
        assert (await session.exec(count)).one() == len(rows)
        there = select(sa_exists().select_from(model).where(*conditions))
        assert bool((await session.exec(there)).one()) is bool(rows)
    return sorted(row.name for row in rows)


Expected = set[str] | dict[str, set[str]]


def wanted(expected: Expected, driver: str) -> list[str]:
    return sorted(expected if isinstance(expected, set) else expected[driver.partition("-")[0]])


# Expected names; a dict where databases differ: MySQL's default collation ignores case,
# SQLite's LIKE does for ASCII; SQLite has no escape character for LIKE by default.
CASES: list[tuple[dict[str, Any], Expected]] = [
    ({}, ALL),
    ({"name": SAW}, {SAW}),
    ({"name": "SAW"}, {"sqlite": set(), "postgresql": set(), "mysql": {SAW}}),
    ({"name": SAW, "price": 10}, {SAW}),
    ({"name": SAW, "price": 3}, set()),
    ({"note": None}, {KITE}),
    ({"price__eq": 10}, {SAW, BLADE}),
    ({"price__ne": 10}, {BALL, KITE}),
    ({"note__ne": "a_b"}, {SAW, BALL}),  # as SQL has it: NULL is not unequal
    ({"note__ne": None}, {SAW, BLADE, BALL}),
    ({"price__gt": 7}, {SAW, BLADE}),
    ({"price__gte": 7}, {SAW, BLADE, KITE}),
    ({"price__lt": 7}, {BALL}),
    ({"price__lte": 7}, {BALL, KITE}),
    ({"price__lt": 7, "price__gt": 3}, set()),
    ({"stock__gt": 0}, set()),
    ({"price__in": [3, 7]}, {BALL, KITE}),
    ({"price__in": {3: "keys"}.keys()}, {BALL}),
    ({"price__in": []}, set()),
    ({"price__not_in": (3, 7)}, {SAW, BLADE}),
    ({"price__not_in": []}, ALL),
    ({"note__not_in": ["a_b"]}, {SAW, BALL}),
    ({"price__between": (3, 7)}, {BALL, KITE}),
    ({"price__between": [7, 3]}, set()),
    ({"note__is_null": True}, {KITE}),
    ({"note__is_null": False}, {SAW, BLADE, BALL}),
    ({"note__is": None}, {KITE}),
    ({"note__is_not": None}, {SAW, BLADE, BALL}),
    ({"note__like": "%off"}, {SAW}),
    ({"note__like": "a_b"}, {BLADE}),
    ({"note__not_like": "%off"}, {BLADE, BALL}),
    ({"name__like": "saw%"}, {"sqlite": {SAW, BLADE}, "postgresql": {SAW}, "mysql": {SAW, BLADE}}),
    ({"note__like": r"c\\d"}, {"sqlite": set(), "postgresql": {BALL}, "mysql": {BALL}}),
    ({"note__like": r"c\d"}, {"sqlite": {BALL}, "postgresql": set(), "mysql": set()}),
    ({"name__ilike": "sAW%"}, {SAW, BLADE}),
    ({"name__not_ilike": "sAW%"}, {BALL, KITE}),
    ({"note__contains": "%"}, {SAW}),
    ({"note__contains": "_"}, {BLADE}),
    ({"note__contains": "\\"}, {BALL}),
    ({"note__contains": "/"}, set()),
    ({"note__contains": ""}, {SAW, BLADE, BALL}),
    ({"name__icontains": "BLADE"}, {BLADE}),
    ({"note__startswith": "50%"}, {SAW}),
    ({"note__startswith": "%"}, set()),
    ({"name__istartswith": "SAW"}, {SAW, BLADE}),
    ({"note__endswith": "_b"}, {BLADE}),
    ({"note__endswith": "_off"}, set()),
    ({"name__iendswith": "BLADE"}, {BLADE}),
    ({"name__iendswith": "SAW"}, {SAW}),  # a suffix: not "Saw blade"
    ({"name__iexact": "SAW"}, {SAW}),
    ({"name__iexact": "sA%"}, set()),
    ({"note__iexact": "A_B"}, {BLADE}),
    ({"note__iexact": "A?B"}, set()),
    ({"name__regex": "^saw"}, {SAW}),  # the case counts, on every database
    ({"name__regex": "^Saw"}, {BLADE}),
    ({"name__regex": "^[sS]aw( blade)?$"}, {SAW, BLADE}),
    ({"name__iregex": "^SAW"}, {SAW, BLADE}),
    ({"name__iregex": "A(LL|W)$"}, {SAW, BALL}),
    ({"note__regex": r"^\d+% "}, {SAW}),
    ({"note__regex": r"\\"}, {BALL}),
    ({"note__regex": ""}, {SAW, BLADE, BALL}),
    ({"kind": Kind.TOY}, {BALL}),
    ({"kind": "TOY"}, {BALL}),  # the member's name, as it is stored
    ({"kind__in": [Kind.TOY, Kind.TOOL]}, {SAW, BLADE, BALL}),
    ({"sold_at": NOON}, {SAW}),
    ({"sold_at__gte": NOON}, {SAW}),
    ({"sold_at__gt": NOON}, set()),
    ({"shop_id": NORTH}, {SAW, BLADE}),
    ({"price": col(Item.price)}, ALL),  # an expression is not checked
    # to-one
    ({"shop__name": "north"}, {SAW, BLADE}),
    ({"shop__name__in": ["north", "south"]}, {SAW, BLADE, BALL}),
    ({"shop__name__ne": "north"}, {BALL}),
    ({"shop__is_null": True}, {KITE}),
    ({"shop__is_null": False}, {SAW, BLADE, BALL}),
    # to-many, many-to-many
    ({"children__price__gte": 7}, {SAW, BLADE}),
    ({"children__is_null": True}, {BALL, KITE}),
    ({"tags__name__in": ["red", "old", "unused"]}, {SAW, BLADE, KITE}),
    ({"tags__name": "unused"}, set()),
    ({"tags__is_null": True}, {BALL}),
    ({"tags__is_null": False}, {SAW, BLADE, KITE}),
    # over two relations; back to the same table; over it twice
    ({"parent__shop__name": "north"}, {BLADE, KITE}),
    ({"parent__tags__name": "red"}, {BLADE, KITE}),
    ({"shop__items__name": SAW}, {SAW, BLADE}),
    ({"parent__parent__name": SAW}, {KITE}),
    ({"children__children__name": KITE}, {SAW}),
    ({"parent__children__name": BLADE}, {BLADE}),
    ({"tags__items__name": KITE}, {SAW, KITE}),
    ({"parent__parent__is_null": True}, {BLADE}),
    ({"shop__name": "north", "tags__name": "old", "price": 10}, {SAW}),
    # other operators across a relation, and to the same table
    ({"parent__name__regex": "^saw$"}, {BLADE}),
    ({"parent__sold_at__year": 2026}, {BLADE}),
    ({"children__children__name__iregex": "^KI"}, {SAW}),
    ({"shop__items__sold_at__date": NOON.date()}, {SAW, BLADE}),
]


async def test_filters(stock: Database, driver: str) -> None:
    for filters, expected in CASES:
        # Sorted lists: a row that comes twice is an error.
        assert await found(stock, Item, **filters) == wanted(expected, driver), filters


async def test_services_filter_so_too(stock: Database) -> None:
    async with stock.read_session() as session:
        service = ItemService(session)
        names = [item.name for item in await service.list(tags__name__in=["red", "old"])]
        assert sorted(names) == sorted([SAW, BLADE, KITE])
        assert await service.count(tags__name__in=["red", "old"]) == 3
        assert await service.exists(name__regex="^Saw")
        assert not await service.exists(name__regex="^SAW")


SPECIAL = {"match", "has_key", "overlap", "contained_by"}  # have tests of their own


def test_every_operator_has_a_case() -> None:
    keys = [key for filters, _ in CASES for key in filters]
    used = {op for op in OPERATORS if any(key.endswith(f"__{op}") for key in keys)}
    assert used | SPECIAL == set(OPERATORS)


# -- and, or, not ---------------------------------------------------------------


NESTED: list[tuple[Filter, set[str]]] = [
    (and_(price=10, note="a_b"), {BLADE}),
    (or_(price=3, name=KITE), {BALL, KITE}),
    (or_(and_(price=10, name=SAW), and_(price=3, name=SAW), name=KITE), {SAW, KITE}),
    (not_(price=10), {BALL, KITE}),
    (not_(price=10, name=SAW), {BLADE, BALL, KITE}),  # not both
    (not_(not_(price=10)), {SAW, BLADE}),
    # NULL: neither true nor false, and NOT leaves it so.
    (not_(note="a_b"), {SAW, BALL}),
    (not_(note__ne="a_b"), {BLADE}),
    (not_(note__in=["a_b"]), {SAW, BALL}),
    (not_(note__contains="%"), {BLADE, BALL}),
    (not_(note__iexact="A_B"), {SAW, BALL}),
    (not_(note__regex="_"), {SAW, BALL}),
    (not_(sold_at__year=2026), set()),
    (or_(not_(note="a_b"), note=None), {SAW, BALL, KITE}),
    (not_(note="a_b", price=3), ALL),  # kite: 7 is not 3, whatever the note is
    # An EXISTS is true or false.
    (not_(shop__name="north"), {BALL, KITE}),
    (not_(tags__name="red"), {BALL, KITE}),
    (not_(shop__is_null=True), {SAW, BLADE, BALL}),
    (or_(tags__name="red", shop__name="south"), {SAW, BLADE, BALL}),
    # SQLAlchemy's conditions inside
    (or_(col(Item.price) == 3, name=KITE), {BALL, KITE}),
    (and_(or_(col(Item.price) > 5, note="x"), not_(col(Item.name) == SAW)), {BLADE, KITE}),
    (and_(cast(Any, text("price = 3"))), {BALL}),
    (and_(true(), price=3), {BALL}),
    (or_(false(), price=3), {BALL}),
    # operators
    (or_(price=3) | or_(price=7), {BALL, KITE}),
    (and_(price=10) & and_(name=SAW), {SAW}),
    (~and_(price=10), {BALL, KITE}),
    (~(and_(price=10) & (col(Item.name) == SAW)) & ~or_(note=None), {BLADE, BALL}),
    (or_(price=3) | (col(Item.price) == 7), {BALL, KITE}),
]


async def test_nested_filters(stock: Database) -> None:
    for where, expected in NESTED:
        assert await found(stock, Item, where) == sorted(expected), where
    assert await found(stock, Item, or_(price=3, note="a_b"), col(Item.price) > 5) == [BLADE]
    assert await found(stock, Item, or_(price=3, note="a_b"), price__gt=5) == [BLADE]


def test_a_filter_is_a_value() -> None:
    one = or_(price=3)
    with pytest.raises(AttributeError):
        one.parts = ()  # type: ignore[misc]
    assert len({one, or_(price=3)}) == 2
    assert build_filters(Item, {}, [one])[0].compare(build_filters(Item, {"price": 3})[0])
    # `a and b` is b: one filter would be lost.
    with pytest.raises(TypeError, match="join filters with &,"):
        _ = one and or_(price=4)


@pytest.mark.parametrize("make", [and_, or_, not_])
def test_empty_filter(make: Any) -> None:
    with pytest.raises(InvalidFilter, match=rf"^{make.__name__}\(\) needs at least one filter$"):
        make()


@pytest.mark.parametrize("part", ["name", {"name": "x"}, True, None, Item(name="x"), Item, [], 5])
def test_a_part_that_is_no_condition(part: Any) -> None:
    message = (
        r"^where: takes SQLAlchemy conditions, e.g. col\(Item\.\w+\) == 1, and and_\(\), or_\(\) "
        rf"and not_\(\), not {type(part).__name__}; filters by name are keywords$"
    )
    for where in (part, or_(part), and_(not_(part, price=1)), or_(price=1) & part):
        with pytest.raises(InvalidFilter, match=message):
            build_filters(Item, {}, [where])


# -- errors ---------------------------------------------------------------------


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"nmae": "x"},
        "^nmae: Item has no field 'nmae'; did you mean 'name'. There are: child",
    ),
    ({"nmae__gt": "x"}, "^nmae__gt: Item has no field 'nmae'"),
    ({"qqq": 1}, "^qqq: Item has no field 'qqq'. There are: "),
    ({"": 1}, "^: Item has no field ''"),
    ({"model_fields": 1}, "Item has no field 'model_fields'"),
    (
        {"name__equals": "x"},
        "^name__equals: Item has no operator 'equals'. .*There are: betw",
    ),
    ({"name__gte__lt": 1}, "no operator 'gte__lt'"),
    ({"name__": 1}, "no operator ''|^name__: "),
    ({"shop__nmae": "x"}, "^shop__nmae: Shop has no field 'nmae'; did you mean 'name'"),
    ({"shop__items__prize": 1}, "^shop__items__prize: Item has no field 'prize'.*'price'"),
    ({"shop__name__startwith": "x"}, "Shop has no operator 'startwith'.*'startswith'"),
    ({"shop": NORTH}, "^shop: Item.shop is a relation; .*e.g. shop__id="),
    ({"shop__items": 1}, "^shop__items: Shop.items is a relation; .*e.g. shop__items__"),
    ({"shop__is_null": None}, "^shop__is_null: takes True or False, not NoneType"),
    ({"shop__is_null__x": True}, "^shop__is_null__x: Shop has no field 'is_null'"),
    ({"name__is_null": 1}, "^name__is_null: is_null takes True or False, not int"),
    ({"price__is": 5}, "^price__is: is takes None, True or False, not int"),
    ({"price__is_not": "x"}, "takes None, True or False, not str"),
    *[
        ({f"price__{op}": None}, f"{op} takes a value; for NULL")
        for op in ("gt", "gte", "lt", "lte")
    ],
    ({"price__in": 5}, "^price__in: in takes a list, not int"),
    ({"name__in": "abc"}, "in takes a list, not str"),
    ({"price__in": [1, None]}, "without None; for NULL use is_null"),
    ({"price__not_in": [None]}, "without None"),
    ({"price__between": [1]}, "between takes two bounds, not 1"),
    ({"price__between": 5}, "takes a list, not int"),
    ({"price__between": [1, None]}, "without None"),
    ({"name__contains": 5}, "contains takes text, not int"),
    ({"name__like": None}, "like takes text, not NoneType"),
    ({"name__icontains": "a\0"}, "takes text without NUL"),
    ({"price__contains": "1"}, "contains takes a text column, not one of int"),
    ({"kind__like": "T%"}, "like takes a text column, not one of Kind"),
    # Values of another type: MySQL would compare `price = 'abc'` as `price = 0`.
    ({"price": "abc"}, "^price: eq takes int, not str"),
    ({"price__ne": True}, "ne takes int, not bool"),
    ({"price__gt": 1.5}, "gt takes int, not float"),
    ({"price__in": [1, "2"]}, "in takes int, not str"),
    ({"price__between": ["1", "2"]}, "between takes int, not str"),
    ({"name": 0}, "eq takes str, not int"),
    ({"name": ["saw"]}, "eq takes str, not list"),
    ({"kind": "tool"}, "eq takes Kind, not str"),
    ({"id": str(NORTH)}, "eq takes UUID, not str"),
    ({"shop__id": 1}, "^shop__id: eq takes UUID, not int"),
    ({"sold_at": "2026-01-01"}, "eq takes datetime, not str"),
    ({"sold_at__gt": NOON.replace(tzinfo=None)}, "with a time zone"),
    # text
    ({"name__iexact": 5}, "^name__iexact: iexact takes text, not int"),
    ({"price__iexact": "5"}, "iexact takes a text column, not one of int"),
    ({"name__regex": "a("}, r"^name__regex: regex takes a regular expression, not 'a\(': missing"),
    ({"name__iregex": "a)|(b"}, "iregex takes a regular expression"),
    ({"name__regex": "a{99999999999}"}, "regex takes a regular expression"),
    ({"name__regex": "a\0"}, "takes text without NUL"),
    ({"name__regex": None}, "regex takes text, not NoneType"),
    ({"price__iregex": "1"}, "iregex takes a text column, not one of int"),
    ({"name__match": 1}, "^name__match: match takes text, not int"),
    ({"price__match": "x"}, "match takes a text column"),
    # of other columns
    ({"name__has_key": "x"}, "^name__has_key: has_key takes a JSON column, not one of str"),
    ({"name__overlap": ["x"]}, "overlap takes an array column, not one of str"),
    ({"price__contained_by": [1]}, "contained_by takes an array column, not one of int"),
    # dates
    ({"name__year": 2026}, "^name__year: year takes a date or datetime column, not one of str"),
    ({"price__hour": 1}, "hour takes a datetime column, not one of int"),
    ({"sold_at__yaer": 1}, "Item has no operator 'yaer'; did you mean 'year'"),
    ({"sold_at__year__gtt": 1}, "Item has no operator 'gtt'; did you mean 'gt'"),
    ({"sold_at__year__month": 1}, "Item has no operator 'month'"),
    ({"sold_at__year": "2026"}, "^sold_at__year: eq takes int, not str"),
    ({"sold_at__year": True}, "eq takes int, not bool"),
    ({"sold_at__year__contains": "2"}, "contains takes a text column, not one of int"),
    ({"sold_at__date": NOON}, "^sold_at__date: eq takes date, not datetime"),
    ({"sold_at__date__gte": "2026-01-01"}, "gte takes date, not str"),
    ({"shop__items__sold_at__hour__in": ["1"]}, "^shop__items__sold_at__hour__in: in takes int"),
]


@pytest.mark.parametrize(("filters", "message"), BAD, ids=[next(iter(f)) for f, _ in BAD])
def test_bad_filter(filters: dict[str, Any], message: str) -> None:
    for where in ([], [or_(or_(price=1), **filters)], [and_(not_(or_(**filters)))]):
        with pytest.raises(InvalidFilter, match=message):
            build_filters(Item, {} if where else filters, where)


def test_numbers_of_other_kinds_and_untyped_columns_are_taken() -> None:
    class Part(Own, table=True):
        id: int = Field(primary_key=True)
        weight: float = Field(sa_type=Float)
        cost: Decimal = Field(sa_type=Numeric)
        sold: bool = Field(sa_type=Boolean)
        data: dict[str, Any] = Field(sa_type=JSON)
        day: date
        span: timedelta = Field(sa_type=Interval)

    good = {"weight": 1, "weight__gt": Decimal(1), "cost": 1, "cost__lt": 1.5, "sold": True}
    assert len(build_filters(Part, good | {"data": {"a": [1]}, "data__ne": [1]})) == 7
    for bad in (
        {"weight": "1"},
        {"weight": True},
        {"sold": 1},
        {"cost": "1.0"},
        {"day": NOON},
        {"day__hour": 1},
        {"span__year": 1},
    ):
        with pytest.raises(InvalidFilter):
            build_filters(Part, bad)


@pytest.mark.parametrize("method", ["get", "get_or_none", "list", "page", "count", "exists"])
async def test_every_method_refuses_a_bad_filter(db: Database, method: str) -> None:
    async with db.read_session() as session:
        with pytest.raises(InvalidQuery, match="did you mean 'name'"):
            await getattr(ItemService(session), method)(nmae="x")


# -- tables of this module ------------------------------------------------------


class Own(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING_CONVENTION))):
    """Tables that no other test creates."""


class Wrapped(TypeDecorator[Any]):
    """A type of one's own around JSON."""

    impl = JSON
    cache_ok = True


class Box(Own, table=True):
    """Each way to declare a JSON column."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=200)
    data: Any = Field(default=None, sa_column=Column(JSON))
    binary: Any = Field(default=None, sa_column=Column(JSON().with_variant(JSONB, "postgresql")))
    mutable: Any = Field(default=None, sa_column=Column(MutableDict.as_mutable(JSON)))
    wrapped: Any = Field(default=None, sa_column=Column(Wrapped))
    inside_id: int | None = Field(default=None, foreign_key="box.id")

    inside: Optional["Box"] = Relationship(sa_relationship_kwargs={"remote_side": "Box.id"})


class Moment(Own, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)
    aware: datetime | None = Field(default=None, sa_type=Timestamp)
    plain_aware: datetime | None = Field(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=True)
    )
    naive: datetime | None = Field(default=None, sa_column=Column(DateTime(), nullable=True))
    day: date | None = Field(default=None, sa_type=Date)


class Membership(Own, table=True):
    club_id: int = Field(primary_key=True, foreign_key="club.id")
    person_id: int = Field(primary_key=True, foreign_key="person.id")


class Club(Own, SoftDeleteMixin, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)

    people: list["Person"] = Relationship(back_populates="clubs", link_model=Membership)
    rooms: list["Room"] = Relationship(back_populates="club")


class Person(Own, SoftDeleteMixin, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)
    boss_id: int | None = Field(default=None, foreign_key="person.id")

    clubs: list[Club] = Relationship(back_populates="people", link_model=Membership)
    boss: Optional["Person"] = Relationship(
        back_populates="staff", sa_relationship_kwargs={"remote_side": "Person.id"}
    )
    staff: list["Person"] = Relationship(back_populates="boss")


class Room(Own, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)
    club_id: int | None = Field(default=None, foreign_key="club.id")

    club: Club | None = Relationship(back_populates="rooms")


class Note(Own, table=True):
    """What only PostgreSQL has."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=200)
    words: list[str] | None = Field(default=None, sa_column=Column(ARRAY(String(20))))
    numbers: list[int] | None = Field(default=None, sa_column=Column(ARRAY(Integer)))
    ids: list[UUID] | None = Field(default=None, sa_column=Column("ids", ARRAY(Uuid())))
    searched: Any = Field(
        default=None,
        sa_column=Column(TSVECTOR, Computed("to_tsvector('english', name)", persisted=True)),
    )


def own_tables(url: URL) -> list[Table]:
    models: list[Any] = [Box, Moment, Club, Person, Membership, Room]
    if url.get_backend_name() == "postgresql":
        models.append(Note)
    return [model.__table__ for model in models]


@pytest.fixture
async def own(db: Database, url: URL) -> AsyncGenerator[Database]:
    tables = own_tables(url)
    async with db.engine.begin() as connection:
        await connection.run_sync(lambda sync: Own.metadata.create_all(sync, tables=tables))
    yield db
    async with db.engine.begin() as connection:
        await connection.run_sync(lambda sync: Own.metadata.drop_all(sync, tables=tables))


async def add(db: Database, *rows: SQLModel) -> None:
    async with db.session() as session:
        session.add_all(rows)


# -- JSON -----------------------------------------------------------------------


DOCUMENTS: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.5, 2**53, 2**53 + 1, 10**20, 1e-7, "1", "x", "X", "", "é"),
    *([], [1], [1, 2], [2, 1, 1], ["x"], ["x", 1, None], [[1]], [[1, 2], [3]], [True], [None]),
    *([{"a": 1}], [{"a": 1, "b": 2}, {"a": 3}], [[{"a": [1]}]], [[[]]], [{}]),
    *({}, {"a": 1}, {"a": "1"}, {"a": None}, {"a": True}, {"a": []}, {"a": {}}),
    *({"a": 1, "b": 2}, {"b": 2, "a": 1.0}, {"a": {"b": 1}}, {"a": {"b": 1, "c": [1, 2]}}),
    *({"a": [1, 2]}, {"a": [{"x": 1}, {"x": 2, "y": 3}]}, {"0": "x", "1": [["x"]]}),
    *({"a": 'q"', "é": 1, 'k"': 1}, {"a": {"é": {'k"': [1, "\\"]}}}),
]


def json_type(value: Any) -> str:
    names: dict[str, str] = {"int": "number", "float": "number"}
    name: str = value.__class__.__name__
    return names.get(name, name)


def same(one: Any, other: Any) -> bool:
    if json_type(one) != json_type(other):
        return False
    if json_type(one) == "list":
        return len(one) == len(other) and all(map(same, one, other))
    if json_type(one) == "dict":
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def holds(document: Any, part: Any) -> bool:
    """What PostgreSQL documents for `@>`, without its exception for scalars."""
    if json_type(document) != json_type(part):
        return False
    if json_type(part) == "list":
        return all(any(holds(member, wanted) for member in document) for wanted in part)
    if json_type(part) == "dict":
        return all(key in document and holds(document[key], part[key]) for key in part)
    return same(document, part)


def contains(document: Any, part: Any) -> bool:
    if json_type(document) == "list" and json_type(part) not in {"list", "dict"}:
        return any(same(member, part) for member in document)
    return holds(document, part)


async def test_json_documents_of_all_shapes(own: Database) -> None:
    """Equality and containment against a model in Python; nothing raises."""
    names = [f"{n:03} {json.dumps(document)}" for n, document in enumerate(DOCUMENTS)]
    rows = [
        Box(name=name, data=document, binary=document, wrapped={"in": [0, document]})
        for name, document in zip(names, DOCUMENTS, strict=True)
    ]
    await add(own, *rows, Box(name="NULL", data=null(), binary=null(), wrapped=null()))

    def kin(document: Any, part: Any) -> bool:
        return json_type(document) == json_type(part) and not same(document, part)

    def expected(test: Any, part: Any) -> list[str]:
        return [name for name, doc in zip(names, DOCUMENTS, strict=True) if test(doc, part)]

    def lacks(document: Any, part: Any) -> bool:
        return not contains(document, part)

    fields = ["data", "wrapped__in__1"]
    if own.engine.dialect.name == "postgresql":  # elsewhere the same as `data`
        fields.append("binary")
    async with own.read_session() as session:
        for part in DOCUMENTS[1:]:
            for field in fields:
                among = {f"{field}__contains": part}
                cases: list[tuple[list[Any], dict[str, Any], Any]] = [
                    ([], {field: part}, same),
                    ([], {f"{field}__ne": part}, kin),  # another type is like NULL
                    ([not_(**{field: part})], {}, kin),
                    ([], among, contains),
                    ([not_(**among)], {}, lacks),
                ]
                for where, filters, test in cases:
                    statement = select(Box.name).where(*build_filters(Box, filters, where))
                    names_found = sorted((await session.exec(statement)).all())
                    assert names_found == expected(test, part), (field, part, test)


THEMES: dict[str, Any] = {
    "dark": {
        "theme": "dark",
        "ui": {"size": 3, "name": "Max", "on": True},
        "list": [1, {"x": "y"}],
    },
    "light": {"theme": "light", "ui": {"size": 2.5, "name": "50%_", "on": False}},
    "number": {
        "theme": 5,
        "ui": {"size": "3", "name": 7, "on": 1},
        "list": {"0": 1, "1": {"x": "y"}},
    },
    "null": {"theme": None, "ui": None, "list": []},
    "deep": {"theme": {"theme": "dark"}, "ui": {"size": 10**20, "name": "mAX\nx"}},
    "list": ["theme", {"ui": 1}],
    "text": "theme",
    "none": None,
    "empty": {},
}
OBJECTS = {"dark", "light", "number", "null", "deep", "empty"}

JSON_CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({"theme": "dark"}, {"dark"}),
    ({"theme__eq": "dark"}, {"dark"}),
    ({"theme": "DARK"}, set()),  # the case counts, also where the collation ignores it
    ({"theme": 5}, {"number"}),
    ({"theme__ne": "dark"}, {"light"}),  # another type is like NULL
    ({"theme__in": ["dark", "light", "x"]}, {"dark", "light"}),
    ({"theme__in": []}, set()),
    ({"theme__not_in": ["dark"]}, {"light"}),
    ({"theme__gt": "dark"}, {"light"}),
    ({"theme__between": ("a", "e")}, {"dark"}),
    ({"theme": {"theme": "dark"}}, {"deep"}),
    ({"theme__theme": "dark"}, {"deep"}),
    ({"theme__theme__theme": "dark"}, set()),
    ({"theme": None}, {"null", "list", "text", "none", "empty"}),
    ({"theme__ne": None}, {"dark", "light", "number", "deep"}),
    ({"theme__is_null": True}, {"null", "list", "text", "none", "empty"}),
    ({"theme__is_null": False}, {"dark", "light", "number", "deep"}),
    ({"theme__is": None}, {"null", "list", "text", "none", "empty"}),
    ({"theme__is_not": None}, {"dark", "light", "number", "deep"}),
    ({"is_null": True}, {"none"}),  # None in a JSON column is stored as null
    ({"": None}, {"none"}),
    ({"": "theme"}, {"text"}),
    ({"regex": "^th"}, {"text"}),
    # numbers
    ({"ui__size": 3}, {"dark"}),
    ({"ui__size": 3.0}, {"dark"}),
    ({"ui__size": 2.5}, {"light"}),
    ({"ui__size": Decimal("2.5")}, {"light"}),
    ({"ui__size": 10**20}, {"deep"}),
    ({"ui__size__gte": 3}, {"dark", "deep"}),
    ({"ui__size__lt": 3}, {"light"}),
    ({"ui__size__lte": 2.5}, {"light"}),
    ({"ui__size__between": (2, 3)}, {"dark", "light"}),
    ({"ui__size__in": [3, 2.5, Decimal(4)]}, {"dark", "light"}),
    ({"ui__size__not_in": [3]}, {"light", "deep"}),
    ({"ui__size__gt": "2"}, {"number"}),  # text, compared with text
    # booleans
    ({"ui__on": True}, {"dark"}),
    ({"ui__on": 1}, {"number"}),
    ({"ui__on__is": True}, {"dark"}),
    ({"ui__on__is": False}, {"light"}),
    ({"ui__on__is_not": True}, {*THEMES} - {"dark"}),  # IS NOT takes NULL for unequal
    ({"ui__on__ne": True}, {"light"}),
    ({"ui__on__in": [True, False]}, {"dark", "light"}),
    # text
    ({"ui__name__icontains": "aX"}, {"dark", "deep"}),
    ({"ui__name__iexact": "max"}, {"dark"}),
    ({"ui__name__startswith": "50%"}, {"light"}),
    ({"ui__name__endswith": "%_"}, {"light"}),
    ({"ui__name__endswith": "0_"}, set()),
    ({"ui__name__iendswith": "X"}, {"dark", "deep"}),
    ({"ui__name__istartswith": "MA"}, {"dark", "deep"}),
    ({"ui__name__like": "5%"}, {"light"}),
    ({"ui__name__not_like": "5%"}, {"dark", "deep"}),
    ({"ui__name__ilike": "MA%"}, {"dark", "deep"}),
    ({"ui__name__not_ilike": "MA%"}, {"light"}),
    ({"ui__name__regex": "^M"}, {"dark"}),
    ({"ui__name__iregex": "^M"}, {"dark", "deep"}),
    # digits: a position in a list, a key elsewhere
    ({"list__0": 1}, {"dark", "number"}),
    ({"list__1__x": "y"}, {"dark", "number"}),
    ({"list__1__x__iexact": "Y"}, {"dark", "number"}),
    ({"0": "theme"}, {"list"}),
    ({"1__ui": 1}, {"list"}),
    ({"list__7__is_null": True}, {*THEMES}),
    ({"theme__0__is_null": False}, set()),  # a scalar is no list of one
    ({"list__4294967296__is_null": False}, set()),  # 0 in 32 bits
    # keys
    ({"has_key": "theme"}, {"dark", "light", "number", "null", "deep"}),
    ({"ui__has_key": "on"}, {"dark", "light", "number"}),
    ({"list__has_key": "0"}, {"number"}),
    ({"list__1__has_key": "x"}, {"dark", "number"}),
    ({"has_key": "nothing"}, set()),
    # a part
    ({"contains": {"ui": {"on": True}}}, {"dark"}),
    ({"contains": {}}, OBJECTS),
    ({"ui__contains": {"size": 3}}, {"dark"}),
    ({"list__contains": [{"x": "y"}]}, {"dark"}),
    ({"list__contains": 1}, {"dark"}),
    ({"contains": "theme"}, {"list", "text"}),
    ({"list": []}, {"null"}),
]


@pytest.fixture
async def themes(own: Database) -> Database:
    def fields(value: Any) -> dict[str, Any]:
        return {"data": value, "binary": value, "wrapped": value}

    await add(own, *(Box(name=name, **fields(value)) for name, value in THEMES.items()))
    return own


@pytest.mark.parametrize("field", ["data", "binary", "wrapped"])
async def test_json_paths(themes: Database, field: str) -> None:
    async with themes.read_session() as session:
        for filters, expected in JSON_CASES:
            named = {f"{field}__{key}".removesuffix("__"): value for key, value in filters.items()}
            rows = await session.exec(select(Box.name).where(*build_filters(Box, named)))
            assert sorted(rows.all()) == sorted(expected), named


async def test_json_with_not_and_relations(themes: Database) -> None:
    # NOT of NULL is NULL: where there is no such value, or one of another type.
    assert await found(themes, Box, not_(data__theme="dark")) == ["light"]
    assert await found(themes, Box, not_(data__has_key="theme")) == sorted(
        {*THEMES} - {"dark", "light", "number", "null", "deep"}
    )
    assert await found(themes, Box, not_(data__theme__is_null=True), data__ui__on=True) == ["dark"]
    assert await found(themes, Box, not_(data__ui__contains={"on": True})) == sorted(
        ["light", "number", "null", "deep"]
    )
    async with themes.session() as session:
        dark = (await session.exec(select(Box).where(Box.name == "dark"))).one()
        session.add(Box(name="outer", mutable={"a": {"b": 1}}, inside=dark))
    # The same table twice: the document is the inner one's, also inside json_each.
    assert await found(themes, Box, inside__data__theme="dark") == ["outer"]
    for part in ({"list": [1]}, {"list": [{"x": "y"}]}):
        assert await found(themes, Box, inside__data__contains=part) == ["outer"]
    assert await found(themes, Box, inside__data__list=[1, {"x": "y"}]) == ["outer"]
    assert await found(themes, Box, inside__data__list__1__x="y") == ["outer"]
    assert await found(themes, Box, inside__data__has_key="list", mutable__a__b=1) == ["outer"]


ODD = [
    *("a.b", "a b", "a'b", 'a"b', "a\\b", 'a\\"b', "$", "$.a", "[0]", "*", "+1", "007", "é"),
    *("😀", "a\nb", "%", "%s", "%(x)s", "?", ":x", "{x}", "null", "x') OR 1=1 --", '"] OR 1=1 --'),
]


async def test_json_keys_are_quoted(own: Database) -> None:
    """Each key finds its own value and no other, at the top and below, for has_key too."""
    rows = [Box(name=repr(key), data={"in": {key: {"x": key}}}, binary={key: 1}) for key in ODD]
    await add(
        own, *rows, Box(name="other", data={"in": {"other": {"x": 1}}}, binary={"a": {"b": 1}})
    )
    for key in ODD:
        filters: dict[str, Any] = {
            f"data__in__{key}__x": key,
            f"data__in__{key}": {"x": key},
            f"data__in__{key}__contains": {"x": key},
            f"binary__{key}__gte": 1,
            "data__in__has_key": key,
            "binary__has_key": key,
            "binary__contains": {key: 1},
            "binary": {key: 1},
        }
        assert await found(own, Box, and_(**filters)) == [repr(key)]  # each finds it
        assert await found(own, Box, or_(**filters)) == [repr(key)]  # none finds more
    assert await found(own, Box, binary__b=1) == []


async def test_json_keys_that_begin_with_minus(own: Database) -> None:
    await add(own, Box(name="minus", data={"-1": {"-x": "y"}}), Box(name="list", data=["a", "b"]))
    for filters in ({"data__-1__-x": "y"}, {"data__has_key": "-1"}, {"data": {"-1": {"-x": "y"}}}):
        if own.engine.dialect.name == "mysql":
            message = (
                "^a JSON key that begins with '-' is not available on mariadb; it is on sqlite"
            )
            with pytest.raises(InvalidFilter, match=message):
                await found(own, Box, **filters)
        else:
            assert await found(own, Box, **filters) == ["minus"]
            assert await found(own, Box, **{"data__-1": "b"}) == []  # no position in a list
    assert await found(own, Box, **{"data__+1": "b"}) == await found(own, Box, **{"data__ 1": "b"})
    assert await found(own, Box, **{"data__+1": "b"}) == []
    assert await found(own, Box, data__1="b") == ["list"]


def test_json_of_a_database_that_writes_unicode() -> None:
    """Both spellings of a key that is not ASCII, for MariaDB, which compares the text."""
    from sqlalchemy.dialects import mysql

    (condition,) = build_filters(Box, {"data__é": 1})
    compiled = condition.compile(dialect=mysql.dialect())
    assert {'."\\u00e9"', '."é"'} <= {*compiled.params.values()}


async def test_one_statement_in_the_cache_for_all_values(own: Database) -> None:
    await add(own, Box(name="a", data={"x": 1, "l": [1]}), Box(name="b", data={"x": 2, "l": [2]}))
    for name, number in (("a", 1), ("b", 2), ("a", 1)):
        assert await found(own, Box, data__x=number) == [name]
        assert await found(own, Box, data__contains={"l": [number]}) == [name]
        assert await found(own, Box, data__l__0__in=[number, 9]) == [name]
        assert await found(own, Box, data__l=[number]) == [name]
    assert await found(own, Box, data__l=["1"]) == []


BAD_JSON: list[tuple[dict[str, Any], str]] = [
    ({"data__": 1}, "^data__: '' is no key of a JSON document"),
    ({"data__a____b": 1}, "^data__a____b: '' is no key of a JSON document"),
    ({"data__a\0": 1}, "is no key of a JSON document"),
    ({"data__a": NOON}, "^data__a: eq takes text, a finite number, .* for JSON, not datetime"),
    ({"data__a": float("nan")}, "takes text, a finite number"),
    ({"data__a": Decimal("Infinity")}, "takes text, a finite number"),
    ({"data__a__in": [1, None]}, "^data__a__in: in takes a list without None"),
    ({"data__a__in": "abc"}, "in takes a list, not str"),
    ({"data__a__in": [1, "a"]}, "in takes values of one type: text, numbers, or True and False"),
    ({"data__a__in": [True, 1]}, "in takes values of one type"),
    ({"data__a__in": [[1]]}, "in takes text, numbers, True or False, not list"),
    ({"data__a__between": [1]}, "between takes two bounds, not 1"),
    ({"data__a__gt": None}, "gt takes a value; for NULL use is_null"),
    ({"data__a__gt": {}}, "gt takes text, numbers, True or False, not dict"),
    ({"data__a__icontains": 5}, "icontains takes text, not int"),
    ({"data__a__regex": "("}, "regex takes a regular expression"),
    ({"data__a__is": 1}, "is takes None, True or False, not int"),
    ({"data__a__is_null": 1}, "is_null takes True or False, not int"),
    ({"data__has_key": 1}, "^data__has_key: has_key takes a key, not int"),
    ({"data__contains": None}, "contains takes a part of a document; for null use is_null"),
    ({"data__contains": {1: 2}}, "contains takes an object with text keys"),
    ({"data__contains": {"a": {1, 2}}}, "for JSON, not set"),
    ({"inside__data__a": b"x"}, "^inside__data__a: eq takes text, .* not bytes"),
]


@pytest.mark.parametrize(("filters", "message"), BAD_JSON, ids=[next(iter(f)) for f, _ in BAD_JSON])
def test_bad_json_filter(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFilter, match=message):
        build_filters(Box, filters)


# -- dates ----------------------------------------------------------------------


def moment(name: str, at: datetime) -> Moment:
    plain = at.replace(tzinfo=None)
    return Moment(name=name, aware=at, plain_aware=at, naive=plain, day=at.date())


DATES: list[tuple[str, Any, set[str]]] = [
    ("year", 2026, {"eve", "leap"}),
    ("year__gte", 2026, {"eve", "leap", "new"}),
    ("year__in", [2024, 2027], {"new"}),
    ("year__between", (2020, 2026), {"eve", "leap"}),
    ("year__ne", 2026, {"new"}),
    ("year__is_null", True, {"never"}),
    ("year__is", None, {"never"}),
    ("quarter", 4, {"eve"}),
    ("quarter", 1, {"leap", "new"}),
    ("month", 12, {"eve"}),
    ("month__lt", 3, {"leap", "new"}),
    ("day", 28, {"leap"}),
    ("day__gt", 27, {"eve", "leap"}),
    ("date", date(2027, 1, 1), {"new"}),
    ("date__lte", date(2026, 12, 31), {"eve", "leap"}),
    ("date__in", [date(2026, 2, 28)], {"leap"}),
    ("hour", 23, {"eve"}),
    ("hour__lt", 12, {"new", "leap"}),
    ("minute", 59, {"eve"}),
    ("second", 59, {"eve"}),  # with 0.9 seconds: not rounded
    ("second__ne", 59, {"leap", "new"}),
]


async def test_date_parts(own: Database) -> None:
    """In UTC, whatever the session's time zone is; on PostgreSQL one that is not."""
    eve = datetime(2026, 12, 31, 23, 59, 59, 900000, tzinfo=UTC)
    new = datetime(2027, 1, 1, 0, 0, 0, tzinfo=UTC)
    leap = datetime(2026, 2, 28, 3, 4, 5, tzinfo=UTC)
    names = [moment("eve", eve), moment("new", new), moment("leap", leap), Moment(name="never")]
    if own.engine.dialect.name == "mysql":  # DATETIME without a fraction rounds
        names[0].naive = names[0].plain_aware = eve.replace(microsecond=0)
    await add(own, *names)
    for field in ("aware", "plain_aware", "naive", "day"):
        for suffix, value, expected in DATES:
            name = f"{field}__{suffix}"
            if field == "day" and suffix.split("__")[0] in {"hour", "minute", "second"}:
                message = (
                    f"^{name}: {suffix.split('__')[0]} takes a datetime column, not one of date"
                )
                with pytest.raises(InvalidFilter, match=message):
                    build_filters(Moment, {name: value})
                continue
            conditions = build_filters(Moment, {name: value})
            async with own.read_session() as session:
                if own.engine.dialect.name == "postgresql":
                    connection = await session.connection()
                    await connection.exec_driver_sql("SET LOCAL TIME ZONE 'Pacific/Auckland'")
                rows = (await session.exec(select(Moment.name).where(*conditions))).all()
            assert sorted(rows) == sorted(expected), name
    assert await found(own, Moment, or_(aware__year=2027, day__month=2)) == ["leap", "new"]
    assert {suffix.split("__")[0] for suffix, _, _ in DATES} == {*DATE_PARTS}


async def test_a_value_with_another_offset(own: Database) -> None:
    """2027 in Auckland, and 2026 in UTC."""
    offset = timezone(timedelta(hours=13))
    await add(own, moment("auckland", datetime(2027, 1, 1, 1, tzinfo=offset).astimezone(UTC)))
    assert await found(own, Moment, aware__year=2026, aware__hour=12) == ["auckland"]
    assert await found(own, Moment, aware__date=date(2026, 12, 31)) == ["auckland"]


# -- soft deletes ---------------------------------------------------------------


async def test_relations_without_their_deleted_rows(own: Database) -> None:
    chess, golf = Club(name="chess"), Club(name="golf", deleted_at=NOON)
    ann = Person(name="ann", clubs=[chess])
    bob = Person(name="bob", clubs=[golf], boss=ann)
    cyd = Person(name="cyd", clubs=[chess, golf], boss=bob, deleted_at=NOON)
    dan = Person(name="dan", boss=cyd)
    await add(own, ann, bob, cyd, dan, Room(name="hall", club=chess), Room(name="hut", club=golf))

    cases: list[tuple[type[SQLModel], Filter | dict[str, Any], list[str], list[str]]] = [
        # name = ..., without deleted rows of relations, and with them
        (Room, {"club__name__in": ["chess", "golf"]}, ["hall"], ["hall", "hut"]),
        (Room, {"club__is_null": True}, ["hut"], []),
        (Room, {"club__is_null": False}, ["hall"], ["hall", "hut"]),
        (Room, {"club__people__name": "cyd"}, [], ["hall", "hut"]),
        (Room, {"club__people__name": "bob"}, [], ["hut"]),
        (Room, {"club__people__is_null": False}, ["hall"], ["hall", "hut"]),
        (Room, not_(club__name="golf"), ["hall", "hut"], ["hall"]),
        (Room, or_(club__name="golf", name="hall"), ["hall"], ["hall", "hut"]),
        # The rows themselves are the service's: both are there.
        (Person, {"clubs__name": "golf"}, [], ["bob", "cyd"]),
        (Person, {"clubs__is_null": True}, ["bob", "dan"], ["dan"]),
        # back to the same table
        (Person, {"boss__name": "cyd"}, [], ["dan"]),
        (Person, {"boss__is_null": True}, ["ann", "dan"], ["ann"]),
        (Person, {"boss__boss__name": "bob"}, [], ["dan"]),
        (Person, {"staff__name": "cyd"}, [], ["bob"]),
        (Person, {"staff__is_null": True}, ["bob", "dan"], ["dan"]),
        (Person, {"clubs__people__name": "ann"}, ["ann", "cyd"], ["ann", "cyd"]),
    ]
    for model, what, there, both in cases:
        where, named = ([what], {}) if isinstance(what, Filter) else ([], what)
        assert await rows_of(own, model, build_filters(model, named, where)) == there, what
        hidden_too = build_filters(model, named, where, deleted=True)
        assert await rows_of(own, model, hidden_too) == both, what


# -- what only PostgreSQL has ---------------------------------------------------


@pytest.mark.only("postgresql")
async def test_arrays(own: Database) -> None:
    one, two = UUID(int=1), UUID(int=2)
    await add(
        own,
        Note(name="ab", words=["a", "b"], numbers=[1, 2], ids=[one]),
        Note(name="b", words=["b"], numbers=[2, 2], ids=[one, two]),
        Note(name="empty", words=[], numbers=[], ids=[]),
        Note(name="null"),
    )
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"words__contains": ["a"]}, ["ab"]),
        ({"words__contains": ["b", "a"]}, ["ab"]),
        ({"words__contains": []}, ["ab", "b", "empty"]),
        ({"words__contained_by": ["b", "c"]}, ["b", "empty"]),
        ({"words__overlap": ["a", "c"]}, ["ab"]),
        ({"words__overlap": ("b",)}, ["ab", "b"]),
        ({"words__overlap": []}, []),
        ({"numbers__overlap": [1, 7]}, ["ab"]),
        ({"numbers__contains": {2}}, ["ab", "b"]),
        ({"ids__contains": [two]}, ["b"]),
        ({"words": ["a", "b"]}, ["ab"]),
        ({"words__ne": ["a", "b"]}, ["b", "empty"]),
        ({"words__is_null": True}, ["null"]),
    ]
    for filters, expected in cases:
        assert await found(own, Note, **filters) == expected, filters
    assert await found(own, Note, not_(words__overlap=["a"])) == ["b", "empty"]


BAD_ARRAY: list[tuple[dict[str, Any], str]] = [
    ({"words__contains": "a"}, "^words__contains: contains takes a list, not str"),
    ({"words__overlap": [None]}, "without None"),
    ({"words__overlap": [1]}, "^words__overlap: overlap takes str, not int"),
    ({"numbers__contained_by": ["1"]}, "contained_by takes int, not str"),
    ({"words__icontains": "a"}, "Note has no operator 'icontains'; did you mean 'contains'"),
    ({"words__has_key": "a"}, "Note has no operator 'has_key'"),
    ({"words__year": 1}, "year takes a date or datetime column, not one of"),
]


@pytest.mark.parametrize(("filters", "message"), BAD_ARRAY)
def test_bad_array_filter(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFilter, match=message):
        build_filters(Note, filters)


@pytest.mark.only("postgresql")
async def test_match(own: Database) -> None:
    cats, dogs = "The quick cats", "A dog, and no other animal: 50% off"
    await add(own, Note(name=cats), Note(name=dogs))
    for field in ("name", "searched"):
        assert await found(own, Note, **{f"{field}__match": "dog -cat"}) == [dogs]
        assert await found(own, Note, **{f"{field}__match": '"quick cats" OR dog'}) == [dogs, cats]
        assert await found(own, Note, **{f"{field}__match": "' & | ! ((("}) == []
        assert await found(own, Note, not_(**{f"{field}__match": "dog"})) == [cats]
    assert await found(own, Note, searched__match="cat") == [cats]  # stemmed in English
    await add(own, Box(name="json", data={"a": "one cat"}))
    assert await found(own, Box, data__a__match="cat") == ["json"]


@pytest.mark.only("sqlite", "mysql")
async def test_operators_that_a_database_lacks(own: Database, driver: str) -> None:
    database = "mariadb" if driver.startswith("mysql") else "sqlite"
    cases: list[tuple[type[SQLModel], dict[str, Any], str]] = [
        (Box, {"name__match": "x"}, "match"),
        (Box, {"inside__data__a__match": "x"}, "match"),
        (Note, {"searched__match": "x"}, "match"),
        (Note, {"words__contains": ["x"]}, "contains"),
        (Note, {"words__contained_by": ["x"]}, "contained_by"),
        (Note, {"words__overlap": ["x"]}, "overlap"),
    ]
    for model, filters, name in cases:
        message = f"^{name} is not available on {database}; it is on postgresql$"
        async with own.read_session() as session:
            with pytest.raises(InvalidFilter, match=message):
                await session.exec(select(model).where(*build_filters(model, {}, [or_(**filters)])))
            # The session is usable.
            assert (await session.exec(select(Box))).all() == []


@pytest.mark.only("postgresql")
async def test_indexes_are_used(own: Database) -> None:
    """GIN serves containment and keys of jsonb, and arrays; B-trees serve plain columns."""
    indexes: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        'CREATE INDEX i1 ON box USING gin ("binary")': [
            (Box, {"binary__contains": {"a": 1}}),
            (Box, {"binary__has_key": "a"}),
        ],
        "CREATE INDEX i2 ON note USING gin (words)": [
            (Note, {"words__contains": ["a"]}),
            (Note, {"words__overlap": ["a"]}),
        ],
        "CREATE INDEX i3 ON note USING gin (searched)": [(Note, {"searched__match": "a"})],
        "CREATE INDEX i4 ON moment (aware)": [(Moment, {"aware__gte": NOON})],
        "CREATE INDEX i5 ON moment (lower(name))": [(Moment, {"name__iexact": "X"})],
    }

    def explain(_conn: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> Any:
        return (f"EXPLAIN {sql}" if sql.startswith("SELECT") else sql), parameters

    async with own.session() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        event.listen(own.engine.sync_engine, "before_cursor_execute", explain, retval=True)
        for number, (statement, cases) in enumerate(indexes.items(), 1):
            await connection.exec_driver_sql(statement)
            for model, filters in cases:
                query = select(model.id).where(*build_filters(model, filters))
                plan = " ".join(map(str, (await connection.execute(query)).scalars()))
                assert f" i{number}" in plan, (filters, plan)


def test_a_statement_can_be_printed() -> None:
    """Without an engine it reads as PostgreSQL's."""
    conditions = build_filters(Box, {"data__a__gt": 1, "name__regex": "x", "data__contains": [1]})
    sql = str(select(Box).where(*conditions))
    assert "jsonb_extract_path(CAST(box.data AS JSONB)" in sql
    assert "~" in sql
    assert "@>" in sql
