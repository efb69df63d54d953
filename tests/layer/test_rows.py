"""ServiceBase on rows: what each method reads, writes, locks and leaves alone."""

import asyncio
import inspect
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Optional, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    BigInteger,
    Double,
    MetaData,
    Numeric,
    SmallInteger,
    event,
    select,
    text,
    true,
)
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import joinedload, load_only, registry, selectinload
from sqlmodel import Field, Relationship, SQLModel, col
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import (
    Database,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    ServiceBase,
    StaleData,
    Timestamp,
    TimestampMixin,
)
from app.db.base import NAMING_CONVENTION, SoftDeleteMixin, VersionMixin
from app.db.errors import InvalidFilter, TransientError
from app.db.filters import not_, or_

from .conftest import Counter

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]

AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


class Own(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING_CONVENTION))):
    """Tables that no other test creates."""


# -- tables with soft deletes ---------------------------------------------------


class RowBadge(Own, table=True):
    hero_id: UUID = Field(primary_key=True, foreign_key="rowhero.id", ondelete="CASCADE")
    tag_id: UUID = Field(primary_key=True, foreign_key="rowtag.id", ondelete="CASCADE")


class RowTag(Own, SoftDeleteMixin, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=20)

    heroes: list["RowHero"] = Relationship(back_populates="tags", link_model=RowBadge)


class RowTeam(Own, SoftDeleteMixin, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=20)

    heroes: list["RowHero"] = Relationship(back_populates="team", passive_deletes="all")


class RowHero(Own, TimestampMixin, SoftDeleteMixin, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=20)
    power: int = 1
    alias: str | None = Field(default=None, max_length=20)
    team_id: UUID | None = Field(default=None, foreign_key="rowteam.id")
    mentor_id: UUID | None = Field(default=None, foreign_key="rowhero.id")

    team: RowTeam | None = Relationship(back_populates="heroes")
    mentor: Optional["RowHero"] = Relationship(
        back_populates="pupils", sa_relationship_kwargs={"remote_side": "RowHero.id"}
    )
    pupils: list["RowHero"] = Relationship(back_populates="mentor", passive_deletes="all")
    tags: list[RowTag] = Relationship(back_populates="heroes", link_model=RowBadge)


class Named(SQLModel):
    name: str


class HeroCreate(SQLModel):
    name: str
    power: int = 1
    alias: str | None = None
    team_id: UUID | None = None
    mentor_id: UUID | None = None


class HeroUpdate(SQLModel):
    name: str | None = None
    power: int | None = None
    alias: str | None = None
    team_id: UUID | None = None
    mentor_id: UUID | None = None


class HeroService(ServiceBase[RowHero, HeroCreate, HeroUpdate]):
    pass


class TeamService(ServiceBase[RowTeam, Named, Named]):
    pass


class TagService(ServiceBase[RowTag, Named, Named]):
    pass


# -- other tables ---------------------------------------------------------------


