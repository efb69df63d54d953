"""How each layer does the operations: as its documentation says, in its best correct way.

A method that is missing is an operation that the library does not have. `notes` says, by method,
what a reader must know about the figure. Everybody gets the payload as dicts, as a request body
holds it, opens a session for each call, and commits what it writes.

The peers are imported when they are asked for: not every machine has them.
"""

import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, ClassVar

from sqlalchemy import bindparam, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession as PlainSession
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import selectinload
from sqlmodel import col
from sqlmodel import select as sqlmodel_select
from sqlmodel.sql.expression import SelectOfScalar

from app.db import Database, ServiceBase

from .workload import (
    DEEP,
    PAGE,
    Hero,
    HeroCreate,
    HeroRead,
    HeroTag,
    HeroUpdate,
    Tag,
    Team,
    Values,
    is_postgresql,
    table_of,
)

UPSERTED = ("name", "secret", "power")


class Contestant:
    """One column of the table. `title` is its heading; without one it is only compared with."""

    title: ClassVar[str] = ""
    package: ClassVar[str | None] = None
    notes: ClassVar[dict[str, str]] = {}

    def __init__(self, db: Database, known: dict[int, Values]) -> None:
        self.db = db
        self.known = known  # the rows at the start, for who must pass complete rows

    async def before(self, method: str) -> None:
        """What a method needs and is not measured."""

    def upsert(self, target: Any) -> Any:
        """INSERT .. ON CONFLICT (code) DO UPDATE, as both databases have it."""
        dialect = postgresql if is_postgresql(self.db) else sqlite
        statement = dialect.insert(target)
        return statement.on_conflict_do_update(
            index_elements=["code"], set_={name: statement.excluded[name] for name in UPSERTED}
        )


class Core(Contestant):
    """SQLAlchemy Core: tables, rows and no objects."""

    title = "SQLAlchemy Core"

    def __init__(self, db: Database, known: dict[int, Values]) -> None:
        super().__init__(db, known)
        self.hero = table_of(Hero)

    async def get(self, pk: int) -> Any:
        async with self.db.engine.connect() as connection:
            return (await connection.execute(select(self.hero).where(self.hero.c.id == pk))).one()

    async def find(self, power: int) -> Any:
        async with self.db.engine.connect() as connection:
            return (await connection.execute(self._listed(power))).all()

    def _listed(self, power: int) -> Any:
        hero = self.hero
        wanted = select(hero).where(hero.c.active.is_(True), hero.c.power >= power)
        return wanted.order_by(hero.c.power, hero.c.id).limit(100)

    async def related(self, power: int) -> Any:
        hero, team, tag, link = self.hero, table_of(Team), table_of(Tag), table_of(HeroTag)
        joined = self._listed(power).add_columns(team.c.name.label("team_name"))
        joined = joined.outerjoin_from(hero, team)
        async with self.db.engine.connect() as connection:
            rows = (await connection.execute(joined)).mappings().all()
            labels = select(link.c.hero_id, tag.c.label).join_from(link, tag)
            labels = labels.where(link.c.hero_id.in_([row["id"] for row in rows]))
            tags: dict[int, list[Values]] = {}
            for hero_id, label in await connection.execute(labels):
                tags.setdefault(hero_id, []).append({"label": label})
        return [
            {
                **row,
                "team": row["team_id"] and {"name": row["team_name"]},
                "tags": tags.get(row["id"], []),
            }
            for row in rows
        ]

    async def create(self, values: Values) -> Any:
        statement = insert(self.hero).values(values).returning(self.hero)
        async with self.db.engine.begin() as connection:
            return (await connection.execute(statement)).one()

    async def update(self, pk: int, power: int) -> Any:
        statement = update(self.hero).where(self.hero.c.id == pk).values(power=power)
        async with self.db.engine.begin() as connection:
            return (await connection.execute(statement.returning(self.hero))).one()

    async def create_rows(self, items: list[Values]) -> Any:
        async with self.db.engine.begin() as connection:
            return (await connection.execute(insert(self.hero).returning(self.hero), items)).all()

    async def create_count(self, items: list[Values]) -> Any:
        async with self.db.engine.begin() as connection:
            await connection.execute(insert(self.hero), items)
        return len(items)

    async def update_rows(self, changes: dict[int, Values]) -> Any:
        rows = [{"pk": pk, **values} for pk, values in changes.items()]
        statement = update(self.hero).where(self.hero.c.id == bindparam("pk"))
        statement = statement.values(power=bindparam("power"), secret=bindparam("secret"))
        async with self.db.engine.begin() as connection:
            await connection.execute(statement, rows)
        return len(rows)

    async def upsert_rows(self, items: list[Values]) -> Any:
        statement = self.upsert(self.hero).returning(self.hero)
        async with self.db.engine.begin() as connection:
            return (await connection.execute(statement, items)).all()

    async def upsert_count(self, items: list[Values]) -> Any:
        async with self.db.engine.begin() as connection:
            await connection.execute(self.upsert(self.hero), items)
        return len(items)

    async def page(self, offset: int) -> Any:
        hero = self.hero
        statement = select(hero).order_by(hero.c.power, hero.c.id).offset(offset).limit(PAGE)
        async with self.db.engine.connect() as connection:
            rows = (await connection.execute(statement)).all()
            total = await connection.scalar(select(func.count()).select_from(hero))
        return rows, total

    async def keyset(self, power: int, pk: int) -> Any:
        hero = self.hero
        statement = select(hero).where(tuple_(hero.c.power, hero.c.id) > (power, pk))
        statement = statement.order_by(hero.c.power, hero.c.id).limit(PAGE)
        async with self.db.engine.connect() as connection:
            return (await connection.execute(statement)).all()

    async def stream(self) -> tuple[int, int]:
        rows = total = 0
        async with self.db.engine.connect() as connection:
            result = await connection.stream(select(self.hero))
            async for batch in result.partitions(1000):
                rows += len(batch)
                total += sum(row.power for row in batch)
        return rows, total


