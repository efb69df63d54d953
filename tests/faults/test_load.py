"""`evals.load`: a short run keeps its promises, and each of them can be seen to break."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from evals.load import verdict
from evals.load.client import Journal, Row, Sample
from evals.load.faults import Outage, schedule
from evals.load.report import Result, markdown
from evals.load.servers import create_tables, pgbouncer
from evals.load.verdict import Answers, Comparison, Connections
from tests.clusters import PgBouncer, PostgresCluster
from tests.databases import Unavailable

from .conftest import Report

ROOT = Path(__file__).parents[2]


def test_short_run(tmp_path: Path, report: Report) -> None:
    """50 clients for 10 s, 4 backends killed, the server restarted: nothing acknowledged is lost.

    503 is the only error, and in the outages only; no connection is leaked. The run itself
    counts; how generous its outages are is in `evals.load.report.DEFINITION`.
    """
    command = [sys.executable, "-m", "evals.load", "--seconds", "10", "--clients", "50"]
    command += ["--kill-every", "2", "--json", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "assets/example")}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if run.returncode == 2 and not run.stdout:
        raise Unavailable(run.stderr.strip())
    assert run.returncode == 0, run.stderr + (tmp_path / "results.md").read_text()

    figures: dict[str, Any] = json.loads(run.stdout)
    kinds = [outage["kind"] for outage in figures["outages"]]
    assert kinds == ["kill", "kill", "restart", "kill", "kill"]
    assert all(phase["ok"] for phase in figures["phases"].values())
    assert figures["phases"]["restart"]["unavailable"]  # it was felt
    assert figures["rows"]["unknown"] + figures["acknowledged"] > 100
    assert (tmp_path / "results.png").exists() or "no plot" in run.stderr
    report(
        f"acknowledged writes lost 0 of {figures['acknowledged']:,},"
        f" {figures['answers']['errors']:,} of {figures['answers']['requests']:,} requests were"
        f" answered 503, the last one {figures['answers']['last_error']['restart']:.2f} s after"
        " the restart began"
    )


# -- the run's own judgement -----------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Generator[PostgresCluster]:
    with PostgresCluster() as cluster:
        create_tables(cluster.url())
        cluster.execute(
            "INSERT INTO team (name, headquarters, created_at, updated_at)"
            " VALUES ('A', 'old', now(), now()), ('B', 'new', now(), now())"
        )
        cluster.execute("INSERT INTO mission (title, done) VALUES ('M', false)")
        cluster.execute(
            "INSERT INTO hero (name, power, secret_name, team_id) VALUES ('H', 7, 'v', 1)"
        )
        cluster.execute("INSERT INTO assignment VALUES ('lead', 1, 1)")
        yield cluster


def rows() -> dict[str, Row]:
    """As the database has them; `B` after a write that was not acknowledged, and was stored."""
    old, new = {"headquarters": "old"}, {"headquarters": "new"}
    hero = {"power": 7, "secret_name": "v", "team_id": 1, "missions": {1: "lead"}}
    return {
        "A": Row("team", "A", 1, old),
        "B": Row("team", "B", 2, old, unknown=True, perhaps=new),
        "M": Row("mission", "M", 1, {"done": False}),
        "H": Row("hero", "H", 1, hero),
    }


def test_rows_that_are_there(cluster: PostgresCluster) -> None:
    found = verdict.compare(list(rows().values()), cluster)
    assert found == Comparison(rows=4, lost=[], strangers=[], unknown=1, unknown_stored=1)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("A", "headquarters", "new"),
        ("M", "done", True),
        ("H", "power", 8),
        ("H", "missions", {}),
        ("H", "missions", {1: "scout"}),
    ],
)
def test_a_lost_update(cluster: PostgresCluster, name: str, column: str, value: object) -> None:
    changed = rows()
    changed[name].known = changed[name].state | {column: value}
    (lost,) = verdict.compare(list(changed.values()), cluster).lost
    assert lost.startswith(name)


def test_a_lost_row_a_lost_delete_and_a_stranger(cluster: PostgresCluster) -> None:
    changed = rows()
    changed["A"].known = None
    changed["H"].id = 2
    changed["M"].name = "N"
    found = verdict.compare(list(changed.values()), cluster)
    assert [each.split()[0] for each in found.lost] == ["A", "N", "H"]
    assert found.strangers == ["M"]


def test_an_unknown_write_is_stored_or_not_and_nothing_else(cluster: PostgresCluster) -> None:
    changed = rows()
    changed["B"].known = changed["B"].perhaps = {"headquarters": "older"}
    changed["A"].unknown, changed["A"].perhaps = True, None
    found = verdict.compare(list(changed.values()), cluster)
    assert [each.split()[0] for each in found.lost] == ["B"]
    assert (found.unknown, found.unknown_stored) == (2, 0)


@pytest.fixture(scope="module")
def pooler(cluster: PostgresCluster) -> Generator[PgBouncer]:
    with pgbouncer(cluster) as pooler:
        yield pooler


def test_a_leaked_connection(
    cluster: PostgresCluster, pooler: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "NEWS_SECONDS", 0)
    url = pooler.url("").render_as_string()
    with psycopg.connect(url, prepare_threshold=None) as connection:
        connection.execute("SELECT 1")  # begins a transaction
        held = Connections()
        held.after_clients(cluster, pooler)
        assert (held.busy, held.server, held.app) == (2, 1, 1)  # on both sides of PgBouncer
        held.after_pooler(cluster)
        assert held.server_after == 1
        assert held.leaked


def test_more_connections_than_the_pools() -> None:
    assert Connections(server=20, app=40).leaked == 0
    assert Connections(server=21, app=41).leaked == 2


KILL = Outage("kill", began=10, accepted=10.5)  # over at 11.5
RESTART = Outage("restart", began=20, accepted=21)  # over at 23


@pytest.mark.parametrize(
    ("started", "ended", "excuse"),
    [
        (9.8, 9.9, None),
        (9.8, 10.1, KILL),
        (10.4, 12.0, KILL),  # under way when the server did not answer
        (10.6, 11.4, KILL),
        (10.6, 11.6, None),
        (20.5, 20.6, RESTART),
        (21.1, 23.1, None),
        (10.4, 20.1, RESTART),  # the later one
    ],
)
def test_excuses(started: float, ended: float, excuse: Outage | None) -> None:
    assert verdict.excuse(Sample(started, ended, 503), [KILL, RESTART]) is excuse


def test_errors_that_nothing_excuses() -> None:
    samples = [Sample(1, 2, 200), Sample(1, 2, 503), Sample(10, 10.6, 503), Sample(20, 20.5, 0)]
    journal = Journal(samples, unexpected=["GET /heroes: 500"])
    found = verdict.judge(journal, [KILL, RESTART])
    assert (found.requests, found.quiet, found.errors, found.outside) == (4, 2, 3, 1)
    assert found.other == 2  # no answer, and the 500
    assert found.last_error == {"kill": pytest.approx(0.6), "restart": pytest.approx(0.5)}


def result(**changes: Any) -> Result:
    journal = Journal([Sample(1, 2, 200), Sample(10, 10.6, 503)], acknowledged=1)
    fields: dict[str, Any] = {
        "title": "",
        "seconds": 30,
        "began": 0,
        "planned": 2,
        "outages": [KILL, RESTART],
        "journal": journal,
        "answers": verdict.judge(journal, [KILL, RESTART]),
        "rows": Comparison(rows=1),
        "connections": Connections(exit_code=0),
    }
    return Result(**(fields | changes))


def test_a_run_that_keeps_its_promises() -> None:
    assert result().kept
    assert "**no**" not in markdown(result())


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"rows": Comparison(rows=1, lost=["H is gone"])}, "acknowledged writes lost"),
        ({"journal": Journal(acknowledged=1, lost=["H is old"])}, "acknowledged writes lost"),
        ({"journal": Journal()}, "acknowledged writes lost"),  # of none
        ({"rows": Comparison(rows=1, strangers=["X"])}, "rows that nobody sent"),
        ({"answers": Answers(9, quiet=9, outside=1)}, "errors outside the outages"),
        ({"answers": Answers(9, quiet=0)}, "errors outside the outages"),  # of none
        ({"answers": Answers(9, quiet=9, other=1)}, "answers but 2xx and 503"),
        ({"connections": Connections(exit_code=0, busy=1)}, "connections leaked"),
        ({"connections": Connections(exit_code=0, app_after=1)}, "connections leaked"),
        ({"connections": Connections(exit_code=0, server_after=1)}, "connections leaked"),
        ({"connections": Connections(exit_code=0, warnings=1)}, "connections leaked"),
        ({"connections": Connections(exit_code=-9)}, "exit code of the app at SIGTERM"),
        ({"outages": [KILL]}, "outages caused"),
    ],
)
def test_a_broken_promise(changes: dict[str, Any], broken: str) -> None:
    found = result(**changes)
    assert [each.what for each in found.promises if not each.kept] == [broken]
    assert not found.kept
    assert "**no**" in markdown(found)


def test_the_restart_is_between_two_kills() -> None:
    assert schedule(10, 2, restart=True) == [
        (2, "kill"),
        (4, "kill"),
        (5, "restart"),
        (6, "kill"),
        (8, "kill"),
    ]
    assert schedule(60, 5, restart=True)[6] == (32.5, "restart")
    assert schedule(5, 5, restart=False) == []
