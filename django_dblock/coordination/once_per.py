"""``once_per``: a job that runs once in each period, however many processes start it."""

import functools
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from hashlib import blake2b
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast, overload
from zoneinfo import ZoneInfo

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import connections
from django.utils import timezone

from django_dblock.conf import MAX_RETENTION
from django_dblock.core.application_name import words
from django_dblock.core.connection import fetch
from django_dblock.exceptions import IdempotencyInProgress
from django_dblock.fencing.lease import Lease
from django_dblock.idempotency import store
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned, Options
from django_dblock.idempotency.run_once import arun_once, identity_of, run_once
from django_dblock.keys import KeyPart, encode, is_instance
from django_dblock.sql import coordination as sql

logger = logging.getLogger("django_dblock.coordination")

R = TypeVar("R")

Per: TypeAlias = str | Callable[[datetime], KeyPart]
"""``"day"``, ``"hour"``, ``"week"``, ``"month"``, ``"15 min"``, ``"6 hours"``, or a function from
the database's time to the name of its period."""

KEEP: Final = timedelta(days=30)
"""How long a finished run is remembered after its period, by default."""

KEEP_CUSTOM: Final = timedelta(days=400)
"""How long a run is remembered after the run itself, by default, if a function names the periods.

Nobody knows when such a period ends, and it may be a year."""

_STEPS = re.compile(r"([1-9][0-9]*) (min|hours)")
_DAY = 24 * 60
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Period:
    """One period of a calendar, in one time zone. The label identifies the period of a job.

    The label is a time of the wall clock. So the hour that comes twice when daylight saving time
    ends is one period, and the hour that is skipped when daylight saving time begins is no period.

    Attributes:
        label: ``2026-10-25``, ``2026-W43``, ``2026-10``, ``2026-10-25T02:00``; with a function as
            ``per``, the result of the function as text, in which a model instance is written as its
            model and pk, and a digest follows.
        start: the first instant of the period, in UTC; None with a function as ``per``.
        end: the first instant after the period, in UTC; None with a function as ``per``.
        day: the day on which the period begins, in the calendar's time zone; None with a function
            as ``per``.
    """

    label: str
    # In UTC, because Python compares moments of one time zone by their wall clocks.
    start: datetime | None = None
    end: datetime | None = None
    day: date | None = None

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class PeriodRun:
    """The outcome of a call of a :class:`OncePer` job.

    Attributes:
        period: the period of the call.
        state: ``ran``: this call ran the job; ``done``: the period had a finished run before;
            ``running``: another process is running the job now.
        result: the result of the finished run, as JSON restores it; None for ``running``.
    """

    period: Period
    state: Literal["ran", "done", "running"]
    result: Any


class _Calendar:
    """The division of time into periods."""

    def __init__(self, per: Per, tz: str | tzinfo | None) -> None:
        self.per = per
        self.tz = ZoneInfo(tz) if isinstance(tz, str) else tz
        self._minutes = 0
        if isinstance(per, str):
            self.name = per
            self._minutes = _minutes(per)
        elif callable(per):
            self.name = "custom"
        else:
            raise TypeError(f"The period must be a str or a callable, not {type(per).__name__}.")

    def period_of(self, moment: datetime) -> Period:
        """Return the period in which the moment lies."""
        if not isinstance(self.per, str):
            return Period(_text(self.per(moment.astimezone(UTC))))
        zone = self.zone
        return self._period(self._start(moment.astimezone(zone).replace(tzinfo=None)), zone)

    def periods(self, since: datetime, until: datetime) -> Iterator[Period]:
        """Yield each period that starts at ``since`` or later and has ended at ``until``."""
        zone = self.zone
        wall = self._start(since.astimezone(zone).replace(tzinfo=None))
        while True:
            period = self._period(wall, zone)
            assert period.start is not None  # noqa: S101 - only a function's has none
            assert period.end is not None  # noqa: S101
            if period.end > until:
                return
            # A period inside a gap of the wall clock has no instant: it ends when it starts.
            if period.start < period.end and period.start >= since:
                yield period
            wall = self._next(wall)

    @property
    def zone(self) -> tzinfo:
        """The time zone of the periods."""
        return timezone.get_default_timezone() if self.tz is None else self.tz

    def _start(self, wall: datetime) -> datetime:
        day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.per == "week":
            return day - timedelta(days=day.weekday())
        if self.per == "month":
            return day.replace(day=1)
        if self.per == "day":
            return day
        passed = (wall.hour * 60 + wall.minute) // self._minutes * self._minutes
        return day + timedelta(minutes=passed)

    def _next(self, wall: datetime) -> datetime:
        if self.per == "month":
            return (wall + timedelta(days=31)).replace(day=1)
        if self.per == "week":
            return wall + timedelta(days=7)
        return wall + timedelta(minutes=self._minutes)

    def _period(self, wall: datetime, zone: tzinfo) -> Period:
        start = _instant(wall, zone, fold=0)
        # fold=1: the second time, if the wall clock shows the last moment twice.
        end = _instant(self._next(wall) - _MICROSECOND, zone, fold=1) + _MICROSECOND
        return Period(self._label(wall), start, end, wall.date())

    def _label(self, wall: datetime) -> str:
        if self.per == "week":
            return f"{wall:%G-W%V}"
        if self.per == "month":
            return f"{wall:%Y-%m}"
        return f"{wall:%Y-%m-%d}" if self.per == "day" else f"{wall:%Y-%m-%dT%H:%M}"


