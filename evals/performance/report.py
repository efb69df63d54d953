"""The figures as a Markdown table for each database, and as a plot."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from .contestants import CONTESTANTS
from .workload import Operation

SHOWN = {name: each.title for name, each in CONTESTANTS.items() if each.title}
COMPARED = {name: title for name, title in SHOWN.items() if name != "orm"}
OFFSET_TARGETS = {"postgresql": 0.20}  # keyset to OFFSET; SQLite's OFFSET is cheap
PEAK_TARGET = 6.0  # MiB


@dataclass
class Cell:
    """One contestant's figures for one operation."""

    cpu: list[float] = field(default_factory=list[float])  # seconds for each call, by round
    wall: list[float] = field(default_factory=list[float])
    statements: int = 0
    peak: float | None = None  # MiB
    status: str = ""  # in place of figures
    note: str = ""
    wrong: str = ""


Row = dict[str, Cell]  # by contestant
Results = dict[str, Row]  # by operation


def ratio(values: list[float], base: list[float]) -> float:
    """The median over the rounds."""
    return statistics.median(one / other for one, other in zip(values, base, strict=True))


@dataclass
class Verdict:
    """A target of ServiceBase."""

    what: str
    target: str
    reached: str
    met: bool


class Table:
    """One database's table; collects footnotes and verdicts while it is made."""

    def __init__(self, database: str, operations: list[Operation], results: Results) -> None:
        self.database, self.operations, self.results = database, operations, results
        self.footnotes: list[str] = []
        self.verdicts: list[Verdict] = []

    def lines(self) -> Iterator[str]:
        header = ["operation", "raw ORM, ms", *COMPARED.values(), "target", "met"]
        yield _line(header)
        yield _line(["---"] * len(header))
        for operation in self.operations:
            row = self.results[operation.name]
            cells = [self._ratio(row, name) for name in COMPARED]
            yield self._row(operation.title, self._base(row["orm"]), cells, self._judge(operation))
            if operation.name == "keyset" and row["offset"].cpu:
                yield self._by_offset(row)
            if operation.name == "stream" and row["orm"].peak is not None:
                yield self._peaks(row)

    def _row(self, title: str, base: str, cells: list[str], verdict: Verdict | None) -> str:
        last = [verdict.target, "yes" if verdict.met else "**no**"] if verdict else ["", ""]
        if verdict:
            self.verdicts.append(verdict)
        return _line([title, base, *cells, *last])

    def _base(self, cell: Cell) -> str:
        if cell.status:
            return self._marked(cell.status, cell)
        cpu, wall = (1000 * statistics.median(each) for each in (cell.cpu, cell.wall))
        return self._marked(f"{_short(cpu)} ({_short(wall)}) [{cell.statements:,}]", cell)

    def _ratio(self, row: Row, name: str) -> str:
        cell = row[name]
        if cell.status or row["orm"].status:
            return self._marked(cell.status, cell)
        cpu, wall = ratio(cell.cpu, row["orm"].cpu), ratio(cell.wall, row["orm"].wall)
        return self._marked(f"{_short(cpu)} ({_short(wall)}) [{cell.statements:,}]", cell)

    def _marked(self, figure: str, cell: Cell) -> str:
        """With the number of its footnote, which several cells may share."""
        wrong = f"WRONG RESULT: {cell.wrong}" if cell.wrong else ""
        text = "; ".join(part for part in (wrong, cell.note) if part)
        if not text:
            return figure
        if text not in self.footnotes:
            self.footnotes.append(text)
        return f"{figure} ({self.footnotes.index(text) + 1}){' wrong' * bool(wrong)}"

    def _judge(self, operation: Operation) -> Verdict:
        row = self.results[operation.name]
        limit, cell = operation.targets[self.database], row["service"]
        target = f"<= {limit:.2f} [{operation.statements}]"
        if cell.status or cell.wrong:
            return Verdict(operation.title, target, cell.status or "wrong result", met=False)
        reached = ratio(cell.cpu, row["orm"].cpu)
        met = reached <= limit and cell.statements <= operation.statements
        return Verdict(operation.title, target, f"{reached:.2f} [{cell.statements}]", met)

    def _by_offset(self, row: Row) -> str:
        reached = {name: ratio(row[name].cpu, row["offset"].cpu) for name in SHOWN if row[name].cpu}
        cells = [_short(reached[name]) if name in reached else "-" for name in SHOWN]
        title, target, verdict = "keyset page, CPU; by OFFSET = 1", None, None
        target = OFFSET_TARGETS.get(self.database)
        if target and "service" in reached:
            met = reached["service"] <= target
            verdict = Verdict(title, f"<= {target:.2f}", f"{reached['service']:.2f}", met)
        return self._row(title, cells[0], cells[1:], verdict)

    def _peaks(self, row: Row) -> str:
        peaks = {name: row[name].peak for name in SHOWN}
        cells = ["-" if value is None else f"{value:.1f}" for value in peaks.values()]
        ours, verdict, title = peaks["service"], None, "its peak memory, MiB"
        if ours is not None:
            verdict = Verdict(title, f"<= {PEAK_TARGET:g}", f"{ours:.1f}", ours <= PEAK_TARGET)
        return self._row(title, cells[0], cells[1:], verdict)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(header: str, operations: list[Operation], results: dict[str, Results]) -> str:
    """The report: a table, its footnotes and the missed targets for each database."""
    lines = ["# Benchmark", "", header, ""]
    lines += [
        "CPU of client and server (wall time) [SQL statements]; the raw ORM's in ms for each call,",
        "the others as ratios to it; below 1 is cheaper.",
    ]
    for database, rows in results.items():
        table = Table(database, operations, rows)
        lines += ["", f"## {database}", "", *table.lines(), ""]
        lines += [f"{number}. {text}" for number, text in enumerate(table.footnotes, 1)]
        missed = [verdict for verdict in table.verdicts if not verdict.met]
        met = len(table.verdicts) - len(missed)
        lines += ["", f"Targets of ServiceBase met: {met} of {len(table.verdicts)}."]
        lines += [f"- not met: {each.what}: {each.reached}, {each.target}" for each in missed]
    return "\n".join([*lines, ""])


