"""Sorting, pages and cursors: the same rows in the same order on every database."""

import base64
import hashlib
import math
import random
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Optional, cast
from uuid import UUID, uuid4

import pytest
from pydantic import TypeAdapter
from sqlalchemy import (
    Double,
    Float,
    Interval,
    LargeBinary,
    Numeric,
    String,
    TypeDecorator,
    delete,
    desc,
    func,
    insert,
    literal_column,
    text,
    update,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import aliased, column_property, joinedload
from sqlmodel import Field, Relationship, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import Database, InvalidQuery, Timestamp
from app.db.base import SoftDeleteMixin
from app.db.errors import InvalidCursor
from app.db.mapping import mapper_of
from app.db.paging import (
    CursorPage,
    Keyset,
    Page,
    build_order,
    check_slice,
    count_statement,
    known_total,
)
from app.db.sorting import sort_keys

from .models import Item, ItemService, Shop

pytestmark = pytest.mark.anyio


class Size(Enum):
    """Declared in another order than the alphabet's; values that JSON does not have."""

    SMALL = (1,)
    LARGE = (3,)
    MEDIUM = (2,)


class Celsius(TypeDecorator[float]):
    """A type of a project's own, which does not tell its Python type."""

    impl = Double
    cache_ok = True


class PagedAisle(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)


class PagedShelf(SoftDeleteMixin, SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str | None = Field(default=None, max_length=20)
    aisle_id: int | None = Field(default=None, foreign_key="pagedaisle.id")

    aisle: PagedAisle | None = Relationship()
    books: list["PagedBook"] = Relationship(back_populates="shelf")


class PagedBook(SQLModel, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=20)
    pages: int = 0
    rank: int | None = None
    score: float | None = Field(default=None, sa_type=Float)
    height: float = Field(default=0.0, sa_type=Double)
    price: Decimal | None = Field(default=None, sa_type=Numeric(12, 4))
    size: Size | None = None
    label: str = Field(default="b", sa_type=SqlEnum("b", "a", "c", name="pagedlabel"))
    lent: bool | None = None
    printed: date | None = None
    opens: time = time(8)
    sold_at: datetime | None = Field(default=None, sa_type=Timestamp)
    token: UUID | None = None
    digest: bytes | None = Field(default=None, sa_type=LargeBinary)
    took: timedelta | None = Field(default=None, sa_type=Interval)
    kept_at: float | None = Field(default=None, sa_type=Celsius)
    shelf_id: int | None = Field(default=None, foreign_key="pagedshelf.id")
    sequel_of_id: UUID | None = Field(default=None, foreign_key="pagedbook.id")

    shelf: PagedShelf | None = Relationship(back_populates="books")
    sequel_of: Optional["PagedBook"] = Relationship(
        sa_relationship_kwargs={"remote_side": "PagedBook.id"}
    )


class PagedSlot(SQLModel, table=True):
    """A composite primary key."""

    row: int = Field(primary_key=True)
    place: UUID = Field(primary_key=True)
    weight: int | None = None


TABLES = [
    SQLModel.metadata.tables[name]
    for name in ("pagedaisle", "pagedshelf", "pagedbook", "pagedslot")
]


@pytest.fixture
async def store(db: Database) -> AsyncGenerator[Database]:
    """The tables of this module: made by the first test, left empty by each."""
    async with db.engine.begin() as connection:
        await connection.run_sync(lambda sync: SQLModel.metadata.create_all(sync, tables=TABLES))
    yield db
    async with db.engine.begin() as connection:
        await connection.execute(update(PagedBook).values(sequel_of_id=None))
        for table in reversed(TABLES):
            await connection.execute(table.delete())


ROWS = 64


def _random_books() -> list[PagedBook]:
    """Few values for many rows, so that all keys have ties; NULL and zero among them."""
    pick = random.Random(7).choice  # noqa: S311
    aisles = [PagedAisle(name=name) for name in ("east", "west")]
    shelves = [
        PagedShelf(name=name, aisle=pick([None, *aisles])) for name in ("top", "low", None, "mid")
    ]
    noon = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    books: list[PagedBook] = []
    for _ in range(ROWS):
        books.append(
            PagedBook(
                name=pick(["", "a", "b", "c%"]),
                pages=pick([0, 1, 2]),
                rank=pick([None, None, -1, 0, 7]),
                # 0.1 and 1/3 are not what FLOAT keeps; 1234567.0 has more than six digits.
                score=pick([None, 0.0, 0.1, 1 / 3, 1234567.0, -2.5]),
                height=pick([0.1, 1 / 3, 0.30000000000000004, 0.3]),
                price=pick([None, Decimal(0), Decimal("0.0001"), Decimal("12345678.9")]),
                size=pick([None, *Size]),
                label=pick(["a", "b", "c"]),
                lent=pick([None, False, True]),
                printed=pick([None, date(2026, 1, 1), date(1999, 12, 31)]),
                opens=pick([time(0), time(8, 30)]),
                sold_at=pick([None, noon, noon + timedelta(microseconds=1)]),
                token=pick([None, UUID(int=1), UUID(int=2**127), UUID(int=9)]),
                digest=pick([None, b"", b"\xff\x00", b"a"]),
                took=pick([None, timedelta(seconds=5), timedelta(days=2)]),
                kept_at=pick([None, 0.1, 20.0]),
                shelf=pick([None, *shelves]),
                sequel_of=pick([None, *books[:5]]) if books else None,
            )
        )
    return books


@pytest.fixture
async def books(store: Database) -> Database:
    async with store.session() as session:
        session.add_all(_random_books())
    return store


async def page_of(
    session: AsyncSession,
    order_by: Any,
    cursor: str | None = None,
    *,
    limit: int = 7,
    model: type[Any] = PagedBook,
) -> CursorPage[Any]:
    keyset = Keyset(model, order_by, limit=limit, cursor=cursor)
    return keyset.page((await session.exec(keyset.statement(), params=keyset.parameters)).all())


async def listed(session: AsyncSession, order_by: Any, model: type[Any] = PagedBook) -> list[Any]:
    """All rows at once."""
    statement = select(model).order_by(*build_order(model, order_by))
    return list((await session.exec(statement)).all())


def keys_of(rows: Sequence[Any]) -> list[Any]:
    return [getattr(row, "id", None) or (row.row, row.place) for row in rows]


async def walk(
    session: AsyncSession, order_by: Any, *, limit: int, model: type[Any] = PagedBook
) -> tuple[list[CursorPage[Any]], list[CursorPage[Any]]]:
    """All pages forward, and from the last one back; ends, or the test fails."""
    forward = [await page_of(session, order_by, limit=limit, model=model)]
    while (cursor := forward[-1].next_cursor) is not None:
        forward.append(await page_of(session, order_by, cursor, limit=limit, model=model))
        assert len(forward) <= 2 * ROWS, f"{order_by} goes round in circles"
    backward = [forward[-1]]
    while (cursor := backward[-1].previous_cursor) is not None:
        backward.append(await page_of(session, order_by, cursor, limit=limit, model=model))
        assert len(backward) <= 2 * ROWS, f"{order_by} goes round in circles on its way back"
    return forward, backward


async def check_walk(
    session: AsyncSession, order_by: Any, *, limit: int, model: type[Any] = PagedBook
) -> None:
    expected = keys_of(await listed(session, order_by, model))
    forward, backward = await walk(session, order_by, limit=limit, model=model)
    assert [key for page in forward for key in keys_of(page.items)] == expected, order_by
    assert [key for page in backward[::-1] for key in keys_of(page.items)] == expected, order_by
    # Full pages, but for the last one of the way.
    assert all(len(page.items) == limit for page in (*forward[:-1], *backward[1:-1]))
    assert forward[0].previous_cursor is None
    assert backward[-1].previous_cursor is None


NULLABLE = [
    "rank",
    "score",
    "price",
    "size",
    "lent",
    "printed",
    "sold_at",
    "token",
    "digest",
    "took",
    "kept_at",
    "shelf__name",
    "shelf__aisle__name",
    "sequel_of__rank",
    "sequel_of__size",
    "sequel_of__score",
    "sequel_of__sequel_of__shelf__name",
]
MIXED = [
    (),
    "-id",
    ("pages", "-name"),
    ("-pages", "rank", "-score"),
    ("height", "-opens", "label"),
    ("-label", "size__nulls_first", "-shelf__aisle__name__nulls_last", "-id"),
    ("rank__nulls_first", "-rank"),
    ("-rank__nulls_last", "shelf__id", "name", "-price__nulls_last", "pages"),
]


@pytest.mark.parametrize("shape", ["{}", "-{}", "{}__nulls_first", "-{}__nulls_last"])
async def test_walk_over_one_nullable_key(books: Database, shape: str) -> None:
    async with books.read_session() as session:
        for name in NULLABLE:
            await check_walk(session, shape.format(name), limit=9)


@pytest.mark.parametrize("limit", [1, 7, ROWS - 1, ROWS, ROWS + 1])
async def test_walk_over_mixed_keys(books: Database, limit: int) -> None:
    async with books.read_session() as session:
        for order_by in MIXED:
            await check_walk(session, order_by, limit=limit)


async def test_walk_over_a_composite_primary_key(store: Database) -> None:
    pick = random.Random(3).choice  # noqa: S311
    async with store.session() as session:
        session.add_all(
            PagedSlot(row=n % 5, place=uuid4(), weight=pick([None, 0, 1])) for n in range(ROWS)
        )
    async with store.read_session() as session:
        for order_by in ((), "-place", ("-row", "place"), "weight", ("-weight", "-row")):
            await check_walk(session, order_by, limit=5, model=PagedSlot)


async def test_walk_over_infinity(store: Database, driver: str) -> None:
    values = [math.inf, -math.inf, 0.0, 1e308, 5e-324]
    if driver.startswith("mysql"):  # has neither
        values = [0.0, 1e308, -1e308]
    prices = [None, Decimal(1)]
    if driver.startswith("postgresql"):  # where NaN equals itself and is the largest number
        values.append(math.nan)
        prices.append(Decimal("NaN"))
    async with store.session() as session:
        session.add_all(PagedBook(name="x", height=value) for value in values * 3)
        session.add_all(PagedBook(name="y", price=price) for price in prices * 3)
    async with store.read_session() as session:
        for order_by in ("height", "-height", "price", "-price"):
            await check_walk(session, order_by, limit=2)


async def test_walk_over_more_digits_than_the_column_has(store: Database) -> None:
    """SQLite stores them all and shows fewer; the others store fewer."""
    async with store.session() as session:
        session.add_all(
            PagedBook(name="x", price=price)
            for price in [Decimal("1.00004"), Decimal("1.00006"), Decimal(7), Decimal(2) / 3] * 2
        )
        # Rows that the session has keep what was written: cursors must not look there.
        for order_by in ("price", "-price"):
            await check_walk(session, order_by, limit=1)


async def test_rows_that_the_session_has_changed_elsewhere(store: Database) -> None:
    async with store.session() as session:
        session.add_all(PagedBook(name=str(n), pages=n) for n in range(6))
    async with store.session() as session:
        assert len(await listed(session, "pages")) == 6  # loaded: they keep their values
        await session.exec(
            update(PagedBook)
            .values(pages=100 - col(PagedBook.pages))
            .execution_options(synchronize_session=False)
        )
        await check_walk(session, "pages", limit=2)


# -- pages while rows come and go ------------------------------------------------


async def _names(session: AsyncSession, cursor: str | None) -> tuple[str, CursorPage[Any]]:
    page = await page_of(session, ("rank", "name"), cursor, limit=2)
    return "".join(book.name for book in page.items), page


async def _add(session: AsyncSession, *names: str) -> None:
    session.add_all(PagedBook(name=name, rank=None if name > "f" else 1) for name in names)
    await session.flush()


async def _remove(session: AsyncSession, names: str) -> None:
    await session.exec(delete(PagedBook).where(col(PagedBook.name).in_(list(names))))


async def test_rows_that_come_between_two_pages(store: Database) -> None:
    async with store.session() as session:
        await _add(session, *"bdfhjl")
        names, page = await _names(session, None)
        assert names == "bd"
        await _add(session, "a", "e", "k")  # before the cursor, just after it, later
        names, page = await _names(session, page.next_cursor)
        assert names == "ef"
        names, page = await _names(session, page.next_cursor)
        assert names == "hj"
        names, last = await _names(session, page.next_cursor)
        assert (names, last.next_cursor) == ("kl", None)
        names, page = await _names(session, page.previous_cursor)
        assert names == "ef"
        names, page = await _names(session, page.previous_cursor)
        assert names == "bd"
        names, page = await _names(session, page.previous_cursor)
        assert (names, page.previous_cursor) == ("a", None)
        names, page = await _names(session, page.next_cursor)
        assert names == "bd"


async def test_rows_that_go_between_two_pages(store: Database) -> None:
    async with store.session() as session:
        await _add(session, *"bdfhjl")
        _, page = await _names(session, None)
        await _remove(session, "df")  # the row of the cursor, and the next one
        names, page = await _names(session, page.next_cursor)
        assert names == "hj"
        await _remove(session, "b")
        names, page = await _names(session, page.previous_cursor)
        assert (names, page.previous_cursor) == ("", None)
        # What was the second page is the first one now, and whole.
        names, page = await _names(session, page.next_cursor)
        assert (names, page.previous_cursor) == ("hj", None)
        await _remove(session, "l")
        names, page = await _names(session, page.next_cursor)
        assert (names, page.next_cursor) == ("", None)
        # Back from past the end: the last row is part of the last page.
        names, page = await _names(session, page.previous_cursor)
        assert (names, page.next_cursor, page.previous_cursor) == ("hj", None, None)


async def test_a_table_that_was_emptied(store: Database) -> None:
    async with store.session() as session:
        first = await _names(session, None)
        assert first == ("", CursorPage([], None, None, 2))
        await _add(session, *"bdfh")
        _, page = await _names(session, None)
        await _remove(session, "bdfh")
        _, page = await _names(session, page.next_cursor)
        assert page.items == []
        _, page = await _names(session, page.previous_cursor)
        assert page == CursorPage([], None, None, 2)


async def test_conditions_and_options_of_the_caller(books: Database) -> None:
    """With a joined collection SQLAlchemy wraps the statement and sorts it once more."""
    async with books.read_session() as session:
        expected = [book for book in await listed(session, "-shelf__aisle__name") if book.pages]
        found: list[PagedBook] = []
        cursor: str | None = None
        for _ in range(ROWS):
            keyset = Keyset(PagedBook, "-shelf__aisle__name", limit=8, cursor=cursor)
            statement = keyset.statement().where(col(PagedBook.pages) > 0)
            to_books = joinedload(cast(Any, PagedBook.shelf)).joinedload(
                cast(Any, PagedShelf.books)
            )
            statement = statement.options(to_books)
            result: Any = await session.exec(statement, params=keyset.parameters)
            page = keyset.page(result.unique().all())
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
    assert keys_of(found) == keys_of(expected)


# -- cursors ---------------------------------------------------------------------


def cursor_of(order_by: Any, *values: Any) -> str:
    """The cursor of the page after a row with these values."""
    keyset = Keyset(PagedBook, order_by, limit=1)
    page = keyset.page([(PagedBook(name="x"), *values)] * 2)
    assert page.next_cursor
    return page.next_cursor


def test_a_changed_cursor() -> None:
    cursor = cursor_of(("-rank", "name"), 2, "x", UUID(int=1))
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    alphabet = "Az09-_=+/ é\n\0"
    changed = {
        *(cursor[:n] + letter + cursor[n + 1 :] for n in range(len(cursor)) for letter in alphabet),
        *(cursor[:n] for n in range(len(cursor))),
        *(cursor[n:] for n in range(1, len(cursor))),
        *(cursor + letter for letter in alphabet),
        *(cursor + "=" * n for n in range(1, 4)),
        f" {cursor}",
        cursor.swapcase(),
        cursor * 2,
        "é" * 40,
        "\ud800",
    } - {cursor}
    for wrong in changed:
        with pytest.raises(InvalidCursor, match=r"^The cursor .*; start again without a cursor\.$"):
            Keyset(PagedBook, ("-rank", "name"), cursor=wrong)
    assert Keyset(PagedBook, ("-rank", "name"), cursor=cursor)


def test_what_is_wrong_with_a_cursor() -> None:
    cursor = cursor_of(("-rank", "name"), 2, "x", UUID(int=1))

    def message(wrong: Any, model: type[Any] = PagedBook, order_by: Any = ("-rank", "name")) -> str:
        with pytest.raises(InvalidCursor) as caught:
            Keyset(model, order_by, cursor=wrong)
        return caught.value.message

    assert "is text, not bytes" in message(cursor.encode())
    assert "is text, not int" in message(5)
    assert "was changed or cut" in message("")
    assert "was changed or cut" in message(cursor[:-4])
    assert "has characters or a length that no cursor has" in message(f"{cursor}!")
    assert "is too long (5000 characters, 4096 at most)" in message("A" * 5000)
    other = "was made for another list or order than PagedBook by "
    for order_by, name in [
        (("rank", "name"), "rank, name, id"),
        (("-rank__nulls_last", "name"), "-rank__nulls_last, name, id"),
        (("-rank", "-name"), "-rank, -name, -id"),
        (("-rank", "name", "-id"), "-rank, name, -id"),
        ("-rank", "-rank, -id"),
        ((), "id"),
    ]:
        assert f"{other}{name};" in message(cursor, order_by=order_by)
    assert "than PagedShelf by name, id;" in message(cursor, PagedShelf, "name")
    # The same order in other words is the same order.
    for same in (["-rank", "name", "id"], ("-rank__nulls_first", "name")):
        assert Keyset(PagedBook, same, cursor=cursor)


def sealed(body: bytes) -> str:
    """A cursor with a right checksum: nothing in it is secret."""
    checksum = hashlib.blake2b(body, digest_size=8).digest()
    return base64.urlsafe_b64encode(checksum + body).rstrip(b"=").decode()


def forged(key: str, values: bytes, version: int = 1) -> str:
    good = cursor_of(key, None if key != "pages" else 0, UUID(int=1))
    signature = base64.urlsafe_b64decode(good + "==")[10:18]
    return sealed(bytes([version, 0]) + signature + values)


@pytest.mark.parametrize("length", range(10))
def test_a_forged_cursor_that_ends_early(length: int) -> None:
    with pytest.raises(InvalidCursor, match="was changed or cut"):
        Keyset(PagedBook, cursor=sealed(b"\1" * length))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("rank", b""),
        ("rank", b"{}"),
        ("rank", b"[1]"),
        ("rank", b'[1, "00000000-0000-0000-0000-000000000001", 3]'),
        ("rank", b'["x", "00000000-0000-0000-0000-000000000001"]'),
        ("rank", b'[{"a": 1}, "00000000-0000-0000-0000-000000000001"]'),
        ("rank", b"[1, null]"),
        ("rank", b"[" * 3000),
        ("pages", b'[null, "00000000-0000-0000-0000-000000000001"]'),
        ("size", b'["HUGE", "00000000-0000-0000-0000-000000000001"]'),
        ("size", b'[["SMALL"], "00000000-0000-0000-0000-000000000001"]'),
        ("label", b'["d", "00000000-0000-0000-0000-000000000001"]'),
        ("digest", b'["#", "00000000-0000-0000-0000-000000000001"]'),
        ("price", b'["1,5", "00000000-0000-0000-0000-000000000001"]'),
        ("name", b'["\xff", "00000000-0000-0000-0000-000000000001"]'),
    ],
)
def test_a_forged_cursor(key: str, values: bytes) -> None:
    with pytest.raises(InvalidCursor, match=f"holds values that PagedBook by {key}, id does not"):
        Keyset(PagedBook, key, cursor=forged(key, values))


