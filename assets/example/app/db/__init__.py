"""Async database layer on SQLModel: engine, sessions, services.

Files, each on top of those before it:
`errors`; `base` (constraint names, mixins); `database` and `transactions` (engine, sessions,
units of work); `mapping`, `operators`, `json_operators`, `filters`, `sorting`, `paging`,
`loading`, `aggregates` (reading by name); `bulk` (many rows in one statement); `reading` and `service`
(`ServiceBase`); `web` and `client_query` (FastAPI).
"""

from .base import (
    NAMING_CONVENTION,
    SoftDeleteMixin,
    Timestamp,
    TimestampMixin,
    VersionMixin,
    utcnow,
)
from .database import Database, DatabaseSettings, async_url
from .errors import (
    CheckViolation,
    Conflict,
    ForeignKeyViolation,
    InvalidCursor,
    InvalidFilter,
    InvalidQuery,
    InvalidValue,
    MultipleFound,
    NotFound,
    NotNullViolation,
    ServiceError,
    StaleData,
    TransientError,
    Unavailable,
    UniqueViolation,
    translate_errors,
)
from .filters import OPERATORS, Filter, and_, build_filters, not_, or_
from .paging import CursorPage, Page
from .reading import ReadService
from .service import ServiceBase
from .transactions import transaction

__all__ = [
    "NAMING_CONVENTION",
    "OPERATORS",
    "CheckViolation",
    "Conflict",
    "CursorPage",
    "Database",
    "DatabaseSettings",
    "Filter",
    "ForeignKeyViolation",
    "InvalidCursor",
    "InvalidFilter",
    "InvalidQuery",
    "InvalidValue",
    "MultipleFound",
    "NotFound",
    "NotNullViolation",
    "Page",
    "ReadService",
    "ServiceBase",
    "ServiceError",
    "SoftDeleteMixin",
    "StaleData",
    "Timestamp",
    "TimestampMixin",
    "TransientError",
    "Unavailable",
    "UniqueViolation",
    "VersionMixin",
    "and_",
    "async_url",
    "build_filters",
    "not_",
    "or_",
    "transaction",
    "translate_errors",
    "utcnow",
]
