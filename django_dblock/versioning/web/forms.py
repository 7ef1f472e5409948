"""Forms that compare the row with the version that they showed."""

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, connections, router, transaction
from django.forms.formsets import DELETION_FIELD_NAME
from django.forms.models import BaseModelForm, InlineForeignKeyField
from django.utils.functional import lazy
from django.utils.translation import gettext_lazy as _

from django_dblock.exceptions import StaleObject
from django_dblock.versioning.model import VersionedModel, expect
from django_dblock.versioning.save import carried_version
from django_dblock.versioning.web import signed_version
from django_dblock.versioning.web.diff import ConflictDiff, form_diff, keys
from django_dblock.versioning.web.diff_display import Row, rows

if TYPE_CHECKING:
    from django_dblock.versioning.web.signed_version import Seen

    class _Base(forms.ModelForm[VersionedModel]):
        data: Any

    class _ModelForm(forms.ModelForm[VersionedModel]): ...

else:
    _Base, _ModelForm = object, forms.ModelForm

TOKEN = "version_token"  # noqa: S105 - the field's name
CHOICE = "version_choice_"
THEIRS = "theirs"

CHANGED = _(
    "Somebody else has changed this since you opened it. Nothing was saved. Compare below, then "
    "save again or leave it."
)
DELETED = _(
    "Somebody else has deleted this since you opened it. Nothing was saved. What you entered "
    "is shown below, for you to copy."
)
BEHIND = _(
    "What the server has just read is older than what this page shows, so nothing was saved. Send "
    "the page again in a moment. If that does not help, load it again and repeat your change."
)


class VersionTokenField(forms.CharField):
    """The hidden input of the token, which never counts as changed by the user."""

    widget = forms.HiddenInput

    def has_changed(self, initial: Any, data: Any) -> bool:  # noqa: ARG002 - Django's signature
        """Return False."""
        return False