def test_a_cursor_of_another_version() -> None:
    cursor = forged("rank", b'[1, "00000000-0000-0000-0000-000000000001"]')
    assert Keyset(PagedBook, "rank", cursor=cursor)
    cursor = forged("rank", b'[1, "00000000-0000-0000-0000-000000000001"]', version=2)
    with pytest.raises(InvalidCursor, match="was made by another version"):
        Keyset(PagedBook, "rank", cursor=cursor)


def test_values_that_are_too_long_for_a_cursor() -> None:
    keyset = Keyset(PagedBook, "name", limit=1)
    rows = [(PagedBook(name="x"), "x" * 4000, UUID(int=n)) for n in range(2)]
    with pytest.raises(InvalidQuery, match="the values of name, id are too long for a cursor"):
        keyset.page(rows)
    # Nothing follows: no cursor is needed.
    assert len(keyset.page(rows[:1]).items) == 1


def test_order_and_limit_of_a_keyset() -> None:
    expressions: list[Any] = [col(PagedBook.rank).desc(), ["name", PagedBook.rank]]
    for wrong in expressions:
        with pytest.raises(InvalidQuery, match="sort by names of fields, not by expressions"):
            Keyset(PagedBook, wrong)
    with pytest.raises(InvalidQuery, match="did you mean 'rank'"):
        Keyset(PagedBook, "-rnak")
    with pytest.raises(InvalidQuery, match="limit must be at least 1"):
        Keyset(PagedBook, limit=0)
    with pytest.raises(InvalidQuery, match="limit takes an integer, not NoneType"):
        Keyset(PagedBook, limit=cast(Any, None))


