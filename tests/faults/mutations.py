"""Ours, with a part broken on purpose: what the checkers miss here they would miss anywhere.

Each is applied in a worker, before its first turn, and in nothing else.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from django.db import OperationalError, connections, transaction

from django_dblock.coordination.latch import latch
from django_dblock.exceptions import LockLost
from django_dblock.fencing import model
from django_dblock.fencing import model as queryset
from django_dblock.fencing.model import refused
from django_dblock.idempotency import atomic
from django_dblock.idempotency.claim import Lease
from django_dblock.idempotency.context import Handle
from django_dblock.sql import fencing as sql
from django_dblock.sql import idempotency, rwlock


def guard_without_row_lock() -> None:
    """The guard looks whether the lease is held, and locks nothing."""
    sql.GUARD = _without(sql.GUARD, "FOR KEY SHARE")


def application_clock() -> None:
    """Expiries are set and compared by the clock of whoever asks."""
    statements = {
        name: value
        for name, value in vars(sql).items()
        if isinstance(value, str) and "clock_timestamp()" in value and not name.startswith("_")
    }

    def reading(statement: str) -> property:
        return property(
            lambda _: statement.replace("clock_timestamp()", f"to_timestamp({time.time():.6f})")
        )

    for name in statements:
        delattr(sql, name)
    broken = type("Broken", (ModuleType,), {n: reading(s) for n, s in statements.items()})
    sys.modules[sql.__name__].__class__ = broken


def fence_by_comparison_alone() -> None:
    """``save_fenced`` compares the row's token with its own, and asks nothing of the lease."""

    @contextmanager
    def unguarded(lock: Any, using: str, model: Any, pk: Any = None) -> Iterator[None]:
        try:
            with transaction.atomic(using=using):
                yield
        except LockLost as error:
            raise refused(lock, model, "it is lost", pk) from error

    model.fenced_write = queryset.fenced_write = unguarded


def record_after_commit() -> None:
    """The answer is written when the effects are committed, and not with them."""
    plain_outcome, plain_record = atomic._Run.outcome, atomic._Run._record

    def outcome(self: Any) -> Any:
        late: list[Callable[[], None]] = []
        # The savepoint that would be released with it is gone by then.
        self._record = lambda answer, *_: late.append(lambda: plain_record(self, answer))
        found = plain_outcome(self)
        for record in late:
            with transaction.atomic(using=self.identity.using):
                record()
        return found

    atomic._Run.outcome = outcome


def key_of_the_run() -> None:
    """The key for the other side is another one in each run of a request."""
    plain = Handle.derived_key
    Handle.derived_key = lambda self, name: plain(self, f"{name} {self.token}")


def complete_without_token() -> None:
    """A run records its answer without a look at whose the request is by now."""
    mine = "AND token = %(token)s::bigint AND claim = %(claim)s::uuid\n    AND completed_at IS NULL"
    idempotency.COMPLETE = _without(idempotency.COMPLETE, mine)


def step_after_commit() -> None:
    """A step that belongs to a transaction is recorded a moment after its COMMIT."""
    plain = Lease.record

    def record(self: Any, name: str, result: Any) -> Any:
        using = self.identity.using
        if not connections[using].in_atomic_block:
            return plain(self, name, result)

        def late() -> None:
            time.sleep(0.01)
            plain(self, name, result)

        transaction.on_commit(late, using=using)
        return result

    Lease.record = record


def write_beside_readers() -> None:
    """A writer is granted the lock whether its readers' rows could be locked or not."""
    before, _, rest = rwlock.ACQUIRE_WRITE.partition("    WHERE (SELECT count(*) FROM readers)")
    _, _, after = rest.partition("), taken AS")
    rwlock.ACQUIRE_WRITE = f"{before}), taken AS{after}"


def count_beside_the_part() -> None:
    """A latch is counted down beside the part's transaction, not in it."""
    plain = latch.count_down

    def count_down(self: Any, part: Any) -> bool:
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(_elsewhere(plain, self, part)))
        thread.start()
        thread.join()
        if not done:
            raise OperationalError("the part was not counted")
        return done[0]

    latch.count_down = count_down


def _elsewhere(act: Callable[..., bool], *arguments: Any) -> bool:
    try:
        return act(*arguments)
    finally:
        connections.close_all()


def _without(statement: str, part: str) -> str:
    assert part in statement
    return statement.replace(part, "")
