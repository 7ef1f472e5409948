"""Models whose rows refuse a stale holder's writes.

If the lock table is in the same database, each write carries the guard: the transaction of the
write locks the lease's row and checks the token. The guard keeps stale writes out; the column
``fence_token`` is a second protection. Comparing the column alone would *not* be enough: an old
holder could write after the new holder has read the row and before the new holder writes it.

If the rows are in another database, there is no guard. There the first access under a lock
*claims* the rows: it stamps the rows with the lease's token, and from then on the column refuses
every older holder. So rows must be read with ``QuerySet.fenced(lock)`` before they are saved.

Django sends more than one statement for many of its reads and writes (related rows, several tables,
joins), and compares the token in the first of them only. So a claim, and a write without a guard,
begin with a statement that locks the rows whose tokens count until the transaction ends.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeVar

from django.db import NotSupportedError, models, router, transaction
from django.db.models.query import ModelIterable

from django_dblock import signals
from django_dblock.exceptions import LockLost, StaleFence
from django_dblock.fencing.lease import Lease

# The transaction of a fenced write, and the error of a refused write.


def is_beside(lock: Lease, using: str) -> bool:
    """Return whether the rows are in the lock table's database: one transaction spans both."""
    return lock.using == using


@contextmanager
def fenced_write(
    lock: Lease, using: str, model: type[models.Model], pk: Any = None
) -> Iterator[None]:
    """Run the block's write in a transaction, with the lease's guard if the database is the same.

    In an open transaction the block runs under a savepoint, so that the transaction stays usable
    after a refusal. A refusal sends the signal ``stale_write_refused``.

    Raises:
        TypeError: the lease is one of several that are held at once, whose tokens can't be
            compared.
        StaleFence: the lease is lost, or the block raised StaleFence. Nothing was written.
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


def _fenced_table(model: type[models.Model]) -> Any:
    """Return the model whose table has the tokens: the model itself, or a parent."""
    return model._meta.get_field("fence_token").model  # noqa: SLF001


def _parents(model: type[models.Model]) -> Iterator[tuple[str, Any]]:
    """Return the parents that have tables of their own, each with the name of the link to it.

    The order is that in which a save writes the tables. Locks are taken in the same order, so that
    a claim and a save of one row don't deadlock.
    """
    concrete: Any = model._meta.concrete_model  # noqa: SLF001
    for parent, link in concrete._meta.parents.items():  # noqa: SLF001
        for name, above in _parents(parent):
            yield f"{link.name}__{name}", above
        yield link.name, parent


class FencedQuerySet(models.QuerySet[Any]):
    """A QuerySet with ``fenced(lock)``; your own managers are made with ``as_manager()``."""

    _lease: Lease | None = None

    def fenced(self, lock: Lease) -> Self:
        """Tie the rows to the lease: a stale lease can't ``update()`` or ``delete()`` the rows.

        If the rows are in another database than the lock table, reading the rows claims them: one
        transaction locks the rows, stamps them with the lease's token, and reads them.

        Raises:
            StaleFence: when the QuerySet is used: the lease is not held any more, or a newer holder
                has written or claimed some of the rows. Nothing was written or claimed.
            TypeError: when the QuerySet is used: the lease is one of several that are held at once.
            NotSupportedError: when rows that must be claimed are read with ``values()``,
                ``iterator()``, ``aiterator()`` or ``raw()``, or when the QuerySet creates rows.
        """
        rows = self.all()
        rows._lease = lock  # noqa: SLF001 - the same class
        return rows

    def update(self, **values: Any) -> int:
        """Write the rows and stamp them with the token; return the number of rows.

        Raises:
            StaleFence: the lease is not held any more, or a newer holder has written or claimed
                some of the rows. Nothing was written.
        """
        if self._lease is None:
            return super().update(**values)
        token = self._lease.token
        return self._write(lambda rows: int(rows.update(**values, fence_token=token)))

    update.alters_data = True  # type: ignore[attr-defined] # Django's mark, for templates

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the rows; return what Django's ``delete()`` returns.

        Raises:
            StaleFence: the lease is not held any more, or a newer holder has written or claimed
                some of the rows. Nothing was deleted.
        """
        if self._lease is None:
            return super().delete()
        deleted: tuple[int, dict[str, int]] = self._write(lambda rows: rows.delete())
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    def create(self, **values: Any) -> Any:
        """Create a row as Django does; refuse a fenced QuerySet.

        Raises:
            NotSupportedError: the QuerySet is fenced, and a new row has no token to compare.
        """
        self._refuse("create")
        return super().create(**values)

    def bulk_create(self, objs: Any, *args: Any, **options: Any) -> Any:
        """Create rows as Django does; refuse a fenced QuerySet.

        Raises:
            NotSupportedError: the QuerySet is fenced.
        """
        self._refuse("bulk_create")
        return super().bulk_create(objs, *args, **options)

    def get_or_create(self, *args: Any, **values: Any) -> Any:
        """Get or create a row as Django does; refuse a fenced QuerySet.

        Raises:
            NotSupportedError: the QuerySet is fenced.
        """
        self._refuse("get_or_create")
        return super().get_or_create(*args, **values)

    def update_or_create(self, *args: Any, **values: Any) -> Any:
        """Update or create a row as Django does; refuse a fenced QuerySet.

        Raises:
            NotSupportedError: the QuerySet is fenced.
        """
        self._refuse("update_or_create")
        return super().update_or_create(*args, **values)

    def _refuse(self, method: str) -> None:
        if self._lease is not None:
            raise NotSupportedError(
                f"fenced(lock).{method}() would not be fenced: call it on the manager itself, "
                f"inside 'with lock.guard():', or use save_fenced(lock)."
            )

    def iterator(self, chunk_size: int | None = None) -> Any:
        """Read the rows in chunks as Django does; refuse rows that must be claimed.

        Raises:
            NotSupportedError: the rows are in another database than the lock table; one statement
                must claim all of them before they are read.
        """
        self._refuse_unclaimed("iterator")
        return super().iterator(chunk_size)

    def aiterator(self, chunk_size: int = 2000) -> AsyncIterator[Any]:
        """Read the rows in chunks as Django does; refuse rows that must be claimed.

        Raises:
            NotSupportedError: the rows are in another database than the lock table; one statement
                must claim all of them before they are read.
        """
        self._refuse_unclaimed("aiterator")
        return super().aiterator(chunk_size)

    def raw(self, raw_query: Any, *args: Any, **options: Any) -> Any:
        """Read rows by your own SQL as Django does; refuse rows that must be claimed.

        Raises:
            NotSupportedError: the rows are in another database than the lock table, and SQL of your
                own can't be changed into a claim.
        """
        self._refuse_unclaimed("raw")
        return super().raw(raw_query, *args, **options)

    def _refuse_unclaimed(self, method: str) -> None:
        if self._claims():
            raise NotSupportedError(
                f"{method}() can't claim rows: iterate over the QuerySet itself"
            )

    def _claims(self) -> bool:
        return self._lease is not None and not is_beside(self._lease, self.db)

    def _write(self, write: Callable[[Any], T]) -> T:
        lock = self._lease
        assert lock is not None  # noqa: S101 - checked by the callers
        rows: Any = self.all()
        rows._lease = None  # noqa: SLF001
        rows._for_write = True  # noqa: SLF001
        with fenced_write(lock, rows.db, self.model):
            if is_beside(lock, rows.db):
                done = write(rows.filter(fence_token__lte=lock.token))
                # The conditions still match the rows that a newer token kept from being written.
                if rows.filter(fence_token__gt=lock.token).exists():
                    raise refused(lock, self.model, _NEWER_ROWS)
            else:
                locked = self._lock(rows, lock)
                # The conditions stay: the lock may have waited for a write that changed the rows.
                done = write(rows.filter(**locked))
        return done

    def _lock(self, rows: Any, lock: Lease) -> dict[str, Any]:
        """Lock the rows until the transaction ends; return the filter for the locked rows.

        The conditions of ``rows`` are in a sub-select, so that they may join and aggregate. Tables
        below the one with the token need no lock, because a fenced save writes these later.

        Raises:
            StaleFence: a newer holder has written or claimed some of the rows.
        """

        def keys(table: Any) -> Any:
            among: Any = rows.values(table._meta.pk.name)  # noqa: SLF001
            among.query.select_for_update = False
            found: Any = models.QuerySet(table, using=rows.db).filter(pk__in=among)
            # The same order for all writers, and not the model's own.
            return found.select_for_update().order_by("pk")

        table = _fenced_table(self.model)
        for _, parent in _parents(table):
            list(keys(parent).values_list("pk"))
        tokens: dict[Any, int] = dict(keys(table).values_list("pk", "fence_token"))
        if any(token > lock.token for token in tokens.values()):
            raise refused(lock, self.model, _NEWER_ROWS)
        return {f"{table._meta.pk.name}__in": list(tokens)}  # noqa: SLF001

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
        # Django locks only tables that a column is read from, so the token is never deferred.
        names, deferred = rows.query.deferred_loading
        token = {"fence_token"}
        rows.query.deferred_loading = (names - token if deferred else names | token), deferred
        rows = rows.select_for_update(of=(*(name for name, _ in _parents(self.model)), "self"))
        with fenced_write(lock, rows.db, self.model):
            locked = list(rows)
            table = _fenced_table(self.model)
            key = table._meta.pk.attname  # noqa: SLF001
            keys = list({getattr(row, key) for row in locked})
            # Django's own QuerySet, not a VersionedModel's: a claim must not change the version.
            mine: Any = models.QuerySet(table, using=rows.db).filter(
                pk__in=keys, fence_token__lte=lock.token
            )
            if mine.update(fence_token=lock.token) != len(keys):
                raise refused(lock, self.model, _NEWER_ROWS)
        for row in locked:
            row.fence_token = lock.token
        self._result_cache = locked

    def _clone(self) -> Any:
        clone: Any = super()._clone()  # type: ignore[misc] # the stubs don't know it
        clone._lease = self._lease  # noqa: SLF001
        return clone


