"""The public handle of one grant: the ``lock`` of ``with fenced_lock(…) as lock``."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from math import ceil
from typing import Any

from asgiref.sync import sync_to_async
from django.db import Error, NotSupportedError, connections, transaction
from django.dispatch import Signal

from django_dblock import signals
from django_dblock.conf import MAX_TIMEOUT
from django_dblock.core import application_name as labels
from django_dblock.core.connection import drop_if_dead, in_transaction, interruption_of_commit
from django_dblock.core.simple_query import send
from django_dblock.exceptions import LockLost, OpenTransaction
from django_dblock.fencing import store
from django_dblock.fencing.acquire import Success
from django_dblock.fencing.deadline import EXPIRED, GONE, Trust, now
from django_dblock.fencing.heartbeat import heartbeat
from django_dblock.fencing.store import Place
from django_dblock.sql import fencing as sql

# A transaction that can only commit while its lease is held.


_LONGEST_MILLISECONDS = 2_147_483_647
"""The longest timeout that the server can express."""


@contextmanager
def guarded(trust: Trust, idle_timeout: float) -> Iterator[None]:
    """Open a transaction or join the open transaction, and lock the lease's row in it.

    Raises:
        LockLost: the lease is not held any more.
    """
    connection = connections[trust.place.using]
    drop_if_dead(connection)
    if in_transaction(connection):
        with transaction.mark_for_rollback_on_error(using=connection.alias):
            held = _is_held(trust, idle_timeout)
        if not held:
            raise _lost(trust)
        yield
        return
    try:
        with transaction.atomic(using=connection.alias):
            _lock_row(trust, idle_timeout)
            yield
    except BaseException as raised:
        if (interruption := interruption_of_commit(connection, raised)) is not None:
            raise interruption from None
        raise


def _lock_row(trust: Trust, idle_timeout: float) -> None:
    if not _is_held(trust, idle_timeout):
        raise _lost(trust)


def _is_held(trust: Trust, idle_timeout: float) -> bool:
    place = trust.place
    milliseconds = min(max(1, ceil(idle_timeout * 1000)), _LONGEST_MILLISECONDS)
    parameters: dict[str, str | int | list[int] | None] = {
        "name": place.name,
        "slot": place.slot,
        "token": trust.token,
        "idle_timeout": milliseconds,
    }
    statement = store.in_schema(sql.GUARD, place.schema)
    return bool(send(connections[place.using], statement, parameters=parameters))


def _lost(trust: Trust) -> LockLost:
    trust.lose("the lock table no longer has the lease with this token")
    return LockLost(**trust.place.facts, token=trust.token, reason=str(trust.reason))


logger = logging.getLogger("django_dblock.fencing")

_SHORTEST_IDLE = 30.0
_PAUSE = 0.005


def is_ttl(value: object) -> bool:
    """Return whether a value is a number of seconds that a lease can last."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_TIMEOUT
    )


def not_a_ttl(argument: str, value: object) -> ValueError:
    """Return the error for an argument that :func:`is_ttl` refuses."""
    return ValueError(
        f"{argument}={value!r} is not a number of seconds above 0 and up to {MAX_TIMEOUT:.0f}."
    )


