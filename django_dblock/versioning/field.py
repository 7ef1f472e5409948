"""The column that counts a row's writes."""

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models.query_utils import DeferredAttribute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.db.models import Model

MAX_VERSION = 2**63 - 2
"""The highest version that still has a successor in a ``bigint``."""

if TYPE_CHECKING:
    _Base = models.BigIntegerField[int, int]
else:
    _Base = models.BigIntegerField


class _VersionAttribute(DeferredAttribute):
    """The attribute of a version. A version that is read later than its row is never compared.

    A deferred version that is read for one instance goes through ``refresh_from_db()``.
    """

    def fetch_many(self, instances: "Iterable[Model]") -> None:
        """Read the version of all peers, as Django 6.1 does with ``FETCH_PEERS``."""
        name = self.field.attname
        peers = list(instances)
        deferred = [each for each in peers if name not in each.__dict__]
        super().fetch_many(peers)
        for instance in deferred:
            if name in instance.__dict__ and hasattr(instance, "_version_was_read"):
                instance._version_was_read([self.field])


class VersionField(_Base):
    """A ``bigint`` that starts at 1 and grows with every write.

    The column has a default in the database, too: adding the field to a big table rewrites nothing
    (PostgreSQL manual, ALTER TABLE, Notes), and code that doesn't know the column yet can insert.
    It has no CHECK constraint, because adding one would scan the table under an exclusive lock.

    ``default``, ``db_default``, ``editable`` and ``null`` are fixed; other options of a field may
    be given. A model has one such field, and is a :class:`~django_dblock.VersionedModel`.
    """

    description = "Version (grows with every write)"
    descriptor_class = _VersionAttribute
    fixed = {"default": 1, "db_default": 1, "editable": False, "null": False}  # noqa: RUF012

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, **self.fixed})

    def deconstruct(self) -> Any:
        """Write the public name into migrations, and leave out what is fixed anyway."""
        name, _path, args, options = super().deconstruct()
        for fixed in self.fixed:
            options.pop(fixed, None)
        return name, "django_dblock.VersionField", args, options

    def pre_save(self, model_instance: "Model", add: bool) -> Any:  # noqa: FBT001
        """Return the instance's version; of a new row without one, the first."""
        # Not by getattr(), which would read a deferred version from the database. What is returned
        # for an UPDATE is replaced by the version that the save has to write.
        value = model_instance.__dict__.get(self.attname)
        if value is None and add:
            value = self.get_default()
            setattr(model_instance, self.attname, value)
        return value

    def contribute_to_class(self, cls: type["Model"], name: str, *args: Any, **more: Any) -> None:
        """Let the model, its children and its proxies find the field without a search."""
        super().contribute_to_class(cls, name, *args, **more)
        cls._version_field = self  # type: ignore[attr-defined]
