"""A run in lease mode: its claim, its steps and its response."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from asgiref.sync import sync_to_async
from django.db import connections
from django.db.transaction import TransactionManagementError

from django_dblock.core.clock import monotonic
from django_dblock.core.connection import in_callers_transaction
from django_dblock.core.replication import watch_commits
from django_dblock.exceptions import IdempotencyError, IdempotencyLeaseLost
from django_dblock.idempotency import store
from django_dblock.idempotency.identity import Identity
from django_dblock.idempotency.options import Options
from django_dblock.idempotency.store import Claim
from django_dblock.idempotency.stored_response import dump_steps
from django_dblock.sql import idempotency as sql

SWALLOWED = (
    "The view has swallowed a database error in its transaction, or called set_rollback(True), so "
    "the transaction was rolled back with everything in it, and what it has recorded for the "
    "idempotency key is gone. Catch such errors around a transaction.atomic() block of their own."
)

_UNSET: Any = object()


class Lease:
    """The claim that one run holds.

    Attributes:
        identity: the identity of the request.
        claim: the row's number, token and random identity, and the results of recorded steps.
        lost: the error of the lost claim, once the run has noticed the loss; else None.
        completed: whether the view has recorded its response, and that is committed.
        recorded: the response that the view has recorded last, committed or not.
        in_doubt: the names of the steps that have begun but are not recorded.
        key_was_derived: whether the view has derived a key, and may have given that key to another
            system. True from the start if the run continues another run, which may have done so.
    """

    def __init__(
        self,
        identity: Identity,
        claim: Claim,
        options: Options,
        since: float,
        kept: Callable[[Any], dict[str, Any]],
    ) -> None:
        self.identity = identity
        self.claim = claim
        self.options = options
        self.lost: IdempotencyLeaseLost | None = None
        self.completed = False
        self.recorded: Any = _UNSET
        self.in_doubt: set[str] = set()
        self.key_was_derived = False
        self._kept = kept
        self._until = since + options.lease_seconds

    @property
    def remaining(self) -> float:
        """The seconds for which no other run can take the claim over, by this process's clock."""
        return max(0.0, self._until - monotonic())

    def check(self) -> None:
        """Raise if the run has completed, or its lease has expired by this process's clock.

        Raises:
            IdempotencyError: the run has recorded its response already.
            IdempotencyLeaseLost: the lease has expired.
        """
        if self.completed:
            raise self._too_late()
        if monotonic() >= self._until:
            raise self._loss("its lease has expired")

    def guard(self) -> None:
        """Lock the row until the open transaction ends.

        Raises:
            IdempotencyLeaseLost: another run has taken the request over.
            IdempotencyError: the run has recorded its response already.
        """
        self._write(sql.GUARD)

    def record(self, name: str, result: Any) -> Any:
        """Record a step and renew the lease; return the result as later runs will read it.

        Raises:
            IdempotencyLeaseLost: another run has taken the request over.
            IdempotencyNotReplicated: no synchronous standby has confirmed the record.
            IdempotencyError: the run has recorded its response already.
            TransactionManagementError: see :meth:`_commit`.
            ValueError: the result is not JSON data.
        """
        text, result = dump_steps(name, result)
        before = monotonic()

        def committed() -> None:
            self.claim.steps[name] = result
            self.in_doubt.discard(name)
            self._until = before + self.options.lease_seconds

        def is_committed() -> bool:
            return store.has_step(self.identity.using, self.claim, name)

        self._commit(committed, is_committed, sql.STEP, step=text, lease=self.options.lease_seconds)
        return result

    def complete(self, response: Any) -> None:
        """Record the response, in the open transaction or in a transaction of its own.

        Raises:
            IdempotencyLeaseLost: another run has taken the request over.
            IdempotencyNotReplicated: no synchronous standby has confirmed the commit.
            IdempotencyError: the run has recorded its response already.
            TransactionManagementError: see :meth:`_commit`.
            UnstorableResponse: the response can't be stored.
        """

        def committed() -> None:
            self.completed = True

        def is_committed() -> bool:
            return store.is_completed(self.identity.using, self.claim)

        kept = self._kept(response)
        self._commit(committed, is_committed, sql.COMPLETE, **kept, ttl=self.options.ttl_seconds)
        self.recorded = response

    def _commit(
        self,
        committed: Callable[[], None],
        is_committed: Callable[[], bool],
        statement: str,
        **parameters: Any,
    ) -> None:
        """Write, and call ``committed`` after the commit; TestCase's transaction does not count.

        After the commit of an open transaction, ``committed`` is called before the view's hooks,
        of which one that raises would keep the others from being run. After BEGIN without Django,
        ``committed`` is not called: the run's end looks for the response, and a step stays in
        doubt.

        In an open transaction, ``is_committed`` is asked first. If the view has swallowed the error
        of a statement that Django does not watch, such as that of a raw cursor or of a SELECT, the
        server turns Django's COMMIT into a rollback and reports success, and the hooks run.

        Raises:
            TransactionManagementError: the open transaction was rolled back in this way. Its atomic
                block raises it.
            IdempotencyNotReplicated: no synchronous standby has confirmed the commit. In an open
                transaction, its atomic block raises it.
        """
        connection = connections[self.identity.using]
        watch = watch_commits(connection)
        before = watch.unconfirmed

        def call() -> None:
            if joined and not is_committed():
                raise self._rolled_back()
            committed()
            if watch.unconfirmed != before:
                store.mark_unconfirmed(self.identity)

        def check() -> None:
            if watch.unconfirmed != before:
                raise store.not_replicated(self.identity)

        joined = in_callers_transaction(connection)
        self._write(statement, **parameters)
        if not joined:
            call()
            check()
        elif connection.in_atomic_block:
            store.at_commit(connection, call, check)
        # else: BEGIN was sent without Django, which will not tell whether that is committed

    def _write(self, statement: str, **parameters: Any) -> None:
        if store.write(self.identity.using, self.claim, statement, **parameters):
            return
        if store.is_completed(self.identity.using, self.claim):
            raise self._too_late()
        raise self._loss("another run has taken it over")

    def _rolled_back(self) -> Exception:
        """Return the error for a record that is missing after its transaction was committed."""
        if not store.write(self.identity.using, self.claim, sql.GUARD):
            return self._loss("another run has taken it over")
        return TransactionManagementError(SWALLOWED)

    def _too_late(self) -> IdempotencyError:
        facts = self.identity.facts
        return IdempotencyError(
            f"Idempotency key {facts['key']} of {facts['scope']}: this run has recorded its "
            f"response already, and each retry gets that response. Call complete() once, after all "
            f"steps and guard().",
            **facts,
        )

    def _loss(self, reason: str) -> IdempotencyLeaseLost:
        facts = self.identity.facts
        self.lost = IdempotencyLeaseLost(
            f"Idempotency key {facts['key']} of {facts['scope']} (token {self.claim.token}) is "
            f"lost: {reason}. Don't catch this error, so that transactions roll back; the client "
            f"gets the other run's response. For longer work allow a longer lease=, or more steps.",
            **facts,
            token=self.claim.token,
        )
        return self.lost


class Step:
    """One recovery point, made by :meth:`~django_dblock.idempotency.context.Handle.step`.

    Attributes:
        name: the name of the step.
        done: whether an earlier run, or an earlier block of this run, has recorded the step. False
            in the block that records it, and after that block. A record in an open transaction
            does not count yet.
        result: the recorded result, or the result to record; JSON data.
    """

    def __init__(self, lease: Lease | None, name: str) -> None:
        recorded = {} if lease is None else lease.claim.steps
        self.name = name
        self.done = name in recorded
        self.result: Any = recorded[name] if self.done else None
        self._lease = lease

    def __enter__(self) -> Self:
        if self._lease is not None and not self.done:
            self._lease.check()
            self._lease.in_doubt.add(self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lease is None or self.done or error is not None:
            return
        self.result = self._lease.record(self.name, self.result)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await sync_to_async(self.__exit__)(kind, error, traceback)
