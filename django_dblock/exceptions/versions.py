"""Errors of versions: a row was not written, because it has changed since it was read."""

from typing import Any

from django_dblock.exceptions.base import DblockError


class StaleObject(DblockError):
    """The row was written or deleted by another writer since it was read. Nothing was written.

    The surrounding transaction, if there was one, is usable, and the instance keeps its version.

    Attributes:
        instance: the object that was not written.
        model: the label of the object's model, ``shop.Product``.
        pk: the object's primary key.
        expected: the version that the row should have had; None if the row only had to exist.
        actual: the version that the row has; None if the row was deleted.
        using: the database alias.
        rolled_back: the version in memory was written in a transaction that was rolled back.
        read: the version that the instance was read with, if another version was set by hand since;
            else None.
        read_using: the alias that the instance was read from or last written to, if that is another
            alias than ``using``; else None.
        missing_in: with multi-table inheritance, the table that lacks a row of this object while
            its parent's table has one; else None.
    """

    def __init__(  # noqa: PLR0913 - its data
        self,
        *,
        instance: Any,
        expected: int | None,
        actual: int | None,
        using: str,
        rolled_back: bool = False,
        read: int | None = None,
        read_using: str | None = None,
        missing_in: str | None = None,
    ) -> None:
        model, pk = instance._meta.label, instance.pk  # noqa: SLF001 - Django's public Meta API
        row = f"{model} {pk!r} on database {using!r}"
        if rolled_back:
            now = "isn't there" if actual is None else f"has version {actual}"
            what = (
                f"{row} was not written: version {expected} in memory comes from a transaction "
                f"that was rolled back (or whose COMMIT got no response), and the row {now}."
            )
        elif missing_in is not None:
            what = (
                f"{row} was not written: it has a row in the table of its parent, but none in "
                f"{missing_in}, and an UPDATE adds none. To add one to a parent, call "
                f"parent.touch_version() and then child.save_base(raw=True) in one transaction."
            )
        elif actual is None:
            what = f"{row} was not written: it has been deleted."
        elif read is not None:
            what = (
                f"{row} was not written: it has version {actual} and was read with {read}, but the "
                f"instance's version was set to {expected} by hand. Setting it changes only what "
                f"save() compares with; only a write bumps the row's version. To "
                f"compare with a version seen elsewhere, use save_cas(expected=…)."
            )
        elif actual == expected:
            what = (
                f"{row} was not written, though it has version {actual}: a trigger or a row-level "
                f"security policy forbids it."
            )
        elif read_using is not None:
            what = (
                f"{row} was not written: it has version {actual}. Version {expected} in memory was "
                f"read from or written to database {read_using!r}, which has another row with "
                f"that key, or an older state of this row."
            )
        else:
            what = (
                f"{row} was not written: it has version {actual}, not {expected}, so it was "
                f"changed since it was read."
            )
        super().__init__(
            f"{what} Read the row again (refresh_from_db()) and decide, or run the whole "
            f"function again with @retry_on_conflict."
        )
        self.instance = instance
        self.model = model
        self.pk = pk
        self.expected = expected
        self.actual = actual
        self.using = using
        self.rolled_back = rolled_back
        self.read = read
        self.read_using = read_using
        self.missing_in = missing_in

    @property
    def deleted(self) -> bool:
        """Return whether the row was deleted."""
        return self.actual is None


class StaleObjects(DblockError):
    """Some of many rows were written by another writer since they were read. Nothing was written.

    Attributes:
        model: the label of the objects' model.
        pks: the primary keys of the stale objects.
        using: the database alias.
    """

    def __init__(self, *, model: str, pks: list[Any], using: str) -> None:
        shown = ", ".join(repr(pk) for pk in pks[:10]) + (", …" if len(pks) > 10 else "")  # noqa: PLR2004
        super().__init__(
            f"{len(pks)} of the {model} rows on database {using!r} were changed or deleted since "
            f"they were read: {shown}. Nothing was written. Read them again, or use "
            f'on_conflict="report" to write the others.'
        )
        self.model = model
        self.pks = pks
        self.using = using


class MissingVersion(DblockError, ValueError):
    """The instance has no version that its other values were read with. Nothing was sent.

    Attributes:
        model: the label of the instance's model.
        pk: the instance's primary key.
        adding: whether the instance was made in memory and never read.
    """

    def __init__(self, *, model: str, pk: Any, adding: bool) -> None:
        why = (
            "it was never read from the database. Use save() to insert it, or pass expected= "
            "with the version that was seen"
            if adding
            else "its version was deferred, read apart from its other values, or not returned by "
            "a save that did not compare; or its primary key was changed, and the version is that "
            "of another row. Read the whole object, version included, or pass expected= with the "
            "version that was seen"
        )
        super().__init__(f"{model} {pk!r} has no version to compare: {why}.")
        self.model = model
        self.pk = pk
        self.adding = adding


class RetryInTransaction(DblockError, RuntimeError):
    """A function with ``@retry_on_conflict`` was called inside a transaction. It was not run.

    Attributes:
        function: the function's qualified name.
        using: the database alias.
    """

    def __init__(self, *, function: str, using: str) -> None:
        super().__init__(
            f"{function} can't be retried inside an open transaction on database {using!r}: a "
            f"retry would use the data that this transaction has read. Put @retry_on_conflict "
            f"around the outermost transaction; for a view under ATOMIC_REQUESTS, add "
            f"@transaction.non_atomic_requests."
        )
        self.function = function
        self.using = using