def _instant(wall: datetime, zone: tzinfo, *, fold: int) -> datetime:
    """Return the instant of a time of the wall clock, in UTC.

    Args:
        wall: the time, without a time zone.
        zone: the time zone.
        fold: 0 for the first of two instants, 1 for the second. If the wall clock skips the time: 0
            for the first instant after the gap, 1 for the last instant before the gap.
    """
    instant = wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wall:
        return instant
    # The gap lies between the instants that the offsets after and before the gap give.
    before, after = (wall.replace(tzinfo=zone, fold=n).astimezone(UTC) for n in (1, 0))
    offset = before.astimezone(zone).utcoffset()
    while after - before > _MICROSECOND:
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return before if fold else after


def _minutes(per: str) -> int:
    """Return the length of a period in minutes of the wall clock; 0 for weeks and months."""
    known = {"day": _DAY, "hour": 60, "week": 0, "month": 0}
    if per in known:
        return known[per]
    steps = _STEPS.fullmatch(per)
    minutes = int(steps[1]) * (60 if steps[2] == "hours" else 1) if steps else 0
    if not minutes or _DAY % minutes:
        raise ValueError(
            f"{per!r} is not a period: use 'day', 'hour', 'week', 'month', '15 min' or '6 hours' "
            f"(a number that divides the day), or a callable of the database's time."
        )
    return minutes


def _text(part: Any) -> str:
    data = encode((part,))  # raises a TypeError that names the part, if no key can have such a part
    if not _has_instance(part):
        return str(part)
    # An instance's str() may change, and the readable text may be that of two rows.
    return f"{words((part,))}~{blake2b(data, digest_size=8).hexdigest()}"


def _has_instance(part: Any) -> bool:
    return any(map(_has_instance, part)) if isinstance(part, tuple) else is_instance(part)


class _Job(Generic[R]):
    """A function, its key and its calendar."""

    def __init__(self, job: "once_per", function: Callable[..., Any]) -> None:
        functools.update_wrapper(cast("Any", self), function)
        self._job = job
        self._function = function

    @property
    def key(self) -> tuple[KeyPart, ...]:
        """The parts of the job's key, without its period."""
        return self._job.key

    def period(self) -> Period:
        """Return the period that the database's clock is in now; one statement."""
        return self._job.current()

    def missed(self, since: datetime | date) -> list[Period]:
        """Return the job's periods that have ended without a finished run, oldest first.

        Args:
            since: an aware datetime, or a day: no period that starts earlier is returned.

        Raises:
            TypeError: the job's period is a callable, whose periods can't be listed, or ``since``
                is neither a datetime nor a date.
            ValueError: ``since`` is longer ago than ``keep``, or is not valid.
        """
        job = self._job
        if not isinstance(job.calendar.per, str):
            raise TypeError(
                "missed() can't list the periods of a callable: it doesn't know them all."
            )
        return _missed(job, since)


