"""Many rows at once, and upserts: the same rows as one by one, on every database."""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from functools import partial
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from pydantic import NaiveDatetime, field_validator
from sqlalchemy import (
    ARRAY,
    JSON,
    URL,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Float,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    event,
    func,
    literal_column,
    text,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import registry, validates
from sqlmodel import Field, Relationship, SQLModel, col, select

from app.db import (
    NAMING_CONVENTION,
    CheckViolation,
    Database,
    ForeignKeyViolation,
    InvalidQuery,
    InvalidValue,
    NotFound,
    NotNullViolation,
    ServiceBase,
    ServiceError,
    StaleData,
    Timestamp,
    TimestampMixin,
    UniqueViolation,
)
from app.db.base import SoftDeleteMixin, VersionMixin

from .conftest import Counter

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]


class Apart(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING_CONVENTION))):
    """Tables of their own metadata: no other test creates them."""


# -- models: how rows are written -------------------------------------------------


class BulkOwner(Apart, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)

    gears: list["BulkGear"] = Relationship(back_populates="owner")


class BulkGear(TimestampMixin, Apart, table=True):
    """A key that Python makes, and unique keys of each kind."""

    __table_args__ = (
        UniqueConstraint("maker", "serial"),
        Index("ix_bulkgear_tag", "tag", unique=True),
        CheckConstraint("b >= 0", name="b_positive"),
    )

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    code: str = Field(max_length=20, unique=True)
    maker: str | None = Field(default=None, max_length=20)
    serial: int | None = None
    tag: str | None = Field(default=None, max_length=20)
    a: int | None = None
    b: int = Field(default=7, le=1000)
    c: float | None = Field(default=None, sa_type=Double)
    token: UUID = Field(default_factory=uuid4)
    note: str | None = Field(default=None, max_length=40)
    # Another name in the table, and one that the statements themselves use.
    amount: int | None = Field(default=None, sa_column=Column("c0", Integer))
    n: int | None = None
    origin: str | None = Field(
        default=None, max_length=10, sa_column_kwargs={"server_default": "here"}
    )
    level: int | None = Field(default=None, sa_column_kwargs={"server_default": "1"})
    revision: int | None = Field(
        default=None,
        sa_column_kwargs={"server_default": "1", "onupdate": text("bulkgear.revision + 1")},
    )
    owner_id: int | None = Field(default=None, foreign_key="bulkowner.id")

    owner: BulkOwner | None = Relationship(back_populates="gears")


class GearCreate(SQLModel):
    code: str
    maker: str | None = None
    serial: int | None = None
    tag: str | None = None
    a: int | None = None
    b: int = 8  # the model's own default is 7
    c: float | None = None
    note: str | None = "new"
    amount: int | None = None
    n: int | None = None
    origin: str | None = None
    level: int | None = None
    owner_id: int | None = None


class GearPut(GearCreate):
    """With the key."""

    id: UUID


class GearUpdate(SQLModel):
    code: str | None = None
    maker: str | None = None
    serial: int | None = None
    tag: str | None = None
    a: int | None = None
    b: int | None = None
    c: float | None = None
    note: str | None = None
    amount: int | None = None
    n: int | None = None
    owner_id: int | None = None


class Gears(ServiceBase[BulkGear, GearCreate, GearUpdate]):
    pass


class BulkStep(Apart, table=True):
    """A key that the database counts."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)


class StepCreate(SQLModel):
    id: int | None = None
    name: str


class Steps(ServiceBase[BulkStep, StepCreate, StepCreate]):
    pass


class BulkCell(Apart, table=True):
    """A composite key."""

    x: int = Field(primary_key=True)
    y: date = Field(primary_key=True)
    value: str | None = Field(default=None, max_length=10)


class CellCreate(SQLModel):
    x: int
    y: date
    value: str | None = None


class CellUpdate(SQLModel):
    value: str | None = None


class Cells(ServiceBase[BulkCell, CellCreate, CellUpdate]):
    pass


class BulkFilled(Apart, table=True):
    """Defaults of the column: a value, a function, SQL."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20, unique=True)
    value: int | None = Field(default=None, sa_column_kwargs={"default": 5})
    made: int | None = Field(default=None, sa_column_kwargs={"default": lambda: 6})
    low: str | None = Field(
        default=None, max_length=10, sa_column_kwargs={"default": func.lower("ABC")}
    )


class FilledCreate(SQLModel):
    name: str
    value: int | None = None
    made: int | None = None
    low: str | None = None


class Filled(ServiceBase[BulkFilled, FilledCreate, FilledCreate]):
    pass


class BulkDoc(VersionMixin, TimestampMixin, Apart, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20, unique=True)
    body: str | None = Field(default=None, max_length=20)


class DocWrite(SQLModel):
    name: str
    body: str | None = None


class DocUpdate(SQLModel):
    body: str | None = None
    version: int | None = None


class Docs(ServiceBase[BulkDoc, DocWrite, DocUpdate]):
    pass


class BulkNote(SoftDeleteMixin, Apart, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20, unique=True)
    body: str | None = Field(default=None, max_length=20)


class NoteUpdate(SQLModel):
    body: str | None = None


class Notes(ServiceBase[BulkNote, DocWrite, NoteUpdate]):
    pass


class BulkHooked(Apart, table=True):
    """Every row is wanted by somebody: listeners and a validator."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20, unique=True)
    body: str | None = Field(default=None, max_length=20)
    seen: str | None = Field(default=None, max_length=20)

    @validates("body")
    def _body(self, _name: str, value: str | None) -> str | None:
        # To refuse is all that it can do: SQLModel overwrites what it returns.
        if value == "refused":
            raise InvalidValue("by the model's own validator")
        return value


@event.listens_for(BulkHooked, "before_insert")
@event.listens_for(BulkHooked, "before_update")
def _see(_mapper: Any, _connection: Any, row: BulkHooked) -> None:
    row.seen = row.body


class Hooked(ServiceBase[BulkHooked, DocWrite, NoteUpdate]):
    pass


class BulkStrict(Apart, table=True):
    """Rules that the payload does not have."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=5, unique=True)
    size: int = Field(default=3, ge=1)
    mail: str | None = Field(default=None, max_length=20)

    @field_validator("mail")
    @classmethod
    def _mail(cls, value: str | None) -> str | None:
        if value is not None and "@" not in value:
            raise ValueError("no @ in it")
        return value and value.lower()


class StrictCreate(SQLModel):
    name: str
    size: int | None = None  # None says nothing: the model's default counts
    mail: str | None = None


class Stricts(ServiceBase[BulkStrict, StrictCreate, StrictCreate]):
    pass


class RawStricts(ServiceBase[BulkStrict, BulkStrict, BulkStrict]):
    """The model itself as payload: SQLModel does not validate table classes."""


class BulkSeat(Apart, table=True):
    """Unique among the rows that are open only. MySQL has no such index."""

    __table_args__ = (
        Index(
            "ix_bulkseat_open",
            "name",
            unique=True,
            postgresql_where=text("is_open"),
            sqlite_where=text("is_open"),
        ),
    )

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)
    is_open: bool = True
    price: int = 0


class SeatCreate(SQLModel):
    name: str
    is_open: bool = True
    price: int = 0


class Seats(ServiceBase[BulkSeat, SeatCreate, SeatCreate]):
    pass


class BulkServed(Apart, table=True):
    """A key that PostgreSQL makes, in no order."""

    id: UUID | None = Field(
        default=None,
        primary_key=True,
        sa_column_kwargs={"server_default": text("gen_random_uuid()")},
    )
    name: str = Field(max_length=20)


class Served(ServiceBase[BulkServed, DocWrite, DocWrite]):
    pass


# -- models: what is written ------------------------------------------------------


class Role(StrEnum):
    ADMIN = "admin"
    USER = "user"


class Size(Enum):
    SMALL = (1,)
    LARGE = (2,)


