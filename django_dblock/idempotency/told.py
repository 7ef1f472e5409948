"""Signals about requests; a receiver's error is logged by Django, never raised."""

from django.dispatch import Signal

from django_dblock import signals
from django_dblock.idempotency.identity import Identity
from django_dblock.idempotency.outcome import Done, Outcome, Refused


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
