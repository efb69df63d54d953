"""What the mutation check found: behaviour that no other test would have missed."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator
from sqlalchemy import JSON, Dialect, Index, MetaData, Numeric, String, TypeDecorator, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import registry
from sqlmodel import Field, Relationship, SQLModel, select

from app.db import (
    Database,
    InvalidQuery,
    InvalidValue,
    NotFound,
    NotNullViolation,
    ServiceBase,
    Timestamp,
    bulk,
)
from app.db.base import NAMING_CONVENTION, SoftDeleteMixin
from app.db.client_query import CursorQuery, PageQuery, query_model
from app.db.errors import TransientError
from app.db.loading import build_load, needs_unique
from app.db.paging import CursorPage, Keyset
from app.db.sorting import build_order, sort_keys

from .conftest import Counter
from .models import Item, ItemService, Shop, ShopService

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Own(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING_CONVENTION))):
    """Tables that no other test creates."""


class LeftBox(SoftDeleteMixin, Own, table=True):
    """Its lids are always joined."""

    id: int = Field(primary_key=True)
    name: str = Field(default="box", max_length=20)
    data: Any = Field(default=None, sa_type=JSON)

    lids: list["LeftLid"] = Relationship(
        back_populates="box", sa_relationship_kwargs={"lazy": "joined"}
    )


class LeftLid(SoftDeleteMixin, Own, table=True):
    id: int = Field(primary_key=True)
    box_id: int | None = Field(default=None, foreign_key="leftbox.id")

    box: LeftBox | None = Relationship(back_populates="lids")


class BoxService(ServiceBase[LeftBox, LeftBox, LeftBox]):
    pass


class LidUpdate(SQLModel):
    deleted_at: datetime | None = None
    box: Any = None


class LidService(ServiceBase[LeftLid, LeftLid, LidUpdate]):
    pass


class LeftPair(Own, table=True):
    """Nothing but its key."""

    a: int = Field(primary_key=True)
    b: int = Field(primary_key=True)


class PairService(ServiceBase[LeftPair, LeftPair, LeftPair]):
    pass


class Lower(TypeDecorator[str]):
    """The table has other text than Python gave."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return value and value.lower()


class LeftCode(Own, table=True):
    id: int | None = Field(default=None, primary_key=True)
    code: str = Field(sa_type=Lower, unique=True)
    size: int = Field(default=0, ge=0, le=9)
    rank: int = 0
    note: str | None = Field(default="blank", max_length=20)
    price: Decimal = Field(default=Decimal(0), sa_type=Numeric(10, 2))
    at: datetime = Field(default=AT, sa_type=Timestamp)


class Unmade(SQLModel, registry=registry(metadata=MetaData())):
    """Tables that no database gets: MariaDB has no index over expressions."""


class LeftIndexed(Unmade, table=True):
    __table_args__ = (
        Index("ix_left_name", "name"),
        Index("ix_left_upper", text("upper(note)"), unique=True),
    )

    id: int | None = Field(default=None, primary_key=True)
    name: str
    note: str


class Animal(SQLModel):
    """With a default that the models have not."""

    name: str = "none"


