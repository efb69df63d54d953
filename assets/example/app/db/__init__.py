"""Async database layer on SQLModel: engine, sessions, services.

Files: `base` (constraint names, timestamps), `database` (settings, engine, sessions),
`errors`, `query` (filters, sorting, loading), `service` (`ServiceBase`), `web` (FastAPI).
"""

from .base import NAMING_CONVENTION, Timestamp, TimestampMixin, utcnow
from .database import Database, DatabaseSettings, async_url
from .errors import (
    CheckViolation,
    Conflict,
    ForeignKeyViolation,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    NotNullViolation,
    ServiceError,
    StaleData,
    Unavailable,
    UniqueViolation,
    translate_errors,
)
from .query import OPERATORS, build_filters
from .service import Page, ServiceBase

__all__ = [
    "NAMING_CONVENTION",
    "OPERATORS",
    "CheckViolation",
    "Conflict",
    "Database",
    "DatabaseSettings",
    "ForeignKeyViolation",
    "InvalidQuery",
    "InvalidValue",
    "MultipleFound",
    "NotFound",
    "NotNullViolation",
    "Page",
    "ServiceBase",
    "ServiceError",
    "StaleData",
    "Timestamp",
    "TimestampMixin",
    "Unavailable",
    "UniqueViolation",
    "async_url",
    "build_filters",
    "translate_errors",
    "utcnow",
]