class OncePer(_Job[R]):
    """A job made by :class:`once_per`. Call it without arguments, as often as you like."""

    def __call__(self) -> R | None:
        """Run the job for the current period, unless that period has a finished run.

        Returns:
            The result of the period's finished run, as JSON restores it; None if another process
            is running the job now.
        """
        result: R | None = self.run().result
        return result

    def run(self) -> PeriodRun:
        """Run the job for the current period; return the run with its state and result."""
        now = self._job.now()
        return self._run(self._job.calendar.period_of(now), now)

    def run_for(self, period: Period | datetime | date) -> R | None:
        """Run the job for a period that was missed, unless that period has a finished run.

        Args:
            period: a period that :meth:`missed` returned, or a moment or a day in the period.

        Raises:
            TypeError: ``period`` is not a period, a moment or a day.
            ValueError: the moment has no time zone.
            IdempotencyError: or another error that a call of the job raises, see :class:`once_per`.
        """
        found = self._job.period_for(period)
        result: R | None = self._run(found, self._job.now()).result
        return result

    def _run(self, period: Period, now: datetime) -> PeriodRun:
        ran = False

        def work(*handle: Any) -> Any:
            nonlocal ran
            ran = True
            return self._function(period, *handle)

        job = self._job
        try:
            result = run_once(
                *job.key_for(period), work=work, mode=job.mode, **job.options(period, now)
            )
        except IdempotencyInProgress as error:
            return job.running(period, error)
        return PeriodRun(period, "ran" if ran else "done", result)


class AsyncOncePer(_Job[R]):
    """A job made by :class:`once_per` from a coroutine function; await each call."""

    async def __call__(self) -> R | None:
        """Run the job for the current period, unless that period has a finished run."""
        result: R | None = (await self.run()).result
        return result

    async def run(self) -> PeriodRun:
        """Run the job for the current period; return the run with its state and result."""
        now = await sync_to_async(self._job.now)()
        return await self._run(self._job.calendar.period_of(now), now)

    async def run_for(self, period: Period | datetime | date) -> R | None:
        """Run the job for a period that was missed, as :meth:`OncePer.run_for` does.

        Raises:
            TypeError: ``period`` is not a period, a moment or a day.
            ValueError: the moment has no time zone.
            IdempotencyError: or another error that a call of the job raises, see :class:`once_per`.
        """
        now = await sync_to_async(self._job.now)()
        result: R | None = (await self._run(self._job.period_for(period), now)).result
        return result

    async def _run(self, period: Period, now: datetime) -> PeriodRun:
        ran = False

        async def work(handle: Any) -> Any:
            nonlocal ran
            ran = True
            return await self._function(period, handle)

        job = self._job
        try:
            result = await arun_once(*job.key_for(period), work=work, **job.options(period, now))
        except IdempotencyInProgress as error:
            return job.running(period, error)
        return PeriodRun(period, "ran" if ran else "done", result)


