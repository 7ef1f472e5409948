"""Every way to hold a key around a transaction of one's own, waiting for it if somebody has it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from django.db import connections, transaction

from django_dblock import advisory_lock
from tests.app.models import Counter
from tests.benchmarks import peers


@dataclass(frozen=True)
class Way:
    """How it is called, and ``hold(alias, number)``: in the block the key and a transaction."""

    name: str
    label: str
    hold: Callable[[str, int], AbstractContextManager[object]]
    peer: bool = False


def ways() -> list[Way]:
    """All that can run here; the first is the limit."""
    found = [
        Way("raw", "raw pg_advisory_xact_lock", _raw),
        Way("advisory_lock", "advisory_lock", _advisory_lock),
        Way("select_for_update", "select_for_update", _select_for_update, peer=True),
    ]
    if peers.has_pglock():
        found.append(Way("pglock", "django-pglock, xact", _pglock, peer=True))
    if peers.has_redis():
        found.append(Way("redis", "redis-py Lock", _redis, peer=True))
    return found


@contextmanager
def _raw(alias: str, number: int) -> Iterator[None]:
    with transaction.atomic(using=alias):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [number])
            cursor.fetchone()
        yield


def _advisory_lock(alias: str, number: int) -> AbstractContextManager[object]:
    return advisory_lock("inventory", f"sku-{number}", using=alias)


@contextmanager
def _select_for_update(alias: str, number: int) -> Iterator[None]:
    with transaction.atomic(using=alias):
        Counter.objects.using(alias).select_for_update().get(pk=number)
        yield


def _pglock(alias: str, number: int) -> AbstractContextManager[object]:
    import pglock

    return pglock.advisory(f"inventory:sku-{number}", xact=True, using=alias)


@contextmanager
def _redis(alias: str, number: int) -> Iterator[None]:
    # COMMIT comes before the release, or others would read what was before it.
    with peers.redis_lock(alias, f"inventory:sku-{number}"), transaction.atomic(using=alias):
        yield


@contextmanager
def redis_durable(alias: str, number: int) -> Iterator[None]:
    """The same with a Redis that writes the lock to disk before it answers."""
    with peers.redis_lock("durable", f"inventory:sku-{number}"), transaction.atomic(using=alias):
        yield
