"""The admin of versioned models: it writes and deletes only versions that its user has seen."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from copy import copy
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import flatten
from django.core.exceptions import ValidationError
from django.db import router, transaction
from django.http import HttpRequest, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from django_dblock.exceptions import StaleObject, StaleObjects
from django_dblock.versioning.model import VersionedModel, expect
from django_dblock.versioning.web import signed_version
from django_dblock.versioning.web.admin_forms import (
    VERSIONS,
    AdminForm,
    Page,
    hidden_versions,
    lock_seen,
    render_token_beside,
    versioned_form,
    versioned_formset,
    versioned_inline,
)
from django_dblock.versioning.web.diff import conflict_diff
from django_dblock.versioning.web.diff_display import Row, rows
from django_dblock.versioning.web.forms import (
    CHANGED_BEFORE_DELETE,
    TOKEN,
    hides,
    keep_tokens_of_unseen,
)

CHANGED_MANY = _(
    "Somebody else has changed this meanwhile, so nothing was done to it: %(names)s. Look at it "
    "again before you repeat your action."
)

NOT_SAVED = _(
    "Somebody else has changed this meanwhile, so nothing was saved: %(names)s. Compare the "
    "changes on this page before you save again. If it does not show them, load it again."
)

if TYPE_CHECKING:

    class _Base(admin.ModelAdmin[Any]):
        form: Any

else:
    _Base = admin.ModelAdmin

ROUNDS = 3
"""The attempts to make a page of a conflict, if another writer changes the row each time."""


class VersionedAdmin(_Base):
    """A ``ModelAdmin`` that overwrites or deletes only versions that its user has seen.

    Guarantees: the change form, each row of ``list_editable`` and each row of an inline carries
    the version that was shown, and so do the pages that ask before they delete. The statement that
    writes or deletes a row compares the version (before deleting several rows, these are locked and
    compared). In a conflict the whole request is rolled back, its log entries included. The
    response is the page again, with the status 409 and a table of mine and theirs.

    The model, its inlines' models, or both have a version; inlines need no special class. The class
    replaces no template. A project's own templates must show the same as Django's: in a change form
    the first fieldset and the errors, in a formset the hidden fields.

    Does not guarantee: anything about rows that are deleted with the shown row, nor about your own
    actions; these can use :meth:`carry_versions` and :meth:`check_versions`.
    """

    class Media:  # noqa: D106 - Django's
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("django_dblock/conflict_admin.css",)}

    def __init__(self, model: Any, admin_site: Any) -> None:
        super().__init__(model, admin_site)
        self._versioned = issubclass(model, VersionedModel)
        if self._versioned and self.form is forms.ModelForm:
            self.form = AdminForm

    # The change form.

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Return Django's form class with a comparison of versions."""
        form = super().get_form(request, *args, **kwargs)
        return versioned_form(form, Page.of(request))

    def get_inline_instances(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return Django's inlines with a comparison of versions, also in inlines of inlines."""
        inlines = super().get_inline_instances(request, obj)
        return [versioned_inline(inline) for inline in inlines]

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **options: Any
    ) -> Any:
        """Render Django's page, with the version's hidden field beside the first input."""
        shown = context["adminform"]
        if TOKEN in shown.form.fields and self.has_change_permission(request, context["original"]):
            _carry_token(shown)
        return super().render_change_form(request, context, *args, **options)

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        """Run Django's view; respond with the form and the conflict if a save ends in one."""
        view = super().changeform_view
        run = self._in_one_transaction(request, lambda: view(request, *args, **options))
        try:
            return _or_conflict(request, run)
        except (StaleObject, StaleObjects, ValidationError) as error:
            if not hasattr(request, "_dblock_acts"):  # Django 6.1 has actions in this page, too
                raise
            return self._asked_again(request, error, lambda asking: view(asking, *args, **options))

    # The list.

    def get_changelist_form(self, request: HttpRequest, **kwargs: Any) -> Any:
        """Return Django's form class with a comparison of versions."""
        if self._versioned:
            kwargs.setdefault("form", AdminForm)
        return super().get_changelist_form(request, **kwargs)

    def get_changelist_formset(self, request: HttpRequest, **kwargs: Any) -> Any:
        """Return Django's formset class, whose forms compare versions."""
        return versioned_formset(
            super().get_changelist_formset(request, **kwargs), Page.of(request)
        )

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Run Django's view; respond with the list and the conflicts if a save ends in one."""
        view = super().changelist_view
        run: Callable[[], Any] = partial(view, request, extra_context)
        if "_save" in request.POST:
            run = self._in_one_transaction(request, run)
        try:
            return _or_conflict(request, run)
        except (StaleObject, StaleObjects, ValidationError) as error:
            return self._asked_again(request, error, lambda asking: view(asking, extra_context))

    def _in_one_transaction(
        self, request: HttpRequest, view: Callable[[], Any]
    ) -> Callable[[], Any]:
        """Let a view write its rows in one transaction; Django's is of the router's alias only."""
        if request.method != "POST":
            return view
        using = _written_alias(self.get_queryset(request))
        if using == router.db_for_write(self.model):
            return view
        return transaction.atomic(using=using)(view)

    def _asked_again(
        self,
        request: HttpRequest,
        error: StaleObject | StaleObjects | ValidationError,
        view: Callable[[Any], Any],
    ) -> Any:
        """Return the response to an action that ended in a conflict: its page, if it asked."""
        if isinstance(error, ValidationError):
            message, status = _unseen(error), HTTPStatus.BAD_REQUEST
        else:
            message, status = self._stale_message(error), HTTPStatus.CONFLICT
        self.message_user(request, message, messages.ERROR)
        if not request.POST.get("post"):
            return HttpResponseRedirect(request.get_full_path())
        asking: Any = copy(request)
        asking.POST = request.POST.copy()
        del asking.POST["post"]
        return _with_status(view(asking), status)

    # Actions.

    def response_action(
        self, request: HttpRequest, queryset: Any, *args: Any, **options: Any
    ) -> Any:
        """Run an action; a confirmed action is one transaction, and deletes only shown versions."""
        act = partial(super().response_action, request, queryset, *args, **options)
        if not self._versioned:
            return act()
        request._dblock_acts = True  # type: ignore[attr-defined]
        deletes = "delete_selected" in request.POST.getlist("action")
        if request.POST.get("post"):
            # Log entries are on the router's alias, which may be another.
            aliases = {_written_alias(queryset), router.db_for_write(self.model)}
            with ExitStack() as together:
                for using in sorted(aliases):
                    together.enter_context(transaction.atomic(using=using))
                if deletes:
                    selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
                    self.check_versions(request, queryset.filter(pk__in=selected))
                return act()
        response = act()
        if deletes and isinstance(response, TemplateResponse):
            shown = (response.context_data or {})["queryset"]
            _confirm(response, self.carry_versions(shown))
        return response

    def carry_versions(self, shown: Iterable[VersionedModel]) -> SafeString:
        """Return a hidden input, for the page of an action that asks before it acts.

        Args:
            shown: the objects on that page.
        """
        return hidden_versions(self.model, shown)

    def check_versions(self, request: HttpRequest, queryset: Any) -> None:
        """Lock the rows of a queryset if they have the versions of :meth:`carry_versions`.

        Call this in an action whose page posts ``post``, as Django's own page does: the action runs
        in a transaction, and after an error of this method the page is shown again. One statement.

        Raises:
            StaleObjects: some rows were changed, or were not on the page. Rows that were deleted
                are none of the queryset any more, and no error.
            ValidationError: the page did not send the versions, or sent changed ones.
        """
        lock_seen(queryset.using(_written_alias(queryset)), request.POST.get(VERSIONS))

    def _stale_message(self, error: StaleObject | StaleObjects) -> str:
        pks = error.pks if isinstance(error, StaleObjects) else [error.pk]
        rows = self.model._base_manager.using(error.using).filter(pk__in=pks)
        names = [str(each) for each in rows]
        return CHANGED_MANY % {"names": ", ".join(names or map(str, pks))}

    # Deleting one.

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        """Return the object; bind an object that will be deleted to the version that was shown."""
        obj = super().get_object(request, object_id, from_field)
        if obj is not None and request.method == "POST" and hasattr(request, "_dblock_deletes"):
            seen = signed_version.load(obj._meta.label, obj.pk, request.POST.get(TOKEN))
            request._dblock_deletes = obj, seen
            expect(obj, seen.version)
        return obj

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """Run Django's view; respond with its page and the changes if the row was changed."""
        view = super().delete_view
        if not self._versioned or request.method != "POST":
            return view(request, object_id, extra_context)
        request._dblock_deletes = None, None  # type: ignore[attr-defined]
        run = self._in_one_transaction(request, lambda: view(request, object_id, extra_context))
        try:
            return run()
        except StaleObject as error:
            if error.instance is not request._dblock_deletes[0]:  # type: ignore[attr-defined]
                raise
            message, status = str(CHANGED_BEFORE_DELETE), HTTPStatus.CONFLICT
        except ValidationError as error:
            message, status = _unseen(error), HTTPStatus.BAD_REQUEST
        self.message_user(request, message, messages.ERROR)
        asking: Any = copy(request)
        asking.method, asking.POST = "GET", QueryDict()
        return _with_status(view(asking, object_id, extra_context), status)

    def render_delete_form(self, request: HttpRequest, context: dict[str, Any]) -> Any:
        """Render Django's page, with the version and the values that the user may see."""
        response = super().render_delete_form(request, context)
        obj = context["object"]
        if not self._versioned:
            return response
        fields = self._seen_fields(request, obj)
        version = getattr(obj, obj._version_field.attname)
        original = signed_version.encoded(
            (each, each.value_from_object(obj)) for each in fields.values()
        )
        signed = signed_version.dump(obj._meta.label, obj.pk, version, original)
        changed: list[Row] = []
        _, seen = getattr(request, "_dblock_deletes", (None, None))
        if seen:
            now = StaleObject(
                instance=obj, expected=seen.version, actual=version, using=obj._state.db
            )
            diff = conflict_diff(now, original=seen.original, fields=fields)
            labels = dict.fromkeys(fields, "")
            table = rows(diff, fields, labels, labels, obj)
            changed = [row for row in table if row.theirs_changed]
        hidden = format_html('<input type="hidden" name="{}" value="{}">', TOKEN, signed)
        _confirm(response, hidden, changed)
        return response

    def _seen_fields(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        if not self.has_view_or_change_permission(request, obj):
            return {}
        form = self.get_form(request, obj, change=True)
        return {
            field.name: field
            for field in obj._meta.concrete_fields
            if not field.primary_key
            and field.name in form.base_fields
            and not hides(form.base_fields[field.name])
        }


def _written_alias(queryset: Any) -> str:
    """Return the alias that the rows of a queryset are written to, read from a replica or not."""
    return str(queryset.select_for_update().db)


def _carry_token(shown: Any) -> None:
    """Render the token beside an input that the page renders.

    Not as a field of its own: themes give each field a row, and a label.
    """
    form = shown.form
    names = [name for _, options in shown.fieldsets for name in flatten(options["fields"])]
    for name in names:
        if name in form.fields and name not in shown.readonly_fields:
            widget = form.fields[name].widget
            if not isinstance(widget, forms.RadioSelect | forms.CheckboxSelectMultiple):
                render_token_beside(form, name)
                return
    (title, first), *others = shown.fieldsets or [(None, {"fields": ()})]
    shown.fieldsets = [(title, {**first, "fields": [*first["fields"], TOKEN]}), *others]


def _or_conflict(request: HttpRequest, view: Callable[[], Any]) -> Any:
    """Run a view; after a conflict of one of its forms, run the view again to show the conflict."""
    page = Page.of(request)
    for _round in range(ROUNDS):
        page.conflicts.clear()
        try:
            response = view()
        except StaleObject as error:
            if "_version_in_form" not in error.instance.__dict__:
                raise
            page.failed = error
        else:
            return response if page.failed is None else _as_conflict(request, response, page)
    raise page.failed  # type: ignore[misc]


def _as_conflict(request: HttpRequest, response: Any, page: Page) -> Any:
    """Set the status of a page of conflicts; make a list show the rows that were sent, in order."""
    if isinstance(response, TemplateResponse) and (shown := response.context_data):
        changes = shown.get("cl")
        if changes is not None:
            # Use the list's objects, which were read with the relations that the columns need. The
            # forms' objects were read without, and each would read its relations again.
            read = {each.pk: each for each in changes.result_list}
            sent = [form.instance for form in changes.formset.forms]
            changes.result_list = [read.get(each.pk, each) for each in sent]
        keep_tokens_of_unseen(response, page.conflicts)
        names = ", ".join(dict.fromkeys(str(each.instance) for each in page.conflicts))
        if names:  # none if the second run has read older rows than the page shows
            text = NOT_SAVED % {"names": names}
            messages.error(request, text, fail_silently=True)
    return _with_status(response, HTTPStatus.CONFLICT)


def _with_status(response: Any, status: HTTPStatus) -> Any:
    if isinstance(response, TemplateResponse):
        response.status_code = status
    return response


def _unseen(error: ValidationError) -> str:
    """Return the message for a page that was sent without its version; raise other errors."""
    if getattr(error, "code", None) not in signed_version.CODES:
        raise error
    return str(error.message)


def _confirm(response: Any, fields: SafeString, changed: Iterable[Row] = ()) -> None:
    """Add fields to the form of a page that asks before it deletes."""
    page = response.resolve_template(response.template_name)
    more = {"dblock_page": page, "dblock_fields": fields, "dblock_rows": changed}
    response.context_data = {**(response.context_data or {}), **more}
    response.template_name = "django_dblock/admin/confirm.html"
