"""QuerySets tied to a lease: fenced ``update()`` and ``delete()``, and rows claimed by reading."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

from django.db import NotSupportedError, models
from django.db.models.query import ModelIterable

from django_dblock.fencing.lease import Lease
from django_dblock.fencing.write import fenced_write, is_beside, refused

T = TypeVar("T")

_NEWER_ROWS = "because a newer holder has written or claimed some of the rows"


class FencedQuerySet(models.QuerySet[Any]):
    """A QuerySet with ``fenced(lock)``; for managers of one's own, as ``as_manager()`` has it."""

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
