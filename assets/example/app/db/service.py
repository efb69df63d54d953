"""A typed, generic service over one model.

    class HeroService(ServiceBase[Hero, HeroCreate, HeroUpdate]):
        pass

    hero = await HeroService(session).create(HeroCreate(name="Deadpond"))

Methods flush and never commit: the transaction belongs to the caller
(`Database.session()`, or the session dependency of `web.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast, get_args, overload

from pydantic import BaseModel, ValidationError
from sqlalchemy import Dialect, literal, null, text, tuple_
from sqlalchemy import delete as sql_delete
from sqlalchemy import insert as sql_insert
from sqlalchemy import select as sa_select
from sqlalchemy import update as sql_update
from sqlalchemy.orm import RelationshipDirection
from sqlalchemy.orm.attributes import flag_modified, instance_state, set_committed_value
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from . import bulk
from .base import SoftDeleteMixin, VersionMixin, utcnow
from .errors import (
    InvalidFilter,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    StaleData,
    UniqueViolation,
    translate_errors,
)
from .filters import Where
from .loading import Load, paths_of
from .mapping import cached, mapper_of, unknown
from .reading import ModelT, ReadService, alive, identity_of, key_of, missing
from .transactions import transaction

CreateT = TypeVar("CreateT", bound=BaseModel)
UpdateT = TypeVar("UpdateT", bound=BaseModel)
SchemaT = TypeVar("SchemaT", bound=BaseModel)

# `list` is a method of the service; inside the class the name means the method.
_List = list


class ServiceBase(ReadService[ModelT], Generic[ModelT, CreateT, UpdateT]):
    """Create, read, update and delete rows of one model, through one session.

    Name the three types once, in a subclass: the `table=True` model, the payload that
    creates a row, and the payload that changes one (all fields optional). Filters,
    `load` and the reading methods are those of `ReadService`.

    Payloads are instances of the payload classes, or mappings, which are validated as
    such. Keyword values are columns that the client does not choose: `owner_id=user.id`.

    Args:
        session: the unit of work. The service never commits it.

    Raises:
        TypeError: when a subclass does not name its three types, or the model has no table.
    """

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
        super().__init__(session)

    # -- one row ---------------------------------------------------------------

    async def create(
        self, data: CreateT | Mapping[str, Any], *, load: Load = (), **values: Any
    ) -> ModelT:
        """Insert one row and return it, with what the database generated.

        Args:
            data: the payload. Its defaults count, but a default of None leaves the column
                to the model and the database.
            load: relations to fetch along.
            values: columns and relations beside the payload.

        SQL: one INSERT (with RETURNING where the database has it); with `load`, one
        SELECT more and one per to-many relation.

        Raises:
            InvalidValue: unknown key, or a value that the payload's class, the model or
                the table refuses.
            Conflict: a unique key or foreign key refuses the row.
        """
        row = self._new(self._payload(self.create_schema, data, defaults=True), values)
        self.session.add(row)
        await self._flush(row)
        await self._load(row, load)
        return row

    async def update(
        self,
        target: Any,
        data: UpdateT | Mapping[str, Any],
        *,
        load: Load = (),
        **values: Any,
    ) -> ModelT:
        """Change the fields that the payload sets, and no other, and return the row.

        A field that was not sent stays as it is; an explicit None is written. Relations
        that were loaded stay so, and follow their foreign keys. On a `VersionMixin` model
        `version`, sent or given, is the version that the caller read.

        Args:
            target: primary key, or a row of this session; of another one is InvalidQuery.
            data: the payload; `{}` where there are values only.
            load: relations to fetch along.
            values: columns and relations beside the payload; `age=Hero.age + 1` lets the
                database compute.

        SQL: by primary key one UPDATE ... RETURNING; on MySQL and MariaDB, which have none,
        UPDATE and SELECT. For a row that the session has: an UPDATE when something
        differs, and one SELECT more where the database computes a column. Models with
        hooks (`before_update`, `@validates`) and relations among the values: SELECT, UPDATE.

        Raises:
            NotFound: no row with this key.
            StaleData: the row has another version.
            InvalidValue, Conflict: as for `create`.
        """
        changes = {**self._payload(self.update_schema, data), **values}
        self._check_columns(values)
        return await self._update(target, changes, load)

    async def delete(self, target: Any, *, hard: bool = False) -> None:
        """Delete one row: by UPDATE where the model has `SoftDeleteMixin`.

        Args:
            target: primary key, or a row of this session.
            hard: DELETE also where the model has `SoftDeleteMixin`.

        SQL: DELETE; where the ORM has to look after other rows (a relation without
        `passive_deletes="all"`), SELECT ... FOR UPDATE by primary key and what its
        cascades need. A soft delete is an `update`.

        Raises:
            NotFound: no row with this key.
            ForeignKeyViolation: other rows refer to it.
        """
        if issubclass(self.model, SoftDeleteMixin) and not hard:
            await self._update(target, {"deleted_at": utcnow()})
            return
        everything = self.with_deleted()  # a soft-deleted row can be deleted for good
        row = await everything._known(target)
        key = identity_of(row) if row is not None else target
        stored = row is None or instance_state(row).key is not None
        versioned = row is not None and issubclass(self.model, VersionMixin)
        if _alone(self.model) and stored and not versioned:
            await self._settle()
            statement = sql_delete(self.model).where(*self._is_row(key))
            sync = False if row is None else "evaluate"
            result = await self._exec(statement.execution_options(synchronize_session=sync))
            if not result.rowcount:
                raise missing(self.model, [key])
            return
        if row is None:
            row = await everything.get(target, lock="update")
        elif stored and not versioned:  # the ORM only warns of a row that is gone
            await self._settle()
            found = sa_select(literal(1)).where(*self._is_row(key)).with_for_update()
            if not (await self._exec(found)).all():
                raise missing(self.model, [key])
        await self.session.delete(row)
        await self.flush()

    async def restore(self, target: Any, *, load: Load = ()) -> ModelT:
        """Bring a soft-deleted row back. SQL and errors as for `update`."""
        if not issubclass(self.model, SoftDeleteMixin):
            raise InvalidQuery(f"{self.model.__name__} has no SoftDeleteMixin: nothing to restore")
        return await self.with_deleted()._update(target, {"deleted_at": None}, load)

    async def upsert(
        self,
        data: CreateT | Mapping[str, Any],
        *,
        on: str | Sequence[str],
        load: Load = (),
        **values: Any,
    ) -> ModelT:
        """Insert a row, or overwrite the one that has its key; see `upsert_multi`."""
        row = (await self.upsert_multi([data], on=on, returning=True, **values))[0]
        await self._load(row, load)
        return row

    async def get_or_create(
        self,
        data: CreateT | Mapping[str, Any],
        *,
        on: str | Sequence[str],
        load: Load = (),
        **values: Any,
    ) -> tuple[ModelT, bool]:
        """The row with this key, left as it is, or a new one. Any number of callers at once.

        Args:
            data: the payload of the new row; has the key.
            on: the field or fields of a unique key.
            load: relations to fetch along.
            values: columns beside the payload.

        Returns:
            The row, and whether it was created.

        SQL: SELECT; INSERT ... ON CONFLICT DO NOTHING when there is none; SELECT when
        another caller was quicker. MySQL and MariaDB, and models with hooks: INSERT in a
        savepoint.

        Raises:
            UniqueViolation: another unique key is taken, or a soft-deleted row has this one.
            InvalidQuery: no unique key over these fields.
        """
        payload = self._items([data], self.create_schema)
        self._check_columns(values, relations=False)
        dialect = (await self.session.connection()).dialect
        key = bulk.unique_key(dialect, self.model, on)
        rows = bulk.complete(self.model, *self._ruled(payload, values))
        bulk.check_keys(self.model, key, rows)
        new = rows[0].mappings()[0]
        columns = bulk.columns_of(self.model)
        same = [*(columns[name] == new[name] for name in key.names), *key.within]
        row = await self.get_or_none(*same, load=load)
        if row is not None:
            return row, False
        if bulk.plain(self.model, "insert") and dialect.name in {"postgresql", "sqlite"}:
            # Whichever key is taken: an error would end the transaction on PostgreSQL.
            statement = bulk.insert_one(dialect, self.model, new).on_conflict_do_nothing()
            inserted = await self._returned(statement.returning(*columns.values()))
            if inserted:
                await self._load(inserted[0], load)
                return inserted[0], True
            conflict = UniqueViolation("A row with this key already exists.", columns=key.names)
        else:
            try:
                async with self.transaction():
                    return await self.create(cast(CreateT, payload[0]), load=load, **values), True
            except UniqueViolation as error:
                conflict = error
        row = await self.get_or_none(*same, load=load)
        if row is None:
            raise conflict
        return row, False

    # -- many rows -------------------------------------------------------------

    @overload
    async def create_multi(
        self,
        items: Iterable[CreateT | Mapping[str, Any]],
        *,
        returning: Literal[True] = True,
        **values: Any,
    ) -> _List[ModelT]: ...

    @overload
    async def create_multi(
        self,
        items: Iterable[CreateT | Mapping[str, Any]],
        *,
        returning: Literal[False],
        **values: Any,
    ) -> int: ...

    async def create_multi(
        self,
        items: Iterable[CreateT | Mapping[str, Any]],
        *,
        returning: bool = True,
        **values: Any,
    ) -> _List[ModelT] | int:
        """Insert rows: all of them or, when one is refused, none that lasts.

        Args:
            items: payloads, as for `create`; instances are of one class.
            returning: whether to return the rows, in the order of the payloads, or their
                number, which is faster.
            values: columns with the same value in each row.

        SQL: one INSERT ... SELECT ... RETURNING per 5,000 rows and set of columns that get a
        value (more than one only where the database fills a column of some rows). Columns
        that JSON cannot carry (bytes, arrays, ranges) and SQL defaults: INSERT ... VALUES of
        1,000 rows each; on SQLite one per row where the database makes the key, unless
        `returning` is False. MySQL, and models with hooks: the ORM's way, one INSERT per
        row where the database makes the key.

        Raises:
            InvalidValue: as for `create`; names the place of the item.
            Conflict: as for `create`.
        """
        payloads = self._items(items, self.create_schema)
        self._check_columns(values, relations=False)
        if not payloads:
            return [] if returning else 0
        await self._settle()
        dialect = (await self.session.connection()).dialect
        by_statement = bulk.plain(self.model, "insert") and (
            dialect.insert_returning or not returning
        )
        shapes = bulk.complete(self.model, *self._ruled(payloads, values)) if by_statement else []
        # There is no INSERT ... SELECT of rows that get no value at all.
        if not by_statement or not all(shape.names for shape in shapes):
            rows = [self._new(self._given(payload, defaults=True), values) for payload in payloads]
            self.session.add_all(rows)
            await self.flush()
            await self._reread([row for row in rows if self._expired(row)])
            return rows if returning else len(rows)
        placed: dict[int, ModelT] = {}
        for shape in shapes:
            for part in shape.chunks():
                made = await self._insert(dialect, part, returning)
                placed.update(zip(part.places, made, strict=False))
        return [placed[place] for place in range(len(payloads))] if returning else len(payloads)

    async def update_multi(
        self, changes: Mapping[Any, UpdateT | Mapping[str, Any]], **values: Any
    ) -> int:
        """Change rows, each in its own way.

        Args:
            changes: payloads by primary key. As for `update` the fields that were set are
                written, and no other.
            values: columns beside the payloads, for all rows; may be SQL expressions.

        Returns:
            The number of rows.

        SQL: one UPDATE ... FROM per 5,000 rows and set of fields. One SELECT more when rows
        of the session are among them, or to tell which key has no row. Models with hooks,
        and columns that JSON cannot carry: SELECT, and an UPDATE per row.

        Raises:
            NotFound: with the keys without a row in `.keys`.
            StaleData: rows have another version than their payload says.

        In case of an error other rows may be changed: let it end the unit of work, or call
        this within `transaction()`.
        """
        keys = self._keys(changes)
        payloads = [
            self._valid(self.update_schema, data) if isinstance(data, BaseModel) or data else None
            for data in changes.values()
        ]
        shapes: dict[tuple[type, frozenset[str]], _List[int]] = {}
        for place, data in enumerate(payloads):
            given = frozenset[str]() if data is None else frozenset(data.model_fields_set)
            shapes.setdefault((type(data), given), []).append(place)
        for _, names in shapes:
            self._check_columns(dict.fromkeys(names), relations=False)
        self._check_columns(values, relations=False)
        self._check_version(values, "in the payload of each row")
        await self._settle()
        dialect = (await self.session.connection()).dialect
        known = [row for key in keys if (row := self._in_session(key)) is not None]
        found = 0
        for (_, names), places in shapes.items():
            for start in range(0, len(places), bulk.CHUNK):
                part = places[start : start + bulk.CHUNK]
                found += await self._update_rows(
                    dialect,
                    [keys[place] for place in part],
                    {name: [getattr(payloads[place], name) for place in part] for name in names},
                    values,
                )
        if found != len(keys):
            await self.get_by_ids(changes)  # raises NotFound
            raise self._stale(_List(changes))
        await self._reread(known)
        return len(keys)

    @overload
    async def upsert_multi(
        self,
        items: Iterable[CreateT | Mapping[str, Any]],
        *,
        on: str | Sequence[str],
        returning: Literal[True] = True,
        **values: Any,
    ) -> _List[ModelT]: ...

    @overload
    async def upsert_multi(
        self,
        items: Iterable[CreateT | Mapping[str, Any]],
        *,
        on: str | Sequence[str],
        returning: Literal[False],
        **values: Any,
    ) -> int: ...

    async def upsert_multi(
        self,
        items: Iterable[CreateT | Mapping[str, Any]],
        *,
        on: str | Sequence[str],
        returning: bool = True,
        **values: Any,
    ) -> _List[ModelT] | int:
        """Insert rows, or overwrite those that have their key.

        A stored row gets the fields that the payload sets, and keeps all others; a
        soft-deleted one comes back; a version is counted up. Hooks do not see these rows.
        SQL text as an `onupdate` must name its table: `text("hero.revision + 1")`.

        Args:
            items: payloads, as for `create`.
            on: the field or fields of a unique key.
            returning: whether to return the rows, in the order of the payloads, or their
                number.
            values: columns with the same value in each row, also in stored ones.

        SQL: one INSERT ... ON CONFLICT DO UPDATE ... RETURNING per 5,000 rows and set of
        fields; MySQL and MariaDB: INSERT ... ON DUPLICATE KEY UPDATE, and a SELECT. One
        SELECT more when rows of the session are among them. Columns that JSON cannot
        carry: one statement per row.

        Raises:
            InvalidQuery: no unique key over these fields; an `onupdate` without its table.
            InvalidValue: as for `create_multi`; a key that is None, or given twice.
            UniqueViolation: another unique key is taken.
        """
        payloads = self._items(items, self.create_schema)
        self._check_columns(values, relations=False)
        dialect = (await self.session.connection()).dialect
        key = bulk.unique_key(dialect, self.model, on)
        if not payloads:
            return [] if returning else 0
        await self._settle()
        shapes = bulk.complete(self.model, *self._ruled(payloads, values), overwriting=True)
        bulk.check_keys(self.model, key, shapes)
        known = self._all_in_session()
        placed: dict[int, ModelT] = {}
        for shape in shapes:
            for part in shape.chunks():
                made = await self._upsert(dialect, key, part, returning or bool(known))
                placed.update(zip(part.places, made, strict=False))
        touched = {id(row) for row in placed.values()}
        await self._reread([row for row in known if id(row) in touched])
        return [placed[place] for place in range(len(payloads))] if returning else len(payloads)

    async def update_where(
        self,
        data: UpdateT | Mapping[str, Any],
        *where: Where,
        allow_multiple: bool = False,
        values: Mapping[str, Any] | None = None,
        **filters: Any,
    ) -> int:
        """Change the rows that match, all in the same way.

        Args:
            data: the payload.
            where: as for `list`.
            allow_multiple: False wants exactly one row to match.
            values: columns beside the payload; may be SQL expressions.
            filters: `field__op=value`; at least one, or a condition.

        Returns:
            The number of rows.

        SQL: one UPDATE; before it a SELECT ... FOR UPDATE unless `allow_multiple`; after it
        a SELECT when the session has rows of the model. Models with hooks: SELECT, and an
        UPDATE per row.

        Raises:
            InvalidFilter: no filter at all, or a wrong one.
            NotFound, MultipleFound: not exactly one row.
        """
        changes = {**self._payload(self.update_schema, data), **(values or {})}
        self._check_columns(changes, relations=False)
        self._check_version(changes, "as a filter, version=3")
        conditions = await self._many("update_where", where, filters, allow_multiple)
        if not changes:
            return await self.count(*conditions)
        await self._settle()
        if not bulk.plain(self.model, "update"):
            rows = await self._rows(conditions, {})
            for row in rows:
                _set(row, changes)
            for row in rows:
                await self._flush(row)
            return len(rows)
        return await self._update_all(conditions, changes)

    async def delete_where(
        self, *where: Where, allow_multiple: bool = False, hard: bool = False, **filters: Any
    ) -> int:
        """Delete the rows that match; softly where the model has `SoftDeleteMixin`.

        Args:
            where: as for `list`.
            allow_multiple: False wants exactly one row to match.
            hard: DELETE also where the model has `SoftDeleteMixin`.
            filters: `field__op=value`; at least one, or a condition.

        Returns:
            The number of rows.

        SQL: one DELETE; before it a SELECT ... FOR UPDATE unless `allow_multiple`. Where the
        ORM has to look after other rows: as `delete` for each row.

        Raises:
            InvalidFilter: no filter at all, or a wrong one.
            NotFound, MultipleFound: not exactly one row.
            ForeignKeyViolation: other rows refer to one of them.
        """
        conditions = await self._many("delete_where", where, filters, allow_multiple)
        await self._settle()
        if issubclass(self.model, SoftDeleteMixin) and not hard:
            return await self._update_all(conditions, {"deleted_at": utcnow()})
        if not _alone(self.model):
            rows = await self._rows(conditions, {})
            for row in rows:
                await self.session.delete(row)
            await self.flush()
            return len(rows)
        # Rows of the session learn that they are gone; else nobody has to know which.
        sync = "fetch" if self._all_in_session() else False
        statement = sql_delete(self.model).where(*conditions)
        return await self._changed(statement.execution_options(synchronize_session=sync))

    # -- transactions ----------------------------------------------------------

    async def flush(self) -> None:
        """Send what was changed through the session, for methods of your own.

        SQL: INSERT, UPDATE and DELETE of everything that waits; no COMMIT.

        Raises:
            InvalidValue, Conflict: in place of SQLAlchemy's errors, which
                `session.flush()` raises.
        """
        with translate_errors():
            await self.session.flush()

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """A step that can fail alone: `async with service.transaction(): ...`

        A savepoint within the transaction of the session; a session without one gets a
        transaction that is committed at the end. See `transactions.transaction`.
        """
        return transaction(self.session)

    # -- payloads --------------------------------------------------------------

    def _items(
        self, items: Iterable[BaseModel | Mapping[str, Any]], schema: type[BaseModel]
    ) -> _List[BaseModel]:
        """The payloads as instances of one class."""
        valid: _List[BaseModel] = []
        for place, item in enumerate(items):
            try:
                valid.append(self._valid(schema, item))
            except InvalidValue as error:
                raise InvalidValue(f"item {place}: {error}", columns=error.columns) from error
        kinds = {type(item).__name__ for item in valid}
        if len(kinds) > 1:
            raise InvalidValue(f"payloads of one class are wanted, not {', '.join(sorted(kinds))}")
        for name in type(valid[0]).model_fields if valid else ():
            if name not in mapper_of(self.model).column_attrs and any(
                name in item.model_fields_set or getattr(item, name) is not None for item in valid
            ):
                self._check_columns({name: None}, relations=False)
        return valid

    def _ruled(
        self, payloads: Sequence[BaseModel], values: Mapping[str, Any]
    ) -> tuple[Sequence[BaseModel], Mapping[str, Any]]:
        """The payloads, as rows that the model has validated where it has rules of its own."""
        if not payloads or not bulk.has_rules(self.model, type(payloads[0])):
            return payloads, values
        rows: _List[ModelT] = []
        for place, payload in enumerate(payloads):
            try:
                row = self._new(self._given(payload, defaults=True), values)
            except InvalidValue as error:
                raise InvalidValue(f"item {place}: {error}", columns=error.columns) from error
            rows.append(_with_fields_set(row, payload.model_fields_set.union(values)))
        return rows, {}

    def _payload(
        self,
        schema: type[BaseModel],
        data: BaseModel | Mapping[str, Any],
        *,
        defaults: bool = False,
    ) -> dict[str, Any]:
        """The fields that were set, validated; with `defaults` see `_given`.

        An empty change is none: fields that a client must send, such as the version, are
        not missed where the app changes `values` only.
        """
        if not defaults and isinstance(data, Mapping) and not data:
            return {}
        payload = self._given(self._valid(schema, data), defaults=defaults)
        self._check_columns(payload)
        return payload

    def _valid(self, schema: type[BaseModel], data: BaseModel | Mapping[str, Any]) -> BaseModel:
        if isinstance(data, BaseModel):
            return data
        known = _keys_of(schema)
        for key in data:
            if key not in known:
                raise InvalidValue(unknown(schema, "field", key, known))
        valid = _validated(schema, data)
        if hasattr(schema, "__table__"):
            return _with_fields_set(valid, {known[key] for key in data})
        return valid

    def _given(self, data: BaseModel, *, defaults: bool = False) -> dict[str, Any]:
        """The fields that were set.

        With `defaults` also what the payload's class fills in. A default of None says
        nothing: the model or the database fills the column then.
        """
        given = data.model_fields_set
        return {
            name: value
            for name in type(data).model_fields
            if (value := getattr(data, name)) is not None and defaults or name in given
        }

    def _check_columns(self, values: Mapping[str, Any], *, relations: bool = True) -> None:
        mapper = mapper_of(self.model)
        for name, value in values.items():
            if name not in mapper.attrs:
                raise InvalidValue(unknown(self.model, "field", name, mapper.attrs.keys()))
            if name in mapper.relationships:
                related = mapper.relationships[name].mapper.class_
                rows: Any = value if value.__class__ in {_List, tuple, set} else [value]
                right = all(row is None or isinstance(row, related) for row in rows)
                if not right or not relations:
                    raise InvalidValue(
                        f"{self.model.__name__}.{name} is a relation and takes rows: pass "
                        f"{name}=[{related.__name__}(...)] beside the payload of `create`"
                    )

    def _check_version(self, changes: Mapping[str, Any], where: str) -> None:
        if issubclass(self.model, VersionMixin) and changes.get("version") is not None:
            raise InvalidValue(
                f"{self.model.__name__}.version is counted by the layer; to "
                f"compare it, pass it {where}",
                columns=("version",),
            )

    def _new(self, payload: Mapping[str, Any], values: Mapping[str, Any]) -> ModelT:
        self._check_columns(values)
        # Not a mapping: SQLModel would take its method `items` for a relation of that name.
        row = _validated(self.model, SimpleNamespace(**{**payload, **values}))
        columns = bulk.columns_of(self.model)
        for name in payload.keys() & columns.keys():
            # An explicit None; the ORM would put the column's Python default in its place.
            if payload[name] is None and columns[name].default is not None:
                setattr(row, name, null())
        return row

    # -- rows of the session ---------------------------------------------------

    async def _settle(self) -> None:
        """Send waiting changes: SQLAlchemy 2.0 does not before statements on tables."""
        session = self.session
        if session.new or session.dirty or session.deleted:
            await self.flush()

    def _all_in_session(self) -> _List[ModelT]:
        return [row for row in self.session.identity_map.values() if isinstance(row, self.model)]

    async def _known(self, target: Any) -> ModelT | None:
        """The row of the session that the target is or names, if it has one."""
        if not isinstance(target, self.model):
            row = self._in_session(self._key(target))
            stale = row is None or self._expired(row) or self._is_gone(row)
            return None if stale else row
        if target not in self.session:  # a flush would pass over it, and change nothing
            name = self.model.__name__
            raise InvalidQuery(f"this {name} is not of this session; pass its primary key")
        if self._expired(target):  # by a rollback
            await self._reread([target])
        if self._expired(target) or self._is_gone(target):
            raise missing(self.model, [identity_of(target)])
        return target

    def _is_gone(self, row: ModelT) -> bool:
        deleted = isinstance(row, SoftDeleteMixin) and row.deleted_at is not None
        return deleted and not self._deleted

    def _expired(self, row: ModelT) -> set[str]:
        """Columns that would have to be read again."""
        return instance_state(row).expired_attributes & {*mapper_of(self.model).column_attrs.keys()}

    async def _flush(self, row: ModelT) -> None:
        await self.flush()
        # What the database computed and did not return (no RETURNING, or an UPDATE with
        # a server-side value) would be a lazy load later: fetch it now.
        if expired := self._expired(row):
            await self.session.refresh(row, attribute_names=sorted(expired))

    async def _load(self, row: ModelT, load: Load) -> None:
        """Fetch relations of a row that the session has; others that it has loaded stay."""
        if load:
            await self._by_key(identity_of(row), load, hidden=True)

    async def _reread(self, rows: Sequence[ModelT]) -> None:
        """Bring rows of the session up to date after statements that went past it.

        Relations stay loaded, but for those whose foreign key changed.
        """
        self._written(rows)
        attributes = {name: getattr(self.model, name) for name in bulk.columns_of(self.model)}
        by_key = {identity_of(row): row for row in rows}
        keys = [*by_key]
        for start in range(0, len(keys), 1_000):
            condition = tuple_(*key_of(self.model).values()).in_(keys[start : start + 1_000])
            statement = sa_select(*attributes.values()).where(condition)
            for values in await self._exec(statement):
                new = dict(zip(attributes, values, strict=True))
                row = by_key[tuple(new[name] for name in key_of(self.model))]
                changed = {name for name, value in new.items() if row.__dict__.get(name) != value}
                for name, value in new.items():
                    set_committed_value(row, name, value)
                stale = self._relations_over(row, changed)
                if stale:
                    self.session.expire(row, stale)

    def _relations_over(self, row: ModelT, columns: Iterable[str]) -> _List[str]:
        """Loaded to-one relations whose foreign key is among these columns."""
        changed = {bulk.columns_of(self.model)[name] for name in columns}
        return [
            relation.key
            for relation in mapper_of(self.model).relationships
            if relation.key in row.__dict__
            and not relation.uselist
            and changed & {*relation.local_columns}
        ]

    # -- statements ------------------------------------------------------------

    async def _returned(self, statement: Any) -> _List[ModelT]:
        """The rows of the model that a statement returns."""
        rows = sa_select(self.model).from_statement(statement)
        rows = rows.options(*self._options(()))
        written: _List[ModelT] = _List((await self._exec(rows)).scalars().all())
        self._written(written)
        return written

    def _written(self, rows: Iterable[ModelT]) -> None:
        """Let a savepoint that is rolled back expire rows that statements wrote.

        SQLAlchemy knows what a flush wrote; its own UPDATE by statement tells it the same way.
        """
        states = [instance_state(row) for row in rows]
        self.session.sync_session._register_altered(states)  # pyright: ignore[reportPrivateUsage]

    async def _update(self, target: Any, changes: dict[str, Any], load: Load = ()) -> ModelT:
        versioned = issubclass(self.model, VersionMixin)
        version = changes.pop("version", None) if versioned else None
        row = await self._known(target)
        relations = changes.keys() & mapper_of(self.model).relationships.keys()
        if row is None and changes and not relations and bulk.plain(self.model, "update"):
            return await self._update_by_key(target, changes, version, load)
        forced = row is not target  # by key: written also where the session has the same value
        row = row or await self.get(target)
        if version is not None and cast(Any, row).version != version:
            raise self._stale([target])
        unloaded = relations - row.__dict__.keys()
        if unloaded:  # the ORM compares with what was there
            await self.session.refresh(row, attribute_names=sorted(unloaded))
        _set(row, changes)
        columns = changes.keys() & bulk.columns_of(self.model).keys()
        for name in columns if forced else ():
            flag_modified(row, name)
        stale = self._relations_over(row, columns)
        await self._flush(row)
        await self._load(row, [*stale, *paths_of(load)])
        return row

    async def _update_by_key(
        self, pk: Any, changes: Mapping[str, Any], version: int | None, load: Load
    ) -> ModelT:
        await self._settle()
        columns = bulk.columns_of(self.model)
        values = {columns[name]: value for name, value in changes.items()}
        where = [*self._is_row(pk), *alive(self.model, self._deleted)]
        if issubclass(self.model, VersionMixin):
            values[columns["version"]] = columns["version"] + 1
            if version is not None:
                where.append(columns["version"] == version)
        statement = sql_update(bulk.table_of(self.model)).where(*where).values(values)
        returns = self.session.get_bind().dialect.update_returning
        if returns and not load:
            rows = await self._returned(statement.returning(*columns.values()))
            if rows:
                return rows[0]
        elif (await self._exec(statement)).rowcount:
            row = await self._by_key(self._key(pk), load, hidden=True)
            if row is not None:
                return row
        if version is not None and await self.exists(*self._is_row(pk)):
            raise self._stale([pk])
        raise missing(self.model, [pk])

    def _stale(self, keys: Sequence[Any]) -> StaleData:
        name = self.model.__name__
        listed = ", ".join(map(repr, keys[:10]))
        return StaleData(f"{name} was changed by another transaction: {listed}.")

    async def _insert(self, dialect: Dialect, rows: bulk.Rows, returning: bool) -> _List[ModelT]:
        """Insert rows of one shape; in their order, if they are wanted back."""
        table = bulk.table_of(self.model)
        keys = key_of(self.model)
        given = keys.keys() <= {*rows.names}
        counted = len(keys) == 1 and table.autoincrement_column is not None
        if not bulk.can_insert(dialect, self.model, rows) or (
            returning and not given and not counted
        ):
            statement: Any = sql_insert(self.model)
            if returning:
                statement = statement.returning(self.model, sort_by_parameter_order=True)
            result = await self._exec(
                statement, params=rows.mappings(), execution_options={"render_nulls": True}
            )
            return _List(result.scalars().all()) if returning else []
        statement = bulk.insert_from(dialect, self.model, rows)
        if not returning:
            await self._exec(statement)
            return []
        made = await self._returned(statement.returning(*table.columns))
        by_key = {identity_of(row): row for row in made}
        if not given:  # numbered in the order of the rows
            return [by_key[key] for key in sorted(by_key)]
        values = dict(zip(rows.names, rows.values, strict=True))
        return [by_key[key] for key in zip(*(values[name] for name in keys), strict=True)]

    async def _upsert(
        self, dialect: Dialect, key: bulk.Key, rows: bulk.Rows, returning: bool
    ) -> _List[ModelT]:
        if bulk.can_insert(dialect, self.model, rows):
            statements = [bulk.insert_from(dialect, self.model, rows)]
        else:
            statements = [bulk.insert_one(dialect, self.model, row) for row in rows.mappings()]
        columns = bulk.columns_of(self.model).values()
        mysql_like = dialect.name in {"mysql", "mariadb"}
        made: _List[ModelT] = []
        for statement in statements:
            full = bulk.on_conflict_update(dialect, self.model, statement, key, rows.given)
            if mysql_like or not returning:
                await self._exec(full)
            else:
                made += await self._returned(full.returning(*columns))
        if not mysql_like and not returning:
            return []
        values = dict(zip(rows.names, rows.values, strict=True))
        keys = [*zip(*(values[name] for name in key.names), strict=True)]
        by_key = {tuple(getattr(row, name) for name in key.names): row for row in made}
        if len(by_key) == len(keys) and all(each in by_key for each in keys):
            return [by_key[each] for each in keys]
        # No RETURNING; or the database takes other values than Python for the same.
        made = await self._returned(bulk.keyed(dialect, self.model, key, rows))
        if len(made) != len(keys):
            raise UniqueViolation(
                f"Another unique key of {self.model.__name__} is taken than "
                f"({', '.join(key.names)}).",
                table=bulk.table_of(self.model).name,
            )
        return made

    async def _update_rows(
        self,
        dialect: Dialect,
        keys: Sequence[tuple[Any, ...]],
        columns: Mapping[str, Sequence[Any]],
        constants: Mapping[str, Any],
    ) -> int:
        """Change rows that get the same fields; returns how many there were."""
        model, key_names = self.model, [*key_of(self.model)]
        repeated = {*key_names} & {*columns, *constants}
        if repeated:
            listed = ", ".join(sorted(repeated))
            raise InvalidValue(f"update_multi cannot change the primary key: {listed}")
        names, values = [*key_names, *columns], [*zip(*keys, strict=True), *columns.values()]
        table = bulk.columns_of(model)
        version = {"version"} if issubclass(model, VersionMixin) else set[str]()
        if (
            {*columns, *constants} - version
            and bulk.plain(model, "update")
            and bulk.carries(dialect, [table[name] for name in names])
            and bulk.fits(dialect, values)
        ):
            where = alive(model, self._deleted)
            statement = bulk.update_from(dialect, model, names, values, constants, where)
            return int((await self._exec(statement)).rowcount)
        rows = {identity_of(row): row for row in await self.get_by_ids(keys, strict=False)}
        for place, key in enumerate(keys):
            if key in rows:
                changes = {name: columns[name][place] for name in columns}
                await self._update(rows[key], {**changes, **constants})
        return len(rows)

    async def _many(
        self, method: str, where: Sequence[Where], filters: Mapping[str, Any], multiple: bool
    ) -> _List[Any]:
        """The conditions of a method that changes many rows."""
        if not where and not filters:
            raise InvalidFilter(
                f"{method} needs a filter; to mean every row, pass sqlalchemy.true()"
            )
        conditions = self._conditions(where, filters)
        if multiple:
            return conditions
        keys = sa_select(*key_of(self.model).values()).where(*conditions).limit(2)
        rows: _List[Any] = (await self._exec(keys.with_for_update(of=self.model))).all()
        if not rows:
            listed = ", ".join(filters) or "no row matches"
            raise NotFound(f"{self.model.__name__} not found: {listed}")
        if len(rows) > 1:
            raise MultipleFound(
                f"several rows of {self.model.__name__} match; pass allow_multiple=True to "
                "mean all of them"
            )
        return [*conditions, *self._is_row(tuple(rows[0]))]

    async def _update_all(self, conditions: Sequence[Any], changes: Mapping[str, Any]) -> int:
        values = dict(changes)
        if issubclass(self.model, VersionMixin):
            values["version"] = bulk.columns_of(self.model)["version"] + 1
        known = self._all_in_session()
        statement = sql_update(self.model).where(*conditions).values(values)
        changed = await self._changed(statement.execution_options(synchronize_session=False))
        await self._reread(known)
        return changed

    async def _changed(self, statement: Any) -> int:
        """How many rows an UPDATE or DELETE has changed."""
        result = await self._exec(statement)
        if result.rowcount >= 0:
            return int(result.rowcount)
        # sqlite3 does not count for a statement that begins with WITH; SQLite does.
        connection = await self.session.connection()
        return int((await connection.execute(text("SELECT changes()"))).scalar_one())


def _set(row: SQLModel, changes: Mapping[str, Any]) -> None:
    row.sqlmodel_update({**changes})
    for name in changes.keys() & mapper_of(type(row)).relationships.keys():
        setattr(row, name, changes[name])


@cached
def _alone(model: type[SQLModel]) -> bool:
    """Whether a DELETE statement does all that the ORM would: no cascades, no hooks."""
    return bulk.plain(model, "delete") and all(
        relation.viewonly
        or relation.passive_deletes == "all"
        or (relation.direction is RelationshipDirection.MANYTOONE and not relation.cascade.delete)
        for relation in mapper_of(model).relationships
    )


@cached
def _keys_of(schema: type[BaseModel]) -> Mapping[str, str]:
    """The keys that a mapping may have, names of fields and their aliases -> that name."""
    return {
        key: name
        for name, field in schema.model_fields.items()
        for key in (field.alias, field.validation_alias, name)
        if isinstance(key, str)
    }


def _with_fields_set(row: SchemaT, names: set[str]) -> SchemaT:
    """A row of which only these fields were set; SQLModel says it of all of them."""
    object.__setattr__(row, "__pydantic_fields_set__", names)
    return row


def _validated(schema: type[SchemaT], data: object) -> SchemaT:
    try:
        if isinstance(data, Mapping) and not hasattr(schema, "__table__"):
            # What SQLModel.model_validate does for such a class, at a fifth of its cost.
            made: SchemaT = schema.__new__(schema)
            schema.__pydantic_validator__.validate_python(data, self_instance=made)
            return made
        return schema.model_validate(data, from_attributes=True)
    except ValidationError as error:
        # Names and rules only: the values may be secrets.
        found = error.errors(include_input=False, include_url=False)
        fields = tuple(".".join(str(part) for part in each["loc"]) for each in found)
        rules = [f"{name}: {each['msg']}" for name, each in zip(fields, found, strict=True)]
        message = f"{schema.__name__} is not valid: {'; '.join(rules)}"
        raise InvalidValue(message, columns=fields) from error