class once_per:  # noqa: N801 - a decorator
    """Run a function once in each period, however many processes call it.

    For the nightly job that a scheduler starts on each of ten machines::

        @once_per("day", key="settlement", tz="Europe/Vienna")
        def settle(period): ...

    The period is a part of the key of :func:`~django_dblock.run_once`; the *database's* clock
    decides which period is current. A call returns the result of the period's finished run. If
    another process is running the job now, the call returns None, after ``wait`` seconds.

    Guaranteed in atomic mode:

    - The function's writes in the database of ``using`` commit together with the record that the
      period is done, or not at all. So a run that fails or dies leaves the period due, and the next
      call runs the job.
    - A period has at most one committed run: the record is looked for, and written, inside the
      transaction that commits the run.
    - A day of 23 or 25 hours is one period; an hour that comes twice is one period.

    Not guaranteed: that the function is called. :func:`missed` returns the periods without a
    successful call. Nothing is guaranteed about effects outside the database; for such effects use
    ``mode="lease"`` with steps, see :func:`~django_dblock.run_once`. After ``keep``, a period is
    forgotten, and ``run_for`` would run the job again.

    Args:
        per: ``"day"``, ``"hour"``, ``"week"`` (from Monday), ``"month"``, ``"15 min"``,
            ``"6 hours"`` (numbers that divide the day, counted from midnight of the wall clock);
            or a callable that takes the database's time (aware, UTC) and returns the period's name.
        key: the job's name, or a tuple of parts. It must not change with the function's name.
        tz: the time zone of the periods, a name or a tzinfo; by default Django's ``TIME_ZONE``. For
            periods shorter than an hour use ``"UTC"``: in a time zone with daylight saving time, an
            hour comes twice, and its periods run once.
        mode: ``"atomic"``: one transaction, called with the period. ``"lease"``: for work that
            calls the outside world, called with the period and the
            :class:`~django_dblock.idempotency.context.Handle`. A coroutine function needs
            ``"lease"``.
        keep: how long a period is remembered after its end, a timedelta or days; 30 days by
            default. With a callable as ``per`` the time counts from the run, because nobody knows
            when such a period ends, and the default is 400 days. Give more than the longest period,
            or the job runs again in that period.
        wait: seconds to wait for a run of the same period in another process. If that run fails,
            this call runs the job.
        lease: as in ``run_once``.
        on_abandoned: as in ``run_once``.
        using: the database alias, as in ``run_once``.

    Raises:
        ValueError, TypeError: an argument is not valid; before any SQL.
        KeyError: there is no time zone with the name ``tz`` (``ZoneInfoNotFoundError``).
        IdempotencyError, ImproperlyConfigured, TransactionManagementError, LockTableFull,
        LockDeadlock, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: when the job is called,
            raised when :func:`~django_dblock.run_once` raises them. IdempotencyInProgress comes
            only from the job's own function.

    Source: P. Helland, "Idempotence Is Not a Medical Condition", 2012; ShedLock and Solid Queue's
    recurring tasks serve the same purpose.
    """

    def __init__(  # noqa: PLR0913 - all but the first by name
        self,
        per: Per,
        *,
        key: KeyPart | tuple[KeyPart, ...],
        tz: str | tzinfo | None = None,
        mode: Mode = "atomic",
        keep: timedelta | float | None = None,
        wait: float = 0,
        lease: Duration | None = None,
        on_abandoned: OnAbandoned = "takeover",
        using: str | None = None,
    ) -> None:
        self.calendar = _Calendar(per, tz)
        self.key: tuple[KeyPart, ...] = key if isinstance(key, tuple) else (key,)
        encode(self.key)
        if keep is None:
            keep = KEEP if isinstance(per, str) else KEEP_CUSTOM
        self.keep = keep if isinstance(keep, timedelta) else timedelta(days=keep)
        if not timedelta(0) < self.keep <= timedelta(seconds=MAX_RETENTION):
            raise ValueError(f"keep={keep!r} is not a time above 0 and up to a hundred years.")
        Options(mode, self.keep, wait, lease, on_abandoned)  # a wrong option fails here
        self.mode: Mode = mode
        self._wait = wait
        self._lease = lease
        self._on_abandoned = on_abandoned
        self._using = using

    @overload  # a coroutine function fits both overloads: type checkers take the first
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[..., Awaitable[R]]
    ) -> AsyncOncePer[R]: ...

    @overload
    def __call__(self, function: Callable[..., R]) -> OncePer[R]: ...

    def __call__(self, function: Callable[..., Any]) -> Any:
        """Turn the function into a job that runs once in each period."""
        if not iscoroutinefunction(function):
            return OncePer(self, function)
        if self.mode != "lease":
            raise TypeError(
                "An async job needs mode='lease': Django's transactions can't span an await."
            )
        return AsyncOncePer(self, function)

    @property
    def using(self) -> str:
        """The database alias."""
        return store.alias_for(self._using)

    def now(self) -> datetime:
        """Return the database's time; one statement."""
        [(seconds,)] = fetch(connections[self.using], sql.CLOCK, {})
        return datetime.fromtimestamp(float(seconds), UTC)

    def current(self) -> Period:
        """Return the period that the database's clock is in now; one statement."""
        return self.calendar.period_of(self.now())

    def is_finished(self, period: Period) -> bool:
        """Return whether the job has a finished run for the period; one statement."""
        run = identity_of(self.key_for(period), self.using)
        parameters: dict[str, Any] = {**run.parameters(), "keys": [run.key]}
        return bool(fetch(connections[self.using], sql.FINISHED, parameters))

    def record(self, period: Period, lease: Lease) -> None:
        """Record that the job has a finished run for the period, if the lease is still held.

        Raises:
            LockLost: the lease is lost; nothing was recorded.
        """
        with lease.guard():
            run_once(*self.key_for(period), work=lambda: None, **self.options(period, self.now()))

    def key_for(self, period: Period) -> tuple[KeyPart, ...]:
        """Return the key of ``run_once`` for one period."""
        return ("once_per", *self.key, self.calendar.name, period.label)

    def period_for(self, period: Period | datetime | date) -> Period:
        """Return the period of a moment or a day; return a period unchanged."""
        if isinstance(period, Period):
            return period
        return self.calendar.period_of(_moment(period, self.calendar))

    def options(self, period: Period, now: datetime) -> dict[str, Any]:
        """Return the options of ``run_once``; the record outlives its period."""
        left = timedelta(0) if period.end is None else max(period.end - now, timedelta(0))
        return {
            "ttl": min(left + self.keep, timedelta(seconds=MAX_RETENTION)),
            "wait": self._wait,
            "lease": self._lease,
            "on_abandoned": self._on_abandoned,
            "using": self._using,
        }

    def running(self, period: Period, error: IdempotencyInProgress) -> PeriodRun:
        """Return a run in the state ``running``, and log that another process runs the job.

        Raises:
            IdempotencyInProgress: the error is that of a ``run_once()`` inside the job's function.
        """
        if error.key != identity_of(self.key_for(period), self.using).facts["key"]:
            raise error
        logger.info("%s for %s is running in another process", self.name, period.label)
        return PeriodRun(period, "running", None)

    @property
    def name(self) -> str:
        """The job's readable name."""
        return ":".join(map(str, self.key))


