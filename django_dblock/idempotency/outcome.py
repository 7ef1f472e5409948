"""The outcome of a request: done, replayed or refused."""

from dataclasses import dataclass
from typing import Any

from django.db import connections
from django.db.transaction import TransactionManagementError
from django.dispatch import Signal

from django_dblock import signals
from django_dblock.core.connection import is_aborted
from django_dblock.exceptions import (
    IdempotencyAbandoned,
    IdempotencyError,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    TooManyIdempotencyKeys,
)
from django_dblock.idempotency.identity import Identity
from django_dblock.idempotency.store import Found
from django_dblock.idempotency.stored_response import StoredResponse

_LONGEST_WAIT = 5


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the work.

    Attributes:
        result: the result for the caller.
        answer: the stored part of the result, in the form that the statements take; None frees the
            key.
        keep_effects: whether the effects of the work are committed; never without an answer.
        failed: whether the result reports a failure, so that its effects may be rolled back.
        returned: what the work has returned: the result itself, or what the result was made of.
    """

    result: Any
    answer: dict[str, Any] | None
    keep_effects: bool = True
    failed: bool = False
    returned: Any = None


@dataclass(frozen=True, slots=True)
class Done:
    """The work has run; ``kept`` says whether its response is stored."""

    result: Any
    kept: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """The work has run before; ``answer`` is its stored response."""

    answer: StoredResponse


@dataclass(frozen=True, slots=True)
class Refused:
    """The work has not run, or its commit is not safe; ``error`` says why."""

    error: IdempotencyError


Outcome = Done | Replayed | Refused


def decide(  # noqa: PLR0911 - a return for each outcome
    found: Found, identity: Identity, *, resumes: bool, refuses: bool
) -> Outcome | None:
    """Return the outcome of a request that may not run; None if it may.

    Args:
        found: the state of the request.
        identity: the identity of the request.
        resumes: whether a run can continue after the recorded steps of another run.
        refuses: whether an abandoned request is left to an operator.
    """
    if found.answer is not None:
        return Replayed(found.answer)
    if found.same and found.locked and not found.full and found.state in ("new", "expired"):
        return None  # nearly always; what follows names the request
    facts = identity.facts
    name = f"Idempotency key {facts['key']} of {facts['scope']}"
    if found.another:
        return Refused(
            IdempotencyKeyReused(
                f"{name} was used for another request. Take a new key for a new request, and "
                f"repeat a request exactly as it was.",
                **facts,
            )
        )
    if found.state == "leased":
        return Refused(in_progress(identity, found.remaining or _LONGEST_WAIT))
    if not found.locked:
        return Refused(in_progress(identity, 1))
    if (found.state == "abandoned" and refuses) or (found.state == "free" and not resumes):
        return Refused(
            IdempotencyAbandoned(
                f"{name}: the worker of this request is lost, and may have had effects outside. "
                f"An operator has to look: 'manage.py dblock list --kind idempotency', then "
                f"'manage.py dblock release --request {found.id}'.",
                **facts,
            )
        )
    if found.full and found.state in ("new", "expired"):
        return Refused(
            TooManyIdempotencyKeys(
                f"{name} was not taken: the scope has as many live keys as "
                f"DBLOCK_IDEMPOTENCY_MAX_KEYS allows. Wait until some have expired.",
                **facts,
            )
        )
    return None


def in_progress(identity: Identity, remaining: int) -> IdempotencyInProgress:
    """Return the error for a request that is running."""
    facts = identity.facts
    return IdempotencyInProgress(
        f"Idempotency key {facts['key']} of {facts['scope']}: the same request is running "
        f"now. Retry in a moment, with the same key.",
        **facts,
        retry_after=max(1, min(remaining, _LONGEST_WAIT)),
    )


# Signals about requests; a receiver's error is logged by Django, never raised.


def tell(signal: Signal, identity: Identity, mode: str, **more: object) -> None:
    """Send a signal about the request, if it has receivers.

    Raises:
        TransactionManagementError: a receiver has aborted the caller's transaction, which would be
            rolled back without an error.
    """
    if signal.receivers:
        from django_dblock.models import IdempotencyKey

        signal.send_robust(IdempotencyKey, mode=mode, **identity.facts, **more)
        connection = connections[identity.using]
        if connection.in_atomic_block and (connection.needs_rollback or is_aborted(connection)):
            raise TransactionManagementError(
                f"A receiver of a signal about idempotency key {identity.facts['key']} has "
                f"swallowed a database error or called set_rollback(True), so the transaction on "
                f"database {connection.alias!r} can't be committed. Let the receiver write in a "
                f"transaction.atomic() block of its own, or by transaction.on_commit()."
            )


def tell_outcome(outcome: Outcome, identity: Identity, mode: str) -> None:
    """Send the signal of the outcome, if it has receivers."""
    if isinstance(outcome, Done):
        if outcome.kept:
            tell(signals.idempotent_executed, identity, mode)
    elif isinstance(outcome, Refused):
        tell(signals.idempotent_refused, identity, mode, code=outcome.error.code)
    else:
        tell(signals.idempotent_replayed, identity, mode)
