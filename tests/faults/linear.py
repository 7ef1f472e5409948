"""Is there *one* order of what was done with a lease that explains every answer (5)?

The search of Wing and Gong with Lowe's memory of configurations, which are what has been put in
order and the state after it. It goes name by name, because leases of different names have nothing
to do with each other and such histories are linearizable one by one (Herlihy and Wing). What a
lease may answer is in :mod:`tests.faults.grants`.

Sources: J. M. Wing and C. Gong, "Testing and Verifying Concurrent Objects", Journal of Parallel and
Distributed Computing 17, 1993; G. Lowe, "Testing for Linearizability", Concurrency and Computation
29 (4), 2017.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from math import inf
from typing import NamedTuple

from tests.faults.checkers import Violation
from tests.faults.grants import Call, State, read, step
from tests.faults.history import Operation

WINDOW = 2_000
"""Operations on one name that are put in order at once."""

BOUND = 200_000
"""Configurations of one window after which it is undecided."""

Configuration = tuple[int, State]
"""Which calls have been put in order, as bits, and the state after them."""


class Verdict(NamedTuple):
    """What was found, and how much was looked at."""

    violations: list[Violation]
    operations: int = 0
    windows: int = 0
    undecided: int = 0
    configurations: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """For the report."""
        return {name: value for name, value in self._asdict().items() if name != "violations"}


def judge(history: Iterable[Operation], window: int = WINDOW, bound: int = BOUND) -> Verdict:
    """Look for an order for each name; a window that takes too long leaves the rest undecided."""
    of_names: dict[str, list[Call]] = defaultdict(list)
    for operation in history:
        if (call := read(operation)) is not None:
            of_names[operation.data["name"]].append(call)
    found = Verdict([])
    for name, calls in of_names.items():
        found = _judge_name(name, sorted(calls, key=lambda call: call.began), window, bound, found)
    return found


def _judge_name(name: str, calls: list[Call], window: int, bound: int, found: Verdict) -> Verdict:
    """Window after window: each begins in all configurations in which the last one can have ended.

    So a cut loses nothing. One between operations is cheap; where there is always one under way, as
    when a worker is frozen, those that span the cut go over, and may come first or last.
    """
    violations, operations, windows, undecided, configurations = found
    carried: set[tuple[State, frozenset[Call]]] = {(State(), frozenset())}
    cuts = list(_windows(calls, window))
    for number, (begin, end) in enumerate(cuts):
        over = frozenset[Call]().union(*(left for _, left in carried))
        search = Search([*over, *calls[begin:end]], calls[end].began if end < len(calls) else inf)
        finals = search.finals(carried, bound)
        configurations += len(search.seen)
        windows += 1
        if finals is None:
            undecided += len(cuts) - number
            windows += len(cuts) - number - 1
            break
        operations += end - begin
        if not finals:
            violations = [*violations, Violation(5, f"no order explains {name}: {search.stuck()}")]
            break
        carried = finals
    return Verdict(violations, operations, windows, undecided, configurations)


def _windows(calls: list[Call], size: int) -> Iterator[tuple[int, int]]:
    """Cut where nothing is under way but what is unknown; else where the size is reached."""
    latest = list(accumulate((-inf if call.ended == inf else call.ended for call in calls), max))
    begin = 0
    while len(calls) - begin > size:
        near = range(begin + size, begin, -1)
        end = next((i for i in near if latest[i - 1] < calls[i].began), begin + size)
        yield begin, end
        begin = end
    yield begin, len(calls)


class Search:
    """All orders of these calls in which what has ended before ``horizon`` has its place."""

    def __init__(self, calls: list[Call], horizon: float) -> None:
        self.calls = sorted(calls, key=lambda call: call.began)
        self.whole = horizon == inf
        self.unknown = [(1 << i, c) for i, c in enumerate(self.calls) if c.ended == inf]
        self.due = self._bits(call for call in calls if call.ended < horizon)
        self.seen: set[Configuration] = set()

    def finals(
        self, starts: set[tuple[State, frozenset[Call]]], bound: int
    ) -> set[tuple[State, frozenset[Call]]] | None:
        """Return the states that it can end in, with what is left; one is enough at the very end.

        None: there were more than ``bound`` configurations.
        """
        over = frozenset[Call]().union(*(left for _, left in starts))
        stack = [(self._bits(over - left), state) for state, left in starts]
        found = set()
        while stack:
            configuration = stack.pop()
            if configuration in self.seen:
                continue
            if len(self.seen) >= bound:
                return None
            self.seen.add(configuration)
            bits, state = configuration
            if bits & self.due != self.due:
                stack += self._next(bits, state)
                continue
            left = (call for i, call in enumerate(self.calls) if not bits >> i & 1)
            found.add((state, frozenset(left)))
            if self.whole:
                break
        return found

    def _next(self, bits: int, state: State) -> list[Configuration]:
        """What can come next. A call that is possible, and changes nothing, comes at once.

        That is right because it would change nothing later, either: see :func:`step`.
        """
        found: list[Configuration] = []
        for bit, call in self._minimal(bits):
            after = step(state, call)
            if after == state and call.ended < inf:
                return [(bits | bit, state)]
            if after is not None and after != state:
                found.append((bits | bit | self._spent(state, after), after))
        return found[::-1]  # the earliest is looked at first

    def _minimal(self, bits: int) -> Iterator[tuple[int, Call]]:
        """Those before whose beginning nothing has ended that still has no place."""
        left, first = ~bits & (1 << len(self.calls)) - 1, inf
        while left:
            bit = left & -left
            call = self.calls[bit.bit_length() - 1]
            if call.began > first:
                return
            yield bit, call
            first = min(first, call.ended)
            left ^= bit

    def _spent(self, before: State, state: State) -> int:
        """Unknown releases of earlier grants do nothing now; whether they happened is the same."""
        if before.token == state.token:
            return 0
        return sum(bit for bit, call in self.unknown if call.token < state.token)

    def _bits(self, calls: Iterable[Call]) -> int:
        wanted = set(calls)
        return sum(1 << i for i, call in enumerate(self.calls) if call in wanted)

    def stuck(self) -> str:
        """Say what had no place in the longest order."""
        bits, state = max(self.seen, key=lambda each: (each[0] & self.due).bit_count())
        calls = [f"{call.act} {call.token} ({call.id})" for _, call in self._minimal(bits)]
        return f"after token {state.token} none of {', '.join(calls[:5])} has a place"
