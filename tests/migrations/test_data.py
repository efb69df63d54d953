"""The revisions of two pages of the guide on 200,000 rows: none changes in meaning.

The files are the pages' own. They run as a user runs them, `alembic upgrade` and `downgrade`
with the env.py of the assets, on a table that another one refers to ON DELETE CASCADE. After
each of them every row is read, and compared with the facts that it was made of. `-s` prints how
long it took, how long an app would have waited meanwhile, and whether the table was made anew.
"""

# ruff: noqa: S608 - SQL is put together from words of this file

import threading
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from tests.databases import Servers
from tests.mdtest.document import parse

from .cycle import Failed, Project, lay

REFERENCES = Path(__file__).parents[2] / "references"
PAGES = {
    "cents": "data-migrations.md",
    "aware": "data-migrations.md",
    "status": "enum-migrations.md",
    "method": "enum-migrations.md",
}
"""Where each revision is from. They are independent: each follows `first` of its page."""
ROWS = 200_000
SERVER_ZONE = "America/New_York"  # which no row is in
SYNC_DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
}

# -- what the rows mean ----------------------------------------------------------------


class Fact(NamedTuple):
    """A payment, whatever its columns are called. Each page has two of these columns."""

    id: int
    cents: int | None = None
    paid_at: datetime | None = None  # aware
    status: str | None = None
    method: str | None = None


CENTS = [None, 0, 1, -1, 30, 1999, -1999, 115, 435, 2 * 10**15, 2 * 10**15 - 1, 1 - 10**15]
TIMES = [
    None,
    datetime(1970, 1, 1, tzinfo=UTC),
    # Taken for New York's time, these are hours that do not exist, or exist twice.
    datetime(2026, 3, 8, 2, 30, tzinfo=UTC),
    datetime(2026, 3, 8, 3, 30, tzinfo=UTC),
    datetime(2026, 11, 1, 1, 30, tzinfo=UTC),
    datetime(2026, 11, 1, 6, 30, tzinfo=UTC),
    datetime(9999, 12, 30, 23, 59, 59, tzinfo=UTC),
]
OLD_NAMES = {"status": {"void": "canceled"}, "method": {"CHECK": "CHEQUE"}}


def values() -> Iterator[Fact]:
    """Edge values, then an endless mixture."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    for number in count(1):
        cents = number * 7919 % 10**9 - 10**8
        paid_at = start + number * timedelta(minutes=7, microseconds=1)
        yield Fact(
            id=number,
            cents=CENTS[number - 1] if number <= len(CENTS) else cents,
            paid_at=TIMES[number - 1] if number <= len(TIMES) else paid_at,
        )


def members() -> Iterator[Fact]:
    """All combinations, again and again."""
    for number in count(1):
        yield Fact(
            id=number,
            status=("paid", "void", "open")[number % 3],
            method=("CARD", "CHECK", "TRANSFER")[number // 3 % 3],
        )


def words(column: str, revision: str) -> Callable[[str | None], str | None]:
    """Turns today's word for a status or method into the one of this revision."""
    names = {} if column == revision else OLD_NAMES[column]
    return lambda word: names.get(word, word) if word else word


def as_float(cents: int | None) -> float | None:
    """As the app computed it: 30 cents are 0.1 + 0.2, which is not 0.3."""
    if cents is None or abs(cents) > 10**10:  # where a float has no digits to spare
        return None if cents is None else cents / 100
    return (cents - 20) / 100 + 0.2


def columns(facts: list[Fact], revision: str, dialect: str) -> Iterator[dict[str, Any]]:
    """What an app stores that knows this revision, and columns of the other page."""
    naive = dialect != "postgresql" or revision != "aware"
    status, method = words("status", revision), words("method", revision)
    for id_, cents, paid_at, today_status, today_method in facts:
        yield {
            "id": id_,
            "paid_at": paid_at.replace(tzinfo=None) if paid_at and naive else paid_at,
            "status": status(today_status),
            "method": method(today_method),
        } | ({"amount_cents": cents} if revision == "cents" else {"amount": as_float(cents)})


