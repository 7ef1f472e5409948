"""What a view finds as ``request.idempotency``."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

from asgiref.sync import sync_to_async
from django.db import transaction

from django_dblock.idempotency import store
from django_dblock.idempotency.identity import Identity
from django_dblock.idempotency.lease import Lease, Step

ResponseT = TypeVar("ResponseT")


class Handle:
    """One run of a request, or none where the request is not protected.

    Attributes:
        identity: the request; None where it has no key.
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

        Guaranteed: it is the same in every run of this request, also after a crash and after the
        retention, and another for every other request and name. It tells neither scope nor key.
        Without a key of the client's it is a new one each time.
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
            IdempotencyLeaseLost: somebody else has taken the request over.
            ValueError: the result is not JSON.
        """
        if self.identity is not None and self.lease is None:
            raise TypeError(
                f"step({name!r}) needs @idempotent(mode='lease'): in atomic mode everything is "
                f"recorded at once, by the commit at the end. derived_key() works there."
            )
        return Step(self.lease, name)

    def run_step(self, name: str, function: Callable[[], Any]) -> Any:
        """Call the function unless an earlier run has, and return what it returned then, or now.

        What is guaranteed, and not, is what :meth:`step` says.
        """
        with self.step(name) as step:
            if not step.done:
                step.result = function()
        return step.result

    async def arun_step(self, name: str, function: Callable[[], Awaitable[Any]]) -> Any:
        """Do the same with an async function."""
        step = self.step(name)
        if not step.done:
            async with step:
                step.result = await function()
        return step.result

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Open a transaction that can't commit once somebody else has taken the request over.

        Guaranteed: while it is open, nobody takes it over. In atomic mode, and for a request
        without a key, it is ``transaction.atomic()``.

        Raises:
            IdempotencyLeaseLost: somebody has; nothing was run.
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

        Without it, the answer is recorded after the view has returned; a run that has lost its
        lease notices then, and effects that it has committed stay.

        Raises:
            IdempotencyLeaseLost: somebody else has taken the request over. Let it pass: the
                transaction rolls back, and the client gets the other's answer.
            UnstorableResponse: the answer can't be given a second time.
        """
        if self.lease is not None:
            self.lease.complete(response)
        return response

    async def acomplete(self, response: ResponseT) -> ResponseT:
        """Record the answer now, in a transaction of its own: Django's can't span an await."""
        return await sync_to_async(self.complete)(response)
