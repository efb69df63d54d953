"""What type checkers see through a subclass; checked by `test_service.test_types`."""

from typing import Generic, TypeVar, assert_type

from pydantic import BaseModel
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Page, ServiceBase

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


async def right(session: AsyncSession, data: ItemCreate, change: ItemUpdate) -> None:
    service = ItemService(session)
    item = await service.create(data, note="x", load="shop")
    assert_type(item, Item)
    assert_type(await service.get(item.id), Item)
    assert_type(await service.get(Item.price > 3, name="x"), Item)
    assert_type(await service.get_or_none(item.id), Item | None)
    assert_type(await service.list(order_by="-price", limit=5), list[Item])
    page = await service.page(load=("shop", "tags"))
    assert_type(page, Page[Item])
    assert_type(page.items, list[Item])
    assert_type(await service.update(item, change), Item)
    assert_type(await service.count(), int)
    assert_type(await service.exists(name="x"), bool)
    assert_type(await CountedItems(session).first(), Item)


async def wrong(session: AsyncSession, change: ItemUpdate) -> None:
    """An ignore that nothing needs is an error, so each of these lines is one."""
    service = ItemService(session)
    await service.create(change)  # type: ignore[arg-type]
    await service.update(1, 5)  # type: ignore[arg-type]
    (await service.get(1)).nmae  # type: ignore[attr-defined]  # noqa: B018
