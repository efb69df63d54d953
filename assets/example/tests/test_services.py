import asyncio

import pytest
from sqlmodel import SQLModel, col, update
from sqlmodel.ext.asyncio.session import AsyncSession

from app.db import CheckViolation, Conflict, Database, NotFound, UniqueViolation
from app.db.testing import recorded_statements
from app.models import (
    Assignment,
    AssignmentUpdate,
    Hero,
    HeroUpdate,
    TeamCreate,
    TeamUpdate,
)
from app.services import AssignmentService, HeroService, MissionService, TeamService

pytestmark = pytest.mark.anyio

MISSING = 2**31 - 1


async def hero(session: AsyncSession, name: str, **values: object) -> int:
    row = await HeroService(session).create({"name": name, "secret_name": "?", **values})
    assert row.id is not None
    return row.id


async def mission(session: AsyncSession, title: str) -> int:
    row = await MissionService(session).create({"title": title})
    assert row.id is not None
    return row.id


async def test_update_changes_what_was_set(session: AsyncSession) -> None:
    team = await TeamService(session).create(TeamCreate(name="Preventers"))
    hero_id = await hero(session, "Deadpond", power=7, team_id=team.id)

    row = await HeroService(session).update(hero_id, HeroUpdate(team_id=None))

    assert (row.power, row.team_id) == (7, None)


async def test_update_moves_updated_at(session: AsyncSession) -> None:
    team = await TeamService(session).create(TeamCreate(name="Preventers"))
    created, updated = team.created_at, team.updated_at

    await TeamService(session).update(team, TeamUpdate(headquarters="Sharp Tower"))

    assert team.created_at == created
    assert team.updated_at > updated


async def test_the_database_checks_too(session: AsyncSession) -> None:
    row = await HeroService(session).get(await hero(session, "Deadpond"))
    row.power = 101  # assignment is not validated
    with pytest.raises(CheckViolation) as caught:
        await HeroService(session).count()  # flushes
    assert caught.value.constraint == "ck_hero_power_range"


def test_foreign_keys_have_an_index() -> None:
    for table in SQLModel.metadata.tables.values():
        indexed = [table.primary_key.columns, *[index.columns for index in table.indexes]]
        leading = {next(iter(columns)).name for columns in indexed}
        for column in table.columns:
            assert not column.foreign_keys or column.name in leading, column


async def test_a_conflict_names_the_constraint(session: AsyncSession) -> None:
    await hero(session, "Deadpond")
    with pytest.raises(UniqueViolation) as caught:
        await hero(session, "Deadpond")
    assert caught.value.constraint == "uq_hero_name"


async def test_deleting_a_team_keeps_its_heroes(session: AsyncSession) -> None:
    team = await TeamService(session).create(TeamCreate(name="Preventers"))
    hero_id = await hero(session, "Deadpond", team_id=team.id)
    await TeamService(session).get(team.id, load="heroes")

    with recorded_statements() as sent:
        await TeamService(session).delete(team)

    assert sent.verbs() == ["DELETE"]  # the database clears hero.team_id
    session.expire_all()
    assert (await HeroService(session).get(hero_id)).team_id is None


async def test_deleting_a_mentor_keeps_the_apprentice(session: AsyncSession) -> None:
    mentor_id = await hero(session, "Tarantula")
    hero_id = await hero(session, "Spider-Boy", mentor_id=mentor_id)
    session.expunge_all()

    with recorded_statements() as sent:
        await HeroService(session).delete(mentor_id)

    assert sent.verbs() == ["SELECT", "DELETE"]
    assert (await HeroService(session).get(hero_id)).mentor_id is None


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("side", ["hero", "mission"])
async def test_deleting_either_side_deletes_the_assignment(
    session: AsyncSession, side: str, loaded: bool
) -> None:
    heroes, missions = HeroService(session), MissionService(session)
    hero_id, mission_id = await hero(session, "Deadpond"), await mission(session, "Rescue")
    assignments = AssignmentService(session)
    await assignments.assign(hero_id, mission_id, AssignmentUpdate(role="lead"))
    session.expunge_all()
    load = "assignments" if loaded else ()

    with recorded_statements() as sent:
        if side == "hero":
            await heroes.delete(await heroes.get(hero_id, load=load))
        else:
            await missions.delete(await missions.get(mission_id, load=load))

    if not loaded:
        assert sent.verbs() == ["SELECT", "SELECT", "DELETE"]  # get; lock
    assert await assignments.count() == 0
    assert await missions.exists(id=mission_id) is (side == "hero")
    assert await heroes.exists(id=hero_id) is (side == "mission")


