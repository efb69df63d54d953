"""HTTP endpoints. Reading ones take `ReadSessionDep`; writing ones take `SessionDep`, which
commits before the response is sent. Errors of the services become responses in `db/web.py`.
"""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, status
from fastapi.responses import StreamingResponse

from .db import CursorPage, Page
from .db.client_query import CursorQuery, PageQuery, cursor_query, page_query
from .db.web import DatabaseDep, ReadSessionDep, SessionDep, problems
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

# The database may fail in any of them; the other errors stand where they may happen.
heroes = APIRouter(prefix="/heroes", tags=["heroes"], responses=problems(503))
teams = APIRouter(prefix="/teams", tags=["teams"], responses=problems(503))
missions = APIRouter(prefix="/missions", tags=["missions"], responses=problems(503))


# What clients may ask for is listed in the services.
TeamQuery = Annotated[PageQuery, Depends(page_query(TeamService))]
HeroQuery = Annotated[PageQuery, Depends(page_query(HeroService))]
MissionQuery = Annotated[CursorQuery, Depends(cursor_query(MissionService))]


# -- heroes ----------------------------------------------------------------------------


@heroes.post(
    "", response_model=HeroPublic, status_code=status.HTTP_201_CREATED, responses=problems(409, 422)
)
async def create_hero(session: SessionDep, data: HeroCreate) -> Hero:
    return await HeroService(session).create(data)


@heroes.get("", response_model=Page[HeroWithTeam], responses=problems(422))
async def list_heroes(session: ReadSessionDep, query: HeroQuery) -> Page[Hero]:
    return await HeroService(session).page(load="team", **query.arguments())


class JsonLines(StreamingResponse):
    media_type = "application/x-ndjson"


@heroes.get("/export", response_class=JsonLines)
async def export_heroes(database: DatabaseDep) -> JsonLines:
    """All heroes, one JSON document a line, read page by page."""

    async def read(cursor: str | None = None) -> CursorPage[Hero]:
        # A session for each page: none is open while a client is slow, or when it has gone.
        async with database.read_session() as session:
            return await HeroService(session).cursor_page(order_by="id", limit=1_000, cursor=cursor)

    async def lines(page: CursorPage[Hero]) -> AsyncGenerator[str]:
        while True:
            rows = [HeroPublic.model_validate(hero).model_dump_json() for hero in page.items]
            yield "\n".join([*rows, ""])
            if page.next_cursor is None:
                return
            page = await read(page.next_cursor)

    return JsonLines(lines(await read()))  # the first page before the status is sent


@heroes.get("/{hero_id}", response_model=HeroDetail, responses=problems(404, 422))
async def read_hero(session: ReadSessionDep, hero_id: RowId) -> Hero:
    load = ("team", "mentor", "apprentices", "assignments.mission")
    return await HeroService(session).get(hero_id, load=load)


@heroes.patch("/{hero_id}", response_model=HeroPublic, responses=problems(404, 409, 422))
async def update_hero(session: SessionDep, hero_id: RowId, data: HeroUpdate) -> Hero:
    return await HeroService(session).update(hero_id, data)


@heroes.put("/{hero_id}/mentor", response_model=HeroPublic, responses=problems(404, 409, 422))
async def set_mentor(session: SessionDep, hero_id: RowId, data: MentorUpdate) -> Hero:
    return await HeroService(session).set_mentor(hero_id, data.mentor_id)


@heroes.put(
    "/{hero_id}/missions/{mission_id}",
    response_model=AssignmentPublic,
    responses=problems(404, 422),
)
async def assign(
    session: SessionDep, hero_id: RowId, mission_id: RowId, data: AssignmentUpdate
) -> Assignment:
    return await AssignmentService(session).assign(hero_id, mission_id, data)


@heroes.delete(
    "/{hero_id}/missions/{mission_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(404, 422),
)
async def unassign(session: SessionDep, hero_id: RowId, mission_id: RowId) -> None:
    await AssignmentService(session).delete((hero_id, mission_id))


@heroes.delete("/{hero_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(404, 422))
async def delete_hero(session: SessionDep, hero_id: RowId) -> None:
    await HeroService(session).delete(hero_id)


# -- teams -----------------------------------------------------------------------------


@teams.post(
    "", response_model=TeamPublic, status_code=status.HTTP_201_CREATED, responses=problems(409, 422)
)
async def create_team(session: SessionDep, data: TeamCreate) -> Team:
    return await TeamService(session).create(data)


@teams.get("", response_model=Page[TeamPublic], responses=problems(422))
async def list_teams(session: ReadSessionDep, query: TeamQuery) -> Page[Team]:
    return await TeamService(session).page(**query.arguments())


@teams.get("/{team_id}", response_model=TeamDetail, responses=problems(404, 422))
async def read_team(session: ReadSessionDep, team_id: RowId) -> Team:
    return await TeamService(session).get(team_id, load="heroes")


@teams.patch("/{team_id}", response_model=TeamPublic, responses=problems(404, 409, 422))
async def update_team(session: SessionDep, team_id: RowId, data: TeamUpdate) -> Team:
    return await TeamService(session).update(team_id, data)


@teams.delete("/{team_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(404, 422))
async def delete_team(session: SessionDep, team_id: RowId) -> None:
    await TeamService(session).delete(team_id)


# -- missions --------------------------------------------------------------------------


@missions.post(
    "",
    response_model=MissionPublic,
    status_code=status.HTTP_201_CREATED,
    responses=problems(409, 422),
)
async def create_mission(session: SessionDep, data: MissionCreate) -> Mission:
    return await MissionService(session).create(data)


@missions.get("", response_model=CursorPage[MissionPublic], responses=problems(422))
async def list_missions(session: ReadSessionDep, query: MissionQuery) -> CursorPage[Mission]:
    """Page by page without a total: as fast on the last page as on the first."""
    return await MissionService(session).cursor_page(**query.arguments())


@missions.get("/{mission_id}", response_model=MissionDetail, responses=problems(404, 422))
async def read_mission(session: ReadSessionDep, mission_id: RowId) -> Mission:
    return await MissionService(session).get(mission_id, load="assignments.hero")


@missions.patch("/{mission_id}", response_model=MissionPublic, responses=problems(404, 409, 422))
async def update_mission(session: SessionDep, mission_id: RowId, data: MissionUpdate) -> Mission:
    return await MissionService(session).update(mission_id, data)


@missions.delete(
    "/{mission_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(404, 422)
)
async def delete_mission(session: SessionDep, mission_id: RowId) -> None:
    await MissionService(session).delete(mission_id)
