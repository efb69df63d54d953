"""What is measured: the tables, their rows, and the operations with the results they must have.

200 teams, 20,000 heroes, 50 tags (0 to 3 for each hero). The models have what a generic layer gets
wrong: a Python default, a `default_factory`, and nullable columns with a value in every third row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table, insert, or_, select, text, update
from sqlmodel import Field, Index, Relationship, SQLModel

from app.db import Database, Timestamp, utcnow

TEAMS, HEROES, TAGS = 200, 20_000, 50
BULK = 5_000
DEEP = 19_000  # the offset of a page near the end
PAGE = 50


class HeroTag(SQLModel, table=True):
    hero_id: int = Field(foreign_key="hero.id", primary_key=True)
    tag_id: int = Field(foreign_key="tag.id", primary_key=True)


class Team(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str
    heroes: list["Hero"] = Relationship(back_populates="team")


class Tag(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    label: str
    heroes: list["Hero"] = Relationship(back_populates="tags", link_model=HeroTag)


class HeroCreate(SQLModel):
    code: str
    name: str
    secret: str | None = None
    power: int = 0
    active: bool = True
    team_id: int | None = None


class HeroUpdate(SQLModel):
    name: str | None = None
    secret: str | None = None
    power: int | None = None
    active: bool | None = None
    team_id: int | None = None


class Hero(HeroCreate, table=True):
    __table_args__ = (Index("ix_hero_power_id", "power", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    code: str = Field(unique=True)
    team_id: int | None = Field(default=None, foreign_key="team.id", index=True)
    created_at: datetime = Field(default_factory=utcnow, sa_type=Timestamp)
    team: Team | None = Relationship(back_populates="heroes")
    tags: list[Tag] = Relationship(back_populates="heroes", link_model=HeroTag)


class HeroRead(HeroCreate):
    id: int


def table_of(model: type[SQLModel]) -> Table:
    return SQLModel.metadata.tables[model.__name__.lower()]


Values = dict[str, Any]
COLUMNS = ("id", "code", "name", "secret", "power", "active", "team_id")
START = datetime(2026, 1, 1, tzinfo=UTC)


def new_values(code: str, number: int) -> Values:
    """A row as a client sends it: every third value of the nullable columns is there."""
    return {
        "code": code,
        "name": f"Hero {number}",
        "secret": f"secret {number}" if number % 3 == 0 else None,
        "power": number * 7919 % 6_000,  # each value three or four times, in no order
        "active": number % 2 == 0,
        "team_id": number % TEAMS + 1 if number % 3 == 1 else None,
    }


class Data:
    """The rows at the start, and what each operation must return of them."""

    def __init__(self) -> None:
        self.heroes: dict[int, Values] = {
            pk: {
                "id": pk,
                **new_values(f"old-{pk}", pk),
                "created_at": START + timedelta(seconds=pk),
            }
            for pk in range(1, HEROES + 1)
        }
        self.tags_of = {pk: [(pk + n) % TAGS + 1 for n in range(pk % 4)] for pk in self.heroes}
        self.by_power = sorted(self.heroes.values(), key=lambda hero: (hero["power"], hero["id"]))

    async def create(self, db: Database) -> None:
        """Tables, rows, statistics, and a copy of the heroes to undo writes from."""
        await db.create_tables()
        async with db.engine.begin() as connection:
            teams = [{"id": pk, "name": f"Team {pk}"} for pk in range(1, TEAMS + 1)]
            tags = [{"id": pk, "label": f"tag {pk}"} for pk in range(1, TAGS + 1)]
            links = [
                {"hero_id": pk, "tag_id": tag} for pk, tags in self.tags_of.items() for tag in tags
            ]
            for model, rows in ((Team, teams), (Tag, tags)):
                await connection.execute(insert(table_of(model)), rows)
            await connection.execute(insert(table_of(Hero)), list(self.heroes.values()))
            await connection.execute(insert(table_of(HeroTag)), links)
            await connection.execute(text("CREATE TABLE hero_start AS SELECT * FROM hero"))
            await connection.execute(text("CREATE UNIQUE INDEX ix_start ON hero_start (id)"))
            if is_postgresql(db):
                await connection.execute(
                    text("SELECT setval(pg_get_serial_sequence('hero', 'id'), :last)"),
                    {"last": HEROES},
                )
                # A vacuum in the middle of a round would be charged to whoever runs then.
                await connection.execute(text("ALTER TABLE hero SET (autovacuum_enabled = false)"))
        await self._tidy(db, "VACUUM ANALYZE", "ANALYZE")

    async def undo(self, db: Database) -> None:
        """The heroes as they were at the start."""
        hero = table_of(Hero)
        start = hero.to_metadata(type(hero.metadata)(), name="hero_start")
        columns = [column for column in hero.c if column.name != "id"]
        changed = or_(*(column.is_distinct_from(start.c[column.name]) for column in columns))
        restore = update(hero).values({column.name: start.c[column.name] for column in columns})
        async with db.engine.begin() as connection:
            await connection.execute(hero.delete().where(hero.c.id > HEROES))
            await connection.execute(restore.where(hero.c.id == start.c.id, changed))
        await self._tidy(db, "VACUUM hero", "PRAGMA wal_checkpoint(TRUNCATE)")

    async def _tidy(self, db: Database, postgresql: str, sqlite: str) -> None:
        async with db.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text(postgresql if is_postgresql(db) else sqlite))


def is_postgresql(db: Database) -> bool:
    return db.engine.dialect.name == "postgresql"


# --- results, in a form that can be compared ------------------------------------------


def field(row: Any, name: str) -> Any:
    """A value of a model, of a row of Core, or of a dict."""
    return getattr(row, name) if hasattr(row, name) else row[name]


def plain(row: Any) -> tuple[Any, ...]:
    return tuple(field(row, name) for name in COLUMNS)


def plain_rows(rows: Iterable[Any]) -> list[tuple[Any, ...]]:
    return [plain(row) for row in rows]


def without_id(row: Any) -> tuple[Any, ...]:
    return tuple(field(row, name) for name in COLUMNS[1:])


def by_code(rows: Iterable[Any]) -> list[tuple[Any, ...]]:
    return sorted(without_id(row) for row in rows)


def with_relations(rows: Iterable[Any]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for row in rows:
        team = field(row, "team")
        tags = sorted(_label(tag) for tag in field(row, "tags"))
        found.append((*plain(row), team and field(team, "name"), tags))
    return found


def _label(tag: Any) -> str:
    return str(field(tag, "label") if hasattr(tag, "label") or "label" in tag else tag)


def page_and_total(page: tuple[Iterable[Any], int]) -> tuple[list[Any], int]:
    return plain_rows(page[0]), page[1]


async def stored(db: Database) -> dict[str, tuple[Any, ...]]:
    """Every hero in the table, by code."""
    async with db.engine.connect() as connection:
        return contents((await connection.execute(select(table_of(Hero)))).mappings())


def contents(heroes: Iterable[Any]) -> dict[str, tuple[Any, ...]]:
    """By code; the id and the date of new heroes are left out: they differ each time."""
    return {
        hero["code"]: (hero["id"], *without_id(hero), hero["created_at"])
        if hero["code"].startswith("old-")
        else without_id(hero)
        for hero in heroes
    }


# --- operations -----------------------------------------------------------------------

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Args:
        name: for `--operations`.
        method: of the contestants.
        title: in the table.
        calls: in a round, each with other arguments.
        arguments: of call number n; made before the clock starts.
        returns: what call number n must return, after `seen`.
        seen: a result in a form that can be compared.
        writes: the heroes that differ after call number n; None for a read.
        targets: CPU of ServiceBase, raw ORM = 1, by database.
        statements: that ServiceBase may use at most.
    """

    name: str
    method: str
    title: str
    calls: int
    arguments: Callable[[int], Arguments]
    returns: Callable[[int], Any]
    seen: Callable[[Any], Any]
    targets: dict[str, float]
    statements: int
    writes: Callable[[int], list[Values]] | None = None

    @property
    def bulk(self) -> bool:
        return self.calls == 1


