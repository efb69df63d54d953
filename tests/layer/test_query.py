"""Loading by name: the same rows on every database."""

from typing import Any

import pytest
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.interfaces import ORMOption
from sqlmodel import SQLModel

from app.db import Database, InvalidQuery
from app.db.loading import build_load
from app.db.mapping import mapper_of

from .conftest import Counter
from .models import BALL, BLADE, KITE, NORTH, SAW, SOUTH, Item, ItemCreate, ItemService, ShopService

pytestmark = pytest.mark.anyio


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
