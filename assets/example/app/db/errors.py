"""Domain errors, and the one place that turns driver errors into them.

No HTTP here: `web.py` maps these classes to responses.

    ServiceError
    |-- NotFound                 no row for this key or filter
    |-- MultipleFound            more than one row where one was asked for
    |-- InvalidQuery             unknown field, operator, relation or sort key
    |   |-- InvalidFilter        a filter that the model does not have, or its value
    |   `-- InvalidCursor        a cursor of another list
    |-- InvalidValue             unknown key in a payload, value out of range or too long
    |   |-- NotNullViolation     NOT NULL
    |   `-- CheckViolation       CHECK
    |-- Conflict                 the row clashes with what is stored
    |   |-- UniqueViolation      UNIQUE or PRIMARY KEY
    |   |-- ForeignKeyViolation  FOREIGN KEY, from either side
    |   `-- StaleData            the row was changed or deleted by somebody else
    `-- Unavailable              no answer: connection lost or refused, pool or statement timeout
        `-- TransientError       deadlock, serialization failure, lock not free: run it again

What is none of these, e.g. a mistake in the SQL, stays what SQLAlchemy raises.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import Any

from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.schema import ColumnCollectionConstraint
from sqlmodel import SQLModel


class ServiceError(Exception):
    """Base of every error that the layer raises on purpose."""

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__

    def __str__(self) -> str:
        return self.message


class NotFound(ServiceError):
    """No row matches.

    Args:
        message: one sentence for people.
        keys: where several rows were asked for by primary key, the keys without a row.
    """

    def __init__(self, message: str = "No row matches.", keys: Sequence[Any] = ()) -> None:
        super().__init__(message, tuple(keys))  # args: pickling works
        self.keys = tuple(keys)


class MultipleFound(ServiceError):
    """Several rows match where one was asked for."""


class InvalidQuery(ServiceError):
    """A filter, sort key or load path names something that the model does not have."""


class InvalidFilter(InvalidQuery):
    """A filter names a field, relation or operator that is not there, or has a wrong value."""


class InvalidCursor(InvalidQuery):
    """A cursor that this list and this order did not make."""


class Unavailable(ServiceError):
    """The database gave no answer.

    The connection was lost or could not be made, no pooled one became free in time, or
    the statement was cancelled, e.g. by the server's statement timeout. When it happens at
    COMMIT nobody knows whether the transaction was stored: do not simply run it again.
    """


class TransientError(Unavailable):
    """Another transaction was in the way: deadlock, serialization failure, lock not free.

    Nothing of this transaction is stored. Roll it back and run the whole unit of work
    again, as `Database.run_transaction` does. The last statement alone is not enough: at
    a deadlock (MySQL 1213) the database has rolled back everything before it too; at a
    lock timeout (MySQL 1205) only the statement, but what the unit has read is old.
    """


class _ConstraintError(ServiceError):
    """Carries what the database said about the constraint; each part may be unknown.

    Args:
        message: one sentence for people; holds names, never row values.
        constraint: name of the constraint, as in the naming convention.
        table: name of the table.
        columns: names of the columns.
    """

    def __init__(
        self,
        message: str,
        constraint: str | None = None,
        table: str | None = None,
        columns: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, constraint, table, columns)  # args: pickling works
        self.constraint = constraint
        self.table = table
        self.columns = columns


class InvalidValue(_ConstraintError):
    """A value that the table cannot hold."""


class NotNullViolation(InvalidValue):
    """A required column was left empty."""


class CheckViolation(InvalidValue):
    """A CHECK constraint refused the row."""


class Conflict(_ConstraintError):
    """The row clashes with what is stored."""


class UniqueViolation(Conflict):
    """A row with this key exists."""


class ForeignKeyViolation(Conflict):
    """The referenced row does not exist, or rows still refer to this one."""


class StaleData(Conflict):
    """The row was changed or deleted by another transaction since it was read."""


@contextmanager
def translate_errors() -> Generator[None]:
    """Raise `ServiceError` subclasses in place of the errors that `translate` knows.

    The original exception stays reachable as `__cause__`; anything else passes through
    untouched.
    """
    try:
        yield
    except Exception as error:
        translated = translate(error)
        if translated is None:
            raise
        raise translated from error


def translate(error: Exception) -> ServiceError | None:
    """The domain error for an error of SQLAlchemy or a driver, or None when it is none of ours."""
    if isinstance(error, ServiceError):
        return None
    if isinstance(error, StaleDataError):
        return StaleData("The row was changed or deleted by another transaction.")
    if isinstance(error, PoolTimeout):
        return _unavailable("no free connection")
    if _while_connecting(error):
        return _obstacle(error) or _unavailable("no connection")
    if isinstance(error, DBAPIError):
        return _obstacle(error) or _violation(error)
    if isinstance(error, StatementError):  # the column's type refused a value, before the driver
        return _invalid_value() if isinstance(error.orig, _REFUSALS) else None
    # sqlite3 for integers beyond 64 bits, drivers for text that is no Unicode; not the
    # caller's own errors.
    if isinstance(error, OverflowError | UnicodeEncodeError) and (
        "SQLite" in str(error) or "surrogates not allowed" in str(error)
    ):
        return _invalid_value()
    return None


_REFUSALS = (ValueError, TypeError, OverflowError, LookupError)


def _invalid_value() -> InvalidValue:
    return InvalidValue(f"{_SUMMARY[InvalidValue]}.")


# -- no answer --------------------------------------------------------------------

# Sources: PostgreSQL "Appendix A. Error Codes"; MariaDB "Error Codes" and MySQL "Server
# Error Message Reference"; sqlite3.Error.sqlite_errorname.
_TRANSIENT_SQLSTATE = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55P03": "lock not free",  # NOWAIT and lock_timeout
}
_UNAVAILABLE_SQLSTATE = {
    "25P03": "connection lost",  # idle_in_transaction_session_timeout
    "25P04": "connection lost",  # transaction_timeout
    "40003": "outcome unknown",  # of COMMIT; CockroachDB's ambiguous result
    "57014": "statement cancelled",  # statement_timeout
    "57P01": "connection lost",  # shutdown, pg_terminate_backend
    "57P02": "connection lost",  # crash
    "57P03": "no connection",  # starting up
    "57P05": "connection lost",  # idle_session_timeout
}
_UNAVAILABLE_CLASS = {"08": "connection lost", "53": "out of resources"}
_TRANSIENT_MYSQL = {
    1020: "serialization failure",  # MariaDB's innodb_snapshot_isolation
    1205: "lock not free",  # innodb_lock_wait_timeout, and NOWAIT on MariaDB
    1213: "deadlock",
    3572: "lock not free",  # NOWAIT on MySQL
}
_UNAVAILABLE_MYSQL = {
    1021: "out of resources",  # disk full
    1040: "no connection",  # too many
    1053: "connection lost",  # shutdown
    1114: "out of resources",  # disk or table space full
    1203: "no connection",  # too many of this user
    1317: "statement cancelled",  # KILL QUERY
    1927: "connection lost",  # KILL, MariaDB
    1969: "statement cancelled",  # max_statement_time, MariaDB
    2002: "no connection",
    2003: "no connection",
    2006: "connection lost",
    2013: "connection lost",
    2055: "connection lost",
    3024: "statement cancelled",  # max_execution_time, MySQL
    4031: "connection lost",  # idle for too long, MySQL
}
_TRANSIENT_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED")  # and SQLITE_BUSY_SNAPSHOT etc.
_UNAVAILABLE_SQLITE = {"SQLITE_FULL": "out of resources"}  # disk full


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(f"The database does not answer ({reason}).")


def _transient(reason: str) -> TransientError:
    return TransientError(f"Another transaction was in the way ({reason}); run this one again.")


def _obstacle(error: Exception) -> Unavailable | None:
    """What kept the database from answering, if that is what happened."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return _unavailable("connection lost")
    cause = _driver_exception(error)
    if (code := _mysql_code(cause)) is not None:
        transient, reason = _TRANSIENT_MYSQL.get(code), _UNAVAILABLE_MYSQL.get(code)
    else:
        state = getattr(cause, "sqlstate", None) or ""
        transient = _TRANSIENT_SQLSTATE.get(state)
        if re.search(r"cached (statement )?plan", str(cause)):
            transient = "the table was altered"  # PostgreSQL's drivers prepare anew after it
        reason = _UNAVAILABLE_SQLSTATE.get(state) or _UNAVAILABLE_CLASS.get(state[:2])
        name = getattr(cause, "sqlite_errorname", None) or ""
        reason = reason or _UNAVAILABLE_SQLITE.get(name)
        if name.startswith(_TRANSIENT_SQLITE):
            transient = "database is locked"
    if transient:
        return _transient(transient)
    return _unavailable(reason) if reason else None