def without_microseconds(fact: Fact) -> Fact:
    return fact._replace(paid_at=fact.paid_at and fact.paid_at.replace(microsecond=0))


def to_cents(value: float | None) -> int | None:
    return round(value * 100) if isinstance(value, float) else value


def to_time(value: str | datetime | None) -> datetime | None:
    if isinstance(value, str):  # SQLite
        value = datetime.fromisoformat(value)
    if value is None or value.tzinfo is None:
        return value and value.replace(tzinfo=UTC)
    return value.astimezone(UTC)  # in another zone, Python finds no time equal to a repeated one


# -- the tables ------------------------------------------------------------------------


class Shop:
    """A project with the files of a page, and its database, at the first revision."""

    def __init__(self, project: Project, page: str) -> None:
        self.project = project
        self.dialect = project.url.get_backend_name()
        self.revision = "first"
        self.facts: list[Fact] = []
        self._all_facts = members() if page == PAGES["method"] else values()
        url = project.url.set(drivername=SYNC_DRIVERS[self.dialect])
        arguments = {"timeout": 60} if self.dialect == "sqlite" else {}
        self.engine: Engine = create_engine(url, connect_args=arguments)
        if self.dialect == "postgresql":
            self._execute(f"ALTER DATABASE \"{url.database}\" SET timezone = '{SERVER_ZONE}'")
            self.engine.dispose()  # its connection has the old setting
        self._lay_revisions(REFERENCES / page)
        project.run("alembic", "upgrade", "first")

    def _lay_revisions(self, page: Path) -> None:
        for section in parse(page).sections:
            if not section.databases or self.dialect in section.databases:
                for block in section.blocks:
                    if block.name:
                        path = self.project.folder / block.name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text(block.code, "utf-8")

    def _execute(self, statement: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement))

    def _columns(self) -> set[str]:
        return {each["name"] for each in inspect(self.engine).get_columns("payment")}

    def open(self, rows: int) -> None:
        """Store these many facts; every other payment has a refund."""
        self._execute(
            "CREATE TABLE refund (id INTEGER PRIMARY KEY, payment_id INTEGER NOT NULL, "
            "FOREIGN KEY (payment_id) REFERENCES payment (id) ON DELETE CASCADE)"
        )
        self.foreign_keys = inspect(self.engine).get_foreign_keys("refund")
        self.fill(rows)

    def fill(self, rows: int) -> None:
        """Store more facts, as an app at this revision would."""
        last = len(self.facts)
        new = islice(self._all_facts, rows)
        # MariaDB's DATETIME, which the naive column is there, has whole seconds.
        short = self.dialect == "mysql" and self.revision != "aware"
        self.facts += map(without_microseconds, new) if short else new
        payments = list(columns(self.facts[last:], self.revision, self.dialect))
        names = [name for name in payments[0] if name in self._columns()]
        if self.dialect == "postgresql":  # where this is five times as fast
            with self.engine.begin() as connection:
                driver: Any = connection.connection.driver_connection
                with driver.cursor().copy(f"COPY payment ({', '.join(names)}) FROM STDIN") as copy:
                    for payment in payments:
                        copy.write_row([payment[name] for name in names])
        else:
            rows_of_names = f"({', '.join(names)}) VALUES (:{', :'.join(names)})"
            with self.engine.begin() as connection:
                connection.execute(text(f"INSERT INTO payment {rows_of_names}"), payments)
        odd = f"id > {last} AND id % 2 = 1"
        self._execute(f"INSERT INTO refund (id, payment_id) SELECT id, id FROM payment WHERE {odd}")

    def migrate(self, command: str, revision: str) -> None:
        """`alembic upgrade` or `alembic downgrade`."""
        self.project.run("alembic", command, revision)
        self.revision = revision

    def changed(self) -> list[tuple[Any, Any]]:
        """The rows that do not say what they should, with what they should."""
        amount = "amount_cents" if self.revision == "cents" else "amount"
        present = self._columns()
        wanted = ("id", amount, "paid_at", "status", "method")
        selected = ", ".join(each if each in present else "NULL" for each in wanted)
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql(f"SELECT {selected} FROM payment ORDER BY id").all()
        status, method = words("status", self.revision), words("method", self.revision)
        found = (
            (id_, to_cents(amount), to_time(paid_at), stored_status, stored_method)
            for id_, amount, paid_at, stored_status, stored_method in rows
        )
        meant = (
            (id_, cents, paid_at, status(today_status), method(today_method))
            for id_, cents, paid_at, today_status, today_method in self.facts
        )
        return [(row, fact) for row, fact in zip(found, meant, strict=True) if row != fact]

    def check(self) -> None:
        """Every row says what it should, and every refund is there and belongs to its payment."""
        changed = self.changed()
        assert not changed, f"{len(changed)} rows, the first: {changed[:3]}"
        with self.engine.connect() as connection:
            refunds = connection.exec_driver_sql("SELECT id, payment_id FROM refund").all()
            if self.dialect == "sqlite":
                assert not connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        # Compared as a whole: pytest would explain a difference for minutes.
        all_there = sorted(map(tuple, refunds)) == [(f.id, f.id) for f in self.facts if f.id % 2]
        assert all_there, f"{len(refunds)} refunds"
        assert inspect(self.engine).get_foreign_keys("refund") == self.foreign_keys

    def storage(self) -> object:
        """Another one when the table was made anew."""
        with self.engine.connect() as connection:
            if self.dialect == "sqlite":
                where = "rootpage FROM sqlite_schema WHERE name = 'payment'"
            elif self.dialect == "postgresql":
                where = "pg_relation_filenode('payment')"
            else:
                tables = "innodb_sys_tables" if connection.dialect.is_mariadb else "innodb_tables"  # type: ignore[attr-defined]
                where = (
                    f"table_id FROM information_schema.{tables} "
                    "WHERE name = concat(database(), '/payment')"
                )
            return connection.exec_driver_sql(f"SELECT {where}").scalar_one()