def both(target: float) -> dict[str, float]:
    return {"postgresql": target, "sqlite": target}


def same(result: Any) -> Any:
    return result


def operations(data: Data) -> list[Operation]:
    heroes, by_power = data.heroes, data.by_power

    def pk_of(n: int) -> int:
        return n * 7919 % HEROES + 1

    def at_least(n: int) -> int:
        return n * 37 % 5_000

    def listed(n: int) -> list[Values]:
        found = [hero for hero in by_power if hero["active"] and hero["power"] >= at_least(n)]
        return found[:100]

    def related(n: int) -> list[Values]:
        return [
            {
                **hero,
                "team": hero["team_id"] and {"name": f"Team {hero['team_id']}"},
                "tags": [{"label": f"tag {tag}"} for tag in data.tags_of[hero["id"]]],
            }
            for hero in listed(n)
        ]

    def created(n: int) -> Values:
        return new_values(f"new-{n}", n)

    def updated(n: int) -> Values:
        return {**heroes[pk_of(n)], "power": HEROES + n}

    def many(n: int) -> list[Values]:
        return [new_values(f"new-{n}-{row}", row) for row in range(BULK)]

    def changes(n: int) -> dict[int, Values]:
        # Every third row has a secret and loses it, the others get one. (Were some secrets left
        # as they are, the ORM would send a statement for each row.)
        return {
            pk: {"power": HEROES + n + pk, "secret": f"changed {pk}" if pk % 3 else None}
            for pk in range(1, BULK + 1)
        }

    def changed(n: int) -> list[Values]:
        return [{**heroes[pk], **change} for pk, change in changes(n).items()]

    def merged(n: int) -> list[Values]:
        """Half of them are in the table; `active` and `team_id` are left out."""
        codes = [f"old-{row}" if row <= BULK // 2 else f"new-{row}" for row in range(1, BULK + 1)]
        return [
            {
                "code": code,
                "name": f"Merged {row}",
                "secret": f"merged {row}" if row % 3 == 0 else None,
                "power": HEROES + n + row,
            }
            for row, code in enumerate(codes, 1)
        ]

    def after_merge(n: int) -> list[Values]:
        new = {"active": True, "team_id": None}
        rows = enumerate(merged(n), 1)
        return [{**(heroes[pk] if pk <= BULK // 2 else new), **values} for pk, values in rows]

    last = by_power[DEEP - 1]
    deep = by_power[DEEP : DEEP + PAGE]

    return [
        Operation(
            name="get",
            method="get",
            title="get by primary key",
            calls=60,
            arguments=lambda n: (pk_of(n),),
            returns=lambda n: plain(heroes[pk_of(n)]),
            seen=plain,
            targets=both(1.05),
            statements=1,
        ),
        Operation(
            name="list",
            method="find",
            title="list 100, two filters, sorted",
            calls=20,
            arguments=lambda n: (at_least(n),),
            returns=lambda n: plain_rows(listed(n)),
            seen=plain_rows,
            targets=both(1.10),
            statements=1,
        ),
        Operation(
            name="related",
            method="related",
            title="the same with team and tags",
            calls=8,
            arguments=lambda n: (at_least(n),),
            returns=lambda n: with_relations(related(n)),
            seen=with_relations,
            targets=both(0.95),
            statements=2,
        ),
        Operation(
            name="page",
            method="page",
            title="page at offset 19,000, exact total",
            calls=10,
            arguments=lambda _n: (DEEP,),
            returns=lambda _n: (plain_rows(deep), HEROES),
            seen=page_and_total,
            targets=both(1.10),
            statements=2,
        ),
        Operation(
            name="keyset",
            method="keyset",
            title="keyset page there",
            calls=20,
            arguments=lambda _n: (last["power"], last["id"]),
            returns=lambda _n: plain_rows(deep),
            seen=plain_rows,
            targets=both(1.10),
            statements=1,
        ),
        Operation(
            name="stream",
            method="stream",
            title="stream 20,000 rows",
            calls=1,
            arguments=lambda _n: (),
            returns=lambda _n: (HEROES, sum(hero["power"] for hero in by_power)),
            seen=same,
            targets=both(1.0),
            statements=1,
        ),
        Operation(
            name="create",
            method="create",
            title="create one",
            calls=40,
            arguments=lambda n: (created(n),),
            returns=lambda n: without_id(created(n)),
            seen=without_id,
            writes=lambda n: [created(n)],
            targets=both(1.15),
            statements=1,
        ),
        Operation(
            name="update",
            method="update",
            title="update one, returned fresh",
            calls=40,
            arguments=lambda n: (pk_of(n), HEROES + n),
            returns=lambda n: plain(updated(n)),
            seen=plain,
            writes=lambda n: [updated(n)],
            targets=both(1.0),
            statements=1,
        ),
        Operation(
            name="create-rows",
            method="create_rows",
            title="create 5,000, rows back",
            calls=1,
            arguments=lambda n: (many(n),),
            returns=lambda n: by_code(many(n)),
            seen=by_code,
            writes=many,
            targets={"postgresql": 0.50, "sqlite": 0.20},
            statements=10,
        ),
        Operation(
            name="create-count",
            method="create_count",
            title="create 5,000, count back",
            calls=1,
            arguments=lambda n: (many(n),),
            returns=lambda _n: BULK,
            seen=same,
            writes=many,
            targets={"postgresql": 0.40, "sqlite": 0.12},
            statements=5,
        ),
        Operation(
            name="update-rows",
            method="update_rows",
            title="update 5,000, count back",
            calls=1,
            arguments=lambda n: (changes(n),),
            returns=lambda _n: BULK,
            seen=same,
            writes=changed,
            targets={"postgresql": 0.35, "sqlite": 0.20},
            statements=1,
        ),
        Operation(
            name="upsert-rows",
            method="upsert_rows",
            title="upsert 5,000 by unique key, rows back",
            calls=1,
            arguments=lambda n: (merged(n),),
            returns=lambda n: by_code(after_merge(n)),
            seen=by_code,
            writes=after_merge,
            targets=both(1.1),
            statements=5,
        ),
        Operation(
            name="upsert-count",
            method="upsert_count",
            title="upsert 5,000 by unique key, count back",
            calls=1,
            arguments=lambda n: (merged(n),),
            returns=lambda _n: BULK,
            seen=same,
            writes=after_merge,
            targets=both(0.75),
            statements=5,
        ),
    ]