def test_keys_that_no_cursor_holds() -> None:
    class Own:
        """Nothing that pydantic knows."""

    class Stored(TypeDecorator[Own]):
        impl = String

    class PagedOdd(SQLModel, table=True):
        model_config = {"arbitrary_types_allowed": True}

        id: int = Field(primary_key=True)
        own: Own = Field(sa_type=Stored)

    mapper_of(PagedOdd).add_property("one", column_property(literal_column("1")))
    try:
        # What the database computes may be NULL.
        assert [key.nullable for key in sort_keys(PagedOdd, ("one", "own"))] == [True, False, False]
        with pytest.raises(InvalidQuery, match=r"^order_by: the type of one is not known"):
            Keyset(PagedOdd, "one")
        with pytest.raises(InvalidQuery, match=r"^order_by: no cursor holds the values of own, id"):
            Keyset(PagedOdd, "own")
    finally:
        SQLModel.metadata.remove(SQLModel.metadata.tables["pagedodd"])


def test_both_pages_are_response_models() -> None:
    class Public(SQLModel):
        name: str

    book = PagedBook(name="x", pages=3)
    page = TypeAdapter(Page[Public]).validate_python(
        Page([cast(Any, book)], 1, 1, 0, has_more=False)
    )
    assert page == Page([Public(name="x")], 1, 1, 0, has_more=False)
    with_cursor = CursorPage([cast(Any, book)], "a", None, 1)
    assert TypeAdapter(CursorPage[Public]).validate_python(with_cursor).items == [Public(name="x")]


