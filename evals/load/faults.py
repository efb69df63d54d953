"""What is broken while the clients run: a backend killed now and then, the server restarted."""

import math
import time
from dataclasses import dataclass
from typing import Literal

from tests.clusters import PostgresCluster

Kind = Literal["kill", "restart"]

# Seconds after the server accepts connections again. A restart has the longer one: PgBouncer
# tries again once in a second only (server_login_retry).
MARGINS: dict[Kind, float] = {"kill": 1.0, "restart": 2.0}

# One that is at work, if there is one: its client must hear of it. One statement, so that
# it is still at work when it ends.
KILL = """
    SELECT state, pg_terminate_backend(pid, 10000) FROM (
        SELECT pid, state FROM pg_stat_activity WHERE usename = 'app'
        ORDER BY state = 'idle', random() LIMIT 1
    ) AS victim
"""


@dataclass
class Outage:
    """From the event until the server accepts connections again; monotonic clock.

    Args:
        state: what the killed backend was doing, as pg_stat_activity has it.
    """

    kind: Kind
    began: float
    accepted: float
    state: str = ""

    @property
    def over(self) -> float:
        return self.accepted + MARGINS[self.kind]


def schedule(seconds: float, kill_every: float, *, restart: bool) -> list[tuple[float, Kind]]:
    """When to do what; the restart is halfway between two kills, near the middle."""
    kills = math.ceil(seconds / kill_every) - 1  # none at the very end
    events: list[tuple[float, Kind]] = [(n * kill_every, "kill") for n in range(1, kills + 1)]
    if restart:
        events.append(((seconds / 2 // kill_every + 0.5) * kill_every, "restart"))
    return sorted(events)


def cause(kind: Kind, cluster: PostgresCluster) -> Outage | None:
    """Do it, and see it end; None when there was no backend to kill."""
    began, state = time.monotonic(), ""
    if kind == "kill":
        victims = cluster.execute(KILL)
        if not victims:
            return None
        state = str(victims[0][0])
    else:
        cluster.restart()
    cluster.execute("SELECT 1")
    return Outage(kind, began, time.monotonic(), state)
