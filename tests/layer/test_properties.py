"""Properties: what must hold for any rows, filters, orders and sequences of writes.

Each test compares the service with a plain model of it in Python: lists of dicts, with
SQL's three-valued logic written out. Hypothesis makes the examples, the same ones in each
run. To search for new ones, on every driver:

    HYPOTHESIS_PROFILE=search pytest tests/layer/test_properties.py --hypothesis-seed=1

(without a seed: other examples each time). It prints how to repeat what it finds.
"""

import asyncio
import operator
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple, Optional, TypeVar, cast
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import JSON, URL, BigInteger, Double, Numeric, Table, UniqueConstraint
from sqlmodel import Field, Relationship, SQLModel, col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database, ServiceBase, Timestamp, TimestampMixin
from app.db.base import SoftDeleteMixin, VersionMixin
from app.db.errors import NotFound, ServiceError, StaleData, UniqueViolation
from app.db.filters import Filter, and_, build_filters, not_, or_
from tests.databases import DRIVERS
from tests.mdtest.plugin import wanted

SEARCH = os.environ.get("HYPOTHESIS_PROFILE") == "search"
T = TypeVar("T")
Row = dict[str, Any]


def examples(number: int) -> settings:
    return settings(
        max_examples=number * 10 if SEARCH else number,
        stateful_step_count=50 if SEARCH else 25,
        derandomize=not SEARCH,
        database=None,
        deadline=None,  # a database may take its time
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        print_blob=SEARCH,
    )


# -- tables ----------------------------------------------------------------------


class PropCrate(SoftDeleteMixin, SQLModel, table=True):
    """In another crate or not. Relations do not lead to deleted ones."""

    id: int = Field(primary_key=True)
    label: str | None = Field(default=None, max_length=10)
    size: int = 0
    outer_id: int | None = Field(default=None, foreign_key="propcrate.id")

    outer: Optional["PropCrate"] = Relationship(
        back_populates="inner", sa_relationship_kwargs={"remote_side": "PropCrate.id"}
    )
    inner: list["PropCrate"] = Relationship(back_populates="outer")
    parcels: list["PropParcel"] = Relationship(back_populates="crate")


class PropParcel(SQLModel, table=True):
    id: int = Field(primary_key=True)
    number: int = 0
    rank: int | None = None
    name: str | None = Field(default=None, max_length=10)
    note: str | None = Field(default=None, max_length=10)
    flag: bool | None = None
    at: datetime | None = Field(default=None, sa_type=Timestamp)
    price: Decimal | None = Field(default=None, sa_type=Numeric(10, 2))
    weight: float | None = None
    crate_id: int | None = Field(default=None, foreign_key="propcrate.id")

    crate: PropCrate | None = Relationship(back_populates="parcels")


class LockerKind(StrEnum):
    STEEL = "steel"
    WOOD = "wood"


class PropLocker(TimestampMixin, VersionMixin, SQLModel, table=True):
    """Every type of column, with defaults that a partial write could bring back."""

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    title: str = Field(max_length=20)
    number: int = Field(default=7, sa_type=BigInteger)
    note: str | None = Field(default="blank", max_length=20)
    rank: int | None = None
    flag: bool | None = None
    at: datetime | None = Field(default=None, sa_type=Timestamp)
    day: date | None = None
    clock: time | None = None
    price: Decimal | None = Field(default=None, sa_type=Numeric(12, 4))
    weight: float | None = Field(default=None, sa_type=Double)
    kind: LockerKind | None = None
    token: UUID | None = Field(default_factory=uuid4)
    document: Any = Field(default=None, sa_type=JSON)
    blob: bytes | None = None


class LockerFields(SQLModel):
    number: int | None = None
    note: str | None = None
    rank: int | None = None
    flag: bool | None = None
    at: datetime | None = None
    day: date | None = None
    clock: time | None = None
    price: Decimal | None = None
    weight: float | None = None
    kind: LockerKind | None = None
    token: UUID | None = None
    document: Any = None
    blob: bytes | None = None


class LockerCreate(LockerFields):
    title: str


class LockerUpdate(LockerFields):
    title: str | None = None


class PropCard(TimestampMixin, SoftDeleteMixin, VersionMixin, SQLModel, table=True):
    """Two unique keys, so that a write that means one can meet the other."""

    __table_args__ = (UniqueConstraint("owner", "slot"),)

    id: int | None = Field(default=None, primary_key=True)
    code: str = Field(max_length=10, unique=True)
    owner: int
    slot: int
    note: str | None = Field(default="blank", max_length=20)
    points: int = 0
    serial: UUID = Field(default_factory=uuid4)


class CardCreate(SQLModel):
    code: str
    owner: int
    slot: int
    note: str | None = None
    points: int = 5  # the table's own default is 0


class CardUpdate(SQLModel):
    code: str | None = None
    owner: int | None = None
    slot: int | None = None
    note: str | None = None
    points: int | None = None
    version: int | None = None


class CrateService(ServiceBase[PropCrate, PropCrate, PropCrate]):
    pass


class ParcelService(ServiceBase[PropParcel, PropParcel, PropParcel]):
    pass


class LockerService(ServiceBase[PropLocker, LockerCreate, LockerUpdate]):
    pass


class CardService(ServiceBase[PropCard, CardCreate, CardUpdate]):
    pass


TABLES: list[Table] = [
    SQLModel.metadata.tables[f"prop{name}"] for name in ("crate", "parcel", "locker", "card")
]


def columns(model: type[SQLModel]) -> list[str]:
    return list(model.model_fields)


# -- databases -------------------------------------------------------------------