def _while_connecting(error: Exception) -> bool:
    """Whether the driver failed to open a connection.

    Drivers raise errors of their own there, OSError among them. Only the way that they
    took tells them from an OSError of the caller's.
    """
    if isinstance(error, SQLAlchemyError) and not isinstance(error, DBAPIError):
        return False  # MissingGreenlet
    return any(
        frame.f_globals.get("__name__") == "sqlalchemy.engine.create"
        for frame, _ in walk_tb(error.__traceback__)
    )


def ends_transaction(error: DBAPIError) -> bool:
    """Whether the database gave the transaction up, so that it cannot be committed.

    PostgreSQL does at every error that the server reports, until ROLLBACK TO SAVEPOINT.
    MySQL does at a deadlock; what comes next is in a new transaction.
    """
    cause: Any = _driver_exception(error)
    if (code := _mysql_code(cause)) is not None:
        return code in {1020, 1213}
    # asyncpg raises some errors itself, before it asks the server: without a severity.
    return getattr(getattr(cause, "diag", cause), "severity", None) is not None


# -- broken rules -----------------------------------------------------------------

_SQLSTATE: dict[str, type[_ConstraintError]] = {
    "23505": UniqueViolation,
    "23P01": Conflict,  # exclusion constraint
    "23503": ForeignKeyViolation,
    "23001": ForeignKeyViolation,  # ON DELETE RESTRICT, PostgreSQL 18
    "23502": NotNullViolation,
    "23514": CheckViolation,
}
_MYSQL: dict[int, type[_ConstraintError]] = {
    1062: UniqueViolation,
    1586: UniqueViolation,
    1216: ForeignKeyViolation,
    1217: ForeignKeyViolation,
    1451: ForeignKeyViolation,
    1452: ForeignKeyViolation,
    1048: NotNullViolation,
    1364: NotNullViolation,  # no default value
    3819: CheckViolation,  # MySQL
    4025: CheckViolation,  # MariaDB
    1264: InvalidValue,  # out of range
    1265: InvalidValue,  # data truncated, e.g. not a member of the enum
    1366: InvalidValue,  # not a value of the type
    1406: InvalidValue,  # too long
}
_SQLITE: dict[str, type[_ConstraintError]] = {
    "SQLITE_CONSTRAINT_UNIQUE": UniqueViolation,
    "SQLITE_CONSTRAINT_PRIMARYKEY": UniqueViolation,
    "SQLITE_CONSTRAINT_ROWID": UniqueViolation,
    "SQLITE_CONSTRAINT_FOREIGNKEY": ForeignKeyViolation,
    "SQLITE_CONSTRAINT_NOTNULL": NotNullViolation,
    "SQLITE_CONSTRAINT_CHECK": CheckViolation,
    "SQLITE_CONSTRAINT_DATATYPE": InvalidValue,
}
_SUMMARY: dict[type[_ConstraintError], str] = {
    UniqueViolation: "A row with this key already exists",
    ForeignKeyViolation: "A referenced row does not exist, or this row is still referred to",
    NotNullViolation: "A required value is missing",
    CheckViolation: "A value breaks a rule of the table",
    InvalidValue: "A value does not fit its column",
    Conflict: "The row clashes with a stored one",
}


