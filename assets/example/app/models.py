"""Tables and the payloads around them.

One family per table: `XBase` has the fields that all share, `X` is the table, `XCreate`
and `XUpdate` are what a client may send, `XPublic` and the classes after it what it gets.

No `from __future__ import annotations` here: SQLModel reads the annotations of relations.
"""

from typing import Annotated, Optional

from pydantic import Field as Constraint
from sqlalchemy import CheckConstraint
from sqlmodel import Field, Relationship, SQLModel

from .db import TimestampMixin

RowId = Annotated[int, Constraint(ge=1, le=2**31 - 1)]
"""What an INTEGER key can hold. A larger number is the client's error, not the driver's."""

# Deleting: the database does the work (`ondelete`), in one statement, also for rows that
# SQL outside of the app deletes. `passive_deletes` keeps the ORM from loading them first.


class TeamBase(SQLModel):
    name: str = Field(min_length=1, max_length=100, unique=True)
    headquarters: str = Field(default="", max_length=200)


class Team(TimestampMixin, TeamBase, table=True):
    id: int | None = Field(default=None, primary_key=True)

    heroes: list["Hero"] = Relationship(
        back_populates="team",
        passive_deletes="all",
        sa_relationship_kwargs={"order_by": "Hero.name"},
    )


class HeroBase(SQLModel):
    name: str = Field(min_length=1, max_length=100, unique=True)
    power: int = Field(default=0, ge=0, le=100)
    team_id: RowId | None = Field(
        default=None, foreign_key="team.id", ondelete="SET NULL", index=True
    )
    mentor_id: RowId | None = Field(
        default=None, foreign_key="hero.id", ondelete="SET NULL", index=True
    )


class Hero(HeroBase, table=True):
    # Table classes do not validate on assignment; the database has the last word.
    __table_args__ = (CheckConstraint("power BETWEEN 0 AND 100", name="power_range"),)

    id: int | None = Field(default=None, primary_key=True)
    secret_name: str = Field(max_length=100)

    team: Team | None = Relationship(back_populates="heroes")
    # Both ends are heroes: remote_side marks the "one" side.
    mentor: Optional["Hero"] = Relationship(
        back_populates="apprentices", sa_relationship_kwargs={"remote_side": "Hero.id"}
    )
    apprentices: list["Hero"] = Relationship(
        back_populates="mentor",
        passive_deletes="all",
        sa_relationship_kwargs={"order_by": "Hero.name"},
    )
    assignments: list["Assignment"] = Relationship(
        back_populates="hero",
        cascade_delete=True,
        passive_deletes=True,
        sa_relationship_kwargs={"order_by": "Assignment.mission_id"},
    )


class MissionBase(SQLModel):
    title: str = Field(min_length=1, max_length=200, unique=True)
    done: bool = False


class Mission(MissionBase, table=True):
    id: int | None = Field(default=None, primary_key=True)

    assignments: list["Assignment"] = Relationship(
        back_populates="mission",
        cascade_delete=True,
        passive_deletes=True,
        sa_relationship_kwargs={"order_by": "Assignment.hero_id"},
    )


class AssignmentBase(SQLModel):
    role: str = Field(min_length=1, max_length=50)


class Assignment(AssignmentBase, table=True):
    """Hero and mission, many to many, with a role: a link that carries data is a model."""

    hero_id: int = Field(primary_key=True, foreign_key="hero.id", ondelete="CASCADE")
    # The primary key starts with hero_id, so searching by mission needs its own index.
    mission_id: int = Field(
        primary_key=True, foreign_key="mission.id", ondelete="CASCADE", index=True
    )

    hero: Hero = Relationship(back_populates="assignments")
    mission: Mission = Relationship(back_populates="assignments")


# -- what a client may send ------------------------------------------------------------


class Payload(SQLModel):
    """A misspelt field is an error, not a change that silently does nothing."""

    model_config = {"extra": "forbid"}


class TeamCreate(Payload, TeamBase):
    pass


class TeamUpdate(Payload):
    name: str | None = Field(default=None, min_length=1, max_length=100)
    headquarters: str | None = Field(default=None, max_length=200)


class HeroCreate(Payload, HeroBase):
    secret_name: str = Field(min_length=1, max_length=100)


class HeroUpdate(Payload):
    """Without `mentor_id`, which has a rule of its own: `HeroService.set_mentor`."""

    name: str | None = Field(default=None, min_length=1, max_length=100)
    secret_name: str | None = Field(default=None, min_length=1, max_length=100)
    power: int | None = Field(default=None, ge=0, le=100)
    team_id: RowId | None = None


class MentorUpdate(Payload):
    mentor_id: RowId | None


class MissionCreate(Payload, MissionBase):
    pass


class MissionUpdate(Payload):
    title: str | None = Field(default=None, min_length=1, max_length=200)
    done: bool | None = None


class AssignmentUpdate(Payload, AssignmentBase):
    pass


# -- what a client gets ----------------------------------------------------------------
# Relations are named here only where the endpoint loads them: reading one that was not
# loaded is a lazy load, which asyncio cannot do (MissingGreenlet).


class TeamPublic(TimestampMixin, TeamBase):
    id: int


class HeroPublic(HeroBase):
    """Without `secret_name`."""

    id: int


class MissionPublic(MissionBase):
    id: int


class AssignmentPublic(AssignmentBase):
    hero_id: int
    mission_id: int


class HeroOnMission(AssignmentBase):
    hero: HeroPublic


class MissionOfHero(AssignmentBase):
    mission: MissionPublic


class TeamDetail(TeamPublic):
    heroes: list[HeroPublic]


class HeroWithTeam(HeroPublic):
    team: TeamPublic | None


class HeroDetail(HeroWithTeam):
    mentor: HeroPublic | None
    apprentices: list[HeroPublic]
    assignments: list[MissionOfHero]


class MissionDetail(MissionPublic):
    assignments: list[HeroOnMission]
