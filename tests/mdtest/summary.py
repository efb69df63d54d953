"""What was covered: the table at the end, and the exit code when something was not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import pytest

from .document import Block, parse


@dataclass(frozen=True)
class Blocks:
    """Blocks of a document that one item looks at."""

    path: str
    """Relative to the root of the run."""
    database: str
    lines: list[int]
    """First lines, which identify the blocks."""


class _HasBlocks(Protocol):
    nodeid: str

    def blocks(self) -> Blocks: ...


class Summary:
    """Plugin that follows every block from collection to the end of the run.

    With xdist the workers collect and this process reports, so workers hand over what
    they have collected when they end.
    """

    def __init__(self, config: pytest.Config, databases: list[str]) -> None:
        self.config = config
        self.databases = databases
        self.collected: dict[str, Blocks] = {}  # by node id, deselected ones included
        self.deselected: set[str] = set()
        self.outcomes: dict[str, list[tuple[int, str]]] = {}
        self.failed: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.problems: list[str] = []

    # -- following ---------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if hasattr(item, "blocks"):
                self.collected[item.nodeid] = cast(_HasBlocks, item).blocks()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.deselected |= {item.nodeid for item in items if hasattr(item, "blocks")}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for nodeid, blocks in getattr(node, "workeroutput", {}).get("mdtest", {}).items():
            self.collected[nodeid] = Blocks(**blocks)
        self.deselected |= set(getattr(node, "workeroutput", {}).get("mdtest-deselected", ()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")
        if report.when == "call":
            found = dict(report.user_properties).get("mdtest", [])
            self.outcomes[report.nodeid] = cast(list[tuple[int, str]], found)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """A run that looks green and has left something out is not."""
        if hasattr(self.config, "workerinput"):
            output = cast(Any, self.config).workeroutput
            output["mdtest"] = {name: asdict(each) for name, each in self.collected.items()}
            output["mdtest-deselected"] = sorted(self.deselected)
            return
        if self.config.getoption("collectonly"):
            return
        if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            return
        self.problems = [*self._left_out(), *self._documents_not_found()]
        if self.problems:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    # -- judging -----------------------------------------------------------------

    def _left_out(self) -> list[str]:
        return [
            f"{path}:{line}: neither run nor checked on {database}"
            for (path, line, database), state in sorted(self._states().items())
            if state == "unaccounted"
        ]

    def _documents_not_found(self) -> list[str]:
        """Of a full run: one that was not told what to run."""
        patterns = cast(list[str], self.config.getini("mdtest"))
        told = self.config.args_source is pytest.Config.ArgsSource.ARGS
        if told or self.config.getoption("lf", default=None) or not patterns:
            return []
        root = self.config.rootpath
        found = {path.relative_to(root) for each in patterns for path in root.glob(each)}
        if not found:
            return [f"no document matches mdtest = {' '.join(patterns)}"]
        ignored = cast(list[str], self.config.getoption("ignore") or [])
        seen = {blocks.path for blocks in self.collected.values()}
        return [
            f"{path}: matches mdtest, but testpaths do not lead to it"
            for path in sorted(found)
            if str(path) not in seen and str(path) not in ignored
        ]

    def _states(self) -> dict[tuple[str, int, str], str]:
        """What became of each block on each database; the best, where several items have it."""
        order = ("run", "checked", "failed", "skipped", "deselected", "unaccounted")
        states: dict[tuple[str, int, str], str] = {}
        for nodeid, blocks in self.collected.items():
            if nodeid in self.failed:
                rest = "failed"
            elif nodeid in self.skipped:
                rest = "skipped"
            elif nodeid in self.deselected:
                rest = "deselected"
            else:
                rest = "unaccounted"
            outcomes = dict(self.outcomes.get(nodeid, []))
            for line in blocks.lines:
                state = outcomes.get(line, rest)
                if state not in order:  # "replaced": another item has to run it
                    state = "unaccounted"
                key = blocks.path, line, blocks.database
                states[key] = min(state, states.get(key, state), key=order.index)
        return states

    # -- showing -----------------------------------------------------------------

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Blocks found, and what became of them on each database."""
        if self.outcomes and self.collected:
            self._table(terminalreporter)
        reasons = {text for nodeid, text in self.skipped.items() if nodeid in self.collected}
        for reason in sorted(reasons):
            terminalreporter.write_line(f"skipped: {reason}")
        for problem in self.problems:
            terminalreporter.write_line(problem, red=True)

    def _table(self, terminalreporter: pytest.TerminalReporter) -> None:
        states = self._states()
        root = self.config.rootpath
        documents = {each.path for each in self.collected.values()}
        blocks: dict[tuple[str, int], Block] = {
            (path, block.line): block for path in documents for block in parse(root / path).blocks()
        }
        counts: Counter[tuple[str, str]] = Counter()
        columns = ["found", *self.databases, "checked"]
        for (path, line), block in blocks.items():
            on = {name: states.get((path, line, name), "") for name in self.databases}
            seen = {name for name, state in on.items() if state == "run"}
            if "checked" in on.values():
                seen.add("checked")
            seen |= {state for state in on.values() if state not in {"run", "checked", ""}}
            for column in {"found", *seen}:
                counts[block.language, column] += 1
                counts["all", column] += 1
        rare = ("failed", "skipped", "deselected")
        columns += [*(name for name in rare if counts["all", name]), "unaccounted"]

        write = terminalreporter.write_line
        plural = "" if len(documents) == 1 else "s"
        terminalreporter.section(f"code blocks of {len(documents)} document{plural}")
        heads = [f"run: {name}" if name in self.databases else name for name in columns]
        write("language  " + "".join(f"{head:>{len(head) + 3}}" for head in heads))
        for language in [*sorted({block.language for block in blocks.values()}), "all"]:
            cells = zip(heads, columns, strict=True)
            numbers = "".join(f"{counts[language, name]:>{len(head) + 3}}" for head, name in cells)
            write(f"{language:<10}{numbers}")
        wrong = sum(bool(block.raises) for block in blocks.values())
        if wrong:
            write(f"{wrong} of them are wrong examples, which must raise what they say")
