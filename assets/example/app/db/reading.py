"""The reading half of a service: one row, lists, pages, counts, streams."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

from sqlalchemy import Row, any_, bindparam, tuple_
from sqlalchemy import exists as sa_exists
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute, raiseload
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from .aggregates import aggregate_statement
from .base import SoftDeleteMixin
from .errors import InvalidQuery, MultipleFound, NotFound, translate_errors
from .filters import Condition, Filter, Where, build_filters
from .loading import Load, build_load, needs_unique, paths_of
from .mapping import attribute_of, cached, check_type, is_expression, mapper_of
from .paging import (
    CursorPage,
    Keyset,
    OrderBy,
    Page,
    build_order,
    check_count,
    check_slice,
    count_statement,
    known_total,
)

ModelT = TypeVar("ModelT", bound=SQLModel)

Lock = Literal["update", "share", "nowait", "skip_locked"]
_LOCKS: dict[str, dict[str, bool]] = {
    "update": {},
    "share": {"read": True},
    "nowait": {"nowait": True},
    "skip_locked": {"skip_locked": True},
}

# `list` is a method below; inside the class the name means the method.
_List = list


class ReadService(Generic[ModelT]):
    """Read rows of one model, through one session. `ServiceBase` adds writing to it.

    Filters: `field=value`, `field__op=value` (see `filters.OPERATORS`),
    `relation__field__op=value`; as positional arguments `and_()`, `or_()`, `not_()` and
    SQLAlchemy expressions. All of them must hold. `load` names relations to fetch:
    `load=("team", "tags.heroes")`.

    Attributes:
        model: the `table=True` class.
        raiseload: make reading a relation that was not loaded an error that names it, in
            place of MissingGreenlet. Set it in tests: `ReadService.raiseload = True`. Holds
            for rows that a SELECT or RETURNING made, not for those that `create` made.
        client_filters: filters that an HTTP client may use, e.g. `"name__icontains"`.
        client_sorts: fields that an HTTP client may sort by.
    """

    model: type[ModelT]
    raiseload: ClassVar[bool] = False
    client_filters: ClassVar[Sequence[str]] = ()
    client_sorts: ClassVar[Sequence[str]] = ()

    _deleted = False

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    def with_deleted(self) -> Self:
        """The same service, which also sees rows that were soft-deleted."""
        service = copy(self)
        service._deleted = True
        return service

    async def get(
        self,
        pk: Any = None,
        /,
        *where: Where,
        load: Load = (),
        lock: Lock | None = None,
        **filters: Any,
    ) -> ModelT:
        """The one row with this primary key, or that these filters single out.

        Args:
            pk: primary key; a tuple, in column order, where it has several columns.
            where: `and_()`, `or_()`, `not_()` and SQLAlchemy conditions.
            load: relations to fetch along.
            lock: "update" and "share" wait for the row, "nowait" raises when another
                transaction holds it, "skip_locked" does not find it then. The row is read
                anew, and relations that were loaded before are forgotten: name them in
                `load`. SQLite has no row locks and needs none: its writers take turns.
            filters: `field__op=value`.

        SQL: one SELECT (FOR UPDATE), and one more per to-many relation in `load`.

        Raises:
            NotFound: no such row.
            MultipleFound: the filters match several rows.
            InvalidQuery: unknown field, operator or relation; or nothing to search by.
            TransientError: the lock was not free.
        """
        row = await self.get_or_none(pk, *where, load=load, lock=lock, **filters)
        if row is None:
            key = ", ".join(filters) if pk is None or _is_condition(pk) else repr(pk)
            raise NotFound(f"{self.model.__name__} not found: {key or 'no row matches'}")
        return row

    async def get_or_none(
        self,
        pk: Any = None,
        /,
        *where: Where,
        load: Load = (),
        lock: Lock | None = None,
        **filters: Any,
    ) -> ModelT | None:
        """Like `get`, with None where no row matches."""
        if pk is None and not where and not filters:
            raise InvalidQuery("get needs a primary key or a filter")
        if pk is None or _is_condition(pk):  # `get(Hero.age > 3)`: one more condition, no key
            conditions = where if pk is None else (pk, *where)
            rows = await self._rows(conditions, filters, load=load, lock=lock, limit=2)
        elif where or filters:
            conditions = (*where, *self._is_row(pk))
            rows = await self._rows(conditions, filters, load=load, lock=lock, limit=2)
        else:
            return await self._by_key(self._key(pk), load, lock)
        if len(rows) > 1:
            raise MultipleFound(f"several rows of {self.model.__name__} match")
        return rows[0] if rows else None

    async def get_by_ids(
        self, pks: Iterable[Any], *, load: Load = (), strict: bool = True
    ) -> _List[ModelT]:
        """The rows with these primary keys, in this order; a key that comes twice, twice.

        Args:
            pks: primary keys; tuples where the key has several columns.
            load: relations to fetch along.
            strict: an unknown key is an error; else it is left out.

        SQL: one SELECT (PostgreSQL: `= ANY(array)`; elsewhere IN, one per 10,000 keys; one per
        500 keys of several columns).

        Raises:
            NotFound: with the unknown keys in `.keys`.
        """
        pks = _List(pks)
        wanted = _List(zip(self._keys(pks), pks, strict=True))
        rows = await self._by_keys([*dict(wanted)], load)
        found = {identity_of(row): row for row in rows}
        unknown = {key: pk for key, pk in wanted if key not in found}
        if unknown and strict:
            raise missing(self.model, [*unknown.values()])
        return [found[key] for key, _ in wanted if key in found]

    async def list(
        self,
        *where: Where,
        order_by: OrderBy = (),
        limit: int | None = None,
        offset: int = 0,
        load: Load = (),
        lock: Lock | None = None,
        **filters: Any,
    ) -> _List[ModelT]:
        """Rows that match, in a stable order.

        Args:
            where: `and_()`, `or_()`, `not_()` and SQLAlchemy conditions.
            order_by: `"name"`, `"-age"`, `"team__name"`, `"age__nulls_first"` or
                expressions; the primary key is added last, in the direction of the last key.
                NULL is the largest value.
            limit: at most this many rows; None for all of them.
            offset: rows to skip.
            load: relations to fetch along.
            lock: as for `get`.
            filters: `field__op=value`.

        SQL: one SELECT, and one more per to-many relation in `load`.

        Raises:
            InvalidQuery: unknown field, operator, relation or sort key; negative limit.
            TransientError: a lock was not free.
        """
        check_slice(limit, offset)
        return await self._rows(
            where, filters, order_by=order_by, limit=limit, offset=offset, load=load, lock=lock
        )

    async def get_multi(
        self,
        *where: Where,
        order_by: OrderBy = (),
        limit: int | None = None,
        offset: int = 0,
        load: Load = (),
        lock: Lock | None = None,
        **filters: Any,
    ) -> _List[ModelT]:
        """The same as `list`, under the name that other libraries use."""
        return await self.list(
            *where,
            order_by=order_by,
            limit=limit,
            offset=offset,
            load=load,
            lock=lock,
            **filters,
        )

    async def page(
        self,
        *where: Where,
        order_by: OrderBy = (),
        limit: int = 50,
        offset: int = 0,
        load: Load = (),
        total: bool | int = True,
        **filters: Any,
    ) -> Page[ModelT]:
        """A slice of `list`, with the total, which is right past the last page too.

        Args:
            where: as for `list`.
            order_by: as for `list`.
            limit: rows of the page, from 1 on.
            offset: rows to skip.
            load: relations to fetch along.
            total: True counts all rows that match, False none; a number counts up to it,
                and `total` of the page means "at least" when it has that value.
            filters: `field__op=value`.

        SQL: one SELECT, and one more per to-many relation in `load`; one SELECT count(*)
        with the same WHERE, unless the page is the last one and so tells the total.
        """
        check_slice(limit, offset)
        if not isinstance(total, bool):
            check_count("total", total)
        more = total is not True  # an exact total tells whether there is more
        rows = await self._rows(
            where, filters, order_by=order_by, limit=limit + more, offset=offset, load=load
        )
        items, has_more = rows[:limit], len(rows) > limit
        if total is False:
            return Page(items, None, limit, offset, has_more)
        number = known_total(offset, limit + more, len(rows))
        if number is None:
            statement = count_statement(
                self.model, self._conditions(where, filters), None if total is True else total
            )
            number = int((await self._exec(statement)).one())
        if total is True:
            has_more = offset + len(items) < number
        else:
            number = min(number, total)
        return Page(items, number, limit, offset, has_more)

    async def cursor_page(
        self,
        *where: Where,
        order_by: OrderBy = (),
        limit: int = 50,
        cursor: str | None = None,
        load: Load = (),
        **filters: Any,
    ) -> CursorPage[ModelT]:
        """A page that begins where another one ended: as fast at the end as at the start.

        Args:
            where: as for `list`.
            order_by: names, as for `list`; no expressions.
            limit: rows of the page, from 1 on.
            cursor: `next_cursor` or `previous_cursor` of another page of this list; None
                for the first page.
            load: relations to fetch along.
            filters: `field__op=value`.

        SQL: one SELECT, and one more per to-many relation in `load`.

        Raises:
            InvalidCursor: not a cursor of this model and this order.
        """
        keyset = Keyset(self.model, order_by, limit=limit, cursor=cursor, deleted=self._deleted)
        statement = keyset.statement()
        if conditions := self._conditions(where, filters):
            statement = statement.where(*conditions)
        if options := self._options(load):
            statement = statement.options(*options)
        result = await self._exec(statement, params=keyset.parameters)
        if needs_unique(self.model, load):
            result = result.unique()
        return keyset.page(result.all())

    async def count(self, *where: Where, **filters: Any) -> int:
        """The number of rows that match.

        SQL: one SELECT count(*).
        """
        statement = count_statement(self.model, self._conditions(where, filters))
        return int((await self._exec(statement)).one())

    async def exists(self, *where: Where, **filters: Any) -> bool:
        """Whether a row matches. SQL: one SELECT EXISTS (...)."""
        inner = sa_exists().select_from(self.model).where(*self._conditions(where, filters))
        return bool((await self._exec(select(inner))).one())

    async def aggregate(
        self,
        measures: Mapping[str, str],
        /,
        *where: Where,
        group_by: str | Sequence[str] = (),
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        **filters: Any,
    ) -> _List[Row[Any]]:
        """Measures of the rows that match, by group.

            await service.aggregate(
                {"heroes": "count", "best": "max:power"}, group_by="team__name",
                order_by="-heroes",
            )

        Args:
            measures: by name: "count" (of rows), or a function of `aggregates.FUNCTIONS`
                with a field, as in "avg:power" and "sum:team__budget".
            where: as for `list`.
            group_by: fields, also of to-one relations; None is a group of its own. Without
                it there is one row.
            order_by: names of groups and measures, with "-" for descending; the groups are
                added last. NULL is the largest value.
            limit: at most this many groups.
            filters: `field__op=value`; they choose rows, not groups.

        Returns:
            Rows with the groups and measures as attributes: `row.team__name`, `row.best`.

        SQL: one SELECT ... GROUP BY.

        Raises:
            InvalidQuery: unknown field, measure or sort key; a type that cannot be measured.
        """
        check_slice(limit)
        statement = aggregate_statement(
            self.model,
            measures,
            self._conditions(where, filters),
            group_by=group_by,
            order_by=order_by,
            limit=limit,
            deleted=self._deleted,
        )
        return _List(await self._exec(statement))

    async def stream(
        self,
        *where: Where,
        order_by: OrderBy = (),
        batch_size: int = 1_000,
        load: Load = (),
        **filters: Any,
    ) -> AsyncGenerator[_List[ModelT]]:
        """All rows that match, in batches: the memory of one batch, however many there are.

            async for heroes in service.stream(power__gte=3):
                for hero in heroes: ...

        Args:
            where: as for `list`.
            order_by: as for `list`; on MySQL and MariaDB names only.
            batch_size: rows of a batch, from 1 on.
            load: relations to fetch along, for each batch.
            filters: `field__op=value`.

        In a response: with a `StreamSessionDep`, never in a session block around a `yield` to
        the client, which keeps its connection when the client goes away.

        SQL: one SELECT through a server-side cursor, which a commit in between ends (an error
        of the driver on PostgreSQL); on
        MySQL and MariaDB, where such a cursor keeps the connection from all else, one
        keyset SELECT per batch. One more per batch and to-many relation in `load`.
        """
        check_count("batch_size", batch_size, least=1)
        if self._dialect in {"mysql", "mariadb"}:
            cursor: str | None = None
            while True:
                page = await self.cursor_page(
                    *where,
                    order_by=order_by,
                    limit=batch_size,
                    cursor=cursor,
                    load=load,
                    **filters,
                )
                if page.items:
                    yield page.items
                cursor = page.next_cursor
                if cursor is None:
                    return
        statement = self._select(where, filters, load)
        statement = statement.order_by(*build_order(self.model, order_by, deleted=self._deleted))
        with translate_errors():
            result = await self.session.stream_scalars(
                statement, execution_options={"yield_per": batch_size}
            )
            try:
                async for batch in result.partitions():
                    yield _List(batch)
            finally:
                await result.close()

    # -- pieces ----------------------------------------------------------------

    @property
    def _dialect(self) -> str:
        return self.session.get_bind().dialect.name

    async def _exec(self, statement: Any, **arguments: Any) -> Any:
        # Errors of a read: a value that the driver refuses; and, through autoflush, the
        # constraint errors of earlier changes.
        session: Any = self.session
        with translate_errors():
            return await session.exec(statement, **arguments)

    def _conditions(self, where: Iterable[Where], filters: Mapping[str, Any]) -> _List[Condition]:
        conditions = build_filters(self.model, filters, where, deleted=self._deleted)
        return [*conditions, *alive(self.model, self._deleted)]

    def _select(
        self, where: Iterable[Where], filters: Mapping[str, Any], load: Load
    ) -> SelectOfScalar[ModelT]:
        statement = select(self.model)
        if conditions := self._conditions(where, filters):
            statement = statement.where(*conditions)
        if options := self._options(load):
            statement = statement.options(*options)
        return statement

    def _options(self, load: Load) -> Sequence[ExecutableOption]:
        return _options(self.model, load, self._deleted, self.raiseload)

    async def _rows(
        self,
        where: Iterable[Where],
        filters: Mapping[str, Any],
        *,
        order_by: OrderBy | None = None,
        limit: int | None = None,
        offset: int = 0,
        load: Load = (),
        lock: Lock | None = None,
    ) -> _List[ModelT]:
        statement = self._select(where, filters, load)
        if order_by is not None:
            statement = statement.order_by(
                *build_order(self.model, order_by, deleted=self._deleted)
            )
        if limit is not None:
            statement = statement.limit(limit)
        if offset:
            statement = statement.offset(offset)
        if lock is not None:
            statement = _locked(self.model, statement, lock)
        result = await self._exec(statement)
        if needs_unique(self.model, load):
            result = result.unique()
        return _List(result.all())

    async def _by_key(
        self,
        key: tuple[Any, ...],
        load: Load = (),
        lock: Lock | None = None,
        *,
        hidden: bool = False,
    ) -> ModelT | None:
        """The row with this key; with `hidden` also one that was soft-deleted."""
        known = self._in_session(key) if load else None
        if known is not None:
            await self._forget(known, load)
        arguments = (self.model, lock, self._deleted, hidden, self.raiseload)
        names: tuple[Any, ...] = tuple(paths_of(load))
        if all(isinstance(name, str) for name in names):
            statement = _cached_by_key(names, *arguments)
        else:
            statement = _select_by_key(load, *arguments)
        result = await self._exec(statement, params=dict(zip(key_of(self.model), key, strict=True)))
        if needs_unique(self.model, load):
            result = result.unique()
        row: ModelT | None = result.first()
        return row

    async def _forget(self, row: ModelT, load: Load) -> None:
        """Let the relations that `load` names be fetched anew; those of a row of the session.

        An eager load passes over what is loaded, and the other side may have changed.
        """
        named = {
            path.partition(".")[0] if isinstance(path, str) else getattr(path, "key", None)
            for path in paths_of(load)
        }
        loaded = [
            name
            for name in mapper_of(self.model).relationships.keys()  # noqa: SIM118
            if name in named and name in row.__dict__
        ]
        if loaded:
            with translate_errors():
                await self.session.flush()  # expire() drops what was not sent
            self.session.expire(row, loaded)

    def _in_session(self, key: tuple[Any, ...]) -> ModelT | None:
        identity = mapper_of(self.model).identity_key_from_primary_key(key)
        return cast(ModelT | None, self.session.identity_map.get(identity))

    async def _by_keys(self, keys: Sequence[tuple[Any, ...]], load: Load = ()) -> _List[ModelT]:
        """The rows with these keys, in any order."""
        columns = [*key_of(self.model).values()]
        # Each pair is a branch of the condition, and servers limit how deep one may be.
        size = 500 if len(columns) > 1 else 10_000
        if self._dialect == "postgresql" and len(columns) == 1:
            size = len(keys)
        rows: _List[ModelT] = []
        for start in range(0, len(keys), size or 1):
            part = keys[start : start + size]
            if len(columns) > 1:
                condition: Any = tuple_(*columns).in_(part)
            elif self._dialect == "postgresql":
                array = bindparam(None, [key[0] for key in part], ARRAY(columns[0].type))
                condition = columns[0] == any_(array)
            else:
                condition = columns[0].in_([key[0] for key in part])
            rows += await self._rows([condition], {}, load=load)
        return rows

    def _key(self, pk: Any) -> tuple[Any, ...]:
        """The values of a primary key.

        Raises:
            InvalidQuery: wrong number of values, or a value of a wrong type.
        """
        return self._keys([pk])[0]

    def _keys(self, pks: Iterable[Any]) -> _List[tuple[Any, ...]]:
        attributes = key_of(self.model)
        keys: _List[tuple[Any, ...]] = [pk if pk.__class__ is tuple else (pk,) for pk in pks]
        for key in keys:
            if len(key) != len(attributes):
                wanted = ", ".join(attributes)
                given = key if len(key) != 1 else key[0]
                raise InvalidQuery(
                    f"the primary key of {self.model.__name__} is ({wanted}): {given!r}"
                )
        for (name, attribute), values in zip(
            attributes.items(), zip(*keys, strict=True), strict=False
        ):
            # One value of each type: they are many, and the types are few.
            for value in {value.__class__: value for value in values}.values():
                try:
                    check_type(attribute, value)
                except InvalidQuery as error:
                    raise InvalidQuery(f"{name}: eq {error}") from None
        return keys

    def _is_row(self, pk: Any) -> _List[Condition]:
        attributes = key_of(self.model).values()
        return [attr == value for attr, value in zip(attributes, self._key(pk), strict=True)]


def _is_condition(value: Any) -> bool:
    return isinstance(value, Filter) or is_expression(value)


def alive(model: type[SQLModel], deleted: bool) -> Sequence[Condition]:
    if deleted or not issubclass(model, SoftDeleteMixin):
        return ()
    return (attribute_of(model, "deleted_at").is_(None),)


def _options(
    model: type[SQLModel], load: Load, deleted: bool, raising: bool
) -> Sequence[ExecutableOption]:
    options = build_load(model, load, deleted=deleted)
    return [*options, raiseload("*")] if raising else options


@cached
def key_of(model: type[SQLModel]) -> dict[str, InstrumentedAttribute[Any]]:
    """The attributes of the primary key, in column order."""
    mapper = mapper_of(model)
    names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    return {name: attribute_of(model, name) for name in names}


def _select_by_key(
    load: Load, model: type[ModelT], lock: Lock | None, deleted: bool, hidden: bool, raising: bool
) -> SelectOfScalar[ModelT]:
    key = [column == bindparam(name, type_=column.type) for name, column in key_of(model).items()]
    statement = select(model).where(*key, *alive(model, deleted or hidden))
    statement = statement.options(*_options(model, load, deleted, raising))
    return statement if lock is None else _locked(model, statement, lock)


# Built once: what a call costs is the parameters.
_cached_by_key = cached(_select_by_key)


def _locked(
    model: type[SQLModel], statement: SelectOfScalar[Any], lock: str
) -> SelectOfScalar[Any]:
    if lock not in _LOCKS:
        raise InvalidQuery(f"lock: {lock!r} is none of {', '.join(_LOCKS)}")
    # OF: PostgreSQL cannot lock what an eager load joins. The row as it is now, not as
    # the session knows it: others may have changed it before the lock was free.
    statement = statement.with_for_update(of=model, **_LOCKS[lock])
    return statement.execution_options(populate_existing=True)


def identity_of(row: SQLModel) -> tuple[Any, ...]:
    """The primary key of a row of a session; also of one that has to be read again."""
    state = instance_state(row)
    return tuple(state.identity or mapper_of(type(row)).primary_key_from_instance(row))


def missing(model: type[SQLModel], keys: Sequence[Any]) -> NotFound:
    single = len(key_of(model)) == 1
    keys = [key[0] if single and isinstance(key, tuple) else key for key in keys]
    listed = ", ".join(repr(key) for key in keys[:10])
    more = f" and {len(keys) - 10} more" if len(keys) > 10 else ""
    return NotFound(f"{model.__name__} not found: {listed}{more}", keys)
