"""``run_once``: the guarantee of ``@idempotent`` for tasks, consumers and commands."""

import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder

from django_dblock.core.application_name import named
from django_dblock.core.decorators import refuse_unfinished
from django_dblock.exceptions import UnstorableResponse
from django_dblock.idempotency import atomic, lease_mode, store
from django_dblock.idempotency.claim import Lease
from django_dblock.idempotency.context import Handle
from django_dblock.idempotency.fingerprint import WORK_VERSION, of_work
from django_dblock.idempotency.identity import ONCE, Identity, RequestFingerprint
from django_dblock.idempotency.options import Duration, Mode, OnAbandoned, Options
from django_dblock.idempotency.outcome import Done, Finished, Outcome, Refused, tell_outcome
from django_dblock.idempotency.stored_response import StoredResponse
from django_dblock.keys import KeyPart

_SHOWN = 200


def run_once(  # noqa: PLR0913 - all but the key by name
    *key: KeyPart,
    work: Callable[..., Any],
    mode: Mode = "atomic",
    ttl: Duration | None = None,
    wait: float = 0,
    lease: Duration | None = None,
    on_abandoned: OnAbandoned = "takeover",
    fingerprint: Any = None,
    using: str | None = None,
) -> Any:
    """Run work once for a key and return its result; return the first result to each repetition.

    Guaranteed in atomic mode: the writes of the work in the database of ``using`` are committed
    with its result or not at all, and once for each key within ``ttl``. Inside an open transaction
    that happens when the outermost one commits; until then the key is locked. An exception of the
    work is raised, and nothing is stored. Guaranteed in lease mode: what
    :func:`~django_dblock.idempotent` guarantees in its lease mode.

    Not guaranteed: anything about the outside world, or about other database aliases. When ``ttl``
    has passed, the work runs again.

    Args:
        key: the parts of the key, as of an :class:`~django_dblock.advisory_lock`. A job that runs
            once a day has the date among them: ``run_once("settlement", date, work=…)``.
        work: called without arguments; in lease mode with the
            :class:`~django_dblock.idempotency.context.Handle`. Its result must be JSON data, and is
            returned as JSON restores it: a tuple becomes a list.
        mode: ``"atomic"``, or ``"lease"`` for work that calls the outside world.
        ttl: how long the result is stored, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_TTL``
            (24 h) by default.
        wait: the seconds to wait while the same work is running; 0 raises at once.
        lease: in lease mode, how long a run may be silent before it counts as dead, a timedelta or
            seconds; ``DBLOCK_IDEMPOTENCY_LEASE`` (60) by default.
        on_abandoned: what the repetition of a dead run does: ``"takeover"`` or ``"refuse"``, as of
            :func:`~django_dblock.idempotent`.
        fingerprint: JSON data that describes the work, for example a message. The same key with
            other data raises IdempotencyKeyReused.
        using: the database alias; ``DBLOCK_DATABASE`` by default, else the one to which the router
            writes :class:`~django_dblock.IdempotencyKey`.

    Raises:
        IdempotencyInProgress: the same work is running now.
        IdempotencyKeyReused: the key was used with another ``fingerprint=``.
        IdempotencyAbandoned: the last run died, and ``on_abandoned="refuse"`` leaves the key to an
            operator.
        IdempotencyNotReplicated: no synchronous standby confirmed the commit of the result; or, in
            lease mode, that of the claim or of a step.
        TooManyIdempotencyKeys: there are as many live keys as ``DBLOCK_IDEMPOTENCY_MAX_KEYS``
            allows; all keys of ``run_once`` share one scope.
        UnstorableResponse: the result is not JSON data, or is too large. Nothing was stored.
        DamagedAnswer: the stored result can't be read.
        ImproperlyConfigured: in lease mode, a transaction is open. Or the stored result, or that of
            a step, is encrypted, and ``DBLOCK_IDEMPOTENCY_CIPHER`` is not set.
        TransactionManagementError: in atomic mode, the work swallowed an error of the database, so
            its writes can't be committed. In lease mode, the work left a transaction open.
        TypeError, ValueError: the key or an argument is invalid. Raised before any SQL.
        TypeError: the work returned a generator or a coroutine. Nothing was stored.
        UnsafeIsolation, StandbyDatabase, UnsupportedDatabase, LockTableFull, LockDeadlock: the lock
            can't be taken; see the errors of :class:`~django_dblock.advisory_lock`.

    Source: P. Helland, "Idempotence Is Not a Medical Condition", 2012; the protocol is that of
    :mod:`django_dblock.idempotency`.
    """
    options = Options(mode, ttl, wait, lease, on_abandoned, using=using)
    identity, wanted = _prepared(key, fingerprint, options)
    if mode == "atomic":
        outcome = atomic.run(identity, wanted, options, lambda: _finished(_called(work)))
    else:
        outcome = lease_mode.run(
            identity,
            wanted,
            options,
            lambda held: _finished(_called(work, Handle(identity, held))),
            _kept,
        )
    return _result(outcome, identity, options)


