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

VICTIM_SECONDS = 30

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


def cause(kind: Kind, cluster: PostgresCluster) -> Outage:
    """Do it, and see it end."""
    if kind == "kill":
        return _kill(cluster)
    began = time.monotonic()
    cluster.restart()
    return Outage(kind, began, time.monotonic())


def _kill(cluster: PostgresCluster) -> Outage:
    """After a restart it may take PgBouncer a second to have one again."""
    deadline = time.monotonic() + VICTIM_SECONDS
    while time.monotonic() < deadline:
        began = time.monotonic()
        for state, ended in cluster.execute(KILL):
            if ended:
                return Outage("kill", began, time.monotonic(), state)
        time.sleep(0.05)
    raise RuntimeError(f"no backend of the app to kill within {VICTIM_SECONDS} s")