@dataclass
class World:
    """One database, its tables empty, and the event loop for it; Hypothesis has none."""

    database: str
    db: Database
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """A session whose rows do not stay."""
        async with self.db.sessions() as session:
            yield session
            await session.rollback()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One driver per database; all of them when searching."""
    databases = wanted(metafunc)
    drivers = [
        pytest.param(f"{database}-{driver}", marks=getattr(pytest.mark, database))
        for database, known in DRIVERS.items()
        if database in databases
        for driver in (known if SEARCH else known[:1])
    ]
    metafunc.parametrize("world", drivers, indirect=True, scope="module")


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, databases: Callable[[str], URL]) -> Generator[World]:
    url = databases(request.param)

    async def start() -> Database:
        db = Database(url)
        async with db.engine.begin() as connection:
            await connection.run_sync(
                lambda sync: SQLModel.metadata.create_all(sync, tables=TABLES)
            )
        return db

    with asyncio.Runner() as runner:
        db = runner.run(start())
        yield World(request.param.partition("-")[0], db, runner)
        runner.run(db.close())


async def stored(session: AsyncSession, model: type[SQLModel]) -> list[Row]:
    """The whole table, past the rows that the session has."""
    names = columns(model)
    statement = sa.select(*(getattr(model, name) for name in names))
    result = await (await session.connection()).execute(statement)
    return [dict(zip(names, row, strict=True)) for row in result]


# -- rows of the model -----------------------------------------------------------

CRATE, PARCEL = "crate", "parcel"
SERVICES: dict[str, Any] = {CRATE: CrateService, PARCEL: ParcelService}
RELATIONS = {PARCEL: {"crate": CRATE}, CRATE: {"outer": CRATE, "inner": CRATE, "parcels": PARCEL}}

NUMBERS = [0, 1, -1, 2, -7, 40]
NAMES = ["", "a", "aa", "ab", "b", "ba"]
TIMES = [
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2025, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2026, 5, 31, 12, 30, 0, 1, tzinfo=UTC),
    datetime(2024, 2, 29, 6, 0, 59, 999400, tzinfo=UTC),
    datetime(1969, 7, 20, 20, 17, 40, tzinfo=UTC),
]
PRICES = [Decimal(text) for text in ("0.00", "0.10", "0.30", "-1.25", "1000000.01")]
WEIGHTS = [0.0, 0.5, -1.5, 2.0**-20]  # FLOAT has 24 bits on MySQL


# Strategies are made once: each new one is checked when it is first drawn from.


@cache
def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@cache  # by equality: do not mix 1 and True
def one_of(*choices: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices)


def up_to(number: int) -> st.SearchStrategy[int]:
    return one_of(*range(number + 1))


NOTES = st.text("aA%_\\/", max_size=2)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "number": one_of(*NUMBERS),
    "rank": one_of(*NUMBERS),
    "name": one_of(*NAMES),
    "note": NOTES,
    "flag": st.booleans(),
    "at": one_of(*TIMES),
    "price": one_of(*PRICES),
    "weight": one_of(*WEIGHTS),
    "label": one_of(*NAMES),
    "size": one_of(*NUMBERS),
}
KINDS = {
    "number": int, "rank": int, "name": str, "note": str, "flag": bool, "at": datetime,
    "price": Decimal, "weight": float, "label": str, "size": int,
}  # fmt: skip
FIELDS = {
    PARCEL: ["number", "rank", "name", "note", "flag", "at", "price", "weight"],
    CRATE: ["label", "size"],
}
REQUIRED = {"number", "size"}


@dataclass
class Store:
    """The rows of both tables, by id."""

    crate: dict[int, Row] = field(default_factory=dict[int, Row])
    parcel: dict[int, Row] = field(default_factory=dict[int, Row])

    def rows(self, table: str, deleted: bool) -> list[Row]:
        rows: dict[int, Row] = getattr(self, table)
        return [row for row in rows.values() if deleted or row.get("deleted_at") is None]

    def related(self, table: str, row: Row, relation: str, deleted: bool) -> list[Row]:
        """The rows that a relation leads to."""
        there = self.rows(RELATIONS[table][relation], deleted)
        match relation:
            case "crate":
                return [each for each in there if each["id"] == row["crate_id"]]
            case "outer":
                return [each for each in there if each["id"] == row["outer_id"]]
            case "inner":
                return [each for each in there if each["outer_id"] == row["id"]]
            case _:
                return [each for each in there if each["crate_id"] == row["id"]]

    async def save(self, session: AsyncSession) -> None:
        connection = await session.connection()
        for table, model in ((CRATE, PropCrate), (PARCEL, PropParcel)):
            for row in getattr(self, table).values():  # one by one: a crate needs its outer one
                await connection.execute(sa.insert(model), row)


@st.composite
def stores(draw: st.DrawFn, parcels: int) -> Store:
    def fields(table: str) -> Row:
        return {
            name: draw(VALUES[name] if name in REQUIRED else maybe(VALUES[name]))
            for name in FIELDS[table]
        }

    store = Store()
    for number in range(1, draw(one_of(0, 2, 3)) + 1):
        outer = draw(one_of(None, *range(1, number + 1)))  # also in itself
        gone = draw(one_of(None, TIMES[0]))
        store.crate[number] = {
            "id": number, **fields(CRATE), "outer_id": outer, "deleted_at": gone,
        }  # fmt: skip
    for number in range(1, draw(one_of(0, *range(parcels // 2, parcels + 1))) + 1):
        crate = draw(one_of(None, *store.crate))
        store.parcel[number] = {"id": number, **fields(PARCEL), "crate_id": crate}
    return store


# -- filters of the model ----------------------------------------------------------


class Case(NamedTuple):
    """Whether a database disregards the case of text, in `=` and in LIKE."""

    equal: bool
    like: bool


CASES = {
    "sqlite": Case(equal=False, like=True),
    "postgresql": Case(equal=False, like=False),
    "mysql": Case(equal=True, like=True),
}


@dataclass(frozen=True)
class Leaf:
    """A filter by name. Without a column it asks for the last relation."""

    hops: tuple[str, ...]
    column: str | None
    part: str | None
    operator: str
    value: Any
    spelling: str  # keyword, or a SQLAlchemy condition

    @property
    def key(self) -> str:
        last = "" if self.operator == "eq" else self.operator
        return "__".join(filter(None, (*self.hops, self.column, self.part, last)))


@dataclass(frozen=True)
class Joined:
    connective: str
    parts: "tuple[Tree, ...]"
    spelling: str  # functions, or operators


Tree = Leaf | Joined

ORDERED = ["gt", "gte", "lt", "lte", "between"]
ANY = ["eq", "ne", "in", "not_in", "is_null", "is", "is_not"]
PATTERNS = ["like", "not_like", "ilike", "not_ilike"]
TEXT = [
    "contains", "icontains", "startswith", "istartswith", "endswith", "iendswith", "iexact",
]  # fmt: skip
REGEXES = ["^a", "b$", "^$", "[ab]+", "a|_", "%", r"\\", "/", "^.b?$", "A"]
PARTS: dict[str, Callable[[datetime], Any]] = {
    "year": lambda at: at.year,
    "quarter": lambda at: (at.month + 2) // 3,
    "month": lambda at: at.month,
    "day": lambda at: at.day,
    "hour": lambda at: at.hour,
    "minute": lambda at: at.minute,
    "second": lambda at: at.second,
    "date": lambda at: at.date(),
}


@st.composite
def leaves(draw: st.DrawFn, table: str) -> Leaf:
    hops: list[str] = []
    for _ in range(draw(one_of(0, 0, 1, 2))):
        hops.append(draw(one_of(*RELATIONS[table])))
        table = RELATIONS[table][hops[-1]]
    spelling = draw(one_of("keyword", "condition"))
    if hops and draw(up_to(4)) == 0:
        return Leaf(tuple(hops), None, None, "is_null", draw(st.booleans()), spelling)
    name = draw(one_of(*FIELDS[table]))
    part = draw(one_of(None, None, *PARTS)) if KINDS[name] is datetime else None
    how = draw(operators_for(name))
    return Leaf(tuple(hops), name, part, how, draw(values_for(name, part, how)), spelling)


@cache
def operators_for(name: str) -> st.SearchStrategy[str]:
    return one_of(*operators_of(name))


def operators_of(name: str) -> list[str]:
    known = [*ANY]
    if KINDS[name] is str:
        known += [*TEXT, *PATTERNS, "regex", "iregex"]
    if KINDS[name] is not bool and name != "note":  # where % sorts is the collation's affair
        known += ORDERED
    return known


@cache
def values_for(name: str, part: str | None, how: str) -> st.SearchStrategy[Any]:
    """The values that an operator takes."""
    if how == "is_null":
        return st.booleans()
    if how in {"is", "is_not"}:
        return maybe(st.booleans()) if KINDS[name] is bool else st.none()
    if how in PATTERNS:
        return st.text("aA%_/", max_size=3)  # a backslash escapes on some databases only
    if how in {"regex", "iregex"}:
        return one_of(*REGEXES)
    values = one_of(*(PARTS[part](at) for at in TIMES)) if part else VALUES[name]
    if how in TEXT:
        values |= NOTES
    if KINDS[name] in {Decimal, float}:
        values |= one_of(0, 1, -2, 0.5)
    if KINDS[name] is datetime and part is None:  # the same moments, elsewhere
        india = timezone(timedelta(hours=5, minutes=30))
        values |= st.sampled_from([at.astimezone(india) for at in TIMES])
    if how in {"in", "not_in"}:
        return st.lists(values, max_size=3)
    if how == "between":
        return st.tuples(values, values)
    return maybe(values) if how in {"eq", "ne"} else values


@cache
def trees(table: str) -> st.SearchStrategy[Tree]:
    def join(parts: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.builds(
            Joined,
            one_of("and", "or", "not"),
            st.lists(parts, min_size=1, max_size=3).map(tuple),
            one_of("functions", "operators"),
        )

    return st.recursive(leaves(table), join, max_leaves=6)


def as_filter(table: str, tree: Tree, deleted: bool) -> Filter:
    """The tree as a caller would write it."""
    if isinstance(tree, Leaf):
        named = {tree.key: tree.value}
        if tree.spelling == "keyword":
            return and_(**named)
        return and_(*build_filters(SERVICES[table].model, named, deleted=deleted))
    if tree.spelling == "operators":
        joined, *rest = [as_filter(table, part, deleted) for part in tree.parts]
        for part in rest:
            joined = joined | part if tree.connective == "or" else joined & part
        return ~joined if tree.connective == "not" else joined
    keywords = {
        part.key: part.value
        for part in tree.parts
        if isinstance(part, Leaf) and part.spelling == "keyword"
    }
    others = [  # among them a keyword that stands there twice
        as_filter(table, part, deleted)
        for part in tree.parts
        if not (isinstance(part, Leaf) and keywords.get(part.key, part) is part.value)
    ]
    return {"and": and_, "or": or_, "not": not_}[tree.connective](*others, **keywords)


@dataclass
class Judge:
    """Decides in Python what a database should answer; None for SQL's unknown."""

    store: Store
    case: Case
    deleted: bool

    def chosen(self, table: str, trees: Iterable[Tree]) -> list[Row]:
        rows = self.store.rows(table, self.deleted)
        return [row for row in rows if all(self.holds(table, row, tree) for tree in trees)]

    def holds(self, table: str, row: Row, tree: Tree) -> bool | None:
        if isinstance(tree, Leaf):
            return self._leaf(table, row, tree, tree.hops)
        answers = [self.holds(table, row, part) for part in tree.parts]
        if tree.connective == "or":
            return _negated(_both([_negated(answer) for answer in answers]))
        return _negated(_both(answers)) if tree.connective == "not" else _both(answers)

    def _leaf(self, table: str, row: Row, leaf: Leaf, hops: tuple[str, ...]) -> bool | None:
        if hops:
            there = self.store.related(table, row, hops[0], self.deleted)
            if len(hops) == 1 and leaf.column is None:
                return bool(there) is not leaf.value
            table = RELATIONS[table][hops[0]]
            # EXISTS: never unknown.
            return any(self._leaf(table, each, leaf, hops[1:]) is True for each in there)
        value = row[cast(str, leaf.column)]
        if leaf.part is not None and value is not None:
            value = PARTS[leaf.part](value)
        return self._compare(leaf.operator, value, leaf.value)

    def _compare(self, how: str, value: Any, wanted: Any) -> bool | None:
        if how in {"is", "is_not"} or (how in {"eq", "ne"} and wanted is None):
            return (value is wanted) is (how in {"is", "eq"})
        if how == "is_null":
            return (value is None) is wanted
        if how in {"in", "not_in"} and not wanted:  # nothing to compare with
            return how == "not_in"
        if value is None:
            return None
        if isinstance(value, str):
            return self._text(how, value, wanted)
        return COMPARE[how](value, wanted)

    def _text(self, how: str, value: str, wanted: Any) -> bool:
        """The same for text, of which case may not count."""
        if how in {"regex", "iregex"}:
            return bool(re.search(wanted, value, re.IGNORECASE if how == "iregex" else 0))
        like = how in {*PATTERNS, *TEXT}
        always = how in {"ilike", "not_ilike", "iexact"} or how in {
            "icontains",
            "istartswith",
            "iendswith",
        }
        if always or (self.case.like if like else self.case.equal):
            value = value.lower()
            wanted = (
                wanted.lower() if isinstance(wanted, str) else [each.lower() for each in wanted]
            )
        return COMPARE[how](value, wanted)


