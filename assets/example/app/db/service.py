"""A typed, generic service over one model.

    class HeroService(ServiceBase[Hero, HeroCreate, HeroUpdate]):
        pass

    hero = await HeroService(session).create(HeroCreate(name="Deadpond"))

Methods flush and never commit: the transaction belongs to the caller
(`Database.session()`, or the session dependency of `web.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import exists as sa_exists
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import InstanceState
from sqlmodel import SQLModel, func, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from .errors import InvalidQuery, InvalidValue, MultipleFound, NotFound, translate_errors
from .query import (
    Condition,
    Load,
    OrderBy,
    build_filters,
    build_load,
    build_order,
    is_expression,
    mapper_of,
    unknown,
)

ModelT = TypeVar("ModelT", bound=SQLModel)
CreateT = TypeVar("CreateT", bound=BaseModel)
UpdateT = TypeVar("UpdateT", bound=BaseModel)
SchemaT = TypeVar("SchemaT", bound=BaseModel)
ItemT = TypeVar("ItemT")

# `list` is a method below; inside the class the name means the method.
_List = list


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """A slice of rows, and how many rows there are in all."""

    # As a response model it validates and filters its items; pydantic would otherwise
    # trust an instance, and send rows as they are.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(revalidate_instances="always")

    items: list[ItemT]
    total: int
    limit: int
    offset: int


class ServiceBase(Generic[ModelT, CreateT, UpdateT]):
    """Create, read, update and delete rows of one model, through one session.

    Name the three types once, in a subclass: the `table=True` model, the payload that
    creates a row, and the payload that changes one (all fields optional).

    Filters: `field=value`, `field__op=value` (see `query.OPERATORS`),
    `relation__field__op=value`, and SQLAlchemy expressions as positional arguments; all
    of them must hold. `load` names relations to fetch: `load=("team", "tags.heroes")`.

    Args:
        session: the unit of work. The service never commits it.

    Raises:
        TypeError: when a subclass does not name its three types, or the model has no table.
    """

    model: type[ModelT]
    create_schema: ClassVar[type[BaseModel]]
    update_schema: ClassVar[type[BaseModel]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            types = get_args(base)
            if len(types) == 3 and all(isinstance(each, type) for each in types):
                cls.model, cls.create_schema, cls.update_schema = types
                mapper_of(cls.model)

    def __init__(self, session: AsyncSession) -> None:
        if not hasattr(self, "model"):
            name = type(self).__name__
            raise TypeError(f"declare class {name}(ServiceBase[Model, Create, Update])")
        self.session = session

    # -- read ------------------------------------------------------------------

    async def get(
        self, pk: Any = None, /, *where: Condition, load: Load = (), **filters: Any
    ) -> ModelT:
        """The one row with this primary key, or that these filters single out.

        Args:
            pk: primary key; a tuple, in column order, where it has several columns.
            where: SQLAlchemy conditions.
            load: relations to fetch along.
            filters: `field__op=value`.

        SQL: one SELECT, and one more per to-many relation in `load`.

        Raises:
            NotFound: no such row.
            MultipleFound: the filters match several rows.
            InvalidQuery: unknown field, operator or relation; or nothing to search by.
        """
        row = await self.get_or_none(pk, *where, load=load, **filters)
        if row is None:
            key = ", ".join(filters) if pk is None or is_expression(pk) else repr(pk)
            raise NotFound(f"{self.model.__name__} not found: {key or 'no row matches'}")
        return row

    async def get_or_none(
        self, pk: Any = None, /, *where: Condition, load: Load = (), **filters: Any
    ) -> ModelT | None:
        """Like `get`, with None where no row matches."""
        if pk is None and not where and not filters:
            raise InvalidQuery("get needs a primary key or a filter")
        conditions = [*where]
        if is_expression(pk):  # `get(Hero.age > 3)`: one more condition, no key
            conditions.append(cast(Condition, pk))
        elif pk is not None:
            conditions += self._primary_key(pk)
        rows = await self._rows(conditions, filters, load=load, limit=2)
        if len(rows) > 1:
            raise MultipleFound(f"several rows of {self.model.__name__} match")
        return rows[0] if rows else None

    async def list(
        self,
        *where: Condition,
        order_by: OrderBy = (),
        limit: int | None = None,
        offset: int = 0,
        load: Load = (),
        **filters: Any,
    ) -> _List[ModelT]:
        """Rows that match, in a stable order.

        Args:
            where: SQLAlchemy conditions.
            order_by: `"name"`, `"-age"` or expressions; the primary key is added last.
            limit: at most this many rows; None for all of them.
            offset: rows to skip.
            load: relations to fetch along.
            filters: `field__op=value`.

        SQL: one SELECT, and one more per to-many relation in `load`.

        Raises:
            InvalidQuery: unknown field, operator, relation or sort key; negative limit.
        """
        return await self._rows(
            where, filters, order_by=order_by, limit=limit, offset=offset, load=load
        )

    async def page(
        self,
        *where: Condition,
        order_by: OrderBy = (),
        limit: int = 50,
        offset: int = 0,
        load: Load = (),
        **filters: Any,
    ) -> Page[ModelT]:
        """A slice of `list`, with the total, which is right past the last page too.

        SQL: one SELECT, one SELECT count(*) with the same WHERE, and one more per to-many
        relation in `load`.
        """
        items = await self._rows(
            where, filters, order_by=order_by, limit=limit, offset=offset, load=load
        )
        total = await self.count(*where, **filters)
        return Page(items=items, total=total, limit=limit, offset=offset)

    async def count(self, *where: Condition, **filters: Any) -> int:
        """The number of rows that match.

        SQL: one SELECT count(*).
        """
        conditions = [*where, *build_filters(self.model, filters)]
        statement = select(func.count()).select_from(self.model).where(*conditions)
        return int((await self._exec(statement)).one())

    async def exists(self, *where: Condition, **filters: Any) -> bool:
        """Whether a row matches. SQL: one SELECT EXISTS (...)."""
        conditions = [*where, *build_filters(self.model, filters)]
        inner = sa_exists().select_from(self.model).where(*conditions)
        return bool((await self._exec(select(inner))).one())

    # -- write -----------------------------------------------------------------

    async def create(
        self, data: CreateT | Mapping[str, Any], *, load: Load = (), **values: Any
    ) -> ModelT:
        """Insert one row and return it, with what the database generated.

        Args:
            data: the payload, or a mapping that is validated as one. Its defaults count,
                but a default of None leaves the column to the model and the database.
            load: relations to fetch along.
            values: columns that the client does not choose, e.g. `owner_id=user.id`.

        SQL: one INSERT (with RETURNING where the database has it); with `load`, one
        SELECT more and one per to-many relation.

        Raises:
            InvalidValue: unknown key, or a value that the payload's class, the model or
                the table refuses.
            Conflict: a unique key or foreign key refuses the row.
        """
        payload = self._payload(self.create_schema, data, defaults=True)
        self._check_columns(values)
        # Not a mapping: SQLModel would take its method `items` for a relation of that name.
        source = SimpleNamespace(**{**payload, **values})
        row = _validated(self.model, source)
        self.session.add(row)
        await self._flush(row)
        return await self._loaded(row, load)

    async def update(
        self,
        target: Any,
        data: UpdateT | Mapping[str, Any],
        *,
        load: Load = (),
        **values: Any,
    ) -> ModelT:
        """Change the fields that the payload sets, and no other, and return the row.

        A field that was not sent stays as it is; an explicit None is written.

        Args:
            target: primary key, or a row of this session; of another one is InvalidQuery.
            data: the payload, or a mapping that is validated as one.
            load: relations to fetch along.
            values: columns that the client does not choose, e.g. `editor_id=user.id`.

        SQL: SELECT by primary key (none for a row), UPDATE when something changed, and
        one SELECT more where the database computes a column at UPDATE.

        Raises:
            NotFound: no row with this key.
            InvalidValue, Conflict: as for `create`.
        """
        payload = self._payload(self.update_schema, data)
        self._check_columns(values)
        row = await self._target(target)
        row.sqlmodel_update({**payload, **values})
        await self._flush(row)
        return await self._loaded(row, load)

    async def delete(self, target: Any) -> None:
        """Delete one row.

        Args:
            target: primary key, or a row of this session.

        SQL: SELECT by primary key (none for a row), DELETE, and what the relations'
        cascades need.

        Raises:
            NotFound: no row with this key.
            ForeignKeyViolation: other rows refer to it.
        """
        row = await self._target(target)
        await self.session.delete(row)
        await self.flush()

    async def flush(self) -> None:
        """Send what was changed through the session, for methods of your own.

        SQL: INSERT, UPDATE and DELETE of everything that waits; no COMMIT.

        Raises:
            InvalidValue, Conflict: in place of SQLAlchemy's errors, which
                `session.flush()` raises.
        """
        with translate_errors():
            await self.session.flush()

    # -- pieces ----------------------------------------------------------------

    async def _exec(self, statement: SelectOfScalar[Any]) -> Any:
        # Errors of a read: a value that the driver refuses; and, through autoflush, the
        # constraint errors of earlier changes.
        with translate_errors():
            return await self.session.exec(statement)

    async def _rows(
        self,
        where: Any,
        filters: Mapping[str, Any],
        *,
        order_by: OrderBy | None = None,
        limit: int | None = None,
        offset: int = 0,
        load: Load = (),
    ) -> _List[ModelT]:
        for name, number in (("limit", limit or 0), ("offset", offset)):
            if number < 0:
                raise InvalidQuery(f"{name} must not be negative: {number}")
        statement: SelectOfScalar[ModelT] = select(self.model)
        statement = statement.where(*where, *build_filters(self.model, filters))
        statement = statement.options(*build_load(self.model, load))
        if order_by is not None:
            statement = statement.order_by(*build_order(self.model, order_by))
        if limit is not None:
            statement = statement.limit(limit)
        if offset:
            statement = statement.offset(offset)
        return _List((await self._exec(statement)).unique().all())

    def _primary_key(self, pk: Any) -> _List[Condition]:
        mapper = mapper_of(self.model)
        names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        key: _List[Any] = _List(pk) if pk.__class__ is tuple else [pk]
        if len(key) != len(names):
            wanted = ", ".join(names)
            raise InvalidQuery(f"the primary key of {self.model.__name__} is ({wanted}): {pk!r}")
        return build_filters(self.model, dict(zip(names, key, strict=True)))

    async def _target(self, target: Any) -> ModelT:
        if not isinstance(target, self.model):
            return await self.get(target)
        if target not in self.session:  # a flush would pass over it, and change nothing
            name = self.model.__name__
            raise InvalidQuery(f"this {name} is not of this session; pass its primary key")
        return target

    def _payload(
        self,
        schema: type[BaseModel],
        data: BaseModel | Mapping[str, Any],
        *,
        defaults: bool = False,
    ) -> dict[str, Any]:
        """The fields that were set, validated.

        With `defaults` also what the payload's class fills in. A default of None says
        nothing: the model or the database fills the column then.
        """
        if not isinstance(data, BaseModel):
            known = {
                name
                for key, field in schema.model_fields.items()
                for name in (key, field.alias, field.validation_alias)
                if isinstance(name, str)
            }
            for key in data:
                if key not in known:
                    raise InvalidValue(unknown(schema, "field", key, known))
            data = _validated(schema, data)
        payload = {name: getattr(data, name) for name in data.model_fields_set}
        if defaults:
            payload = {name: value for name, value in data if value is not None} | payload
        self._check_columns(payload)
        return payload

    def _check_columns(self, values: Mapping[str, Any]) -> None:
        mapper = mapper_of(self.model)
        for name, value in values.items():
            if name not in mapper.attrs:
                raise InvalidValue(unknown(self.model, "field", name, mapper.attrs.keys()))
            if name in mapper.relationships:
                related = mapper.relationships[name].mapper.class_
                rows: Any = value if value.__class__ in {_List, tuple, set} else [value]
                if not all(row is None or isinstance(row, related) for row in rows):
                    raise InvalidValue(
                        f"{self.model.__name__}.{name} is a relation and takes rows: pass "
                        f"{name}=[{related.__name__}(...)] beside the payload"
                    )

    async def _flush(self, row: ModelT) -> None:
        await self.flush()
        # What the database computed and did not return (no RETURNING, or an UPDATE with
        # a server-side value) would be a lazy load later: fetch it now.
        state = cast(InstanceState[Any], sa_inspect(row))
        expired = state.expired_attributes & {*mapper_of(self.model).column_attrs.keys()}
        if expired:
            await self.session.refresh(row, attribute_names=sorted(expired))

    async def _loaded(self, row: ModelT, load: Load) -> ModelT:
        options = build_load(self.model, load)
        if options:
            key = mapper_of(self.model).primary_key_from_instance(row)
            statement = select(self.model).where(*self._primary_key(tuple(key)))
            statement = statement.options(*options)
            statement = statement.execution_options(populate_existing=True)
            (await self._exec(statement)).unique().one()
        return row


def _validated(schema: type[SchemaT], data: object) -> SchemaT:
    try:
        return schema.model_validate(data, from_attributes=True)
    except ValidationError as error:
        # Names and rules only: the values may be secrets.
        found = error.errors(include_input=False, include_url=False)
        fields = tuple(".".join(str(part) for part in each["loc"]) for each in found)
        rules = [f"{name}: {each['msg']}" for name, each in zip(fields, found, strict=True)]
        message = f"{schema.__name__} is not valid: {'; '.join(rules)}"
        raise InvalidValue(message, columns=fields) from error