def _violation(error: DBAPIError) -> ServiceError | None:
    """Which rule of the table was broken, if that is what happened."""
    cause = _driver_exception(error)
    found = _postgresql(cause) or _sqlite(cause) or _mysql(cause)
    if found is None:
        return _invalid_value() if isinstance(error, DataError) else None
    kind, constraint, table, columns = found
    if constraint == "PRIMARY":  # what MySQL calls every primary key
        constraint, table = _primary_key(table, error.statement)
    # What this driver left out, the metadata knows.
    named_table, named_columns = _constraint(constraint)
    table, columns = table or named_table, columns or named_columns
    detail = f" ({constraint or ', '.join(columns)})" if constraint or columns else ""
    return kind(f"{_SUMMARY[kind]}{detail}.", constraint, table, columns)


_Found = tuple[type[_ConstraintError], str | None, str | None, tuple[str, ...]]


def _driver_exception(error: Exception) -> BaseException:
    """The exception of the driver itself.

    SQLAlchemy 2.1 has `driver_exception`; in 2.0 asyncpg's own exception is the
    `__cause__` of the one that SQLAlchemy emulates.
    """
    with suppress(ValueError):  # of 2.1.9, which has none for a cached statement
        direct = getattr(error, "driver_exception", None)
        if isinstance(direct, BaseException):
            return direct
    origin = getattr(error, "orig", None) or error
    emulated = type(origin).__module__.startswith("sqlalchemy.")
    return (emulated and origin.__cause__) or origin


