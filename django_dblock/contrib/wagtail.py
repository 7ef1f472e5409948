"""Wagtail: revisions of models with a version.

Imports nothing of Wagtail. Any package whose models have ``serializable_data()`` and
``with_content_json()`` in the same sense can use it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_dblock.versioning.model import VersionedModel as _Model
else:
    _Model = object

_CARRIED = (
    "_version_origin",
    "_version_alone",
    "_version_epoch",
    "_version_written",
)


class VersionedRevisionMixin(_Model):
    """A page or snippet with a version, whose revisions can be published.

    Put it first: ``class Article(VersionedRevisionMixin, VersionedModel, Page)``.

    A revision holds no version: its content is older than the row, and is to replace it. The
    object that Wagtail makes of a revision carries the version of the row that Wagtail has read to
    make it, so its ``save()`` is compared with that.

    Guarantees: publishing, reverting and scheduled publishing write the row only if no other writer
    has written it since it was read for that.

    Does not guarantee: anything about two editors of one draft. Each of them saves a revision, and
    the one that is published last wins; Wagtail's edit page says who else is editing.
    """

    def serializable_data(self) -> Any:
        """Return Wagtail's data for a revision, without the version."""
        data = super().serializable_data()  # type: ignore[misc]
        data.pop(self._version_field.name, None)
        return data

    def with_content_json(self, content: Any) -> Any:
        """Return the object of a revision, which carries the version of this one."""
        name = self._version_field.name  # in revisions from before this class was used
        kept = {field: value for field, value in content.items() if field != name}
        made = super().with_content_json(kept)  # type: ignore[misc]
        attribute = self._version_field.attname
        made.__dict__.pop(attribute, None)
        for each in (attribute, *_CARRIED):
            if each in self.__dict__:
                made.__dict__[each] = self.__dict__[each]
        made._state.adding, made._state.db = self._state.adding, self._state.db  # noqa: SLF001
        return made
