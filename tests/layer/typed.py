"""What type checkers see through a subclass; checked by `test_service.test_types`."""

from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar, assert_type
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Row
from sqlmodel import SQLModel, col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import CursorPage, Page, ServiceBase
from app.db.filters import and_, not_, or_

from .models import Item, ItemCreate, ItemService, ItemUpdate

ModelT = TypeVar("ModelT", bound=SQLModel)
CreateT = TypeVar("CreateT", bound=BaseModel)
UpdateT = TypeVar("UpdateT", bound=BaseModel)


class Counted(ServiceBase[ModelT, CreateT, UpdateT], Generic[ModelT, CreateT, UpdateT]):
    """What several services of a project share."""

    async def first(self) -> ModelT:
        return (await self.list(limit=1))[0]


class CountedItems(Counted[Item, ItemCreate, ItemUpdate]):
    pass


async def reads(session: AsyncSession, key: UUID) -> None:
    service = ItemService(session)
    assert_type(await service.get(key, load="shop", lock="update"), Item)
    assert_type(await service.get(Item.price > 3, name="x"), Item)
    assert_type(await service.get(or_(name="x", price__gt=3)), Item)
    assert_type(await service.get_or_none(key), Item | None)
    assert_type(await service.get_by_ids([key], load="tags", strict=False), list[Item])
    assert_type(await service.list(order_by="-price", limit=5, lock="skip_locked"), list[Item])
    assert_type(await service.list(order_by=[col(Item.price), "name"]), list[Item])
    assert_type(
        await service.list(or_(name="x") & col(Item.price).is_(None), ~not_(price=1)), list[Item]
    )
    assert_type(await service.get_multi(and_(name="x", price=1), offset=5), list[Item])
    page = await service.page(load=("shop", "tags"), total=1_000)
    assert_type(page, Page[Item])
    assert_type(page.items, list[Item])
    assert_type(page.total, int | None)
    walk = await service.cursor_page(order_by=("-price", "name"), limit=20, cursor=None)
    assert_type(walk, CursorPage[Item])
    assert_type(walk.items, list[Item])
    assert_type(walk.next_cursor, str | None)
    assert_type(await service.count(), int)
    assert_type(await service.exists(name="x"), bool)
    assert_type(service.stream(price__gt=3, batch_size=100), AsyncGenerator[list[Item], None])
    async for batch in service.stream():
        assert_type(batch, list[Item])
    rows = await service.aggregate({"rows": "count"}, group_by="shop__name", order_by="-rows")
    assert_type(rows, list[Row[Any]])
    assert_type(service.with_deleted(), ItemService)
    assert_type(await CountedItems(session).first(), Item)
    assert_type(CountedItems(session).with_deleted(), CountedItems)


async def writes(session: AsyncSession, data: ItemCreate, change: ItemUpdate) -> None:
    service = ItemService(session)
    item = await service.create(data, note="x", load="shop")
    assert_type(item, Item)
    assert_type(await service.create({"name": "x"}), Item)
    assert_type(await service.create_multi([data]), list[Item])
    assert_type(await service.create_multi(({"name": "x"}, data), returning=True), list[Item])
    assert_type(await service.create_multi([data], returning=False, price=1), int)
    assert_type(await service.update(item, change), Item)
    assert_type(await service.update(item.id, {"price": 1}, version=3, load=("shop",)), Item)
    assert_type(await service.update_multi({item.id: change, (1, 2): {"price": 1}}), int)
    values = {"price": Item.price + 1}
    assert_type(await service.update_where(change, or_(name="x"), values=values), int)
    assert_type(await service.delete_where(name="x", allow_multiple=True), int)
    assert_type(await service.upsert(data, on="name", load="shop"), Item)
    assert_type(await service.upsert_multi([data], on=("shop_id", "name")), list[Item])
    assert_type(await service.upsert_multi([data], on=["name"], returning=True), list[Item])
    assert_type(await service.upsert_multi([data], on="name", returning=False), int)
    assert_type(await service.get_or_create(data, on="name"), tuple[Item, bool])
    await service.delete(item)
    await service.delete(item.id, hard=True)
    assert_type(await service.restore(item.id, load="shop"), Item)
    await service.flush()
    async with service.transaction():
        await service.create(data)


async def wrong(session: AsyncSession, data: ItemCreate, change: ItemUpdate) -> None:
    """An ignore that nothing needs is an error, so each of these lines is one."""
    service = ItemService(session)
    await service.create(change)  # type: ignore[arg-type]
    await service.create_multi([change])  # type: ignore[list-item]
    await service.create_multi(data)  # type: ignore[arg-type]
    await service.update(1, 5)  # type: ignore[arg-type]
    await service.update_multi([change])  # type: ignore[arg-type]
    await service.upsert(data)  # type: ignore[call-arg]
    await service.get_or_create(change, on="name")  # type: ignore[arg-type]
    await service.get(1, lock="forever")  # type: ignore[arg-type]
    await service.list("name")  # type: ignore[arg-type]
    await service.page(total="many")  # type: ignore[arg-type]
    (await service.get(1)).nmae  # type: ignore[attr-defined]  # noqa: B018