class Lease:
    """One grant of a fenced lock, identified by its token, never by a host, process or thread.

    Guaranteed while :attr:`lost` is false: no other holder has been granted the lock since.
    ``lost`` reads this process's clock only. Writes that must be right go through :meth:`guard` or
    ``save_fenced``, where the database checks the lease. A lease can be used from any thread of
    the process that acquired it; in a forked child it is lost.

    Attributes:
        key: the key's parts, as given.
        name: the key's readable name.
        using: the database alias of the lock table.
        token: the fencing token, greater than the token of every earlier grant of the key. Pass it
            to the systems you call; they must refuse a token smaller than the largest they have
            seen.
        metadata: the metadata that was given to ``fenced_lock``, as stored in the table.
        waited: seconds spent waiting for the lease.
        fences_rows: whether the token may be written into rows: ``save_fenced(lease)`` needs
            tokens that all compare with each other.
    """

    fences_rows = True

    def __init__(  # noqa: PLR0913 - made in one place, by fenced_lock
        self,
        place: Place,
        success: Success,
        *,
        ttl: float,
        hold_at_least: float,
        metadata: dict[str, Any],
        on_lost: Callable[["Lease"], object] | None,
    ) -> None:
        self.key = place.key.parts
        self.name = labels.name(place.key)
        self.using = place.using
        self.token = success.grant.token
        self.metadata = metadata
        self.waited = success.waited
        self._place = place
        self._hold_at_least = hold_at_least
        self._on_lost = on_lost
        self._since = now()
        self._is_released = False
        self.stop: Callable[[], None] | None = None
        self.trust = Trust(
            place, success.grant, ttl=ttl, before=success.before, when_lost=self._tell_loss
        )

    def __repr__(self) -> str:
        return f"<Lease {self.name} token={self.token} remaining={self.remaining:.1f} s>"

    @property
    def expires_at(self) -> datetime:
        """When the lease expires by the *server's* clock, unless it is renewed."""
        return self.trust.expires_at

    @property
    def remaining(self) -> float:
        """Seconds for which the lease can be trusted without another renewal; 0 after its end."""
        return self.trust.remaining

    @property
    def lost(self) -> bool:
        """Whether the lease ended before it was released. Sends nothing; stays True once True."""
        return self.trust.reason is not None

    def check(self) -> None:
        """Raise if the lease can no longer be trusted. Reads the clock; sends nothing.

        Raises:
            LockLost: the lease expired, was taken over, or was already released.
        """
        if self.lost or self.trust.ended:
            raise self.loss()

    def renew(self, ttl: float | None = None) -> None:
        """Renew the lease now; one statement, one commit, on the caller's connection.

        An expiry is never moved back: with a smaller ttl the lease still runs until its old expiry.

        Args:
            ttl: seconds from now, and for all later renewals; None keeps the ttl.

        Raises:
            LockLost: the lease expired, was taken over, or was already released.
            OpenTransaction: a transaction is open on the connection.
            NotReplicated: no synchronous standby confirmed the renewal. The lease is not lost.
            StandbyDatabase: the server is a standby. The lease is not lost.
            django.db.Error: the renewal failed, or its result is unknown. The lease is not lost.
            ValueError: ``ttl`` is not a number of seconds above 0.
        """
        if ttl is not None and not is_ttl(ttl):
            raise not_a_ttl("ttl", ttl)
        for trust in self.trusts:
            self._renew(trust, trust.ttl if ttl is None else float(ttl))
        self.check()

    def _renew(self, trust: Trust, ttl: float) -> None:
        while True:
            self.check()
            before = now()
            renewal = store.renew(trust.place, trust.token, ttl)
            if renewal.expires_at is not None:
                break
            if not renewal.ours:
                trust.lose(GONE)
            time.sleep(_PAUSE)  # another transaction, perhaps the heartbeat's, has locked the row
        trust.ttl = ttl
        trust.extend(before, ttl, renewal.expires_at)

    async def arenew(self, ttl: float | None = None) -> None:
        """Renew the lease from a coroutine; otherwise as :meth:`renew`."""
        await sync_to_async(self.renew)(ttl)

    def release(self) -> bool:
        """Release the lease before the block ends; one statement, one commit.

        Returns whether this call released it: False if the lease was lost, which is not an error
        by itself, and False if it was already released.

        If the server has dropped the caller's connection, the release is sent once more on a new
        connection. If a waiter has asked for the lease, it is notified in the same commit.

        Raises:
            OpenTransaction: a transaction is open on the connection; the lease is still held.
            NotSupportedError: the connection is in pipeline mode; the lease is still held.
            StandbyDatabase: the server is a standby; then the lease expires.
            django.db.Error: the release failed, or its result is unknown; then the lease expires.
        """
        if self._is_released or self.trust.foreign:
            return False
        try:
            store.refuse_transaction(self._place, connections[self.using], "released")
        except (OpenTransaction, NotSupportedError):
            raise  # nothing was tried: the lease is held on
        except Error:  # asking whether a transaction is open has to connect first
            self.stop_renewing()
            raise
        lost = self.lost
        self.stop_renewing()  # first, so that the heartbeat does not examine a released lease
        had = self._release_row(was_lost=lost)
        self.note_release(had=had, lost=lost)
        return had and not lost

    def note_release(self, *, had: bool, lost: bool) -> None:
        """Record that the row was released, perhaps together with other rows.

        Args:
            had: whether the row was still this grant's.
            lost: whether the lease was lost before.
        """
        self._is_released = True
        if not had:
            self.trust.lose(GONE)
        self._send(signals.lock_released, held=now() - self._since, lost=lost or not had)

    async def arelease(self) -> bool:
        """Release the lease from a coroutine; otherwise as :meth:`release`."""
        return await sync_to_async(self.release)()

    def guard(self, *, idle_timeout: float | None = None) -> AbstractContextManager[None]:
        """Open a transaction that commits only if the lease is still held; one statement.

        The lease's row is locked FOR KEY SHARE until the transaction ends: the heartbeat goes
        on, and no other holder is granted the lock before this transaction's COMMIT or ROLLBACK,
        even if the lease expires meanwhile. So no newer holder can overlook a guarded write. Inside
        an open transaction, the guard joins that transaction, and the same holds until *its* end.

        Not guaranteed: anything about commits in other databases, or about ``on_commit`` hooks,
        which run after COMMIT (guard what they write).

        Args:
            idle_timeout: seconds for which the transaction may be idle before the server ends it,
                so that a frozen holder does not block others indefinitely; the larger of ttl and 30
                by default. A stricter setting of the session stays in force.

        Raises:
            LockLost: the lease is no longer held; nothing was written.
            ValueError: ``idle_timeout`` is not a number of seconds above 0.

        Source: PostgreSQL manual, 13.3.2 "Row-Level Locks".
        """
        if idle_timeout is not None and not is_ttl(idle_timeout):
            raise not_a_ttl("idle_timeout", idle_timeout)
        self.check()
        return self._guarded(self.trust, idle_timeout)

    def _guarded(self, trust: Trust, idle_timeout: float | None) -> AbstractContextManager[None]:
        return guarded(
            trust, max(trust.ttl, _SHORTEST_IDLE) if idle_timeout is None else idle_timeout
        )

    @property
    def place(self) -> Place:
        """The row of the lock table."""
        return self._place

    @property
    def trusts(self) -> tuple[Trust, ...]:
        """What this process knows of each row of the lease: one row, except for a semaphore's."""
        return (self.trust,)

    def stop_renewing(self) -> None:
        """Stop renewing the lease; from now on it counts as released."""
        for trust in self.trusts:
            heartbeat.forget(trust)
            trust.end()

    def _release_row(self, *, was_lost: bool) -> bool:
        return store.release(
            self._place, self.token, hold_at_least=self._hold_at_least, was_lost=was_lost
        )

    def loss(self) -> LockLost:
        """Return a LockLost with the reason why the lease can't be used."""
        reason = self.trust.reason or "it was released"
        return LockLost(**self._place.facts, token=self.token, reason=reason)

    def leave(self, *, failed: bool) -> bool:
        """Release the lease at the end of the block; return whether it was lost.

        The block's own error takes precedence over one of the release. A lease that can't be
        released is no longer renewed, and expires.
        """
        try:
            self.release()
        except store.FAILURES as error:
            # for example OpenTransaction or a pipeline, where no release was sent
            self.stop_renewing()
            if not failed:
                error.add_note(
                    f"{self.name} was not released. It is no longer renewed, and expires within "
                    f"{self.trust.ttl:g} s."
                )
                raise
            logger.warning(
                "%s was not released, it expires", self.name, exc_info=True, extra=self._logged
            )
        except BaseException:  # a signal handler's exception, or a statement in an event loop
            self.stop_renewing()
            raise
        return self.lost

    def stop_on_loss(self, stop: Callable[[], None]) -> None:
        """Call ``stop`` when the lease is lost, or at once if it is lost already."""
        self.stop = stop
        if self.lost:
            stop()

    def _tell_loss(self, reason: str) -> None:
        logger.warning(
            "%s on %r (token %s) is lost: %s",
            self.name,
            self.using,
            self.token,
            reason,
            extra={**self._logged, "reason": reason},
        )
        if self.stop is not None:
            self.stop()
        held = now() - self._since
        self._send(signals.lock_lost, reason=reason, held=held, expired=reason == EXPIRED)
        if self._on_lost is not None:
            try:
                self._on_lost(self)
            except Exception:  # in the heartbeat's thread the error would be lost
                logger.exception("on_lost of %s failed", self.name, extra=self._logged)

    @property
    def _logged(self) -> dict[str, Any]:
        return {
            "kind": self._place.kind,
            "lock": self.name,
            "using": self.using,
            "token": self.token,
        }

    def _send(self, signal: Signal, **more: object) -> None:
        if signal.receivers:
            signal.send_robust(
                Lease,
                kind=self._place.kind,
                shared=False,
                **self._place.facts,
                token=self.token,
                **more,
            )
