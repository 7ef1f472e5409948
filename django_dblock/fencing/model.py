"""Models whose rows refuse a stale holder's writes.

Where the lock table is in the same database, a write carries the guard: the lease's row is locked
with our token in the transaction of the write. That is what keeps stale writes out. The column is
the second line there; comparing it at the write would *not* be enough alone, because an old
holder's write slips in after the new holder has read and before it writes.

Where the rows are in another database there is no guard. There the first access under a lock
*claims* the rows (:mod:`django_dblock.fencing.queryset`), and from then on the column refuses every
older holder. So what is to be saved must have been read with ``QuerySet.fenced(lock)``.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from django.db import models, router

from django_dblock.fencing.lease import Lease
from django_dblock.fencing.queryset import FencedQuerySet
from django_dblock.fencing.write import fenced_write, is_beside, refused

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
            update_fields: likewise.

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
