"""``request.idempotency``: the handle of a view's own request."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

from asgiref.sync import sync_to_async
from django.db import transaction

from django_dblock.idempotency import store
from django_dblock.idempotency.claim import Lease, Step
from django_dblock.idempotency.identity import Identity

ResponseT = TypeVar("ResponseT")


class Handle:
    """The run of a request, as ``request.idempotency`` or as the argument of ``run_once``'s work.

    The handle exists while the view runs. For a request without a key each method works and
    protects nothing, so a view with ``required=False`` needs no second form.

    Attributes:
        identity: the identity of the request; None without a key.
        lease: the claim of the run in lease mode; else None.
    """

    def __init__(
        self,
        identity: Identity | None = None,
        lease: Lease | None = None,
        *,
        using: str | None = None,
    ) -> None:
        self.identity = identity
        self.lease = lease
        self._using = using

    @property
    def protected(self) -> bool:
        """Whether a repetition of this request is kept from running again."""
        return self.identity is not None

    @property
    def key(self) -> str | None:
        """The client's key; None if the client sent none."""
        return None if self.identity is None else self.identity.key

    @property
    def scope(self) -> str | None:
        """The scope of the client that owns the key; None without a key."""
        return None if self.identity is None else self.identity.scope

    @property
    def mode(self) -> str | None:
        """``"atomic"`` or ``"lease"``; None if the request is not protected."""
        if self.identity is None:
            return None
        return "atomic" if self.lease is None else "lease"

    @property
    def token(self) -> int | None:
        """The fencing token of this run in lease mode; else None.

        A later run of the same request has a greater token. It is never behind the server's clock,
        in milliseconds since 1970, so the order holds after a restore too.
        """
        return None if self.lease is None else self.lease.claim.token

    def derived_key(self, name: str) -> str:
        """Return a key for another service's own idempotency, one for each name.

        Guaranteed: the derived key is the same in each run of this request, permanently, even after
        a crash and after the retention. It differs for each other request, name and
        ``DBLOCK_NAMESPACE``. It reveals neither scope nor key.

        Not guaranteed: that the other service remembers the derived key as long as this package
        remembers the request. For a request without a key, each call returns a new one.

        Args:
            name: the use of the key, for example ``"charge"``; any text.

        Returns:
            64 hexadecimal digits, a SHA-256; 32 digits for a request without a key.
        """
        if self.identity is None:
            return uuid4().hex
        if self.lease is not None:
            self.lease.key_was_derived = True
        return self.identity.derived_key(name)

    def step(self, name: str) -> "Step":
        """Record an effect in the outside world, so that the next run does not repeat it.

        ::

            with request.idempotency.step("charge") as step:
                if not step.done:
                    step.result = gateway.charge(…, idempotency_key=derived_key("charge"))

        Guaranteed: when the block is left without an error, ``step.result`` is recorded, and each
        later run finds ``step.done`` and that result. The record is written only while this run
        holds the request; a block that is entered or left later raises. Inside
        ``transaction.atomic()`` the record is part of that transaction. The lease is renewed.

        Not guaranteed: that the effect of the block happens once. A run that dies in the block, or
        between the effect and the record, leaves no record, and the next run enters the block
        again. Pass ``derived_key(name)`` to the other service, or use ``on_abandoned="refuse"``.

        Args:
            name: the name of the step; use each name once in a view.

        Raises:
            TypeError: the request is in atomic mode, which records nothing before its end.
            IdempotencyLeaseLost: on entering, the lease has run out by the process' own clock. On
                leaving, another run has taken the request over.
            IdempotencyNotReplicated: on leaving, no synchronous standby confirmed the record.
            IdempotencyError: this run has recorded its response already.
            ValueError: on leaving, the result is not JSON data.

        Source: the recovery points of B. Leach, "Implementing Stripe-like Idempotency Keys in
        Postgres", 2017.
        """
        if self.identity is not None and self.lease is None:
            raise TypeError(
                f"step({name!r}) needs @idempotent(mode='lease'): in atomic mode everything is "
                f"recorded at once, by the commit at the end. derived_key() works there."
            )
        return Step(self.lease, name)

    def run_step(self, name: str, function: Callable[[], Any]) -> Any:
        """Call the function unless an earlier run has; return the result of that call.

        Guaranteed, and not guaranteed: as of :meth:`step`. The result is returned as later runs
        will find it: JSON turns a tuple into a list.

        Args:
            name: the name of the step.
            function: called without arguments. An exception that it raises is passed on, and
                nothing is recorded.

        Raises:
            TypeError, IdempotencyLeaseLost, IdempotencyNotReplicated, IdempotencyError, ValueError:
                as :meth:`step`.
        """
        with self.step(name) as step:
            if not step.done:
                step.result = function()
        return step.result

    async def arun_step(self, name: str, function: Callable[[], Awaitable[Any]]) -> Any:
        """Call an async function unless an earlier run has; as :meth:`run_step`."""
        step = self.step(name)
        if not step.done:
            async with step:
                step.result = await function()
        return step.result

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Open a transaction that can't commit after another run has taken the request over.

        Guaranteed: while the transaction is open, no other run takes the request over, even if the
        lease runs out. So its writes come from the only run, or are rolled back. The guarantee ends
        with the block, or with the transaction around it.

        Not guaranteed: that the block runs once in all runs of the request. Put a :meth:`step` into
        it, or make its writes idempotent. In atomic mode, and for a request without a key, the
        block is ``transaction.atomic()`` on the database of ``using``.

        Raises:
            IdempotencyLeaseLost: another run has taken the request over. The block did not run.
            IdempotencyError: this run has recorded its response already. The block did not run.

        Source: PostgreSQL manual, 13.3.2 "Row-Level Locks"; M. Kleppmann, "How to do distributed
        locking", 2016.
        """
        using = store.alias_for(self._using) if self.identity is None else self.identity.using
        with transaction.atomic(using=using):
            if self.lease is not None:
                self.lease.guard()
            yield

    def complete(self, response: ResponseT) -> ResponseT:
        """Record the response now, in the open transaction, and return the response.

        Then the effects and the response commit together::

            with transaction.atomic():
                Payment.objects.create(…)
                return request.idempotency.complete(JsonResponse(…))

        Guaranteed: the response is committed with that transaction, and each repetition gets it
        until its retention ends. If the transaction is rolled back, the response is too; then a
        view may return another response, or this one if its status is 400 or more. In atomic mode,
        and without a key, this call does nothing: the response is recorded at the end of the view,
        or not at all.

        Not guaranteed: effects in other transactions. Without this call, the response is recorded
        after the view has returned. A run that has lost its lease notices only then, and the
        effects that it has committed stay.

        Args:
            response: the response that the view will return; for ``run_once``, the result. The
                response is rendered here, so render a slow template before the transaction.

        Raises:
            IdempotencyLeaseLost: another run has taken the request over. Let the error pass: the
                transaction rolls back, and the client gets the response of the other run.
            IdempotencyNotReplicated: no synchronous standby confirmed the commit. The open
                transaction's atomic block raises it.
            IdempotencyError: this run has recorded its response already.
            TransactionManagementError: the transaction was rolled back, and the view returns this
                response nevertheless, with a status below 400; or Django has not noticed the
                rollback, because the view has swallowed a database error. The end of the view
                raises it, or the atomic block. The request is free again.
            UnstorableResponse: the response can't be stored.
        """
        if self.lease is not None:
            self.lease.complete(response)
        return response

    async def acomplete(self, response: ResponseT) -> ResponseT:
        """Record the response now, in a transaction of its own, because none can span an await.

        Effects that the view has committed before are not part of that transaction. To commit both
        together, call :meth:`complete` within ``transaction.atomic()`` in a sync function, through
        ``sync_to_async``. Arguments and errors are those of :meth:`complete`.
        """
        return await sync_to_async(self.complete)(response)
