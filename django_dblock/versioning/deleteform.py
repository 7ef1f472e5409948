"""The form of a page that asks whether a row is to be deleted."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS
from django.utils.translation import gettext_lazy as _

from django_dblock.versioning import token
from django_dblock.versioning.attempt import carried_version
from django_dblock.versioning.expect import expect
from django_dblock.versioning.forms import TOKEN, VersionTokenField, row_of
from django_dblock.versioning.model import VersionedModel

CHANGED = _(
    "Somebody else has changed this since you opened it. Nothing was deleted. Look at it again "
    "before you delete it."
)


class VersionedDeleteForm(forms.Form):
    """One hidden field, with the version that the page showed; without it the form is invalid."""

    version_token = VersionTokenField(required=False)

    def __init__(self, *args: Any, instance: VersionedModel, **options: Any) -> None:
        super().__init__(*args, **options)
        self.instance = instance
        self._row = row_of(instance)
        version = carried_version(instance, instance._state.db or DEFAULT_DB_ALIAS)
        self.fields[TOKEN].initial = token.dump(*self._row, version, {})

    def clean(self) -> dict[str, Any]:
        """Bind the instance to the version that was seen."""
        try:
            seen = token.load(*self._row, self.data.get(self.add_prefix(TOKEN)))
        except ValidationError:
            self.show_now()
            raise
        expect(self.instance, seen.version)
        return self.cleaned_data

    def show_now(self) -> None:
        """Carry the version that the row has now: the page that comes back shows that one."""
        self.data = {**self.data, self.add_prefix(TOKEN): self.fields[TOKEN].initial}