def plot(path: Path, operations: list[Operation], results: dict[str, Results]) -> str:
    """Write a PNG with one panel for each database; says why when it cannot."""
    try:
        matplotlib: Any = import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError as error:
        return f"no plot: {error}"
    figure, panels = pyplot.subplots(
        1,
        len(results),
        figsize=(4 + 5 * len(results), 2 + 0.75 * len(operations)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, (database, rows) in zip(panels[0], results.items(), strict=True):
        _panel(panel, database, operations, rows)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return ""


def _panel(panel: Any, database: str, operations: list[Operation], rows: Results) -> None:
    height, every = 0.8 / len(COMPARED), range(len(operations))
    for index, (name, title) in enumerate(COMPARED.items()):
        # From 1: a bar to the left is cheaper than the raw ORM, one to the right dearer.
        widths = [_above_one(rows[operation.name], name) for operation in operations]
        places = [place + height * (index - (len(COMPARED) - 1) / 2) for place in every]
        hatches = ["////" if rows[each.name][name].wrong else "" for each in operations]
        panel.barh(
            places,
            widths,
            height,
            left=1,
            label=title,
            color=f"C{index}",
            hatch=hatches,
            edgecolor="white",
            linewidth=0,
        )
    for place, operation in enumerate(operations):
        target = operation.targets[database]
        panel.plot([target, target], [place - 0.45, place + 0.45], color="black", linewidth=1.5)
    panel.axvline(1, color="gray", linewidth=0.8)
    panel.set_xscale("log")
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    panel.set_yticks(every, [operation.title for operation in operations])
    panel.set_ylim(len(operations) - 0.5, -0.5)
    panel.set_xlabel(
        "CPU, raw ORM = 1 (log scale)\nblack: target of ServiceBase; hatched: wrong result"
    )
    panel.set_title(database)


def _above_one(row: Row, name: str) -> float:
    measured = row[name].cpu and row["orm"].cpu
    return ratio(row[name].cpu, row["orm"].cpu) - 1 if measured else 0