class VersionedFormMixin(_Base):
    """Save a form only if nobody has written the row since the form was shown.

    Put the mixin before ``ModelForm`` among the bases. A form for an existing row has one more
    hidden field, ``version_token``: signed, bound to the model and the primary key, with the
    version and the values that the form showed. A page that renders its fields by hand must render
    the token, too; a form that is sent without the token, or with another row's token, is invalid.

    Guarantees: when a valid form is saved, the UPDATE itself names the version that the user saw,
    also with ``commit=False``, in formsets, and with ``cas_on_save = False``; a formset's DELETE
    does so too. If the row has another version, or was deleted, :class:`StaleObject` is raised and
    nothing is written, many-to-many relations included. Only the user's changes count: a row in a
    formset that the user did not change is not written, even if another writer changed the row. If
    the instance was read with an older version than the user saw, as from a replica that lags, the
    form is invalid (the code of the error is ``"version_behind"``): its UPDATE would also write the
    old values of the columns that are not in the form.

    Does not guarantee: anything about a row that is written without the form's instance. A file
    that was uploaded is stored before a conflict is found, as with every save that fails. A
    formset's ``save()`` writes form by form: put it into ``transaction.atomic()`` to write all or
    nothing.

    Attributes:
        conflict: the :class:`~django_dblock.ConflictDiff` after :meth:`add_conflict`; else None.
        conflict_was_shown: whether a page or your code has read the conflict.
    """

    conflict_was_shown = False
    _conflict: ConflictDiff | None = None
    _tokens: tuple[str, str] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        bases = cls.__mro__
        if BaseModelForm in bases and bases.index(BaseModelForm) < bases.index(VersionedFormMixin):
            raise TypeError(f"{cls.__name__}: VersionedFormMixin comes before ModelForm.")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        instance = self.instance
        if not isinstance(instance, VersionedModel):
            raise TypeError(
                f"{type(self).__name__} compares versions, but {type(instance).__name__} has "
                f"none: it is not a VersionedModel."
            )
        self._seen: Seen | None = None
        self._refused: ValidationError | None = None
        self._taken: list[str] = []
        self._row = row_of(instance)
        if instance._state.adding:
            return
        for name in self._guarded:
            self.fields[name].show_hidden_initial = False  # the token has the initial value
        self.fields[TOKEN] = field = VersionTokenField(required=False)
        if self.is_bound:
            self._open()
            return
        version = carried_version(instance, instance._state.db or DEFAULT_DB_ALIAS)
        shown = self._shown(options.get("initial") or {})
        # The version is read now, with the shown values. It is signed only when a page renders it.
        field.initial = lambda: signed_version.dump(*self._row, version, self._still_shown(shown))

    @property
    def _guarded(self) -> dict[str, Any]:
        """Return the model's fields that the form shows and saves, by name.

        Not once for all: a subclass may remove or disable fields after ``super().__init__()``.
        """
        options, meta = self._meta, self.instance._meta
        return {
            field.name: field
            for field in (*meta.concrete_fields, *meta.many_to_many)
            if field.name in self.fields
            and not field.primary_key
            and not hides(self.fields[field.name])
            and (options.fields is None or field.name in options.fields)
            and field.name not in (options.exclude or ())
        }

    def _shown(self, replaced: Container[str]) -> dict[str, Any]:
        """Return the row's values of the fields that the form shows."""
        columns = [field for field in self._guarded.values() if not field.many_to_many]
        found = signed_version.encoded(
            (field, field.value_from_object(self.instance)) for field in columns
        )
        for name, field in self._guarded.items():
            if field.many_to_many and name not in replaced:
                found[name] = keys(self.initial.get(name, ()))
        return found

    def _still_shown(self, shown: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values without those of fields that a subclass has removed since."""
        guarded = self._guarded
        return {name: value for name, value in shown.items() if name in guarded}

    def _open(self) -> None:
        """Read the token, and set the form's initial values to the values that the user saw.

        Raises:
            MissingVersion: the instance carries no version, so its values may be older than the
                version that the user saw.
        """
        posted = {
            name: self.data.get(self.add_prefix(name))
            for name in [TOKEN, *(CHOICE + name for name in self._guarded)]
        }
        try:
            self._seen = signed_version.load(*self._row, posted[TOKEN])
        except ValidationError as error:
            self._refused = error
            return
        instance = self.instance
        read = carried_version(instance, instance._state.db or DEFAULT_DB_ALIAS)
        behind = read < self._seen.version
        if behind:
            self._refused = ValidationError(BEHIND, code="version_behind")
        for name, field in self._guarded.items():
            if isinstance(self.fields[name], forms.FileField):
                continue  # a file that is not uploaded again is not changed
            if taken := posted[CHOICE + name] == THEIRS:
                self._taken.append(name)
                if not behind:
                    continue  # the instance has the value that the user chose
            if name in self._seen.original:
                value = self._seen.original[name]
                self.initial[name] = value if field.many_to_many else field.to_python(value)
            elif taken:
                self.initial[name] = self._value_now(field)
        self._disable_taken(disabled=True)

    def _value_now(self, field: Any) -> Any:
        """Read a value that is too long for the token from the database that is written."""
        using = router.db_for_write(type(self.instance), instance=self.instance)
        rows: Any = type(self.instance)._base_manager.using(using).filter(pk=self.instance.pk)
        return rows.values_list(field.attname, flat=True).first()

    def _disable_taken(self, *, disabled: bool) -> None:
        # For a disabled field Django takes the initial value, whatever was sent. That is the value
        # of the instance, which was not read with an older version than the user saw, and the
        # UPDATE compares the version. So it is the value that the user chose. If the instance is
        # older, the form is invalid, and shows the chosen value.
        for name in self._taken:
            self.fields[name].disabled = disabled

    def full_clean(self) -> None:
        """Clean as Django does, and bind the instance; a form without a token is invalid."""
        self._taken = [name for name in self._taken if name in self.fields]
        self._disable_taken(disabled=True)
        super().full_clean()
        if not self.is_bound:
            return
        # Django caches changed_data. A taken value is not the user's change, although JSON fields
        # report it as changed.
        changed = [name for name in self.changed_data if name not in self._taken]
        self.__dict__["changed_data"] = changed
        self._disable_taken(disabled=False)
        for name in self._taken:
            self._show(name, self.get_initial_for_field(self.fields[name], name))
        if self._refused:
            self.cleaned_data.pop(
                DELETION_FIELD_NAME, None
            )  # a formset deletes the rows of invalid forms, too
            self.add_error(None, self._refused)
        elif self._seen:
            expect(self.instance, self._seen.version)
        else:
            self._say_gone()

    def save(self, commit: bool = True) -> Any:  # noqa: FBT001, FBT002 - Django's signature
        """Save as Django does, in one transaction with the many-to-many relations.

        Raises:
            StaleObject: the row was written or deleted since the form was shown. Nothing was
                written.
        """
        relations = any(field.many_to_many for field in self._guarded.values())
        using = router.db_for_write(type(self.instance), instance=self.instance)
        if not (commit and relations) or connections[using].in_atomic_block:
            return super().save(commit)
        with transaction.atomic(using=using):
            return super().save(commit)

    save.alters_data = True  # type: ignore[attr-defined]

    def add_conflict(self, error: StaleObject) -> None:
        """Make the form show the conflict that its ``save()`` ended with.

        The inputs keep the values that the user entered. Fields that only another writer changed
        show the row's value. The token is that of the present row, so sending the form again
        overwrites the values that were just shown, and nothing newer. If you render the page
        yourself, show ``conflict_rows``; the responses of this package keep the old token in a page
        that has not shown the conflict (``keep_tokens_of_unseen``). ``conflict`` is the diff,
        ``conflict_rows`` the table to show, and the form has an error with the code ``"conflict"``.

        One statement for the row, and one for each relation among the fields.

        Args:
            error: the error that ``save()`` of this form raised.

        Raises:
            ValueError: the error belongs to another object than the form's.
        """
        if error.instance is not self.instance:
            raise ValueError(
                f"This form saves {self.instance!r}, but the conflict is of another object."
            )
        original = self._seen.original if self._seen else {}
        self._conflict = diff = form_diff(
            error, self._editable(), original, self.cleaned_data, self._row_now()
        )
        data = self.data.copy()
        old = data.pop(name := self.add_prefix(TOKEN), None)
        if not diff.deleted:
            theirs = {name: each.theirs for name, each in diff.fields.items()}
            shown = encoded(self._guarded, theirs)
            data[name] = new = signed_version.dump(*self._row, diff.version or 0, shown)
            self._tokens = (old[-1] if isinstance(old, list) else str(old), new)
            for name, each in diff.fields.items():
                if each.changed_by_them and not each.changed_by_me:
                    self._show(name, each.theirs)
        self.data = data
        self.cleaned_data.pop(DELETION_FIELD_NAME, None)
        # The text is made when a page renders it, which shows that the page has shown the conflict.
        text = lazy(self.conflict_error, str)()
        self.add_error(None, ValidationError(text, code="conflict"))

    def _row_now(self) -> tuple[Mapping[str, Any], int] | None:
        """Return the row's values and version if both are known already; None to read them."""
        return None

    @property
    def conflict(self) -> ConflictDiff | None:
        """Return the diff of the conflict after :meth:`add_conflict`; else None."""
        self.conflict_was_shown = self.conflict_was_shown or self._conflict is not None
        return self._conflict

    def conflict_message(self) -> str:
        """Return a message that describes the conflict to the user."""
        return str(DELETED if self._conflict and self._conflict.deleted else CHANGED)

    def conflict_error(self) -> str:
        """Return the error that the form has after a conflict."""
        return self.conflict_message()

    @property
    def conflict_rows(self) -> list[Row]:
        """Return the rows of the table that shows the conflict; empty without a conflict."""
        if (diff := self.conflict) is None:
            return []
        labels = {name: self.fields[name].label for name in diff.fields}
        choices = {name: self.add_prefix(CHOICE + name) for name in diff.fields}
        return rows(diff, self._guarded, labels, choices, self.instance)

    def _editable(self) -> dict[str, Any]:
        """Return the guarded fields without the one that links an inline's row to its parent."""
        return {
            name: field
            for name, field in self._guarded.items()
            if not isinstance(self.fields[name], InlineForeignKeyField)
        }

    def _show(self, name: str, value: Any) -> None:
        """Make an input show a value instead of the value that was sent."""
        field: Any = self.fields[name]
        field.bound_data = lambda data, initial: value  # noqa: ARG005

    def _say_gone(self) -> None:
        """Report that a row in a formset was deleted; Django reports that its id is no choice."""
        key = self.instance._meta.pk.name
        if self.data.get(self.add_prefix(TOKEN)) and self.has_error(key, "invalid_choice"):
            del self.errors[key]
            self.add_error(None, ValidationError(DELETED, code="deleted"))


class VersionedModelForm(VersionedFormMixin, _ModelForm):
    """``ModelForm`` with :class:`VersionedFormMixin`."""


def keep_tokens_of_unseen(response: Any, forms: Iterable[Any]) -> None:
    """Restore the old tokens of forms whose conflict the rendered page does not show.

    Otherwise a template that does not show a form's errors would send the token of a version that
    the user has not seen, and the next "Save" would overwrite that version.

    Args:
        response: a ``TemplateResponse``.
        forms: the forms of the page; those without a conflict are left alone.
    """
    forms = list(forms)

    def restore(rendered: Any) -> None:
        for form in forms:
            if form._tokens is not None and not form.conflict_was_shown:
                old, new = (token.encode() for token in form._tokens)
                rendered.content = rendered.content.replace(new, old)

    response.add_post_render_callback(restore)


def row_of(instance: Any) -> tuple[str, Any]:
    """Return the model and the key that a token is bound to; for a proxy, its concrete model."""
    return instance._meta.concrete_model._meta.label, instance.pk


def hides(field: forms.Field) -> bool:
    """Return whether a field can't be edited or hides its value, so that no token has it."""
    return field.disabled or (
        isinstance(field.widget, forms.PasswordInput) and not field.widget.render_value
    )


def encoded(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a form's model fields for a token."""
    columns = (
        (fields[name], value) for name, value in values.items() if not fields[name].many_to_many
    )
    relations = {name: value for name, value in values.items() if fields[name].many_to_many}
    return {**signed_version.encoded(columns), **relations}


# The form of a page that asks whether a row is to be deleted.


CHANGED_BEFORE_DELETE = _(
    "Somebody else has changed this since you opened it. Nothing was deleted. Look at it again "
    "before you delete it."
)


class VersionedDeleteForm(forms.Form):
    """A form with one hidden field, the version that the page showed; invalid without it."""

    version_token = VersionTokenField(required=False)

    def __init__(self, *args: Any, instance: VersionedModel, **options: Any) -> None:
        super().__init__(*args, **options)
        self.instance = instance
        self._row = row_of(instance)
        version = carried_version(instance, instance._state.db or DEFAULT_DB_ALIAS)
        self.fields[TOKEN].initial = signed_version.dump(*self._row, version, {})

    def clean(self) -> dict[str, Any]:
        """Bind the instance to the version that the user saw.

        Raises:
            ValidationError: the token is missing, or is not of this row.
        """
        try:
            seen = signed_version.load(*self._row, self.data.get(self.add_prefix(TOKEN)))
        except ValidationError:
            self.show_now()
            raise
        expect(self.instance, seen.version)
        return self.cleaned_data

    def show_now(self) -> None:
        """Set the token to the row's present version, which the next page shows."""
        self.data = {**self.data, self.add_prefix(TOKEN): self.fields[TOKEN].initial}
