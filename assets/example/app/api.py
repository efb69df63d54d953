"""HTTP endpoints. Reading ones take `ReadSessionDep`; writing ones take `SessionDep`, which
commits before the response is sent. Errors of the services become responses in `db/web.py`.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, status
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from .db import CursorPage, Page
from .db.client_query import CursorQuery, PageQuery, cursor_query, page_query
from .db.web import DatabaseDep, ReadSessionDep, SessionDep
from .models import (
    Assignment,
    AssignmentPublic,
    AssignmentUpdate,
    Hero,
    HeroCreate,
    HeroDetail,
    HeroPublic,
    HeroUpdate,
    HeroWithTeam,
    MentorUpdate,
    Mission,
    MissionCreate,
    MissionDetail,
    MissionPublic,
    MissionUpdate,
    RowId,
    Team,
    TeamCreate,
    TeamDetail,
    TeamPublic,
    TeamUpdate,
)
from .services import AssignmentService, HeroService, MissionService, TeamService


class Problem(BaseModel):
    """The body of an error (RFC 9457), as `db/web.py` sends it."""

    title: str
    status: int
    detail: str
    constraint: str | None = None
    columns: list[str] = []


_PROBLEM = {"content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such row", **_PROBLEM},
    409: {"description": "Clashes with what is stored", **_PROBLEM},
}

heroes = APIRouter(prefix="/heroes", tags=["heroes"], responses=_ERRORS)
teams = APIRouter(prefix="/teams", tags=["teams"], responses=_ERRORS)
missions = APIRouter(prefix="/missions", tags=["missions"], responses=_ERRORS)


# What clients may ask for is listed in the services.
TeamQuery = Annotated[PageQuery, Depends(page_query(TeamService))]
HeroQuery = Annotated[PageQuery, Depends(page_query(HeroService))]
MissionQuery = Annotated[CursorQuery, Depends(cursor_query(MissionService))]


# -- heroes ----------------------------------------------------------------------------


@heroes.post("", response_model=HeroPublic, status_code=status.HTTP_201_CREATED)
async def create_hero(session: SessionDep, data: HeroCreate) -> Hero:
    return await HeroService(session).create(data)


@heroes.get("", response_model=Page[HeroWithTeam])
async def list_heroes(session: ReadSessionDep, query: HeroQuery) -> Page[Hero]:
    return await HeroService(session).page(load="team", **query.arguments())


@heroes.get("/export")
async def export_heroes(database: DatabaseDep) -> StreamingResponse:
    """All heroes, one JSON document a line, in the memory of one batch."""

    async def lines() -> AsyncGenerator[str]:
        # A session of its own: the one of a dependency is closed before this is sent.
        async with (
            database.read_session() as session,
            aclosing(HeroService(session).stream(order_by="id")) as batches,
        ):
            async for heroes in batches:
                rows = [HeroPublic.model_validate(hero).model_dump_json() for hero in heroes]
                yield "\n".join([*rows, ""])

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@heroes.get("/{hero_id}", response_model=HeroDetail)
async def read_hero(session: ReadSessionDep, hero_id: RowId) -> Hero:
    load = ("team", "mentor", "apprentices", "assignments.mission")
    return await HeroService(session).get(hero_id, load=load)


@heroes.patch("/{hero_id}", response_model=HeroPublic)
async def update_hero(session: SessionDep, hero_id: RowId, data: HeroUpdate) -> Hero:
    return await HeroService(session).update(hero_id, data)


@heroes.put("/{hero_id}/mentor", response_model=HeroPublic)
async def set_mentor(session: SessionDep, hero_id: RowId, data: MentorUpdate) -> Hero:
    return await HeroService(session).set_mentor(hero_id, data.mentor_id)


@heroes.put("/{hero_id}/missions/{mission_id}", response_model=AssignmentPublic)
async def assign(
    session: SessionDep, hero_id: RowId, mission_id: RowId, data: AssignmentUpdate
) -> Assignment:
    return await AssignmentService(session).assign(hero_id, mission_id, data)


@heroes.delete("/{hero_id}/missions/{mission_id}", status_code=status.HTTP_204_NO_CONTENT)
async def unassign(session: SessionDep, hero_id: RowId, mission_id: RowId) -> None:
    await AssignmentService(session).delete((hero_id, mission_id))


@heroes.delete("/{hero_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_hero(session: SessionDep, hero_id: RowId) -> None:
    await HeroService(session).delete(hero_id)


# -- teams -----------------------------------------------------------------------------


@teams.post("", response_model=TeamPublic, status_code=status.HTTP_201_CREATED)
async def create_team(session: SessionDep, data: TeamCreate) -> Team:
    return await TeamService(session).create(data)


@teams.get("", response_model=Page[TeamPublic])
async def list_teams(session: ReadSessionDep, query: TeamQuery) -> Page[Team]:
    return await TeamService(session).page(**query.arguments())


@teams.get("/{team_id}", response_model=TeamDetail)
async def read_team(session: ReadSessionDep, team_id: RowId) -> Team:
    return await TeamService(session).get(team_id, load="heroes")


@teams.patch("/{team_id}", response_model=TeamPublic)
async def update_team(session: SessionDep, team_id: RowId, data: TeamUpdate) -> Team:
    return await TeamService(session).update(team_id, data)


@teams.delete("/{team_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_team(session: SessionDep, team_id: RowId) -> None:
    await TeamService(session).delete(team_id)


# -- missions --------------------------------------------------------------------------


@missions.post("", response_model=MissionPublic, status_code=status.HTTP_201_CREATED)
async def create_mission(session: SessionDep, data: MissionCreate) -> Mission:
    return await MissionService(session).create(data)


@missions.get("", response_model=CursorPage[MissionPublic])
async def list_missions(session: ReadSessionDep, query: MissionQuery) -> CursorPage[Mission]:
    """Page by page without a total: as fast on the last page as on the first."""
    return await MissionService(session).cursor_page(**query.arguments())


@missions.get("/{mission_id}", response_model=MissionDetail)
async def read_mission(session: ReadSessionDep, mission_id: RowId) -> Mission:
    return await MissionService(session).get(mission_id, load="assignments.hero")


@missions.patch("/{mission_id}", response_model=MissionPublic)
async def update_mission(session: SessionDep, mission_id: RowId, data: MissionUpdate) -> Mission:
    return await MissionService(session).update(mission_id, data)


@missions.delete("/{mission_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_mission(session: SessionDep, mission_id: RowId) -> None:
    await MissionService(session).delete(mission_id)
