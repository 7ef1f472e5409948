"""Forms and formsets of the admin, which carry versions and show conflicts.

The admin's templates render the fields of the fieldsets, the errors of a form, and a few hidden
fields of a formset. So a version is rendered beside one of these fields, and a conflict as an
error. No template of Django or of a project has to be replaced.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.db.models import QuerySet
from django.forms.formsets import DELETION_FIELD_NAME
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_dblock.exceptions import StaleObject, StaleObjects
from django_dblock.signals import stale_object
from django_dblock.versioning.loaded_state import original
from django_dblock.versioning.model import VersionedModel
from django_dblock.versioning.web import signed_version
from django_dblock.versioning.web.forms import TOKEN, VersionedFormMixin, row_of

if TYPE_CHECKING:

    class _ModelForm(forms.ModelForm[VersionedModel]): ...

else:
    _ModelForm = forms.ModelForm

PANEL = "django_dblock/conflict_fields.html"


@dataclass
class Page:
    """One request to a page of the admin with versioned forms.

    Attributes:
        failed: the conflict that a save of this request ended with; then the view runs again to
            show the conflict.
        conflicts: the forms of the present run that have a conflict to show.
    """

    failed: StaleObject | None = None
    conflicts: list["AdminFormMixin"] = field(default_factory=list)

    @classmethod
    def of(cls, request: HttpRequest) -> "Page":
        """Return the page of a request: the same object for each call."""
        page: Page | None = getattr(request, "_dblock_page", None)
        if page is None:
            request._dblock_page = page = cls()  # type: ignore[attr-defined]
        return page


class AdminFormMixin(VersionedFormMixin):
    """A form that is posted once to be saved and, if that fails, once more to be shown.

    The failure is in ``page``, on the class that the admin makes for each request. In the second
    run, a form whose row has another version is invalid and shows the conflict. In the first run,
    only the form's UPDATE finds the conflict.
    """

    page: ClassVar[Page] = Page()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The row's version, before the instance is bound to the version that the user saw.
        self._now = self.instance.__dict__.get(self.instance._version_field.attname)
        self._read = original(self.instance)

    def full_clean(self) -> None:
        """Clean as Django does, and add the conflict if this form has one to show."""
        super().full_clean()
        if not self.is_bound or not self._seen or self._refused:
            return
        self.instance.__dict__["_version_in_form"] = True
        failed = self.page.failed
        if failed is not None and self._is_stale(failed):
            self.add_conflict(
                StaleObject(
                    instance=self.instance,
                    expected=self._seen.version,
                    actual=self._now,
                    using=failed.using,
                )
            )
            self.page.conflicts.append(self)

    def _row_now(self) -> tuple[Mapping[str, Any], int] | None:
        """Return the values that this request has read, so that a list reads no row again."""
        needed = {each.attname for each in self._guarded.values() if not each.many_to_many}
        if self._now is None or not needed <= self._read.keys():
            return None
        return self._read, self._now

    def _is_stale(self, failed: StaleObject) -> bool:
        if self._row == row_of(failed.instance):
            return True
        to_write = self.has_changed() or self.cleaned_data.get(DELETION_FIELD_NAME)
        return bool(to_write) and self._seen is not None and self._seen.version != self._now

    def conflict_error(self) -> str:
        """Return the whole table: the admin shows errors wherever it shows forms."""
        return render_to_string(PANEL, {"form": self})


class AdminForm(AdminFormMixin, _ModelForm):
    """The form of an admin that sets no form."""


def versioned_form(form: Any, page: Page) -> Any:
    """Return a form class of one request that compares versions, if its model has a version."""
    if not issubclass(form._meta.model, VersionedModel):
        return form
    if not issubclass(form, AdminFormMixin):
        form = type(form)(form.__name__, (AdminFormMixin, form), {})
    form.page = page
    return form


def versioned_formset(formset: Any, page: Page) -> Any:
    """Return a formset class of one request whose forms compare and render their tokens."""
    form = versioned_form(formset.form, page)
    if not issubclass(form, AdminFormMixin):
        return formset
    return type(formset)(formset.__name__, (CarryingFormSet, formset), {"form": form})


class CarryingFormSet:
    """A formset that renders each form's token beside a hidden field that the admin renders."""

    def add_fields(self, form: Any, index: int | None) -> None:
        """Add Django's fields, and render the token beside one of them."""
        super().add_fields(form, index)  # type: ignore[misc]
        if TOKEN not in form.fields:
            return
        parent = getattr(self, "fk", None)
        name = self._pk_field.name if parent is None else parent.name  # type: ignore[attr-defined]
        render_token_beside(form, name)


def render_token_beside(form: Any, name: str) -> None:
    """Render the form's hidden token after the input of a field, in any template."""
    widget = form.fields[name].widget
    render = widget.render
    widget.render = lambda *args, **options: format_html(
        "{}{}", render(*args, **options), form[TOKEN]
    )


def versioned_inline(inline: Any) -> Any:
    """Return an inline, an instance or a class, whose formsets compare; so do its own inlines'.

    django-nested-admin and unfold have inlines of inlines. They make the inner inlines themselves,
    from the classes that the outer inline names.
    """
    outer: Any = inline if isinstance(inline, type) else type(inline)
    if issubclass(outer, _VersionedInline):
        return inline
    names = {"__module__": outer.__module__, "__doc__": outer.__doc__, "media": outer.media}
    if inner := getattr(inline, "inlines", None):
        names["inlines"] = [versioned_inline(each) for each in inner]
    meta: Any = type(outer)
    made = meta(outer.__name__, (_VersionedInline, outer), names)
    if isinstance(inline, type):
        return made
    inline.__class__ = made
    vars(inline).pop("inlines", None)
    return inline


class _VersionedInline:
    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        formset = super().get_formset(request, obj, **kwargs)  # type: ignore[misc]
        return versioned_formset(formset, Page.of(request))


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
        ValidationError: the versions were not sent, or were changed.
        StaleObjects: some rows have another version, or were not on the page.
    """
    model = queryset.model
    seen = signed_version.load_many(model._meta.label, sent)
    field = model._version_field
    rows = model._base_manager.using(queryset.db).filter(pk__in=queryset.values("pk"))
    found = rows.order_by("pk").select_for_update().values_list("pk", field.attname)
    stale = [pk for pk, version in found if seen.get(str(pk)) != version]
    if stale:
        error = StaleObjects(model=model._meta.label, pks=stale, using=queryset.db)
        stale_object.send_robust(model, error=error)
        raise error
