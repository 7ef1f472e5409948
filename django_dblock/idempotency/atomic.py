"""Atomic mode: lock, read, run and record in one transaction.

The package's docstring states the protocol.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psycopg
from django.db import Error, connections, transaction
from django.db.transaction import TransactionManagementError
from psycopg.pq import TransactionStatus

from django_dblock.advisory import acquire
from django_dblock.core.connection import caused_by, in_transaction, interruption_of_commit
from django_dblock.core.replication import watch_commits
from django_dblock.exceptions import LockTimeout
from django_dblock.idempotency import store
from django_dblock.idempotency.identity import Identity, RequestFingerprint
from django_dblock.idempotency.options import Options
from django_dblock.idempotency.outcome import (
    Done,
    Finished,
    Outcome,
    Refused,
    decide,
    in_progress,
)
from django_dblock.idempotency.store import Found
from django_dblock.sql import idempotency as sql

_ENDED = (
    "The view has ended its transaction, by COMMIT or ROLLBACK without Django, so its "
    "effects and its response can't be committed together, and the lock was free meanwhile. The "
    "response was not stored. Remove such statements; to undo a part of the work, use "
    "transaction.atomic()."
)

Connection = Any
"""Django's connection wrapper; the stubs lack the attributes that are used here."""


class _Name(str):
    """The name of one savepoint; it equals no other savepoint's name, even with the same text.

    Django removes the ``on_commit`` hooks of a rolled-back savepoint by its name. Two blocks that
    follow each other at one depth share the text, and the hooks of the first must stay.
    """

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Effects:
    """The savepoint under which a view runs, so that its effects can be undone without the lock.

    The block is a ``transaction.atomic()`` block whose SAVEPOINT and RELEASE travel in messages
    that are sent anyway. Django's own SAVEPOINT and RELEASE would cost a round trip each. Django's
    state is kept: the savepoint is in ``connection.savepoint_ids``, so a rollback to it discards
    the view's ``on_commit`` hooks too.

    Attributes:
        savepoint: the statement that makes the savepoint. Send it before the block is entered.
        release: the statement that ends the savepoint. Call :meth:`released` once it is sent.
    """

    def __init__(self, connection: Connection) -> None:
        # Numbered by depth: a few texts, so that each message is put together only once. Blocks
        # at one depth follow each other, so at most one of them is open.
        self._name = _Name(f"dblock_{len(connection.savepoint_ids)}")
        self._connection = connection
        self._block = transaction.atomic(using=connection.alias, savepoint=False)
        self.savepoint = sql.SAVEPOINT.format(name=self._name)
        self.release = sql.RELEASE.format(name=self._name)

    def __enter__(self) -> Self:
        self._block.__enter__()
        self._connection.savepoint_ids[-1] = self._name
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._block.__exit__(kind, error, traceback)

    @property
    def broken(self) -> bool:
        """Whether the view has swallowed a database error, so that its effects can't commit."""
        connection = self._connection
        driver = connection.connection
        return bool(
            connection.needs_rollback
            or connection.closed_in_transaction
            or driver is None
            or driver.pgconn.transaction_status == TransactionStatus.INERROR
        )

    def undo(self) -> None:
        """Make leaving the block roll back to the savepoint."""
        self._connection.needs_rollback = True

    def released(self) -> None:
        """Make leaving the block send nothing: the savepoint is released, or COMMIT comes next."""
        self._connection.savepoint_ids[-1] = None


def run(
    identity: Identity, asked: RequestFingerprint, options: Options, work: Callable[[], Finished]
) -> Outcome:
    """Run the work once, in a transaction of its own or in the open one.

    Args:
        identity: the identity of the request.
        asked: the fingerprint of the request.
        options: the options of the view or task.
        work: the work. An exception that it raises rolls its effects back and is passed on.

    Raises:
        TransactionManagementError: the work reports success, and its effects can't be committed;
            or other code has written the row without the lock.
        LockTableFull, LockDeadlock, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: the lock
            can't be taken; see the errors of :class:`~django_dblock.advisory_lock`.
        DamagedAnswer: the stored response can't be read.
    """
    return _Run(identity, asked, options, work).outcome()


