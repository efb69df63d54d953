"""The clients: what they ask for, and what they remember of the answers.

A client sends its next request as soon as it has the answer to the last one; after a 503 too,
which is harsher than the `Retry-After: 1` that comes with it. It writes to rows of its own only,
so it knows what each must look like. A write that gets no 2xx may be stored or not: the client
leaves that row alone from then on, so the database can tell in the end which of both it was.

Threads with the standard library's HTTP client, because the clients share the machine with what
they measure: 0.19 ms of CPU for each request of 200 clients, where httpx takes 1.6 ms with a
client for each, and 6.3 ms with one for all.
"""

import http.client
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

State = dict[str, Any]  # the columns of a row that clients write, by name

NO_ANSWER = 0  # in place of a status
NOT_FOUND = 404
UNAVAILABLE = 503
TIMEOUT = 60.0  # seconds: twice of what the app allows itself for a request
TEAM_SIZE = 10  # heroes, before a client starts a new team
REQUESTS_PER_CONNECTION = 20  # new connections find the worker that is less busy


class Sample(NamedTuple):
    """One request; times of the monotonic clock, which all processes share."""

    started: float
    ended: float
    status: int


@dataclass
class Row:
    """A row that one client writes.

    Args:
        table: its table.
        name: its unique name, or title.
        id: its primary key; None before the client was told.
        known: its columns after the last write that was acknowledged; None for no row.
        unknown: whether a later write got no 2xx. It is the last one.
        perhaps: its columns if that one was stored.
    """

    table: str
    name: str
    id: int | None = None
    known: State | None = None
    unknown: bool = False
    perhaps: State | None = None

    @property
    def state(self) -> State:
        """Of a row that is there."""
        assert self.known is not None
        return self.known


@dataclass
class Journal:
    """What a client has seen; a process adds up those of its clients."""

    samples: list[Sample] = field(default_factory=list[Sample])
    rows: list[Row] = field(default_factory=list[Row])
    acknowledged: int = 0  # writes
    details: Counter[str] = field(default_factory=Counter[str])  # what the 503s said
    lost: list[str] = field(default_factory=list[str])  # answers without an acknowledged write
    unexpected: list[str] = field(default_factory=list[str])  # neither 2xx nor 503 nor silence

    def add(self, other: "Journal") -> None:
        self.samples += other.samples
        self.rows += other.rows
        self.acknowledged += other.acknowledged
        self.details += other.details
        self.lost += other.lost
        self.unexpected += other.unexpected


