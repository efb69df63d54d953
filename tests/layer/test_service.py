"""ServiceBase: what it returns, and exactly which SQL it sends."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import ProgrammingError
from sqlmodel import col, select

from app.db import (
    Database,
    ForeignKeyViolation,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    ServiceBase,
    UniqueViolation,
)

from .conftest import ROOT, Counter
from .models import (
    Item,
    ItemCreate,
    ItemService,
    ItemTagService,
    ItemUpdate,
    Kind,
    Shop,
    ShopService,
    Tag,
)
from .typed import CountedItems

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

SAW, NORTH = UUID(int=11), UUID(int=1)
AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
async def stock(db: Database) -> Database:
    async with db.session() as session:
        north = Shop(id=NORTH, name="north")
        saw = Item(id=SAW, name="saw", price=10, shop=north, tags=[Tag(name="red")])
        session.add_all([saw, Item(name="axe", price=10, note="sharp"), Shop(name="south")])
    return db


# -- statements -----------------------------------------------------------------

Call = Callable[[ItemService], Awaitable[Any]]
NEW = ItemCreate(name="new", shop_id=NORTH)
KEY = ("shop_id", "name")


async def _update_a_row(service: ItemService) -> None:
    await service.update(await service.get(SAW), {"price": 11})


async def _update_a_loaded_row(service: ItemService) -> None:
    await service.update(await service.get(SAW, load="shop"), {"shop_id": None}, load="shop")


async def _update_many(service: ItemService) -> None:
    axe = (await service.list(name="axe"))[0].id
    service.session.expunge_all()
    assert await service.update_multi({SAW: {"price": 1}, axe: {"price": 2}}) == 2


async def _stream(service: ItemService) -> None:
    assert [len(batch) async for batch in service.stream(batch_size=5)] == [2]


COUNTS: dict[str, tuple[list[str], Call]] = {
    "get": (["SELECT"], lambda s: s.get(SAW)),
    "get with to-one": (["SELECT"], lambda s: s.get(SAW, load=("shop", "parent"))),
    "get with to-many": (["SELECT"] * 3, lambda s: s.get(SAW, load=("tags", "children"))),
    "get_or_none": (["SELECT"], lambda s: s.get_or_none(uuid4())),
    "get_by_ids": (["SELECT"], lambda s: s.get_by_ids([SAW, uuid4()], strict=False)),
    "list": (["SELECT"], lambda s: s.list(shop__name="north", order_by="-price", limit=5)),
    "list with to-many": (["SELECT"] * 2, lambda s: s.list(load="tags")),
    "get_multi": (["SELECT"], lambda s: s.get_multi(name="saw")),
    "page": (["SELECT"] * 2, lambda s: s.page(limit=1)),
    "last page": (["SELECT"], lambda s: s.page(tags__name="red")),  # tells the total
    "page past the last": (["SELECT"] * 2, lambda s: s.page(offset=9)),
    "page without total": (["SELECT"], lambda s: s.page(limit=1, total=False)),
    "page with to-many": (["SELECT"] * 3, lambda s: s.page(load=("shop", "tags"), limit=1)),
    "last page with to-many": (["SELECT"] * 2, lambda s: s.page(load=("shop", "tags"))),
    "cursor_page": (["SELECT"], lambda s: s.cursor_page(order_by="-price", limit=1)),
    "stream": (["SELECT"], _stream),
    "count": (["SELECT"], lambda s: s.count(tags__name="red")),
    "exists": (["SELECT"], lambda s: s.exists(name="saw")),
    "aggregate": (["SELECT"], lambda s: s.aggregate({"n": "count"}, group_by="shop__name")),
    "create": (["INSERT"], lambda s: s.create(ItemCreate(name="new"))),
    "create with load": (
        ["INSERT", "SELECT", "SELECT"],
        lambda s: s.create(ItemCreate(name="new"), load=("shop", "tags")),
    ),
    "create_multi": (["INSERT"], lambda s: s.create_multi([NEW, ItemCreate(name="b")])),
    "create_multi of none": ([], lambda s: s.create_multi([])),
    "update": (["UPDATE"], lambda s: s.update(SAW, {"price": 11})),
    "update with to-one": (
        ["UPDATE", "SELECT"],
        lambda s: s.update(SAW, {"price": 11}, load="shop"),
    ),
    "update with to-many": (
        ["UPDATE", "SELECT", "SELECT"],
        lambda s: s.update(SAW, {"price": 11}, load=("shop", "tags")),
    ),
    # The last SELECT fetches `revision`, which the database computes at an UPDATE.
    "update of a row": (["SELECT", "UPDATE", "SELECT"], _update_a_row),
    "update of a loaded row": (["SELECT", "UPDATE", "SELECT", "SELECT"], _update_a_loaded_row),
    "update of nothing": (["SELECT"], lambda s: s.update(SAW, ItemUpdate())),
    "update to the same": (["UPDATE"], lambda s: s.update(SAW, {"price": 10})),
    "update_multi": (["SELECT", "UPDATE"], _update_many),
    "update_multi of none": ([], lambda s: s.update_multi({})),
    "update_where": (["SELECT", "UPDATE"], lambda s: s.update_where({"price": 1}, name="saw")),
    "update_where of many": (
        ["UPDATE"],
        lambda s: s.update_where({"price": 1}, shop__name="north", allow_multiple=True),
    ),
    "upsert": (["INSERT"], lambda s: s.upsert(NEW, on=KEY)),
    "upsert_multi": (["INSERT"], lambda s: s.upsert_multi([NEW], on=KEY)),
    "upsert_multi, number": (["INSERT"], lambda s: s.upsert_multi([NEW], on=KEY, returning=False)),
    "get_or_create, there": (
        ["SELECT"],
        lambda s: s.get_or_create({"name": "saw", "shop_id": NORTH}, on=KEY),
    ),
    "get_or_create, new": (["SELECT", "INSERT"], lambda s: s.get_or_create(NEW, on=KEY)),
    # The link row goes with the item, by the ORM's cascade.
    "delete": (["SELECT", "SELECT", "DELETE", "DELETE"], lambda s: s.delete(SAW)),
}
MARIADB = {  # has no UPDATE ... RETURNING, and no RETURNING after ON DUPLICATE KEY UPDATE
    "update": ["UPDATE", "SELECT"],
    "update to the same": ["UPDATE", "SELECT"],
    "upsert": ["INSERT", "SELECT"],
    "upsert_multi": ["INSERT", "SELECT"],
    # To tell whether another unique key was taken.
    "upsert_multi, number": ["INSERT", "SELECT"],
}


@pytest.mark.parametrize("name", COUNTS)
async def test_statements(stock: Database, statements: Counter, name: str) -> None:
    expected, call = COUNTS[name]
    if stock.engine.dialect.name == "mysql":
        expected = MARIADB.get(name, expected)
    async with stock.session() as session:
        with statements(stock) as sent:
            await call(ItemService(session))
    assert [statement.split()[0] for statement in sent] == expected


async def test_a_row_of_the_session_is_not_selected_again(
    stock: Database, statements: Counter
) -> None:
    async with stock.session() as session:
        service = ShopService(session)
        south = await service.get(name="south")
        with statements(stock) as sent:
            await service.update(south, {"name": "east"})
            assert [each.split()[0] for each in sent] == ["UPDATE"]
            await service.delete(south)
    assert [each.split()[0] for each in sent] == ["UPDATE", "DELETE"]


async def test_count_and_exists_are_computed_by_the_database(
    stock: Database, statements: Counter
) -> None:
    async with stock.session() as session:
        with statements(stock) as sent:
            assert await ItemService(session).count(price=10) == 2
            assert await ItemService(session).exists(price=11) is False
    assert "count(*)" in sent[0]
    assert sent[1].startswith("SELECT EXISTS")


# -- read -----------------------------------------------------------------------


async def test_get(stock: Database) -> None:
    async with stock.read_session() as session:
        service = ItemService(session)
        saw = await service.get(SAW)
        assert saw.name == "saw"
        assert await service.get(name="saw", price__gt=9) is saw
        assert await service.get(col(Item.name) == "saw", price=10) is saw
        assert await service.get_or_none(SAW, price=11) is None
        assert await service.get_or_none(uuid4()) is None
        with pytest.raises(NotFound, match=r"^Item not found: name, price$"):
            await service.get(name="none", price=1)  # names, no values
        with pytest.raises(NotFound, match=r"^Item not found: no row matches$"):
            await service.get(col(Item.name) == "none")
        with pytest.raises(MultipleFound, match="several rows of Item match"):
            await service.get(price=10)
        with pytest.raises(InvalidQuery, match="get needs a primary key or a filter"):
            await service.get()
        with pytest.raises(InvalidQuery, match=r"primary key of Item is \(id\): \(1, 2\)"):
            await service.get((1, 2))
        with pytest.raises(InvalidQuery, match="id: eq takes UUID, not str"):
            await service.get(str(SAW))  # MySQL would compare the key as text


async def test_composite_key(stock: Database) -> None:
    async with stock.session() as session:
        service = ItemTagService(session)
        tag_id = (await service.get(item_id=SAW)).tag_id
        assert (await service.get((SAW, tag_id))).tag_id == tag_id
        assert await service.get_or_none((tag_id, SAW)) is None
        with pytest.raises(InvalidQuery, match=r"primary key of ItemTag is \(item_id, tag_id\)"):
            await service.get(SAW)
        assert (await service.update((SAW, tag_id), {"weight": 5})).weight == 5
        await service.delete((SAW, tag_id))
        assert await service.count() == 0


# -- write ----------------------------------------------------------------------


async def test_create(db: Database) -> None:
    async with db.session() as session:
        service = ItemService(session)
        made = await service.create(ItemCreate(name="a", kind=Kind.TOY), sold_at=AT)
        by_mapping = await service.create({"name": "b", "kind": "toy", "note": None}, price=4)
    # Readable after the session: nothing is left to load, also what the server computed.
    assert (made.origin, made.revision, made.price) == ("here", 1, 0)
    assert made.note == "new"  # the payload's default; None stands where it was sent
    assert (by_mapping.kind, by_mapping.price, by_mapping.note) == (Kind.TOY, 4, None)
    async with db.read_session() as session:
        stored = await ItemService(session).get(made.id)
    assert stored.model_dump() == made.model_dump()
    assert (stored.sold_at, stored.created_at) == (AT, made.created_at)  # microseconds too


@pytest.mark.parametrize(
    ("data", "values", "error", "message"),
    [
        ({"nmae": "x"}, {}, InvalidValue, "ItemCreate has no field 'nmae'; did you mean 'name'"),
        ({"name": "x"}, {"prize": 1}, InvalidValue, "Item has no field 'prize'.*'price'"),
        ({"name": "x"}, {"metadata": 1}, InvalidValue, "Item has no field 'metadata'"),
        ({}, {}, InvalidValue, "ItemCreate is not valid: name: Field required"),
        ({"name": "x", "price": "y"}, {}, InvalidValue, "price: .*valid integer"),
        (
            {"name": "x"},
            {"kind": "nope"},
            InvalidValue,
            "Item is not valid: kind: .*'tool' or 'toy'",
        ),
        ({"name": "saw", "shop_id": NORTH}, {}, UniqueViolation, "uq_item_shop_id_name"),
        ({"name": "x", "shop_id": SAW}, {}, ForeignKeyViolation, "referenced row"),
    ],
    ids=range(8),
)
async def test_create_refuses(
    stock: Database, data: Any, values: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        async with stock.session() as session:
            await ItemService(session).create(data, **values)
    async with stock.read_session() as session:
        assert await ItemService(session).count() == 2


async def test_a_refused_row_leaves_the_transaction_usable(stock: Database) -> None:
    async with stock.session() as session:
        service = ShopService(session)
        await service.create({"name": "east"})
        with pytest.raises(UniqueViolation):
            async with session.begin_nested():
                await service.create({"name": "north"})
        await service.create({"name": "west"})
    async with stock.read_session() as session:
        assert await ShopService(session).count(name__in=["east", "west"]) == 2


async def test_update_changes_what_was_sent_and_nothing_else(stock: Database) -> None:
    async with stock.read_session() as session:
        before = (await ItemService(session).get(SAW)).model_dump()
    await asyncio.sleep(0.002)
    async with stock.session() as session:
        changed = await ItemService(session).update(SAW, ItemUpdate(price=12), origin="there")
    after = changed.model_dump()
    assert after["updated_at"] > before["updated_at"]
    assert after["revision"] == 2  # computed by the server, readable without a session
    differs = {name for name in after if after[name] != before[name]}
    assert differs == {"price", "origin", "updated_at", "revision"}
    async with stock.read_session() as session:
        assert (await ItemService(session).get(SAW)).model_dump() == after


async def test_explicit_none_is_written(stock: Database) -> None:
    async with stock.session() as session:
        service = ItemService(session)
        axe = await service.update((await service.get(name="axe")).id, {"note": None})
        saw = await service.update(SAW, ItemUpdate(shop_id=None))
    async with stock.read_session() as session:
        service = ItemService(session)
        assert (await service.get(axe.id)).note is None
        assert (await service.get(saw.id)).shop_id is None
    with pytest.raises(InvalidValue):
        async with stock.session() as session:
            await ItemService(session).update(SAW, {"name": None})


async def test_update_and_delete_refuse(stock: Database) -> None:
    async with stock.session() as session:
        service = ItemService(session)
        with pytest.raises(NotFound, match=r"^Item not found: UUID"):
            await service.update(uuid4(), {"price": 1})
        with pytest.raises(NotFound):
            await service.delete(uuid4())
        with pytest.raises(InvalidValue, match="ItemUpdate has no field 'prize'"):
            await service.update(SAW, {"prize": 1})
        with pytest.raises(InvalidValue, match="Item has no field 'prize'"):
            await service.update(SAW, {}, prize=1)
        saw = await service.get(SAW)
    async with stock.session() as session:
        service = ItemService(session)
        for call in (service.update(saw, {"price": 1}), service.delete(saw)):
            with pytest.raises(InvalidQuery, match="not of this session; pass its primary key"):
                await call
        assert (await service.get(SAW)).price == 10
    with pytest.raises(ForeignKeyViolation):
        async with stock.session() as session:
            await ShopService(session).delete(NORTH)


async def test_pending_change_fails_at_the_read_that_sends_it(stock: Database) -> None:
    async with stock.sessions() as session:
        session.add(Tag(name="red"))
        with pytest.raises(UniqueViolation):
            await ItemService(session).count()


async def test_delete_takes_its_links_along(stock: Database) -> None:
    async with stock.session() as session:
        await ItemService(session).delete(SAW)
    async with stock.read_session() as session:
        assert await ItemTagService(session).count() == 0
        assert await ItemService(session).count() == 1


async def test_rows_changed_by_one_flush_know_their_own_time(stock: Database) -> None:
    async with stock.session() as session:
        rows = await ItemService(session).list(order_by="name")
        before = [row.updated_at for row in rows]
        for row in rows:
            row.price += 1
        await session.flush()
        memory = [row.updated_at for row in rows]
        rows[0].updated_at = AT  # on purpose: kept
        rows[1].price += 0  # no change: no new time
    async with stock.read_session() as session:
        stored = [row.updated_at for row in await ItemService(session).list(order_by="name")]
    assert all(new > old for new, old in zip(memory, before, strict=True))
    assert stored == [AT, memory[1]]


async def test_get_takes_a_column_that_is_a_condition(stock: Database) -> None:
    async with stock.read_session() as session:
        service = ItemService(session)
        # WHERE price: not a condition for PostgreSQL, and never taken for a key.
        with pytest.raises((MultipleFound, ProgrammingError)):
            await service.get(col(Item.price))
    async with stock.read_session() as session:
        service = ItemService(session)
        assert [row.name for row in await service.list(order_by=col(Item.name))] == ["axe", "saw"]
        names = [row.name for row in await service.list(order_by=(col(Item.price), "-name"))]
        assert names == ["saw", "axe"]


async def test_relations_take_rows(stock: Database) -> None:
    async with stock.session() as session:
        service = ShopService(session)
        made = await service.create({"name": "west"}, items=[Item(name="bolt")])
        for wrong in ([ItemCreate(name="nut")], ItemCreate(name="nut"), [{"name": "nut"}]):
            with pytest.raises(InvalidValue, match=r"Shop\.items is a relation and takes rows"):
                await service.create({"name": "east"}, items=wrong)
        with pytest.raises(InvalidValue, match=r"items=\[Item\(\.\.\.\)\]"):
            await service.update(made, {"name": "west"}, items=[None, 5])
    async with stock.read_session() as session:
        assert [item.name for item in await ItemService(session).list(shop__name="west")] == [
            "bolt"
        ]
        assert not await ShopService(session).exists(name="east")


async def test_flush_raises_the_errors_of_the_layer(stock: Database) -> None:
    async with stock.sessions() as session:
        session.add(Shop(name="north"))
        with pytest.raises(UniqueViolation):
            await ShopService(session).flush()


# -- classes --------------------------------------------------------------------


async def test_subclasses(stock: Database) -> None:
    class Untyped(ServiceBase):  # type: ignore[type-arg]
        pass

    class Inherited(ItemService):
        pass

    async with stock.read_session() as session:
        with pytest.raises(TypeError, match=r"class Untyped\(ServiceBase\[Model, Create, Update"):
            Untyped(session)  # pyright: ignore[reportUnknownArgumentType]
        for service in (Inherited(session), CountedItems(session)):
            assert (service.model, service.create_schema) == (Item, ItemCreate)
            assert await service.count() == 2
        assert (await CountedItems(session).first()).name in {"axe", "saw"}
    with pytest.raises(TypeError, match="ItemCreate has no table"):

        class NoTable(ServiceBase[ItemCreate, ItemCreate, ItemUpdate]):  # pyright: ignore[reportUnusedClass]
            pass


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_types(checker: str) -> None:
    file = Path(__file__).with_name("typed.py")
    command = [sys.executable, "-m", checker]
    if checker == "pyright":
        command += ["--pythonpath", sys.executable]
    result = subprocess.run(
        [*command, str(file)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = result.stdout + result.stderr
    assert result.returncode == 0, found
    assert "no issues found in 1 source file" in found or "0 errors" in found


@pytest.mark.only("sqlite", "postgresql")  # MariaDB has no DELETE or UPDATE after WITH
async def test_rows_found_by_a_cte_are_counted(stock: Database) -> None:
    async with stock.session() as session:
        items = ItemService(session)
        dear = select(Item.id).where(col(Item.price) == 10).cte("dear")
        found = col(Item.id).in_(select(dear.c.id))
        assert await items.update_where({"price": 11}, found, allow_multiple=True) == 2
        assert await items.update_where({"price": 11}, found, allow_multiple=True) == 0
        await items.update_where({"price": 10}, allow_multiple=True, price=11)
        assert await items.delete_where(found, allow_multiple=True, name="axe") == 1
        assert await items.delete_where(found, allow_multiple=True, name="axe") == 0


@pytest.mark.parametrize("service", [ItemService, ShopService])  # with cascades, and without
async def test_delete_of_a_row_that_is_gone(stock: Database, service: type[Any]) -> None:
    """The ORM would only warn."""
    async with stock.read_session() as session:
        if service is ShopService:
            row = await service(session).get(name="south")
        else:
            row = await service(session).get(name="axe")
        async with stock.session() as other:
            await service(other).delete(row.id)
    async with stock.session() as session:
        session.add(row)  # as a session that has read it before has it
        with pytest.raises(NotFound) as caught:
            await service(session).delete(row)
        assert caught.value.keys == (row.id,)
        assert await service(session).count() == 1
