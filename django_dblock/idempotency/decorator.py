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
from django_dblock.idempotency.identity import HEADER
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned, Options
from django_dblock.idempotency.outcome import Finished, tell_outcome
from django_dblock.idempotency.request import (
    Adapter,
    ViewConfig,
    checked_header,
    refused,
    response_of,
)

View = TypeVar("View", bound=Callable[..., Any])

decorated: dict[str, ViewConfig] = {}
"""Every decorated view by its name, for the system checks; but for what has only the mark."""

MARK = "_dblock_idempotent"
"""The attribute by which ``method_decorator``, which copies them, shows what it has decorated."""


class IdempotentRequest(HttpRequest):
    """The request that a view with ``@idempotent`` gets, for annotations only.

    ``def pay(request: IdempotentRequest) -> HttpResponse`` lets a type checker know
    ``request.idempotency``. No object of this class is ever made: at run time the request is
    Django's own, or REST framework's.

    Attributes:
        idempotency: the handle of this run; there while the view runs.
    """

    idempotency: Handle


@overload
def idempotent(view: View, /) -> View: ...


@overload
def idempotent(
    *,
    scope: Callable[[Any], Any] | None = None,
    key: Callable[[Any], Any] | None = None,
    header: str | None = HEADER,
    fingerprint: Callable[[Any], Any] | None = None,
    keep: Callable[[Any], Any] | None = None,
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
    key: Callable[[Any], Any] | None = None,
    header: str | None = HEADER,
    fingerprint: Callable[[Any], Any] | None = None,
    keep: Callable[[Any], Any] | None = None,
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
        key: called with the request: returns the key as text, or None to ask the header. It goes
            before the header, so that nobody gets an event that you have authenticated run again by
            adding a header to it.
        header: the name of the header that carries the key; None if only ``key=`` tells it.
        fingerprint: called with the request: what to compare in place of the body.
        keep: called with a response that would be stored, rendered, inside the transaction. Where
            it returns something false, the effects are rolled back and the key is free, as after a
            server error: for protocols that answer 200 to everything, such as GraphQL.
        ttl: how long the response is kept, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_TTL``
            (24 h).
        required: answer 400 where the key is missing; False runs such a request unprotected.
        strict: take the quoted form of the header only, ``"abc"``.
        wait: seconds to wait for the same request that is running; 0 answers 409 at once.
        mode: ``"atomic"``, or ``"lease"`` for views that call the outside world.
        lease: in lease mode, how long a run may be silent before it counts as dead; a timedelta or
            seconds; ``DBLOCK_IDEMPOTENCY_LEASE`` (60). Each step renews it.
        on_abandoned: what the retry of a dead run does: ``"takeover"`` goes on after its last step;
            ``"refuse"`` answers 409 until an operator has looked.
        methods: those that are protected; others pass.
        store_5xx: store server errors as well, but for those with ``Retry-After``: then a retry
            gets the error again.
        store_body: store the body; else replays answer 204 in place of 2xx.
        using: the database alias, ``DBLOCK_DATABASE`` by default, else where the router writes
            :class:`~django_dblock.IdempotencyKey`.

    In async views ``scope``, ``key``, ``fingerprint`` and ``keep`` may be coroutine functions;
    plain ones are called in a thread.

    Raises:
        TypeError: the view or an option can't be used like this, told when it is decorated: it is
            a class, a generator, async in atomic mode, has a durable ``atomic()`` block in atomic
            mode, or is no view at all.
        ValueError: an option has a value that makes no sense, told when it is decorated.
        ImproperlyConfigured: the client is anonymous, and there is no ``scope=``; or the decorator
            stands where a replay would come before authorisation; or, in lease mode, a transaction
            is open.
        TransactionManagementError: the view answers with success, and what it has written can't be
            committed; everything is rolled back. Or it has ended the transaction past Django: what
            its own COMMIT has committed stays, and its response is not stored.
        RequestDataTooBig: an urlencoded form is larger than ``DATA_UPLOAD_MAX_MEMORY_SIZE``; Django
            answers 400.
        UnsafeIsolation: the transaction's isolation level is above READ COMMITTED.
        StandbyDatabase: the alias leads to a standby.
        UnsupportedDatabase: the alias is no PostgreSQL with real advisory locks.
        LockTableFull: the server has no room for another lock.

    The errors under :class:`~django_dblock.IdempotencyError` are answered with a response, and not
    raised.

    Source: draft-ietf-httpapi-idempotency-key-header-07; RFC 8941, 3.3.3 "Strings"; RFC 9457.
    """
    functions = {"scope": scope, "key": key, "fingerprint": fingerprint, "keep": keep}
    for option, call in functions.items():
        if call is not None and not callable(call):
            raise TypeError(f"{option}={call!r} is no function; it is called with the request.")
    if checked_header(header) is None and key is None:
        raise ValueError("header=None needs key=: else no request would have a key.")
    options = Options(mode, ttl, wait, lease, on_abandoned, store_body, using)

    def decorate(view: View) -> View:
        name = view_introspection.checked(view, mode, functions)
        config = ViewConfig(
            options=options,
            name=name,
            key=key,
            header=header,
            scope=scope,
            fingerprint=fingerprint,
            keep=keep,
            required=required,
            strict=strict,
            methods=frozenset(method.upper() for method in methods),
            store_5xx=store_5xx,
        )
        if not view_introspection.is_trial(view):
            decorated[name] = config
        adapter_in = view_introspection.adapter_in

        if view_introspection.is_async(view):

            @wraps(view)
            async def protected(*args: Any, **kwargs: Any) -> Any:
                adapter = adapter_in(args, view, asynchronous=True)
                return await _arun(config, view, adapter, args, kwargs)

        else:

            @wraps(view)
            def protected(*args: Any, **kwargs: Any) -> Any:
                adapter = adapter_in(args, view, asynchronous=False)
                return _run(config, view, adapter, args, kwargs)

        mark(protected, view, Guard("idempotent", outside=mode == "lease", using=using))
        if mode == "lease":  # as far as a function can say so for itself
            alias = using or conf.database or DEFAULT_DB_ALIAS
            transaction.non_atomic_requests(using=alias)(protected)
        setattr(protected, MARK, config)
        return protected  # type: ignore[return-value]  # it has the view's own signature

    return decorate if view is None else decorate(view)


def _run(config: ViewConfig, view: Any, adapter: Adapter, args: Any, kwargs: Any) -> Any:
    request = adapter.http

    def run_with(handle: Handle) -> Any:
        with _carried(request, handle):
            return view(*args, **kwargs)

    def work(handle: Handle) -> Finished:
        try:
            response = run_with(handle)
        except IdempotencyLeaseLost:
            raise
        except Exception as error:
            if (finished := config.failed(adapter, error)) is None:
                view_introspection.explain_durable(error)
                raise
            return finished
        return config.finished(adapter, response)

    if (handle := _bystander(config, request)) is not None:
        return run_with(handle)
    try:
        identified = config.identify(adapter)
    except IdempotencyError as error:
        return refused(adapter, error)
    if identified is None:
        return run_with(Handle(using=config.options.using))
    identity, asked = identified
    options = config.options
    if options.mode == "atomic":
        outcome = atomic.run(identity, asked, options, lambda: work(Handle(identity)))
    else:
        outcome = lease_mode.run(
            identity,
            asked,
            options,
            lambda lease: work(Handle(identity, lease)),
            lambda response: config.kept(adapter, response),
        )
    tell_outcome(outcome, identity, options.mode)
    return response_of(adapter, outcome)


async def _arun(config: ViewConfig, view: Any, adapter: Adapter, args: Any, kwargs: Any) -> Any:
    request = adapter.http

    async def run_with(handle: Handle) -> Any:
        with _carried(request, handle):
            return await view(*args, **kwargs)

    async def work(lease: Lease) -> Finished:
        try:
            response = await run_with(Handle(lease.identity, lease))
        except IdempotencyLeaseLost:
            raise
        except Exception as error:
            if (finished := await sync_to_async(config.failed)(adapter, error)) is None:
                raise
            return finished
        return await sync_to_async(config.finished)(adapter, response)

    if (handle := _bystander(config, request)) is not None:
        return await run_with(handle)
    try:
        identified = await sync_to_async(config.identify)(adapter)
    except IdempotencyError as error:
        return await sync_to_async(refused)(adapter, error)
    if identified is None:
        return await run_with(Handle(using=config.options.using))
    identity, asked = identified
    outcome = await lease_mode.arun(
        identity,
        asked,
        config.options,
        work,
        lambda response: config.kept(adapter, response),
        shield=True,
    )

    def told() -> Any:
        tell_outcome(outcome, identity, config.options.mode)
        return response_of(adapter, outcome)

    return await sync_to_async(told)()


def _bystander(config: ViewConfig, request: Any) -> Handle | None:
    """Return the handle of a request that is not protected here; None of one that is."""
    outer: Handle | None = getattr(request, "idempotency", None)
    if outer is not None and outer.protected:  # by a view around this one: one request, one run
        return outer
    return None if request.method in config.methods else Handle(using=config.options.using)


@contextmanager
def _carried(request: Any, handle: Handle) -> Iterator[None]:
    """Let the view find the handle on its request, and then a view around it its own again."""
    outer = getattr(request, "idempotency", None)
    request.idempotency = handle
    try:
        yield
    finally:
        if outer is None:
            del request.idempotency
        else:
            request.idempotency = outer