# -- order -----------------------------------------------------------------------

# Name and rank, by which the books below are told apart.
NULLS = {
    "rank": "b1 c2 a-",
    "-rank": "a- c2 b1",
    "rank__nulls_first": "a- b1 c2",
    "rank__nulls_last": "b1 c2 a-",
    "-rank__nulls_first": "a- c2 b1",
    "-rank__nulls_last": "c2 b1 a-",
    "shelf__name": "b1 a- c2",
    "-shelf__name": "c2 a- b1",
    "-shelf__name__nulls_last": "a- b1 c2",
    "shelf__aisle__name": "b1 a- c2",
    "-shelf__aisle__name__nulls_last": "b1 c2 a-",
    "sequel_of__rank": "c2 a- b1",
    "sequel_of__sequel_of__rank__nulls_first": "a- b1 c2",
    "sequel_of__shelf__aisle__name": "c2 a- b1",
    "pages": "a- b1 c2",
}


@pytest.fixture
async def three(store: Database) -> Database:
    async with store.session() as session:
        low = PagedShelf(name="low", aisle=PagedAisle(name="east"))
        top = PagedShelf(name="top", books=[])
        a = PagedBook(id=UUID(int=1), name="a", shelf=top)
        b = PagedBook(id=UUID(int=2), name="b", rank=1, shelf=low)
        c = PagedBook(id=UUID(int=3), name="c", rank=2, sequel_of=b)
        session.add_all([a, b, c])
    return store


