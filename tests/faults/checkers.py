"""Checkers: pure functions from what was seen to what was violated. They know no database.

The numbers are those of the invariants, which ``INVARIANTS`` names.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from tests.faults.history import FAIL, OK, UNKNOWN, Operation

INVARIANTS = {
    1: "acknowledged ≤ final ≤ acknowledged + unknown: no lost update, no phantom",
    2: "stock ≥ 0, sold + left constant",
    3: "one charge for each key, replays equal to the byte",
    4: "no write committed under a superseded token",
    5: "tokens unique and growing in real time; nobody trusts a superseded lease",
    6: "at rest: no advisory lock, each lease free in ttl + 1 s, no stray thread or connection",
    7: "versions = acknowledged saves",
    8: "an ambiguous COMMIT surfaces as unknown, never as failed",
    9: "nobody commits beside a writer; a latch opens after the commit of its last part",
}


class Violation(NamedTuple):
    """What was violated, and how often."""

    invariant: int
    text: str
    count: int = 1


class Entry(NamedTuple):
    """One committed write, in the order of commits of its name."""

    operation: str
    name: str
    change: int
    left: int
    token: int


def outcomes(history: Iterable[Operation], committed: Iterable[str]) -> list[Violation]:
    """Compare what each operation was told with what was committed (1, 8)."""
    times = Counter(committed)
    told = {operation.id: operation.outcome for operation in history}
    lost = [number for number, was in told.items() if was == OK and not times[number]]
    denied = [number for number, was in told.items() if was == FAIL and times[number]]
    return _some(
        (1, "acknowledged, and not there", lost),
        (8, "told to have failed, and there", denied),
        (1, "there more than once", [n for n, number in times.items() if number > 1]),
        (1, "there, and nobody asked for it", [n for n in times if n not in told]),
    )  # fmt: skip


def bounds(
    acknowledged: int, unknown: int, moved: int, what: str, invariant: int = 1
) -> list[Violation]:
    """Compare how far a number has moved with how many were told so (1, 7)."""
    if moved < acknowledged:
        lost = acknowledged - moved
        return [
            Violation(invariant, f"{what}: {lost} of {acknowledged} acknowledged are lost", lost)
        ]
    if moved > acknowledged + unknown:
        more = moved - acknowledged - unknown
        return [Violation(invariant, f"{what}: moved {more} times too often", more)]
    return []


def lost_updates(entries: Sequence[Entry], start: int, final: int, what: str) -> list[Violation]:
    """Compare the number in the row with what the committed writes add up to (1)."""
    due = start + sum(entry.change for entry in entries)
    if due == final:
        return []
    overwritten = sum(
        later.left != earlier.left + later.change for earlier, later in pairwise(entries)
    )
    text = f"{what} is {final}, and its {len(entries)} committed writes make {due}"
    return [Violation(1, text, max(1, overwritten))]


def stock(entries: Sequence[Entry], start: int, left: int, what: str) -> list[Violation]:
    """Look that nothing was sold twice, and nothing vanished (2)."""
    found = []
    if left < 0 or any(entry.left < 0 for entry in entries):
        found.append(Violation(2, f"{what}: the stock was below 0"))
    sold = -sum(entry.change for entry in entries)
    if sold + left != start:
        wrong = abs(sold + left - start)
        found.append(Violation(2, f"{what}: {sold} sold, {left} left of {start}", wrong))
    return found


def conserved(due: int, found: int, what: str) -> list[Violation]:
    """Compare a sum that nothing may change (2)."""
    if due == found:
        return []
    return [Violation(2, f"{what}: {found} instead of {due}", abs(due - found))]


def charges(charged: Mapping[str, int], answered: Iterable[str]) -> list[Violation]:
    """Count the charges of each key: one for each that was answered, never more (3)."""
    answered = set(answered)
    return _some(
        (3, "charged more than once", [key for key, number in charged.items() if number > 1]),
        (3, "answered, and not charged", [key for key in answered if not charged.get(key)]),
    )


def replays(answers: Mapping[str, Iterable[str]]) -> list[Violation]:
    """Compare all answers to one key (3)."""
    different = [key for key, bodies in answers.items() if len(set(bodies)) > 1]
    return _some((3, "answered differently", different))


def superseded(entries: Iterable[Entry]) -> list[Violation]:
    """Look for a write under a smaller token than an earlier one of its name (4)."""
    largest: dict[str, int] = defaultdict(int)
    found = []
    for entry in entries:
        if entry.token < largest[entry.name]:
            found.append(entry.operation)
        largest[entry.name] = max(largest[entry.name], entry.token)
    return _some((4, "committed under a superseded token", found))


def tokens(grants: Sequence[Operation]) -> list[Violation]:
    """Look that each token is greater than all that were granted before it was asked for (5).

    For each name a grant must beat the largest token of those that had ended when it began:
    O(n log n), for the ends are sorted once and looked up.
    """
    found: list[str] = []
    granted = [grant for grant in grants if grant.outcome == OK]
    for of_name in _by_name(granted).values():
        ended = sorted(of_name, key=lambda grant: grant.ended or 0)
        ends = [grant.ended for grant in ended]
        largest = list(accumulate((grant.data["token"] for grant in ended), max))
        for grant in of_name:
            before = bisect_left(ends, grant.began)
            if before and largest[before - 1] >= grant.data["token"]:
                found.append(grant.id)
    times = Counter((grant.data["name"], grant.data["token"]) for grant in granted)
    twice = [f"{name} {token}" for (name, token), number in times.items() if number > 1]
    return _some((5, "token not greater than an earlier one", found), (5, "granted twice", twice))


def trust(checks: Iterable[Operation], grants: Iterable[Operation]) -> list[Violation]:
    """Look for a holder that trusted its lease after somebody else was told of a grant (5)."""
    granted = _by_name(grant for grant in grants if grant.outcome == OK)
    found = []
    for name, checked in _by_name(check for check in checks if check.outcome == OK).items():
        ended = sorted(granted.get(name, ()), key=lambda grant: grant.ended or 0)
        ends = [grant.ended for grant in ended]
        largest = list(accumulate((grant.data["token"] for grant in ended), max))
        for check in checked:
            before = bisect_left(ends, check.began)
            if before and largest[before - 1] > check.data["token"]:
                found.append(check.id)
    return _some((5, "trusted, and superseded", found))


def beside_a_writer(entries: Iterable[Entry]) -> list[Violation]:
    """Look for commits of a reader beside a writer, or of two writers; a writer's change is 1 (9).

    A writer's token is greater than all before it, and a reader's than every earlier writer's. So
    in the order of commits, of two entries with a writer among them, the later has the larger.
    """
    written: dict[str, int] = defaultdict(int)
    seen: dict[str, int] = defaultdict(int)
    found = []
    for entry in entries:
        if entry.token < (seen if entry.change else written)[entry.name]:
            found.append(entry.operation)
        seen[entry.name] = max(seen[entry.name], entry.token)
        if entry.change:
            written[entry.name] = max(written[entry.name], entry.token)
    return _some((9, "committed beside a writer", found))


def rest(
    *, locks: int, held: Sequence[str], threads: Sequence[str], connections: Sequence[str]
) -> list[Violation]:
    """Look at what is left when all workers have ended (6)."""
    violations = [Violation(6, f"{locks} advisory locks are left", locks)] * bool(locks)
    return violations + _some(
        (6, "leases not free", held), (6, "threads left", threads),
        (6, "connections of ended workers left", connections),
    )  # fmt: skip


def versions(first: int, last: int, history: Iterable[Operation], what: str) -> list[Violation]:
    """Compare the version with the saves that were acknowledged (7)."""
    saves = Counter(operation.outcome for operation in history)
    return bounds(saves[OK], saves[UNKNOWN], last - first, f"the version of {what}", 7)


def _by_name(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        found[operation.data["name"]].append(operation)
    return found


def _some(*found: tuple[int, str, Sequence[str]]) -> list[Violation]:
    """Make a violation of each that is not empty, with the first few of it."""
    return [
        Violation(invariant, f"{len(which)} {text}: {', '.join(map(str, which[:5]))}", len(which))
        for invariant, text, which in found
        if which
    ]
