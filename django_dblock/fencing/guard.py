"""A transaction that can only commit while its lease is held."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from django.db import connections, transaction

from django_dblock.databases import in_transaction
from django_dblock.exceptions import LockLost
from django_dblock.fencing.trust import Trust
from django_dblock.sql import fencing as sql
from django_dblock.wire import send

_LONGEST_MILLISECONDS = 2_147_483_647
"""What the server can express."""


@contextmanager
def guarded(trust: Trust, idle_timeout: float) -> Iterator[None]:
    """Open a transaction, or join the one that is open, and tie the lease to it."""
    connection = connections[trust.place.using]
    if in_transaction(connection):
        with transaction.mark_for_rollback_on_error(using=connection.alias):
            held = _is_held(trust, idle_timeout)
        if not held:
            raise _lost(trust)
        yield
        return
    with transaction.atomic(using=connection.alias):
        if not _is_held(trust, idle_timeout):
            raise _lost(trust)
        yield


def _is_held(trust: Trust, idle_timeout: float) -> bool:
    place = trust.place
    milliseconds = min(max(1, ceil(idle_timeout * 1000)), _LONGEST_MILLISECONDS)
    parameters: dict[str, str | int | list[int] | None] = {
        "name": place.name,
        "slot": place.slot,
        "token": trust.token,
        "idle_timeout": milliseconds,
    }
    return bool(send(connections[place.using], sql.GUARD, parameters=parameters))


def _lost(trust: Trust) -> LockLost:
    trust.lose("the table no longer has it under this token")
    return LockLost(**trust.place.facts, token=trust.token, reason=str(trust.reason))