async def arun_once(  # noqa: PLR0913 - all but the key by name
    *key: KeyPart,
    work: Callable[[Handle], Awaitable[Any]],
    ttl: Duration | None = None,
    wait: float = 0,
    lease: Duration | None = None,
    on_abandoned: OnAbandoned = "takeover",
    fingerprint: Any = None,
    using: str | None = None,
) -> Any:
    """Run async work once for a key, in lease mode; return its result, or the first result.

    Guaranteed, and not guaranteed: as of :func:`run_once` with ``mode="lease"``. There is no atomic
    mode, because Django's transactions can't span an await. Work that is cancelled keeps its key
    until its lease ends, because threads that it has started may still write.

    Args:
        key: the parts of the key.
        work: called with the :class:`~django_dblock.idempotency.context.Handle`, and awaited. Its
            result must be JSON data.
        ttl: how long the result is stored, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_TTL``.
        wait: the seconds to wait while the same work is running; 0 raises at once.
        lease: how long a run may be silent, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_LEASE``.
        on_abandoned: what the repetition of a dead run does: ``"takeover"`` or ``"refuse"``.
        fingerprint: JSON data that describes the work, for example a message. The same key with
            other data raises IdempotencyKeyReused.
        using: the database alias.

    Raises:
        IdempotencyInProgress, IdempotencyKeyReused, IdempotencyAbandoned,
        IdempotencyNotReplicated, TooManyIdempotencyKeys, UnstorableResponse, DamagedAnswer,
        ImproperlyConfigured, TransactionManagementError, TypeError, ValueError, UnsafeIsolation,
        StandbyDatabase, UnsupportedDatabase, LockTableFull: as :func:`run_once`.

    Source: as :func:`run_once`.
    """
    options = Options("lease", ttl, wait, lease, on_abandoned, using=using)
    identity, wanted = _prepared(key, fingerprint, options)

    async def finished(held: Lease) -> Finished:
        return _finished(await work(Handle(identity, held)))

    outcome = await lease_mode.arun(identity, wanted, options, finished, _kept)
    return await sync_to_async(_result)(outcome, identity, options)


def identity_of(key: tuple[Any, ...], using: str | None) -> Identity:
    """Return the identity under which ``run_once`` stores the result of a key."""
    found = named(key)
    text = ":".join(found.texts)
    # The text is only shown. The digest identifies, because different keys can have the same text.
    shown = f"{text[:_SHOWN]}#{sha256(found.data).hexdigest()[:40]}"
    return Identity(ONCE, shown, store.alias_for(using))


def _prepared(
    key: tuple[Any, ...], described: Any, options: Options
) -> tuple[Identity, RequestFingerprint]:
    identity = identity_of(key, options.using)
    return identity, RequestFingerprint(of_work(described), WORK_VERSION)


def _called(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call the work; refuse a result whose code has yet to run."""
    result = work(*arguments)
    refuse_unfinished(result, work, "run_once")
    return result


def _finished(result: Any) -> Finished:
    body = _body(result)
    return Finished(json.loads(body), _answer(body), returned=result)


def _kept(result: Any) -> dict[str, Any]:
    return _answer(_body(result))


def _body(result: Any) -> bytes:
    try:
        return json.dumps(result, cls=DjangoJSONEncoder).encode()
    except (TypeError, ValueError) as error:
        raise UnstorableResponse(
            f"The work's result is not JSON ({error}), so it could not be returned again. "
            f"Return an id, for example, or None."
        ) from error


def _answer(body: bytes) -> dict[str, Any]:
    return StoredResponse(200, {"Content-Type": "application/json"}, body).parameters(
        store_body=True
    )


def _result(outcome: Outcome, identity: Identity, options: Options) -> Any:
    tell_outcome(outcome, identity, options.mode)
    if isinstance(outcome, Refused):
        raise outcome.error
    return outcome.result if isinstance(outcome, Done) else json.loads(outcome.answer.body)
