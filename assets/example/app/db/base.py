"""What every model of the project shares: constraint names and timestamps.

Import this module before the first `table=True` class (importing anything from this
package does): names are given to constraints when the class is created.
"""

from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Connection, Dialect, MetaData, event, inspect
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.orm import InstanceState, Mapper, declared_attr
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, SQLModel, UTCDateTime

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""The same constraint names on every database, so that migrations can drop what they
created and errors can say which rule was broken (SQLAlchemy docs, "Configuring
Constraint Naming Conventions")."""

SQLModel.metadata.naming_convention = NAMING_CONVENTION


def check_tables(metadata: MetaData) -> None:
    """Refuse to create or migrate what was not imported, or cannot be migrated later.

    Raises:
        RuntimeError: no model was imported, or models were defined before this package was
            imported and so have unnamed constraints.
    """
    if not metadata.tables:
        raise RuntimeError("no tables: import the modules that define table=True models")
    unnamed = sorted(
        table.name
        for table in metadata.tables.values()
        if any(constraint.name is None for constraint in table.constraints)
    )
    if unnamed:
        raise RuntimeError(
            f"unnamed constraints on {', '.join(unnamed)}: import this package before "
            "the models, and name each CheckConstraint"
        )


class Timestamp(UTCDateTime):
    """`UTCDateTime` that keeps microseconds on MySQL and MariaDB.

    SQLModel's type becomes DATETIME there, which drops them: the value in memory and
    the value in the table differ, and paging by it misses rows. DDL: `DATETIME(6)` on
    MySQL and MariaDB, `TIMESTAMP WITH TIME ZONE` on PostgreSQL, `DATETIME` on SQLite.
    """

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(DATETIME(fsp=6))
        return super().load_dialect_impl(dialect)


def utcnow() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


class TimestampMixin(SQLModel):
    """`created_at` and `updated_at`, aware, in UTC, set by Python.

    Python values need no second round trip after a write; a server-side `onupdate`
    would be expired by every UPDATE and raise MissingGreenlet when read. `onupdate` is
    for UPDATE statements; rows that a flush changes get theirs from `_touch`.
    """

    created_at: datetime = Field(default_factory=utcnow, sa_type=Timestamp)
    updated_at: datetime = Field(
        default_factory=utcnow, sa_type=Timestamp, sa_column_kwargs={"onupdate": utcnow}
    )


@event.listens_for(TimestampMixin, "before_update", propagate=True)
def _touch(_mapper: Mapper[Any], _connection: Connection, row: TimestampMixin) -> None:
    # When one flush changes several rows, SQLAlchemy gives all of them the first row's
    # `onupdate` value in memory, and each its own in the table.
    state = cast(InstanceState[Any], inspect(row))
    changed = state.session is not None and state.session.is_modified(
        row, include_collections=False
    )
    if changed and not state.attrs.updated_at.history.has_changes():
        row.updated_at = utcnow()


class SoftDeleteMixin(SQLModel):
    """`deleted_at`: when the row was deleted; None for a row that is there.

    `ServiceBase` deletes such rows by UPDATE and leaves them out of reads, counts,
    relation filters and eager loads. A unique key still sees them. No index: nearly all
    rows have None there, and MariaDB would take it for updates by key and then deadlock
    with whoever locks the same row by its key.
    """

    deleted_at: datetime | None = Field(default=None, sa_type=Timestamp)


class VersionMixin(SQLModel):
    """`version`: how often the row was written; optimistic locking.

    An UPDATE or DELETE by the ORM names the version that was read, and raises
    `StaleData` when another transaction was quicker (SQLAlchemy docs, "Configuring a
    Version Counter").
    """

    version: int = Field(default=1)

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:
        return {"version_id_col": cls.__table__.c.version}  # type: ignore[attr-defined]