class Words(TypeDecorator[Any]):
    """A type of a project's own: words, in one text."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:  # noqa: ARG002
        return None if value is None else "|".join(value)

    def process_result_value(self, value: Any, dialect: Any) -> list[str] | None:  # noqa: ARG002
        return None if value is None else value.split("|")


def _stored_names(roles: type[Enum]) -> list[str]:
    return [role.value for role in roles]


RoleType = SqlEnum(
    Role,
    values_callable=_stored_names,
    native_enum=False,
    length=30,
    validate_strings=True,
)
LABELS = ("a", "50%", "x :y", "it's", "back\\slash", "É")
LongText = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
Json = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


class EveryBase(SQLModel):
    """Every type that JSON carries; `slot` is the key of the upserts."""

    slot: int | None = Field(default=None, unique=True)
    flag: bool | None = None
    small: int | None = Field(default=None, sa_type=SmallInteger)
    number: int | None = None
    big: int | None = Field(default=None, sa_type=BigInteger)
    single: float | None = Field(default=None, sa_type=Float)
    ratio: float | None = Field(default=None, sa_type=Double)
    price: Decimal | None = Field(default=None, sa_type=Numeric(12, 4))
    wide: Decimal | None = Field(default=None, sa_type=Numeric(38, 10))
    moment: datetime | None = Field(default=None, sa_type=Timestamp)
    wall: NaiveDatetime | None = Field(
        default=None,
        sa_type=DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"),
    )
    day: date | None = None
    hour: time | None = Field(
        default=None, sa_type=Time().with_variant(mysql.TIME(fsp=6), "mysql", "mariadb")
    )
    token: UUID | None = None
    hexed: UUID | None = Field(default=None, sa_type=Uuid(native_uuid=False))
    size: Size | None = None
    role: Role | None = Field(default=None, sa_type=RoleType)
    label: str | None = Field(
        default=None, sa_type=SqlEnum(*LABELS, name="bulklabel", validate_strings=True)
    )
    name: str | None = Field(default=None, max_length=200)
    short: str | None = Field(default=None, sa_type=String(5))
    body: str | None = Field(default=None, sa_type=LongText)
    words: list[str] | None = Field(default=None, sa_type=Words)
    doc: Any = Field(default=None, nullable=True, sa_type=Json)
    plain: Any = Field(default=None, nullable=True, sa_type=JSON)


class BulkEvery(EveryBase, Apart, table=True):
    id: int | None = Field(default=None, primary_key=True)


class Everything(ServiceBase[BulkEvery, EveryBase, EveryBase]):
    pass


class OddBase(SQLModel):
    """Types that JSON cannot carry."""

    slot: int | None = Field(default=None, unique=True)
    image: bytes | None = Field(default=None, sa_type=LargeBinary)
    took: timedelta | None = Field(default=None, sa_type=Interval(second_precision=6, native=True))


class BulkOdd(OddBase, Apart, table=True):
    id: int | None = Field(default=None, primary_key=True)


class Odd(ServiceBase[BulkOdd, OddBase, OddBase]):
    pass


class NativeBase(SQLModel):
    slot: int | None = Field(default=None, unique=True)
    tags: list[str | None] | None = Field(default=None, sa_type=ARRAY(String))
    grid: list[list[int]] | None = Field(default=None, sa_type=ARRAY(Integer, dimensions=2))
    tree: Any = Field(default=None, nullable=True, sa_type=postgresql.JSONB)
    net: Any = Field(default=None, nullable=True, sa_type=postgresql.INET)
    took: timedelta | None = Field(default=None, sa_type=postgresql.INTERVAL)
    span: Any = Field(default=None, nullable=True, sa_type=postgresql.INT4RANGE)
    bare: Any = Field(default=None, nullable=True, sa_type=postgresql.BYTEA)


class BulkNative(NativeBase, Apart, table=True):
    """Types of PostgreSQL's own."""

    id: int | None = Field(default=None, primary_key=True)


class Native(ServiceBase[BulkNative, NativeBase, NativeBase]):
    pass


class MariaBase(SQLModel):
    slot: int | None = Field(default=None, unique=True)
    huge: int | None = Field(default=None, sa_type=mysql.BIGINT(unsigned=True))
    tiny: int | None = Field(default=None, sa_type=mysql.TINYINT(display_width=1))
    several: Any = Field(default=None, nullable=True, sa_type=mysql.SET("a", "b", "c"))


class BulkMaria(MariaBase, Apart, table=True):
    """Types of MySQL's and MariaDB's own."""

    id: int | None = Field(default=None, primary_key=True)


class Maria(ServiceBase[BulkMaria, MariaBase, MariaBase]):
    pass


ONLY = {
    "postgresql": {"bulknative", "bulkserved", "bulkseat"},
    "sqlite": {"bulkseat"},
    "mysql": {"bulkmaria"},
}


def tables(database: str) -> list[Table]:
    """The tables that a database can have, parents first."""
    special = set[str]().union(*ONLY.values())
    return [
        table
        for table in Apart.metadata.sorted_tables
        if table.name not in special or table.name in ONLY[database]
    ]


@pytest.fixture(scope="module")
def made() -> set[URL]:
    """The databases that have the tables of this module."""
    return set()


@pytest.fixture
async def store(db: Database, url: URL, made: set[URL]) -> AsyncGenerator[Database]:
    """The tables of this module: made by the first test, left empty by each."""
    mine = tables(db.engine.dialect.name)
    if url not in made:
        async with db.engine.begin() as connection:
            await connection.run_sync(lambda sync: Apart.metadata.create_all(sync, tables=mine))
        made.add(url)
    yield db
    async with db.engine.begin() as connection:
        for table in reversed(mine):
            await connection.execute(table.delete())


def gear(item: dict[str, Any]) -> GearCreate:
    return (GearPut if "id" in item else GearCreate).model_validate(item)


def verbs(sent: Iterable[str]) -> list[str]:
    return [statement.split()[0] for statement in sent]


async def everything(db: Database, model: type[SQLModel]) -> list[dict[str, Any]]:
    """The rows as a new session reads them."""
    async with db.read_session() as session:
        rows = await session.exec(select(model))
        return [row.model_dump() for row in rows]


# -- create_multi -----------------------------------------------------------------

SEED = 20261122


def some(chance: random.Random, *values: Any) -> Any:
    """One of the values, or None, or not sent."""
    return chance.choice([..., None, *values])


def sent_only(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not ...}


async def test_create_multi_of_random_rows(store: Database, statements: Counter) -> None:
    chance = random.Random(SEED)  # noqa: S311
    items = [
        sent_only(
            code=f"c{place}",
            a=some(chance, 0, -5, 2**31 - 1),
            b=chance.choice([..., 0, 3]),
            c=some(chance, 0.1, -1e300),
            note=some(chance, "", "x", "it's"),
            amount=some(chance, 4),
            n=some(chance, 9),
        )
        for place in range(5_000)
    ]
    async with store.session() as session:
        with statements(store) as sent:
            made = await Gears(session).create_multi(map(GearCreate.model_validate, items))
    assert verbs(sent) == ["INSERT"]
    assert len(made) == 5_000
    for item, row in zip(items, made, strict=True):
        wanted = {"b": 8, "note": "new", "a": None, "c": None, "amount": None, "n": None} | item
        wanted |= {"origin": "here", "level": 1, "revision": 1, "maker": None}
        dump = row.model_dump()
        assert {name: dump[name] for name in wanted} == wanted
        assert abs(datetime.now(UTC) - row.created_at) < timedelta(minutes=5)
    assert len({row.id for row in made} | {row.token for row in made}) == 10_000
    stored = {row["id"]: row for row in await everything(store, BulkGear)}
    assert stored == {row.id: row.model_dump() for row in made}


async def test_create_multi_with_columns_that_the_database_fills(
    store: Database, statements: Counter
) -> None:
    chance = random.Random(SEED)  # noqa: S311
    items = [
        sent_only(
            code=f"c{place}",
            a=some(chance, 1),
            origin=some(chance, "there", "o"),
            level=some(chance, 5),
        )
        for place in range(5_000)
    ]
    async with store.session() as session:
        with statements(store) as sent:
            made = await Gears(session).create_multi(items)
    assert len(sent) <= 10
    assert set(verbs(sent)) == {"INSERT"}
    for item, row in zip(items, made, strict=True):
        assert (row.code, row.a) == (item["code"], item.get("a"))
        assert row.origin == (item.get("origin") or "here")
        assert row.level == (item.get("level") or 1)
    stored = {row["id"]: row for row in await everything(store, BulkGear)}
    assert stored == {row.id: row.model_dump() for row in made}


async def test_create_multi_makes_what_create_makes(store: Database) -> None:
    items = [
        GearCreate(code="x"),
        GearCreate(code="x", a=None, note=None, origin=None, level=None),
        GearCreate(code="x", b=0, note="", origin="", level=0, amount=1, n=2),
    ]

    def fixed(row: BulkGear) -> dict[str, Any]:
        return row.model_dump(exclude={"id", "code", "serial", "token", "created_at", "updated_at"})

    async with store.session() as session:
        service = Gears(session)
        single = [
            await service.create(
                item.model_copy(update={"code": f"s{place}", "serial": place}),
                maker="m",
                revision=4,
            )
            for place, item in enumerate(items)
        ]
        many = [
            item.model_copy(update={"code": f"m{place}", "serial": 10 + place})
            for place, item in enumerate(items)
        ]
        made = await service.create_multi(many, maker="m", revision=4)
        put = await service.create_multi([GearPut(id=UUID(int=5), code="p")])
    assert [*map(fixed, made)] == [*map(fixed, single)]
    assert [row.code for row in made] == ["m0", "m1", "m2"]
    assert put[0].id == UUID(int=5)


async def test_create_multi_without_returning(store: Database, statements: Counter) -> None:
    items = [GearCreate(code=f"c{place}", a=place) for place in range(5)]
    async with store.session() as session:
        with statements(store) as sent:
            assert await Gears(session).create_multi(items, returning=False, maker="m") == 5
    assert verbs(sent) == ["INSERT"]
    assert "RETURNING" not in sent[0]
    stored = await everything(store, BulkGear)
    assert {(row["code"], row["a"], row["maker"]) for row in stored} == {
        (f"c{place}", place, "m") for place in range(5)
    }


