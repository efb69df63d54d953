"""Twenty questions that generic services get wrong, each asked of every driver.

Other modules test each method in depth; this one holds what was found wrong in a rival.
"""

import asyncio
import pickle
import random
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, CheckConstraint, Table
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Field, Relationship, SQLModel

from app.db import (
    CheckViolation,
    Conflict,
    Database,
    ForeignKeyViolation,
    InvalidFilter,
    InvalidQuery,
    InvalidValue,
    NotFound,
    NotNullViolation,
    ServiceBase,
    SoftDeleteMixin,
    StaleData,
    TimestampMixin,
    TransientError,
    Unavailable,
    UniqueViolation,
    VersionMixin,
    and_,
    not_,
    or_,
)

from .conftest import Counter
from .models import sql

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]


class ProbeTag(SQLModel, table=True):
    hero_id: UUID = Field(primary_key=True, foreign_key="probehero.id", ondelete="CASCADE")
    label_id: int = Field(primary_key=True, foreign_key="probelabel.id", ondelete="CASCADE")


class ProbeLabel(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    text: str = Field(max_length=20)
    heroes: list["ProbeHero"] = Relationship(back_populates="labels", link_model=ProbeTag)


class ProbeTeam(SoftDeleteMixin, SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=40, unique=True)
    heroes: list["ProbeHero"] = Relationship(back_populates="team")


class ProbeHero(VersionMixin, TimestampMixin, SQLModel, table=True):
    __table_args__ = (CheckConstraint("power >= 0", name="power_positive"),)

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(max_length=40, unique=True)
    power: int = 0
    note: str | None = Field(default=None, max_length=40)
    rank: int | None = None
    team_id: int | None = Field(default=None, foreign_key="probeteam.id")
    team: ProbeTeam | None = Relationship(back_populates="heroes")
    labels: list[ProbeLabel] = Relationship(back_populates="heroes", link_model=ProbeTag)


class HeroCreate(SQLModel):
    name: str
    power: int = 0
    note: str | None = None
    rank: int | None = None
    team_id: int | None = None


class HeroUpdate(SQLModel):
    name: str | None = None
    power: int | None = None
    note: str | None = None
    team_id: int | None = None
    version: int | None = None


class Named(SQLModel):
    name: str


class Heroes(ServiceBase[ProbeHero, HeroCreate, HeroUpdate]):
    pass


class Teams(ServiceBase[ProbeTeam, Named, Named]):
    pass


class Labels(ServiceBase[ProbeLabel, ProbeLabel, ProbeLabel]):
    pass


TABLES: list[Table] = [
    SQLModel.metadata.tables[name] for name in ("probeteam", "probelabel", "probehero", "probetag")
]


@pytest.fixture
async def store(driver: str, empty: Callable[[str], URL]) -> AsyncGenerator[Database]:
    async with Database(empty(driver)) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(
                lambda sync: SQLModel.metadata.create_all(sync, tables=TABLES)
            )
        yield database
        async with database.engine.begin() as connection:
            await connection.run_sync(lambda sync: SQLModel.metadata.drop_all(sync, tables=TABLES))


async def test_01_partial_update_touches_what_was_set(store: Database) -> None:
    async with store.session() as session:
        team = await Teams(session).create({"name": "T"})
        made = await Heroes(session).create({"name": "a", "note": "x", "team_id": team.id})
        before = made.model_dump()
    async with store.session() as session:
        await Heroes(session).update(made.id, {"power": 5})
    async with store.session() as session:
        changed = await Heroes(session).update(made.id, {"note": None})
        after = changed.model_dump()
    kept = {"id", "name", "created_at", "team_id", "rank"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert (after["power"], after["note"]) == (5, None)


async def test_02_unknown_names_are_errors_also_nested(store: Database) -> None:
    async with store.read_session() as session:
        service = Heroes(session)
        cases: list[tuple[Any, dict[str, Any], str]] = [
            ((), {"pwer": 1}, r"ProbeHero has no field 'pwer'; did you mean 'power'\? There are: "),
            ((), {"power__gtt": 1}, "has no operator 'gtt'; did you mean 'gt'"),
            ((or_(power=1, nmae="x"),), {}, "no field 'nmae'; did you mean 'name'"),
            ((not_(and_(or_(team__nme="x"))),), {}, "ProbeTeam has no field 'nme'"),
            ((), {"labels__txt": "x"}, "ProbeLabel has no field 'txt'; did you mean 'text'"),
        ]
        for where, filters, message in cases:
            with pytest.raises(InvalidFilter, match=message):
                await service.list(*where, **filters)


async def test_03_unknown_key_in_a_payload_is_an_error(store: Database) -> None:
    async with store.session() as session:
        service = Heroes(session)
        with pytest.raises(InvalidValue, match="HeroCreate has no field 'pwoer'"):
            await service.create({"name": "a", "pwoer": 1})
        with pytest.raises(InvalidValue, match=r"item 1: HeroCreate has no field 'pwoer'"):
            await service.create_multi([{"name": "a"}, {"name": "b", "pwoer": 1}])
        assert await service.count() == 0


async def test_04_wildcards_in_text_match_themselves(store: Database) -> None:
    async with store.session() as session:
        service = Heroes(session)
        await service.create_multi([{"name": name} for name in ("50%_a", "50xya", "_50", "a%")])
        for operator, value, expected in [
            ("contains", "%_", ["50%_a"]),
            ("icontains", "%_A", ["50%_a"]),
            ("startswith", "_", ["_50"]),
            ("endswith", "%", ["a%"]),
        ]:
            filters: dict[str, Any] = {f"name__{operator}": value}
            found = await service.list(order_by="name", **filters)
            assert [hero.name for hero in found] == expected, operator


async def test_05_iendswith_is_a_suffix(store: Database) -> None:
    async with store.session() as session:
        service = Heroes(session)
        await service.create_multi([{"name": "Spider-BOY"}, {"name": "boyish"}])
        assert [hero.name for hero in await service.list(name__iendswith="boy")] == ["Spider-BOY"]


async def test_06_filters_over_relations_return_each_row_once(store: Database) -> None:
    async with store.session() as session:
        team = await Teams(session).create({"name": "T"})
        labels = [ProbeLabel(text=f"red {number}") for number in range(3)]
        hero = await Heroes(session).create({"name": "a", "team_id": team.id}, labels=labels)
        await Heroes(session).create({"name": "b", "team_id": team.id})
        service = Heroes(session)
        for filters in cast(
            list[dict[str, Any]],
            [
                {"team__name": "T", "labels__text__startswith": "red"},
                {"team__heroes__labels__text__contains": "1", "name": "a"},
            ],
        ):
            assert [each.id for each in await service.list(**filters)] == [hero.id]
            assert await service.count(**filters) == 1
        assert await Teams(session).count(heroes__labels__text__contains="red") == 1


async def test_07_a_limit_counts_rows_not_joined_ones(store: Database) -> None:
    async with store.session() as session:
        teams = await Teams(session).create_multi([{"name": f"T{place}"} for place in range(5)])
        await Heroes(session).create_multi(
            [{"name": f"{team.id}-{n}", "team_id": team.id} for team in teams for n in range(10)]
        )
    async with store.read_session() as session:
        page = await Teams(session).page(limit=3, load="heroes", heroes__power=0)
    assert [len(team.heroes) for team in page.items] == [10, 10, 10]
    assert page.total == 5


async def test_08_the_total_is_exact_past_the_last_page(store: Database) -> None:
    async with store.session() as session:
        await Heroes(session).create_multi([{"name": f"h{place}"} for place in range(7)])
        page = await Heroes(session).page(limit=3, offset=50)
    assert (page.items, page.total, page.has_more) == ([], 7, False)


async def test_09_a_cursor_walk_visits_every_row_once(store: Database) -> None:
    chance = random.Random(9)  # noqa: S311
    ranks = [None, 0, 0, 1, 2]
    async with store.session() as session:
        await Heroes(session).create_multi(
            [
                {"name": f"h{place}", "rank": chance.choice(ranks), "power": place % 2}
                for place in range(40)
            ]
        )
    order = ("-rank", "power")
    async with store.read_session() as session:
        service, seen, cursor = Heroes(session), list[UUID](), None
        for _ in range(20):
            page = await service.cursor_page(order_by=order, limit=3, cursor=cursor)
            seen += [hero.id for hero in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert cursor is None
        assert seen == [hero.id for hero in await service.list(order_by=order)]


async def test_10_twenty_at_once_make_one_row(store: Database) -> None:
    async def upsert(place: int) -> UUID:
        async with store.session() as session:
            return (await Heroes(session).upsert({"name": "one", "power": place}, on="name")).id

    async def get_or_create(_: int) -> UUID:
        async with store.session() as session:
            return (await Heroes(session).get_or_create({"name": "two"}, on="name"))[0].id

    for call in (upsert, get_or_create):
        keys = await asyncio.gather(*(call(place) for place in range(20)))
        assert len(set(keys)) == 1
    async with store.read_session() as session:
        assert await Heroes(session).count() == 2


@pytest.mark.parametrize(
    ("data", "error", "constraint", "columns"),
    [
        ({"name": "a"}, UniqueViolation, "uq_probehero_name", ("name",)),
        ({"name": "b", "team_id": 999}, ForeignKeyViolation, None, ()),
        ({"name": "b", "power": -1}, CheckViolation, "ck_probehero_power_positive", ()),
        ({"name": None}, NotNullViolation, None, ("name",)),
    ],
    ids=["unique", "foreign key", "check", "not null"],
)
async def test_11_constraints_have_names_and_survive(
    store: Database,
    data: dict[str, Any],
    error: type[Conflict | InvalidValue],
    constraint: str | None,
    columns: tuple[str, ...],
) -> None:
    async with store.session() as session:
        await Heroes(session).create({"name": "a"})
    async with store.sessions() as session:
        session.add(ProbeHero(**data))
        with pytest.raises(error) as caught:
            await Heroes(session).flush()
    found = caught.value
    if constraint:
        assert found.constraint == constraint
    assert set(found.columns) >= set(columns)
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert type(copy) is error
    assert (str(copy), copy.constraint, copy.columns) == (
        str(found),
        found.constraint,
        found.columns,
    )
    assert repr(found)
    for other in (TransientError, Unavailable):  # deadlock, lock timeout, lost connection
        assert not issubclass(error, other)
        assert not issubclass(other, Conflict)


async def test_12_a_caught_conflict_leaves_the_transaction_usable(store: Database) -> None:
    async with store.session() as session:
        service = Heroes(session)
        first = await service.create({"name": "a"})
        with pytest.raises(UniqueViolation):  # noqa: PT012
            async with service.transaction():
                await service.update(first, {"power": 9})
                await service.create({"name": "a"})
        assert first.power == 0  # as it was, and readable
        await service.create({"name": "b"})
    async with store.read_session() as session:
        assert [hero.power for hero in await Heroes(session).list()] == [0, 0]


async def test_13_bulk_update_names_missing_rows(store: Database) -> None:
    async with store.session() as session:
        made = await Heroes(session).create({"name": "a"})
        gone = [uuid4(), uuid4()]
        with pytest.raises(NotFound) as caught:
            await Heroes(session).update_multi({key: {"power": 1} for key in (made.id, *gone)})
    assert set(caught.value.keys) == set(gone)


async def test_14_bulk_create_with_any_none_is_few_statements(
    store: Database, statements: Counter
) -> None:
    chance = random.Random(14)  # noqa: S311
    items = [
        HeroCreate(name=f"h{n}", note=chance.choice([None, "x"]), rank=chance.choice([None, 0]))
        if chance.random() < 0.8
        else HeroCreate(name=f"h{n}")
        for n in range(5_000)
    ]
    async with store.session() as session:
        with statements(store) as sent:
            rows = await Heroes(session).create_multi(items)
    assert len(sent) <= 10
    assert [(row.name, row.note, row.rank) for row in rows] == [
        (item.name, item.note, item.rank) for item in items
    ]


async def test_15_upsert_returns_fresh_rows_and_leaves_other_columns(store: Database) -> None:
    async with store.session() as session:
        service = Heroes(session)
        loaded = await service.create({"name": "a", "note": "kept", "power": 1})
        again = await service.upsert({"name": "a", "power": 77}, on="name")
        assert again is loaded
        assert (loaded.power, loaded.note) == (77, "kept")


async def test_16_load_by_name_nested_and_kept(store: Database) -> None:
    async with store.session() as session:
        team = await Teams(session).create({"name": "T"})
        hero = await Heroes(session).create({"name": "a", "team_id": team.id}, load="team.heroes")
        assert hero.team is not None
        assert [each.name for each in hero.team.heroes] == ["a"]
        await Heroes(session).update(hero, {"power": 3})
        assert hero.team.name == "T"
        with pytest.raises(InvalidQuery, match="no relation 'taem'; did you mean 'team'"):
            await Heroes(session).list(load="taem")


async def test_17_a_stale_version_is_a_conflict(store: Database) -> None:
    async with store.session() as session:
        made = await Heroes(session).create({"name": "a"})
    async with store.session() as session:
        await Heroes(session).update(made.id, {"power": 1, "version": 1})
    async with store.session() as session:
        with pytest.raises(StaleData):
            await Heroes(session).update(made.id, {"power": 2, "version": 1})
        with pytest.raises(StaleData):
            await Heroes(session).update_multi({made.id: {"power": 2, "version": 1}})
        assert (await Heroes(session).get(made.id)).power == 1
    assert issubclass(StaleData, Conflict)


async def test_18_soft_deleted_rows_vanish_and_come_back(store: Database) -> None:
    async with store.session() as session:
        team = await Teams(session).create({"name": "T"})
        await Heroes(session).create({"name": "a", "team_id": team.id})
    async with store.session() as session:
        teams, heroes = Teams(session), Heroes(session)
        await teams.delete(team.id)
        assert await teams.get_or_none(team.id) is None
        assert await teams.list() == []
        assert (await teams.count(), await teams.exists()) == (0, False)
        assert await heroes.count(team__name="T") == 0
        assert (await heroes.get(name="a", load="team")).team is None
        everything = teams.with_deleted()
        assert (await everything.get(team.id)).deleted_at is not None
        assert await heroes.with_deleted().count(team__name="T") == 1
        await teams.restore(team.id)
        assert await heroes.count(team__name="T") == 1


async def test_19_get_with_skip_locked(store: Database) -> None:
    async with store.session() as session:
        made = await Heroes(session).create({"name": "a"})
    if store.engine.dialect.name == "sqlite":  # writers take turns: nothing to skip
        async with store.session() as session:
            assert (await Heroes(session).get(made.id, lock="skip_locked")).id == made.id
        return
    async with store.session() as first, store.session() as second:
        await Heroes(first).get(made.id, lock="update")
        assert await Heroes(second).get_or_none(made.id, lock="skip_locked") is None
        with pytest.raises(TransientError):
            await Heroes(second).get(made.id, lock="nowait")
        await second.rollback()


async def test_20_no_deprecated_call(store: Database, recwarn: pytest.WarningsRecorder) -> None:
    async with store.session() as session:
        service = Heroes(session)
        made = await service.create({"name": "a"}, load="team")
        await service.get(made.id)
        await service.list(order_by="-created_at")
        await service.page(total=5)
        await service.cursor_page(order_by="name")
        await service.upsert_multi([{"name": "a"}], on="name")
        await service.update_multi({made.id: {"power": 1}})
        await service.update_where({"power": 2}, name="a")
        async for _ in service.stream(batch_size=10):
            pass
        await service.aggregate({"rows": "count"}, group_by="team__name")
        await service.delete(made.id)
        assert await sql(session, "SELECT count(*) FROM probehero") == 0
    assert [w for w in recwarn if issubclass(w.category, DeprecationWarning)] == []
    assert issubclass(made.created_at.__class__, datetime)
    assert not issubclass(TransientError, SQLAlchemyError)