def _both(answers: list[bool | None]) -> bool | None:
    if False in answers:
        return False
    return None if None in answers else True


def _negated(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _like(value: str, pattern: str) -> bool:
    parts = {"%": ".*", "_": "."}
    expression = "".join(parts.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch(expression, value, re.DOTALL) is not None


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "iexact": operator.eq,
    "in": lambda value, members: value in members,
    "not_in": lambda value, members: value not in members,
    "between": lambda value, bounds: bounds[0] <= value <= bounds[1],
    **dict.fromkeys(["contains", "icontains"], lambda value, text: text in value),
    **dict.fromkeys(["startswith", "istartswith"], str.startswith),
    **dict.fromkeys(["endswith", "iendswith"], str.endswith),
    **dict.fromkeys(["like", "ilike"], _like),
    **dict.fromkeys(["not_like", "not_ilike"], lambda value, text: not _like(value, text)),
}


def ids(rows: Iterable[Any]) -> list[int]:
    return [row["id"] if isinstance(row, dict) else row.id for row in rows]


def service_of(session: AsyncSession, table: str, deleted: bool) -> Any:
    service = SERVICES[table](session)
    return service.with_deleted() if deleted else service


SEARCHES = [
    st.tuples(st.just(table), st.lists(wanted, min_size=1, max_size=most))
    for table in (PARCEL, CRATE)
    for wanted, most in ((leaves(table), 1), (trees(table), 2))
]


@examples(60)
@given(
    store=stores(parcels=8),
    searches=st.lists(st.one_of(SEARCHES), min_size=6, max_size=12),
    deleted=st.booleans(),
)
def test_filters(
    world: World, store: Store, searches: list[tuple[str, list[Tree]]], deleted: bool
) -> None:
    """Any filter finds the rows that it should; `count` and `exists` agree."""
    judge = Judge(store, CASES[world.database], deleted)

    async def check() -> None:
        async with world.session() as session:
            await store.save(session)
            for number, (table, wanted) in enumerate(searches):
                service = service_of(session, table, deleted)
                where = [as_filter(table, tree, deleted) for tree in wanted]
                expected = ids(judge.chosen(table, wanted))
                assert ids(await service.list(*where)) == expected
                if number < 2:  # they have the same WHERE
                    assert await service.count(*where) == len(expected)
                    assert await service.exists(*where) is bool(expected)

    world.run(check())


# What random filters reach too seldom: each operator on each column, with many values.
POOLS: dict[str, list[Any]] = {
    "number": NUMBERS,
    "name": NAMES,
    "note": ["", "a", "A", "%", "_", "/", "\\", "a%", "_A", "a/", "aA"],
    "flag": [False, True],
    "at": TIMES,
    "price": [*PRICES, 0, -1.25],
    "weight": [*WEIGHTS, 0, Decimal("0.5")],
}


def some_values(name: str, part: str | None, how: str) -> list[Any]:
    pool = [PARTS[part](at) for at in TIMES] if part else POOLS[name]
    if how == "is_null":
        return [True, False]
    if how in {"is", "is_not"}:
        return [None, True, False] if KINDS[name] is bool else [None]
    if how in {"in", "not_in"}:
        return [[], pool[:1], pool[::-1], pool]
    if how == "between":
        return [(low, high) for low in pool[:4] for high in pool[:4]]
    if how in PATTERNS:
        return ["", "%", "_", "a%", "%a", "A_", "%/%", "__%"]
    if how in {"regex", "iregex"}:
        return REGEXES
    return [None, *pool] if how in {"eq", "ne"} else pool


def test_operators(world: World) -> None:
    """TRUE, FALSE or NULL: the answer of each operator for each row."""
    store = Store()
    for number in range(1, 13):
        row = {name: [None, *pool][number % (len(pool) + 1)] for name, pool in POOLS.items()}
        store.parcel[number] = {**row, "id": number, "number": number - 6}
    judge = Judge(store, CASES[world.database], deleted=False)

    async def check(connection: Any, name: str, part: str | None, how: str) -> None:
        found = [
            Leaf((), name, part, how, value, "keyword") for value in some_values(name, part, how)
        ]
        conditions = [build_filters(PropParcel, {leaf.key: leaf.value})[0] for leaf in found]
        columns = [condition.label(f"c{at}") for at, condition in enumerate(conditions)]
        rows = await connection.execute(sa.select(col(PropParcel.id), *columns))
        for key, *answers in rows:
            for leaf, answer in zip(found, answers, strict=True):
                expected = judge.holds(PARCEL, store.parcel[key], leaf)
                assert (None if answer is None else bool(answer)) is expected, (leaf, key)

    async def check_all() -> None:
        async with world.session() as session:
            await store.save(session)
            connection = await session.connection()
            for name, kind in KINDS.items():
                for part in (None, *PARTS) if kind is datetime else (None,):
                    for how in operators_of(name) if name in POOLS else ():
                        await check(connection, name, part, how)

    world.run(check_all())


# -- order and pages ---------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    path: tuple[str, ...]
    descending: bool
    nulls: str  # "", "__nulls_first", "__nulls_last"

    @property
    def name(self) -> str:
        return ("-" if self.descending else "") + "__".join(self.path) + self.nulls

    @property
    def nulls_first(self) -> bool:
        return self.nulls == "__nulls_first" or (not self.nulls and self.descending)


@st.composite
def sort_keys(draw: st.DrawFn) -> Key:
    path = ["crate", "outer", "outer"][: draw(one_of(0, 0, 1, 2, 3))]
    fields = FIELDS[CRATE if path else PARCEL]
    # Where % and _ sort is the collation's affair.
    name = draw(one_of("id", *(each for each in fields if each != "note")))
    return Key(
        (*path, name), draw(st.booleans()), draw(one_of("", "__nulls_first", "__nulls_last"))
    )


def in_order(store: Store, rows: list[Row], keys: list[Key], deleted: bool) -> list[Row]:
    def value(row: Row, path: tuple[str, ...]) -> Any:
        table = PARCEL
        for hop in path[:-1]:
            found = store.related(table, row, hop, deleted)
            if not found:
                return None
            (row,), table = found, CRATE
        return row[path[-1]]

    down = bool(keys) and keys[-1].descending  # the primary key goes the way of the last key
    rows = sorted(rows, key=lambda row: row["id"], reverse=down)
    for key in reversed(keys):  # sorts are stable: the first key comes last
        values = {row["id"]: value(row, key.path) for row in rows}
        null = [row for row in rows if values[row["id"]] is None]
        rest = [row for row in rows if values[row["id"]] is not None]
        rest.sort(key=lambda row, of=values: of[row["id"]], reverse=key.descending)  # type: ignore[misc]
        rows = null + rest if key.nulls_first else rest + null
    return rows


@examples(40)
@given(
    store=stores(parcels=9),
    keys=st.lists(sort_keys(), max_size=3),
    where=st.lists(trees(PARCEL), max_size=1),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=8),
    deleted=st.booleans(),
)
def test_pages(
    world: World,
    store: Store,
    keys: list[Key],
    where: list[Tree],
    sizes: list[int],
    steps: list[tuple[bool, int]],
    deleted: bool,
) -> None:
    """`list` has the order of the model; pages, walks and streams are parts of it."""
    judge = Judge(store, CASES[world.database], deleted)
    expected = ids(in_order(store, judge.chosen(PARCEL, where), keys, deleted))
    order = [key.name for key in keys]

    async def check() -> None:
        async with world.session() as session:
            await store.save(session)
            filters = [as_filter(PARCEL, tree, deleted) for tree in where]
            service = service_of(session, PARCEL, deleted)
            assert ids(await service.list(*filters, order_by=order)) == expected
            await by_offset(service, filters)
            await by_cursor(service, filters)
            batches = [
                ids(batch)
                async for batch in service.stream(*filters, order_by=order, batch_size=sizes[0])
            ]
            assert batches == [
                expected[at : at + sizes[0]] for at in range(0, len(expected), sizes[0])
            ]

    async def by_offset(service: Any, filters: list[Filter]) -> None:
        total, size = len(expected), sizes[0]
        for offset in range(0, total + size + 1, size):  # also past the end
            rest = expected[offset:]
            for count in (True, False, sizes[-1]):
                page = await service.page(
                    *filters, order_by=order, limit=size, offset=offset, total=count
                )
                assert ids(page.items) == rest[:size]
                assert page.has_more is (len(rest) > size)
                known = None if count is False else total
                if not isinstance(count, bool):  # it counts up to there
                    known = min(total, count)
                assert page.total == known

    async def by_cursor(service: Any, filters: list[Filter]) -> None:
        """To the end, back to the start, then here and there."""
        turns = len(expected) + 1
        forth = [(False, sizes[turn % len(sizes)]) for turn in range(turns)]
        back = [(True, sizes[turn % len(sizes)]) for turn in range(turns)]
        page, start, end = None, 0, 0
        for backward, size in [(False, sizes[0]), *forth, *back, *steps]:
            cursor = None
            if page is not None:
                cursor = page.previous_cursor if backward else page.next_cursor
                if cursor is None:
                    continue
            if backward:
                start, end = max(start - size, 0), start
            else:
                start, end = end, min(end + size, len(expected))
            page = await service.cursor_page(*filters, order_by=order, limit=size, cursor=cursor)
            assert ids(page.items) == expected[start:end]
            assert (page.previous_cursor is None) is (start == 0)
            assert (page.next_cursor is None) is (end == len(expected))

    world.run(check())