async def _order(session: AsyncSession, order_by: Any, **arguments: Any) -> str:
    statement = select(PagedBook).order_by(*build_order(PagedBook, order_by, **arguments))
    rows = (await session.exec(statement)).all()
    return " ".join(f"{row.name}{'-' if row.rank is None else row.rank}" for row in rows)


async def test_nulls_are_the_largest_value_on_every_database(three: Database) -> None:
    async with three.read_session() as session:
        found = {order_by: await _order(session, order_by) for order_by in NULLS}
    assert found == NULLS


async def test_rows_of_a_relation_that_are_soft_deleted_sort_as_none(three: Database) -> None:
    async with three.session() as session:
        low = (await session.exec(select(PagedShelf).where(PagedShelf.name == "low"))).one()
        low.deleted_at = datetime.now(UTC)
        await session.flush()
        assert await _order(session, "shelf__name") == "a- b1 c2"
        assert await _order(session, "shelf__name", deleted=True) == "b1 a- c2"
        assert await _order(session, "shelf__aisle__name") == "a- b1 c2"
        pages = [Keyset(PagedBook, "shelf__name", deleted=flag) for flag in (False, True)]
        firsts = [
            page.page((await session.exec(page.statement(), params=page.parameters)).all())
            for page in pages
        ]
    assert ["".join(book.name for book in page.items) for page in firsts] == ["abc", "bac"]


