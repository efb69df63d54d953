"""Load with outages: `make load`, or `make load ARGS='--seconds 20 --clients 50'`.

The example app under uvicorn with two workers, behind it PgBouncer in transaction mode and a
PostgreSQL that keeps what it has acknowledged. Clients create, change, read, list and delete
heroes, teams, missions and assignments, each request right after the last answer. Meanwhile a
backend is killed every few seconds, one at work if there is one, and the server is restarted
once in the middle.

When the clients have gone, the app is ended by SIGTERM and the server by a crash; then every
acknowledged write is looked up. These are the promises, and the exit code is 1 if one is broken:

- no acknowledged write is lost, and there is no row that nobody sent;
- no error outside the outages, and in them no answer but 503;
- no connection is leaked.

The report, the plot and the app's log are also written to `.load/`. Exit code 2: a server is not
installed.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

from tests.clusters import PgBouncer, PostgresCluster
from tests.databases import Unavailable

from .client import TIMEOUT, Journal, run_clients
from .faults import Kind, Outage, cause, schedule
from .report import Result, as_json, markdown, plot
from .servers import WORKERS, App, create_tables, pgbouncer, serving
from .verdict import Connections, compare, judge

ROOT = Path(__file__).resolve().parents[2]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> Result:
    """Start everything, load it, break it, stop it, and look."""
    plan = schedule(options.seconds, options.kill_every, restart=options.restart)
    held = Connections()
    with PostgresCluster() as cluster:
        create_tables(cluster.url())
        with pgbouncer(cluster) as pooler:
            title = describe(options, cluster, pooler)
            with serving(pooler.url(), options.output) as app:
                began, journal, outages = load(app, cluster, options, plan)
                held.after_clients(cluster, pooler)
            held.after_app(app, pooler)
        held.after_pooler(cluster)
        cluster.restart("immediate")  # a crash: only what is on the disk remains
        rows = compare(journal.rows, cluster)
    answers = judge(journal, outages)
    return Result(title, options.seconds, began, len(plan), outages, journal, answers, rows, held)


def load(
    app: App,
    cluster: PostgresCluster,
    options: argparse.Namespace,
    plan: list[tuple[float, Kind]],
) -> tuple[float, Journal, list[Outage]]:
    """Run the clients in a process of their own, and cause the outages from this one.

    Returns:
        When it began, by the monotonic clock; what the clients have seen; what was caused.
    """
    outages: list[Outage] = []
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # the block ends it
        pool.apply(time.monotonic)  # wait until it has started
        say(f"{options.clients} clients for {options.seconds:g} s")
        began = time.monotonic()
        until = began + options.seconds
        clients = pool.apply_async(run_clients, (options.clients, app.port, until))
        for moment, kind in plan:
            clients.wait(max(0.0, began + moment - time.monotonic()))
            if clients.ready():  # they have failed; `get` says why
                break
            outages.append(cause(kind, cluster))
            say(f"{moment:5.1f} s: {kind} {outages[-1].state}")
        return began, clients.get(options.seconds + 2 * TIMEOUT), outages


def describe(options: argparse.Namespace, cluster: PostgresCluster, pooler: PgBouncer) -> str:
    names = ("fastapi", "uvicorn", "sqlmodel", "sqlalchemy", "asyncpg")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    postgresql = cluster.execute("SHOW server_version")[0][0]
    return (
        f"{options.clients} clients, {options.seconds:g} s, {WORKERS} workers;"
        f" PostgreSQL {postgresql}, {pooler.execute('SHOW VERSION')[0]['version']};"
        f" Python {sys.version.split()[0]}, {packages};"
        f" {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make load ARGS='...'",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=positive, default=60.0, help="how long (60)")
    parser.add_argument("--clients", type=count, default=200, help="at once (200)")
    parser.add_argument(
        "--kill-every", type=positive, default=5.0, metavar="SECONDS", help="a backend (5)"
    )
    parser.add_argument(
        "--no-restart", dest="restart", action="store_false", help="kill backends only"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of Markdown")
    parser.add_argument(
        "--output", type=Path, default=ROOT / ".load", metavar="FOLDER", help="for the files"
    )
    options = parser.parse_args(arguments)
    if not schedule(options.seconds, options.kill_every, restart=options.restart):
        parser.error("nothing would be broken: --kill-every must be below --seconds")
    return options


def positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return number


def count(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def stop(number: int, _frame: object) -> None:
    """End as by Ctrl-C: the servers and their folders go, too."""
    sys.exit(128 + number)


def main() -> int:
    """Run, print the figures, write them and the plot."""
    options = parse()
    signal.signal(signal.SIGTERM, stop)
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        result = run(options)
    except Unavailable as error:
        say(str(error))
        return 2
    text, figures = markdown(result), json.dumps(as_json(result), indent=2)
    (options.output / "results.md").write_text(text)
    (options.output / "results.json").write_text(figures)
    print(figures if options.json else text)
    picture = options.output / "results.png"
    picture.unlink(missing_ok=True)  # of a run before
    if problem := plot(picture, result):
        say(problem)
    written = ", ".join(sorted(each.name for each in options.output.iterdir()))
    say(f"Written to {options.output}: {written}")
    return 0 if result.kept else 1


if __name__ == "__main__":
    sys.exit(main())