class Visitor(threading.Thread):
    """An app's statement, over and over; knows how long it had to wait at most."""

    def __init__(self, engine: Engine, statement: str) -> None:
        super().__init__()
        self._engine, self._statement = engine, statement
        self._gone = threading.Event()
        self._error: Exception | None = None
        self.seconds = 0.0

    def run(self) -> None:
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                while not self._gone.wait(0.01):
                    start = time.monotonic()
                    connection.exec_driver_sql(self._statement).close()
                    self.seconds = max(self.seconds, time.monotonic() - start)
        except Exception as error:
            self._error = error

    def leave(self) -> None:
        self._gone.set()
        self.join()
        if self._error:
            raise self._error


def migrate_measured(shop: Shop, command: str, revision: str) -> bool:
    """Migrate while an app reads and writes. Prints the times; whether the table is a new one."""
    visitors = [
        Visitor(shop.engine, "SELECT id FROM payment WHERE id = 1"),
        Visitor(shop.engine, "UPDATE payment SET id = id WHERE id = 1"),
    ]
    storage, start = shop.storage(), time.monotonic()
    for visitor in visitors:
        visitor.start()
    try:
        shop.migrate(command, revision)
    finally:
        seconds = time.monotonic() - start
        for visitor in visitors:
            visitor.leave()
    made_anew = shop.storage() != storage
    reader, writer = (visitor.seconds for visitor in visitors)
    print(
        f"{shop.dialect:<11}{command + ' ' + revision:<17}{seconds:5.1f} s; a reader waited "
        f"{reader:.1f} s, a writer {writer:.1f} s; {'made anew' if made_anew else 'altered'}"
    )
    return made_anew


# -- tests -----------------------------------------------------------------------------

Make = Callable[[str, str], Shop]


