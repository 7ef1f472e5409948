"""A save in several tables: a conflict in one takes back what was written in another."""

from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    from django_dblock.versioning.guarded import GuardedSave


class Tables:
    """What there was before: a savepoint of the row, and what the instance carried.

    Outside a transaction Django opens one for the save, so there no savepoint is needed.
    """

    def __init__(
        self, instance: "GuardedSave", connection: BaseDatabaseWrapper, *, usable: bool
    ) -> None:
        self.state = instance.__dict__
        names = (instance._version_field.attname, "_version_fate", "_version_alone")
        self.before = {name: self.state.get(name) for name in (*names, "_version_origin")}
        self.connection = connection
        self.savepoint = connection.savepoint() if usable else None

    def saved(self) -> None:
        """Drop the savepoint."""
        if self.savepoint is not None:
            self.connection.savepoint_commit(self.savepoint)

    def failed(self, *, stale: bool) -> None:
        """Put back what was there, if the database has done so or can do so."""
        if stale and self.savepoint is not None:
            self.connection.savepoint_rollback(self.savepoint)
            self.connection.savepoint_commit(self.savepoint)
        fate: Any = self.state.get("_version_fate")
        new = fate is not None and fate is not self.before["_version_fate"]
        if stale or (new and fate[0].rolled_back(self.connection)):
            for name, value in self.before.items():
                if value is None:
                    self.state.pop(name, None)
                else:
                    self.state[name] = value