# -- partial updates ---------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ANY_TEXT, inner, max_size=2),
    max_leaves=4,
)
LOCKER: dict[str, st.SearchStrategy[Any]] = {
    "title": ANY_TEXT,
    "number": st.integers(-(2**63), 2**63 - 1),
    "note": ANY_TEXT,
    "rank": st.integers(-(2**31), 2**31 - 1),
    "flag": st.booleans(),
    "at": st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001
    "day": st.dates(date(1000, 1, 1)),
    "clock": st.times().map(lambda at: at.replace(microsecond=0)),  # MySQL's TIME has none
    "price": st.decimals(-(10**8) + 1, 10**8 - 1, places=4),
    "weight": st.floats(allow_nan=False, allow_infinity=False),
    "kind": st.sampled_from(LockerKind),
    "token": st.uuids(version=4),  # MariaDB refuses variants that RFC 9562 has not
    "document": DOCUMENTS,
    "blob": st.binary(max_size=4),
}
FEW = st.sets(one_of(*LOCKER), max_size=4)
OWN = {"title", "number"}  # NOT NULL
KEPT_APART = {"updated_at", "version"}  # what every update changes


@st.composite
def locker_values(draw: st.DrawFn) -> Row:
    names = draw(FEW)
    return {
        name: draw(LOCKER[name] if name in OWN else maybe(LOCKER[name])) for name in sorted(names)
    }


