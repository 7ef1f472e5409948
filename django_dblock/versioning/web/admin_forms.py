"""Forms and formsets of the admin: versions travel in them, and conflicts are shown by them.

The admin's templates render the fields of the fieldsets, the errors of a form, and a few hidden
fields of a formset. So a version is rendered beside one of those, and a conflict as an error, and
no template of Django's, or of a project, has to be replaced.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.db.models import QuerySet
from django.forms.formsets import DELETION_FIELD_NAME
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_dblock.exceptions import StaleObject, StaleObjects
from django_dblock.signals import stale_object
from django_dblock.versioning.model import VersionedModel
from django_dblock.versioning.web import signed_version
from django_dblock.versioning.web.forms import TOKEN, VersionedFormMixin, row_of

if TYPE_CHECKING:

    class _ModelForm(forms.ModelForm[VersionedModel]): ...

else:
    _ModelForm = forms.ModelForm

PANEL = "django_dblock/conflict_fields.html"


class AdminFormMixin(VersionedFormMixin):
    """A form that is posted once to be saved and, if that fails, once more to be shown.

    What failed stands in ``failed``, on the class that the admin makes for each request. Then a
    form whose row has another version is invalid, and says why; before, only its UPDATE knows.
    """

    failed: ClassVar[StaleObject | None] = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What the row has, before the instance is bound to what the user saw.
        self._now = self.instance.__dict__.get(self.instance._version_field.attname)

    def full_clean(self) -> None:
        """As Django's; and with a conflict, if this form has one to show."""
        super().full_clean()
        if not self.is_bound or not self._seen:
            return
        self.instance.__dict__["_version_in_form"] = True
        if self.failed is not None and self._is_stale(self.failed):
            self.add_conflict(
                StaleObject(
                    instance=self.instance,
                    expected=self._seen.version,
                    actual=self._now,
                    using=self.failed.using,
                )
            )

    def _is_stale(self, failed: StaleObject) -> bool:
        if self._row == row_of(failed.instance):
            return True
        to_write = self.has_changed() or self.cleaned_data.get(DELETION_FIELD_NAME)
        return bool(to_write) and self._seen is not None and self._seen.version != self._now

    def conflict_error(self) -> str:
        """Return the whole table: the admin shows errors wherever it shows forms."""
        return render_to_string(PANEL, {"form": self})


class AdminForm(AdminFormMixin, _ModelForm):
    """The form of an admin that names none."""


def versioned_form(form: Any, failed: StaleObject | None) -> Any:
    """Return a form class of one request, so that it compares; unless its model has no version."""
    if not issubclass(form._meta.model, VersionedModel):
        return form
    if not issubclass(form, AdminFormMixin):
        form = type(form)(form.__name__, (AdminFormMixin, form), {})
    form.failed = failed
    return form


def versioned_formset(formset: Any, failed: StaleObject | None) -> Any:
    """Return a formset class of one request, so that its forms compare and render their tokens."""
    form = versioned_form(formset.form, failed)
    if not issubclass(form, AdminFormMixin):
        return formset
    return type(formset)(formset.__name__, (CarryingFormSet, formset), {"form": form})


class CarryingFormSet:
    """Renders each form's token beside a hidden field that the admin's templates render anyway."""

    def add_fields(self, form: Any, index: int | None) -> None:
        """As Django's, and let the token come along."""
        super().add_fields(form, index)  # type: ignore[misc]
        if TOKEN not in form.fields:
            return
        parent = getattr(self, "fk", None)
        name = self._pk_field.name if parent is None else parent.name  # type: ignore[attr-defined]
        widget = form.fields[name].widget
        render = widget.render
        widget.render = lambda *args, **options: format_html(
            "{}{}", render(*args, **options), form[TOKEN]
        )


# The versions of many rows that a page has shown together.


VERSIONS = "version_tokens"


def hidden_versions(model: type[VersionedModel], shown: Iterable[VersionedModel]) -> SafeString:
    """Return a hidden input with the versions of these objects."""
    name = model._version_field.attname
    versions = {each.pk: getattr(each, name) for each in shown}
    signed = signed_version.dump_many(model._meta.label, versions)
    return format_html('<input type="hidden" name="{}" value="{}">', VERSIONS, signed)


def lock_seen(queryset: QuerySet[Any], sent: object) -> None:
    """Lock the rows of a queryset, in a transaction, if they have the versions that were sent.

    One statement.

    Raises:
        ValidationError: nothing readable was sent.
        StaleObjects: some have another version, or were not on the page.
    """
    model = queryset.model
    seen = signed_version.load_many(model._meta.label, sent)
    field = model._version_field
    rows = field.model._base_manager.using(queryset.db).filter(pk__in=queryset.values("pk"))
    found = rows.order_by("pk").select_for_update().values_list("pk", field.attname)
    stale = [pk for pk, version in found if seen.get(str(pk)) != version]
    if stale:
        error = StaleObjects(model=model._meta.label, pks=stale, using=queryset.db)
        stale_object.send_robust(model, error=error)
        raise error
