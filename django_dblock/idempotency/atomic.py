"""Atomic mode: lock, read, run, record, in one transaction. See the protocol in the package."""

from collections.abc import Callable
from contextlib import nullcontext

from django.db import connections, transaction
from django.db.transaction import TransactionManagementError

from django_dblock import acquire
from django_dblock.databases import in_transaction
from django_dblock.exceptions import LockTimeout
from django_dblock.idempotency import store
from django_dblock.idempotency.effects import Effects
from django_dblock.idempotency.identity import Asked, Identity
from django_dblock.idempotency.options import Options
from django_dblock.idempotency.outcome import (
    Done,
    Finished,
    Outcome,
    Refused,
    decide,
    in_progress,
)


def run(
    identity: Identity, asked: Asked, options: Options, work: Callable[[], Finished]
) -> Outcome:
    """Run the work once, in a transaction of its own, or in the one that is open.

    Args:
        identity: the request.
        asked: what is asked for.
        options: how.
        work: what to run; what it raises goes on, and rolls its effects back.

    Raises:
        TransactionManagementError: the work claims success, and its effects can't be committed;
            or the row was written past the lock.
        LockTableFull, LockDeadlock, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: see
            there.
    """
    return _Run(identity, asked, options, work).outcome()


class _Run:
    """One request in atomic mode."""

    def __init__(
        self, identity: Identity, asked: Asked, options: Options, work: Callable[[], Finished]
    ) -> None:
        self.identity = identity
        self.asked = asked
        self.options = options
        self.work = work
        self.connection = connections[identity.using]
        self.joined = in_transaction(self.connection)
        self.new = True

    def outcome(self) -> Outcome:
        with nullcontext() if self.joined else transaction.atomic(using=self.identity.using):
            effects = Effects(self.connection)
            found = store.ask(self.connection, self.identity, self.asked, effects.savepoint)
            known = decide(found, self.identity, resumes=False, refuses=True)
            if self.options.wait and found.waitable:
                with effects:  # left at once: a lock taken under it would go with it
                    pass
                effects = Effects(self.connection)
                if not self._wait():
                    return Refused(in_progress(self.identity, 1))
                found = store.ask_again(
                    self.connection, self.identity, self.asked, effects.savepoint
                )
                known = decide(found, self.identity, resumes=False, refuses=True)
            if known is None:
                self.new = found.state == "new"
                return self._run(effects)
            with effects:
                self._keep(effects)
            return known

    def _wait(self) -> bool:
        """Wait for the transaction of whoever works on it to end."""
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
                        "The view has answered with success, but an error of the database was "
                        "swallowed in it, or set_rollback(True) called, so nothing that it wrote "
                        "can be committed. Catch such errors around a transaction.atomic() block "
                        "of their own."
                    )
                effects.undo()
                afterwards = answer
            else:
                with effects.still_there():
                    self._record(answer, effects.release)
                effects.released()
                afterwards = None
        if afterwards is not None:
            self._record(afterwards)
        return Done(finished.result, kept=answer is not None)

    def _record(self, answer: dict[str, object], *then: str) -> None:
        if not store.record(
            self.connection,
            self.identity,
            self.asked,
            answer,
            *then,
            ttl=self.options.ttl_seconds,
            new=self.new,
        ):
            raise TransactionManagementError(
                f"Somebody has written the row of {self.identity.facts['key']} without its lock, "
                f"so this answer can't be the first. Everything is rolled back."
            )

    def _keep(self, effects: Effects) -> None:
        """Leave a transaction of our own to its COMMIT; in another's, let Django release."""
        if not self.joined:
            effects.released()
