"""Filters, sorting and loading by name: the same rows on every database."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.interfaces import ORMOption
from sqlmodel import SQLModel, col

from app.db import OPERATORS, Database, InvalidQuery
from app.db.query import build_filters, build_load, build_order, mapper_of

from .conftest import Counter
from .models import Item, ItemCreate, ItemService, Kind, Shop, ShopService, Tag

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
NORTH, SOUTH = UUID(int=1), UUID(int=2)
SAW, BLADE, BALL, KITE = "saw", "Saw blade", "ball", "kite"
ALL = {SAW, BLADE, BALL, KITE}


@pytest.fixture
async def stock(db: Database) -> Database:
    """Four items: in two shops and none, with two tags, in three generations."""
    red, old = Tag(name="red"), Tag(name="old")
    north, south = Shop(id=NORTH, name="north"), Shop(id=SOUTH, name="south")
    saw = Item(id=UUID(int=11), name=SAW, price=10, note="50% off", kind=Kind.TOOL, shop=north)
    blade = Item(id=UUID(int=12), name=BLADE, price=10, note="a_b", kind=Kind.TOOL, shop=north)
    ball = Item(id=UUID(int=13), name=BALL, price=3, note=r"c\d", kind=Kind.TOY, shop=south)
    kite = Item(id=UUID(int=14), name=KITE, price=7)
    blade.parent, kite.parent = saw, blade
    saw.sold_at = NOON
    saw.tags, blade.tags, kite.tags = [red, old], [red], [old]
    async with db.session() as session:
        session.add_all([saw, blade, ball, kite, Tag(name="unused")])
    return db


async def found(db: Database, **filters: Any) -> list[str]:
    """Names of the rows; `list`, `count` and `exists` must agree."""
    async with db.read_session() as session:
        service = ItemService(session)
        names = [item.name for item in await service.list(**filters)]
        assert await service.count(**filters) == len(names)
        assert await service.exists(**filters) is bool(names)
    return names


# Expected names; a dict where databases differ: MySQL's default collation ignores case,
# SQLite's LIKE does for ASCII; SQLite has no escape character for LIKE by default.
CASES: list[tuple[dict[str, Any], set[str] | dict[str, set[str]]]] = [
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
    ({"parent__parent__is_null": True}, {SAW, BLADE, BALL} - {SAW, BALL}),
    ({"shop__name": "north", "tags__name": "old", "price": 10}, {SAW}),
]


async def test_filters(stock: Database, driver: str) -> None:
    database = driver.partition("-")[0]
    for filters, expected in CASES:
        wanted = expected if isinstance(expected, set) else expected[database]
        # Sorted lists: a row that comes twice is an error.
        assert sorted(await found(stock, **filters)) == sorted(wanted), filters


def test_every_operator_has_a_case() -> None:
    keys = [key for filters, _ in CASES for key in filters]
    used = {op for op in OPERATORS if any(key.endswith(f"__{op}") for key in keys)}
    assert used == set(OPERATORS)


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"nmae": "x"},
        "^nmae: Item has no field 'nmae'; did you mean 'name'. There are: child",
    ),
    ({"nmae__gt": "x"}, "^nmae__gt: Item has no field 'nmae'"),
    ({"qqq": 1}, "^qqq: Item has no field 'qqq'. There are: "),
    ({"model_fields": 1}, "Item has no field 'model_fields'"),
    (
        {"name__equals": "x"},
        "^name__equals: Item has no operator 'equals'. .*There are: betw",
    ),
    ({"name__gte__lt": 1}, "no operator 'gte__lt'"),
    ({"shop__nmae": "x"}, "^shop__nmae: Shop has no field 'nmae'; did you mean 'name'"),
    ({"shop__items__prize": 1}, "^shop__items__prize: Item has no field 'prize'.*'price'"),
    ({"shop__name__startwith": "x"}, "Shop has no operator 'startwith'.*'startswith'"),
    ({"shop": NORTH}, "^shop: Item.shop is a relation; .*e.g. shop__id="),
    ({"shop__is_null": None}, "^shop__is_null: takes True or False, not NoneType"),
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
]


@pytest.mark.parametrize(("filters", "message"), BAD, ids=[next(iter(f)) for f, _ in BAD])
def test_bad_filter(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        build_filters(Item, filters)


def test_numbers_of_other_kinds_and_untyped_columns_are_taken() -> None:
    from sqlalchemy import JSON, Boolean, Float, Numeric
    from sqlmodel import Field

    class Part(SQLModel, table=True):
        id: int = Field(primary_key=True)
        weight: float = Field(sa_type=Float)
        cost: Decimal = Field(sa_type=Numeric)
        sold: bool = Field(sa_type=Boolean)
        data: dict[str, Any] = Field(sa_type=JSON)

    good = {"weight": 1, "weight__gt": Decimal(1), "cost": 1, "cost__lt": 1.5, "sold": True}
    assert len(build_filters(Part, good | {"data": {"a": [1]}, "data__ne": [1]})) == 7
    for bad in ({"weight": "1"}, {"weight": True}, {"sold": 1}, {"cost": "1.0"}):
        with pytest.raises(InvalidQuery):
            build_filters(Part, bad)
    SQLModel.metadata.remove(SQLModel.metadata.tables["part"])


@pytest.mark.parametrize("method", ["get", "get_or_none", "list", "page", "count", "exists"])
async def test_every_method_refuses_a_bad_filter(db: Database, method: str) -> None:
    async with db.read_session() as session:
        with pytest.raises(InvalidQuery, match="did you mean 'name'"):
            await getattr(ItemService(session), method)(nmae="x")


# -- order ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ((), [SAW, BLADE, BALL, KITE]),  # by primary key
        ("price", [BALL, KITE, SAW, BLADE]),
        ("-price", [SAW, BLADE, KITE, BALL]),
        (("-price", "-id"), [BLADE, SAW, KITE, BALL]),
        (["-price", col(Item.id).desc()], [BLADE, SAW, KITE, BALL]),
        (col(Item.price) * -1, [SAW, BLADE, KITE, BALL]),
    ],
    ids=["none", "name", "descending", "two", "expression in a list", "expression"],
)
async def test_order(stock: Database, order_by: Any, expected: list[str]) -> None:
    async with stock.read_session() as session:
        service = ItemService(session)
        assert [row.name for row in await service.list(order_by=order_by)] == expected
        # Rows with equal keys keep their places from page to page; the total is right
        # past the end.
        paged = [await service.page(order_by=order_by, limit=1, offset=n) for n in range(5)]
    assert [row.name for page in paged for row in page.items] == expected
    assert [(page.total, page.limit, page.offset) for page in paged] == [
        (4, 1, n) for n in range(5)
    ]


async def test_limit_and_offset(stock: Database) -> None:
    async with stock.read_session() as session:
        service = ItemService(session)
        assert [row.name for row in await service.list(offset=2)] == [BALL, KITE]
        assert [row.name for row in await service.list(limit=1, offset=1)] == [BLADE]
        assert await service.list(limit=0) == []
        with pytest.raises(InvalidQuery, match="limit must not be negative: -1"):
            await service.list(limit=-1)
        with pytest.raises(InvalidQuery, match="offset must not be negative: -2"):
            await service.page(offset=-2)


@pytest.mark.parametrize("order_by", ["prize", "-prize", ["price", "prize"], "--price", "shop"])
def test_bad_order(order_by: Any) -> None:
    with pytest.raises(InvalidQuery, match=r"^order_by: Item has no field .*There are: created_at"):
        build_order(Item, order_by)


# -- load -----------------------------------------------------------------------


def shape(item: Item) -> tuple[Any, ...]:
    """What the relations hold, without touching the database (`vars` never loads)."""
    loaded = {name: vars(item).get(name, ...) for name in ("shop", "parent", "children", "tags")}
    return tuple((name, _names(value)) for name, value in loaded.items() if value is not ...)


def _names(value: Any) -> Any:
    if value is None or isinstance(value, SQLModel):
        return getattr(value, "name", None)
    return sorted(each.name for each in value)


SHAPES: list[tuple[Any, int, dict[str, tuple[Any, ...]]]] = [
    ((), 1, {SAW: (), KITE: ()}),
    ("shop", 1, {SAW: (("shop", "north"),), KITE: (("shop", None),)}),
    ("parent", 1, {SAW: (("parent", None),), KITE: (("parent", BLADE),)}),
    ("tags", 2, {SAW: (("tags", ["old", "red"]),), BALL: (("tags", []),)}),
    ("children", 2, {SAW: (("children", [BLADE]),), KITE: (("children", []),)}),
    (("shop", "tags"), 2, {SAW: (("shop", "north"), ("tags", ["old", "red"]))}),
    (selectinload(Item.tags), 2, {BALL: (("tags", []),)}),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("load", "count", "shapes"), SHAPES, ids=range(len(SHAPES)))
async def test_load(
    stock: Database,
    statements: Counter,
    load: str | tuple[str, ...] | ORMOption,
    count: int,
    shapes: dict[str, tuple[Any, ...]],
) -> None:
    for name, expected in shapes.items():
        async with stock.session() as session:
            with statements(stock) as sent:
                item = await ItemService(session).get(name=name, load=load)
            assert (shape(item), len(sent)) == (expected, count)


async def test_load_over_two_relations(stock: Database) -> None:
    async with stock.read_session() as session:
        kite = await ItemService(session).get(name=KITE, load=("parent.parent.tags", "parent.shop"))
    assert kite.parent
    assert kite.parent.shop
    assert kite.parent.parent
    assert kite.parent.shop.name == "north"
    assert {tag.name for tag in kite.parent.parent.tags} == {"old", "red"}
    async with stock.read_session() as session:
        north = await ShopService(session).get(NORTH, load="items.tags")
    assert {i.name: len(i.tags) for i in north.items} == {SAW: 2, BLADE: 1}


async def test_limit_counts_parents_and_loads_all_their_rows(stock: Database) -> None:
    async with stock.read_session() as session:
        items = await ItemService(session).list(limit=2, load=("tags", "shop.items"))
    assert [(item.name, len(item.tags)) for item in items] == [(SAW, 2), (BLADE, 1)]
    assert items[0].shop
    assert len(items[0].shop.items) == 2


async def test_load_of_a_row_that_the_session_has(stock: Database) -> None:
    async with stock.session() as session:
        service = ItemService(session)
        first = await service.get(name=SAW)
        assert shape(first) == ()
        assert await service.get(name=SAW, load=("tags", "shop", "children")) is first
        assert len(shape(first)) == 3
        child = await service.create(
            ItemCreate(name="tooth", parent_id=first.id), load=("parent", "tags", "children")
        )
        assert child.parent is first
        assert (child.tags, child.children) == ([], [])
        # A reload for `load` after a write shows the new relation, not the cached one.
        await service.update(child, {"shop_id": SOUTH}, load="shop")
        assert child.shop
        assert child.shop.name == "south"
        await service.update(child, {"shop_id": NORTH}, load="shop")
        assert child.shop.name == "north"


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("shpo", "^load 'shpo': Item has no relation 'shpo'; did you mean 'shop'. There are: chi"),
        ("shop.itmes", "^load 'shop.itmes': Shop has no relation 'itmes'; did you mean 'items'"),
        (["tags", "name"], "Item has no relation 'name'"),
        ("shop.", "Shop has no relation ''"),
        ("", "Item has no relation ''"),
    ],
)
def test_bad_load(load: Any, message: str) -> None:
    with pytest.raises(InvalidQuery, match=message):
        build_load(Item, load)


def test_model_without_a_table() -> None:
    with pytest.raises(TypeError, match="ItemCreate has no table; declare it with table=True"):
        mapper_of(ItemCreate)