class RawOrm(Contestant):
    """What one writes by hand on sqlmodel's AsyncSession: everybody else is measured by this."""

    title = "raw ORM"

    async def get(self, pk: int) -> Any:
        async with self.db.sessions() as session:
            return await session.get(Hero, pk)

    async def find(self, power: int) -> Any:
        async with self.db.sessions() as session:
            return (await session.exec(self._listed(power))).all()

    def _listed(self, power: int) -> SelectOfScalar[Hero]:
        wanted = sqlmodel_select(Hero).where(col(Hero.active).is_(True), Hero.power >= power)
        return wanted.order_by(col(Hero.power), col(Hero.id)).limit(100)

    async def related(self, power: int) -> Any:
        team, tags = selectinload(_relation("team")), selectinload(_relation("tags"))
        async with self.db.sessions() as session:
            return (await session.exec(self._listed(power).options(team, tags))).all()

    async def create(self, values: Values) -> Any:
        async with self.db.sessions() as session:
            hero = Hero(**values)
            session.add(hero)
            await session.commit()
        return hero

    async def update(self, pk: int, power: int) -> Any:
        async with self.db.sessions() as session:
            hero = await session.get_one(Hero, pk)
            hero.power = power
            await session.commit()
        return hero

    async def create_rows(self, items: list[Values]) -> Any:
        async with self.db.sessions() as session:
            heroes = [Hero(**values) for values in items]
            session.add_all(heroes)
            await session.commit()
        return heroes

    async def create_count(self, items: list[Values]) -> Any:
        return len(await self.create_rows(items))

    async def update_rows(self, changes: dict[int, Values]) -> Any:
        async with self.db.sessions() as session:
            wanted = sqlmodel_select(Hero).where(col(Hero.id).in_(changes))
            heroes = (await session.exec(wanted)).all()
            for hero in heroes:
                for name, value in changes[hero.id or 0].items():
                    setattr(hero, name, value)
            await session.commit()
        return len(heroes)

    async def upsert_rows(self, items: list[Values]) -> Any:
        options = {"render_nulls": True, "populate_existing": True}  # else 3,333 statements
        async with self.db.sessions() as session:
            statement = self.upsert(Hero).returning(Hero)
            heroes: Any = (await session.scalars(statement, items, execution_options=options)).all()
            await session.commit()
        return heroes

    async def upsert_count(self, items: list[Values]) -> Any:
        return len(await self.upsert_rows(items))

    async def page(self, offset: int) -> Any:
        async with self.db.sessions() as session:
            heroes = (await session.exec(self._by_power().offset(offset))).all()
            total = (await session.exec(sqlmodel_select(func.count()).select_from(Hero))).one()
        return heroes, total

    def _by_power(self) -> SelectOfScalar[Hero]:
        return sqlmodel_select(Hero).order_by(col(Hero.power), col(Hero.id)).limit(PAGE)

    async def keyset(self, power: int, pk: int) -> Any:
        later = tuple_(col(Hero.power), col(Hero.id)) > (power, pk)
        async with self.db.sessions() as session:
            return (await session.exec(self._by_power().where(later))).all()

    async def stream(self) -> tuple[int, int]:
        rows = total = 0
        statement = sqlmodel_select(Hero).execution_options(yield_per=1000)
        async with self.db.sessions() as session:
            result = await session.stream_scalars(statement)
            async for batch in result.partitions():
                rows += len(batch)
                total += sum(hero.power for hero in batch)
        return rows, total