async def test_more_rows_than_a_statement_takes(store: Database, statements: Counter) -> None:
    names = [f"s{place}" for place in range(5_003)]
    async with store.session() as session:
        service = Steps(session)
        with statements(store) as sent:
            made = await service.create_multi({"name": name} for name in names)
            assert verbs(sent) == ["INSERT", "INSERT"]
            await service.update_multi({row.id: {"name": f"{row.name}!"} for row in made})
            assert verbs(sent)[2:4] == ["UPDATE", "UPDATE"]
            items = [
                {"id": row.id, "name": f"{name}?"} for row, name in zip(made, names, strict=True)
            ]
            again = await service.upsert_multi(items, on="id")
    assert [row.id for row in made] == sorted(row.id or 0 for row in made)
    assert again == made
    assert [row.name for row in again] == [f"{name}?" for name in names]
    assert {row["name"] for row in await everything(store, BulkStep)} == {f"{n}?" for n in names}


async def test_keys_that_are_given_and_keys_that_are_made(store: Database) -> None:
    items = [StepCreate(name=f"s{place}", id=None if place % 3 else 1_000_000 + place)
             for place in range(30)]  # fmt: skip
    async with store.session() as session:
        made = await Steps(session).create_multi(items)
    assert [row.name for row in made] == [item.name for item in items]
    assert all(row.id == item.id for row, item in zip(made, items, strict=True) if item.id)
    assert sorted(row["id"] for row in await everything(store, BulkStep)) == sorted(
        row.id or 0 for row in made
    )


async def test_composite_keys(store: Database) -> None:
    first = date(2026, 1, 1)
    keys = [(x, first + timedelta(days=y)) for x in (2, 1) for y in (5, 3, 4)]
    async with store.session() as session:
        service = Cells(session)
        made = await service.create_multi(CellCreate(x=x, y=y, value=str(x)) for x, y in keys)
        assert [(row.x, row.y) for row in made] == keys
        assert await service.update_multi({keys[0]: {"value": "new"}, keys[4]: {}}) == 2
        assert [row.value for row in made] == ["new", "2", "2", "1", "1", "1"]
        again = await service.upsert_multi(
            [{"x": 1, "y": first, "value": "z"}, {"x": 2, "y": keys[0][1], "value": "y"}],
            on=("y", "x"),
        )
        assert (again[0].value, again[1]) == ("z", made[0])
        with pytest.raises(NotFound) as caught:
            await service.update_multi({keys[0]: {"value": "0"}, (9, first): {"value": "0"}})
        assert caught.value.keys == ((9, first),)
        await session.rollback()


async def test_defaults_of_the_columns(store: Database) -> None:
    async with store.session() as session:
        service = Filled(session)
        single = await service.create({"name": "s"})
        made = await service.create_multi(
            [{"name": "a"}, {"name": "b", "value": 1, "made": 2, "low": "l"}, {"name": "c"}]
        )
        await service.create_multi([{"name": "d"}], returning=False)
        upserted = await service.upsert_multi([{"name": "e"}, {"name": "a"}], on="name")
        stored = {row.name: (row.value, row.made, row.low) for row in await service.list()}
    assert (single.value, single.made, single.low) == (5, 6, "abc")
    assert [row.name for row in made] == ["a", "b", "c"]
    assert upserted[1] is made[0]
    same = dict.fromkeys("sacde", (5, 6, "abc"))
    assert stored == same | {"b": (1, 2, "l")}
    for row in (*made, *upserted):
        assert (row.value, row.made, row.low) == stored[row.name]


@pytest.mark.only("postgresql")
async def test_keys_that_the_database_makes_in_no_order(store: Database) -> None:
    async with store.session() as session:
        made = await Served(session).create_multi({"name": f"n{place}"} for place in range(2_500))
    assert [row.name for row in made] == [f"n{place}" for place in range(2_500)]
    stored = {row["id"]: row["name"] for row in await everything(store, BulkServed)}
    assert stored == {row.id: row.name for row in made}


async def test_made_rows_belong_to_the_session(store: Database) -> None:
    async with store.session() as session:
        session.add(BulkOwner(id=5, name="pending"))  # sent before: the rows refer to it
        service = Gears(session)
        made = await service.create_multi([{"code": "a"}, {"code": "b"}], owner_id=5)
        assert all(row in session for row in made)
        assert await service.get(made[1].id) is made[1]
        made[1].note = "changed"
    assert {row["code"]: row["note"] for row in await everything(store, BulkGear)} == {
        "a": "new",
        "b": "changed",
    }


async def test_hooks_see_every_row(store: Database) -> None:
    async with store.session() as session:
        service = Hooked(session)
        made = await service.create_multi(
            [{"name": f"n{place}", "body": f"b{place}"} for place in range(3)]
        )
        assert await service.create_multi([{"name": "n3", "body": "b3"}], returning=False) == 1
        changes: dict[Any, Any] = {made[1].id: {"body": "new"}, made[2].id: {"body": None}}
        assert await service.update_multi(changes) == 2
        row, created = await service.get_or_create({"name": "n4", "body": "b4"}, on="name")
        assert (created, row.seen) == (True, "b4")
        refused = {"name": "n5", "body": "refused"}
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: service.create_multi([refused]),
            lambda: service.create_multi([refused], returning=False),
            lambda: service.update_multi({made[0].id: {"body": "refused"}}),
            lambda: service.get_or_create(refused, on="name"),
        ]
        for call in calls:
            with pytest.raises(InvalidValue, match="own validator"):
                await call()
    seen = {row["name"]: (row["body"], row["seen"]) for row in await everything(store, BulkHooked)}
    assert seen == {
        "n0": ("b0", "b0"),
        "n1": ("new", "new"),
        "n2": (None, None),
        "n3": ("b3", "b3"),
        "n4": ("b4", "b4"),
    }


REFUSED_ROWS: dict[str, tuple[dict[str, Any], type[ServiceError]]] = {
    "unique": ({"code": "c0"}, UniqueViolation),
    "check": ({"code": "x", "b": -1}, CheckViolation),
    "foreign key": ({"code": "x", "owner_id": 12345}, ForeignKeyViolation),
}


@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("name", REFUSED_ROWS)
async def test_one_refused_row_refuses_all(store: Database, name: str, returning: bool) -> None:
    wrong, error = REFUSED_ROWS[name]
    items = [{"code": f"c{place}"} for place in range(3)]
    async with store.session() as session:
        service: Any = Gears(session)
        with pytest.raises(error):
            async with service.transaction():
                await service.create_multi([*items, wrong], returning=returning)
        assert await service.count() == 0
        await service.create_multi([{"code": "after"}])  # the transaction is usable
    assert [row["code"] for row in await everything(store, BulkGear)] == ["after"]


# -- payloads ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["create_multi", "upsert_multi"])
async def test_rules_of_the_model(store: Database, method: str) -> None:
    """What `create` refuses and changes, statements on many rows do as well."""

    async def many(*items: Any, **values: Any) -> Any:
        extra = {"on": "name"} if method == "upsert_multi" else {}
        return await getattr(service, method)([*items], **extra, **values)

    async with store.session() as session:
        service = Stricts(session)
        with pytest.raises(InvalidValue, match=r"item 1: .*name: .*at most 5") as caught:
            await many({"name": "a"}, {"name": "abcdef"})
        assert caught.value.columns == ("name",)
        with pytest.raises(InvalidValue, match=r"item 2: .*size: .*greater than or equal to 1"):
            await many({"name": "a"}, {"name": "b", "size": 5}, {"name": "c", "size": 0})
        with pytest.raises(InvalidValue, match=r"BulkStrict is not valid: size: "):
            await many({"name": "a"}, size=0)
        with pytest.raises(InvalidValue, match="mail"):
            await many({"name": "a", "mail": "nobody"})
        made = await many({"name": "a", "mail": "A@B"}, {"name": "b", "size": 9})
        assert [(row.name, row.size, row.mail) for row in made] == [("a", 3, "a@b"), ("b", 9, None)]
        assert await service.count() == 2


async def test_a_table_class_as_payload_is_validated(store: Database) -> None:
    async with store.session() as session:
        service = RawStricts(session)
        with pytest.raises(InvalidValue, match="size"):
            await service.create(BulkStrict(name="a", size=0))
        with pytest.raises(InvalidValue, match="size"):
            await service.create_multi([BulkStrict(name="a", size=0)])
        made = await service.create_multi([BulkStrict(name="a"), BulkStrict(name="b", size=9)])
        assert [(row.name, row.size) for row in made] == [("a", 3), ("b", 9)]


