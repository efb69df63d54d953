"""What the app does, without HTTP. Nothing here commits: the caller's session does.

`client_filters` and `client_sorts` are all that a request may filter and sort by; `api.py`
makes query parameters of them.
"""

from .db import Conflict, ForeignKeyViolation, NotFound, ServiceBase
from .models import (
    Assignment,
    AssignmentUpdate,
    Hero,
    HeroCreate,
    HeroUpdate,
    Mission,
    MissionCreate,
    MissionUpdate,
    Team,
    TeamCreate,
    TeamUpdate,
)


class TeamService(ServiceBase[Team, TeamCreate, TeamUpdate]):
    client_filters = ("name__icontains",)
    client_sorts = ("name", "created_at")


class HeroService(ServiceBase[Hero, HeroCreate, HeroUpdate]):
    client_filters = (
        "name__icontains",
        "power__gte",
        "power__lte",
        "team_id__in",
        "team_id__is_null",
        "team__name",
        "assignments__mission_id",
    )
    client_sorts = ("name", "power")

    async def set_mentor(self, hero_id: int, mentor_id: int | None) -> Hero:
        """Give a hero a mentor, or none.

        Args:
            hero_id: the apprentice.
            mentor_id: the mentor; None to remove.

        SQL: SELECT ... FOR UPDATE of both rows, and of each mentor above; UPDATE.

        Raises:
            NotFound: no such hero or mentor.
            Conflict: the hero would be its own mentor, directly or through others.
        """
        # The chain stays locked until the commit: two requests that are each right
        # alone must not close a circle together.
        locked = {hero.id: hero for hero in await self._lock(hero_id, mentor_id)}
        for each in (hero_id, mentor_id):
            if each is not None and each not in locked:
                raise NotFound(f"Hero not found: {each}")

        seen = {hero_id}
        above = mentor_id
        while above is not None:
            if above in seen:
                raise Conflict(f"Mentor {mentor_id} of hero {hero_id} would close a circle.")
            seen.add(above)
            mentor = locked.get(above) or (await self._lock(above))[0]
            above = mentor.mentor_id

        return await self.update(locked[hero_id], {}, mentor_id=mentor_id)

    async def _lock(self, *ids: int | None) -> list[Hero]:
        """Read rows as they are now, and keep others from changing them.

        In the order of the keys: two transactions that want the same two rows wait for
        each other in turn, not in a circle.
        """
        wanted = [each for each in ids if each is not None]
        return await self.list(id__in=wanted, order_by="id", lock="update")


class MissionService(ServiceBase[Mission, MissionCreate, MissionUpdate]):
    client_filters = ("title__icontains", "done")
    client_sorts = ("title", "done")


class AssignmentService(ServiceBase[Assignment, AssignmentUpdate, AssignmentUpdate]):
    async def assign(self, hero_id: int, mission_id: int, data: AssignmentUpdate) -> Assignment:
        """Put a hero on a mission, or change the role there. Twice is the same as once.

        SQL: INSERT ... ON CONFLICT DO UPDATE, or its like, in a savepoint.

        Raises:
            NotFound: no such hero or mission.
        """
        key = ("hero_id", "mission_id")
        try:
            async with self.transaction():  # the caller's transaction survives an error
                return await self.upsert(data, on=key, hero_id=hero_id, mission_id=mission_id)
        except ForeignKeyViolation as error:
            raise NotFound(f"No hero {hero_id}, or no mission {mission_id}.") from error