NEW_LOCKERS = locker_values().map(lambda values: {"title": "new", **values})
LOCKER_DEFAULTS: Row = {
    **dict.fromkeys(LOCKER),
    "number": 7,
    "note": "blank",
    "version": 1,
}


def without(row: Row, names: Iterable[str]) -> Row:
    return {name: value for name, value in row.items() if name not in set(names)}


async def agree(session: AsyncSession, model: type[SQLModel]) -> dict[Any, Row]:
    """The table by primary key, after a check that the session's rows say the same."""
    table: dict[Any, Row] = {row["id"]: row for row in await stored(session, model)}
    for row in list(session.identity_map.values()):
        if isinstance(row, model):
            known = {name: row.__dict__[name] for name in columns(model) if name in row.__dict__}
            if known:  # else it will be read anew
                key: Any = sa.inspect(row).identity[0]
                assert known == {name: table[key][name] for name in known}, "stale in memory"
    return table


@examples(60)
@given(
    rows=st.lists(NEW_LOCKERS, min_size=1, max_size=4),
    many=st.booleans(),
    in_session=st.booleans(),
    changes=st.lists(
        st.tuples(st.sampled_from(["key", "row", "multi", "where"]), locker_values()), max_size=3
    ),
)
def test_partial_updates(
    world: World,
    rows: list[Row],
    many: bool,
    in_session: bool,
    changes: list[tuple[str, Row]],
) -> None:
    """A write changes the columns that were set, and no other; an explicit None is set."""

    async def check() -> None:
        async with world.session() as session:
            service = LockerService(session)
            if many:
                made = await service.create_multi(rows)
            else:
                made = [await service.create(row) for row in rows]
            model = await agree(session, PropLocker)
            for new, row in zip(made, rows, strict=True):
                written = without(model[new.id], ["id", "created_at", "updated_at"])
                # A token that was not sent is made up.
                assert written == {**LOCKER_DEFAULTS, "token": written["token"], **row}
            keys = [each.id for each in made]
            for number, (how, values) in enumerate(changes):
                if not in_session:
                    session.expunge_all()
                targets = [keys[number % len(keys)]] if how in {"key", "row"} else keys[::2]
                await change(service, how, targets, values)
                for key in targets:
                    model[key].update(values)
                found = await agree(session, PropLocker)
                assert [without(found[key], KEPT_APART) for key in keys] == [
                    without(model[key], KEPT_APART) for key in keys
                ]
                for key in targets:
                    model[key]["updated_at"] = found[key]["updated_at"]
                    model[key]["version"] = found[key]["version"]
                assert found == model  # the other rows were not touched at all

    async def change(service: LockerService, how: str, keys: list[UUID], values: Row) -> None:
        match how:
            case "key":
                row = await service.update(keys[0], values)
                assert row.model_dump(include={*values}) == values
            case "row":
                row = await service.update(await service.get(keys[0]), values)
                assert row.model_dump(include={*values}) == values
            case "multi":
                assert await service.update_multi(dict.fromkeys(keys, values)) == len(keys)
            case _:
                changed = await service.update_where(values, id__in=keys, allow_multiple=True)
                assert changed == len(keys)

    world.run(check())


