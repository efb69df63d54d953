"""The figures as Markdown, as JSON and as a plot."""

import statistics
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from .client import UNAVAILABLE, Journal, Sample
from .faults import MARGINS, Outage
from .servers import POOL_SIZE, SERVER_CONNECTIONS, WORKERS
from .verdict import Answers, Comparison, Connections

DEFINITION = (
    "An outage lasts from the event until the server accepts connections again, and"
    f" {MARGINS['kill']:g} s more after a kill, {MARGINS['restart']:g} s more after the restart."
    " An error is excused if it was answered in an outage, or if the request was under way when"
    " the server did not accept connections. Every other error breaks the promise; so does any"
    " answer but 2xx and 503, and none at all, at any time."
)


@dataclass
class Promise:
    """What must be so, and what was found."""

    what: str
    found: str
    kept: bool


@dataclass
class Result:
    """All that one run has shown."""

    title: str
    seconds: float
    began: float
    planned: int  # outages
    outages: list[Outage]
    journal: Journal
    answers: Answers
    rows: Comparison
    connections: Connections
    promises: list[Promise] = field(default_factory=list[Promise])

    def __post_init__(self) -> None:
        self.promises = list(self._promises())

    @property
    def kept(self) -> bool:
        return all(each.kept for each in self.promises)

    def _promises(self) -> Iterator[Promise]:
        lost = len(self.rows.lost) + len(self.journal.lost)
        strangers, held, answers = len(self.rows.strangers), self.connections, self.answers
        yield _zero("acknowledged writes lost", lost, f"{self.journal.acknowledged:,}")
        yield _zero("rows that nobody sent", strangers, f"{self.rows.rows:,}")
        yield _zero("errors outside the outages", answers.outside, f"{answers.quiet:,} answers")
        yield _zero("answers but 2xx and 503", answers.other, f"{answers.requests:,} requests")
        yield Promise("connections leaked", f"{held.leaked}", held.leaked == 0)
        done = len(self.outages)
        yield Promise("exit code of the app at SIGTERM", f"{held.exit_code}", held.exit_code == 0)
        yield Promise("outages caused", f"{done} of {self.planned}", done == self.planned)


def _zero(what: str, count: int, of: str) -> Promise:
    # Of nothing, nothing was shown.
    return Promise(what, f"{count:,} of {of}", count == 0 and not of.startswith("0"))


# -- figures ---------------------------------------------------------------------------


@dataclass
class Figures:
    """Of a phase, or of a second. Latency in milliseconds, of the 2xx answers."""

    seconds: float
    requests: int
    ok: int
    unavailable: int
    other: int
    p50: float
    p95: float
    p99: float
    max: float


def figures(samples: list[Sample], seconds: float) -> Figures:
    times = sorted(1000 * (each.ended - each.started) for each in samples if is_ok(each))
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    cuts = cuts or [float("nan")] * 99
    unavailable = sum(each.status == UNAVAILABLE for each in samples)
    return Figures(
        seconds=seconds,
        requests=len(samples),
        ok=len(times),
        unavailable=unavailable,
        other=len(samples) - len(times) - unavailable,
        p50=cuts[49],
        p95=cuts[94],
        p99=cuts[98],
        max=max(times, default=float("nan")),
    )


def is_ok(sample: Sample) -> bool:
    return 200 <= sample.status < 300


def phases(result: Result) -> dict[str, Figures]:
    """Of the quiet time, the kills and the restart; by the time of the answer."""
    samples: dict[str, list[Sample]] = {"quiet": [], "kill": [], "restart": []}
    seconds = dict.fromkeys(samples, 0.0)
    timeline = _timeline(result)
    for (phase, began), (_, ended) in pairwise(timeline):
        seconds[phase] += ended - began
    starts = [began for _, began in timeline]
    for sample in result.journal.samples:
        phase, _ = timeline[bisect_right(starts, sample.ended) - 1]
        samples[phase].append(sample)
    return {name: figures(each, seconds[name]) for name, each in samples.items()}