_NEWER = "a newer holder has written it, or it was deleted"
_UNCLAIMED = "it was not read under this lock: read it with QuerySet.fenced(lock)"


class FencedModel(models.Model):
    """A model whose ``save_fenced(lock)`` and ``objects.fenced(lock)`` refuse stale holders.

    All locks that protect a row must have the *same* key, because tokens of different keys can't be
    compared. A plain ``save()`` is not refused, and does not change ``fence_token``. The column has
    a default in the database, too, so that code which does not know the column can insert rows.
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
        """Save the row, unless the lock is lost or a newer holder has written the row.

        Guaranteed if the lock table is in the same database: no other holder is granted the lock
        before this write is committed, also if the lease expires meanwhile. Guaranteed if the row
        is in another database: no holder with a newer token has read or written the row through
        ``fenced()`` or ``save_fenced()``.

        Inside ``lock.guard()`` or ``atomic()`` the write joins that transaction, which stays usable
        if the write is refused.

        Args:
            lock: the lease that ``with fenced_lock(…) as lock`` returned.
            using: the database alias of the row, as in ``save()``.
            update_fields: the fields to save, as in ``save()``.

        Raises:
            StaleFence: the lock is lost; or a newer holder has written the row; or the row was
                deleted; or a row in another database was not read through ``fenced(lock)``. Nothing
                was written. StaleFence is also a LockLost.
            TypeError: the lease is one of several that are held at once, whose tokens can't be
                compared.
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
        """Update as Django does, with the token in WHERE; without a lease keep ``fence_token``.

        Raises:
            StaleFence: a newer holder has written the row, or the row was deleted.
        """
        lock: Lease | None = self.__dict__.get("_fence")
        fences = [value for value in values if value[0].attname == "fence_token"]
        limit: dict[str, int] = {}
        rows = base_qs
        if lock is None or not fences:
            values = [value for value in values if value not in fences]
        else:
            limit = {"fence_token__lte" if is_beside(lock, using) else "fence_token": lock.token}
            rows = base_qs.filter(**limit)
        done = super()._do_update(
            rows, using, pk_val, values, update_fields, forced_update, *args, **more
        )
        if done or lock is None:
            return done
        row: Any = models.QuerySet(base_qs.model, using=using).filter(pk=pk_val)
        if self._state.adding and not row.exists():
            return done  # Django inserts the row of a parent
        if hasattr(self, "_version_field") and row.filter(**limit).exists():
            return done  # a conflict of versions, for which the VersionedModel raises
        # A parent's table has no token if the fence is in a child's table. Django would insert a
        # row that is missing there, and then insert the child's row, too.
        raise refused(lock, type(self), _NEWER, pk=self.pk)
