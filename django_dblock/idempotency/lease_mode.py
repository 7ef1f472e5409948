"""Lease mode: claim and commit, run, complete.

The package's docstring states the protocol.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, transaction
from django.db.transaction import TransactionManagementError
from psycopg.pq import TransactionStatus

from django_dblock import signals
from django_dblock.core.cancellation import to_its_end
from django_dblock.core.clock import monotonic
from django_dblock.core.connection import (
    drop_if_dead,
    in_callers_transaction,
    in_testcase,
    interruption_of_commit,
)
from django_dblock.core.replication import watch_commits
from django_dblock.exceptions import IdempotencyNotReplicated
from django_dblock.fencing.store import owner
from django_dblock.idempotency import store
from django_dblock.idempotency.claim import SWALLOWED, Lease
from django_dblock.idempotency.identity import Identity, RequestFingerprint
from django_dblock.idempotency.options import Options
from django_dblock.idempotency.outcome import (
    Done,
    Finished,
    Outcome,
    Refused,
    decide,
    in_progress,
    tell,
)
from django_dblock.sql import idempotency as sql

Kept = Callable[[Any], dict[str, Any]]
"""A function from a response to what is stored of it, in the form that the statements take."""

_AT_REST = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)
"""The states without an open transaction; UNKNOWN is that of a lost connection."""

_UNSET: Any = object()

_SHORTEST, _LONGEST = 0.02, 0.5
"""The bounds of the pause between two reads of the row, in seconds."""


class Run:
    """One request in lease mode. The caller sleeps, so that async code can use the class, too."""

    def __init__(
        self, identity: Identity, asked: RequestFingerprint, options: Options, kept: Kept
    ) -> None:
        self.identity = identity
        self.asked = asked
        self.options = options
        self.kept = kept
        self._deadline = monotonic() + options.wait

    def begin(self) -> Lease | Outcome:
        """Claim the request and commit the claim; or return the outcome if it may not run.

        Raises:
            ImproperlyConfigured: a transaction is open, so a crash would undo the claim.
            LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: the lock can't be
                taken; see the errors of :class:`~django_dblock.advisory_lock`.
            DamagedAnswer: the stored response, or the result of a step, can't be read.
        """
        connection = connections[self.identity.using]
        _refuse_transaction(connection)
        drop_if_dead(connection)
        begun: Lease | Outcome | None = None
        try:
            with transaction.atomic(using=connection.alias):
                watch = watch_commits(connection)
                before = watch.unconfirmed
                begun = self._read_and_claim(connection)
        except BaseException as raised:
            interruption = interruption_of_commit(connection, raised)
            if isinstance(begun, Lease):  # whether its claim was committed is not known
                self.try_to_give_up(begun)
            if interruption is not None:
                raise interruption from None
            raise
        if watch.unconfirmed != before:
            if isinstance(begun, Lease):  # no run may hold a claim that was not replicated
                self.give_up(begun)
            return Refused(store.mark_unconfirmed(self.identity))
        if isinstance(begun, Lease) and begun.key_was_derived:
            tell(signals.idempotent_taken_over, self.identity, "lease", token=begun.claim.token)
        return begun

    def _read_and_claim(self, connection: Any) -> Lease | Outcome:
        """Lock and read the request, and claim it; or return the outcome if it may not run."""
        options = self.options
        refuses = options.on_abandoned == "refuse"
        since = monotonic()
        found = store.ask(connection, self.identity, self.asked, read=sql.READ_WITH_REMAINING)
        known = decide(found, self.identity, resumes=True, refuses=refuses)
        if known is not None:
            if found.unconfirmed:
                store.confirm(connection, self.identity)
            return known
        claimed = store.claim(
            connection,
            self.identity,
            self.asked,
            found,
            owner=owner(),
            lease=options.lease_seconds,
            ttl=None if refuses else options.ttl_seconds,
        )
        if claimed is None:  # a transaction of the last holder is still open
            return Refused(in_progress(self.identity, 1))
        lease = Lease(self.identity, claimed, options, since, self.kept)
        lease.key_was_derived = found.state in ("free", "abandoned")
        return lease

    def delay(self, begun: Lease | Outcome) -> float | None:
        """Return the seconds to sleep before the next attempt; None if no attempt is left."""
        left = self._deadline - monotonic()
        if not isinstance(begun, Refused) or begun.error.code != "in_progress" or left <= 0:
            return None
        return min(left, random.uniform(_SHORTEST, _LONGEST))  # noqa: S311 - no secret

    def finish(self, lease: Lease, finished: Finished) -> Outcome:
        """Record the response, or free the request if there is none to store.

        If another run has taken the request over, return that run's response, or that that run is
        still in progress.

        Raises:
            TransactionManagementError: the view has left a transaction open; or it has responded
                with what it gave to ``complete()`` in a transaction that was rolled back. Then the
                request is freed.
        """
        _refuse_left_open(connections[self.identity.using])
        if lease.lost is not None:
            return self.after_loss()
        if lease.completed:
            return Done(finished.result, kept=True)
        if finished.answer is None:
            self.give_up(lease)
            return Done(finished.result, kept=False)
        using, claim = self.identity.using, lease.claim
        is_rolled_back = finished.returned is lease.recorded and not finished.failed
        if is_rolled_back and not store.is_completed(using, claim):  # TestCase runs no hook
            self.try_to_give_up(lease)
            raise TransactionManagementError(SWALLOWED)
        return self._complete(lease, finished, finished.answer)

    def _complete(self, lease: Lease, finished: Finished, answer: dict[str, Any]) -> Outcome:
        connection = connections[self.identity.using]
        watch = watch_commits(connection)
        before = watch.unconfirmed
        parameters = {**answer, "ttl": self.options.ttl_seconds}
        if store.write(self.identity.using, lease.claim, sql.COMPLETE, **parameters):
            if watch.unconfirmed != before:
                return Refused(store.mark_unconfirmed(self.identity))
            return Done(finished.result, kept=True)
        if store.is_completed(self.identity.using, lease.claim):  # in TestCase's transaction
            return Done(finished.result, kept=True)
        return self.after_loss()

    def give_up(self, lease: Lease) -> None:
        """Let the next retry run, unless a step may have had its effect without being recorded.

        With ``on_abandoned="refuse"`` such a request is left to an operator. If another system may
        know the key, the key stays bound to this request, as after a crash.
        """
        using, claim = self.identity.using, lease.claim
        if lease.in_doubt and self.options.on_abandoned == "refuse":
            store.write(using, claim, sql.ABANDON)
        elif lease.in_doubt or lease.key_was_derived:
            store.write(using, claim, sql.FREE, ttl=self.options.ttl_seconds)
        else:
            store.write(using, claim, sql.GIVE_UP)

    def try_to_give_up(self, lease: Lease) -> None:
        """Give the request up after an error, which an error of the database must not hide.

        If the database can't be reached, the claim ends with its lease.
        """
        with suppress(Error):
            self.give_up(lease)

    def after_loss(self) -> Outcome:
        """Return the response of the run that took the request over, or that it is running.

        A response that no synchronous standby has confirmed is not given: a failover could lose it.
        """
        connection = connections[self.identity.using]
        found = store.look(connection, self.identity, self.asked)
        if found.unconfirmed:
            return Refused(store.not_replicated(self.identity))
        known = decide(found, self.identity, resumes=True, refuses=False)
        return known or Refused(in_progress(self.identity, 1))


def run(
    identity: Identity,
    asked: RequestFingerprint,
    options: Options,
    work: Callable[[Lease], Finished],
    kept: Kept,
) -> Outcome:
    """Run the work once, outside of any transaction.

    Args:
        identity: the identity of the request.
        asked: the fingerprint of the request.
        options: the options of the view or task.
        work: the work. An exception that it raises frees the request and is passed on.
        kept: returns what is stored of a response that the work completes with.

    Raises:
        ImproperlyConfigured: a transaction is open.
        TransactionManagementError: see :meth:`Run.finish`.
    """
    this = Run(identity, asked, options, kept)
    while (delay := this.delay(begun := this.begin())) is not None:
        time.sleep(delay)
    if not isinstance(begun, Lease):
        return begun
    try:
        finished = work(begun)
    except BaseException as error:
        if error is begun.lost:
            return this.after_loss()
        this.try_to_give_up(begun)
        if isinstance(error, IdempotencyNotReplicated):
            return Refused(error)
        raise
    return this.finish(begun, finished)


async def arun(  # noqa: PLR0913 - the last by name
    identity: Identity,
    asked: RequestFingerprint,
    options: Options,
    work: Callable[[Lease], Coroutine[Any, Any, Finished]],
    kept: Kept,
    *,
    shield: bool = False,
) -> Outcome:
    """Run async work once, outside of any transaction; as :func:`run`.

    If the work ends in a cancellation, its claim is not given up and stays until its lease ends:
    threads that the work has started can't be cancelled, and may still write.

    Args:
        identity: the identity of the request.
        asked: the fingerprint of the request.
        options: the options of the view or task.
        work: the async work.
        kept: returns what is stored of a response that the work completes with.
        shield: whether a cancellation waits for the work, until the lease has run out. Django
            cancels a view whose client has gone, and the client will repeat its request.
    """
    this = Run(identity, asked, options, kept)
    begun = await _abegin(this)
    if not isinstance(begun, Lease):
        return begun
    cancelled: asyncio.CancelledError | None = None
    try:
        if shield:
            task, cancelled = await _shielded(work(begun), begun)
            finished = task.result()
        else:
            finished = await work(begun)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if error is begun.lost and cancelled is None:
            return await sync_to_async(this.after_loss)()
        _, later = await to_its_end(sync_to_async(this.try_to_give_up)(begun))
        if (cancelled := cancelled or later) is not None:
            raise cancelled from error
        if isinstance(error, IdempotencyNotReplicated):
            return Refused(error)
        raise
    outcome, later = await to_its_end(sync_to_async(this.finish)(begun, finished))
    if (cancelled := cancelled or later) is not None:
        raise cancelled
    return outcome


async def _abegin(this: Run) -> Lease | Outcome:
    """Claim the request, waiting as long as the options allow; free the claim if cancelled."""
    begin, give_up = sync_to_async(this.begin), sync_to_async(this.try_to_give_up)
    while True:
        begun, cancelled = await to_its_end(begin())
        if cancelled is not None:
            if isinstance(begun, Lease):
                await to_its_end(give_up(begun))
            raise cancelled
        if (delay := this.delay(begun)) is None:
            return begun
        await asyncio.sleep(delay)


async def _shielded(
    work: Coroutine[Any, Any, Finished], lease: Lease
) -> tuple[asyncio.Task[Finished], asyncio.CancelledError | None]:
    """Await the work in a task of its own; return the task, and the caller's cancellation if any.

    The work is cancelled only if the caller is cancelled and the lease has expired.
    """
    context = copy_context()
    task = asyncio.get_running_loop().create_task(work, context=context)
    cancelled: asyncio.CancelledError | None = None
    stopped = False
    while not task.done():
        if cancelled is not None and not stopped and lease.remaining == 0:
            stopped = task.cancel()
        patience = None if cancelled is None or stopped else lease.remaining
        try:
            await asyncio.wait({task}, timeout=patience)
        except asyncio.CancelledError as error:
            cancelled = error
    # Context variables that the work has set are visible to the middleware, as without the task.
    for variable in context:
        if variable.get(_UNSET) is not context[variable]:
            variable.set(context[variable])
    return task, cancelled


def _refuse_transaction(connection: Any) -> None:
    """Raise ImproperlyConfigured if a transaction other than TestCase's is open."""
    if in_callers_transaction(connection):
        raise ImproperlyConfigured(
            f"@idempotent(mode='lease') was reached inside an open transaction on database "
            f"{connection.alias!r}: a crash would undo its claim, and the "
            f"transaction would stay open while the outside world is called. ATOMIC_REQUESTS opens "
            f"one around each view: decorate the function, or what as_view() returns in the "
            f"URLconf, with transaction.non_atomic_requests; or use mode='atomic'."
        )


def _refuse_left_open(connection: Any) -> None:
    """Raise TransactionManagementError if the view has left a transaction open."""
    if in_testcase(connection):
        return
    driver = connection.connection
    idle = driver is None or driver.info.transaction_status in _AT_REST
    if idle and connection.get_autocommit():
        return
    raise TransactionManagementError(
        f"The view has left a transaction open on database {connection.alias!r}, by BEGIN past "
        f"Django or with autocommit off, so neither its writes nor its response would be "
        f"committed. The response was not stored. Use transaction.atomic(), or commit before the "
        f"end."
    )