def _timeline(result: Result) -> list[tuple[str, float]]:
    """Each phase and when it began, in order; the last one begins when all is over."""
    end = _last_answer(result)
    edges = {result.began, *(each.began for each in result.outages)}
    edges |= {each.over for each in result.outages}
    timeline: list[tuple[str, float]] = []
    for edge in sorted(each for each in edges if each < end):
        kinds = [each.kind for each in result.outages if each.began <= edge < each.over]
        timeline.append((max(kinds, default="quiet"), edge))  # a restart goes before a kill
    return [*timeline, ("quiet", end)]


def _last_answer(result: Result) -> float:
    return max((each.ended for each in result.journal.samples), default=result.began)


def by_second(result: Result) -> list[Figures]:
    """By the time of the answer; the last ones come after the last second."""
    last = int(_last_answer(result) - result.began)
    seconds: list[list[Sample]] = [[] for _ in range(last + 1)]
    for sample in result.journal.samples:
        seconds[int(sample.ended - result.began)].append(sample)
    return [figures(each, 1.0) for each in seconds]


# -- Markdown --------------------------------------------------------------------------


def markdown(result: Result) -> str:
    return "\n".join(
        [
            "# Load",
            "",
            result.title,
            "",
            *_promises(result),
            "",
            *_table_of_phases(result),
            "",
            *_events(result),
            "",
            *_table_of_seconds(result),
            "",
        ]
    )


def _promises(result: Result) -> Iterator[str]:
    yield "| promise | found | kept |"
    yield "| --- | --- | --- |"
    for each in result.promises:
        yield f"| {each.what} | {each.found} | {'yes' if each.kept else '**no**'} |"
    yield ""
    yield DEFINITION
    examples = [*result.rows.lost, *result.journal.lost, *result.journal.unexpected]
    examples += [f"nobody sent {each}" for each in result.rows.strangers]
    for example in examples[:10]:
        yield f"- {example[:300]}"
    if result.answers.other:
        yield "- why, the app says in app.log"
    rows, held = result.rows, result.connections
    yield ""
    yield f"Writes without a 2xx: {rows.unknown:,}; {rows.unknown_stored:,} of them were stored."
    yield (
        f"Connections when the clients had gone: {held.busy} at work or in a transaction;"
        f" {held.server} from PgBouncer to the server (pool: {SERVER_CONNECTIONS}),"
        f" {held.app} from the app to PgBouncer (pools: {WORKERS} x {POOL_SIZE})."
        f" After SIGTERM: {held.app_after} from the app; and without PgBouncer"
        f" {held.server_after} at the server."
        f" Warnings about connections that were not given back: {held.warnings}."
    )


def _table_of_phases(result: Result) -> Iterator[str]:
    yield "Latency in ms, of the 2xx answers. A client asks again at once, so most of it is the"
    yield "wait for a worker. A request belongs to the phase in which it was answered."
    yield ""
    yield "| phase | s | requests | per s | 2xx | 503 | other | p50 | p95 | p99 | max |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    whole = figures(result.journal.samples, _last_answer(result) - result.began)
    for name, each in {**phases(result), "all": whole}.items():
        rate = each.requests / each.seconds if each.seconds else 0
        cells = [f"{each.seconds:.1f}", f"{each.requests:,}", f"{rate:,.0f}", *_counts(each)]
        cells += [_ms(value) for value in (each.p50, each.p95, each.p99, each.max)]
        yield f"| {name} | {' | '.join(cells)} |"


def _events(result: Result) -> Iterator[str]:
    states = [each.state or "?" for each in result.outages if each.kind == "kill"]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    yield f"Backends killed: {counts or 'none'}."
    for outage in result.outages:
        if outage.kind == "restart":
            gap = outage.accepted - outage.began
            yield f"Restart: the server accepted connections again after {gap:.2f} s."
    for kind, seconds in sorted(result.answers.last_error.items()):
        yield f"Last error at most {seconds:.2f} s after a {kind}."
    for detail, count in result.journal.details.most_common():
        yield f"- 503, {count:,} times: {detail}"


