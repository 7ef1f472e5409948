"""Models whose rows refuse a stale holder's writes.

Where the lock table is in the same database, a write carries the guard: the lease's row is locked
with our token in the transaction of the write. That is what keeps stale writes out. The column is
the second line there; comparing it at the write would *not* be enough alone, because an old
holder's write slips in after the new holder has read and before it writes.

Where the rows are in another database there is no guard. There the first access under a lock
*claims* the rows (:mod:`django_dblock.fencing.model`), and from then on the column refuses every
older holder. So what is to be saved must have been read with ``QuerySet.fenced(lock)``.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeVar

from django.db import NotSupportedError, models, router, transaction
from django.db.models.query import ModelIterable

from django_dblock import signals
from django_dblock.exceptions import LockLost, StaleFence
from django_dblock.fencing.lease import Lease

# The transaction of a fenced write, and what a refusal is.


def is_beside(lock: Lease, using: str) -> bool:
    """Whether the rows are where the lock table is, so that one transaction spans both."""
    return lock.using == using


@contextmanager
def fenced_write(
    lock: Lease, using: str, model: type[models.Model], pk: Any = None
) -> Iterator[None]:
    """Run the write in a transaction, guarded where that can be; tell of a refusal.

    In an open transaction it is a savepoint, so that a refusal leaves that one usable.

    Raises:
        TypeError: the lease is one of several that are held at once, so tokens don't compare.
    """
    if not lock.fences_rows:
        raise TypeError(
            f"save_fenced() and fenced() compare tokens, and {type(lock).__name__} {lock.name} is "
            f"one of several that may be held at once, each with tokens of its own. Write inside "
            f"'with lease.guard():' instead."
        )
    try:
        lock.check()
        with transaction.atomic(using=using):
            if is_beside(lock, using):
                with lock.guard():
                    yield
            else:
                yield
    except LockLost as error:
        refusal = (
            error
            if isinstance(error, StaleFence)
            else refused(lock, model, f"because the lock is lost: {error.reason}", pk)
        )
        if signals.stale_write_refused.receivers:
            signals.stale_write_refused.send_robust(
                model,
                kind="fenced",
                keys=refusal.keys,
                name=refusal.name,
                using=refusal.using,
                token=refusal.token,
                model=refusal.model,
                pk=refusal.pk,
                reason=refusal.reason,
            )
        if refusal is error:
            raise
        raise refusal from error


def refused(lock: Lease, model: type[models.Model], reason: str, pk: Any = None) -> StaleFence:
    """Return the error for a write that was refused."""
    return StaleFence(
        keys=(lock.key,),
        name=lock.name,
        using=lock.using,
        token=lock.token,
        reason=reason,
        model=model._meta.label_lower,  # noqa: SLF001 - Django's documented API
        pk=pk,
    )


# QuerySets tied to a lease: fenced ``update()`` and ``delete()``, and rows claimed by reading.


T = TypeVar("T")

_NEWER_ROWS = "because a newer holder has written or claimed some of the rows"


class FencedQuerySet(models.QuerySet[Any]):
    """A QuerySet with ``fenced(lock)``; for your own managers, as ``as_manager()`` makes them."""

    _lease: Lease | None = None

    def fenced(self, lock: Lease) -> Self:
        """Tie the rows to the lease: ``update()`` and ``delete()`` are refused once it is stale.

        Where the rows are in another database than the lock table, reading them claims them: in
        one transaction they are locked, stamped with the lease's token, and read.

        Raises:
            StaleFence: when used, and nothing was written or claimed: the lease is not held any
                more, or a newer holder has been there.
        """
        found = self.all()
        found._lease = lock  # noqa: SLF001 - its own
        return found

    def update(self, **values: Any) -> int:
        """Write the rows and stamp them with the token; return how many.

        Raises:
            StaleFence: nothing was written.
        """
        if self._lease is None:
            return super().update(**values)
        token = self._lease.token
        return self._write(lambda rows: int(rows.update(**values, fence_token=token)))

    update.alters_data = True  # type: ignore[attr-defined] # Django's mark, for templates

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the rows; return what Django's ``delete()`` does.

        Raises:
            StaleFence: nothing was deleted.
        """
        if self._lease is None:
            return super().delete()
        deleted: tuple[int, dict[str, int]] = self._write(lambda rows: rows.delete())
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    def create(self, **values: Any) -> Any:
        """As Django's; refused where the rows are fenced, as a new row has none to look at."""
        self._refuse("create")
        return super().create(**values)

    def bulk_create(self, objs: Any, *args: Any, **options: Any) -> Any:
        """As Django's; refused where the rows are fenced."""
        self._refuse("bulk_create")
        return super().bulk_create(objs, *args, **options)

    def get_or_create(self, *args: Any, **values: Any) -> Any:
        """As Django's; refused where the rows are fenced."""
        self._refuse("get_or_create")
        return super().get_or_create(*args, **values)

    def update_or_create(self, *args: Any, **values: Any) -> Any:
        """As Django's; refused where the rows are fenced."""
        self._refuse("update_or_create")
        return super().update_or_create(*args, **values)

    def _refuse(self, method: str) -> None:
        if self._lease is not None:
            raise NotSupportedError(
                f"fenced(lock).{method}() would not be fenced: call it on the manager itself, "
                f"inside 'with lock.guard():', or use save_fenced(lock)."
            )

    def iterator(self, chunk_size: int | None = None) -> Any:
        """Read in chunks. Not where rows are claimed: a claim is for rows read together."""
        if self._claims():
            raise NotSupportedError("iterator() can't claim rows: iterate over the QuerySet itself")
        return super().iterator(chunk_size)

    def _claims(self) -> bool:
        return self._lease is not None and not is_beside(self._lease, self.db)

    def _write(self, write: Callable[[Any], T]) -> T:
        lock = self._lease
        assert lock is not None  # noqa: S101 - the callers have looked
        rows: Any = self.all()
        rows._lease = None  # noqa: SLF001
        rows._for_write = True  # noqa: SLF001
        with fenced_write(lock, rows.db, self.model):
            done = write(rows.filter(fence_token__lte=lock.token))
            # Those that were passed over are still what the conditions ask for.
            if rows.filter(fence_token__gt=lock.token).exists():
                raise refused(lock, self.model, _NEWER_ROWS)
        return done

    def _fetch_all(self) -> None:
        if self._result_cache is None and self._claims():
            self._claim()
        super()._fetch_all()

    def _claim(self) -> None:
        lock = self._lease
        assert lock is not None  # noqa: S101
        if not issubclass(self._iterable_class, ModelIterable):
            raise NotSupportedError("values() can't claim rows: read the objects themselves")
        rows: Any = self.all()
        rows._lease = None  # noqa: SLF001
        rows = rows.select_for_update(of=("self",))
        with fenced_write(lock, rows.db, self.model):
            found = list(rows)
            # Django's own, past a VersionedModel's: a claim changes nothing that a version counts.
            mine: Any = models.QuerySet(self.model, using=rows.db).filter(
                pk__in=[row.pk for row in found], fence_token__lte=lock.token
            )
            if mine.update(fence_token=lock.token) != len({row.pk for row in found}):
                raise refused(lock, self.model, _NEWER_ROWS)
        for row in found:
            row.fence_token = lock.token
        self._result_cache = found

    def _clone(self) -> Any:
        found: Any = super()._clone()  # type: ignore[misc] # the stubs don't know it
        found._lease = self._lease  # noqa: SLF001
        return found