class RowPaper(Own, VersionMixin, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    title: str = Field(max_length=20)
    body: str | None = Field(default=None, max_length=20)


class RowLetter(Own, VersionMixin, SoftDeleteMixin, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    title: str = Field(max_length=20)


class Paper(SQLModel):
    title: str


class PaperUpdate(SQLModel):
    title: str | None = None
    body: str | None = None
    version: int | None = None


class PaperService(ServiceBase[RowPaper, Paper, PaperUpdate]):
    pass


class LetterService(ServiceBase[RowLetter, Paper, PaperUpdate]):
    pass


class RowJob(Own, table=True):
    id: int | None = Field(default=None, primary_key=True)
    status: str = Field(default="new", max_length=10, index=True)
    note: str | None = Field(default=None, max_length=50)


class JobData(SQLModel):
    id: int | None = None
    status: str = "new"
    note: str | None = None


class JobService(ServiceBase[RowJob, JobData, JobData]):
    pass


class RowFolder(Own, table=True):
    """Its files go with it, by the ORM's cascade alone."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)
    parent_id: int | None = Field(default=None, foreign_key="rowfolder.id")

    parent: Optional["RowFolder"] = Relationship(
        sa_relationship_kwargs={"remote_side": "RowFolder.id"}
    )
    files: list["RowFile"] = Relationship(back_populates="folder", cascade_delete=True)


class RowFile(Own, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)
    folder_id: int | None = Field(default=None, foreign_key="rowfolder.id", nullable=False)

    folder: RowFolder = Relationship(back_populates="files")


class FolderService(ServiceBase[RowFolder, Named, Named]):
    pass


class FileService(ServiceBase[RowFile, Named, Named]):
    pass


class RowWatched(Own, table=True):
    """A model with hooks, which want to see each row."""

    seen: ClassVar[list[str]] = []

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=20)
    power: int = 0


class WatchedUpdate(SQLModel):
    name: str | None = None
    power: int | None = None


class WatchedService(ServiceBase[RowWatched, Named, WatchedUpdate]):
    pass


@event.listens_for(RowWatched, "before_update")
def _updating(_mapper: Any, _connection: Any, row: RowWatched) -> None:
    RowWatched.seen.append(f"update {row.name}")


@event.listens_for(RowWatched, "before_delete")
def _deleting(_mapper: Any, _connection: Any, row: RowWatched) -> None:
    RowWatched.seen.append(f"delete {row.name}")


class RowSeat(Own, table=True):
    """A key of four columns."""

    hall: int = Field(primary_key=True)
    side: int = Field(primary_key=True)
    line: int = Field(primary_key=True)
    place: int = Field(primary_key=True)
    taken: bool = False


class SeatService(ServiceBase[RowSeat, RowSeat, RowSeat]):
    pass


class RowSale(Own, table=True):
    id: int | None = Field(default=None, primary_key=True)
    shop: str | None = Field(default=None, max_length=20)
    amount: int = 0
    small: int = Field(default=1, sa_type=SmallInteger)
    big: int = Field(default=2**40, sa_type=BigInteger)
    weight: float | None = Field(default=None, sa_type=Double)
    price: Decimal = Field(default=Decimal(1), sa_type=Numeric(10, 2))
    paid: bool = False
    day: date = date(2026, 1, 1)
    sold_at: datetime = Field(default=AT, sa_type=Timestamp)
    team_id: UUID | None = Field(default=None, foreign_key="rowteam.id")

    team: RowTeam | None = Relationship()


class SaleService(ServiceBase[RowSale, RowSale, RowSale]):
    pass


_made: set[str] = set()


@pytest.fixture
async def store(db: Database) -> AsyncGenerator[Database]:
    """The tables of this module: made by the first test, left empty by each."""
    name = str(db.engine.url)
    async with db.engine.begin() as connection:
        if name not in _made:
            await connection.run_sync(Own.metadata.create_all)
            _made.add(name)
    RowWatched.seen.clear()
    yield db
    mysql = db.engine.dialect.name == "mysql"
    async with db.engine.begin() as connection:
        if mysql:  # it checks self-references row by row
            await connection.execute(text("SET FOREIGN_KEY_CHECKS = 0"))
        for table in reversed(Own.metadata.sorted_tables):
            await connection.execute(table.delete())
        if mysql:
            await connection.execute(text("SET FOREIGN_KEY_CHECKS = 1"))


async def add(db: Database, *rows: SQLModel) -> None:
    async with db.session() as session:
        session.add_all(rows)


def verbs(sent: Sequence[str]) -> list[str]:
    return [statement.split()[0] for statement in sent]


async def _result(call: Any) -> Any:
    """What a method returns; all rows of a stream."""
    return await call if inspect.isawaitable(call) else [r async for batch in call for r in batch]


def names(rows: Sequence[Any]) -> list[str]:
    return sorted(row.name for row in rows)


# -- heroes ---------------------------------------------------------------------
#
#   team X: ann, bob, (cid)     ann mentors bob and (cid); bob mentors dan
#   (team Z): dan               tags: red on all, (old) on ann
#
# What stands in parentheses is soft-deleted.

X, Z = UUID(int=1), UUID(int=2)
ANN, BOB, CID, DAN = (UUID(int=number) for number in (11, 12, 13, 14))


@pytest.fixture
async def heroes(store: Database) -> Database:
    x, z = RowTeam(id=X, name="x"), RowTeam(id=Z, name="z", deleted_at=AT)
    red, old = RowTag(name="red"), RowTag(name="old", deleted_at=AT)
    ann = RowHero(id=ANN, name="ann", power=5, alias="a", team=x, tags=[red, old])
    bob = RowHero(id=BOB, name="bob", power=3, team=x, mentor=ann, tags=[red])
    cid = RowHero(id=CID, name="cid", power=9, team=x, mentor=ann, tags=[red], deleted_at=AT)
    dan = RowHero(id=DAN, name="dan", power=1, team=z, mentor=bob, tags=[red])
    await add(store, ann, bob, cid, dan)
    return store


# -- partial updates ------------------------------------------------------------


async def _table(source: Database | AsyncSession) -> dict[UUID, dict[str, Any]]:
    """What is stored, whatever the session holds."""
    if isinstance(source, Database):
        async with source.read_session() as session:
            return await _table(session)
    columns = cast(Any, RowHero).__table__.columns
    result = await (await source.connection()).execute(select(*columns))
    return {row["id"]: dict(row) for row in result.mappings()}


CHANGES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "one field": (HeroUpdate(power=8), {}, {"power": 8}),
    "mapping": ({"power": 8}, {}, {"power": 8}),
    "explicit None": (HeroUpdate(alias=None), {}, {"alias": None}),
    "None of a foreign key": ({"team_id": None}, {}, {"team_id": None}),
    "value beside": ({"power": 8}, {"alias": "b"}, {"power": 8, "alias": "b"}),
    "foreign key": ({"mentor_id": DAN}, {}, {"mentor_id": DAN}),
    "expression": ({}, {"power": col(RowHero.power) * 2}, {"power": 10}),
}


@pytest.mark.parametrize("case", CHANGES)
async def test_update_writes_what_was_set_and_nothing_else(heroes: Database, case: str) -> None:
    data, values, expected = CHANGES[case]
    before = await _table(heroes)
    old = before.pop(ANN)
    for way in ("by key", "by key of a loaded row", "by row"):
        async with heroes.sessions() as session:
            service = HeroService(session)
            loaded = await service.get(ANN) if way != "by key" else None
            target = loaded if loaded is not None and way == "by row" else ANN
            changed = await service.update(target, data, **values)
            assert loaded is None or changed is loaded
            after = await _table(session)
            new = changed.model_dump()  # all of it is readable, and right
            assert after.pop(ANN) == new, way
            assert after == before, way
            differs = {name: value for name, value in new.items() if value != old[name]}
            assert differs.pop("updated_at") > old["updated_at"], way
            assert differs == expected, way
            await session.rollback()


async def test_a_key_means_the_table_and_not_what_the_session_saw(heroes: Database) -> None:
    async with heroes.sessions() as session:
        service = HeroService(session)
        ann = await service.get(ANN)
        await session.commit()  # the row stays loaded, with power 5
        async with heroes.session() as other:
            await HeroService(other).update(ANN, {"power": 7, "alias": "theirs"})
        await service.update(ANN, HeroUpdate(power=5))
        await session.commit()
        assert ann.power == 5
    table = await _table(heroes)
    assert (table[ANN]["power"], table[ANN]["alias"]) == (5, "theirs")


@pytest.mark.parametrize("way", ["key", "row"])
async def test_update_sets_relations_beside_the_payload(heroes: Database, way: str) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        y = await TeamService(session).create({"name": "y"})
        tags = await TagService(session).list(name="red")
        target = await service.get(ANN, load=("team", "tags")) if way == "row" else ANN
        ann = await service.update(target, {"power": 6}, team=y, load=("team", "tags"))
        assert ann.team is y
        assert ann.tags == tags
    async with heroes.read_session() as session:
        ann = await HeroService(session).get(ANN, load="team")
        assert (ann.power, ann.team and ann.team.name) == (6, "y")


async def test_update_of_nothing_writes_nothing(heroes: Database, statements: Counter) -> None:
    before = await _table(heroes)
    async with heroes.session() as session:
        with statements(heroes) as sent:
            ann = await HeroService(session).update(ANN, HeroUpdate())
        assert ann.name == "ann"
    assert verbs(sent) == ["SELECT"]
    assert await _table(heroes) == before


# -- loading along --------------------------------------------------------------

# What to load, and what can be read then, of a row with team x and the tag red (or none).
LOADS: dict[str, tuple[Any, str]] = {
    "name": ("team", "team"),
    "names": (["team", "tags"], "team tags"),
    "attribute": (RowHero.team, "team"),
    "attributes": ((RowHero.team, RowHero.tags), "team tags"),
    "nested": ("team.heroes", "team nested"),
    "joined option": (joinedload(cast(Any, RowHero.team)), "team"),
    "option for many": (selectinload(cast(Any, RowHero.tags)), "tags"),
    "joined many": (joinedload(cast(Any, RowHero.tags)), "tags"),
    "mixed": (["team.heroes", selectinload(cast(Any, RowHero.tags))], "team nested tags"),
}


METHODS = ["create", "update", "update of a row", "upsert", "get_or_create", "get", "list", "page"]


@pytest.mark.parametrize("method", METHODS)
async def test_load(heroes: Database, method: str) -> None:
    for load, readable in LOADS.values():
        async with heroes.sessions() as session:
            row = await _loaded(HeroService(session), method, load)
            await session.rollback()
        # After the session: what is read was loaded.
        if "team" in readable:
            assert row.team is not None
            assert row.team.name == "x"
        if "nested" in readable:
            assert row.team is not None
            assert names(row.team.heroes) == sorted({"ann", "bob", row.name})
        if "tags" in readable:
            assert names(row.tags) == ([] if method in ("create", "get_or_create") else ["red"])


async def _loaded(service: HeroService, method: str, load: Any) -> RowHero:
    made = {"name": "eve", "team_id": X}
    match method:
        case "create":
            row = await service.create(made, load=load)
        case "update":
            row = await service.update(DAN, {"team_id": X}, load=load)
        case "update of a row":
            row = await service.update(await service.get(DAN), {"team_id": X}, load=load)
        case "upsert":
            row = await service.upsert(made, on="id", id=DAN, load=load)
        case "get_or_create":
            row, _ = await service.get_or_create(made, on="id", id=uuid4(), load=load)
        case "get":
            row = await service.get(BOB, load=load)
        case "list":
            row = (await service.list(name="bob", load=load))[0]
        case _:
            row = (await service.page(name="bob", load=load)).items[0]
    service.session.expunge_all()  # a rollback would expire it
    return row


async def test_load_only(heroes: Database, statements: Counter) -> None:
    only = load_only(cast(Any, RowHero.name))
    async with heroes.session() as session:
        with statements(heroes) as sent:
            rows = await HeroService(session).list(load=["team", only], order_by="name")
        assert [row.name for row in rows] == ["ann", "bob", "dan"]
        assert "power" not in sent[0]
        assert rows[0].team is not None
        assert rows[0].team.name == "x"


WRONG_LOADS: list[tuple[Any, str]] = [
    ("taem", "load 'taem': RowHero has no relation 'taem'; did you mean 'team'"),
    ("team.heros", r"load 'team\.heros': RowTeam has no relation 'heros'; did you mean 'heroes'"),
    (["tags", "name"], "load 'name': RowHero has no relation 'name'"),
    (RowTeam.heroes, "load takes names, attributes of RowHero and loader options"),
    (5, "load takes names, .* not 5"),
]


@pytest.mark.parametrize("method", ["get", "list", "page", "cursor_page", "get_by_ids", "stream"])
async def test_load_refuses(heroes: Database, method: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"get": (ANN,), "get_by_ids": ([ANN],)}
    async with heroes.read_session() as session:
        call = getattr(HeroService(session), method)
        for load, message in WRONG_LOADS:
            with pytest.raises(InvalidQuery, match=message):
                await _result(call(*arguments.get(method, ()), load=load))


@pytest.mark.parametrize("way", ["by key", "by row"])
async def test_loaded_relations_stay_and_follow_their_foreign_keys(
    heroes: Database, way: str
) -> None:
    y = RowTeam(name="y")
    await add(heroes, y)
    async with heroes.session() as session:
        service = HeroService(session)
        ann = await service.get(ANN, load=("team", "mentor", "tags", "pupils"))
        target = ann if way == "by row" else ANN
        await service.update(target, {"power": 6})
        assert (ann.team and ann.team.name, ann.mentor) == ("x", None)
        assert (names(ann.tags), names(ann.pupils)) == (["red"], ["bob"])
        await service.update(target, {"team_id": y.id})
        assert (ann.team and ann.team.name, ann.mentor) == ("y", None)
        assert names(ann.tags) == ["red"]
        await service.update(target, {"team_id": None, "mentor_id": DAN})
        assert (ann.team, ann.mentor and ann.mentor.name) == (None, "dan")


async def test_relations_given_to_create_are_loaded(heroes: Database) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        ann = await service.get(ANN)
        made = await service.create({"name": "eve"}, mentor=ann, tags=[RowTag(name="new")])
        assert made.mentor_id == ANN
    assert made.mentor is ann
    assert names(made.tags) == ["new"]


async def test_load_brings_a_relation_up_to_date(heroes: Database) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        x = await TeamService(session).get(X, load="heroes")
        assert names(x.heroes) == ["ann", "bob"]
        await service.create({"name": "eve", "team_id": X})
        await TeamService(session).update(x, {"name": "x2"}, load="heroes")
        assert names(x.heroes) == ["ann", "bob", "eve"]
        await TeamService(session).update(X, {"name": "x3"}, load=cast(Any, RowTeam.heroes))
        assert names(x.heroes) == ["ann", "bob", "eve"]


# -- soft deletes ---------------------------------------------------------------


async def test_reads_leave_deleted_rows_out_and_with_deleted_brings_them_back(
    heroes: Database,
) -> None:
    async with heroes.read_session() as session:
        service = HeroService(session)
        for there, each in ((False, service), (True, service.with_deleted())):
            every = ["ann", "bob", "cid", "dan"] if there else ["ann", "bob", "dan"]
            assert names(await each.list()) == every
            assert names(await each.get_multi()) == every
            assert names(await each.get_by_ids([CID, ANN], strict=False)) == (
                ["ann", "cid"] if there else ["ann"]
            )
            assert await each.count() == len(every)
            assert await each.count(or_(name="cid", power=9)) == there
            assert await each.exists(name="cid") is there
            assert (await each.get_or_none(CID) is not None) is there
            assert (await each.get_or_none(name="cid") is not None) is there
            assert (await each.get_or_none(CID, load="team") is not None) is there
            page = await each.page(limit=3)
            assert (len(page.items), page.total, page.has_more) == (3, len(every), there)
            walked: list[RowHero] = []
            cursor: str | None = None
            while True:
                part = await each.cursor_page(order_by="name", limit=2, cursor=cursor)
                walked += part.items
                cursor = part.next_cursor
                if cursor is None:
                    break
            assert [row.name for row in walked] == every
            streamed = [row async for batch in each.stream(batch_size=2) for row in batch]
            assert names(streamed) == every
            rows = await each.aggregate({"n": "count", "best": "max:power"})
            assert (rows[0].n, rows[0].best) == (len(every), 9 if there else 5)
        assert await service.count() == 3
        with pytest.raises(NotFound, match="RowHero not found: UUID"):
            await service.get(CID)
        with pytest.raises(NotFound) as caught:
            await service.get_by_ids([ANN, CID])
        assert caught.value.keys == (CID,)


# Filter; names without and with deleted rows.
RELATED: list[tuple[dict[str, Any], str, str]] = [
    ({"team__name": "z"}, "", "dan"),
    ({"team__is_null": True}, "dan", ""),
    ({"team__heroes__name": "cid"}, "", "ann bob cid"),
    ({"team__heroes__power__gt": 3}, "ann bob", "ann bob cid"),
    ({"pupils__name": "cid"}, "", "ann"),
    ({"pupils__pupils__team__name": "z"}, "", "ann"),
    ({"mentor__pupils__name": "cid"}, "", "bob cid"),
    ({"tags__name": "old"}, "", "ann"),
    ({"tags__heroes__name": "cid"}, "", "ann bob cid dan"),
    ({"mentor__team__name": "x"}, "bob dan", "bob cid dan"),
]


async def test_relation_filters_leave_deleted_rows_out(heroes: Database) -> None:
    async with heroes.read_session() as session:
        service = HeroService(session)
        for filters, without, with_ in RELATED:
            for each, expected in (
                (service, without.split()),
                (service.with_deleted(), with_.split()),
            ):
                assert names(await each.list(**filters)) == expected, filters
                assert await each.count(**filters) == len(expected), filters
                assert await each.count(not_(not_(**filters))) == len(expected), filters
                assert await each.exists(**filters) is bool(expected), filters


async def _one(service: HeroService, method: str, pk: UUID, load: Any) -> RowHero:
    """One row, by one of `READS`."""
    match method:
        case "get":
            return await service.get(pk, load=load)
        case "filter":
            return await service.get(id=pk, load=load)
        case "list":
            rows = await service.list(id=pk, load=load)
        case "page":
            rows = (await service.page(id=pk, load=load)).items
        case "cursor_page":
            rows = (await service.cursor_page(id=pk, load=load)).items
        case "get_by_ids":
            rows = await service.get_by_ids([pk], load=load)
        case _:
            rows = [row async for batch in service.stream(id=pk, load=load) for row in batch]
    assert len(rows) == 1
    return rows[0]


READS = ["get", "filter", "list", "page", "cursor_page", "get_by_ids", "stream"]


@pytest.mark.parametrize("method", READS)
async def test_eager_loads_leave_deleted_rows_out(heroes: Database, method: str) -> None:
    async def read(session: AsyncSession, pk: UUID, load: Any, deleted: bool) -> RowHero:
        service = HeroService(session)
        return await _one(service.with_deleted() if deleted else service, method, pk, load)

    for deleted in (False, True):
        more = ["cid"] if deleted else []
        async with heroes.read_session() as session:
            dan = await read(session, DAN, "team", deleted)
            assert (dan.team is not None) is deleted  # to-one
        async with heroes.read_session() as session:
            ann = await read(session, ANN, ("pupils", "tags", "team.heroes"), deleted)
            assert names(ann.pupils) == ["bob", *more]  # to the same table
            assert names(ann.tags) == (["old", "red"] if deleted else ["red"])
            assert ann.team is not None
            assert names(ann.team.heroes) == ["ann", "bob", *more]  # nested
        async with heroes.read_session() as session:
            dan = await read(session, DAN, ("mentor.mentor.pupils", "mentor.tags.heroes"), deleted)
            assert dan.mentor is not None
            assert dan.mentor.mentor is not None
            assert names(dan.mentor.mentor.pupils) == ["bob", *more]
            assert names(dan.mentor.tags[0].heroes) == ["ann", "bob", *more, "dan"]
        async with heroes.read_session() as session:
            by_attribute = await read(session, ANN, RowHero.pupils, deleted)
            assert names(by_attribute.pupils) == ["bob", *more]


@pytest.mark.parametrize("way", ["create", "by key", "by row"])
async def test_writes_load_no_deleted_rows(heroes: Database, way: str) -> None:
    async with heroes.session() as session:
        service, load = HeroService(session), ("team.heroes", "tags", "pupils")
        if way == "create":
            eve = await service.create({"name": "eve", "team_id": X}, load=load)
            assert eve.team is not None
            assert names(eve.team.heroes) == ["ann", "bob", "eve"]
            return
        target = await service.get(ANN) if way == "by row" else ANN
        ann = await service.update(target, {"power": 6}, load=load)
        assert names(ann.pupils) == ["bob"]
        assert names(ann.tags) == ["red"]
        assert ann.team is not None
        assert names(ann.team.heroes) == ["ann", "bob"]


async def test_a_foreign_key_to_a_deleted_row_leads_nowhere(heroes: Database) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        ann = await service.get(ANN, load="team")
        await service.update(ann, {"team_id": Z})
        assert ann.team is None
        bob = await service.update(BOB, {"team_id": Z}, load="team")
        assert bob.team is None


async def test_loaded_collections_answer_each_service_anew(heroes: Database) -> None:
    async with heroes.read_session() as session:
        service = HeroService(session)
        assert names((await service.get(ANN, load="pupils")).pupils) == ["bob"]
        everything = await service.with_deleted().get(ANN, load="pupils")
        assert names(everything.pupils) == ["bob", "cid"]
        assert names((await service.get(ANN, load="pupils")).pupils) == ["bob"]


async def test_sorting_and_groups_leave_deleted_rows_out(heroes: Database) -> None:
    async with heroes.read_session() as session:
        service = HeroService(session)
        first = await service.list(order_by="team__name__nulls_first")
        assert first[0].name == "dan"  # its team is not there
        rows = await service.aggregate({"n": "count"}, group_by="team__name", order_by="team__name")
        assert [tuple(row) for row in rows] == [("x", 2), (None, 1)]
        rows = await service.with_deleted().aggregate(
            {"n": "count"}, group_by="team__name", order_by="team__name"
        )
        assert [tuple(row) for row in rows] == [("x", 3), ("z", 1)]


@pytest.mark.parametrize("way", ["by key", "by row"])
async def test_delete_and_restore(heroes: Database, way: str) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        target = await service.get(BOB) if way == "by row" else BOB
        assert await service.delete(target) is None  # type: ignore[func-returns-value]
        assert names(await service.list()) == ["ann", "dan"]
    table = await _table(heroes)
    assert datetime.now(UTC) - table[BOB]["deleted_at"] < timedelta(minutes=1)
    assert table[BOB]["team_id"] == X  # nothing else goes
    async with heroes.session() as session:
        service = HeroService(session)
        target = await service.with_deleted().get(BOB) if way == "by row" else BOB
        bob = await service.restore(target, load="team")
        assert bob.deleted_at is None
        assert bob.team is not None
        assert names(await service.list()) == ["ann", "bob", "dan"]
        with pytest.raises(NotFound):
            await service.restore(uuid4())
        with pytest.raises(InvalidQuery, match="RowJob has no SoftDeleteMixin: nothing to restore"):
            await JobService(session).restore(1)
    table = await _table(heroes)
    assert table[BOB]["deleted_at"] is None


@pytest.mark.parametrize("way", ["key", "key of a loaded row", "row"])
async def test_a_deleted_row_is_not_found(heroes: Database, way: str) -> None:
    before = await _table(heroes)
    async with heroes.session() as session:
        service = HeroService(session)
        loaded = await service.with_deleted().get(CID) if way != "key" else None
        target = loaded if loaded is not None and way == "row" else CID
        with pytest.raises(NotFound):
            await service.update(target, {"power": 1})
        with pytest.raises(NotFound):
            await service.delete(target)
        with pytest.raises(NotFound) as caught:
            await service.update_multi({CID: {"power": 1}, ANN: {"power": 1}})
        assert caught.value.keys == (CID,)
        with pytest.raises(NotFound):
            await service.update_where({"power": 1}, id=CID)
        with pytest.raises(NotFound):
            await service.delete_where(id=CID)
        assert await service.update_where({"power": 1}, allow_multiple=True, name="cid") == 0
        assert await service.delete_where(allow_multiple=True, name="cid") == 0
        await session.rollback()
    assert await _table(heroes) == before
    async with heroes.session() as session:
        changed = await HeroService(session).with_deleted().update(CID, {"power": 2})
        assert (changed.power, changed.deleted_at) == (2, AT)


async def test_a_row_deleted_in_this_session_is_not_found(heroes: Database) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        ann = await service.get(ANN)
        await service.delete(ANN)
        assert ann.deleted_at is not None
        with pytest.raises(NotFound):
            await service.get(ANN)
        with pytest.raises(NotFound):
            await service.update(ANN, {"power": 1})
        with pytest.raises(NotFound):
            await service.delete(ANN)


@pytest.mark.parametrize("way", ["key", "row"])
async def test_hard_delete(heroes: Database, way: str) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        everything = service.with_deleted()
        target = await everything.get(CID) if way == "row" else CID
        await service.delete(target, hard=True)  # also when it was soft-deleted before
        await service.delete(DAN, hard=True)
        with pytest.raises(NotFound):
            await service.delete(DAN, hard=True)
        assert names(await everything.list()) == ["ann", "bob"]
    assert {*await _table(heroes)} == {ANN, BOB}


async def test_update_where_and_delete_where_are_soft_too(
    heroes: Database, statements: Counter
) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        ann = await service.get(ANN)
        assert await service.update_where({"power": 0}, true(), allow_multiple=True) == 3
        assert ann.power == 0
        with statements(heroes) as sent:
            assert await service.delete_where(team__name="x", allow_multiple=True) == 2
        assert verbs(sent) == ["UPDATE", "SELECT"]
        assert ann.deleted_at is not None
        assert names(await service.list()) == ["dan"]
        assert await service.delete_where(name="dan", hard=True) == 1
        assert await service.with_deleted().delete_where(name="cid", hard=True) == 1
    table = await _table(heroes)
    assert {*table} == {ANN, BOB}
    assert table[ANN]["power"] == 0


# -- versions -------------------------------------------------------------------

PAPER = UUID(int=7)


@pytest.fixture
async def papers(store: Database) -> Database:
    await add(store, RowPaper(id=PAPER, title="a"), RowPaper(title="b"))
    await add(store, RowLetter(id=PAPER, title="a"))
    return store


async def test_each_way_of_writing_counts_the_version_up(papers: Database) -> None:
    async with papers.session() as session:
        service = PaperService(session)
        made = await service.create({"title": "c"})
        assert made.version == 1
        assert (await service.update(made, {"title": "d"})).version == 2
        assert (await service.update(made.id, {"title": "e"})).version == 3
        assert await service.update_multi({made.id: {"title": "f"}}) == 1
        assert made.version == 4
        assert await service.update_where({"title": "g"}, title="f") == 1
        assert made.version == 5
        assert (await service.upsert({"title": "h"}, on="id", id=made.id)).version == 6
        made.title = "i"
        await service.flush()
        assert made.version == 7
        by_key = await service.update(PAPER, {"title": "b2"})  # not loaded before
        assert by_key.version == 2
        letters = LetterService(session)
        await letters.delete(PAPER)
        assert (await letters.restore(PAPER)).version == 3
        assert await letters.delete_where(id=PAPER) == 1
        assert (await letters.with_deleted().get(PAPER)).version == 4
    async with papers.read_session() as session:
        service = PaperService(session)
        assert (await service.get(made.id)).version == 7
        assert (await service.get(PAPER)).version == 2


async def _changed_by_another(db: Database) -> None:
    async with db.session() as other:
        await PaperService(other).update(PAPER, {"title": "theirs"})


STALE: dict[str, Callable[[PaperService, RowPaper | None], Awaitable[Any]]] = {
    "key": lambda service, _: service.update(PAPER, {"title": "mine", "version": 1}),
    "key, value": lambda service, _: service.update(PAPER, {"title": "mine"}, version=1),
    "row": lambda service, paper: service.update(paper, {"title": "mine", "version": 1}),
    "row, value": lambda service, paper: service.update(paper, {"title": "mine"}, version=1),
    "multi": lambda service, _: service.update_multi({PAPER: {"title": "mine", "version": 1}}),
}


@pytest.mark.parametrize("way", STALE)
async def test_a_version_that_was_overtaken_is_stale(papers: Database, way: str) -> None:
    await _changed_by_another(papers)
    for load in (False, True) if "row" not in way else (True,):
        async with papers.sessions() as session:
            service = PaperService(session)
            paper = await service.get(PAPER) if load else None
            with pytest.raises(StaleData, match="RowPaper was changed by another transaction"):
                await STALE[way](service, paper)
            await session.rollback()
    async with papers.session() as session:
        service = PaperService(session)
        assert (await service.get(PAPER)).title == "theirs"
        if way == "multi":
            assert await service.update_multi({PAPER: {"title": "mine", "version": 2}}) == 1
        else:
            await service.update(PAPER, {"title": "mine"}, version=2)
    async with papers.read_session() as session:
        paper = await PaperService(session).get(PAPER)
        assert (paper.title, paper.version) == ("mine", 3)


async def _dirty(service: PaperService, paper: RowPaper) -> None:
    paper.title = "mine"
    await service.flush()


WRITES: dict[str, Callable[[PaperService, RowPaper], Awaitable[Any]]] = {
    "update": lambda service, paper: service.update(paper, {"title": "mine"}),
    "update by key": lambda service, _: service.update(PAPER, {"title": "mine"}),
    "delete": lambda service, paper: service.delete(paper),
    "delete by key": lambda service, _: service.delete(PAPER),
    "flush": _dirty,
}


@pytest.mark.parametrize("way", WRITES)
async def test_a_row_that_another_session_changed_is_stale(papers: Database, way: str) -> None:
    async with papers.sessions() as session:
        service = PaperService(session)
        paper = await service.get(PAPER)
        await session.commit()  # the row stays, as it was read
        await _changed_by_another(papers)
        with pytest.raises(StaleData):
            await WRITES[way](service, paper)
        await session.rollback()
    async with papers.read_session() as session:
        assert (await PaperService(session).get(PAPER)).title == "theirs"


async def test_a_version_is_checked_also_when_nothing_else_is_sent(papers: Database) -> None:
    async with papers.session() as session:
        service = PaperService(session)
        with pytest.raises(StaleData):
            await service.update(PAPER, {}, version=2)
        assert (await service.update(PAPER, {}, version=1)).version == 1
        with pytest.raises(StaleData):
            await service.update_multi({PAPER: {"version": 2}})
        with pytest.raises(NotFound):
            await service.update(uuid4(), {"title": "x"}, version=1)


async def test_a_version_for_many_rows_is_refused(papers: Database) -> None:
    async with papers.session() as session:
        service = PaperService(session)
        with pytest.raises(InvalidValue, match="pass it as a filter"):
            await service.update_where({"title": "x", "version": 1}, id=PAPER)
        with pytest.raises(InvalidValue, match="pass it in the payload of each row"):
            await service.update_multi({PAPER: {"title": "x"}}, version=1)
        assert await service.update_where({"title": "x"}, id=PAPER, version=1) == 1
        with pytest.raises(NotFound):
            await service.update_where({"title": "x"}, id=PAPER, version=1)
        assert await service.update_where({"title": "y"}, true(), allow_multiple=True) == 2


async def test_soft_delete_of_a_stale_row(papers: Database) -> None:
    async with papers.sessions() as session:
        letters = LetterService(session)
        letter = await letters.get(PAPER)
        await session.commit()
        async with papers.session() as other:
            await LetterService(other).update(PAPER, {"title": "theirs"})
        with pytest.raises(StaleData):
            await letters.delete(letter)
        await session.rollback()
    async with papers.read_session() as session:
        assert await LetterService(session).exists(id=PAPER)


# -- locks ----------------------------------------------------------------------


async def _waits(task: asyncio.Task[Any]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=0.2)
    return not done


@pytest.mark.only("postgresql", "mysql")
@pytest.mark.parametrize("method", ["get", "list", "filter"])
async def test_a_locked_row_waits_and_is_read_anew(heroes: Database, method: str) -> None:
    async with asyncio.timeout(10), heroes.sessions() as first, heroes.sessions() as second:
        mine, theirs = HeroService(first), HeroService(second)
        stale = await theirs.get(ANN)
        await second.commit()
        await mine.get(ANN, lock="update")

        async def read() -> RowHero:
            if method == "get":
                return await theirs.get(ANN, lock="update")
            if method == "filter":
                return await theirs.get(name="ann", lock="update")
            return (await theirs.list(name="ann", lock="update", order_by="name"))[0]

        task = asyncio.create_task(read())
        assert await _waits(task)
        await mine.update(ANN, {"power": 50})
        await first.commit()
        row = await task
        assert row is stale
        assert row.power == 50


@pytest.mark.only("postgresql", "mysql")
async def test_locks_that_do_not_wait(heroes: Database) -> None:
    async with asyncio.timeout(10), heroes.sessions() as first, heroes.sessions() as second:
        mine, theirs = HeroService(first), HeroService(second)
        await mine.get(ANN, lock="update")
        free = await theirs.list(lock="skip_locked", order_by="name")
        assert [row.name for row in free] == ["bob", "dan"]
        assert await theirs.get_or_none(ANN, lock="skip_locked") is None
        with pytest.raises(TransientError):
            await theirs.get(ANN, lock="nowait")
        await second.rollback()
        assert (await theirs.get(BOB, lock="nowait")).name == "bob"
        assert (await theirs.get(ANN)).name == "ann"  # readers do not wait
        await first.commit()
        assert (await theirs.get(ANN, lock="nowait")).name == "ann"


@pytest.mark.only("postgresql", "mysql")
async def test_shared_locks(heroes: Database) -> None:
    async with asyncio.timeout(10), heroes.sessions() as first, heroes.sessions() as second:
        mine, theirs = HeroService(first), HeroService(second)
        await mine.get(ANN, lock="share")
        assert (await theirs.get(ANN, lock="share")).name == "ann"
        await second.commit()
        task = asyncio.create_task(theirs.get(ANN, lock="update"))
        assert await _waits(task)
        await first.commit()
        await task


@pytest.mark.parametrize("lock", ["update", "share", "nowait", "skip_locked"])
async def test_locks_with_relations(heroes: Database, lock: Any) -> None:
    """PostgreSQL refuses FOR UPDATE on the nullable side of a join."""
    async with heroes.session() as session:
        service = HeroService(session)
        dan = await service.get(DAN, lock=lock, load=("mentor.team", "team", "tags"))
        assert dan.mentor is not None
        assert dan.mentor.team is not None
        assert (dan.mentor.team.name, dan.team, names(dan.tags)) == ("x", None, ["red"])
        ann = (
            await service.list(name="ann", mentor__is_null=True, lock=lock, load=["team", "mentor"])
        )[0]
        assert (ann.mentor, ann.team and ann.team.name) == (None, "x")
        assert await service.get_or_none(CID, lock=lock) is None


async def test_an_unknown_lock_is_refused(heroes: Database) -> None:
    async with heroes.session() as session:
        service: Any = HeroService(session)
        for call in (
            service.get(ANN, lock="for update"),
            service.get(name="ann", lock="for update"),
            service.list(lock="for update"),
        ):
            with pytest.raises(InvalidQuery, match="lock: 'for update' is none of update, share, "):
                await call


async def test_waiting_changes_survive_a_lock(heroes: Database) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        ann = await service.get(ANN)
        ann.alias = "waiting"
        assert (await service.get(ANN, lock="update")).alias == "waiting"


async def test_workers_share_a_queue(store: Database) -> None:
    await add(store, *(RowJob() for _ in range(24)))
    done: list[tuple[int, int | None]] = []

    async def work(worker: int) -> None:
        while True:
            async with store.session() as session:
                service = JobService(session)
                jobs = await service.list(status="new", order_by="id", limit=1, lock="skip_locked")
                if not jobs:
                    return
                await asyncio.sleep(0.002)  # let the others try for the same row
                await service.update(jobs[0], {"status": "done"})
                done.append((worker, jobs[0].id))

    await asyncio.wait_for(asyncio.gather(*(work(worker) for worker in range(6))), 30)
    assert len(done) == len({job for _, job in done}) == 24
    assert len({worker for worker, _ in done}) > 1
    async with store.read_session() as session:
        assert await JobService(session).count(status="done") == 24


# -- many rows by filter --------------------------------------------------------


@pytest.fixture
async def folders(store: Database) -> Database:
    top = RowFolder(id=1, name="top", files=[RowFile(name="f1"), RowFile(name="f2")])
    await add(store, top)
    await add(
        store,
        RowFolder(id=2, name="sub", parent_id=1, files=[RowFile(name="f3")]),
        RowFolder(id=3, name="sub", parent_id=1),
        RowFolder(id=4, name="leaf", parent_id=3),
    )
    return store


@pytest.mark.parametrize("multiple", [False, True])
async def test_where_methods_need_a_filter(folders: Database, multiple: bool) -> None:
    async with folders.session() as session:
        service = FolderService(session)
        with pytest.raises(InvalidFilter, match=r"update_where needs a filter; .*true"):
            await service.update_where({"name": "x"}, allow_multiple=multiple)
        with pytest.raises(InvalidFilter, match=r"delete_where needs a filter; .*true"):
            await service.delete_where(allow_multiple=multiple)
        with pytest.raises(InvalidFilter, match="did you mean 'name'"):
            await service.delete_where(nmae="sub", allow_multiple=multiple)
        assert await service.count() == 4
        assert await service.count(name="x") == 0


async def test_where_methods_want_one_row(folders: Database) -> None:
    async with folders.session() as session:
        service = FolderService(session)
        with pytest.raises(MultipleFound, match=r"several rows of RowFolder .*allow_multiple=True"):
            await service.update_where({"name": "x"}, name="sub")
        with pytest.raises(MultipleFound):
            await service.delete_where(col(RowFolder.name) == "sub")
        with pytest.raises(NotFound, match="RowFolder not found: name"):
            await service.update_where({"name": "x"}, name="none")
        with pytest.raises(NotFound):
            await service.delete_where(or_(name="none", id=99))
        assert await service.count() == 4
        assert await service.update_where({"name": "x"}, name="leaf") == 1
        assert await service.delete_where(name="x") == 1
        assert await service.update_where({"name": "y"}, name="sub", allow_multiple=True) == 2
        assert await service.update_where({"name": "z"}, name="sub", allow_multiple=True) == 0
        assert await service.count(name="y") == 2


@pytest.mark.parametrize("multiple", [False, True])
async def test_where_methods_follow_relations_to_the_same_table(
    folders: Database, multiple: bool
) -> None:
    async with folders.session() as session:
        service = FolderService(session)
        one = await service.update_where(
            {"name": "end"}, parent__parent__name="top", allow_multiple=multiple
        )
        assert one == 1
        assert (await service.get(4)).name == "end"
        assert await service.delete_where(parent__name="sub", allow_multiple=multiple) == 1
        assert [row.id for row in await service.list(order_by="id")] == [1, 2, 3]
        files = FileService(session)
        assert await files.update_where({"name": "g"}, folder__parent__name="top") == 1
        assert await files.delete_where(folder__name="top", allow_multiple=True) == 2
        assert names(await files.list()) == ["g"]


@pytest.mark.parametrize("multiple", [False, True])
async def test_rows_of_the_session_are_fresh_after_update_where(
    heroes: Database, multiple: bool
) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        ann = await service.get(ANN, load=("team", "tags"))
        bob = await service.get(BOB, load="team")
        ann.alias = "waiting"  # is sent before
        changed = await service.update_where(
            {"team_id": None},
            name="ann",
            allow_multiple=multiple,
            values={"power": col(RowHero.power) + 1},
        )
        assert changed == 1
        assert (ann.power, ann.alias, ann.team_id) == (6, "waiting", None)
        assert bob.power == 3
    table = await _table(heroes)
    assert (table[ANN]["power"], table[ANN]["alias"], table[ANN]["team_id"]) == (6, "waiting", None)
    assert table[ANN]["updated_at"] == ann.updated_at
    assert table[BOB]["power"] == 3
    assert bob.team is not None
    # Relations that were loaded are not forgotten.
    assert names(ann.tags) == ["red"]


@pytest.mark.parametrize("multiple", [False, True])
async def test_rows_of_the_session_are_gone_after_delete_where(
    folders: Database, multiple: bool
) -> None:
    async with folders.session() as session:
        service = FileService(session)
        file, other = await service.get(name="f3"), await service.get(name="f1")
        assert await service.delete_where(name="f3", allow_multiple=multiple) == 1
        assert file not in session
        assert other in session
        assert await service.get_or_none(file.id) is None


async def test_delete_takes_along_what_the_model_says(folders: Database) -> None:
    async with folders.session() as session:
        service = FolderService(session)
        assert await service.delete_where(name="leaf") == 1
        assert await service.delete_where(name="sub", allow_multiple=True) == 2
        assert names(await FileService(session).list()) == ["f1", "f2"]
        await service.delete(1)
    async with folders.read_session() as session:
        assert await FileService(session).count() == 0
        assert await FolderService(session).count() == 0


async def test_hooks_see_each_row(store: Database) -> None:
    await add(store, *(RowWatched(id=number, name=f"w{number}") for number in (1, 2, 3, 4)))
    async with store.session() as session:
        service = WatchedService(session)
        two = await service.get(2)
        changed = await service.update_where(
            {"name": "new"},
            id__in=[1, 2],
            allow_multiple=True,
            values={"power": col(RowWatched.power) + 5},
        )
        assert changed == 2
        assert sorted(RowWatched.seen) == ["update new", "update new"]
        assert (two.name, two.power) == ("new", 5)  # what the database computed as well
        RowWatched.seen.clear()
        assert await service.delete_where(id__lte=2, allow_multiple=True) == 2
        await service.update(3, {"power": 1})
        await service.delete(3)
        assert await service.update_multi({4: {"power": 2}}) == 1
    assert sorted(RowWatched.seen) == [
        "delete new", "delete new", "delete w3", "update w3", "update w4",
    ]  # fmt: skip
    async with store.read_session() as session:
        left = await WatchedService(session).list()
        assert [(row.id, row.power) for row in left] == [(4, 2)]


async def test_update_where_of_nothing_counts(heroes: Database, statements: Counter) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        with statements(heroes) as sent:
            assert await service.update_where({}, team__name="x", allow_multiple=True) == 2
    assert verbs(sent) == ["SELECT"]


# -- by primary keys ------------------------------------------------------------


async def test_get_by_ids(heroes: Database, statements: Counter) -> None:
    async with heroes.session() as session:
        service = HeroService(session)
        rows = await service.get_by_ids([DAN, ANN, BOB], load="team")
        assert [row.name for row in rows] == ["dan", "ann", "bob"]
        assert rows[1].team is not None
        none, other = UUID(int=98), UUID(int=97)
        with pytest.raises(NotFound, match="RowHero not found: UUID") as caught:
            await service.get_by_ids([none, ANN, other])
        assert caught.value.keys == (none, other)
        rows = await service.get_by_ids((key for key in (none, BOB, ANN)), strict=False)
        assert [row.name for row in rows] == ["bob", "ann"]
        with statements(heroes) as sent:
            assert await service.get_by_ids([]) == []
        assert sent == []
        with pytest.raises(InvalidQuery, match="id: eq takes UUID, not str"):
            await service.get_by_ids([str(ANN)])


async def test_get_by_ids_repeats_what_is_asked_for_twice(heroes: Database) -> None:
    """`zip(keys, rows)` is right for any keys."""
    async with heroes.read_session() as session:
        rows = await HeroService(session).get_by_ids([ANN, BOB, ANN])
        assert [row.name for row in rows] == ["ann", "bob", "ann"]


async def test_get_by_ids_of_many(store: Database, statements: Counter) -> None:
    number = 40_000  # PostgreSQL takes 32,767 parameters
    async with store.session() as session:
        service = JobService(session)
        made = [{"id": each, "status": "new"} for each in range(1, 51)]
        await service.create_multi(made, returning=False)
        keys = [50, *range(number, 0, -1)]
        with statements(store) as sent:
            rows = await service.get_by_ids(keys[1:], strict=False)
        assert [row.id for row in rows] == list(range(50, 0, -1))
        assert len(sent) == (1 if session.get_bind().dialect.name == "postgresql" else 4)
        with pytest.raises(NotFound, match="and 39940 more") as caught:
            await service.get_by_ids(range(1, number + 1))
        assert caught.value.keys == tuple(range(51, number + 1))


async def test_get_by_ids_of_composite_keys(store: Database) -> None:
    keys = [(hall, side, 3, 4) for hall in range(3) for side in range(3)]
    await add(store, *(RowSeat(hall=h, side=s, line=r, place=p) for h, s, r, p in keys))
    async with store.read_session() as session:
        service = SeatService(session)
        wanted = [keys[5], keys[0], keys[8]]
        rows = await service.get_by_ids(wanted)
        assert [(row.hall, row.side, row.line, row.place) for row in rows] == wanted
        with pytest.raises(NotFound) as caught:
            await service.get_by_ids([(3, 4, 0, 0), keys[0], (0, 0, 4, 3)])
        assert caught.value.keys == ((3, 4, 0, 0), (0, 0, 4, 3))
        with pytest.raises(InvalidQuery, match=r"primary key of RowSeat is \(hall, side, line, "):
            await service.get_by_ids([1])
        # Four parameters a key: more than any database takes in one statement.
        many = [(9, 9, 9, place) for place in range(20_000)]
        assert len(await service.get_by_ids([*many, *keys], strict=False)) == len(keys)


# -- pages ----------------------------------------------------------------------

EXACT: list[tuple[int, int, list[int], bool]] = [
    (2, 0, [1, 2], True),
    (2, 2, [3, 4], True),
    (2, 4, [5], False),
    (2, 3, [4, 5], False),  # full, and the last one
    (5, 0, [1, 2, 3, 4, 5], False),
    (6, 0, [1, 2, 3, 4, 5], False),
    (4, 0, [1, 2, 3, 4], True),
    (1, 4, [5], False),
    (2, 5, [], False),  # past the last page
    (2, 100, [], False),
]


@pytest.mark.parametrize("total", [True, False, 3, 5, 6])
async def test_page(store: Database, statements: Counter, total: bool | int) -> None:
    await add(store, *(RowJob(id=number) for number in range(1, 6)))
    known = {True: 5, False: None, 3: 3, 5: 5, 6: 5}[total] if total is not True else 5
    async with store.session() as session:
        service = JobService(session)
        for limit, offset, ids, more in EXACT:
            with statements(store) as sent:
                page = await service.page(order_by="id", limit=limit, offset=offset, total=total)
            assert [row.id for row in page.items] == ids
            assert (page.total, page.has_more) == (known, more), (limit, offset)
            assert (page.limit, page.offset) == (limit, offset)
            # The last page tells the total, unless nothing is on it.
            counted = total is not False and (more or not ids)
            if total is True and ids and offset + limit == 5:
                counted = True  # full: whether more follow, only COUNT knows
            assert len(sent) == 1 + counted, (limit, offset)
        empty = await service.page(status="none", total=total)
        assert (empty.items, empty.total, empty.has_more) == ([], known and 0, False)


async def test_page_refuses(store: Database) -> None:
    await add(store, *(RowJob() for _ in range(3)))
    wrong: list[dict[str, Any]] = [
        {"limit": -1}, {"offset": -1}, {"limit": True}, {"limit": "5"}, {"total": -1},
        {"limit": 5, "total": -1},
    ]  # fmt: skip
    async with store.read_session() as session:
        service: Any = JobService(session)
        for arguments in wrong:
            with pytest.raises(InvalidQuery, match=[*arguments][-1]):
                await service.page(**{"limit": 1, **arguments})


async def test_pages_over_relations_to_many_rows(store: Database, statements: Counter) -> None:
    teams = [RowTeam(name=f"t{number}") for number in range(5)]
    for team in teams:
        team.heroes = [RowHero(name=f"h{number}", power=number) for number in range(10)]
    await add(store, *teams)
    async with store.session() as session:
        service = TeamService(session)
        with statements(store) as sent:
            page = await service.page(heroes__power__gte=5, order_by="name", limit=3, load="heroes")
        assert verbs(sent) == ["SELECT"] * 3  # rows, heroes, count
        assert [team.name for team in page.items] == ["t0", "t1", "t2"]
        assert [len(team.heroes) for team in page.items] == [10, 10, 10]
        assert (page.total, page.has_more) == (5, True)
        walk = await service.cursor_page(
            heroes__power__gte=5, order_by="-name", limit=3, load="heroes"
        )
        assert [(team.name, len(team.heroes)) for team in walk.items] == [
            ("t4", 10), ("t3", 10), ("t2", 10),
        ]  # fmt: skip
        assert await service.count(heroes__power__gte=5) == 5
        listed = await service.list(heroes__power__gte=5, limit=3, order_by="name")
        assert [team.name for team in listed] == ["t0", "t1", "t2"]


# -- streams --------------------------------------------------------------------


async def test_stream(heroes: Database) -> None:
    async with heroes.read_session() as session:
        service = HeroService(session)
        batches = [
            [row.name for row in batch]
            async for batch in service.stream(order_by="-power", batch_size=2)
        ]
        assert batches == [["ann", "bob"], ["dan"]]
        one = [batch async for batch in service.stream(power__gte=3, batch_size=2, load="tags")]
        assert [[names(row.tags) for row in batch] for batch in one] == [[["red"], ["red"]]]
        assert [batch async for batch in service.stream(name="none")] == []
        teams = [
            row.team and row.team.name
            async for batch in service.stream(load="team", order_by="name", batch_size=1)
            for row in batch
        ]
        assert teams == ["x", "x", None]
        for size in (0, -1, "5"):
            with pytest.raises(InvalidQuery, match="batch_size"):
                await _result(service.stream(batch_size=cast(int, size)))
        with pytest.raises(InvalidFilter, match="did you mean 'name'"):
            await _result(service.stream(nmae="x"))


async def _fails(service: JobService) -> None:
    async for batch in service.stream(batch_size=10):
        assert len(batch) // 0


async def test_a_stream_that_ends_early_leaves_the_session_usable(store: Database) -> None:
    await add(store, *(RowJob(id=number) for number in range(1, 101)))
    async with store.session() as session:
        service = JobService(session)
        for _ in range(3):
            async for batch in service.stream(order_by="id", batch_size=10):
                assert [row.id for row in batch] == list(range(1, 11))
                break
            assert await service.count() == 100
        with pytest.raises(ZeroDivisionError):
            await _fails(service)
        await service.update(5, {"status": "seen"})
    async with store.read_session() as session:
        assert await JobService(session).count(status="seen") == 1


async def test_writes_between_the_batches_of_a_stream(store: Database) -> None:
    await add(store, *(RowJob(id=number) for number in range(1, 26)))
    async with store.session() as session:
        service = JobService(session)
        visited: list[int | None] = []
        async for batch in service.stream(order_by="id", batch_size=10):
            for row in batch:
                visited.append(row.id)
                row.note = f"n{row.id}"
            await service.flush()
            await service.update_where(
                {"status": "seen"}, id__in=[row.id for row in batch], allow_multiple=True
            )
        assert visited == list(range(1, 26))
    async with store.read_session() as session:
        rows = await JobService(session).list(order_by="id")
        assert [(row.status, row.note) for row in rows] == [
            ("seen", f"n{number}") for number in range(1, 26)
        ]


async def test_a_stream_holds_one_batch_in_memory(store: Database) -> None:
    rows, seen = 20_000, 0
    async with store.session() as session:
        made = [{"note": f"job number {number:036}"} for number in range(rows)]
        assert await JobService(session).create_multi(made, returning=False) == rows
    del made
    async with store.read_session() as session:
        service = JobService(session)
        await service.list(limit=1)
        tracemalloc.start()
        try:
            async for batch in service.stream(batch_size=500):
                seen += len(batch)
            peak = tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
    assert seen == rows
    assert peak < 6, f"{peak:.1f} MiB"  # all rows at once are more than 30


# -- aggregates -----------------------------------------------------------------


@pytest.fixture
async def sales(store: Database) -> Database:
    x, last_year = RowTeam(id=X, name="x"), date(2025, 1, 1)
    late = AT + timedelta(microseconds=1)
    await add(
        store,
        RowSale(shop="a", amount=1, weight=0.5, price=Decimal("1.10"), team=x),
        RowSale(shop="a", amount=1, weight=None, price=Decimal("2.20"), team=x, day=last_year),
        RowSale(shop="b", amount=2, weight=0.25, price=Decimal("0.05"), team=x),
        RowSale(shop=None, amount=0, weight=1.0, price=Decimal("9.99"), sold_at=late),
    )
    return store


MEASURES: dict[str, tuple[Any, Any]] = {  # over all rows; over none
    "count": (4, 0),
    "count:weight": (3, 0),
    "count:shop": (3, 0),
    "count_distinct:shop": (2, 0),
    "count_distinct:team_id": (1, 0),
    "count_distinct:team__name": (1, 0),
    "sum:amount": (4, None),
    "sum:small": (4, None),
    "sum:big": (2**42, None),
    "sum:weight": (1.75, None),
    "sum:price": (Decimal("13.34"), None),
    "avg:amount": (1.0, None),
    "avg:weight": (1.75 / 3, None),
    "avg:price": (3.335, None),
    "min:amount": (0, None),
    "max:amount": (2, None),
    "max:big": (2**40, None),
    "min:weight": (0.25, None),
    "max:price": (Decimal("9.99"), None),
    "min:shop": ("a", None),
    "max:shop": ("b", None),
    "min:day": (date(2025, 1, 1), None),
    "max:sold_at": (AT + timedelta(microseconds=1), None),
    "max:team__name": ("x", None),
}


async def test_aggregate(sales: Database, statements: Counter) -> None:
    measures = {f"m{place}": measure for place, measure in enumerate(MEASURES)}
    async with sales.session() as session:
        service = SaleService(session)
        with statements(sales) as sent:
            (row,) = await service.aggregate(measures)
            (none,) = await service.aggregate(measures, shop="none")
        assert verbs(sent) == ["SELECT", "SELECT"]
    for name, measure in measures.items():
        expected, empty = MEASURES[measure]
        value = getattr(row, name)
        assert (measure, type(value)) == (measure, type(expected))
        assert (measure, value) == (measure, pytest.approx(expected, rel=1e-12)
                                    if isinstance(expected, float) else expected)  # fmt: skip
        assert (measure, getattr(none, name)) == (measure, empty)


async def test_averages_have_the_same_digits_everywhere(store: Database) -> None:
    await add(store, *(RowSale(amount=n, price=Decimal(n)) for n in (1, 1, 2)))
    async with store.read_session() as session:
        (row,) = await SaleService(session).aggregate({"a": "avg:amount", "p": "avg:price"})
    assert row.a == pytest.approx(4 / 3, rel=1e-12)
    assert row.p == pytest.approx(4 / 3, rel=1e-12)


async def test_aggregate_by_group(sales: Database) -> None:
    async with sales.read_session() as session:
        service = SaleService(session)
        rows = await service.aggregate({"n": "count", "total": "sum:price"}, group_by="shop")
        assert [tuple(row) for row in rows] == [
            ("a", 2, Decimal("3.30")), ("b", 1, Decimal("0.05")), (None, 1, Decimal("9.99")),
        ]  # fmt: skip
        assert rows[0].shop == "a"
        rows = await service.aggregate(
            {"n": "count"}, group_by=["team__name", "shop"], order_by=["-n", "-shop"], limit=2
        )
        assert [(row.team__name, row.shop, row.n) for row in rows] == [
            ("x", "a", 2),
            (None, None, 1),
        ]
        rows = await service.aggregate({"n": "count"}, group_by="paid", amount__gt=0)
        assert [tuple(row) for row in rows] == [(False, 3)]
        assert type(rows[0].paid) is bool
        rows = await service.aggregate(
            {"n": "count"}, or_(shop="b", team__is_null=True), group_by="day", order_by="-day"
        )
        assert [tuple(row) for row in rows] == [(date(2026, 1, 1), 2)]
        assert await service.aggregate({"n": "count"}, group_by="shop", shop="none") == []
        assert await service.aggregate({"n": "count"}, group_by="shop", limit=0) == []


async def test_aggregate_across_relations_counts_rows_once(heroes: Database) -> None:
    async with heroes.read_session() as session:
        service = HeroService(session)
        (row,) = await service.aggregate({"n": "count", "sum": "sum:power"}, tags__name="red")
        assert (row.n, row.sum) == (3, 9)
        (row,) = await service.aggregate({"n": "sum:mentor__power"})
        assert row.n == 5 + 3


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"measures": {}}, "aggregate needs a measure"),
    ({"measures": {"n": "cuont"}}, "n: RowSale has no measure 'cuont'; did you mean 'count'"),
    ({"measures": {"n": "sum"}}, "n: sum takes a field"),
    ({"measures": {"n": "sum:amuont"}}, "n: RowSale has no field 'amuont'; did you mean 'am"),
    ({"measures": {"n": "sum:shop"}}, "n: sum of shop takes int, float, Decimal, not str"),
    ({"measures": {"n": "avg:paid"}}, "n: avg of paid takes int, float, Decimal, not bool"),
    ({"measures": {"n": "max:team_id"}}, "n: max of team_id takes .*, not UUID"),
    ({"measures": {"count": "count"}}, "'count' cannot name a measure"),
    ({"measures": {"_n": "count"}}, "'_n' cannot name a measure"),
    ({"measures": {"shop": "count"}, "group_by": "shop"}, "'shop' cannot name a measure"),
    ({"group_by": "shpo"}, "group_by: RowSale has no field 'shpo'; did you mean 'shop'"),
    ({"group_by": "team"}, "group_by: RowSale.team is a relation"),
    ({"group_by": "team__heroes__name"}, "group_by: .*leads to many rows"),
    ({"order_by": "shop"}, "order_by: RowSale has no group or measure 'shop'"),
    ({"limit": -1}, "limit must not be negative"),
    ({"shpo": "a"}, "shpo: RowSale has no field 'shpo'"),
]


async def test_aggregate_refuses(sales: Database) -> None:
    async with sales.read_session() as session:
        for arguments, message in WRONG:
            rest = {name: value for name, value in arguments.items() if name != "measures"}
            with pytest.raises(InvalidQuery, match=message):
                await SaleService(session).aggregate(
                    arguments.get("measures", {"n": "count"}), **rest
                )


# -- relations that were not loaded ---------------------------------------------


class StrictHeroes(HeroService):
    raiseload = True


class StrictFolders(FolderService):
    raiseload = True


NOT_LOADED = r"'RowHero\.(team|tags)' is not available due to lazy='raise'"


@pytest.mark.parametrize("method", READS)
async def test_raiseload_names_the_relation(heroes: Database, method: str) -> None:
    async def read(load: Any = ()) -> RowHero:
        async with heroes.read_session() as session:
            return await _one(StrictHeroes(session), method, ANN, load)

    row = await read()
    for name in ("team", "tags"):
        with pytest.raises(InvalidRequestError, match=NOT_LOADED):
            getattr(row, name)
    row = await read(("team", "tags.heroes"))
    assert row.team is not None
    assert names(row.tags[0].heroes) == ["ann", "bob", "dan"]
    with pytest.raises(InvalidRequestError, match=r"'RowTeam\.heroes' is not available"):
        _ = row.team.heroes
    row = await read(RowHero.team)
    assert row.team is not None


@pytest.mark.parametrize("method", ["update", "create_multi", "upsert", "get_or_create"])
async def test_raiseload_holds_for_rows_that_were_written(heroes: Database, method: str) -> None:
    async with heroes.session() as session:
        service = StrictHeroes(session)
        data = {"name": "eve", "team_id": X}
        match method:
            case "update":
                row = await service.update(ANN, {"power": 6})
            case "create_multi":
                row = (await service.create_multi([data]))[0]
            case "upsert":
                row = await service.upsert(data, on="id", id=ANN)
            case _:
                row, _ = await service.get_or_create(data, on="id", id=ANN)
        with pytest.raises(InvalidRequestError, match=NOT_LOADED):
            _ = row.team
        loaded = await service.update(row, {"power": 7}, load="team")
        assert loaded.team is not None


async def test_raiseload_does_not_stand_in_the_way_of_cascades(folders: Database) -> None:
    async with folders.session() as session:
        service = StrictFolders(session)
        await service.delete(await service.get(2))
        await service.delete(4)
        assert await service.delete_where(name="sub") == 1
        top = await service.get(1)
        await service.update(top, {"name": "renamed"})
        await service.delete(top)
        assert await FileService(session).count() == 0


async def test_an_empty_change_needs_no_field_that_clients_must_send(papers: Database) -> None:
    """A version that the update class requires is for clients; the app changes values only."""

    class Sent(SQLModel):
        title: str | None = None
        version: int

    class Pages(ServiceBase[RowPaper, Paper, Sent]):
        pass

    async with papers.session() as session:
        service = Pages(session)
        assert (await service.update(PAPER, {}, title="one")).title == "one"
        assert await service.update_where({}, values={"title": "two"}, id=PAPER) == 1
        assert await service.update_multi({PAPER: {}}, title="three") == 1
        assert (await service.get(PAPER)).title == "three"
        with pytest.raises(InvalidValue, match="version: Field required"):
            await service.update(PAPER, {"title": "four"})