async def test_expressions_are_used_as_they_are(three: Database) -> None:
    rank, shelf = col(PagedBook.rank), aliased(PagedShelf)
    async with three.read_session() as session:
        orders: list[tuple[str, Any]] = [
            ("a- c2 b1", func.coalesce(rank, 5).desc()),
            ("b1 a- c2", [func.coalesce(rank, 1), "-name"]),
            ("a- b1 c2", PagedBook.name),
            ("c2 b1 a-", text("name DESC")),
            ("c2 b1 a-", desc("name")),
        ]
        for expected, order_by in orders:
            assert await _order(session, order_by) == expected
        statement = select(PagedBook.name).outerjoin(shelf)
        statement = statement.order_by(
            *build_order(PagedBook, ["-pages", cast(Any, shelf.id).is_(None), "name"])
        )
        assert (await session.exec(statement)).all() == ["a", "b", "c"]


async def test_a_relation_adds_no_row_and_no_table(books: Database) -> None:
    order = build_order(PagedBook, ("shelf__aisle__name", "sequel_of__sequel_of__name"))
    statement = select(PagedBook).order_by(*order)
    assert len(statement.get_final_froms()) == 1
    async with books.read_session() as session:
        assert len((await session.exec(statement)).all()) == ROWS
        # Also where the same table is there twice.
        other = aliased(PagedBook)
        joined = select(PagedBook).join(other, cast(Any, PagedBook.sequel_of_id) == other.id)
        count = (await session.exec(select(func.count(col(PagedBook.sequel_of_id))))).one()
        assert len((await session.exec(joined.order_by(*order))).all()) == count