# -- sequences of writes -------------------------------------------------------------

CHOICES = st.integers(0, 4)
CODES = st.sampled_from(["a", "b", "c"])
SMALL = st.integers(0, 1)
NEW_CARDS = st.fixed_dictionaries(
    {"code": CODES, "owner": SMALL, "slot": SMALL},
    optional={"note": maybe(st.sampled_from(["x", "y"])), "points": st.integers(-1, 3)},
)
CARD_CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "code": CODES,
        "slot": SMALL,
        "note": maybe(st.sampled_from(["x", "y"])),
        "points": st.integers(-1, 3),
    },
)
KEYS = st.sampled_from(["code", ("owner", "slot")])
On = str | tuple[str, ...]


def key_of(on: On, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ((on,) if isinstance(on, str) else on))


class Unsure(Exception):
    """Success and UniqueViolation are both right: it depends on the order of writing."""


class Cards:
    """What the table should hold. Methods are named and raise as those of the service."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def create(self, data: Row) -> None:
        self.rows.append(
            {
                "id": None,  # not known before the database says it, like the other two
                "serial": None,
                "created_at": None,
                "deleted_at": None,
                "version": 1,
                "note": "blank",
                "points": 5,
                **data,
            }
        )
        self.check()

    def check(self) -> None:
        for on in ("code", ("owner", "slot")):
            keys = [key_of(on, row) for row in self.rows]
            if len({*keys}) < len(keys):
                raise UniqueViolation("taken")

    def find(self, key: int, *, deleted: bool = False) -> Row:
        for row in self.rows:
            if row["id"] == key and (deleted or row["deleted_at"] is None):
                return row
        raise NotFound

    def change(self, row: Row, data: Row) -> None:
        version = data.get("version")
        if version is not None and version != row["version"]:
            raise StaleData("another version")
        row.update(without(data, ["version"]), version=row["version"] + 1)

    def upsert(self, items: list[Row], on: On) -> None:
        before = deepcopy(self.rows)
        for data in items:
            for row in self.rows:
                if key_of(on, row) == key_of(on, data):
                    self.change(row, {**data, "deleted_at": None})
                    break
            else:
                with_double = [*self.rows]
                self.rows = []
                self.create(data)
                self.rows = [*with_double, *self.rows]
        self.check()
        # A row that moves out of the way of another one: too late, in some orders.
        other = ("owner", "slot") if on == "code" else "code"
        taken = {key_of(other, row): key_of(on, row) for row in before}
        for data in items:
            if taken.get(key_of(other, data), key_of(on, data)) != key_of(on, data):
                raise Unsure

    def get_or_create(self, data: Row, on: On) -> bool:
        for row in self.rows:
            if key_of(on, row) == key_of(on, data):
                if row["deleted_at"] is not None:
                    raise UniqueViolation("deleted")
                return False
        self.create(data)
        return True

    def where(self, limit: int) -> list[Row]:
        return [row for row in self.rows if row["deleted_at"] is None and row["points"] >= limit]


DELETED = object()  # some time


class CardMachine(RuleBasedStateMachine):
    """Any sequence of writes, in one transaction with savepoints, rows kept or forgotten."""

    world: World
    keep: int  # rows that the caller still has

    def __init__(self) -> None:
        super().__init__()
        self.cards = Cards()
        self.session = self.world.db.sessions()
        self.service = CardService(self.session)
        self.held: list[PropCard] = []  # the session forgets rows that nobody holds
        self.steps: list[tuple[AbstractAsyncContextManager[Any], list[Row]]] = []
        self.world.run(self._begin())

    async def _begin(self) -> None:
        await self.session.begin()

    def teardown(self) -> None:
        async def end() -> None:
            while self.steps:
                step, _ = self.steps.pop()
                await step.__aexit__(None, None, None)
            await self.session.rollback()
            await self.session.close()
            async with self.world.db.engine.begin() as connection:
                await connection.execute(sa.delete(PropCard))

        self.world.run(end())

    def attempt(
        self, write: Callable[[], Awaitable[T]], simulate: Callable[[Cards], object]
    ) -> T | None:
        """Write in a savepoint; the model says how it must end, and with which rows."""
        before, wanted, unsure = deepcopy(self.cards.rows), None, False
        try:
            simulate(self.cards)
        except Unsure:
            unsure = True
        except ServiceError as error:
            wanted = type(error)

        async def run() -> T:
            async with self.service.transaction():
                return await write()

        result, got = None, None
        try:
            result = self.world.run(run())
        except ServiceError as error:
            got = type(error)
        if unsure and got is UniqueViolation:
            wanted = got
        assert got is wanted
        if wanted is not None:
            self.cards.rows = before
        return result

    def pick(self, choice: int) -> int:
        """The key of a card, deleted or not; for 0 of none."""
        keys = [row["id"] for row in self.cards.rows]
        return keys[choice % len(keys)] if keys and choice else -1

    def hold(self, *rows: PropCard | None) -> None:
        self.held += [row for row in rows if row is not None]
        del self.held[: len(self.held) - self.keep]

    @initialize(keep=st.sampled_from([0, 2, 9]))
    def start(self, keep: int) -> None:
        self.keep = keep

    # -- writes

    @rule(data=NEW_CARDS)
    def create(self, data: Row) -> None:
        self.hold(self.attempt(lambda: self.service.create(data), lambda cards: cards.create(data)))

    @rule(items=st.lists(NEW_CARDS, max_size=3), returning=st.booleans())
    def create_multi(self, items: list[Row], returning: bool) -> None:
        async def write() -> list[PropCard]:
            if returning:
                return await self.service.create_multi(items)
            assert await self.service.create_multi(items, returning=False) == len(items)
            return []

        def simulate(cards: Cards) -> None:
            for item in items:
                cards.create(item)

        made = self.attempt(write, simulate)
        if made:
            assert [card.code for card in made] == [item["code"] for item in items]
            self.hold(*made)

    @rule(data=NEW_CARDS, on=KEYS)
    def upsert(self, data: Row, on: On) -> None:
        row = self.attempt(
            lambda: self.service.upsert(data, on=on), lambda cards: cards.upsert([data], on)
        )
        if row is not None:
            assert row.model_dump(include={*data}) == data
        self.hold(row)

    @rule(items=st.lists(NEW_CARDS, max_size=3), on=KEYS, returning=st.booleans())
    def upsert_multi(self, items: list[Row], on: On, returning: bool) -> None:
        items = list({key_of(on, item): item for item in items}.values())  # twice is an error

        async def write() -> list[PropCard]:
            if returning:
                return await self.service.upsert_multi(items, on=on)
            assert await self.service.upsert_multi(items, on=on, returning=False) == len(items)
            return []

        made = self.attempt(write, lambda cards: cards.upsert(items, on))
        if made:
            for card, item in zip(made, items, strict=True):
                assert card.model_dump(include={*item}) == item
            self.hold(*made)

    @rule(data=NEW_CARDS, on=KEYS)
    def get_or_create(self, data: Row, on: On) -> None:
        created: list[bool] = []
        result = self.attempt(
            lambda: self.service.get_or_create(data, on=on),
            lambda cards: created.append(cards.get_or_create(data, on)),
        )
        if result is not None:
            assert result[1] is created[0]
            self.hold(result[0])

    @rule(choice=CHOICES, data=CARD_CHANGES, version=st.sampled_from([None, 0, 1]))
    def update(self, choice: int, data: Row, version: int | None) -> None:
        """By key; with the version that is stored, or one before that."""
        key = self.pick(choice)
        stale = next((row["version"] for row in self.cards.rows if row["id"] == key), 1)
        if version is not None:
            data = {**data, "version": stale - version}

        def simulate(cards: Cards) -> None:
            row = cards.find(key)
            if data.keys() - {"version"}:
                cards.change(row, data)
            elif version:
                raise StaleData("another version")
            cards.check()

        self.hold(self.attempt(lambda: self.service.update(key, data), simulate))

    @rule(choice=CHOICES, data=CARD_CHANGES)
    def update_row(self, choice: int, data: Row) -> None:
        key = self.pick(choice)

        async def write() -> PropCard:
            return await self.service.update(await self.service.get(key), data)

        def simulate(cards: Cards) -> None:
            row = cards.find(key)
            if any(row[name] != value for name, value in data.items()):
                cards.change(row, data)
            cards.check()

        self.hold(self.attempt(write, simulate))

    @rule(changes=st.dictionaries(CHOICES, CARD_CHANGES, max_size=3))
    def update_multi(self, changes: dict[int, Row]) -> None:
        """Without the fields of unique keys, whose outcome depends on the order of rows."""
        wanted = {
            self.pick(choice): {"points": 0, **without(data, ["code", "slot"])}
            for choice, data in changes.items()
        }

        def simulate(cards: Cards) -> None:
            for key, data in wanted.items():
                cards.change(cards.find(key), data)

        self.attempt(lambda: self.service.update_multi(wanted), simulate)

    @rule(limit=st.integers(-1, 4), data=CARD_CHANGES, many=st.booleans())
    def update_where(self, limit: int, data: Row, many: bool) -> None:
        data = {"points": 1, **without(data, ["code", "slot"])}

        def simulate(cards: Cards) -> None:
            rows = cards.where(limit)
            if not many:
                (rows,) = [rows] if len(rows) == 1 else [[cards.find(-1)]]
            for row in rows:
                cards.change(row, data)

        if many or len(self.cards.where(limit)) < 2:
            self.attempt(
                lambda: self.service.update_where(data, points__gte=limit, allow_multiple=many),
                simulate,
            )

    @rule(choice=CHOICES, hard=st.booleans(), by_row=st.booleans())
    def delete(self, choice: int, hard: bool, by_row: bool) -> None:
        key = self.pick(choice)

        async def write() -> None:
            service = self.service.with_deleted() if hard else self.service
            await self.service.delete(await service.get(key) if by_row else key, hard=hard)

        def simulate(cards: Cards) -> None:
            row = cards.find(key, deleted=hard)
            if hard:
                cards.rows.remove(row)
            else:
                cards.change(row, {"deleted_at": DELETED})

        self.attempt(write, simulate)

    @rule(limit=st.integers(1, 4), hard=st.booleans())
    def delete_where(self, limit: int, hard: bool) -> None:
        def simulate(cards: Cards) -> None:
            for row in cards.where(limit):
                if hard:
                    cards.rows.remove(row)
                else:
                    cards.change(row, {"deleted_at": DELETED})

        gone = len(self.cards.where(limit))
        done = self.attempt(
            lambda: self.service.delete_where(points__gte=limit, hard=hard, allow_multiple=True),
            simulate,
        )
        assert done == gone

    @rule(choice=CHOICES)
    def restore(self, choice: int) -> None:
        key = self.pick(choice)
        row = self.attempt(
            lambda: self.service.restore(key),
            lambda cards: cards.change(cards.find(key, deleted=True), {"deleted_at": None}),
        )
        self.hold(row)

    # -- transactions

    @precondition(lambda self: len(self.steps) < 2)
    @rule()
    def begin_step(self) -> None:
        step = self.service.transaction()
        self.world.run(step.__aenter__())
        self.steps.append((step, deepcopy(self.cards.rows)))

    @precondition(lambda self: self.steps)
    @rule(abandon=st.booleans())
    def end_step(self, abandon: bool) -> None:
        step, before = self.steps.pop()
        error = RuntimeError("abandoned") if abandon else None

        async def end() -> None:
            assert not await step.__aexit__(type(error) if error else None, error, None)

        try:
            self.world.run(end())
        except RuntimeError as raised:
            assert raised is error  # noqa: PT017
        if abandon:
            self.cards.rows = before

    @precondition(lambda self: not self.steps)
    @rule(commit=st.booleans())
    def end_transaction(self, commit: bool) -> None:
        async def end() -> None:
            await (self.session.commit() if commit else self.session.rollback())
            await self.session.begin()

        self.world.run(end())
        if commit:
            self.committed = deepcopy(self.cards.rows)
        else:
            self.cards.rows = deepcopy(self.committed)

    committed: list[Row] = []  # noqa: RUF012

    @rule()
    def forget(self) -> None:
        """What follows has no row in the session."""
        self.world.run(self.service.flush())
        self.session.expunge_all()
        self.held.clear()

    # -- the comparison

    @invariant()
    def same(self) -> None:
        table = self.world.run(agree(self.session, PropCard))
        by_code = {row["code"]: row for row in table.values()}
        assert {*by_code} == {row["code"] for row in self.cards.rows}
        for row in self.cards.rows:
            found = by_code[row["code"]]
            for name in ("id", "serial", "created_at"):  # made at the first sight of the row
                if row[name] is None:
                    row[name] = found[name]
            if row["deleted_at"] is DELETED and found["deleted_at"] is not None:
                row["deleted_at"] = found["deleted_at"]
            assert without(row, ["updated_at"]) == without(found, ["updated_at"])
            assert found["updated_at"] >= found["created_at"]


def test_writes(world: World) -> None:
    """After any writes the table, and the rows of the session, are what the model says."""
    machine = type("Machine", (CardMachine,), {"world": world})
    run_state_machine_as_test(machine, settings=examples(60))