def _postgresql(cause: Any) -> _Found | None:
    if _mysql_code(cause) is not None:  # PyMySQL sets sqlstate as well
        return None
    sqlstate = getattr(cause, "sqlstate", None) or ""
    # Class 22, data exception: out of range, too long, not a value of the type.
    kind = InvalidValue if sqlstate.startswith("22") else _SQLSTATE.get(sqlstate)
    if kind is None:
        return None
    source = getattr(cause, "diag", cause)  # psycopg keeps the fields in .diag
    column = getattr(source, "column_name", None)
    return (
        kind,
        getattr(source, "constraint_name", None),
        getattr(source, "table_name", None),
        (column,) if column else (),
    )


def _sqlite(cause: Any) -> _Found | None:
    kind = _SQLITE.get(name := getattr(cause, "sqlite_errorname", ""))
    # ON DELETE RESTRICT is a trigger inside SQLite; one of the user's own is none of ours.
    if name == "SQLITE_CONSTRAINT_TRIGGER" and str(cause).startswith("FOREIGN KEY"):
        kind = ForeignKeyViolation
    if kind is None:
        return None
    # "UNIQUE constraint failed: hero.name, hero.team_id"; of an expression "index 'uq_x'";
    # "CHECK constraint failed: ck_x"
    _, _, subject = str(cause).partition("failed: ")
    if kind is CheckViolation:
        return kind, subject or None, None, ()
    if index := re.fullmatch(r"index '(.+)'", subject):
        return kind, index[1], None, ()
    if "." not in subject:
        return kind, None, None, ()
    parts = [part.rpartition(".") for part in subject.split(", ")]
    table = parts[0][0]
    columns = tuple(column for _, _, column in parts)
    constraint = _name_of(table, columns) if kind is UniqueViolation else None
    return kind, constraint, table, columns


def _mysql_code(cause: Any) -> int | None:
    arguments = getattr(cause, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


def _mysql(cause: Any) -> _Found | None:
    kind = _MYSQL.get(_mysql_code(cause) or 0)
    if kind is None:
        return None
    text = str(cause.args[1]) if len(cause.args) > 1 else ""
    table = re.search(r"`[^`]+`\.`([^`]+)`", text)
    if kind is UniqueViolation:
        # "Duplicate entry 'x' for key 'uq_hero_name'"; MySQL 8 writes 'hero.uq_hero_name'.
        key = re.search(r"for key '(?:([^'.]+)\.)?([^']+)'$", text)
        constraint = key[2] if key else None
        return kind, constraint, key[1] if key else None, ()
    if kind is NotNullViolation or kind is InvalidValue:
        column = re.search(r"(?:[Cc]olumn|Field) '?`?(?:[^'`]*`\.`)*([^'`]+)[`']", text)
        return kind, None, None, (column[1],) if column else ()
    name = re.search(r"CONSTRAINT `(?:([^`.]+)\.)?([^`]+)`", text)
    if name and name[1]:  # MariaDB's own check of a JSON column, `table.column`
        return kind, None, name[1], (name[2],)
    return kind, name[2] if name else None, table[1] if table else None, ()


def _primary_key(table: str | None, statement: str | None) -> tuple[str | None, str | None]:
    """Name and table of a primary key; MariaDB does not say which table it was."""
    if table is None:
        written = re.match(r"\s*(?:INSERT INTO|UPDATE) `?(\w+)", statement or "")
        table = written[1] if written else None
    known = SQLModel.metadata.tables.get(table or "")
    name = known.primary_key.name if known is not None else None
    return str(name) if name else None, table


def _name_of(table_name: str, columns: tuple[str, ...]) -> str | None:
    """The name that the metadata gives to the unique key over these columns.

    SQLite reports columns only; the naming convention makes the name the same as on
    the other databases.
    """
    table = SQLModel.metadata.tables.get(table_name)
    if table is None:
        return None
    wanted = set(columns)
    for constraint in table.constraints:
        if (
            isinstance(constraint, UniqueConstraint | PrimaryKeyConstraint)
            and {column.name for column in constraint.columns} == wanted
        ):
            return str(constraint.name) if constraint.name else None
    for index in table.indexes:
        if index.unique and {column.name for column in index.columns} == wanted:
            return index.name
    return None


def _constraint(name: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Table and columns of a named constraint or index."""
    for table in SQLModel.metadata.tables.values() if name else ():
        for constraint in table.constraints:
            if constraint.name == name:
                if isinstance(constraint, ColumnCollectionConstraint):
                    return table.name, tuple(column.name for column in constraint.columns)
                return table.name, ()
        for index in table.indexes:
            if index.name == name:
                return table.name, tuple(column.name for column in index.columns)
    return None, ()