SAW, BLADE, BALL, KITE = "saw", "Saw blade", "ball", "kite"


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ((), [SAW, BLADE, BALL, KITE]),  # by primary key
        ("price", [BALL, KITE, SAW, BLADE]),
        ("-price", [BLADE, SAW, KITE, BALL]),
        (("-price", "-id"), [BLADE, SAW, KITE, BALL]),
        (["-price", col(Item.id).desc()], [BLADE, SAW, KITE, BALL]),
        (col(Item.price) * -1, [SAW, BLADE, KITE, BALL]),
    ],
    ids=["none", "name", "descending", "two", "expression in a list", "expression"],
)
async def test_lists_and_pages_of_a_service(
    db: Database, order_by: Any, expected: list[str]
) -> None:
    async with db.session() as session:
        for number, (name, price) in enumerate([(SAW, 10), (BLADE, 10), (BALL, 3), (KITE, 7)]):
            session.add(Item(id=UUID(int=number + 1), name=name, price=price))
    async with db.read_session() as session:
        service = ItemService(session)
        assert [row.name for row in await service.list(order_by=order_by)] == expected
        some = await service.list(order_by=order_by, limit=2, offset=1)
        assert [row.name for row in some] == expected[1:3]
        assert [row.name for row in await service.list(order_by=order_by, offset=3)] == expected[3:]
        assert await service.list(order_by=order_by, limit=0) == []
        # Rows with equal keys keep their places from page to page; the total is right
        # past the end.
        paged = [await service.page(order_by=order_by, limit=1, offset=n) for n in range(5)]
        with pytest.raises(InvalidQuery, match="limit must not be negative: -1"):
            await service.list(limit=-1)
        with pytest.raises(InvalidQuery, match="offset must not be negative: -2"):
            await service.page(offset=-2)
    assert [row.name for page in paged for row in page.items] == expected
    assert [(page.total, page.limit, page.offset) for page in paged] == [
        (4, 1, n) for n in range(5)
    ]


@pytest.mark.parametrize(
    ("order_by", "on_postgresql", "on_sqlite", "on_mysql"),
    [
        ("pages", "pages ASC", "pages ASC", "pages ASC"),
        ("-pages__nulls_last", "pages DESC", "pages DESC", "pages DESC"),
        ("rank", "rank ASC", "rank ASC NULLS LAST", "`rank` IS NULL, `rank` ASC"),
        ("-rank", "rank DESC", "rank DESC NULLS FIRST", "`rank` IS NULL DESC, `rank` DESC"),
        ("rank__nulls_first", "rank ASC NULLS FIRST", "rank ASC", "`rank` ASC"),
        ("-rank__nulls_last", "rank DESC NULLS LAST", "rank DESC", "`rank` DESC"),
    ],
)
def test_nulls_are_spelled_only_where_the_database_needs_it(
    order_by: str, on_postgresql: str, on_sqlite: str, on_mysql: str
) -> None:
    statement = select(PagedBook.id).order_by(*build_order(PagedBook, order_by))
    for dialect, expected in {
        postgresql: on_postgresql,
        sqlite: on_sqlite,
        mysql: on_mysql,
    }.items():
        rendered = str(statement.compile(dialect=cast(Any, dialect).dialect()))
        order = rendered.partition("ORDER BY ")[2].replace("pagedbook.", "")
        down = order_by.startswith("-")
        assert order == f"{expected}, id {'DESC' if down else 'ASC'}"


def test_the_primary_key_breaks_ties() -> None:
    def names(model: type[SQLModel], *order_by: str) -> list[str]:
        keys = sort_keys(model, order_by)
        return [f"-{key.name}" if key.descending else key.name for key in keys]

    assert names(PagedBook) == ["id"]
    assert names(PagedBook, "-id", "name") == ["-id", "name"]
    assert names(PagedSlot, "-place") == ["-place", "-row"]
    assert names(PagedSlot, "place", "-row", "weight") == ["place", "-row", "weight"]
    assert names(PagedBook, "shelf__id") == ["shelf__id", "id"]
    # A key is parsed once per model and order, not at every call.
    assert sort_keys(PagedBook, ["name"]) is sort_keys(PagedBook, ("name",))
    assert build_order(PagedBook, "name")[0] is build_order(PagedBook, ["name"])[0]


@pytest.mark.parametrize(
    ("order_by", "message"),
    [
        ("prize", "Item has no field 'prize'; did you mean 'price'. There are: created_at, id, "),
        ("-prize", "Item has no field 'prize'; did you mean 'price'"),
        (["price", "prize"], "Item has no field 'prize'"),
        ("--price", "Item has no field '-price'; did you mean 'price'"),
        ("", "Item has no field ''"),
        ("shpo__name", "Item has no field 'shpo'; did you mean 'shop'"),
        ("shop__nmae", "Shop has no field 'nmae'; did you mean 'name'. There are: id, name"),
        ("parent__parent__nmae", "Item has no field 'nmae'; did you mean 'name'"),
        ("shop", "Item.shop is a relation; sort by one of its fields, e.g. shop__id"),
        ("-tags__name", "Item.tags leads to many rows of Tag, and which of them"),
        ("parent__children", "Item.children leads to many rows of Item"),
        ("price__null_last", "price takes __nulls_first or __nulls_last after it, not '__null"),
        ("price__nulls_last__nulls_first", "price takes __nulls_first or"),
        ("model_fields", "Item has no field 'model_fields'"),
    ],
)
def test_bad_order(order_by: Any, message: str) -> None:
    with pytest.raises(InvalidQuery, match=f"^order_by: {message}"):
        build_order(Item, order_by)


