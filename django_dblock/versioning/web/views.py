"""Views that respond to a conflict with a page to resolve it."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import connections
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from django_dblock.exceptions import StaleObject
from django_dblock.versioning.web.forms import (
    CHANGED_BEFORE_DELETE,
    DELETED,
    TOKEN,
    VersionedDeleteForm,
    VersionedFormMixin,
    keep_tokens_of_unseen,
)

TEMPLATE = "django_dblock/conflict.html"

if TYPE_CHECKING:
    from django.views.generic import DeleteView, UpdateView

    _Update = UpdateView[Any, Any]  # a user names the model and the form
    _Delete = DeleteView[Any, Any]
else:
    _Update = _Delete = object


def form_conflict_response(
    request: HttpRequest,
    form: Any,
    error: StaleObject,
    *,
    template_name: str = TEMPLATE,
    context: Mapping[str, Any] | None = None,
) -> TemplateResponse:
    """Return the page for a form whose ``save()`` ended with a conflict; its status is 409.

    The page shows mine, theirs and the original of each field, and the form to send again. Under
    ``ATOMIC_REQUESTS`` what the view has written so far is rolled back.

    Args:
        request: the request that ended in the conflict.
        form: the form; or the formset, if the conflict is of one of its forms.
        error: the error that ``save()`` raised.
        template_name: a page of your own; within its ``<form>`` it includes
            ``django_dblock/conflict_fields.html``, which shows ``form``.
        context: more variables for the template, besides ``form``, ``formset`` and ``title``.

    Raises:
        StaleObject: the error belongs to none of the forms, so there is no conflict to show.
    """
    formset = form if hasattr(form, "forms") else None
    among = [each for each in getattr(form, "forms", [form]) if each.instance is error.instance]
    if not among:
        raise error
    among[0].add_conflict(error)
    shown = {
        "form": among[0],
        "formset": formset,
        "deleted": among[0]._conflict.deleted,
        "path": request.get_full_path(),
        "title": _("Somebody else was faster"),
        **(context or {}),
    }
    undo(error.using)
    response = TemplateResponse(request, template_name, shown, status=HTTPStatus.CONFLICT)
    keep_tokens_of_unseen(response, among)
    return response


def undo(using: str) -> None:
    """Roll back the request's writes under ATOMIC_REQUESTS, as if the view had raised."""
    connection = connections[using]
    if connection.in_atomic_block and connection.settings_dict["ATOMIC_REQUESTS"]:
        connection.set_rollback(True)


class VersionedUpdateMixin(_Update):
    """Make an ``UpdateView`` respond to a conflict with a page that shows mine and theirs.

    Put the mixin before ``UpdateView``. The form is a :class:`VersionedFormMixin`, which is made if
    only ``fields`` are given. The response's status is 409. The form writes nothing; under
    ``ATOMIC_REQUESTS`` the view writes nothing.

    Does not guarantee: that a row which was deleted before the view read it can be distinguished
    from a row that never existed. For a posted form with a version, the response is the page, too.

    Attributes:
        conflict_template_name: the page; see :func:`form_conflict_response`.
    """

    conflict_template_name: str = TEMPLATE

    def get_form_class(self) -> Any:
        """Return Django's form class, with a version."""
        form: Any = super().get_form_class()
        if issubclass(form, VersionedFormMixin):
            return form
        return type(form)(form.__name__, (VersionedFormMixin, form), {})

    def get_form(self, form_class: Any = None) -> Any:
        """Return Django's form, and keep the form for the page of a conflict."""
        self._form = super().get_form(form_class)
        return self._form

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Handle the POST as Django does; respond with the page if it ends in a conflict."""
        try:
            return super().post(request, *args, **kwargs)
        except StaleObject as error:
            return self.conflict_response(self._form, error)
        except Http404:
            if not any(name.split("-")[-1] == TOKEN for name in request.POST):
                raise
            return self.gone_response()

    def conflict_response(self, form: Any, error: StaleObject) -> HttpResponse:
        """Return the page for a conflict of this view's form.

        Raises:
            StaleObject: the conflict is not of this form.
        """
        return form_conflict_response(
            self.request,
            form,
            error,
            template_name=self.conflict_template_name,
            context={"view": self, "object": error.instance},
        )

    def gone_response(self) -> HttpResponse:
        """Return the page for a row that was deleted before it could be read again."""
        context = {
            "view": self,
            "deleted": True,
            "title": _("Somebody else was faster"),
            "message": DELETED,
            "sent": self._sent(),
        }
        return TemplateResponse(
            self.request, self.conflict_template_name, context, status=HTTPStatus.CONFLICT
        )

    def _sent(self) -> list[tuple[str, str]]:
        self.object = None
        form = self.get_form()
        return [(str(each.label), str(each.data or "")) for each in form.visible_fields()]


class VersionedDeleteMixin(_Delete):
    """Make a ``DeleteView`` delete only what its page has shown.

    Put the mixin before ``DeleteView``. The page renders ``{{ form }}``, which is one hidden field,
    and the form's errors. If the row was changed meanwhile, nothing is deleted, and the page is
    shown again with the present row, an error in ``form``, and the status 409.

    Does not guarantee: anything about other rows that are deleted with the row.
    """

    form_class = VersionedDeleteForm

    def get_form_kwargs(self) -> dict[str, Any]:
        """Return Django's arguments and the row."""
        return {**super().get_form_kwargs(), "instance": self.object}

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Handle the POST as Django does; respond with the page if it ends in a conflict."""
        try:
            return super().post(request, *args, **kwargs)
        except StaleObject as error:
            if error.instance is not self.object:
                raise
            return self.conflict_response(error)

    def conflict_response(self, error: StaleObject) -> HttpResponse:
        """Return the page again, for the present row."""
        self.object = self.get_object()
        form = self.get_form()
        form.add_error(None, ValidationError(CHANGED_BEFORE_DELETE, code="conflict"))
        form.show_now()
        response = self.render_to_response(self.get_context_data(form=form))
        response.status_code = HTTPStatus.CONFLICT
        undo(error.using)
        return response