def missed(  # noqa: PLR0913 - all but the first two by name
    key: KeyPart | tuple[KeyPart, ...],
    *,
    per: str,
    since: datetime | date,
    tz: str | tzinfo | None = None,
    keep: timedelta | float = KEEP,
    using: str | None = None,
) -> list[Period]:
    """Return the periods of a job that have ended without a finished run, the oldest first.

    Two statements. To catch up, call ``settle.run_for(period)`` for each period.

    Args:
        key: the job's key, as in :class:`once_per`.
        per: the job's period.
        since: an aware datetime, or a day: no period that starts earlier is returned. It can't be
            longer ago than ``keep``: older runs are forgotten, and would look missed.
        tz: the job's time zone.
        keep: the job's ``keep``. After you have raised it, runs from before are still forgotten
            when the old ``keep`` has passed.
        using: the database alias.

    Raises:
        TypeError: ``per`` is a callable, whose periods can't be listed, or ``since`` is neither a
            datetime nor a date.
        ValueError: ``since`` is longer ago than ``keep``, or an argument is not valid.
        KeyError: there is no time zone with the name ``tz`` (``ZoneInfoNotFoundError``).
        UnsupportedDatabase: the database is not PostgreSQL.
    """
    if not isinstance(per, str):
        raise TypeError("missed() can't list the periods of a callable: it doesn't know them all.")
    return _missed(once_per(per, key=key, tz=tz, keep=keep, using=using), since)


def _missed(job: once_per, since: datetime | date) -> list[Period]:
    calendar = job.calendar
    first = _moment(since, calendar)
    now = job.now()
    if first < now - job.keep:
        raise ValueError(
            f"since={since} is longer ago than keep={job.keep}: runs of that time are forgotten, "
            f"and would look missed."
        )
    periods = list(calendar.periods(first, now))
    runs = {identity_of(job.key_for(period), job.using): period for period in periods}
    if not runs:
        return []
    keys = {run.key: period for run, period in runs.items()}
    first_run = next(iter(runs))  # all of them are of one namespace and scope
    parameters: dict[str, Any] = {**first_run.parameters(), "keys": list(keys)}
    finished = {key for (key,) in fetch(connections[job.using], sql.FINISHED, parameters)}
    return [period for key, period in keys.items() if key not in finished]


def _moment(when: datetime | date, calendar: _Calendar) -> datetime:
    """Return an aware moment; of a day, its first instant in the calendar's time zone."""
    if isinstance(when, datetime):
        if timezone.is_naive(when):
            raise ValueError(f"{when!r} has no time zone, so it names no moment.")
        return when
    if not isinstance(when, date):
        raise TypeError(f"{when!r} is neither an aware datetime nor a date.")
    noon = datetime(when.year, when.month, when.day, 12, tzinfo=calendar.zone)
    start = _Calendar("day", calendar.tz).period_of(noon).start
    assert start is not None  # noqa: S101 - only a function's period has none
    return start
