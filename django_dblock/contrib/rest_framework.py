"""Django REST framework: ETag and If-Match for views of versioned models, and error responses.

Needs the extra: ``pip install "django-dblock[rest_framework]"``.
"""

import warnings
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.utils.translation import gettext as _
from rest_framework.exceptions import APIException
from rest_framework.generics import GenericAPIView
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import exception_handler as default_handler

from django_dblock.core.problem import PROBLEM_JSON, Problem
from django_dblock.exceptions import StaleObject
from django_dblock.middleware import problem_of
from django_dblock.versioning.model import VersionedModel
from django_dblock.versioning.web.etag import MalformedTags
from django_dblock.versioning.web.http import (
    SAFE,
    fresh_tag,
    malformed_problem,
    missing_problem,
    present_tag,
    set_etag,
    unused,
)
from django_dblock.versioning.web.preconditions import (
    IfMatch,
    PreconditionFailed,
    conditional,
)

if TYPE_CHECKING:
    from rest_framework.generics import GenericAPIView as _View
else:
    _View = object

_warned: set[type] = set()
"""The views whose responses were looked at for nested serializers."""


class Refused(APIException):  # type: ignore[misc]  # the framework has no types
    """A conflict as an error of the framework, so that any exception handler can respond to it.

    Attributes:
        problem: the problem that the response reports.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail, problem.code)
        self.problem = problem
        self.status_code = problem.status
        if problem.retry_after is not None:
            self.wait = problem.retry_after  # the framework makes Retry-After of it


def exception_handler(error: Exception, context: dict[str, Any]) -> Any:
    """Return a response to an error: ``application/problem+json`` to one of the package's.

    For ``REST_FRAMEWORK["EXCEPTION_HANDLER"]``. The statuses are those of
    :class:`~django_dblock.middleware.ConflictMiddleware`, with ``Retry-After`` if the same request
    may succeed later. Under ATOMIC_REQUESTS what the request has written is rolled back. Renderers
    of other formats get the same members. Other errors get the framework's own response.
    """
    request = context["request"]
    error = refusal(error, request)
    response = default_handler(error, context)
    if isinstance(error, Refused):
        response.data = error.problem.members()
        renderer = getattr(request, "accepted_renderer", None)  # none yet if that was the error
        if getattr(renderer, "format", None) == "json":
            response.content_type = PROBLEM_JSON
    return response


def refusal(error: Exception, request: Any) -> Exception:
    """Return a :class:`Refused` for an error of the package; return any other error unchanged."""
    problem = problem_of(error, conditional=conditional(request))
    if problem is None:
        return error
    refused = Refused(problem)
    refused.__cause__ = error
    return refused


class VersionedViewMixin(_View):  # type: ignore[misc]  # the framework has no types
    """ETag and If-Match for a generic view or viewset of a :class:`~django_dblock.VersionedModel`.

    Put it first: ``class ProductViewSet(VersionedViewMixin, ModelViewSet)``.

    A response whose data is a serializer's data of one object carries the object's ``ETag``:
    retrieve, create, update, partial_update, and actions of that kind.

    An object that an unsafe method gets by ``get_object()`` (update, partial_update, destroy, and
    actions of your own) is bound to the version in the request's ``If-Match``. Each later
    ``save()`` of the object names that version in its UPDATE, also with ``cas_on_save = False``,
    and destroy names it in its DELETE. The project's exception handler responds with

    - 428 if the header is missing,
    - 412 and the present tag on a conflict,
    - 400 if the header is malformed.

    Guarantees: those of :func:`~django_dblock.if_match`. A PUT, PATCH or DELETE is one transaction
    of the queryset's database (without a queryset, of the default database), so a serializer that
    saves several rows saves all of them or none. There is no additional SELECT.

    Does not guarantee: anything about a ``perform_destroy()`` of your own that calls ``delete()``
    (call ``delete_cas()``), about other instances of the same row, and about a POST that writes
    several rows without a transaction. The forms of the browsable API send no ``If-Match``.

    Set ``if_match_required = False`` on a view, or in ``@action(…, if_match_required=False)``, to
    allow writes without the header; a header that is sent still counts. An action that does not
    call ``get_object()`` uses ``request.if_match``.

    A tag contains the version of one row. If a serializer nests the rows of other models, a changed
    part does not change the tag: a warning says so, once for each view class. Bump the outer object
    with ``touch_version()`` when a part changes, then set ``etag_covers_nested = True``.

    Warns:
        RuntimeWarning: a tag is sent for a response with nested serializers.

    Raises:
        RuntimeError: an unsafe method responded with success, and never used the precondition that
            the client sent.
        MissingVersion: the version of an object in the response was deferred.
    """

    if_match_required = True
    etag_covers_nested = False

    def etag_variant(self) -> str:
        """Return the format of the renderer: representations of one URL differ by it."""
        return str(self.request.accepted_renderer.format)

    def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
        """Authorise as the framework does; read the precondition; prepare the transaction.

        Raises:
            Refused: the request creates a row, and carries an ``If-Match``.
        """
        super().initial(request, *args, **kwargs)
        condition = self._precondition()
        if condition and self._creates(request):
            if condition.kind != "absent":
                detail = _("If-Match needs an existing object, and this request creates one.")
                raise Refused(Problem(412, "not_there", detail))
            condition.waive()  # an INSERT overwrites nothing
        if request.method in {"PUT", "PATCH", "DELETE"}:
            self._in_transaction(request.method.lower())

    def get_object(self) -> Any:
        """Return the object; for an unsafe method, bind it to the version that the client saw.

        Raises:
            Refused: the unsafe request has no precondition, and ``if_match_required`` is set.
            StaleObject, PreconditionFailed, MissingVersion: the errors of ``IfMatch.bind()``.
        """
        instance = super().get_object()
        if self.request.method not in SAFE:
            condition = self._precondition()
            if self.if_match_required and not condition:
                raise Refused(missing_problem())
            condition.bind(instance)
        return instance

    def perform_destroy(self, instance: Any) -> None:
        """Delete the row that the client saw; without a precondition, as the framework does."""
        if self.request.if_match:
            instance.delete_cas()
        else:
            super().perform_destroy(instance)

    def handle_exception(self, exc: Exception) -> Any:
        """Return the response to an error; to a conflict, with the present tag of the row."""
        response = super().handle_exception(refusal(exc, self.request))
        if isinstance(exc, StaleObject | PreconditionFailed):
            present_tag(response, self._precondition(), exc, self.etag_variant())
        return response

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Put the tag on the response.

        Raises:
            RuntimeError: the view has succeeded without using the client's precondition.
        """
        response = super().finalize_response(request, response, *args, **kwargs)
        instance = _shown(response)
        if instance is not None and not self.etag_covers_nested:
            self._warn_of_parts(response.data.serializer)
        if request.method in SAFE:
            if instance is not None and "ETag" not in response.headers:
                set_etag(response, instance, self.etag_variant())
            return response
        if unused(request, response):
            raise RuntimeError(
                f"The client sent a precondition (If-Match), and {type(self).__name__} responded "
                f"to {request.method} with {response.status_code} without having used it. Get the "
                f"object by get_object(), or call request.if_match.bind(instance) before writing; "
                f"if nothing is written, call request.if_match.waive()."
            )
        if instance is not None:
            fresh_tag(response, instance, self.etag_variant())
        return response

    def _warn_of_parts(self, serializer: Any) -> None:
        view = type(self)
        if view in _warned:
            return
        _warned.add(view)
        parts = [
            name
            for name, field in getattr(serializer, "fields", {}).items()
            if isinstance(field, BaseSerializer) and field.source != "*"
        ]
        if parts:
            warnings.warn(
                f"{view.__name__} sends the ETag of one row for a response that nests others "
                f"({', '.join(parts)}): when one of these changes, the tag stays the same. Call "
                f"touch_version() of the whole when a part changes, and set etag_covers_nested = "
                f"True on the view.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _precondition(self) -> IfMatch:
        """Return ``request.if_match``; a permission class may be the first to ask for it."""
        request = self.request
        condition: IfMatch | None = getattr(request, "if_match", None)
        if condition is None:
            try:
                condition = IfMatch("none") if request.method in SAFE else IfMatch.of(request)
            except MalformedTags as error:
                raise Refused(malformed_problem()) from error
            request.if_match = condition
        return condition

    def _creates(self, request: Any) -> bool:
        if hasattr(self, "action"):
            return bool(self.action == "create")
        return request.method == "POST" and hasattr(self, "create")

    def _in_transaction(self, method: str) -> None:
        """Run the handler of this request's method in one transaction."""
        if (handler := getattr(self, method, None)) is None:
            return
        using = None
        if self.queryset is not None or type(self).get_queryset is not GenericAPIView.get_queryset:
            using = self.get_queryset().select_for_update().db  # the alias that is written to

        @wraps(handler)
        def in_transaction(*args: Any, **kwargs: Any) -> Any:
            with transaction.atomic(using=using):
                return handler(*args, **kwargs)

        setattr(self, method, in_transaction)


def _shown(response: Response) -> VersionedModel | None:
    """Return the object whose serialized data the response has; None if there is no such object."""
    serializer = getattr(getattr(response, "data", None), "serializer", None)
    instance = getattr(serializer, "instance", None)
    saved = isinstance(instance, VersionedModel) and not instance._state.adding  # noqa: SLF001
    return instance if saved and 200 <= response.status_code < 300 else None  # noqa: PLR2004
