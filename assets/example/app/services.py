"""What the app does, without HTTP. Nothing here commits: the caller's session does."""

from sqlmodel import col, select

from .db import Conflict, ForeignKeyViolation, NotFound, ServiceBase, UniqueViolation
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
    pass


class HeroService(ServiceBase[Hero, HeroCreate, HeroUpdate]):
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
        statement = select(Hero).where(col(Hero.id).in_([each for each in ids if each]))
        statement = statement.order_by(col(Hero.id)).with_for_update()
        statement = statement.execution_options(populate_existing=True)
        return [*(await self.session.exec(statement)).all()]


class MissionService(ServiceBase[Mission, MissionCreate, MissionUpdate]):
    pass


class AssignmentService(ServiceBase[Assignment, AssignmentUpdate, AssignmentUpdate]):
    async def assign(self, hero_id: int, mission_id: int, data: AssignmentUpdate) -> Assignment:
        """Put a hero on a mission, or change the role there. Twice is the same as once.

        SQL: SELECT by primary key; INSERT in a savepoint, or UPDATE where the role changes.

        Raises:
            NotFound: no such hero or mission.
        """
        row = await self.get_or_none((hero_id, mission_id))
        if row is not None:
            return await self.update(row, data)
        try:
            async with self.session.begin_nested():  # the transaction survives an error
                return await self.create(data, hero_id=hero_id, mission_id=mission_id)
        except UniqueViolation:  # another request was quicker
            return await self.update((hero_id, mission_id), data)
        except ForeignKeyViolation as error:
            raise NotFound(f"No hero {hero_id}, or no mission {mission_id}.") from error
