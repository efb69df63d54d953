"""Units of work: a savepoint inside a transaction, and retries of a whole one."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar, cast

from sqlalchemy import event, select, tuple_
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlmodel.ext.asyncio.session import AsyncSession

from .errors import ServiceError, TransientError, translate_errors

ResultT = TypeVar("ResultT")

# Rows of the session, each with the names of its loaded relations.
_Loaded = list[tuple[object, list[str]]]


@asynccontextmanager
async def transaction(session: AsyncSession) -> AsyncGenerator[None]:
    """All of the block, or nothing of it.

    Inside a transaction, as in `Database.session()`, the block is a savepoint: when it
    raises, its changes are undone, and the transaction goes on. Rows of the session that
    it changed are read again, with their loaded relations; a row that is gone is not.
    Outside of one, the block is a transaction that commits at the end.

        try:
            async with transaction(session):
                await heroes.create(data)
        except UniqueViolation:
            hero = await heroes.get(name=data.name)

    Args:
        session: the unit of work. Changes that wait in it are flushed first.

    SQL: SAVEPOINT at the first statement, then RELEASE; or ROLLBACK TO SAVEPOINT and one
    SELECT per class of changed rows, and one per loaded relation of such a row. Outside of
    a transaction BEGIN and COMMIT or ROLLBACK.

    Raises:
        ServiceError: in place of the database's errors. After `TransientError` or
            `Unavailable` the transaction outside may be lost as well: let them pass.
    """
    with translate_errors():
        if not session.in_transaction():
            async with session.begin():
                yield
            return
        loaded: _Loaded = []
        seen = {_state(row) for row in session if _state(row).expired}
        failure: BaseException | None = None
        with _remembering(session, loaded, seen):
            try:
                async with session.begin_nested():  # flushes at its end, still inside
                    try:
                        yield
                    except BaseException as error:
                        failure = error
                        raise
            except BaseException:
                if session.in_transaction():
                    # The connection may be lost, and then there is nothing to read from.
                    with suppress(SQLAlchemyError, ServiceError):
                        await session.run_sync(_read_again, loaded, seen)
                # Not what ROLLBACK TO SAVEPOINT says of a transaction that is gone.
                if failure is not None:
                    raise failure
                raise


@contextmanager
def _remembering(
    session: AsyncSession, loaded: _Loaded, seen: set[InstanceState[Any]]
) -> Generator[None]:
    """Note what the session has to read again after a rollback.

    Args:
        session: where the block works.
        loaded: gets what the session holds at a rollback, before SQLAlchemy expires it.
        seen: gets what the block reads: it may have seen changes that are gone then.
    """

    def remember(sync_session: Session) -> None:
        loaded[:] = [(row, _loaded_relations(_state(row))) for row in sync_session]

    def see(_session: Session, row: object) -> None:
        seen.add(_state(row))

    event.listen(session.sync_session, "after_rollback", remember)
    event.listen(session.sync_session, "loaded_as_persistent", see)
    try:
        yield
    finally:
        event.remove(session.sync_session, "after_rollback", remember)
        event.remove(session.sync_session, "loaded_as_persistent", see)


def _read_again(session: Session, loaded: _Loaded, seen: set[InstanceState[Any]]) -> None:
    """Load what is expired: reading it would be a lazy load, which asyncio cannot do."""
    for row, _ in loaded:
        if _state(row) in seen and row in session:
            session.expire(row)
    expired = [(row, relations) for row, relations in loaded if _state(row).expired]
    by_mapper: dict[Mapper[Any], list[tuple[Any, ...]]] = {}
    for row, _ in expired:
        by_mapper.setdefault(_state(row).mapper, []).append(_state(row).identity or ())
    for mapper, keys in by_mapper.items():
        for start in range(0, len(keys), _BATCH):
            key = tuple_(*mapper.primary_key)
            session.scalars(select(mapper).where(key.in_(keys[start : start + _BATCH]))).all()
    for row, relations in expired:
        for name in relations if not _state(row).expired else ():  # expired still: it is gone
            with suppress(InvalidRequestError):  # a relation that refuses lazy loads
                getattr(row, name)


_BATCH = 500  # keys in one SELECT


def _state(row: object) -> InstanceState[Any]:
    return cast(InstanceState[Any], sa_inspect(row))


def _loaded_relations(state: InstanceState[Any]) -> list[str]:
    return [each.key for each in state.mapper.relationships if each.key in state.dict]


async def run_transaction(
    begin: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    callback: Callable[[AsyncSession], Awaitable[ResultT]],
    *,
    attempts: int = 5,
) -> ResultT:
    """`Database.run_transaction`, for sessions of your own.

    Args:
        begin: opens a session whose transaction ends with its block: `database.session`.
        callback, attempts: as there.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be 1 or more, not {attempts}")
    for attempt in range(attempts - 1):
        try:
            async with begin() as session:
                return await callback(session)
        except TransientError:
            await asyncio.sleep(pause(attempt))
    async with begin() as session:
        return await callback(session)


def pause(attempt: int) -> float:
    """Seconds before the next attempt: twice as long each time, and not the same for all."""
    longest = min(0.02 * 2**attempt, 1.0)
    return random.uniform(longest / 2, longest)