@pytest.fixture(scope="module")
def make_shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Generator[Make]:
    """Makes a shop without rows, of a database and the page of a revision."""
    shops: list[Shop] = []

    def make(database: str, revision: str) -> Shop:
        url = servers.create_for_test(database, tmp_path_factory.mktemp("database"))
        project = lay(tmp_path_factory.mktemp("shop"), url, "", lambda _: None)
        shops.append(Shop(project, PAGES[revision]))
        return shops[-1]

    yield make
    for shop in shops:
        shop.engine.dispose()
        servers.drop(shop.project.url)


@pytest.fixture(scope="module")
def full_shop(make_shop: Make) -> Make:
    """The shop that has all rows; made once, and left as it was."""
    shops: dict[tuple[str, str], Shop] = {}

    def get(database: str, revision: str) -> Shop:
        key = database, PAGES[revision]
        if key not in shops:
            shops[key] = make_shop(database, revision)
            shops[key].open(ROWS)
            shops[key].check()
        return shops[key]

    return get


MADE_ANEW = {
    "cents": set[str](),
    "aware": {"sqlite", "postgresql", "mysql"},
    "status": set[str](),
    "method": {"mysql"},
}
"""Where the upgrade makes the table anew, as the pages say."""


def there_and_back(shop: Shop, revision: str) -> None:
    made_anew = migrate_measured(shop, "upgrade", revision)
    assert made_anew == (shop.dialect in MADE_ANEW[revision])
    shop.check()
    shop.fill(100)  # the new app's rows, which the old one has to understand afterwards
    migrate_measured(shop, "downgrade", "first")
    shop.check()


@pytest.mark.parametrize("revision", ["cents", "aware", "status"])
def test_no_row_changes_in_meaning(full_shop: Make, database: str, revision: str) -> None:
    there_and_back(full_shop(database, revision), revision)


@pytest.mark.only("postgresql", "mysql")  # SQLite has no ENUM
def test_no_enum_changes_in_meaning(full_shop: Make, database: str) -> None:
    there_and_back(full_shop(database, "method"), "method")


@pytest.mark.parametrize("revision", ["cents", "status"])
def test_all_revisions_lead_to_the_models(make_shop: Make, database: str, revision: str) -> None:
    shop = make_shop(database, revision)
    shop.project.run("alembic", "upgrade", "heads")
    shop.project.run("alembic", "check")


def test_amounts_that_are_not_whole_cents_are_refused(make_shop: Make, database: str) -> None:
    shop = make_shop(database, "cents")
    shop.open(100)
    odd = [1.005, -0.125, 0.001, 45035996273704.95, 1000000000000000.5]
    amounts = ", ".join(f"({number}, {amount!r})" for number, amount in enumerate(odd, 1000))
    shop.project.execute(f"INSERT INTO payment (id, amount) VALUES {amounts}")
    with pytest.raises(Failed, match=f"payment: {len(odd)} amounts are not whole cents"):
        shop.migrate("upgrade", "cents")
    kept = shop.project.execute("SELECT amount FROM payment WHERE id >= 1000 ORDER BY id")
    assert [amount for (amount,) in kept] == odd
    shop.project.execute("DELETE FROM payment WHERE id >= 1000")
    shop.check()
    shop.migrate("upgrade", "cents")
    shop.check()


@pytest.mark.only("postgresql")
def test_without_using_times_are_taken_for_those_of_the_server(
    make_shop: Make, database: str
) -> None:
    shop = make_shop(database, "aware")
    shop.open(100)
    file = shop.project.folder / "migrations" / "versions" / "aware.py"
    code, using = file.read_text("utf-8"), ", postgresql_using=USING"
    assert using in code
    file.write_text(code.replace(using, ""), "utf-8")
    shop.migrate("upgrade", "aware")
    found = {row[0]: row[2] for row, _ in shop.changed()}
    assert len(found) == 99  # all but NULL
    assert found[3] == found[4]  # New York had no 2:30 that day: it became 3:30