def _relation(name: str) -> Any:
    return getattr(Hero, name)


class ByOffset(RawOrm):
    """The page of `keyset`, found by OFFSET: for their ratio."""

    title = ""

    async def keyset(self, power: int, pk: int) -> Any:  # noqa: ARG002 - as the others have it
        async with self.db.sessions() as session:
            return (await session.exec(self._by_power().offset(DEEP))).all()


class HeroService(ServiceBase[Hero, HeroCreate, HeroUpdate]):
    pass


class Ours(Contestant):
    title = "ServiceBase"
    cursor: str | None = None
    walked = 0

    async def before(self, method: str) -> None:
        if method != "keyset":
            return
        async with self.service() as heroes:
            while self.walked < DEEP:
                page = await heroes.cursor_page(order_by="power", limit=1000, cursor=self.cursor)
                self.cursor = page.next_cursor
                self.walked += len(page.items)

    @asynccontextmanager
    async def service(self) -> AsyncGenerator[HeroService]:
        async with self.db.sessions() as session:
            yield HeroService(session)

    async def get(self, pk: int) -> Any:
        async with self.service() as heroes:
            return await heroes.get(pk)

    async def find(self, power: int) -> Any:
        async with self.service() as heroes:
            return await heroes.list(active=True, power__gte=power, order_by="power", limit=100)

    async def related(self, power: int) -> Any:
        async with self.service() as heroes:
            return await heroes.list(
                active=True,
                power__gte=power,
                order_by="power",
                limit=100,
                load=("team", "tags"),
            )

    async def create(self, values: Values) -> Any:
        async with self.service() as heroes:
            hero = await heroes.create(values)
            await heroes.session.commit()
        return hero

    async def update(self, pk: int, power: int) -> Any:
        async with self.service() as heroes:
            hero = await heroes.update(pk, {"power": power})
            await heroes.session.commit()
        return hero

    async def create_rows(self, items: list[Values]) -> Any:
        async with self.service() as heroes:
            created = await heroes.create_multi(items)
            await heroes.session.commit()
        return created

    async def create_count(self, items: list[Values]) -> Any:
        async with self.service() as heroes:
            count = await heroes.create_multi(items, returning=False)
            await heroes.session.commit()
        return count

    async def update_rows(self, changes: dict[int, Values]) -> Any:
        async with self.service() as heroes:
            count = await heroes.update_multi(changes)
            await heroes.session.commit()
        return count

    async def upsert_rows(self, items: list[Values]) -> Any:
        async with self.service() as heroes:
            rows = await heroes.upsert_multi(items, on="code")
            await heroes.session.commit()
        return rows

    async def upsert_count(self, items: list[Values]) -> Any:
        async with self.service() as heroes:
            count = await heroes.upsert_multi(items, on="code", returning=False)
            await heroes.session.commit()
        return count

    async def page(self, offset: int) -> Any:
        async with self.service() as heroes:
            page = await heroes.page(order_by="power", limit=PAGE, offset=offset)
        return page.items, page.total

    async def keyset(self, power: int, pk: int) -> Any:  # noqa: ARG002 - the cursor holds both
        async with self.service() as heroes:
            page = await heroes.cursor_page(order_by="power", limit=PAGE, cursor=self.cursor)
        return page.items

    async def stream(self) -> tuple[int, int]:
        rows = total = 0
        async with self.service() as heroes:
            async for batch in heroes.stream():
                rows += len(batch)
                total += sum(hero.power for hero in batch)
        return rows, total


