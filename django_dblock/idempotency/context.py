"""What a view finds as ``request.idempotency``."""

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
    """One run of a request, or none where the request is not protected.

    It is there while the view runs, and no longer. Where there is no key, every method works, and
    protects nothing: so a view with ``required=False`` reads the same.

    Attributes:
        identity: the request; None where it has no key.
        lease: its claim, in lease mode.
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
        """Whether a repeat of this request would not be run again."""
        return self.identity is not None

    @property
    def key(self) -> str | None:
        """The client's key; None where it sent none."""
        return None if self.identity is None else self.identity.key

    @property
    def scope(self) -> str | None:
        """Whose key it is."""
        return None if self.identity is None else self.identity.scope

    @property
    def mode(self) -> str | None:
        """``"atomic"`` or ``"lease"``; None where the request is not protected."""
        if self.identity is None:
            return None
        return "atomic" if self.lease is None else "lease"

    @property
    def token(self) -> int | None:
        """The fencing token of this run, in lease mode."""
        return None if self.lease is None else self.lease.claim.token

    def derived_key(self, name: str) -> str:
        """Return a key for another service's own idempotency, one for each name.

        Guaranteed: it is the same in every run of this request, for ever, also after a crash and
        after the retention, and another for every other request and name. It tells neither scope
        nor key.

        Not guaranteed: that the other service remembers it for as long as we do. Without a key of
        the client's it is a new one each time. ``DBLOCK_NAMESPACE`` goes into it.

        Args:
            name: what it is for, ``"charge"`` for example; any text.

        Returns:
            64 hexadecimal digits, a SHA-256; 32 without a key of the client's.
        """
        return uuid4().hex if self.identity is None else self.identity.derived_key(name)

    def step(self, name: str) -> "Step":
        """Record what a run has done outside, so that the next run need not do it again.

        ::

            with request.idempotency.step("charge") as step:
                if not step.done:
                    step.result = gateway.charge(…, idempotency_key=derived_key("charge"))

        Guaranteed: once the block is left without an error, ``step.result`` is recorded, and every
        later run finds ``step.done`` and that result. It is recorded only while this run has the
        request; a block that is entered or left later raises. Inside ``transaction.atomic()`` the
        record is part of that transaction. The lease is renewed.

        Not guaranteed: that what the block does happens once. A run that dies in the block, or
        between its effect and the record, leaves no record: the next run enters it again. Give the
        other side ``derived_key(name)``, or use ``on_abandoned="refuse"``.

        Args:
            name: of the step; each once in a view.

        Raises:
            TypeError: in atomic mode, where nothing is recorded before the end.
            IdempotencyLeaseLost: on entering, the lease has run out by our own clock; on leaving,
                somebody else has taken the request over.
            IdempotencyError: this run has recorded its answer already.
            ValueError: the result is not JSON; on leaving.

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
        """Call the function unless an earlier run has, and return what it returned then, or now.

        What is guaranteed, and not, is what :meth:`step` says. What is returned is what later runs
        will find: a tuple is a list, as JSON has it.

        Args:
            name: of the step.
            function: called without arguments; what it raises is raised, and nothing is recorded.

        Raises:
            TypeError, IdempotencyLeaseLost, IdempotencyError, ValueError: as :meth:`step`.
        """
        with self.step(name) as step:
            if not step.done:
                step.result = function()
        return step.result

    async def arun_step(self, name: str, function: Callable[[], Awaitable[Any]]) -> Any:
        """Do the same with an async function; guarantees, arguments and errors are the same."""
        step = self.step(name)
        if not step.done:
            async with step:
                step.result = await function()
        return step.result

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Open a transaction that can't commit once somebody else has taken the request over.

        Guaranteed: while it is open, nobody takes the request over, even if the lease runs out; so
        what is written in it is written by the only run there is, or rolled back. It ends with the
        block, or with the transaction around it.

        Not guaranteed: that the block runs once in all runs of the request: put a :meth:`step` into
        it, or write so that twice is as once. In atomic mode, and for a request without a key, it
        is ``transaction.atomic()`` on the database of ``using``.

        Raises:
            IdempotencyLeaseLost: somebody has taken it over; the block was not run.
            IdempotencyError: this run has recorded its answer already; likewise.

        Source: PostgreSQL manual, 13.3.2 "Row-Level Locks"; M. Kleppmann, "How to do distributed
        locking", 2016.
        """
        using = store.alias_for(self._using) if self.identity is None else self.identity.using
        with transaction.atomic(using=using):
            if self.lease is not None:
                self.lease.guard()
            yield

    def complete(self, response: ResponseT) -> ResponseT:
        """Record the answer now, in the transaction that is open, and return it.

        So the effects and the answer commit together::

            with transaction.atomic():
                Payment.objects.create(…)
                return request.idempotency.complete(JsonResponse(…))

        Guaranteed: when that transaction is committed, so is the answer, and every repeat gets it
        until the retention is over; if it is rolled back, so is the answer. In atomic mode, and
        without a key, this does nothing: the answer is recorded at the end, or not at all.

        Not guaranteed: effects in other transactions. Without it, the answer is recorded after the
        view has returned; a run that has lost its lease notices then, and effects that it has
        committed stay.

        Args:
            response: what the view will return; of ``run_once``, the result. Render it before,
                where its rendering takes long: it is rendered here.

        Raises:
            IdempotencyLeaseLost: somebody else has taken the request over. Let it pass: the
                transaction rolls back, and the client gets the other's answer.
            IdempotencyError: this run has recorded its answer already.
            UnstorableResponse: the answer can't be given a second time.
        """
        if self.lease is not None:
            self.lease.complete(response)
        return response

    async def acomplete(self, response: ResponseT) -> ResponseT:
        """Record the answer now, in a transaction of its own: Django's can't span an await.

        So effects that the view has committed before are not part of it; to commit both together,
        call :meth:`complete` in a sync function, within ``transaction.atomic()``, through
        ``sync_to_async``. Arguments and errors are those of :meth:`complete`.
        """
        return await sync_to_async(self.complete)(response)