class LeftChecked(Own, table=True):
    """A rule of the model alone: each row is made and validated."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(default="", max_length=20)

    @field_validator("name")
    @classmethod
    def _upper(cls, name: str) -> str:
        return name.upper()


numbers = count(1)


class LeftToken(Own, table=True):
    """Its table computes a value for each row."""

    id: int | None = Field(default=None, primary_key=True)
    token: int | None = Field(default=None, sa_column_kwargs={"default": lambda: next(numbers)})
    name: str | None = Field(default=None, max_length=20)


class TokenService(ServiceBase[LeftToken, Animal, Animal]):
    pass


class EmptyTokenService(ServiceBase[LeftToken, SQLModel, SQLModel]):
    pass


class LeftId(Own, table=True):
    id: int | None = Field(default=None, primary_key=True)


class IdService(ServiceBase[LeftId, SQLModel, SQLModel]):
    pass


class CheckedService(ServiceBase[LeftChecked, Animal, Animal]):
    pass


class LeftAnimal(Own, table=True):
    """The ORM writes which class a row has."""

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: int | None = Field(default=None, primary_key=True)
    kind: str = Field(default="", max_length=20)
    name: str = Field(default="", max_length=20)


class AnimalService(ServiceBase[LeftAnimal, Animal, Animal]):
    pass


class Code(SQLModel):
    """Without the bounds and the type that the model has."""

    code: str
    size: int = 0
    rank: Any = 0


PARTS = {
    "year": (1, 9999),
    "quarter": (1, 4),
    "month": (1, 12),
    "day": (1, 31),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 59),
}


class CodeService(ServiceBase[LeftCode, Code, Code]):
    client_filters = ("code__contains", "code__in", "price", *(f"at__{part}" for part in PARTS))


@pytest.fixture
async def store(db: Database) -> AsyncGenerator[Database]:
    """Box 1 with lids 1, 2 and (3), which is soft-deleted; box 2 without."""
    async with db.engine.begin() as connection:
        await connection.run_sync(Own.metadata.create_all)
    async with db.session() as session:
        session.add_all([LeftBox(id=1, data=["a", "b"]), LeftBox(id=2, data={"1": "b"})])
        await session.flush()
        session.add_all(
            LeftLid(id=n, box_id=1, deleted_at=AT if n == 3 else None) for n in (1, 2, 3)
        )
    yield db
    async with db.engine.begin() as connection:
        await connection.run_sync(Own.metadata.drop_all)


# -- reading ----------------------------------------------------------------------


async def test_defaults_of_pages_and_streams(db: Database) -> None:
    async with db.session() as session:
        shops = ShopService(session)
        await shops.create_multi([{"name": f"s{n}"} for n in range(1_001)], returning=False)
        assert [len(batch) async for batch in shops.stream()] == [1_000, 1]
        assert (await shops.page()).limit == 50
        assert (await shops.cursor_page()).limit == 50


async def test_collections_that_the_model_joins(store: Database) -> None:
    async with store.session() as session:
        boxes = BoxService(session)
        assert [box.id for box in await boxes.list(order_by="id")] == [1, 2]
        assert [box.id for box in (await boxes.cursor_page(order_by="id")).items] == [1, 2]
        assert len((await boxes.get(1)).lids) == 3


@pytest.mark.only("postgresql", "mysql")
async def test_readers_share_a_lock(db: Database) -> None:
    async with db.session() as session:
        shop = await ShopService(session).create({"name": "shop"})
    async with db.session() as one, db.session() as two:
        assert await ShopService(one).get(shop.id, lock="share")
        assert await asyncio.wait_for(ShopService(two).get(shop.id, lock="share"), 5)
        with pytest.raises(TransientError):
            async with db.session() as three:
                await ShopService(three).get(shop.id, lock="nowait")


@pytest.mark.parametrize(
    ("many", "one", "repeats"),
    [
        ("select", "joined", False),
        ("selectin", "select", False),
        ("joined", "select", True),
        (False, "select", True),  # the same in SQLAlchemy's words
    ],
)
def test_which_models_repeat_rows(many: Any, one: str, repeats: bool) -> None:
    class Alone(SQLModel, registry=registry(metadata=MetaData())):
        pass

    class LeftMany(Alone, table=True):
        id: int = Field(primary_key=True)
        ones: list["LeftOne"] = Relationship(
            back_populates="many", sa_relationship_kwargs={"lazy": many}
        )

    class LeftOne(Alone, table=True):
        id: int = Field(primary_key=True)
        many_id: int | None = Field(default=None, foreign_key="leftmany.id")
        many: LeftMany | None = Relationship(
            back_populates="ones", sa_relationship_kwargs={"lazy": one}
        )

    assert needs_unique(LeftMany, ()) is repeats
    assert needs_unique(LeftOne, ()) is repeats


async def test_relations_load_lazily_unless_told_otherwise(db: Database) -> None:
    async with db.session() as session:
        session.add(Shop(name="shop", items=[Item(name="item")]))
    async with db.session() as session:
        shop = await ShopService(session).get(name="shop")
        assert await session.run_sync(lambda _: [item.name for item in shop.items]) == ["item"]


async def test_build_load_leaves_out_deleted_rows(store: Database) -> None:
    async with store.session() as session:
        for deleted, found in (({}, 2), ({"deleted": True}, 3)):
            statement = select(LeftBox).where(LeftBox.id == 1)
            options = build_load(LeftBox, "lids", **deleted)
            rows = await session.exec(
                statement.options(*options).execution_options(populate_existing=True)
            )
            assert len(rows.unique().one().lids) == found


async def test_rows_that_the_session_expired(db: Database) -> None:
    async with db.session() as session:
        shops = ShopService(session)
        shop = await shops.create({"name": "old"})
        session.expire(shop)
        assert (await shops.update(shop, {"name": "new"})).name == "new"
        session.expire(shop)
        await shops.delete(shop)
        assert await shops.count() == 0


def test_the_longest_cursor() -> None:
    def page(length: int) -> CursorPage[LeftCode]:
        row = (LeftCode(code="x"), "x" * length, 1)
        return Keyset(LeftCode, "code", limit=1).page([row, row])

    shortest = page(0).next_cursor
    assert shortest is not None
    room = 4096 * 3 // 4 - len(shortest) * 3 // 4
    longest = page(room).next_cursor
    assert longest is not None
    assert len(longest) == 4096
    assert Keyset(LeftCode, "code", cursor=longest).parameters["keyset_0"] == "x" * room
    with pytest.raises(InvalidQuery, match="too long for a cursor"):
        page(room + 1)


async def test_a_position_of_nine_digits(store: Database) -> None:
    async with store.session() as session:
        found = await BoxService(session).list(data__000000001="b")
        assert [box.id for box in found] == [1]


async def test_many_keys_are_asked_for_in_parts(store: Database, statements: Counter) -> None:
    postgresql = store.engine.dialect.name == "postgresql"
    async with store.session() as session:
        for service, pks, parts in (
            (PairService(session), [(n, n) for n in range(500)], 1),
            (PairService(session), [(n, n) for n in range(501)], 2),
            (CodeService(session), [*range(10_000)], 1),
            (CodeService(session), [*range(10_001)], 1 if postgresql else 2),
        ):
            with statements(store) as sent:
                assert await service.get_by_ids(pks, strict=False) == []
            assert len(sent) == parts


@pytest.mark.parametrize(
    ("number", "rest"), [(10, "10"), (11, "10 and 1 more"), (12, "10 and 2 more")]
)
async def test_ten_missing_keys_are_named(store: Database, number: int, rest: str) -> None:
    async with store.session() as session:
        with pytest.raises(NotFound, match=f", {rest}$"):
            await CodeService(session).get_by_ids(range(1, number + 1))


def test_relations_sort_without_deleted_rows_by_default() -> None:
    for key in (sort_keys(LeftLid, ["box__name"])[0].order, build_order(LeftLid, "box__name")[0]):
        assert "deleted_at IS NULL" in str(key)
    assert "deleted_at IS NULL" in str(Keyset(LeftLid, "box__name").statement())
    assert "deleted_at" not in str(sort_keys(LeftLid, ["box__name"], deleted=True)[0].order)


async def test_integers_of_64_bits_in_documents(store: Database) -> None:
    async with store.session() as session:
        boxes = BoxService(session)
        for place, number in enumerate((2**63 - 1, -(2**63)), start=10):
            await boxes.create({"id": place, "data": {"n": number}})
            assert [box.id for box in await boxes.list(data__n=number)] == [place]
        for number in (2**63, -(2**64)):
            assert await boxes.list(data__n=number) == []


# -- aggregates -------------------------------------------------------------------


async def test_a_measure_named_like_its_field_sorts_as_the_measure(db: Database) -> None:
    async with db.session() as session:
        items = ItemService(session)
        await items.create_multi(
            [
                {"name": "a", "note": "dear", "price": 10},
                {"name": "b", "note": "many", "price": 6},
                {"name": "c", "note": "many", "price": 6},
            ]
        )
        rows = await items.aggregate({"price": "sum:price"}, group_by="note", order_by="-price")
        assert [(row.note, row.price) for row in rows] == [("many", 12), ("dear", 10)]


# -- bounds of what a client may ask ----------------------------------------------

CodePage = query_model(CodeService, PageQuery)
CodeCursor = query_model(CodeService, CursorQuery)


@pytest.mark.parametrize(
    ("model", "name", "least", "most"),
    [
        (PageQuery, "limit", 1, 100),
        (CodePage, "limit", 1, 100),
        (query_model(CodeService, PageQuery, 7), "limit", 1, 7),
        (CursorQuery, "limit", 1, 100),
        (CodeCursor, "limit", 1, 100),
        (PageQuery, "offset", 0, 2**31 - 2),
        (CodePage, "offset", 0, 2**31 - 2),
        *((CodePage, f"at__{part}", *bounds) for part, bounds in PARTS.items()),
    ],
)
def test_client_numbers(model: type[BaseModel], name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(model.model_validate({name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ValidationError):
            model.model_validate({name: value})


@pytest.mark.parametrize(
    ("model", "name", "most"),
    [
        (CodeCursor, "cursor", 4096),
        (CodePage, "code__contains", 1000),
        (CodePage, "code__in", 100),
    ],
)
def test_client_lengths(model: type[BaseModel], name: str, most: int) -> None:
    def given(length: int) -> dict[str, Any]:
        return {name: ["x"] * length if name == "code__in" else "x" * length}

    model.model_validate(given(most))
    with pytest.raises(ValidationError):
        model.model_validate(given(most + 1))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("1" * 35, "1" * 36),
        (f"{'1' * 35}.{'1' * 30}", f"{'1' * 36}.{'1' * 30}"),
        (f"0.{'1' * 30}", f"0.{'1' * 31}"),
    ],
)
def test_client_decimals(right: str, wrong: str) -> None:
    assert CodePage.model_validate({"price": right}).arguments()["price"] == Decimal(right)
    with pytest.raises(ValidationError):
        CodePage.model_validate({"price": wrong})


def test_client_defaults() -> None:
    assert PageQuery().arguments() == {"limit": 50, "offset": 0}
    assert CursorQuery().arguments() == {"limit": 50}
    assert CodePage().arguments() == {"limit": 50, "offset": 0}
    assert CodeCursor().arguments() == {"limit": 50}
    assert query_model(CodeService, PageQuery, 7)().arguments() == {"limit": 7, "offset": 0}


# -- writing ----------------------------------------------------------------------


async def test_an_update_that_deletes_softly_returns_its_row(store: Database) -> None:
    async with store.session() as session:
        lid = await LidService(session).update(1, {"deleted_at": AT}, load="box")
        assert lid.deleted_at == AT
        assert lid.box is not None
        assert lid.box.id == 1


async def test_delete_by_key_is_one_statement_beside_a_relation_to_one(
    store: Database, statements: Counter
) -> None:
    async with store.session() as session:
        with statements(store) as sent:
            await LidService(session).delete(1, hard=True)
        assert [statement.split()[0] for statement in sent] == ["DELETE"]


async def test_rows_that_are_only_a_key_come_back_in_order(store: Database) -> None:
    async with store.session() as session:
        made = await PairService(session).create_multi([{"a": 2, "b": 1}, {"a": 1, "b": 1}])
        assert [row.a for row in made] == [2, 1]


async def test_upsert_finds_keys_that_the_type_changes(store: Database) -> None:
    async with store.session() as session:
        codes = CodeService(session)
        for size in (1, 2):
            rows = await codes.upsert_multi([{"code": "B", "size": size}, {"code": "A"}], on="code")
            assert [(row.code, row.size) for row in rows] == [("b", size), ("a", 0)]


async def test_rules_that_only_the_model_has_name_the_item(store: Database) -> None:
    async with store.session() as session:
        codes = CodeService(session)
        with pytest.raises(
            InvalidValue, match=r"^item 1: LeftCode is not valid: size: .* 9$"
        ) as one:
            await codes.create_multi([{"code": "a", "size": 9}, {"code": "b", "size": 10}])
        assert one.value.columns == ("size",)
        with pytest.raises(InvalidValue, match=r"^LeftCode is not valid: size: .* 0$"):
            await codes.create_multi([{"code": "a"}], size=-1)
        with pytest.raises(InvalidValue, match=r"^item 0: LeftCode is not valid: rank: "):
            await codes.create_multi([{"code": "a", "rank": "first"}])


def test_what_is_a_unique_key() -> None:
    dialect = sqlite.dialect()
    assert [key.names for key in bulk.unique_keys(dialect, LeftIndexed)] == [("id",)]


async def test_rows_of_a_hierarchy_go_through_the_unit_of_work(store: Database) -> None:
    assert bulk.plain(LeftCode, "insert")
    assert not bulk.plain(LeftAnimal, "insert")
    async with store.session() as session:
        (made,) = await AnimalService(session).create_multi([{}], kind="animal")
        assert made.name == "none"


async def test_defaults_of_the_payload_count_where_the_model_validates(store: Database) -> None:
    async with store.session() as session:
        service = CheckedService(session)
        (one,) = await service.create_multi([{}])
        (two,) = await service.upsert_multi([{}], on="id", id=7)
        assert (one.name, two.name) == ("NONE", "NONE")


async def test_many_rows_take_no_relations(store: Database) -> None:
    async with store.session() as session:
        lids = LidService(session)
        for call in (
            lids.create_multi([{"id": 9}], box=None),
            lids.upsert_multi([{"id": 9}], on="id", box=None),
            lids.update_multi({1: {"box": None}}),
            lids.update_multi({1: {}}, box=None),
            lids.update_where({"box": None}, id=1),
            lids.get_or_create({"id": 9}, on="id", box=None),
        ):
            with pytest.raises(InvalidValue, match=r"^LeftLid\.box is a relation"):
                await call


@pytest.mark.only("mysql")
async def test_integers_are_compared_as_such(store: Database, statements: Counter) -> None:
    """MariaDB uses no index where a number is compared with text."""
    async with store.session() as session:
        with statements(store) as sent:
            await LidService(session).update_multi({1: {"deleted_at": AT}, 2: {"deleted_at": AT}})
        assert "c0 BIGINT PATH" in sent[0]


class OnlySize(SQLModel):
    size: int = 0


class OnlySizeService(ServiceBase[LeftCode, OnlySize, OnlySize]):
    pass


async def test_fields_that_the_payload_has_not(store: Database) -> None:
    async with store.session() as session:
        codes = OnlySizeService(session)
        (blank,) = await codes.create_multi([{}], code="a")
        (none,) = await codes.create_multi([{}], code="b", note=None)
        assert (blank.note, none.note) == ("blank", None)
        with pytest.raises(NotNullViolation):
            async with codes.transaction():
                await codes.create_multi([{}])


async def test_a_default_of_the_table_is_computed_for_each_row(store: Database) -> None:
    async with store.session() as session:
        rows = await TokenService(session).create_multi([Animal()] * 3)
        assert len({row.token for row in rows}) == 3


async def test_rows_without_any_value(store: Database) -> None:
    nothing: dict[str, Any] = {}
    async with store.session() as session:
        for service in (IdService(session), EmptyTokenService(session)):
            made = await service.create_multi([nothing] * 3)
            assert len({row.id for row in made}) == 3
            await service.create_multi([nothing] * 3, returning=False)
            assert await service.count() == 6