def _table_of_seconds(result: Result) -> Iterator[str]:
    yield "| second | 2xx | 503 | other | p50 | p99 | |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for second, each in enumerate(by_second(result)):
        began = [o.kind for o in result.outages if int(o.began - result.began) == second]
        cells = [*_counts(each), _ms(each.p50), _ms(each.p99), ", ".join(began)]
        yield f"| {second} | {' | '.join(cells)} |"


def _counts(each: Figures) -> list[str]:
    return [f"{count:,}" for count in (each.ok, each.unavailable, each.other)]


def _ms(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}"


# -- JSON ------------------------------------------------------------------------------


def as_json(result: Result) -> dict[str, Any]:
    """Without the requests and the rows."""
    return {
        "title": result.title,
        "kept": result.kept,
        "promises": [asdict(each) for each in result.promises],
        "definition": DEFINITION,
        "acknowledged": result.journal.acknowledged,
        "rows": asdict(result.rows),
        "connections": asdict(result.connections),
        "answers": asdict(result.answers),
        "unavailable": dict(result.journal.details),
        "lost": result.journal.lost,
        "unexpected": result.journal.unexpected,
        "outages": [
            {
                "kind": each.kind,
                "began": each.began - result.began,
                "accepted": each.accepted - result.began,
                "over": each.over - result.began,
                "state": each.state,
            }
            for each in result.outages
        ],
        "phases": {name: _finite(each) for name, each in phases(result).items()},
        "by_second": [_finite(each) for each in by_second(result)],
    }


def _finite(each: Figures) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in asdict(each).items()}


# -- plot ------------------------------------------------------------------------------


def plot(path: Path, result: Result) -> str:
    """Write a PNG: latency above, answers below; says why when it cannot."""
    try:
        matplotlib: Any = import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError as error:
        return f"no plot: {error}"
    figure, (latency, answers) = pyplot.subplots(
        2, 1, figsize=(12, 7), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    figure.suptitle(result.title.partition(";")[0])
    _latency(latency, result)
    _answers(answers, result)
    for panel in (latency, answers):
        _mark(panel, result)
        panel.set_axisbelow(True)
        panel.grid(axis="y", linewidth=0.4)
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, markerscale=4)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return ""


def _latency(panel: Any, result: Result) -> None:
    ok = [each for each in result.journal.samples if is_ok(each)]
    failed = [each for each in result.journal.samples if not is_ok(each)]
    for samples, color, size, name in ((ok, "C0", 2, "2xx"), (failed, "C3", 8, "error")):
        times = [each.ended - result.began for each in samples]
        values = [1000 * (each.ended - each.started) for each in samples]
        panel.scatter(times, values, size, color, alpha=0.4, linewidths=0, label=name)
    seconds = by_second(result)
    middles = [second + 0.5 for second in range(len(seconds))]
    panel.plot(middles, [each.p50 for each in seconds], color="black", label="p50 of a second")
    panel.plot(middles, [each.p99 for each in seconds], "k:", label="p99 of a second")
    panel.set_yscale("log")
    panel.set_ylabel("latency, ms")


def _answers(panel: Any, result: Result) -> None:
    seconds = by_second(result)
    middles = [second + 0.5 for second in range(len(seconds))]
    ok = [each.ok for each in seconds]
    panel.bar(middles, ok, 0.9, color="C0")
    panel.bar(middles, [each.requests - each.ok for each in seconds], 0.9, ok, color="C3")
    panel.set_ylabel("answers in a second")
    panel.set_xlabel("seconds")


def _mark(panel: Any, result: Result) -> None:
    """A line at each kill, an area from the restart until the server is back."""
    named: set[str] = set()
    for outage in result.outages:
        label = "" if outage.kind in named else outage.kind
        named.add(outage.kind)
        began, accepted = outage.began - result.began, outage.accepted - result.began
        if outage.kind == "kill":
            panel.axvline(began, color="C1", ls="--", linewidth=1, label=label)
        else:
            panel.axvspan(began, accepted, color="C1", alpha=0.3, label=label)