@pytest.mark.parametrize("order_by", [5, None, [5], ["name", None], {"name"}, Shop, b"name"])
def test_order_of_another_type(order_by: Any) -> None:
    with pytest.raises(InvalidQuery, match=r"^order_by takes names and SQL expressions, not "):
        build_order(Item, order_by)


# -- limits and totals -----------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "offset", "message"),
    [
        (-1, 0, "limit must not be negative: -1"),
        (1, -2, "offset must not be negative: -2"),
        (True, 0, "limit takes an integer, not bool"),
        (1, False, "offset takes an integer, not bool"),
        (1.0, 0, "limit takes an integer, not float"),
        ("5", 0, "limit takes an integer, not str"),
        (1, None, "offset takes an integer, not NoneType"),
        (2**31 - 1, 0, "limit must not be above 2147483646"),
        (1, 2**63, "offset must not be above"),
    ],
)
def test_bad_slice(limit: Any, offset: Any, message: str) -> None:
    with pytest.raises(InvalidQuery, match=f"^{message}"):
        check_slice(limit, offset)


async def test_the_largest_slice(store: Database) -> None:
    most = 2**31 - 2
    check_slice(most, most)
    check_slice(None)
    check_slice(0, 0)
    async with store.read_session() as session:
        assert (await session.exec(select(PagedBook).limit(most + 1).offset(most))).all() == []
        assert (await page_of(session, "name", limit=most)).items == []


@pytest.mark.parametrize(
    ("offset", "limit", "got", "total"),
    [
        (0, 10, 0, 0),
        (0, 10, 9, 9),
        (0, 10, 10, None),
        (20, 10, 3, 23),
        (20, 10, 10, None),
        (20, 10, 0, None),  # past the end
        (0, None, 5, 5),
        (2, None, 5, 7),
        (2, None, 0, None),
        (0, 0, 0, None),
    ],
)
def test_known_total(offset: int, limit: int | None, got: int, total: int | None) -> None:
    assert known_total(offset, limit, got) == total


async def test_count(books: Database) -> None:
    async with books.read_session() as session:

        async def count(*where: Any, cap: int | None = None) -> int:
            return (await session.exec(count_statement(PagedBook, where, cap))).one()

        pages = [book.pages for book in await listed(session, ())]
        assert await count() == ROWS
        assert await count(PagedBook.pages == 0) == pages.count(0) > 3
        assert await count(PagedBook.pages == 0, cap=2) == 3
        counts = [await count(cap=cap) for cap in (0, ROWS - 1, ROWS, ROWS + 1)]
        assert counts == [1, ROWS, ROWS, ROWS]
    for cap in (-1, True, 1.5):
        with pytest.raises(InvalidQuery, match=r"^cap "):
            count_statement(PagedBook, cap=cast(Any, cap))


# -- speed -----------------------------------------------------------------------


@pytest.mark.only("postgresql")
@pytest.mark.parametrize(
    ("order_by", "index", "condition"),
    [
        (("pages", "name"), "pages, name, id", "(pages >= 1)"),
        (("-pages", "-name", "-id"), "pages, name, id", "(pages <= 1)"),
        # NULL comes first, and so is never after a value.
        (("-rank", "-id"), "rank, id", "(rank <= 1)"),
        (("rank__nulls_first", "id"), "rank NULLS FIRST, id", "(rank >= 1)"),
    ],
)
async def test_an_index_finds_the_place_of_a_cursor(
    store: Database, order_by: Any, index: str, condition: str
) -> None:
    async with store.session() as session:
        connection = await session.connection()
        # An index that is built where updated rows are not yet swept out (autoanalyze holds
        # them) is no use to its own transaction: this one gets an empty file.
        await connection.exec_driver_sql("TRUNCATE pagedbook CASCADE")
        await session.exec(
            insert(SQLModel.metadata.tables["pagedbook"]),
            params=[
                {"id": UUID(int=n), "name": "x", "pages": n % 3, "rank": n % 3, "label": "a"}
                for n in range(3000)
            ],
        )
        await connection.exec_driver_sql(f"CREATE INDEX paged_ix ON pagedbook ({index})")
        await connection.exec_driver_sql("ANALYZE pagedbook")
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        page = await page_of(session, order_by, limit=1500)
        keyset = Keyset(PagedBook, order_by, limit=10, cursor=page.next_cursor)
        rendered = (
            keyset.statement()
            .params(keyset.parameters)
            .compile(dialect=store.engine.dialect, compile_kwargs={"literal_binds": True})
        )
        lines = await connection.exec_driver_sql(f"EXPLAIN {rendered}".replace("%", "%%"))
        plan = "\n".join(line[0] for line in lines)
        await session.rollback()  # the index too
    assert "using paged_ix" in plan or "Backward using paged_ix" in plan, plan
    assert f"Index Cond: {condition}" in plan, plan
    assert "Sort" not in plan, plan
