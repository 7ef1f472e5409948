"""The rows of the page: the most urgent first, up to a limit, and the number left out."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Generic, TypeVar

from django.db import Error
from django.utils import timezone
from django.utils.translation import gettext as _

from django_dblock.conf import conf
from django_dblock.coordination.latch import alias_for as latches_alias
from django_dblock.exceptions import UnsupportedDatabase
from django_dblock.fencing.store import alias_for as leases_alias
from django_dblock.idempotency.store import alias_for as requests_alias
from django_dblock.inspect import (
    MOST_COUNTED,
    AdvisoryLock,
    AwaitedLatch,
    BlockingSession,
    FencedLease,
    LockWaits,
    Requests,
    UnfinishedRequest,
    awaited_latches,
    fenced_leases,
    lock_waits,
    read_requests,
    short_wait,
)
from django_dblock.monitor.formatting import one_line, visible
from django_dblock.monitor.graph_svg import Picture, draw
from django_dblock.monitor.wait_queues import (
    Blocker,
    Party,
    Queue,
    blockers,
    called,
    place,
    program,
    queues,
)

MOST_ROWS = 100
MOST_SEARCHED = 1000
"""Requests in each state among which a search looks."""

MOST_NAMES = 6
MOST_BLOCKERS = 5
_LATE = 0.5

_Row = TypeVar("_Row")
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Section(Generic[_Row]):
    """The rows that are shown, out of ``total`` that match, or out of ``more`` than that."""

    rows: tuple[_Row, ...]
    total: int
    more: bool = False

    @property
    def left_out(self) -> int:
        """The number of rows that are not shown."""
        return self.total - len(self.rows)


@dataclass(frozen=True, slots=True)
class Wait:
    """A waiter: the place in its queue, and the backends in front."""

    queue: Queue
    party: Party
    place: int
    behind: tuple[str, ...]
    more_behind: int


@dataclass(frozen=True, slots=True)
class Held:
    """A lock that a session holds."""

    name: str
    shared: bool
    waiters: int


@dataclass(frozen=True, slots=True)
class Session:
    """A backend, or a prepared transaction, that holds locks; the most wanted of them first."""

    lock: AdvisoryLock | BlockingSession
    program: str
    user: str
    query: str
    held: tuple[Held, ...]
    more_held: int
    waiters: int
    waiting: float | None
    waits_for: str = ""

    @property
    def stands_still(self) -> bool:
        """Whether the backend waits for its program while other backends wait for the backend."""
        return bool(self.waiters) and (self.lock.state or "").startswith("idle in transaction")


@dataclass(frozen=True, slots=True)
class OtherSession:
    """A backend without an advisory lock that blocks others; in words."""

    session: BlockingSession
    program: str
    user: str
    holds: tuple[str, ...]
    waits_for: str
    query: str


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease; ``share`` of its ``ttl`` is left, from 0 to 1."""

    lease: FencedLease
    name: str
    owner: str
    ttl: float
    share: float
    metadata: str

    @property
    def late(self) -> bool:
        """Whether the holder has missed two renewals."""
        return self.lease.state == "held" and self.share < _LATE

    @property
    def percent(self) -> int:
        """The share, for a bar."""
        return round(100 * self.share)


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request that has no response yet."""

    request: UnfinishedRequest
    name: str
    what: str
    owner: str
    steps: str


@dataclass(frozen=True, slots=True)
class LatchRow:
    """A latch that somebody waits for."""

    latch: AwaitedLatch
    name: str
    waiting: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of rows, shown or not."""

    waiting: int
    longest: float | None
    locks: int
    sessions: int
    leases: int
    late: int
    requests: int
    abandoned: int


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page."""

    counts: Counts
    blockers: Section[Blocker]
    picture: Picture
    waits: Section[Wait]
    sessions: Section[Session]
    leases: Section[LeaseRow]
    latches: Section[LatchRow]
    requests: Section[RequestRow]
    others: Section[OtherSession]
    hidden: bool
    at: datetime
    search: str


def make(  # noqa: PLR0913 - what the page shows
    lock_waits: LockWaits,
    leases: Sequence[FencedLease],
    requests: Requests,
    latches: Sequence[AwaitedLatch] = (),
    *,
    at: datetime,
    search: str = "",
) -> Page:
    """Return the page: the rows sorted by urgency, those that match the search, up to a limit.

    Args:
        lock_waits: as :func:`django_dblock.inspect.lock_waits` returns them.
        leases: as :func:`django_dblock.inspect.fenced_leases` returns them.
        requests: as :func:`django_dblock.inspect.read_requests` returns them.
        latches: as :func:`django_dblock.inspect.awaited_latches` returns them.
        at: when the rows were read.
        search: show only rows with this text in the name, program, owner, role or number.
    """
    locks, others = lock_waits.locks, lock_waits.blockers
    found = queues(locks, leases, others, lock_waits.waits)
    words = search.casefold()
    matching = [queue for queue in found if _queue_has(queue, words)]
    matching_ids = {queue.id for queue in matching}  # a queue may have thousands of waiters
    roots = blockers(matching)
    sessions = _sessions(locks)
    names: dict[int | None, list[str]] = defaultdict(list)
    for lock in locks if words else ():
        names[lock.pid].append(called(lock))
    lease_rows = [_lease(lease) for lease in leases]
    in_front = {f"session:{lock.pid}": lock.blocked_by for lock in locks if not lock.granted}
    in_front |= {f"session:{wait.pid}": wait.blocked_by for wait in lock_waits.waits}
    waits = [wait for queue in found for wait in _waits(queue, in_front)]
    waits.sort(key=lambda wait: -(wait.party.lasting or 0))
    return Page(
        counts=Counts(
            waiting=len(waits),
            longest=max((queue.longest for queue in found if queue.longest), default=None),
            locks=sum(lock.granted for lock in locks),
            sessions=len(sessions),
            leases=len(leases),
            late=sum(row.late for row in lease_rows),
            requests=requests.idle + requests.leased,
            abandoned=requests.idle,
        ),
        blockers=Section(tuple(roots[:MOST_BLOCKERS]), len(roots)),
        picture=draw(matching),
        waits=_section(waits, lambda wait: wait.queue.id in matching_ids),
        sessions=_section(
            sorted(sessions, key=_session_urgency),
            lambda each: _has(
                words, each.program, each.user, str(each.lock.pid), *names[each.lock.pid]
            ),
        ),
        leases=_section(
            sorted(lease_rows, key=_lease_urgency),
            lambda row: _has(words, row.name, row.lease.role, row.owner, row.metadata),
        ),
        latches=_section(
            map(_latch, latches), lambda row: _has(words, row.name, "latch", *row.waiting)
        ),
        requests=_requests(requests, words),
        others=_section(
            map(_other_session, others),
            lambda each: _has(words, each.program, each.user, str(each.session.pid), *each.holds),
        ),
        hidden=any(lock.hidden for lock in locks) or any(other.hidden for other in others),
        at=at,
        search=search,
    )


def one_session(locks: Sequence[AdvisoryLock], mine: Sequence[AdvisoryLock]) -> Session:
    """Return one backend, with what it holds and waits for, and how many wait for that."""
    waiting = {lock.pid: lock.waiting for lock in mine if not lock.granted}
    return _session(list(mine), _wanted(locks), waiting)


def one_blocker(session: BlockingSession) -> Session:
    """Return a backend without an advisory lock, with the rows and tables that it holds."""
    other = _other_session(session)
    return Session(
        lock=session,
        program=other.program,
        user=other.user,
        query=other.query,
        held=tuple(
            Held(name, shared=False, waiters=0 if number else session.keeps)
            for number, name in enumerate(other.holds)
        ),
        more_held=0,
        waiters=session.keeps,
        waiting=session.waiting,
        waits_for=other.waits_for,
    )


def _section(rows: Iterable[_Row], matches: Callable[[_Row], bool]) -> Section[_Row]:
    kept = [row for row in rows if matches(row)]
    return Section(tuple(kept[:MOST_ROWS]), len(kept))


def _has(words: str, *texts: str) -> bool:
    return not words or any(words in text.casefold() for text in texts)


def _queue_has(queue: Queue, words: str) -> bool:
    parties = chain(queue.holders, queue.waiters)
    return _has(words, queue.name) or any(
        _has(words, f"{party.pid} {party.name}") for party in parties
    )


def _waits(queue: Queue, in_front: Mapping[str, tuple[int, ...]]) -> Iterable[Wait]:
    holders = [holder.name for holder in queue.holders]
    for number, party in enumerate(queue.waiters, start=1):
        if queue.kind == "fenced":
            behind = holders
        else:
            behind = [str(pid or "prepared") for pid in dict.fromkeys(in_front[party.id])]
        yield Wait(queue, party, number, tuple(behind[:3]), max(0, len(behind) - 3))


def _sessions(locks: Sequence[AdvisoryLock]) -> list[Session]:
    wanted = _wanted(locks)
    waiting = {lock.pid: lock.waiting for lock in locks if not lock.granted}
    of: dict[object, list[AdvisoryLock]] = defaultdict(list)
    for lock in locks:
        if lock.granted:
            # The server does not tell which prepared transaction it is.
            of[lock.pid or ("prepared", place(lock))].append(lock)
    return [_session(held, wanted, waiting) for held in of.values()]


def _wanted(locks: Sequence[AdvisoryLock]) -> Counter[tuple[int, int, bool]]:
    return Counter(place(lock) for lock in locks if not lock.granted)


def _session(
    held: list[AdvisoryLock],
    wanted: Counter[tuple[int, int, bool]],
    waiting: dict[int | None, float | None],
) -> Session:
    waiters = {lock: wanted[place(lock)] if lock.granted else 0 for lock in held}
    held.sort(key=lambda lock: (-waiters[lock], lock.name is None))
    shown = held[:MOST_NAMES]
    if len(held) > MOST_NAMES:  # locks without a name are only counted
        shown = [lock for lock in shown if lock.name or waiters[lock]] or shown
    first = held[0]
    return Session(
        lock=first,
        program=program(first),
        user=visible(first.user or ""),
        query=visible(" ".join((first.query or first.last_statement or "").split())),
        held=tuple(Held(called(lock), lock.shared, waiters[lock]) for lock in shown),
        more_held=len(held) - len(shown),
        waiters=sum(waiters.values()),
        waiting=waiting.get(first.pid) if first.pid else None,
        waits_for=visible(first.waits_for or ""),
    )


def _requests(requests: Requests, words: str) -> Section[RequestRow]:
    rows = _section(
        map(_request, requests.rows), lambda row: _has(words, row.name, row.what, row.owner)
    )
    if words:  # among the requests that were read
        return rows
    more = requests.idle >= MOST_COUNTED or requests.leased >= MOST_COUNTED
    return Section(rows.rows, requests.idle + requests.leased, more=more)


def _other_session(session: BlockingSession) -> OtherSession:
    return OtherSession(
        session=session,
        program=program(session),
        user=visible(session.user or ""),
        holds=tuple(map(visible, session.holds)),
        waits_for=visible(session.waits_for or ""),
        query=visible(" ".join((session.query or "").split())),
    )


def _session_urgency(session: Session) -> tuple[int, float]:
    return -session.waiters, -(session.lock.transaction_age or 0)


def _lease(lease: FencedLease) -> LeaseRow:
    ttl = max(lease.remaining + lease.renewed, 0.0)
    share = min(max(lease.remaining / ttl, 0.0), 1.0) if ttl else 0.0
    metadata = ", ".join(f"{key}: {value}" for key, value in lease.metadata.items())
    return LeaseRow(lease, visible(lease.key), visible(lease.owner), ttl, share, visible(metadata))


def _lease_urgency(row: LeaseRow) -> tuple[int, bool, bool, float]:
    return (
        -len(row.lease.waiting), not row.late, row.lease.state == "held", row.lease.remaining,
    )  # fmt: skip


def _latch(latch: AwaitedLatch) -> LatchRow:
    return LatchRow(latch, visible(latch.name), tuple(map(visible, latch.waiting)))


def _request(request: UnfinishedRequest) -> RequestRow:
    return RequestRow(
        request=request,
        name=visible(request.name),
        what=visible(f"{request.method} {request.path}".strip()),
        owner=visible(request.owner),
        steps=", ".join(map(visible, request.steps)),
    )


# Read what the page shows. An error of the database is shown, not raised.


_UNDEFINED_TABLE = "42P01"


def read(
    using: str | None, search: str = "", *, own_namespace: bool = False
) -> tuple[Page, list[str]]:
    """Return the page of one alias, and messages about what could not be read.

    Four statements. The three that read tables are in transactions of their own, so that a session
    which has locked a table for itself holds up no page.

    Don't call this function in a transaction: an error of the server would abort it.
    """
    told: list[str] = []
    waits = _asked(
        lambda: lock_waits(using, own_namespace=own_namespace),
        LockWaits([], [], []),
        _("Advisory locks"),
        told,
    )
    nothing: list[FencedLease] = []

    def read_leases() -> list[FencedLease]:
        with short_wait(leases_alias(using)):
            return fenced_leases(using, own_namespace=own_namespace)

    leases = _asked(read_leases, nothing, _("Leases"), told)

    def read_latches() -> list[AwaitedLatch]:
        with short_wait(latches_alias(using)):
            return awaited_latches(using, own_namespace=own_namespace)

    no_latches: list[AwaitedLatch] = []
    latches = _asked(read_latches, no_latches, _("Latches"), told)
    only_own = own_namespace and conf.has_namespaces
    limit = MOST_SEARCHED if search else MOST_ROWS

    def read_unfinished() -> Requests:
        with short_wait(requests_alias(using)):
            # No index begins with the namespace, so others' requests are read and left out.
            return read_requests(using, limit=MOST_COUNTED if only_own else limit)

    requests = _asked(read_unfinished, Requests([], 0, 0), _("Requests"), told)
    if waits.standby:
        told.append(
            _(
                "This server is a standby: the advisory locks of the primary are not shown, and "
                "leases and requests may be outdated"
            )
        )
    if only_own:  # count only the rows that were read: other rows belong to other namespaces
        namespace = conf.namespace
        own = [row for row in requests.rows if row.namespace == namespace]
        leased = sum(row.state == "leased" for row in own)
        requests = Requests(own, len(own) - leased, leased)
    return make(waits, leases, requests, latches, at=timezone.now(), search=search), told


def _asked(ask: Callable[[], _Read], nothing: _Read, what: str, told: list[str]) -> _Read:
    try:
        return ask()
    except (Error, UnsupportedDatabase) as error:
        if getattr(error.__cause__, "sqlstate", None) == _UNDEFINED_TABLE:
            reason = _("the table is not in this database. Run 'manage.py migrate' if it should be")
        else:
            reason = one_line(str(error))
        told.append(_("%(what)s can't be shown: %(reason)s.") % {"what": what, "reason": reason})
        return nothing
