"""``@idempotent``: a view whose repeated requests have their effects once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, transaction
from django.http import HttpRequest

from django_dblock.conf import conf
from django_dblock.core.decorators import Guard, mark
from django_dblock.exceptions import IdempotencyError, IdempotencyLeaseLost
from django_dblock.idempotency import (
    atomic,
    lease_mode,
    view_introspection,
)
from django_dblock.idempotency.claim import Lease
from django_dblock.idempotency.context import Handle
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned, Options
from django_dblock.idempotency.outcome import Finished, tell_outcome
from django_dblock.idempotency.request import Wanted, answer, django_request, refuse

View = TypeVar("View", bound=Callable[..., Any])

decorated: dict[str, Wanted] = {}
"""Every decorated view by its name, for the system checks; but for what has only the mark."""

MARK = "_dblock_idempotent"
"""The attribute by which ``method_decorator``, which copies them, shows what it has decorated."""


class IdempotentRequest(HttpRequest):
    """For annotations only: the request that a view with ``@idempotent`` gets."""

    idempotency: Handle


@overload
def idempotent(view: View, /) -> View: ...


@overload
def idempotent(
    *,
    scope: Callable[[Any], Any] | None = None,
    key: Callable[[Any], str | None] | None = None,
    fingerprint: Callable[[Any], Any] | None = None,
    ttl: Duration | None = None,
    required: bool = True,
    strict: bool = False,
    wait: float = 0,
    mode: Mode = "atomic",
    lease: Duration | None = None,
    on_abandoned: OnAbandoned = "takeover",
    methods: Iterable[str] = ("POST", "PATCH"),
    store_5xx: bool = False,
    store_body: bool = True,
    using: str | None = None,
) -> Callable[[View], View]: ...


def idempotent(  # noqa: PLR0913 - all but the first by name
    view: View | None = None,
    /,
    *,
    scope: Callable[[Any], Any] | None = None,
    key: Callable[[Any], str | None] | None = None,
    fingerprint: Callable[[Any], Any] | None = None,
    ttl: Duration | None = None,
    required: bool = True,
    strict: bool = False,
    wait: float = 0,
    mode: Mode = "atomic",
    lease: Duration | None = None,
    on_abandoned: OnAbandoned = "takeover",
    methods: Iterable[str] = ("POST", "PATCH"),
    store_5xx: bool = False,
    store_body: bool = True,
    using: str | None = None,
) -> View | Callable[[View], View]:
    """Let a repeated request have its effects once, and get the first answer again.

    The client sends an ``Idempotency-Key`` header, a new one for a new request and the same with
    each retry. Works on functions, and on the methods of class-based views, by itself or through
    ``method_decorator``; with Django REST framework below ``@api_view``, and on methods and
    actions. It stands below what decides who may come in: a replay must pass that, too. Async
    views need ``mode="lease"``. The view gets ``request.idempotency``
    (:class:`~django_dblock.idempotency.context.Handle`).

    Guaranteed in atomic mode: what the view writes in the database of ``using``, and its answer,
    are committed together or not at all, and once for each ``(scope, key)`` within ``ttl``; whoever
    asks again gets that answer, and the view is not run. A key that comes with another request is
    refused (422), as is one whose request is running (409).

    Guaranteed in lease mode: the same of what is written in a transaction with
    ``request.idempotency.complete()``, ``guard()`` or ``step()`` in it.

    Not guaranteed: anything about the outside world (a run may be repeated up to its last recorded
    step: give the other side ``derived_key()``), about what is written on other database aliases
    or by middleware (sessions are saved there), about cookies, which belong to the first answer
    only, and, in lease mode, about other writes. Nor that a client gets an answer: it may have to
    ask again. When ``ttl`` is over, the same key is a new request.

    Args:
        view: the view, where the decorator is used without arguments.
        scope: called with the request: whose key it is. By default the logged-in user.
        key: called with the request where the header is missing, as forms can't send one; returns
            the key as text, or None.
        fingerprint: called with the request: what to compare in place of the body.
        ttl: how long the answer is kept, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_TTL`` (24 h).
        required: answer 400 where the key is missing; False runs such a request unprotected.
        strict: take the quoted form of the header only, ``"abc"``.
        wait: seconds to wait for the same request that is running; 0 answers 409 at once.
        mode: ``"atomic"``, or ``"lease"`` for views that call the outside world.
        lease: in lease mode, how long a run may be silent before it counts as dead; a timedelta or
            seconds; ``DBLOCK_IDEMPOTENCY_LEASE`` (60). Each step renews it.
        on_abandoned: what the retry of a dead run does: ``"takeover"`` goes on after its last step;
            ``"refuse"`` answers 409 until a person has looked.
        methods: those that are protected; others pass.
        store_5xx: keep server errors, too: then a retry gets the error again.
        store_body: keep the body; else replays answer 204 in place of 2xx.
        using: the database alias, ``DBLOCK_DATABASE`` by default, else where the router writes
            :class:`~django_dblock.IdempotencyKey`.

    Raises:
        TypeError, ValueError: it can't be decorated so; when it is decorated.
        ImproperlyConfigured: the client is anonymous, and there is no ``scope=``; or it stands
            where a replay would come before authorisation; or, in lease mode, a transaction is
            open.
        TransactionManagementError: the view answers with success, and what it has written can't be
            committed; everything is rolled back. Or it has ended the transaction past Django: what
            its own COMMIT has committed stays, and its answer is not kept.
        RequestDataTooBig: the body is larger than ``DATA_UPLOAD_MAX_MEMORY_SIZE``; Django answers
            400. Not of uploads.
        UnsafeIsolation, StandbyDatabase, UnsupportedDatabase, LockTableFull: see there.

    The errors under :class:`~django_dblock.IdempotencyError` are answers, and not raised.

    Source: draft-ietf-httpapi-idempotency-key-header-07; RFC 8941, 3.3.3 "Strings"; RFC 9457.
    """
    options = Options(mode, ttl, wait, lease, on_abandoned, store_body, using)

    def decorate(view: View) -> View:
        name = view_introspection.checked(view, mode)
        wanted = Wanted(
            options,
            name,
            key,
            scope,
            fingerprint,
            required,
            strict,
            frozenset(method.upper() for method in methods),
            store_5xx,
        )
        if not view_introspection.is_trial(view):
            decorated[name] = wanted

        if view_introspection.is_async(view):

            @wraps(view)
            async def protected(*args: Any, **kwargs: Any) -> Any:
                return await _arun(
                    wanted, view, view_introspection.request_of(args, view), args, kwargs
                )

        else:

            @wraps(view)
            def protected(*args: Any, **kwargs: Any) -> Any:
                return _run(wanted, view, view_introspection.request_of(args, view), args, kwargs)

        mark(protected, view, Guard("idempotent", outside=mode == "lease", using=using))
        if mode == "lease":  # as far as a function can say so for itself
            alias = using or conf.database or DEFAULT_DB_ALIAS
            transaction.non_atomic_requests(using=alias)(protected)
        setattr(protected, MARK, wanted)
        return protected  # type: ignore[return-value]  # it has the view's own signature

    return decorate if view is None else decorate(view)


def _run(wanted: Wanted, view: Any, request: Any, args: Any, kwargs: Any) -> Any:
    plain = django_request(request)
    if _is_protected(plain):  # a view that calls another: one request, one run
        return view(*args, **kwargs)

    def work(handle: Handle) -> Any:
        with _carried(plain, handle):
            return view(*args, **kwargs)

    def judged(handle: Handle) -> Finished:
        try:
            response = work(handle)
        except IdempotencyLeaseLost:
            raise
        except Exception as error:
            if (finished := wanted.failed(request, error)) is None:
                raise
            return finished
        return wanted.finished(request, response)

    if request.method not in wanted.methods:
        return work(Handle(using=wanted.options.using))
    try:
        found = wanted.key_of(request)
    except IdempotencyError as error:
        return refuse(request, error)
    if found is None:
        return work(Handle(using=wanted.options.using))
    return _once(wanted, request, found, judged)


def _once(wanted: Wanted, request: Any, key: str, judged: Callable[[Handle], Finished]) -> Any:
    whose = wanted.scope_of(request) or wanted.scope_of_user(getattr(request, "user", None))
    identity, asked, options = wanted.identity(key, whose), wanted.asked(request), wanted.options
    if options.mode == "atomic":
        outcome = atomic.run(identity, asked, options, lambda: judged(Handle(identity)))
    else:
        outcome = lease_mode.run(
            identity,
            asked,
            options,
            lambda lease: judged(Handle(identity, lease)),
            lambda response: wanted.kept(request, response),
        )
    tell_outcome(outcome, identity, options.mode)
    return answer(request, outcome)


async def _arun(wanted: Wanted, view: Any, request: Any, args: Any, kwargs: Any) -> Any:
    plain = django_request(request)
    if _is_protected(plain):
        return await view(*args, **kwargs)

    async def work(handle: Handle) -> Any:
        with _carried(plain, handle):
            return await view(*args, **kwargs)

    async def judged(lease: Lease) -> Finished:
        try:
            response = await work(Handle(identity, lease))
        except IdempotencyLeaseLost:
            raise
        except Exception as error:
            if (finished := await sync_to_async(wanted.failed)(request, error)) is None:
                raise
            return finished
        return await sync_to_async(wanted.finished)(request, response)

    if request.method not in wanted.methods:
        return await work(Handle(using=wanted.options.using))
    try:
        found = wanted.key_of(request)
    except IdempotencyError as error:
        return refuse(request, error)
    if found is None:
        return await work(Handle(using=wanted.options.using))
    whose = await _ascope(wanted, request)
    identity, options = wanted.identity(found, whose), wanted.options
    asked = await sync_to_async(wanted.asked)(request)
    outcome = await lease_mode.arun(
        identity, asked, options, judged, lambda response: wanted.kept(request, response)
    )
    await sync_to_async(tell_outcome)(outcome, identity, options.mode)
    return answer(request, outcome)


def _is_protected(request: Any) -> bool:
    """Whether a view around this one protects the request; one that does not leaves it to this."""
    handle: Handle | None = getattr(request, "idempotency", None)
    return handle is not None and handle.protected


@contextmanager
def _carried(request: Any, handle: Handle) -> Iterator[None]:
    """Let the view find the handle, and a view around it its own again."""
    outer = getattr(request, "idempotency", None)
    request.idempotency = handle
    try:
        yield
    finally:
        if outer is None:
            del request.idempotency
        else:
            request.idempotency = outer


async def _ascope(wanted: Wanted, request: Any) -> str:
    if wanted.scope is None:
        user = await request.auser() if hasattr(request, "auser") else None
        return wanted.scope_of_user(user)
    value = wanted.scope(request)
    return wanted.named_scope(await value if hasattr(value, "__await__") else value)
