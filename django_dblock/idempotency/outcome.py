"""What a run came to, and what a request is told."""

from dataclasses import dataclass
from typing import Any

from django.dispatch import Signal

from django_dblock import signals
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
    """How the work ended.

    Attributes:
        result: what goes back to the caller.
        answer: what is kept of it, in the form of the statements; None frees the key.
        keep_effects: whether what it has written is committed; never without an answer.
        failed: whether it claims no success, so that undoing its effects contradicts nobody.
    """

    result: Any
    answer: dict[str, Any] | None
    keep_effects: bool = True
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The work was run; ``kept`` where its answer is."""

    result: Any
    kept: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """It was run before; this was its answer."""

    answer: StoredResponse


@dataclass(frozen=True, slots=True)
class Refused:
    """It was not run."""

    error: IdempotencyError


Outcome = Done | Replayed | Refused


def decide(found: Found, identity: Identity, *, resumes: bool, refuses: bool) -> Outcome | None:
    """Return what the request is told without running anything; None where it may run.

    Args:
        found: what is known of it.
        identity: the request.
        resumes: whether this run could go on after the steps of another.
        refuses: whether what was abandoned is for a person.
    """
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
    if found.answer is not None:
        return Replayed(found.answer)
    if found.state == "leased" or not found.locked:
        return Refused(in_progress(identity, found.remaining))
    if (found.state == "abandoned" and refuses) or (found.state == "free" and not resumes):
        return Refused(
            IdempotencyAbandoned(
                f"{name}: whoever worked on this request is gone, and may have had its effect "
                f"outside. A person has to look: 'manage.py dblock list --kind idempotency', then "
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
    """Return the error for a request that somebody is at work on."""
    facts = identity.facts
    return IdempotencyInProgress(
        f"Idempotency key {facts['key']} of {facts['scope']}: the same request is being worked on "
        f"just now. Ask again in a moment, with the same key.",
        **facts,
        retry_after=max(1, min(remaining, _LONGEST_WAIT)),
    )


# Signals about requests; a receiver's error is logged by Django, never raised.


def tell(signal: Signal, identity: Identity, mode: str, **more: object) -> None:
    """Send it, where somebody listens."""
    if signal.receivers:
        from django_dblock.models import IdempotencyKey

        signal.send_robust(IdempotencyKey, mode=mode, **identity.facts, **more)


def tell_outcome(outcome: Outcome, identity: Identity, mode: str) -> None:
    """Send what a request came to."""
    if isinstance(outcome, Done):
        if outcome.kept:
            tell(signals.idempotent_executed, identity, mode)
    elif isinstance(outcome, Refused):
        tell(signals.idempotent_refused, identity, mode, code=outcome.error.code)
    else:
        tell(signals.idempotent_replayed, identity, mode)