_NEWER = "a newer holder has written it, or it is gone"
_UNCLAIMED = "it was not read under this lock: read it with QuerySet.fenced(lock)"


class FencedModel(models.Model):
    """A model with ``save_fenced(lock)`` and ``objects.fenced(lock)``: writes only a holder can do.

    Every row of it that a lock protects must be protected by the *same* key: tokens of different
    keys can't be compared. A plain ``save()`` is not refused, and leaves ``fence_token`` alone.
    The column's default stands in the database, too: code that doesn't know it yet can insert.
    """

    fence_token: "models.BigIntegerField[int, int]" = models.BigIntegerField(
        default=0, db_default=0, editable=False
    )

    objects: ClassVar[Any] = FencedQuerySet.as_manager()

    class Meta:  # noqa: D106 - Django's
        abstract = True

    def save_fenced(
        self, lock: Lease, *, using: str | None = None, update_fields: Iterable[str] | None = None
    ) -> None:
        """Save the row, unless the lock is lost or a newer holder has written it.

        Guaranteed where the lock table is in the same database: nobody else is granted the lock
        before this write is committed, also if the lease expires meanwhile. In another database:
        no holder with a newer token has read or written the row through ``fenced()`` or
        ``save_fenced()``.

        Inside ``lock.guard()`` or ``atomic()`` it joins that transaction, which stays usable if
        the write is refused.

        Args:
            lock: what ``with fenced_lock(…) as lock`` bound.
            using: the database alias of the row, as in ``save()``.
            update_fields: the fields to save, as in ``save()``.

        Raises:
            StaleFence: nothing was written. A LockLost, too.
        """
        alias = using or router.db_for_write(type(self), instance=self)
        adding = self._state.adding
        before = self.fence_token
        with fenced_write(lock, alias, type(self), pk=self.pk):
            if not (adding or is_beside(lock, alias) or before == lock.token):
                raise refused(lock, type(self), _UNCLAIMED, pk=self.pk)
            self.fence_token = lock.token
            self.__dict__["_fence"] = lock
            try:
                self.save(
                    using=alias,
                    force_insert=adding,
                    force_update=not adding,
                    update_fields=None
                    if update_fields is None
                    else {*update_fields, "fence_token"},
                )
            except BaseException:
                self.fence_token = before
                raise
            finally:
                del self.__dict__["_fence"]

    def _do_update(  # type: ignore[override]  # noqa: PLR0913, PLR0917 - Django's signature
        self,
        base_qs: Any,
        using: str,
        pk_val: Any,
        values: list[Any],
        update_fields: Any,
        forced_update: Any,
        *args: Any,
        **more: Any,
    ) -> Any:
        """Django's own, with the fence in its WHERE; without a fence the column is left alone."""
        lock: Lease | None = self.__dict__.get("_fence")
        fences = [value for value in values if value[0].attname == "fence_token"]
        if lock is None or not fences:
            others = [value for value in values if value not in fences]
            return super()._do_update(
                base_qs, using, pk_val, others, update_fields, forced_update, *args, **more
            )
        limit = {"fence_token__lte" if is_beside(lock, using) else "fence_token": lock.token}
        rows = base_qs.filter(**limit)
        done = super()._do_update(
            rows, using, pk_val, values, update_fields, forced_update, *args, **more
        )
        if done:
            return done
        fenced: Any = models.QuerySet(base_qs.model, using=using).filter(pk=pk_val, **limit)
        if hasattr(self, "_version_field") and fenced.exists():
            return done  # a conflict of versions, of which the VersionedModel tells
        raise refused(lock, type(self), _NEWER, pk=self.pk)
