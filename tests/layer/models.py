"""Tables with one of everything that the layer has to deal with, and their services."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Optional
from uuid import UUID, uuid4

from sqlalchemy import (
    URL,
    CheckConstraint,
    ForeignKeyConstraint,
    SmallInteger,
    Table,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, Relationship, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import ServiceBase, Timestamp, TimestampMixin


class Kind(StrEnum):
    TOOL = "tool"
    TOY = "toy"


class ItemTag(SQLModel, table=True):
    """Many to many with data; a composite primary key."""

    item_id: UUID = Field(primary_key=True, foreign_key="item.id", ondelete="CASCADE")
    tag_id: UUID = Field(primary_key=True, foreign_key="tag.id", ondelete="RESTRICT")
    weight: int = 0


class Tag(SQLModel, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=20, unique=True)

    items: list["Item"] = Relationship(back_populates="tags", link_model=ItemTag)


class Shop(SQLModel, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=20, index=True, unique=True)

    items: list["Item"] = Relationship(back_populates="shop", passive_deletes="all")


class Item(TimestampMixin, SQLModel, table=True):
    __table_args__ = (
        UniqueConstraint("shop_id", "name"),
        CheckConstraint("price >= 0", name="price_positive"),
    )

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=20)
    price: int = 0
    stock: int | None = Field(default=None, sa_type=SmallInteger)
    note: str | None = Field(default=None, max_length=40)
    kind: Kind | None = None
    sold_at: datetime | None = Field(default=None, sa_type=Timestamp)
    # What the database computes: a default, and an expression at every UPDATE.
    origin: str | None = Field(
        default=None, max_length=10, sa_column_kwargs={"server_default": "here"}
    )
    revision: int | None = Field(
        default=None,
        sa_column_kwargs={"server_default": "1", "onupdate": text("item.revision + 1")},
    )
    shop_id: UUID | None = Field(default=None, foreign_key="shop.id")
    parent_id: UUID | None = Field(default=None, foreign_key="item.id")

    shop: Shop | None = Relationship(back_populates="items")
    parent: Optional["Item"] = Relationship(
        back_populates="children", sa_relationship_kwargs={"remote_side": "Item.id"}
    )
    children: list["Item"] = Relationship(back_populates="parent", passive_deletes="all")
    tags: list[Tag] = Relationship(back_populates="items", link_model=ItemTag)


class Later(SQLModel, table=True):
    """A foreign key that only COMMIT checks. MySQL has none of these."""

    __table_args__ = (
        ForeignKeyConstraint(["shop_id"], ["shop.id"], deferrable=True, initially="DEFERRED"),
    )

    id: int | None = Field(default=None, primary_key=True)
    shop_id: UUID


def tables(url: URL) -> list[Table]:
    """The tables that this database can have, parents first."""
    names = ["shop", "tag", "item", "itemtag"]
    if url.get_backend_name() != "mysql":
        names.append("later")
    return [SQLModel.metadata.tables[name] for name in names]


NOON = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
NORTH, SOUTH = UUID(int=1), UUID(int=2)
SAW, BLADE, BALL, KITE = "saw", "Saw blade", "ball", "kite"


def four_items() -> list[SQLModel]:
    """In two shops and none, with two tags, in three generations; and a tag without items."""
    red, old = Tag(name="red"), Tag(name="old")
    north, south = Shop(id=NORTH, name="north"), Shop(id=SOUTH, name="south")
    saw = Item(id=UUID(int=11), name=SAW, price=10, note="50% off", kind=Kind.TOOL, shop=north)
    blade = Item(id=UUID(int=12), name=BLADE, price=10, note="a_b", kind=Kind.TOOL, shop=north)
    ball = Item(id=UUID(int=13), name=BALL, price=3, note=r"c\d", kind=Kind.TOY, shop=south)
    kite = Item(id=UUID(int=14), name=KITE, price=7)
    blade.parent, kite.parent = saw, blade
    saw.sold_at = NOON
    saw.tags, blade.tags, kite.tags = [red, old], [red], [old]
    return [saw, blade, ball, kite, Tag(name="unused")]


async def sql(session: AsyncSession, statement: str) -> Any:
    """Run SQL as it stands; its first value, if it has one."""
    result = await (await session.connection()).exec_driver_sql(statement)
    return result.scalar() if result.returns_rows else None


class ItemCreate(SQLModel):
    name: str
    price: int = 0
    stock: int | None = None
    note: str | None = "new"  # the table's own default is None
    kind: Kind | None = None
    shop_id: UUID | None = None
    parent_id: UUID | None = None


class ItemUpdate(SQLModel):
    name: str | None = None
    price: int | None = None
    note: str | None = None
    kind: Kind | None = None
    shop_id: UUID | None = None


class ItemService(ServiceBase[Item, ItemCreate, ItemUpdate]):
    pass


class Named(SQLModel):
    name: str


class ShopService(ServiceBase[Shop, Named, Named]):
    pass


class Weight(SQLModel):
    weight: int


class ItemTagService(ServiceBase[ItemTag, ItemTag, Weight]):
    pass