class _Run:
    """One request in atomic mode."""

    def __init__(
        self,
        identity: Identity,
        asked: RequestFingerprint,
        options: Options,
        work: Callable[[], Finished],
    ) -> None:
        self.identity = identity
        self.asked = asked
        self.options = options
        self.work = work
        self.connection = connections[identity.using]
        self.joined = in_transaction(self.connection)
        self.new = True
        self.written = False

    def outcome(self) -> Outcome:
        self.watch = watch_commits(self.connection)
        self.before = self.watch.unconfirmed
        if self.joined:
            outcome = self._outcome()
            self._check_after_commit()
            return outcome
        unconfirmed = None
        try:
            with transaction.atomic(using=self.identity.using):
                outcome = self._outcome()
        except BaseException as raised:
            if (interruption := interruption_of_commit(self.connection, raised)) is not None:
                raise interruption from None
            raise
        finally:  # an on_commit hook may have raised after the commit
            if self.watch.unconfirmed != self.before:
                unconfirmed = store.mark_unconfirmed(self.identity)
        return outcome if unconfirmed is None else Refused(unconfirmed)

    def _check_after_commit(self) -> None:
        """Let the commit of the caller's transaction raise if no standby confirms the response.

        TestCase never commits, and tests count the hooks of their views.
        """
        blocks: Any = self.connection.atomic_blocks
        in_testcase = any(block._from_testcase for block in blocks)  # noqa: SLF001
        if not (self.written and blocks) or in_testcase:  # without blocks there are no hooks
            return

        def mark() -> None:
            if self.watch.unconfirmed != self.before:
                store.mark_unconfirmed(self.identity)

        def check() -> None:
            if self.watch.unconfirmed != self.before:
                raise store.not_replicated(self.identity)

        store.at_commit(self.connection, mark, check)

    def _outcome(self) -> Outcome:
        effects = Effects(self.connection)
        found = self._read(store.ask, effects)
        known = decide(found, self.identity, resumes=False, refuses=True)
        if self.options.wait and found.waitable:
            with effects:  # released before the wait: its rollback would free the lock
                pass
            effects = Effects(self.connection)
            if not self._wait():
                return Refused(in_progress(self.identity, 1))
            found = self._read(store.ask_again, effects)
            known = decide(found, self.identity, resumes=False, refuses=True)
        if known is None:
            self.new = found.state == "new"
            return self._run(effects)
        if self.joined:
            with effects:  # releases the savepoint; else COMMIT does
                pass
        if found.unconfirmed:
            store.confirm(self.connection, self.identity)
            self.written = True
        return known

    def _read(self, ask: Callable[..., Found], effects: Effects) -> Found:
        """Read the row, in the message that also makes the savepoint.

        An error leaves no savepoint in the caller's transaction.
        """
        try:
            return ask(self.connection, self.identity, self.asked, effects.savepoint)
        except BaseException:
            # The message may have run to its end: then what it has read is refused.
            if self.joined:
                with effects:
                    effects.undo()
            raise

    def _wait(self) -> bool:
        """Wait until the transaction that runs the request ends; return whether it did in time."""
        try:
            acquire.lock(
                self.identity.lock(self.connection), timeout=self.options.wait, joined=True
            )
        except LockTimeout:
            return False
        return True

    def _run(self, effects: Effects) -> Done:
        with effects:
            finished = self.work()
            answer = finished.answer
            if answer is None or not finished.keep_effects or effects.broken:
                if finished.keep_effects and not finished.failed:
                    raise TransactionManagementError(
                        "The view has responded with success, but it has swallowed a database "
                        "error or called set_rollback(True), so its writes can't be committed. "
                        "Catch such errors around a transaction.atomic() block of their own."
                    )
                effects.undo()
                afterwards = answer
            else:
                # If the record or COMMIT fails, the whole transaction is rolled back.
                if not self.joined:
                    effects.released()
                self._record(answer, effects.release)
                effects.released()
                afterwards = None
        if afterwards is not None:
            self._record(afterwards)
        return Done(finished.result, kept=answer is not None)

    def _record(self, answer: dict[str, object], *then: str) -> None:
        record = store.record if self.joined or not self.new else store.record_and_commit
        try:
            recorded = record(
                self.connection,
                self.identity,
                self.asked,
                answer,
                *then,
                ttl=self.options.ttl_seconds,
                new=self.new,
            )
        except Error as error:
            if caused_by(error, psycopg.errors.InvalidSavepointSpecification):
                raise TransactionManagementError(_ENDED) from error
            if not store.is_own_conflict(error):
                raise
            recorded = False
        if not recorded:
            raise TransactionManagementError(
                f"Other code has written the row of {self.identity.facts['key']} without its lock, "
                f"so this response can't be stored as the first. Everything is rolled back."
            )
        self.written = True