async def test_assigning_twice_changes_the_role(session: AsyncSession) -> None:
    hero_id = await hero(session, "Deadpond")
    mission_id = await mission(session, "Rescue")
    assignments = AssignmentService(session)

    with recorded_statements() as sent:
        await assignments.assign(hero_id, mission_id, AssignmentUpdate(role="lead"))
        await assignments.assign(hero_id, mission_id, AssignmentUpdate(role="driver"))
    # No SELECT before it: nobody can be quicker in between.
    assert sent.verbs()[0] == "INSERT"
    assert sent.verbs().count("INSERT") == 2

    session.expire_all()
    rows = await assignments.list()
    assert rows == [Assignment(hero_id=hero_id, mission_id=mission_id, role="driver")]


async def test_assigning_at_the_same_moment(database: Database) -> None:
    async with database.session() as session:
        hero_id = await hero(session, "Deadpond")
        mission_id = await mission(session, "Rescue")

    async def assign() -> None:
        async with database.session() as session:
            update = AssignmentUpdate(role="lead")
            await AssignmentService(session).assign(hero_id, mission_id, update)

    try:
        await asyncio.gather(*(assign() for _ in range(8)))
        async with database.read_session() as session:
            assert await AssignmentService(session).count() == 1
    finally:
        async with database.session() as session:
            await HeroService(session).delete(hero_id)
            await MissionService(session).delete(mission_id)


async def test_assigning_needs_both(session: AsyncSession) -> None:
    hero_id = await hero(session, "Deadpond")
    with pytest.raises(NotFound, match=f"no mission {MISSING}"):
        await AssignmentService(session).assign(hero_id, MISSING, AssignmentUpdate(role="x"))
    assert await HeroService(session).exists(id=hero_id)  # the transaction goes on


async def test_mentors_make_no_circle(session: AsyncSession) -> None:
    heroes = HeroService(session)
    first = await hero(session, "First")
    second = await hero(session, "Second", mentor_id=first)
    third = await hero(session, "Third", mentor_id=second)

    for mentor_id in (first, second, third):
        with pytest.raises(Conflict, match=f"Mentor {mentor_id} of hero {first} "):
            await heroes.set_mentor(first, mentor_id)
    assert (await heroes.get(first)).mentor_id is None

    assert (await heroes.set_mentor(third, first)).mentor_id == first
    assert (await heroes.set_mentor(third, None)).mentor_id is None
    assert (await heroes.set_mentor(first, third)).mentor_id == third


async def test_mentors_are_read_anew_and_locked(session: AsyncSession) -> None:
    heroes = HeroService(session)
    first, second, third = [await hero(session, name) for name in ("First", "Second", "Third")]
    with recorded_statements() as sent:
        await heroes.set_mentor(first, second)
    assert sent.verbs() == ["SELECT", "UPDATE"]
    assert "ORDER BY hero.id" in sent[0].sql
    # SQLite has no row locks; there the whole transaction is the only writer.
    assert ("FOR UPDATE" in sent[0].sql) is (session.get_bind().dialect.name != "sqlite")

    # Behind the session's back, as another transaction would do it.
    known = await heroes.get(second)
    change = update(Hero).where(col(Hero.id) == second).values(mentor_id=first)
    await session.exec(change.execution_options(synchronize_session=False))
    assert known.mentor_id is None
    with pytest.raises(Conflict):
        async with asyncio.timeout(5):  # a circle that is there ends the search, too
            await heroes.set_mentor(third, first)


@pytest.mark.parametrize("missing", ["hero", "mentor"])
async def test_mentor_and_apprentice_must_exist(session: AsyncSession, missing: str) -> None:
    hero_id = await hero(session, "Deadpond")
    pair = (MISSING, hero_id) if missing == "hero" else (hero_id, MISSING)
    with pytest.raises(NotFound, match=str(MISSING)):
        await HeroService(session).set_mentor(*pair)
