"""What every model of the project shares: constraint names and timestamps.

Import this module before the first `table=True` class (importing anything from this
package does): names are given to constraints when the class is created.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.dialects.mysql import DATETIME
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
    would be expired by every UPDATE and raise MissingGreenlet when read.
    """

    created_at: datetime = Field(default_factory=utcnow, sa_type=Timestamp)
    updated_at: datetime = Field(
        default_factory=utcnow, sa_type=Timestamp, sa_column_kwargs={"onupdate": utcnow}
    )
