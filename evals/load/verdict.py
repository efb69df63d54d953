"""What the run has shown: each acknowledged write looked up, each error held against an outage."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.clusters import PgBouncer, PostgresCluster

from .client import NO_ANSWER, Journal, Row, Sample, State
from .faults import Outage
from .servers import POOL_SIZE, SERVER_CONNECTIONS, WORKERS, App, wait_until

NEWS_SECONDS = 30  # the end of a connection is news that travels; generous, for a busy machine


# -- rows ------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A row of the database."""

    id: int
    state: State


@dataclass
class Comparison:
    """The journals against the database.

    Args:
        lost: rows that are not as acknowledged writes have left them.
        strangers: rows that nobody sent.
        unknown: writes without a 2xx.
        unknown_stored: those of them that were stored none the less.
    """

    rows: int = 0
    lost: list[str] = field(default_factory=list[str])
    strangers: list[str] = field(default_factory=list[str])
    unknown: int = 0
    unknown_stored: int = 0


def compare(rows: list[Row], cluster: PostgresCluster) -> Comparison:
    found = _stored(cluster)
    result = Comparison(rows=len(rows))
    for row in rows:
        stored = found.pop((row.table, row.name), None)
        result.unknown += row.unknown
        state = stored and stored.state
        if row.unknown and state == row.perhaps:
            result.unknown_stored += 1
        elif state != row.known or (stored and stored.id != row.id):
            result.lost.append(f"{row.name} is {stored}, acknowledged was {row.id}, {row.known}")
    result.strangers = [name for _, name in found]
    return result


def _stored(cluster: PostgresCluster) -> dict[tuple[str, str], Stored]:
    """All rows that clients may have written, by table and name."""
    found: dict[tuple[str, str], Stored] = {}
    for key, name, headquarters in cluster.execute("SELECT id, name, headquarters FROM team"):
        found["team", name] = Stored(key, {"headquarters": headquarters})
    for key, title, done in cluster.execute("SELECT id, title, done FROM mission"):
        found["mission", title] = Stored(key, {"done": done})
    missions: dict[int, dict[int, str]] = defaultdict(dict)
    for hero, mission, role in cluster.execute("SELECT hero_id, mission_id, role FROM assignment"):
        missions[hero][mission] = role
    columns = ("id", "name", "power", "secret_name", "team_id")
    for values in cluster.execute(f"SELECT {', '.join(columns)} FROM hero"):  # noqa: S608
        state: dict[str, Any] = dict(zip(columns, values, strict=True))
        key, name = state.pop("id"), state.pop("name")
        found["hero", name] = Stored(key, state | {"missions": missions[key]})
    return found


# -- connections -----------------------------------------------------------------------


@dataclass
class Connections:
    """What is left of them.

    Args:
        busy: at work or in a transaction, once the clients had all their answers.
        server: PgBouncer's to the server, of which it may keep its pool.
        app: the app's to PgBouncer, of which it may keep its pools.
        app_after: the app's after SIGTERM.
        server_after: at the server after PgBouncer has gone, too.
        exit_code: of the app.
        warnings: of SQLAlchemy, about connections that nobody gave back.
    """

    busy: int = 0
    server: int = 0
    app: int = 0
    app_after: int = 0
    server_after: int = 0
    exit_code: int | None = None
    warnings: int = 0

    @property
    def leaked(self) -> int:
        beyond = max(0, self.server - SERVER_CONNECTIONS) + max(0, self.app - WORKERS * POOL_SIZE)
        return self.busy + beyond + self.app_after + self.server_after + self.warnings

    def after_clients(self, cluster: PostgresCluster, pooler: PgBouncer) -> None:
        def busy() -> int:
            at_work = "usename = 'app' AND (state <> 'idle' OR xact_start IS NOT NULL)"
            return cluster.backends(at_work) + _clients(pooler, "sv_active", "cl_waiting")

        wait_until(lambda: busy() == 0, NEWS_SECONDS)
        self.busy = busy()
        self.server = cluster.backends()
        self.app = _clients(pooler, "cl_active")

    def after_app(self, app: App, pooler: PgBouncer) -> None:
        wait_until(lambda: _clients(pooler, "cl_active", "cl_waiting") == 0, NEWS_SECONDS)
        self.app_after = _clients(pooler, "cl_active", "cl_waiting")
        self.exit_code = app.process.returncode
        self.warnings = app.log.count("garbage collector")

    def after_pooler(self, cluster: PostgresCluster) -> None:
        wait_until(lambda: cluster.backends() == 0, NEWS_SECONDS)
        self.server_after = cluster.backends()


def _clients(pooler: PgBouncer, *columns: str) -> int:
    pools = [each for each in pooler.execute("SHOW POOLS") if each["database"] == "app"]
    return sum(int(each[column]) for each in pools for column in columns)


# -- answers ---------------------------------------------------------------------------


def excuse(sample: Sample, outages: list[Outage]) -> Outage | None:
    """The outage that excuses an error, as `report.DEFINITION` says; the last one that does."""
    for outage in reversed(outages):
        under_way = sample.started <= outage.accepted
        if outage.began <= sample.ended and (under_way or sample.ended <= outage.over):
            return outage
    return None


@dataclass
class Answers:
    """Errors, and whether they may be."""

    requests: int = 0
    quiet: int = 0  # answers that could not have been excused
    errors: int = 0
    outside: int = 0  # errors outside of the outages
    other: int = 0  # no answer, or another status than 2xx and 503
    last_error: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds from an outage's beginning to its last error; the longest, by kind."""


def judge(journal: Journal, outages: list[Outage]) -> Answers:
    result = Answers(requests=len(journal.samples), other=len(journal.unexpected))
    for sample in journal.samples:
        outage = excuse(sample, outages)
        result.quiet += outage is None
        if 200 <= sample.status < 300:
            continue
        result.errors += 1
        result.other += sample.status == NO_ANSWER
        if outage is None:
            result.outside += 1
        else:
            last = result.last_error.get(outage.kind, 0.0)
            result.last_error[outage.kind] = max(last, sample.ended - outage.began)
    return result