WRONG_ITEMS: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "unknown key": (
        [{"code": "a"}, {"code": "b", "nite": 1}],
        {},
        "item 1: GearCreate has no field 'nite'; did you mean 'note'",
    ),
    "missing": ([{"code": "a"}, {}], {}, "item 1: GearCreate is not valid: code: Field required"),
    "wrong type": ([{"code": "a", "a": "x"}], {}, r"item 0: GearCreate.* a: .*valid integer"),
    "unknown keyword": ([{"code": "a"}], {"nite": 1}, "BulkGear has no field 'nite'"),
    "relation": ([{"code": "a"}], {"owner": BulkOwner(name="o")}, r"owner is a relation"),
    "classes": (
        [GearCreate(code="a"), StepCreate(name="b")],
        {},
        "payloads of one class are wanted, not GearCreate, StepCreate",
    ),
    "class": ([StepCreate(name="b")], {}, "BulkGear has no field 'name'"),
}


@pytest.mark.parametrize("name", WRONG_ITEMS)
@pytest.mark.parametrize("method", ["create_multi", "upsert_multi"])
async def test_wrong_items(store: Database, statements: Counter, method: str, name: str) -> None:
    items, values, message = WRONG_ITEMS[name]
    extra = {"on": "code"} if method == "upsert_multi" else {}
    async with store.session() as session:
        with statements(store) as sent, pytest.raises(InvalidValue, match=message):
            await getattr(Gears(session), method)(items, **extra, **values)
    assert sent == []


async def test_relations_of_payloads(store: Database) -> None:
    class WithOwner(GearCreate):
        owner: Any = None

    async with store.session() as session:
        service: Any = Gears(session)
        methods: list[Any] = [service.create_multi, partial(service.upsert_multi, on="code")]
        for method in methods:
            assert (await method([WithOwner(code="a")]))[0].owner_id is None  # None says nothing
            with pytest.raises(InvalidValue, match=r"owner is a relation"):
                await method([WithOwner(code="b", owner=BulkOwner(name="o"))])
            await session.rollback()


async def test_nothing_at_all(store: Database, statements: Counter) -> None:
    async with store.session() as session:
        service = Gears(session)
        with statements(store) as sent:
            assert await service.create_multi([]) == []
            assert await service.create_multi(iter(()), returning=False) == 0
            assert await service.update_multi({}) == 0
            assert await service.upsert_multi([], on="code") == []
            assert await service.upsert_multi([], on="code", returning=False) == 0
    assert sent == []


# -- types ------------------------------------------------------------------------

