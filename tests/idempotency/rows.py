"""Rows as the protocol leaves them, made by hand."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from django_dblock import IdempotencyKey

HOUR = timedelta(hours=1)
CLAIM = UUID("00000000-0000-4000-8000-000000000001")
OTHER_CLAIM = UUID("00000000-0000-4000-8000-000000000002")


def make(key: str = "3f1c0a52-key", scope: str = "user:7", **changes: Any) -> IdempotencyKey:
    """A request that was answered an hour ago and is kept for another day."""
    return IdempotencyKey.objects.create(**values(key, scope, **changes))


def values(key: str = "3f1c0a52-key", scope: str = "user:7", **changes: Any) -> dict[str, Any]:
    now = timezone.now()
    return {
        "scope": scope,
        "key": key,
        "fingerprint": bytes(32),
        "fingerprint_version": 1,
        "method": "POST",
        "path": "/pay/",
        "status_code": 201,
        "headers": {"Content-Type": "application/json"},
        "body": b'{"paid": true}',
        "created_at": now - HOUR,
        "completed_at": now - HOUR,
        "expires_at": now + 24 * HOUR,
        **changes,
    }


def unfinished(key: str = "3f1c0a52-key", scope: str = "user:7", **changes: Any) -> IdempotencyKey:
    """A request that somebody is at work on for another hour."""
    now = timezone.now()
    return make(
        key,
        scope,
        **{
            "status_code": None,
            "headers": {},
            "body": None,
            "completed_at": None,
            "token": 3,
            "owner": "web-2:4711:MainThread",
            "locked_until": now + HOUR,
            **changes,
        },
    )


def abandoned(key: str = "3f1c0a52-key", scope: str = "user:7", **changes: Any) -> IdempotencyKey:
    """A request whose worker has been gone for an hour."""
    return unfinished(key, scope, **{"locked_until": timezone.now() - HOUR, **changes})


def over() -> Any:
    """A retention that ended an hour ago."""
    return timezone.now() - HOUR
