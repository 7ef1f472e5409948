"""``python -m tests.benchmarks.profile NAME``: where one operation's time goes, and whose it is.

NAME is one of ``OPERATIONS``, such as ``once``, or any scenario of the catalogue. Shown
are the row that the others are compared with, what one would write by hand, and ours, in turns.
Processor time is counted instead of elapsed time, because a busy machine lengthens the second and
hardly the first:

- the server's from its process's ``schedstat`` (Linux), and by phase from the statistics that
  ``log_parser_stats``, ``log_planner_stats`` and ``log_executor_stats`` send to the client;
- the client's from its thread, and by owner from cProfile. What cProfile itself costs is taken off
  again, the same for each call. Time in compiled functions belongs to the function that calls
  them.

What neither needs is waiting: for the disk, for the other process to wake up, and for other jobs.
"""

import argparse
import cProfile
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import mean, median
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# The scenario, and the rows that are compared with the scenario's first.
OPERATIONS = {
    "once": ("once", ["hand", "idempotent"]),
    "replay": ("replay", ["hand", "idempotent"]),
    "request": ("request", ["hand", "idempotent"]),
    "lock": ("inside", ["advisory_lock"]),
    "commit": ("commit", ["advisory_lock"]),
    "lease": ("lease", ["again", "new"]),
    "save": ("save-inside", ["save_cas"]),
    "list-json": ("list-json", ["list"]),
}

OWNERS = ("django_dblock", "Django", "psycopg", "the rest: the view, Python's library")
PHASES = {
    "PARSER STATISTICS": "parse",
    "PARSE ANALYSIS STATISTICS": "parse",
    "REWRITER STATISTICS": "parse",
    "PLANNER STATISTICS": "plan",
    "EXECUTOR STATISTICS": "execute",
}


@dataclass
class Spent:
    """What the calls of one row took, in microseconds.

    Attributes:
        elapsed, client, server: of each call; ``server`` is empty where it can't be read.
        owners: processor time in Python, by owner, for each call.
        calls: calls of Python functions, by owner, for each call.
        functions: own time and calls of our functions, for each call.
        messages, statements: for each call; of each statement its text and its time by phase.
    """

    elapsed: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    owners: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    functions: list[tuple[float, float, str]] = field(default_factory=list)
    messages: float = 0
    statements: list[tuple[str, Counter[str]]] = field(default_factory=list)


def main() -> int:
    arguments = _arguments()
    sys.path.insert(0, str(ROOT / "example_project"))  # where embedded_postgres is
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    from tests.benchmarks import services

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.settings"
    with services.running():
        import django

        django.setup()
        from tests.benchmarks import catalogue, tables

        tables.create()
        try:
            name, ours = OPERATIONS.get(arguments.name, (arguments.name, []))
            first, *others = catalogue.SCENARIOS[name]().rows
            chosen = arguments.row or ours
            rows = [row for row in others if row.name in chosen] or others[:1]
            rows.sort(key=lambda row: chosen.index(row.name) if chosen else 0)
            print(_report(catalogue.SCENARIOS[name](), [first, *rows], arguments.calls))
        finally:
            tables.close()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profile")
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(OPERATIONS)}, or a scenario")
    parser.add_argument("--row", action="append", help="a row of the scenario, instead of ours")
    parser.add_argument("--calls", type=int, default=1000, help="of each row; default: 1000")
    return parser.parse_args()