TEXTS = [
    "",
    "plain",
    "it's",
    '"quoted"',
    "back\\slash \\n \\u0041",
    "line\nline\r\n\ttab",
    "emoji 🦸‍♀️ é ß 中文 \u2028",
    " spaces ",
    "null",
    "true",
    "1",
    "1e5",
    "0x1f",
    "[1]",
    '{"a": 1}',
    ":name %s %(x)s {y} ? $1",
    "\x01\x7f",
]
DOCS: list[Any] = [
    {"a": {"b": [1, None, {"c": []}]}, "é🦸": "ß", 'q"': "it's \\ \n"},
    {"z": 1, "a": 2, "big": 2**60, "float": 0.1, "yes": True, "none": None},
    [],
    {},
    [None, [None]],
    "text",
    "null",
    "1",
    '"',
    7,
    0,
    1.5,
    True,
    False,
]
EAST = timezone(timedelta(hours=5, minutes=45))
VALUES: dict[str, list[Any]] = {
    "flag": [True, False],
    "small": [0, -(2**15), 2**15 - 1],
    "number": [0, -1, -(2**31), 2**31 - 1],
    "big": [0, 2**53 + 1, -(2**63), 2**63 - 1],
    "single": [0.0, 0.5, -1.25, 16777216.0],
    "ratio": [
        0.0,
        -0.0,
        0.1,
        1 / 3,
        1e22,
        1.7976931348623157e308,
        5e-324,
        2.0**53 + 2,
        123456789.0,
    ],
    "price": [Decimal(text) for text in ("0", "0.1", "-99999999.9999", "1E+3", "1.50", "1E-4")],
    "wide": [Decimal("1234567890123456789012345678.0123456789"), Decimal("-0.0000000001")],
    "moment": [
        datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=UTC),
        datetime(2026, 7, 1, 12, 0, 0, 1, tzinfo=EAST),
        datetime(2026, 7, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
    "wall": [datetime(2026, 3, 29, 2, 30, 0, 5), datetime(1000, 1, 1), datetime(9999, 12, 31)],  # noqa: DTZ001
    "day": [date(2026, 2, 28), date(1000, 1, 1), date(9999, 12, 31)],
    "hour": [time(0), time(23, 59, 59, 999999), time(8, 30, 0, 1)],
    "token": [UUID(int=0), UUID(int=2**128 - 1), uuid4()],
    "hexed": [UUID(int=0), UUID(int=2**128 - 1), uuid4()],
    "size": [*Size],
    "role": [*Role],
    "label": [*LABELS],
    "name": TEXTS,
    "short": ["", "abcde", "🦸é'\\\"", "  a  "],
    "body": [*TEXTS, "x" * 70_000],
    "words": [["a"], ["a", "b|c"], ["é", "'"], [""]],
    "doc": DOCS,
    "plain": [*DOCS, None],
}
ODD_VALUES: dict[str, list[Any]] = {
    "image": [b"", b"\x00\xff'\"\\", bytes(range(256)), b"text"],
    "took": [timedelta(0), timedelta(days=3, seconds=1), timedelta(hours=25)],
}
NATIVE_VALUES: dict[str, list[Any]] = {
    "tags": [[], ["a", None, 'b"', "c,d", "{}", "é"], ["NULL", ""]],
    "grid": [[[1, 2], [3, 4]]],
    "tree": [{"b": [1, None]}, "x", []],
    "net": ["10.0.0.1", "2001:db8::/32"],
    "took": [timedelta(days=3, microseconds=1), timedelta(microseconds=-1)],
    "span": [Range(1, 5), Range(None, 3), Range(empty=True)],
    "bare": [b"\x00\x01"],
}
MARIA_VALUES: dict[str, list[Any]] = {
    "huge": [0, 2**64 - 1],
    "tiny": [0, 1, 127, -128],
    "several": [{"a"}, {"a", "c"}],
}

Way = Callable[[Any, Sequence[dict[str, Any]]], Awaitable[list[Any]]]


async def by_create(service: Any, items: Sequence[dict[str, Any]]) -> list[Any]:
    return [await service.create(item) for item in items]


async def by_create_multi(service: Any, items: Sequence[dict[str, Any]]) -> list[Any]:
    return cast(list[Any], await service.create_multi(items))


async def by_count(service: Any, items: Sequence[dict[str, Any]]) -> list[Any]:
    """create_multi without RETURNING."""
    assert await service.create_multi(items, returning=False) == len(items)
    rows = await service.list(slot__in=[item["slot"] for item in items])
    return sorted(rows, key=lambda row: row.slot)


async def by_update_multi(service: Any, items: Sequence[dict[str, Any]]) -> list[Any]:
    rows = await service.create_multi({"slot": item["slot"]} for item in items)
    assert await service.update_multi(
        {row.id: item for row, item in zip(rows, items, strict=True)}
    ) == len(items)
    return cast(list[Any], rows)


async def by_insert(service: Any, items: Sequence[dict[str, Any]]) -> list[Any]:
    """upsert_multi of new rows."""
    return cast(list[Any], await service.upsert_multi(items, on="slot"))


async def by_upsert(service: Any, items: Sequence[dict[str, Any]]) -> list[Any]:
    """upsert_multi of stored rows."""
    await service.create_multi({"slot": item["slot"]} for item in items)
    return cast(list[Any], await service.upsert_multi(items, on="slot"))


SLOTS = itertools.count()
WAYS: list[Way] = [by_create_multi, by_count, by_update_multi, by_insert, by_upsert]


async def stored_by(
    db: Database, service: type[Any], field: str, values: Sequence[Any], way: Way
) -> tuple[list[Any], list[str], list[Any]]:
    """The values of new rows: as returned, as the table has them, as a new session reads them."""
    items = [{"slot": next(SLOTS), field: value} for value in values]
    async with db.session() as session:
        made = await way(service(session), items)
        returned = [getattr(row, field) for row in made]
    async with db.read_session() as session:
        rows = await service(session).get_by_ids(row.id for row in made)
        # Without a type: as the driver gives it.
        raw: Any = select(cast(Any, literal_column(field))).select_from(service.model.__table__)
        raw = raw.where(service.model.slot.in_([item["slot"] for item in items]))
        found: list[Any] = (await cast(Any, session).exec(raw.order_by(service.model.slot))).all()
    return returned, [*map(repr, found)], [getattr(row, field) for row in rows]


async def check_types(db: Database, service: type[Any], fields: dict[str, list[Any]]) -> None:
    for field, values in fields.items():
        _, raw, read = await stored_by(db, service, field, values, by_create)
        for way in WAYS:
            returned, raw_too, read_too = await stored_by(db, service, field, values, way)
            assert raw_too == raw, (field, way)
            assert read_too == read, (field, way)
            if way is not by_update_multi:  # else the values as they were given
                assert returned == read, (field, way)


@pytest.mark.parametrize("field", VALUES)
async def test_types_that_json_carries(store: Database, statements: Counter, field: str) -> None:
    with statements(store) as sent:
        await check_types(store, Everything, {field: VALUES[field]})
    # Not by another way: but for those of `create`, an INSERT or UPDATE has all the rows.
    written = [each for each in sent if each.startswith(("INSERT", "UPDATE"))]
    assert len(written) == len(VALUES[field]) + 7


async def test_types_that_json_cannot_carry(store: Database) -> None:
    await check_types(store, Odd, ODD_VALUES)


@pytest.mark.only("postgresql")
async def test_types_of_postgresql(store: Database) -> None:
    await check_types(store, Native, NATIVE_VALUES)


@pytest.mark.only("mysql")
async def test_types_of_mysql(store: Database) -> None:
    await check_types(store, Maria, MARIA_VALUES)


# At the limits of a type: a database refuses such a value, or changes it, or takes it. Which
# one is its own business; but it is the same by every way.
EDGES: dict[str, tuple[str, Any]] = {
    "text too long": ("short", "abcdef"),
    "text with spaces too long": ("short", "abcde   "),
    "NUL": ("name", "a\x00b"),
    "surrogate": ("name", "a\ud800"),
    "NUL in JSON": ("doc", {"a": "b\x00"}),
    "surrogate in JSON": ("doc", "\ud800"),
    "NaN in JSON": ("doc", [float("nan")]),
    "JSON that is none": ("doc", {"a": object()}),
    "smallint": ("small", 2**15),
    "int": ("number", 2**31),
    "negative int": ("number", -(2**31) - 1),
    "int beyond 64 bits": ("number", 2**64),
    "bigint": ("big", 2**63),
    "negative bigint": ("big", -(2**63) - 1),
    "single": ("single", 1e39),
    "infinity": ("ratio", float("inf")),
    "negative infinity": ("ratio", float("-inf")),
    "NaN": ("ratio", float("nan")),
    "decimal too large": ("price", Decimal("123456789")),
    "decimal too precise": ("price", Decimal("0.00005")),
    "decimal rounded up": ("price", Decimal("99999999.99995")),
    "decimal NaN": ("price", Decimal("NaN")),
    "decimal infinity": ("price", Decimal("Infinity")),
    "naive": ("moment", datetime(2026, 1, 1)),  # noqa: DTZ001
    "first day": ("day", date.min),
    "label": ("label", "none"),
    "words": ("words", ["x" * 50]),
    "type's own rule": ("words", [1]),
}


@pytest.mark.parametrize("name", EDGES)
async def test_edges_of_types(store: Database, name: str) -> None:
    field, value = EDGES[name]

    async def outcome(way: Way) -> Any:
        try:
            return (await stored_by(store, Everything, field, [value], way))[1]
        except InvalidValue:
            return InvalidValue
        except DBAPIError:  # the driver cannot send it: infinity on MySQL
            return DBAPIError

    try:
        expected = await outcome(by_create)
    except TypeError:  # psycopg writes JSON itself, and raises what `json` raises
        expected = InvalidValue
    assert {way.__name__: await outcome(way) for way in WAYS} == {
        way.__name__: expected for way in WAYS
    }
    if name in {"text too long", "int", "bigint"} and store.engine.dialect.name != "sqlite":
        assert expected is InvalidValue


# -- update_multi -----------------------------------------------------------------


@pytest.fixture
async def gears(store: Database) -> tuple[Database, list[UUID]]:
    """Six gears, `g0` to `g5`, of two owners."""
    async with store.session() as session:
        session.add_all([BulkOwner(id=1, name="one"), BulkOwner(id=2, name="two")])
        made = await Gears(session).create_multi(
            [
                {"code": f"g{n}", "a": n, "b": n, "n": n, "tag": f"t{n}", "maker": "m", "serial": n}
                for n in range(6)
            ],
            owner_id=1,
        )
    return store, [row.id for row in made]


async def dumps(db: Database) -> dict[UUID, dict[str, Any]]:
    return {row["id"]: row for row in await everything(db, BulkGear)}


async def test_update_multi(gears: tuple[Database, list[UUID]], statements: Counter) -> None:
    db, ids = gears
    before = await dumps(db)
    changes: dict[UUID, Any] = {
        ids[4]: GearUpdate(a=None, note="é"),
        ids[1]: {"a": 10, "note": None},
        ids[0]: GearUpdate(b=5),
        ids[2]: {"amount": 3},
        ids[5]: {},
    }
    async with db.session() as session:
        with statements(db) as sent:
            assert await Gears(session).update_multi(changes) == 5
    assert verbs(sent) == ["UPDATE", "UPDATE", "UPDATE", "SELECT"]  # a SELECT for the empty one
    after = await dumps(db)
    for pk, change in changes.items():
        payload: dict[str, Any] = (
            change.model_dump(exclude_unset=True) if isinstance(change, GearUpdate) else change
        )
        wanted = before[pk] | payload
        if payload:  # and what every UPDATE changes
            wanted |= {"revision": 2, "updated_at": after[pk]["updated_at"]}
            assert after[pk]["updated_at"] > before[pk]["updated_at"]
        assert after[pk] == wanted
    assert after[ids[3]] == before[ids[3]]


async def test_update_multi_of_thousands(store: Database, statements: Counter) -> None:
    chance = random.Random(SEED)  # noqa: S311
    async with store.session() as session:
        made = await Gears(session).create_multi({"code": f"c{n}"} for n in range(4_000))
    changes = {
        row.id: {"a": chance.choice([None, n]), "note": chance.choice([None, "x"])}
        for n, row in enumerate(made)
    }
    async with store.session() as session:
        with statements(store) as sent:
            assert await Gears(session).update_multi(changes, b=1) == 4_000
    assert verbs(sent) == ["UPDATE"]
    after = await dumps(store)
    assert {pk: {"a": row["a"], "note": row["note"]} for pk, row in after.items()} == changes
    assert {row["b"] for row in after.values()} == {1}


async def test_update_multi_with_values_for_all(gears: tuple[Database, list[UUID]]) -> None:
    db, ids = gears
    async with db.session() as session:
        changes: dict[UUID, dict[str, Any]] = {ids[1]: {"a": 7}, ids[2]: {"note": "z"}, ids[3]: {}}
        total = col(BulkGear.b) * 10 + col(BulkGear.n)
        await Gears(session).update_multi(changes, b=total, maker=None)
    after = await dumps(db)
    assert [after[pk]["b"] for pk in ids] == [0, 11, 22, 33, 4, 5]
    assert [after[pk]["maker"] for pk in ids] == ["m", None, None, None, "m", "m"]


async def test_update_multi_to_the_same_values(gears: tuple[Database, list[UUID]]) -> None:
    """Rows that are there count, also where the database would call them unchanged."""
    db, ids = gears
    async with db.session() as session:
        changes = {pk: {"value": "v"} for pk in [(1, date(2026, 1, 1)), (2, date(2026, 1, 1))]}
        service = Cells(session)
        await service.create_multi({"x": x, "y": y, "value": "v"} for x, y in changes)
        assert await service.update_multi(changes) == 2
        assert await Gears(session).update_multi({pk: {"maker": "m"} for pk in ids}) == 6


@pytest.mark.parametrize("in_session", [True, False])
async def test_update_multi_names_missing_keys(
    gears: tuple[Database, list[UUID]],
    in_session: bool,
) -> None:
    db, ids = gears
    before = await dumps(db)
    gone = [UUID(int=3), UUID(int=1), UUID(int=2)]
    async with db.session() as session:
        service = Gears(session)
        if in_session:
            await service.list()
        changes = {gone[0]: {"a": 0}, ids[0]: {"a": 0}, gone[1]: {"a": 0}, ids[1]: {"a": 0}}
        with pytest.raises(NotFound, match="BulkGear not found") as caught:
            async with service.transaction():
                await service.update_multi(changes)
        assert caught.value.keys == (gone[0], gone[1])
        with pytest.raises(NotFound) as caught:
            async with service.transaction():
                await service.update_multi({gone[2]: {}})
        assert caught.value.keys == (gone[2],)
    assert await dumps(db) == before


async def test_update_multi_names_all_missing_keys(gears: tuple[Database, list[UUID]]) -> None:
    """Also those whose payloads set other fields."""
    db, ids = gears
    gone = [UUID(int=3), UUID(int=1)]
    async with db.session() as session:
        service = Gears(session)
        with pytest.raises(NotFound) as caught:
            async with service.transaction():
                await service.update_multi({gone[0]: {"a": 0}, ids[0]: {"a": 1}, gone[1]: {"b": 1}})
        assert {*caught.value.keys} == {*gone}


async def test_update_multi_of_versions(store: Database, statements: Counter) -> None:
    async with store.session() as session:
        made = await Docs(session).create_multi({"name": f"d{n}"} for n in range(4))
        one, two, three, four = (row.id for row in made)
        assert [row.version for row in made] == [1, 1, 1, 1]
    async with store.session() as session:
        service = Docs(session)
        with statements(store) as sent:
            await service.update_multi({one: {"body": "x"}, two: {"body": "y"}})
            await service.update_multi({one: DocUpdate(body="z", version=2)})
        assert verbs(sent) == ["UPDATE", "UPDATE"]
        for changes in (
            {one: {"body": "!", "version": 2}, three: {"body": "!", "version": 1}},
            {three: {"body": "!", "version": 7}},
        ):
            with pytest.raises(StaleData, match="BulkDoc was changed"):
                async with service.transaction():
                    await service.update_multi(changes)
        with pytest.raises(NotFound) as caught:
            async with service.transaction():
                await service.update_multi({-1: {"body": "!", "version": 1}})
        assert caught.value.keys == (-1,)
    async with store.session() as session:
        row = await Docs(session).get(four)
        await Docs(session).update_multi({four: {"body": "s"}})
        assert (row.body, row.version) == ("s", 2)
        row.body = "t"  # the ORM goes on from there
    rows = {row["id"]: (row["body"], row["version"]) for row in await everything(store, BulkDoc)}
    assert rows == {one: ("z", 3), two: ("y", 2), three: (None, 1), four: ("t", 3)}


async def test_update_multi_refreshes_rows_of_the_session(
    gears: tuple[Database, list[UUID]],
) -> None:
    db, ids = gears
    async with db.session() as session:
        service = Gears(session)
        rows = await service.get_by_ids(ids[:3], load="owner")
        owner = rows[0].owner
        rows[1].note = "pending"  # sent first, and kept
        times = [row.updated_at for row in rows]
        changes = {ids[0]: {"a": 50}, ids[1]: {"a": 51}, ids[2]: {"owner_id": 2}, ids[3]: {"a": 53}}
        await service.update_multi(changes, b=BulkGear.b + 1)
        assert [(row.a, row.b) for row in rows] == [(50, 1), (51, 2), (2, 3)]
        assert rows[1].note == "pending"
        assert [row.revision for row in rows] == [2, 3, 2]
        assert all(row.updated_at > time for row, time in zip(rows, times, strict=True))
        assert rows[0].owner is owner is rows[1].owner
        assert rows[2].owner_id == 2
        assert (await service.get(ids[2], load="owner")).owner is await session.get(BulkOwner, 2)
        memory = {row.id: row.model_dump() for row in rows}
    after = await dumps(db)
    assert {pk: after[pk] for pk in memory} == memory


async def test_update_multi_refuses(gears: tuple[Database, list[UUID]]) -> None:
    db, ids = gears
    before = await dumps(db)
    refused: list[tuple[dict[Any, Any], dict[str, Any], type[Exception], str]] = [
        ({ids[0]: {"nite": 1}}, {}, InvalidValue, "GearUpdate has no field 'nite'"),
        ({ids[0]: {"a": 1}}, {"nite": 1}, InvalidValue, "BulkGear has no field 'nite'"),
        ({ids[0]: {"a": 1}}, {"id": uuid4()}, InvalidValue, "cannot change the primary key: id"),
        ({ids[0]: cast(Any, GearPut(code="x", id=uuid4()))}, {}, InvalidValue, "primary key: id"),
        ({ids[0]: {"a": 1}}, {"owner": None}, InvalidValue, "owner is a relation"),
        ({str(ids[0]): {"a": 1}}, {}, InvalidQuery, "id: eq takes UUID, not str"),
        ({(ids[0], 1): {"a": 1}}, {}, InvalidQuery, r"primary key of BulkGear is \(id\)"),
        ({ids[0]: {"code": None}}, {}, NotNullViolation, "required value"),
        ({ids[0]: {"code": "g1"}}, {}, UniqueViolation, "bulkgear_code|already exists"),
        ({ids[0]: {"b": -1}}, {}, CheckViolation, "ck_bulkgear_b_positive"),
        ({ids[0]: {"owner_id": 12345}}, {}, ForeignKeyViolation, "referenced row"),
    ]
    async with db.session() as session:
        service = Gears(session)
        for changes, values, error, message in refused:
            with pytest.raises(error, match=message):
                async with service.transaction():
                    await service.update_multi({**changes, ids[5]: {"b": 3}}, **values)
    assert await dumps(db) == before


async def test_update_multi_and_soft_deleted_rows(store: Database) -> None:
    async with store.session() as session:
        service = Notes(session)
        made = await service.create_multi([{"name": "a"}, {"name": "b"}])
        await service.delete(made[1])
    keys = [row.id for row in made]
    async with store.session() as session:
        service = Notes(session)
        with pytest.raises(NotFound) as caught:
            async with service.transaction():
                await service.update_multi({pk: {"body": "x"} for pk in keys})
        assert caught.value.keys == (keys[1],)
        changes = {pk: {"body": "y"} for pk in keys}
        assert await service.with_deleted().update_multi(changes) == 2
    assert [row["body"] for row in await everything(store, BulkNote)] == ["y", "y"]


async def test_update_multi_without_json(store: Database, statements: Counter) -> None:
    """SELECT and an UPDATE per row, with the same answers."""
    async with store.session() as session:
        made = await Odd(session).create_multi({"slot": n, "image": b"0"} for n in range(3))
    keys = [row.id for row in made]
    async with store.session() as session:
        service = Odd(session)
        with statements(store) as sent:
            assert await service.update_multi({keys[0]: {"image": None}, keys[2]: {"slot": 9}}) == 2
        assert sorted(verbs(sent)) == ["SELECT", "UPDATE", "UPDATE"]
        with pytest.raises(NotFound) as caught:
            async with service.transaction():
                await service.update_multi({keys[0]: {"image": b"1"}, -1: {"image": b"1"}})
        assert caught.value.keys == (-1,)
    stored = {row["id"]: (row["slot"], row["image"]) for row in await everything(store, BulkOdd)}
    assert stored == {keys[0]: (0, None), keys[1]: (1, b"0"), keys[2]: (9, b"0")}


# -- upsert -----------------------------------------------------------------------

KEYS: dict[str, tuple[Any, Callable[[int, UUID], dict[str, Any]]]] = {
    "primary key": ("id", lambda _n, pk: {"id": pk}),
    "unique column": ("code", lambda n, _pk: {"code": f"g{n}"}),
    "unique index": (["tag"], lambda n, _pk: {"tag": f"t{n}"}),
    "composite": (("serial", "maker"), lambda n, _pk: {"maker": "m", "serial": n}),
}


@pytest.mark.parametrize("name", KEYS)
async def test_upsert_multi(
    gears: tuple[Database, list[UUID]], statements: Counter, name: str
) -> None:
    db, ids = gears
    on, key = KEYS[name]
    before = await dumps(db)
    items = [
        {"code": "new"} | key(80, UUID(int=80)) | {"a": 80, "note": None},
        {"code": "g4"} | key(4, ids[4]) | {"a": 40, "note": None},
        {"code": "g1"} | key(1, ids[1]) | {"a": None, "note": "y"},
        {"code": "newer"} | key(81, UUID(int=81)) | {"a": 81, "note": "z"},
    ]
    async with db.session() as session:
        with statements(db) as sent:
            rows = await Gears(session).upsert_multi(map(gear, items), on=on, n=-1)
    mysql_like = db.engine.dialect.name == "mysql"
    assert verbs(sent) == (["INSERT", "SELECT"] if mysql_like else ["INSERT"])
    assert [(row.a, row.note, row.n) for row in rows] == [
        (80, None, -1),
        (40, None, -1),
        (None, "y", -1),
        (81, "z", -1),
    ]
    after = await dumps(db)
    assert {row.id: row.model_dump() for row in rows} == {row.id: after[row.id] for row in rows}
    assert [rows[1].id, rows[2].id] == [ids[4], ids[1]]
    assert len(after) == 8
    for place, row in ((1, rows[1]), (2, rows[2])):  # what was not sent stays, defaults too
        assert row.updated_at > before[row.id]["updated_at"]
        assert after[row.id] == before[row.id] | items[place] | {
            "n": -1, "revision": 2, "updated_at": row.updated_at
        }  # fmt: skip
    for row in (rows[0], rows[3]):
        assert (row.b, row.origin, row.level, row.revision) == (8, "here", 1, 1)
    for untouched in (0, 2, 3, 5):
        assert after[ids[untouched]] == before[ids[untouched]]


async def test_upsert_multi_of_thousands(store: Database, statements: Counter) -> None:
    chance = random.Random(SEED)  # noqa: S311
    async with store.session() as session:
        await Gears(session).create_multi(
            ({"code": f"c{n}"} for n in range(0, 4_000, 2)), returning=False
        )
    items = [
        {"code": f"c{n}", "a": chance.choice([None, n]), "c": chance.choice([None, 0.5])}
        for n in range(4_000)
    ]
    chance.shuffle(items)
    for returning in (True, False):
        async with store.session() as session:
            with statements(store) as sent:
                if returning:
                    rows = await Gears(session).upsert_multi(items, on="code")
                    wrong = [
                        row
                        for row, item in zip(rows, items, strict=True)
                        if (row.code, row.a, row.c) != (item["code"], item["a"], item["c"])
                    ]
                    assert wrong == []
                else:
                    count = await Gears(session).upsert_multi(items, on="code", returning=False)
                    assert count == 4_000
        assert len(sent) <= 2
    assert len(await dumps(store)) == 4_000


async def test_upsert_of_different_fields(gears: tuple[Database, list[UUID]]) -> None:
    db, ids = gears
    async with db.session() as session:
        rows = await Gears(session).upsert_multi(
            [{"code": "g3", "a": 30}, {"code": "new"}, {"code": "g0", "b": 9}, {"code": "g1"}],
            on="code",
        )
    assert [(row.code, row.a, row.b, row.note) for row in rows] == [
        ("g3", 30, 3, "new"),
        ("new", None, 8, "new"),
        ("g0", 0, 9, "new"),
        ("g1", 1, 1, "new"),
    ]
    assert [row.id for row in rows if row.code != "new"] == [ids[3], ids[0], ids[1]]


async def test_upsert_returns_fresh_rows(gears: tuple[Database, list[UUID]]) -> None:
    db, ids = gears
    async with db.session() as session:
        service = Gears(session)
        rows = await service.get_by_ids(ids[:4], load="owner")
        owner = rows[0].owner
        rows[0].maker = "pending"  # sent first, and kept
        row = await service.upsert(GearCreate(code="g0", a=70), on="code")
        assert (row, row.a, row.maker, row.owner) == (rows[0], 70, "pending", owner)
        assert (
            await service.upsert_multi([{"code": "g1", "a": 71}], on="code", returning=False) == 1
        )
        assert rows[1].a == 71
        await service.upsert_multi([{"code": "g2", "owner_id": 2}], on="code")
        assert rows[2].owner_id == 2
        loaded = await service.upsert({"code": "g3", "a": 1}, on="code", load="owner", owner_id=2)
        assert loaded.owner is not None
        assert loaded.owner.name == "two"
        new = await service.upsert({"code": "new"}, on="code", load="owner", owner_id=1)
        assert new.owner is owner
        memory = {row.id: row.model_dump() for row in [*rows, new]}
    after = await dumps(db)
    assert {pk: after[pk] for pk in memory} == memory


TAKEN: dict[str, tuple[str, Callable[[list[UUID]], dict[str, Any]]]] = {
    "new row, other key of a stored one": ("code", lambda _: {"code": "x", "tag": "t1", "a": 99}),
    "new row, primary key of a stored one": ("code", lambda ids: {"code": "x", "id": ids[1]}),
    "stored row, other key of another": ("code", lambda _: {"code": "g0", "tag": "t1", "a": 99}),
    "the same the other way round": ("tag", lambda _: {"code": "g0", "tag": "t1", "a": 99}),
    "stored row, composite key of another": (
        "code",
        lambda _: {"code": "g0", "maker": "m", "serial": 1, "a": 99},
    ),
    "stored row, primary key of another": (
        "code",
        lambda ids: {"code": "g0", "id": ids[1], "a": 99},
    ),
    "by primary key": ("id", lambda ids: {"id": ids[0], "code": "g1", "a": 99}),
}


@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("name", TAKEN)
async def test_upsert_overwrites_no_row_of_another_key(
    gears: tuple[Database, list[UUID]],
    name: str,
    returning: bool,
) -> None:
    db, ids = gears
    on, item = TAKEN[name]
    before = await dumps(db)
    async with db.session() as session:
        service: Any = Gears(session)
        wrong = item(ids)
        fine = {"code": "g5", "tag": "t5", "a": 5} | ({"id": ids[5]} if "id" in wrong else {})
        with pytest.raises(UniqueViolation):
            async with service.transaction():
                await service.upsert_multi([gear(fine), gear(wrong)], on=on, returning=returning)
        assert await service.count() == 6  # usable
    assert await dumps(db) == before


async def test_upsert_of_a_stored_row_whole(gears: tuple[Database, list[UUID]]) -> None:
    """Other keys that belong to the same row are no obstacle."""
    db, ids = gears
    async with db.session() as session:
        item = GearPut(id=ids[0], code="g0", tag="t0", maker="m", serial=0, a=99)
        for on in ("id", "code", "tag", ("maker", "serial")):
            row = await Gears(session).upsert(item, on=on)
            assert (row.id, row.a) == (ids[0], 99)
        moved = await Gears(session).upsert({"code": "g0", "tag": "free"}, on="code")
        assert (moved.id, moved.tag) == (ids[0], "free")


async def test_upsert_refuses(gears: tuple[Database, list[UUID]]) -> None:
    db, _ = gears
    before = await dumps(db)
    refused: list[tuple[list[dict[str, Any]], Any, type[Exception], str]] = [
        ([{"code": "a"}], "note", InvalidQuery, r"no unique key over \(note\).*\(code\)"),
        ([{"code": "a"}], ("code", "tag"), InvalidQuery, r"\(code, tag\).*\(maker, serial\)"),
        ([{"code": "a"}], "nope", InvalidQuery, r"no unique key over \(nope\)"),
        ([{"code": "a"}], "tag", InvalidValue, "without a value for tag"),
        ([{"code": "a", "tag": None}], "tag", InvalidValue, "without a value for tag"),
        (
            [{"code": "a", "maker": "m"}],
            ("maker", "serial"),
            InvalidValue,
            r"without a value for serial .*\(maker, serial\)",
        ),
        (
            [{"code": "a", "a": 1}, {"code": "b"}, {"code": "a"}],
            "code",
            InvalidValue,
            r"items \d+ and \d+ have the same key \(code\)",
        ),
        ([{"code": "g0", "b": -1}], "code", CheckViolation, "b_positive"),
        ([{"code": "new", "owner_id": 12345}], "code", ForeignKeyViolation, "referenced row"),
    ]
    async with db.session() as session:
        service = Gears(session)
        for items, on, error, message in refused:
            with pytest.raises(error, match=message):
                async with service.transaction():
                    await service.upsert_multi(cast(Any, items), on=on)
    assert await dumps(db) == before


async def test_upsert_of_versions(store: Database) -> None:
    async with store.session() as session:
        service = Docs(session)
        first = await service.upsert({"name": "a", "body": "x"}, on="name")
        assert first.version == 1
        created, changed = first.created_at, first.updated_at
        again = await service.upsert({"name": "a", "body": "y"}, on="name")
        assert (again, again.version, again.created_at) == (first, 2, created)
        assert again.updated_at > changed
        same = await service.upsert({"name": "a"}, on="name")
        assert (same.version, same.body) == (3, "y")
        same.body = "z"  # the ORM goes on from there
    assert [(row["body"], row["version"]) for row in await everything(store, BulkDoc)] == [("z", 4)]


@pytest.mark.parametrize("kind", [RawStricts, Stricts])
async def test_an_upsert_of_validated_rows_sets_what_was_given(
    store: Database, kind: type[RawStricts]
) -> None:
    """SQLModel says of a row that it was set as a whole."""
    async with store.session() as session:
        service = kind(session)
        row = await service.upsert({"name": "a", "size": 5, "mail": "A@b"}, on="name")
        assert (await service.upsert({"name": "a"}, on="name")).size == 5
        assert (await service.upsert_multi([{"name": "a", "mail": None}], on="name"))[0] is row
        assert (row.size, row.mail) == (5, None)
        await service.update(row, {"name": "b"})
        await service.update_multi({row.id: {"name": "c"}})
        await service.update_where({"name": "d"}, id=row.id)
        assert (row.name, row.size) == ("d", 5)
        assert (await service.create({"name": "e"})).size == 3


async def test_upsert_brings_soft_deleted_rows_back(store: Database) -> None:
    async with store.session() as session:
        made = await Notes(session).create_multi(
            [{"name": "a", "body": "x"}, {"name": "b"}, {"name": "c"}]
        )
        await Notes(session).delete_where(name__in=["a", "b"], allow_multiple=True)
    async with store.session() as session:
        service = Notes(session)
        loaded = await service.with_deleted().get(made[1].id)
        rows = await service.upsert_multi([{"name": "b"}, {"name": "a", "body": "y"}], on="name")
        assert [row.id for row in rows] == [made[1].id, made[0].id]
        assert [row.deleted_at for row in rows] == [None, None]
        assert rows[0] is loaded
        await service.delete(rows[0])
        assert await service.upsert_multi([{"name": "b"}], on="name", returning=False) == 1
        assert loaded.deleted_at is None
        assert await service.count() == 3


async def test_names_that_the_database_holds_for_the_same(store: Database) -> None:
    """MariaDB's collations ignore case: the stored row is found, and no other is made."""
    async with store.session() as session:
        service = Notes(session)
        first = await service.create({"name": "Café", "body": "x"})
        row = await service.upsert({"name": "CAFE", "body": "y"}, on="name")
        got, created = await service.get_or_create({"name": "cafÉ"}, on="name")
        if store.engine.dialect.name == "mysql":
            assert (row, row.body, row.name) == (first, "y", "Café")
            assert (got, created) == (first, False)
            assert await service.count() == 1
        else:
            assert (row.name, first.body, created) == ("CAFE", "x", True)
            assert await service.count() == 3


@pytest.mark.only("postgresql", "sqlite")
async def test_partial_keys(store: Database) -> None:
    async with store.session() as session:
        service = Seats(session)
        closed = await service.create_multi({"name": "a", "is_open": False} for _ in range(2))
        first = await service.upsert({"name": "a", "price": 1}, on="name")
        again = await service.upsert({"name": "a", "price": 2}, on="name")
        assert again is first
        assert first not in closed
        assert (again.price, [row.price for row in closed]) == (2, [0, 0])


@pytest.mark.only("postgresql", "sqlite")
async def test_get_or_create_by_a_partial_key(store: Database) -> None:
    """Rows that the index leaves out do not have the key."""
    async with store.session() as session:
        service = Seats(session)
        closed = await service.create_multi({"name": "a", "is_open": False} for _ in range(2))
        row, created = await service.get_or_create({"name": "a"}, on="name")
        assert created
        assert row not in closed
        assert await service.get_or_create({"name": "a"}, on="name") == (row, False)


async def test_upsert_by_keys_of_other_types(store: Database) -> None:
    async with store.session() as session:
        service = Cells(session)
        item = {"x": 1, "y": date(2026, 1, 1)}
        first = await service.upsert({**item, "value": "a"}, on=("x", "y"))
        assert await service.upsert({**item, "value": "b"}, on=("x", "y")) is first
        assert await service.upsert(item, on=("y", "x")) is first  # nothing to overwrite
        assert first.value == "b"
        odd = await Odd(session).upsert({"slot": 1, "image": b"1"}, on="slot")
        assert await Odd(session).upsert({"slot": 1, "image": b"2"}, on="slot") is odd
        assert odd.image == b"2"


# -- get_or_create ----------------------------------------------------------------


async def test_get_or_create(gears: tuple[Database, list[UUID]], statements: Counter) -> None:
    db, ids = gears
    before = await dumps(db)
    async with db.session() as session:
        service = Gears(session)
        with statements(db) as sent:
            row, created = await service.get_or_create({"code": "g0", "a": 99}, on="code", n=5)
            assert (row.id, created, row.a) == (ids[0], False, 0)
        assert verbs(sent) == ["SELECT"]
        assert row.model_dump() == before[ids[0]]
        new, created = await service.get_or_create(
            GearCreate(code="x", a=1), on="code", load="owner", owner_id=2
        )
        assert (created, new.a, new.b, new.note, new.origin) == (True, 1, 8, "new", "here")
        assert new.owner is not None
        assert new.owner.name == "two"
        assert await service.get_or_create({"code": "x"}, on="code") == (new, False)
        key = {"maker": "m", "serial": 3}
        row, created = await service.get_or_create({"code": "y", **key}, on=("maker", "serial"))
        assert (row.id, created) == (ids[3], False)
        with pytest.raises(InvalidValue, match="without a value for tag"):
            await service.get_or_create({"code": "z"}, on="tag")
        with pytest.raises(InvalidQuery, match="no unique key over"):
            await service.get_or_create({"code": "z"}, on="note")
        new.note = "mine"
    after = await dumps(db)
    assert after.pop(new.id)["note"] == "mine"
    assert after == before


async def test_get_or_create_refuses(gears: tuple[Database, list[UUID]]) -> None:
    db, _ = gears
    async with db.session() as session:
        service = Gears(session)
        await service.create({"code": "before"})
        # No savepoint of ours: the transaction is usable all the same.
        with pytest.raises(UniqueViolation):
            await service.get_or_create({"code": "x", "tag": "t1"}, on="code")
        await service.create({"code": "after"})
        notes = Notes(session)
        await notes.delete(await notes.create({"name": "gone"}))
        with pytest.raises(UniqueViolation):
            await notes.get_or_create({"name": "gone"}, on="name")
        assert await notes.with_deleted().get_or_create({"name": "gone"}, on="name") == (
            await notes.with_deleted().get(name="gone"),
            False,
        )
        assert await notes.count() == 0
    codes = {row["code"] for row in (await dumps(db)).values()}
    assert {"before", "after"} < codes
    assert "x" not in codes


async def test_get_or_create_leaves_pending_changes_alone(store: Database) -> None:
    async with store.session() as session:
        service = Notes(session)
        session.add(BulkNote(name="pending"))
        row, created = await service.get_or_create({"name": "pending"}, on="name")
        assert (row.name, created) == ("pending", False)
    assert len(await everything(store, BulkNote)) == 1


# -- at once ----------------------------------------------------------------------


async def at_once(
    db: Database, service: type[Any], call: Callable[[Any, int], Awaitable[Any]]
) -> list[Any]:
    """What 20 sessions get that start together; each has its own transaction."""

    async def one(number: int) -> Any:
        async with db.session() as session:
            return await call(service(session), number)

    return await asyncio.gather(*map(one, range(20)))


async def test_upserts_at_once(store: Database) -> None:
    rows = await at_once(store, Gears, lambda s, n: s.upsert({"code": "k", "a": n}, on="code"))
    assert len({row.id for row in rows}) == 1
    assert sorted(row.a for row in rows) == [*range(20)]  # each sees what it wrote
    (stored,) = await everything(store, BulkGear)
    assert stored["revision"] == 20
    last = next(row for row in rows if row.revision == 20)
    assert stored == last.model_dump()


async def test_upserts_of_counted_keys_at_once(store: Database) -> None:
    rows = await at_once(
        store, Docs, lambda s, n: s.upsert({"name": "k", "body": str(n)}, on="name")
    )
    assert len({row.id for row in rows}) == 1
    assert sorted(row.version for row in rows) == [*range(1, 21)]
    many = await at_once(
        store,
        Notes,
        lambda s, n: s.upsert_multi(
            [{"name": f"k{i}", "body": str(n)} for i in range(5)], on="name"
        ),
    )
    assert len({row.id for rows in many for row in rows}) == 5
    assert len(await everything(store, BulkNote)) == 5


async def test_get_or_creates_at_once(store: Database) -> None:
    def by(key: str) -> Callable[[Any, int], Awaitable[Any]]:
        return lambda service, _: service.get_or_create({key: "k"}, on=key)

    cases: list[tuple[type[Any], type[SQLModel], str]] = [
        (Gears, BulkGear, "code"),
        (Docs, BulkDoc, "name"),
        (Hooked, BulkHooked, "name"),
    ]
    for service, model, key in cases:
        found = await at_once(store, service, by(key))
        assert len({row.id for row, _ in found}) == 1
        assert sum(created for _, created in found) == 1
        assert len(await everything(store, model)) == 1


# -- a database without RETURNING -------------------------------------------------

WITHOUT_RETURNING: list[Callable[[Database], Awaitable[None]]] = [
    test_create_multi_makes_what_create_makes,
    test_keys_that_are_given_and_keys_that_are_made,
    test_composite_keys,
    test_defaults_of_the_columns,
    test_made_rows_belong_to_the_session,
    test_hooks_see_every_row,
    test_a_table_class_as_payload_is_validated,
    test_types_that_json_cannot_carry,
    test_update_multi_and_soft_deleted_rows,
    test_upsert_of_versions,
    test_upsert_brings_soft_deleted_rows_back,
    test_names_that_the_database_holds_for_the_same,
    test_upsert_by_keys_of_other_types,
    test_get_or_create_leaves_pending_changes_alone,
    test_upserts_at_once,
    test_get_or_creates_at_once,
]


@pytest.fixture
async def mysql_like(store: Database) -> Database:
    """MariaDB as MySQL."""
    async with store.engine.connect():
        pass  # it looks for RETURNING at the first connection
    dialect = store.engine.dialect
    dialect.insert_returning = dialect.update_returning = dialect.delete_returning = False
    return store


@pytest.mark.only("mysql")
@pytest.mark.parametrize("test", WITHOUT_RETURNING, ids=lambda test: test.__name__)
async def test_without_returning(
    mysql_like: Database, statements: Counter, test: Callable[[Database], Awaitable[None]]
) -> None:
    with statements(mysql_like) as sent:
        await test(mysql_like)
    assert sent
    assert not [statement for statement in sent if "RETURNING" in statement]


@pytest.mark.only("mysql")
async def test_random_rows_without_returning(mysql_like: Database, statements: Counter) -> None:
    chance = random.Random(SEED)  # noqa: S311
    items = [
        sent_only(code=f"c{n}", a=some(chance, n), note=some(chance, "x"), level=some(chance, 5))
        for n in range(500)
    ]
    async with mysql_like.session() as session:
        made = await Gears(session).create_multi(items)
        with statements(mysql_like) as sent:
            again = await Gears(session).upsert_multi(
                [{"code": item["code"], "b": 1} for item in items], on="code"
            )
        assert verbs(sent)[:2] == ["INSERT", "SELECT"]
        assert again == made
    for item, row in zip(items, made, strict=True):
        assert (row.code, row.a, row.note) == (item["code"], item.get("a"), item.get("note", "new"))
        assert (row.level, row.b) == (item.get("level") or 1, 1)
    stored = await dumps(mysql_like)
    assert stored == {row.id: row.model_dump() for row in made}