class Answer(NamedTuple):
    """`body` is what the JSON says, or else the text."""

    status: int
    body: Any

    is_json: bool = False

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Client:
    """One of many.

    Args:
        number: makes its names its own.
        port: where the app listens.
        until: when to stop, by the monotonic clock.
    """

    def __init__(self, number: int, port: int, until: float) -> None:
        self.number, self.until = number, until
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self.random = random.Random(number)  # noqa: S311 - the order of requests
        self.journal = Journal()
        self.names = 0
        self.versions = 0
        self.team: Row | None = None
        self.mission: Row | None = None
        self.heroes: list[Row] = []  # in this team, and certain
        self.hired = 0

    def run(self) -> Journal:
        """Until the time is over; an answer that is on its way then is waited for."""
        actions = {
            self.create_hero: 20,
            self.update_hero: 20,
            self.assign: 10,
            self.unassign: 3,
            self.delete_hero: 7,
            self.create_team: 4,
            self.update_team: 4,
            self.create_mission: 4,
            self.update_mission: 3,
            self.read_hero: 15,
            self.list_team: 7,
            self.list_missions: 3,
        }
        plan, weights = list(actions), list(actions.values())
        while time.monotonic() < self.until:
            self.random.choices(plan, weights)[0]()
        self.connection.close()
        return self.journal

    # -- writes ------------------------------------------------------------------------

    def create_team(self) -> None:
        self.team, self.heroes, self.hired = None, [], 0
        row = self._new_row("team")
        state = {"headquarters": self._version()}
        if self._create(row, "/teams", {"name": row.name, **state}, state):
            self.team = row

    def update_team(self) -> None:
        if (team := self.team) is None:
            return self.create_team()
        change = {"headquarters": self._version()}
        if not self._write(team, "PATCH", f"/teams/{team.id}", change, team.state | change):
            self.team = None
        return None

    def create_mission(self) -> None:
        self.mission = None
        row = self._new_row("mission")
        if self._create(row, "/missions", {"title": row.name}, {"done": False}):
            self.mission = row

    def update_mission(self) -> None:
        if (mission := self.mission) is None:
            return self.create_mission()
        change = {"done": not mission.state["done"]}
        if not self._write(mission, "PATCH", f"/missions/{mission.id}", change, change):
            self.mission = None
        return None

    def create_hero(self) -> None:
        if (team := self.team) is None or self.hired >= TEAM_SIZE:
            return self.create_team()
        self.hired += 1
        row = self._new_row("hero")
        payload = {**self._traits(), "team_id": team.id}
        if self._create(row, "/heroes", {"name": row.name, **payload}, payload | {"missions": {}}):
            self.heroes.append(row)
        return None

    def update_hero(self) -> None:
        if (hero := self._hero()) is None:
            return self.create_hero()
        change = self._traits()
        return self._change(hero, "PATCH", f"/heroes/{hero.id}", change, hero.state | change)

    def assign(self) -> None:
        if (hero := self._hero()) is None:
            return self.create_hero()
        if (mission := self.mission) is None or mission.id is None:
            return self.create_mission()
        path, role = f"/heroes/{hero.id}/missions/{mission.id}", self._version()
        missions = hero.state["missions"] | {mission.id: role}
        return self._change(hero, "PUT", path, {"role": role}, hero.state | {"missions": missions})

    def unassign(self) -> None:
        hero = self._hero()
        if hero is None or not hero.state["missions"]:
            return self.assign()
        missions = dict(hero.state["missions"])
        mission = self.random.choice(list(missions))
        del missions[mission]
        path, after = f"/heroes/{hero.id}/missions/{mission}", hero.state | {"missions": missions}
        return self._change(hero, "DELETE", path, None, after)

    def delete_hero(self) -> None:
        if (hero := self._hero()) is None:
            return self.create_hero()
        self._change(hero, "DELETE", f"/heroes/{hero.id}", None, None)
        if hero in self.heroes:
            self.heroes.remove(hero)
        return None

    def _change(
        self, hero: Row, method: str, path: str, payload: State | None, after: State | None
    ) -> None:
        if not self._write(hero, method, path, payload, after):
            self.heroes.remove(hero)

    # -- reads: an acknowledged write is there at once ---------------------------------

    def read_hero(self) -> None:
        if (hero := self._hero()) is None:
            return self.create_hero()
        answer = self._ask("GET", f"/heroes/{hero.id}")
        if answer.ok:
            found = {each: answer.body[each] for each in ("name", "power", "team_id")}
            missions = {each["mission"]["id"]: each["role"] for each in answer.body["assignments"]}
            self._compare(hero, found | {"missions": missions}, but="secret_name")
        elif answer.status == NOT_FOUND:
            self._lose(hero, "the app does not find it")
        return None

    def list_team(self) -> None:
        if (team := self.team) is None:
            return self.create_team()
        answer = self._ask("GET", f"/heroes?team_id__in={team.id}&limit=50")
        if answer.ok:
            found = {each["name"]: each for each in answer.body["items"]}
            for hero in self.heroes:
                if hero.name not in found:
                    self._lose(hero, "it is not in the list")
                elif found[hero.name]["power"] != hero.state["power"]:
                    self._lose(hero, f"the list has power {found[hero.name]['power']}")
        return None

    def list_missions(self) -> None:
        self._ask("GET", "/missions?limit=20")

    def _compare(self, row: Row, found: State, but: str) -> None:
        expected = {"name": row.name, **row.state}
        del expected[but]
        if found != expected:
            self._lose(row, f"the app has {found}")

    def _lose(self, row: Row, what: str) -> None:
        self.journal.lost.append(f"{row.name} is {row.known}, but {what}")

    # -- requests ----------------------------------------------------------------------

    def _hero(self) -> Row | None:
        return self.random.choice(self.heroes) if self.heroes else None

    def _new_row(self, table: str) -> Row:
        self.names += 1
        row = Row(table, f"{table} {self.number}-{self.names}")
        self.journal.rows.append(row)
        return row

    def _version(self) -> str:
        """A text that no other write of this client has."""
        self.versions += 1
        return f"version {self.versions}"

    def _traits(self) -> State:
        return {"power": self.random.randint(0, 100), "secret_name": self._version()}

    def _create(self, row: Row, path: str, payload: State, after: State) -> bool:
        return self._write(row, "POST", path, payload, after)

    def _write(
        self, row: Row, method: str, path: str, payload: State | None, after: State | None
    ) -> bool:
        """Whether it was acknowledged; if not, the row is left alone."""
        answer = self._ask(method, path, payload)
        if answer.ok:
            self.journal.acknowledged += 1
            row.known = after
            row.id = answer.body["id"] if method == "POST" else row.id
        else:
            row.unknown, row.perhaps = True, after
        return answer.ok

    def _ask(self, method: str, path: str, payload: State | None = None) -> Answer:
        if len(self.journal.samples) % REQUESTS_PER_CONNECTION == 0:
            self.connection.close()  # the next request opens it again
        started = time.monotonic()
        answer = self._exchange(method, path, payload)
        self.journal.samples.append(Sample(started, time.monotonic(), answer.status))
        if answer.status == UNAVAILABLE and answer.is_json:
            self.journal.details[answer.body["detail"]] += 1
        elif not answer.ok and answer.status != NO_ANSWER:
            self.journal.unexpected.append(f"{method} {path}: {answer.status} {answer.body}")
        return answer

    def _exchange(self, method: str, path: str, payload: State | None) -> Answer:
        body = None if payload is None else json.dumps(payload)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return Answer(NO_ANSWER, "")
        if content and "json" in response.getheader("Content-Type", ""):
            return Answer(response.status, json.loads(content), is_json=True)
        return Answer(response.status, content.decode())


def run_clients(count: int, port: int, until: float) -> Journal:
    """Run them in this process, and return what they have seen together."""

    def run(number: int) -> Journal:
        return Client(number, port, until).run()

    together = Journal()
    with ThreadPoolExecutor(count) as threads:
        for journal in threads.map(run, range(count)):
            together.add(journal)
    return together