class Peer(Contestant):
    """Another library; its sessions are SQLAlchemy's own, which is what it expects."""

    def __init__(self, db: Database, known: dict[int, Values]) -> None:
        super().__init__(db, known)
        self.sessions = async_sessionmaker(db.engine, class_=PlainSession, expire_on_commit=False)


LOADS_ALL = "has no streaming: loads every row"
UPSERT_NOTE = (
    "complete rows passed: partial ones overwrite the other columns of a SQLModel row; "
    "`no_merge=True` on PostgreSQL, where its native upsert sends `id=NULL` for new ones"
)


class AdvancedAlchemy(Peer):
    title = "advanced-alchemy"
    package = "advanced-alchemy"
    notes: ClassVar[dict[str, str]] = {
        "update": "get, set, `update(row)`: a partial payload overwrites the key and the other "
        "columns of a SQLModel row",
        "update_rows": "complete rows passed: partial ones overwrite the other columns of a "
        "SQLModel row",
        "upsert_rows": UPSERT_NOTE,
        "upsert_count": UPSERT_NOTE,
        "page": "`count_with_window_function=False`, its faster way",
        "stream": LOADS_ALL,
    }

    def __init__(self, db: Database, known: dict[int, Values]) -> None:
        super().__init__(db, known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy 2.1
            repository: Any = import_module("advanced_alchemy.repository")
            service: Any = import_module("advanced_alchemy.service")
            self.filters: Any = import_module("advanced_alchemy.filters")

        class Repository(repository.SQLAlchemyAsyncRepository):  # type: ignore[misc]
            model_type = Hero

        class Service(service.SQLAlchemyAsyncRepositoryService):  # type: ignore[misc]
            repository_type = Repository

        self.service: Any = Service

    def _wanted(self, power: int) -> list[Any]:
        f = self.filters
        limit = f.LimitOffset(limit=100, offset=0)
        return [f.ComparisonFilter("power", "ge", power), *self._by_power(), limit]

    def _by_power(self) -> list[Any]:
        return [self.filters.OrderBy("power"), self.filters.OrderBy("id")]

    async def get(self, pk: int) -> Any:
        async with self.sessions() as session:
            return await self.service(session=session).get(pk)

    async def find(self, power: int) -> Any:
        async with self.sessions() as session:
            return await self.service(session=session).get_many(*self._wanted(power), active=True)

    async def related(self, power: int) -> Any:
        load = [_relation("team"), _relation("tags")]
        async with self.sessions() as session:
            heroes = self.service(session=session)
            return await heroes.get_many(*self._wanted(power), active=True, load=load)

    async def create(self, values: Values) -> Any:
        async with self.sessions() as session:
            heroes = self.service(session=session)
            return await heroes.create(values, auto_commit=True, auto_refresh=False)

    async def update(self, pk: int, power: int) -> Any:
        async with self.sessions() as session:
            heroes = self.service(session=session)
            hero = await heroes.get(pk)
            hero.power = power
            return await heroes.update(hero, auto_commit=True, auto_refresh=False)

    async def create_rows(self, items: list[Values]) -> Any:
        async with self.sessions() as session:
            return await self.service(session=session).create_many(items, auto_commit=True)

    async def create_count(self, items: list[Values]) -> Any:
        return len(await self.create_rows(items))

    async def update_rows(self, changes: dict[int, Values]) -> Any:
        rows = [{**self.known[pk], **values} for pk, values in changes.items()]
        async with self.sessions() as session:
            return len(await self.service(session=session).update_many(rows, auto_commit=True))

    async def upsert_rows(self, items: list[Values]) -> Any:
        async with self.sessions() as session:
            return await self.service(session=session).upsert_many(
                self._complete(items),
                match_fields=["code"],
                no_merge=is_postgresql(self.db),
                auto_commit=True,
            )

    def _complete(self, items: list[Values]) -> list[Values]:
        old = "old-"
        return [
            {**self.known[int(values["code"].removeprefix(old))], **values}
            if values["code"].startswith(old)
            else values
            for values in items
        ]

    async def upsert_count(self, items: list[Values]) -> Any:
        return len(await self.upsert_rows(items))

    async def page(self, offset: int) -> Any:
        limit = self.filters.LimitOffset(limit=PAGE, offset=offset)
        async with self.sessions() as session:
            return await self.service(session=session).get_many_and_count(
                *self._by_power(), limit, count_with_window_function=False
            )

    async def stream(self) -> tuple[int, int]:
        async with self.sessions() as session:
            rows = await self.service(session=session).get_many()
            return len(rows), sum(hero.power for hero in rows)


class FastCrud(Peer):
    title = "FastCRUD"
    package = "fastcrud"
    notes: ClassVar[dict[str, str]] = {
        "get": "returns dicts",
        "find": "returns dicts",
        "related": "returns dicts, with the ids of the tags in place of the tags: it cannot page "
        "a many-to-many join",
        "keyset": "one sort column without a tiebreaker",
        "stream": LOADS_ALL + " as dicts",
    }

    def __init__(self, db: Database, known: dict[int, Values]) -> None:
        super().__init__(db, known)
        self.fastcrud: Any = import_module("fastcrud")
        self.heroes = self.fastcrud.FastCRUD(Hero)

    async def get(self, pk: int) -> Any:
        async with self.sessions() as session:
            return await self.heroes.get(session, id=pk)

    def _wanted(self, power: int) -> dict[str, Any]:
        by_power = {"sort_columns": ["power", "id"], "sort_orders": ["asc", "asc"]}
        filters = {"active": True, "power__gte": power}
        return {**filters, **by_power, "limit": 100, "return_total_count": False}

    async def find(self, power: int) -> Any:
        async with self.sessions() as session:
            return (await self.heroes.get_multi(session, **self._wanted(power)))["data"]

    async def related(self, power: int) -> Any:
        join = self.fastcrud.JoinConfig
        joins = [
            join(model=Team, join_on=col(Hero.team_id) == col(Team.id), join_prefix="team_"),
            join(
                model=HeroTag,
                join_on=col(HeroTag.hero_id) == col(Hero.id),
                join_prefix="tags_",
                relationship_type="one-to-many",
                nested_limit=50,
            ),
        ]
        async with self.sessions() as session:
            found = await self.heroes.get_multi_joined(
                session, joins_config=joins, nest_joins=True, **self._wanted(power)
            )
        return found["data"]

    async def create(self, values: Values) -> Any:
        async with self.sessions() as session:
            payload = HeroCreate(**values)
            return await self.heroes.create(session, payload, schema_to_select=HeroRead)

    async def update(self, pk: int, power: int) -> Any:
        async with self.sessions() as session:
            return await self.heroes.update(
                session, {"power": power}, id=pk, schema_to_select=HeroRead, return_as_model=True
            )

    async def page(self, offset: int) -> Any:
        async with self.sessions() as session:
            found = await self.heroes.get_multi(
                session,
                offset=offset,
                limit=PAGE,
                sort_columns=["power", "id"],
                sort_orders=["asc", "asc"],
            )
        return found["data"], found["total_count"]

    async def keyset(self, power: int, pk: int) -> Any:  # noqa: ARG002 - it takes one column
        async with self.sessions() as session:
            found = await self.heroes.get_multi_by_cursor(
                session, cursor=power, limit=PAGE, sort_column="power"
            )
        return found["data"]

    async def stream(self) -> tuple[int, int]:
        async with self.sessions() as session:
            found = await self.heroes.get_multi(session, limit=None, return_total_count=False)
        return len(found["data"]), sum(hero["power"] for hero in found["data"])


NULLS_NOTE = "`render_nulls=True`, without which it sends 3,333 statements"


class CrudPlus(Peer):
    title = "sqlalchemy-crud-plus"
    package = "sqlalchemy-crud-plus"
    notes: ClassVar[dict[str, str]] = {
        "update": "`update_model`, then `select_model`: it returns no row",
        "create_rows": NULLS_NOTE,
        "create_count": NULLS_NOTE,
        "update_rows": "returns how many were passed, not how many were found",
        "stream": LOADS_ALL,
    }

    def __init__(self, db: Database, known: dict[int, Values]) -> None:
        super().__init__(db, known)
        self.heroes: Any = import_module("sqlalchemy_crud_plus").CRUDPlus(Hero)

    async def get(self, pk: int) -> Any:
        async with self.sessions() as session:
            return await self.heroes.select_model(session, pk)

    async def find(self, power: int) -> Any:
        async with self.sessions() as session:
            return await self._listed(session, power)

    async def _listed(self, session: Any, power: int, **options: Any) -> Any:
        by_power = (["power", "id"], ["asc", "asc"])
        return await self.heroes.select_models_order(
            session, *by_power, limit=100, active=True, power__ge=power, **options
        )

    async def related(self, power: int) -> Any:
        load = {"team": "joinedload", "tags": "selectinload"}
        async with self.sessions() as session:
            return await self._listed(session, power, load_strategies=load)

    async def create(self, values: Values) -> Any:
        async with self.sessions() as session:
            return await self.heroes.create_model(session, HeroCreate(**values), commit=True)

    async def update(self, pk: int, power: int) -> Any:
        async with self.sessions() as session:
            await self.heroes.update_model(session, pk, {"power": power})
            hero = await self.heroes.select_model(session, pk)
            await session.commit()
        return hero

    async def create_rows(self, items: list[Values]) -> Any:
        async with self.sessions() as session:
            return await self.heroes.bulk_create_models(
                session, items, render_nulls=True, commit=True
            )

    async def create_count(self, items: list[Values]) -> Any:
        return len(await self.create_rows(items))

    async def update_rows(self, changes: dict[int, Values]) -> Any:
        rows = [{"id": pk, **values} for pk, values in changes.items()]
        async with self.sessions() as session:
            return await self.heroes.bulk_update_models(session, rows, commit=True)

    async def page(self, offset: int) -> Any:
        async with self.sessions() as session:
            rows = await self.heroes.select_models_order(
                session, ["power", "id"], ["asc", "asc"], limit=PAGE, offset=offset
            )
            return rows, await self.heroes.count(session)

    async def stream(self) -> tuple[int, int]:
        async with self.sessions() as session:
            rows = await self.heroes.select_models(session)
            return len(rows), sum(hero.power for hero in rows)


CONTESTANTS: dict[str, type[Contestant]] = {
    "orm": RawOrm,
    "core": Core,
    "service": Ours,
    "advanced-alchemy": AdvancedAlchemy,
    "fastcrud": FastCrud,
    "crud-plus": CrudPlus,
    "offset": ByOffset,
}