def _report(scenario: Any, rows: list[Any], calls: int) -> str:
    numbers = count(1)
    spent = {row.label: Spent() for row in rows}
    for row in rows:  # caches fill, connections open
        for _ in range(20):
            _call(scenario, row, numbers, _nothing)
    for turn in range(calls // scenario.calls):
        for row in rows if turn % 2 else reversed(rows):
            _take_times(scenario, row, numbers, spent[row.label])
    for row in rows:
        _take_owners(scenario, row, numbers, spent[row.label], calls)
        _take_phases(scenario, row, numbers, spent[row.label], calls // 5)
    return "\n\n".join(
        [
            f"# {scenario.title}: {calls} calls of each row, in turns; µs a call",
            _totals(spent),
            *(_statements(label, one) for label, one in spent.items()),
            *(_functions(label, one) for label, one in spent.items() if one.functions),
        ]
    )


def _call(scenario: Any, row: Any, numbers: Iterator[int], around: Callable[..., Any]) -> None:
    from tests.benchmarks.measure import configured

    with configured(row.settings), row.within(), scenario.around():
        with around():
            row.call(next(numbers))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


# Totals ----------------------------------------------------------------------------------------


def _take_times(scenario: Any, row: Any, numbers: Iterator[int], spent: Spent) -> None:
    pid = _driver(scenario, row).info.backend_pid

    @contextmanager
    def timed() -> Iterator[None]:
        server, client, started = _on_cpu(pid), time.thread_time_ns(), time.perf_counter_ns()
        yield
        ended, client = time.perf_counter_ns(), time.thread_time_ns() - client
        spent.elapsed.append((ended - started) / 1000)
        spent.client.append(client / 1000)
        if server is not None:
            time.sleep(0.0005)  # until the server is idle again: only then the figure is exact
            spent.server.append(((_on_cpu(pid) or 0) - server) / 1000)

    for _ in range(scenario.calls):
        _call(scenario, row, numbers, timed)


def _driver(scenario: Any, row: Any) -> Any:
    from django.db import connections

    connection = connections[row.alias or scenario.alias]
    connection.ensure_connection()
    return connection.connection


def _on_cpu(pid: int) -> int | None:
    """Return the nanoseconds that a process has run; None if the system doesn't say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])
    except OSError:
        return None


# The client, by owner --------------------------------------------------------------------------


def _take_owners(scenario: Any, row: Any, numbers: Iterator[int], spent: Spent, calls: int) -> None:
    profiler = cProfile.Profile(time.thread_time_ns, 1e-3)

    @contextmanager
    def profiled() -> Iterator[None]:
        profiler.enable()
        yield
        profiler.disable()

    for _ in range(calls):
        _call(scenario, row, numbers, profiled)
    entries: Any = [entry for entry in profiler.getstats() if isinstance(entry.code, CodeType)]
    own: Counter[tuple[str, CodeType]] = Counter()
    events: Counter[tuple[str, CodeType]] = Counter()
    for entry in entries:
        owner = _owner(entry.code)
        own[owner, entry.code] += entry.inlinetime
        events[owner, entry.code] += entry.callcount
        spent.calls[owner] += entry.callcount / calls
        for called in entry.calls or ():
            if isinstance(called.code, str):  # a function in C
                its = "psycopg" if "psycopg" in called.code else owner
                own[its, entry.code] += called.inlinetime
                events[its, entry.code] += called.callcount
    excess = sum(own.values()) / calls - median(spent.client)
    for_each = max(0.0, excess) * calls / (sum(events.values()) or 1)
    functions = []
    for (owner, code), taken in own.items():
        own_time = (taken - for_each * events[owner, code]) / calls
        spent.owners[owner] += own_time
        if owner == OWNERS[0]:
            place = f"{Path(code.co_filename).stem}.{code.co_qualname}"
            functions.append((own_time, events[owner, code] / calls, place))
    spent.functions = sorted(functions, reverse=True)


def _owner(code: CodeType) -> str:
    import django
    import psycopg

    import django_dblock
    from django_dblock.core import simple_query

    # cProfile does not see psycopg's compiled functions, which are all that this function calls.
    if code is simple_query._send_and_wait.__code__:
        return "psycopg"
    for owner, module in zip(OWNERS, (django_dblock, django, psycopg), strict=False):
        if code.co_filename.startswith(str(Path(module.__file__).parent)):
            return owner
    return OWNERS[-1]


# The server, by phase --------------------------------------------------------------------------

_SWITCHES = ("log_parser_stats", "log_planner_stats", "log_executor_stats")
_SECONDS = re.compile(r"([0-9.]+) s (?:user|system)")


@dataclass
class Message:
    """What the server told of one message from the client."""

    parse: float = 0
    text: str = ""
    statements: list[Counter[str]] = field(default_factory=list)


class Listener:
    """What the server tells of the messages of one call."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def hear(self, notice: Any) -> None:
        title = notice.message_primary or ""
        phase = PHASES.get(title)
        if title == "PARSER STATISTICS":
            self.messages.append(Message(_microseconds(notice)))
        elif phase is not None and self.messages:
            if title == "PARSE ANALYSIS STATISTICS":
                self.messages[-1].statements.append(Counter())
            self.messages[-1].statements[-1][phase] += _microseconds(notice)
        elif self.messages and title.startswith(("statement: ", "execute ")):
            self.messages[-1].text = title.partition(": ")[2]

    @property
    def shape(self) -> list[int]:
        """The number of statements in each message."""
        return [len(message.statements) for message in self.messages]


def _take_phases(scenario: Any, row: Any, numbers: Iterator[int], spent: Spent, calls: int) -> None:
    driver = _driver(scenario, row)
    heard: list[Listener] = []

    @contextmanager
    def hearing() -> Iterator[None]:
        listener = Listener()
        driver.add_notice_handler(listener.hear)
        yield
        driver.remove_notice_handler(listener.hear)
        heard.append(listener)

    _switch(driver, "on")
    for _ in range(calls):
        _call(scenario, row, numbers, hearing)
    _switch(driver, "off")
    spent.messages = mean(len(one.messages) for one in heard)
    alike = [one.messages for one in heard if one.shape == heard[-1].shape]
    for number, message in enumerate(alike[-1]):
        texts = _texts(message)
        for place, text in enumerate(texts):
            phases: Counter[str] = Counter()
            for one in alike:
                phases.update(one[number].statements[place])
                # The message is parsed as a whole.
                phases["parse"] += one[number].parse * len(text) / len("".join(texts))
            averages = {name: taken / len(alike) for name, taken in phases.items()}
            spent.statements.append((text, Counter(averages)))


def _switch(driver: Any, value: str) -> None:
    """Let the server tell its statistics to this client, or be silent again."""
    statements = "all" if value == "on" else "none"
    least = "log" if value == "on" else "notice"
    switches = [f"{name} = {value}" for name in _SWITCHES]
    switches += [f"log_statement = '{statements}'", f"client_min_messages = '{least}'"]
    for switch in switches:
        driver.execute(f"SET {switch}")


def _microseconds(notice: Any) -> float:
    found = _SECONDS.findall((notice.message_detail or "").split("[")[0])
    return sum(map(float, found)) * 1e6


def _texts(message: Message) -> list[str]:
    texts = message.text.split(";")
    if len(texts) != len(message.statements):  # a semicolon in a literal
        return [message.text, *[""] * (len(message.statements) - 1)]
    return texts


# Tables ----------------------------------------------------------------------------------------


def _totals(spent: dict[str, Spent]) -> str:
    from tests.benchmarks.table import aligned

    lines: list[list[str]] = []

    def line(title: str, figure: Callable[[Spent], float], form: str = ".0f") -> None:
        first, *others = figures = [figure(one) for one in spent.values()]
        ratios = [f"{other / first:.2f}" if first >= 1 else "" for other in others]
        lines.append([title, *(f"{value:{form}}" for value in figures), *ratios])

    def phase(name: str) -> Callable[[Spent], float]:
        return lambda one: sum(phases[name] for _, phases in one.statements)

    def server(one: Spent) -> float:
        return median(one.server or [0])

    def told(one: Spent) -> float:
        return sum(sum(phases.values()) for _, phases in one.statements)

    line("elapsed, median", lambda one: median(one.elapsed))
    line("elapsed, least", lambda one: min(one.elapsed))
    line("processor time, both", lambda one: median(one.client) + server(one))
    line("server", server)
    for name in ("parse", "plan", "execute"):
        line(f"- {name}", phase(name))
    line("- the rest: BEGIN, COMMIT, messages", lambda one: server(one) - told(one))
    line("client", lambda one: median(one.client))
    for owner in OWNERS:
        line(f"- {owner}", lambda one, owner=owner: one.owners[owner])
    line("messages", lambda one: one.messages, ".1f")
    line("statements", lambda one: len(one.statements))
    line("calls of Python functions", lambda one: sum(one.calls.values()))
    for owner in OWNERS:
        line(f"- {owner}", lambda one, owner=owner: one.calls[owner])
    return aligned(["", *spent, *(f"x {number}" for number in range(2, len(spent) + 1))], lines)


def _statements(label: str, spent: Spent) -> str:
    from tests.benchmarks.table import aligned

    lines = [
        [_short(text), *(f"{phases[name]:.0f}" for name in ("parse", "plan", "execute"))]
        for text, phases in spent.statements
    ]
    return aligned([f"{label}: statements", "parse", "plan", "execute"], lines)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:45]} … {text[-12:]}"


def _functions(label: str, spent: Spent) -> str:
    from tests.benchmarks.table import aligned

    lines = [
        [place, f"{taken:.1f}", f"{calls:.1f}"] for taken, calls, place in spent.functions[:25]
    ]
    return aligned([f"{label}: our functions", "own µs", "calls"], lines)


if __name__ == "__main__":
    sys.exit(main())
