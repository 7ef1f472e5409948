"""The ``@idempotent`` decorator: it gives a repeated request the response of the first one."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, transaction
from django.http import HttpRequest

from django_dblock.conf import conf
from django_dblock.core.decorators import Guard, mark, refuse_unfinished
from django_dblock.exceptions import (
    IdempotencyError,
    IdempotencyLeaseLost,
    IdempotencyNotReplicated,
)
from django_dblock.idempotency import (
    atomic,
    lease_mode,
    view_introspection,
)
from django_dblock.idempotency.claim import Lease
from django_dblock.idempotency.context import Handle
from django_dblock.idempotency.identity import HEADER, Identity
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned, Options
from django_dblock.idempotency.outcome import Done, Finished, Outcome, Replayed, tell_outcome
from django_dblock.idempotency.request import (
    Adapter,
    ViewConfig,
    checked_header,
    refused,
    response_of,
)

View = TypeVar("View", bound=Callable[..., Any])

decorated: dict[str, ViewConfig] = {}
"""The decorated views by their names, for the system checks; views that ``method_decorator`` has
decorated are found by their MARK instead."""

MARK = "_dblock_idempotent"
"""The attribute that holds a view's config; ``method_decorator`` copies it to the method."""


_ANSWERED = "_dblock_answered"
"""The attribute of a request with the names of the views that have answered it, by identity."""


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
    """Give a repeated request the response of the first one, without running the view again.

    The client sends an ``Idempotency-Key`` header: a new key with each new request, and the same
    key with each retry. The decorator works on functions and on the methods of class-based views,
    directly or through ``method_decorator``; with Django REST framework on methods and actions, and
    below ``@api_view``. Put the decorator below all authorisation, so that a replay is authorised,
    too. Async views need ``mode="lease"``. The view finds its handle in
    ``request.idempotency`` (:class:`~django_dblock.idempotency.context.Handle`).

    Guaranteed in atomic mode: what the view writes in the database of ``using`` and its response
    are committed together or not at all, and once for each ``(scope, key)`` within ``ttl``. A retry
    gets the stored response. A key that was used for another request is refused (422), and so is
    a request that another run is processing (409).

    Guaranteed in lease mode: the same for what is written in a transaction that calls
    ``request.idempotency.complete()``, ``guard()`` or ``step()``. A client that disconnects does
    not cancel an async view before its lease ends.

    Not guaranteed:

    - anything about other systems: a run may be repeated up to its last recorded step, so give the
      other system ``derived_key()``;
    - what is written on other database aliases, or by middleware, which is where sessions are
      saved;
    - cookies, which only the first response has;
    - in lease mode, writes outside of the transactions named above;
    - that a client gets a response: it may have to retry;
    - anything after ``ttl``, when the same key is a new request.

    Args:
        view: the view, if the decorator is used without arguments.
        scope: a function of the request that returns the client that owns the key; by default the
            logged-in user.
        key: a function of the request that returns the key as text, or None to use the header. Its
            result takes precedence over the header, so that an authenticated event can't be run
            again by adding a header.
        header: the name of the header that carries the key; None if only ``key=`` gives the key.
        fingerprint: a function of the request that returns what to compare instead of the body.
        keep: a function of a response that would be stored, called inside the transaction with the
            rendered response. If it returns something false, the effects are rolled back and the
            key is free, as after a server error. For protocols that respond with 200 to everything,
            such as GraphQL.
        ttl: how long the response is stored, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_TTL``
            (24 h).
        required: whether a request without a key gets a 400; if False it runs unprotected.
        strict: whether only the quoted form of the header is accepted, ``"abc"``.
        wait: the seconds to wait while another run processes the same request; 0 responds with 409
            at once.
        mode: ``"atomic"``, or ``"lease"`` for views that call other systems.
        lease: in lease mode, how long a run may be silent before it counts as dead, a timedelta or
            seconds; ``DBLOCK_IDEMPOTENCY_LEASE`` (60). Each step renews the lease.
        on_abandoned: what the retry of a dead run does: ``"takeover"`` continues after the last
            step, ``"refuse"`` responds with 409 until an operator has looked.
        methods: the HTTP methods that are protected; requests with others run unprotected.
        store_5xx: whether server errors without ``Retry-After`` are stored as well. An error that
            the view raises becomes a response at once, by the view's exception handler (REST
            framework) or by Django; decorators and middleware around it do not see the error. The
            errors that ConflictMiddleware responds to are raised and not stored.
        store_body: whether the body is stored; if not, the replay of a 2xx is a 204.
        using: the database alias; ``DBLOCK_DATABASE`` by default, else the alias to which the
            router writes :class:`~django_dblock.IdempotencyKey`.

    In async views ``scope``, ``key``, ``fingerprint`` and ``keep`` may be coroutine functions;
    plain functions are called in a thread.

    Raises:
        TypeError: when it decorates: the view is a class, a generator, or not a view; it is async,
            or has a durable ``atomic()`` block, in atomic mode; an option has the wrong type.
        ValueError: when it decorates: an option has an impossible value.
        ImproperlyConfigured: the client is anonymous and there is no ``scope=``; or the decorator
            is above authorisation, which a replay would skip; or a transaction is open in lease
            mode; or another protected view has responded to the same request with the same key; or
            the stored response, or the result of a step, is encrypted, and
            ``DBLOCK_IDEMPOTENCY_CIPHER`` is not set.
        TransactionManagementError: the view responds with success, and its effects can't be
            committed, so everything is rolled back. Or the view has ended the transaction without
            Django: the effects of its own COMMIT stay, and the response is not stored. Or, in lease
            mode, the view has left a transaction open.
        RequestDataTooBig: an urlencoded form is larger than ``DATA_UPLOAD_MAX_MEMORY_SIZE``. Django
            responds with 400.
        UnreadablePostError: the body is shorter than its ``Content-Length``, because the client's
            connection broke.
        UnsafeIsolation: the isolation level of the transaction is above READ COMMITTED.
        StandbyDatabase: the alias leads to a standby.
        UnsupportedDatabase: the alias is not PostgreSQL, or has no real advisory locks.
        LockTableFull: the server has no room for another lock.
        LockDeadlock: with ``wait=`` in an open transaction, the server found a deadlock.
        DamagedAnswer: the stored response, or the result of a step, can't be read.

    Other errors under :class:`~django_dblock.IdempotencyError` become responses and are not raised.

    Source: draft-ietf-httpapi-idempotency-key-header-07; RFC 8941, 3.3.3 "Strings"; RFC 9457.
    """
    functions = {"scope": scope, "key": key, "fingerprint": fingerprint, "keep": keep}
    for option, call in functions.items():
        if call is not None and not callable(call):
            raise TypeError(f"{option}={call!r} is not a function.")
    if checked_header(header) is None and key is None:
        raise ValueError("header=None needs key=: else no request would have a key.")
    protected_methods = _checked_methods(methods)
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
            methods=protected_methods,
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
        if mode == "lease":  # as far as the function itself shows that
            alias = using or conf.database or DEFAULT_DB_ALIAS
            transaction.non_atomic_requests(using=alias)(protected)
        setattr(protected, MARK, config)
        return protected  # type: ignore[return-value]  # it has the view's own signature

    return decorate if view is None else decorate(view)


def _checked_methods(methods: Any) -> frozenset[str]:
    """Return the protected HTTP methods; refuse a string, of which each letter would be one."""
    names = () if isinstance(methods, str) else tuple(methods)
    if isinstance(methods, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"methods={methods!r} is not a list of HTTP methods, such as ['POST'].")
    if not names:
        raise ValueError("methods= is empty, so the decorator would protect nothing.")
    return frozenset(name.upper() for name in names)


def _run(config: ViewConfig, view: Any, adapter: Adapter, args: Any, kwargs: Any) -> Any:
    request = adapter.http

    def run_with(handle: Handle) -> Any:
        with _Carried(request, handle):
            return view(*args, **kwargs)

    def work(handle: Handle) -> Finished:
        try:
            response = run_with(handle)
            refuse_unfinished(response, view, "idempotent")
        except (IdempotencyLeaseLost, IdempotencyNotReplicated):
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
    _refuse_second_view(config, request, identity)
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
    return _responded(config, adapter, identity, outcome)


async def _arun(config: ViewConfig, view: Any, adapter: Adapter, args: Any, kwargs: Any) -> Any:
    request = adapter.http

    async def run_with(handle: Handle) -> Any:
        with _Carried(request, handle):
            return await view(*args, **kwargs)

    async def work(lease: Lease) -> Finished:
        try:
            response = await run_with(Handle(lease.identity, lease))
        except (IdempotencyLeaseLost, IdempotencyNotReplicated):
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
    _refuse_second_view(config, request, identity)
    outcome = await lease_mode.arun(
        identity,
        asked,
        config.options,
        work,
        lambda response: config.kept(adapter, response),
        shield=True,
    )
    return await sync_to_async(_responded)(config, adapter, identity, outcome)


def _bystander(config: ViewConfig, request: Any) -> Handle | None:
    """Return the handle of a request that is not protected here; None if it is protected."""
    outer: Handle | None = getattr(request, "idempotency", None)
    if outer is not None and outer.protected:  # by a view around this one: one request, one run
        return outer
    return None if request.method in config.methods else Handle(using=config.options.using)


def _refuse_second_view(config: ViewConfig, request: Any, identity: Identity) -> None:
    """Refuse a request that another view has answered under the same key.

    The fingerprints are the same, so this view would return the response of the other view.
    """
    before = request.__dict__.setdefault(_ANSWERED, {}).get(identity, config.name)
    if before != config.name:
        raise ImproperlyConfigured(
            f"{config.name} was called with a request whose idempotency key {before} has used "
            f"already, so it would return that view's response. Decorate the view that calls both, "
            f"or give one of them a key of its own by key=."
        )


def _responded(config: ViewConfig, adapter: Adapter, identity: Identity, outcome: Outcome) -> Any:
    """Return the response to an outcome; note the view if its response is stored."""
    if isinstance(outcome, Replayed) or (isinstance(outcome, Done) and outcome.kept):
        getattr(adapter.http, _ANSWERED)[identity] = config.name
    tell_outcome(outcome, identity, config.options.mode)
    return response_of(adapter, outcome)


class _Carried:
    """The handle on the request while the view runs; after it the outer view's handle, if any."""

    def __init__(self, request: Any, handle: Handle) -> None:
        self._request = request
        self._handle = handle

    def __enter__(self) -> None:
        self._outer: Handle | None = getattr(self._request, "idempotency", None)
        self._request.idempotency = self._handle

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            del self._request.idempotency
        else:
            self._request.idempotency = self._outer
