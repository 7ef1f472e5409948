"""ETag and If-Match for views: a write that is bound to the version that the client saw.

The view does not compare ``If-Match`` itself; the version in the header goes into the UPDATE
(:mod:`~django_dblock.versioning.web.preconditions`). Tags are in
:mod:`~django_dblock.versioning.web.etag`.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.db import OperationalError, connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.translation import gettext as _

from django_dblock.core.problem import Problem, respond
from django_dblock.exceptions import (
    LockDeadlock,
    MissingVersion,
    StaleObject,
    StaleObjects,
)
from django_dblock.versioning.model import VersionedModel
from django_dblock.versioning.retry import is_conflict
from django_dblock.versioning.web.etag import MalformedTags, etag
from django_dblock.versioning.web.preconditions import IfMatch, PreconditionFailed

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that write nothing: RFC 9110, 9.2.1."""

CONFLICTS = (StaleObject, StaleObjects, PreconditionFailed, LockDeadlock, OperationalError)
"""Errors that may be a conflict; :func:`conflict_problem` decides."""

View = TypeVar("View", bound=Callable[..., Any])
R = TypeVar("R", bound=HttpResponseBase)


class ConditionalRequest(HttpRequest):
    """For annotations only: the request that a view with ``@if_match`` gets."""

    if_match: IfMatch


def set_etag(response: R, instance: VersionedModel, variant: str = "") -> R:
    """Set the response's ``ETag`` to the tag of the instance's version; return the response.

    With Django's ConditionalGetMiddleware the response to a GET whose ``If-None-Match`` has this
    tag is 304. Arguments, guarantees and errors are those of :func:`etag`.
    """
    response.headers["ETag"] = etag(instance, variant)
    return response


@overload
def if_match(view: View, /) -> View: ...


@overload
def if_match(*, required: bool = True, variant: str = "") -> Callable[[View], View]: ...


def if_match(
    view: View | None = None, /, *, required: bool = True, variant: str = ""
) -> View | Callable[[View], View]:
    """Let a view write only over the version that the client saw, by its ``If-Match`` header.

    The view gets ``request.if_match``
    (:class:`~django_dblock.versioning.web.preconditions.IfMatch`) and binds what it writes:
    ``request.if_match.bind(product)`` before any form or serializer, or
    ``product.save_cas(expected=request.if_match.expected(product))``. So the UPDATE itself
    compares the version; no other statement is sent.

    Works on functions and, through ``method_decorator``, on methods and ``dispatch`` of class
    views, sync and async. Safe methods pass untouched.

    Guarantees: a conflict that the view raises becomes a 412 response with the present tag of the
    row, if there is a row. What the request wrote under ATOMIC_REQUESTS is rolled back. Without the
    header the response is 428, before the view runs; with a malformed header it is 400. The
    response to a write has the new tag. A view that succeeds without having used a precondition
    that the client sent raises RuntimeError.

    Does not guarantee: that what the view wrote before the conflict is undone without
    ATOMIC_REQUESTS; put several writes in ``transaction.atomic()``. ``If-Unmodified-Since``, and
    tags in the ``If-None-Match`` of a write, are ignored.

    Departures from RFC 9110: weak tags, and tags with a suffix that a compressing proxy
    has added, match, because a tag names the state of a row (13.1.1 wants the strong comparison);
    the response to a successful PUT has an ETag even if the server has normalised the data
    (9.3.4). The tags of any variant match.

    Args:
        view: the view, where the decorator is used without arguments.
        required: respond with 428 to an unsafe method without ``If-Match`` and without
            ``If-None-Match: *``. If False, ``bind()`` does nothing for such a request.
        variant: the variant in the tags of the responses, as in :func:`etag`.

    Raises:
        RuntimeError: the view succeeded and never used ``request.if_match``, though
            the client sent a precondition.

    Source: RFC 9110, 13.1.1 If-Match, 13.1.2 If-None-Match, 15.5.13 (412); RFC 6585, 3 (428);
    RFC 9457.
    """
    if view is not None:
        return if_match()(view)

    def decorate(view: View) -> View:
        if _is_async(view):

            @wraps(view)
            async def conditional(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                if (refused := _begin(request, required=required)) is not None:
                    return refused
                try:
                    response = await view(request, *args, **kwargs)
                except CONFLICTS as error:
                    return _refuse(request, error, variant)
                return _finish(request, response, view, variant)

        else:

            @wraps(view)
            def conditional(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                if (refused := _begin(request, required=required)) is not None:
                    return refused
                try:
                    response = view(request, *args, **kwargs)
                except CONFLICTS as error:
                    refused = _refuse(request, error, variant)
                    undo_request()
                    return refused
                return _finish(request, response, view, variant)

        return conditional  # type: ignore[return-value]  # the wrapper has the view's signature

    return decorate


def conflict_problem(error: BaseException, *, conditional: bool) -> Problem | None:
    """Return the problem to report for a conflict; None for other errors.

    Args:
        error: the error.
        conditional: the request carried a precondition.
    """
    if isinstance(error, PreconditionFailed) and error.absent:
        return Problem(412, "already_there", _("This exists already. Nothing was saved."))
    if isinstance(error, StaleObject) and error.deleted:
        detail = _("Somebody has deleted this in the meantime. Nothing was saved.")
        return Problem(412 if conditional else 409, "deleted", detail)
    if isinstance(error, StaleObject | StaleObjects | PreconditionFailed):
        detail = _(
            "Somebody has changed this since you opened it. Nothing was saved. Open it again to "
            "see what it is now."
        )
        return Problem(412 if conditional else 409, "changed", detail)
    if isinstance(error, Exception) and is_conflict(error):
        detail = _("Somebody else was faster. Nothing was saved. Try again.")
        return Problem(409, "conflict", detail, retry_after=1)
    return None


def missing_problem() -> Problem:
    """Return the problem to report for a missing ``If-Match`` header."""
    detail = _("This request needs an If-Match header with the ETag of what you have read.")
    return Problem(428, "precondition_required", detail)


def malformed_problem() -> Problem:
    """Return the problem to report for a malformed ``If-Match`` header."""
    detail = _("The If-Match header is not a list of entity tags, or contradicts If-None-Match.")
    return Problem(400, "malformed_if_match", detail)


def undo_request() -> None:
    """Roll back the request's writes under ATOMIC_REQUESTS.

    Django commits when a view returns a response, also when that response reports a conflict.
    """
    connection: Any
    for connection in connections.all(initialized_only=True):
        own = [block for block in connection.atomic_blocks if not block._from_testcase]
        if own and connection.settings_dict["ATOMIC_REQUESTS"]:
            connection.set_rollback(True)


def unused(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Return whether a view succeeded without using the precondition that the client sent."""
    if response.status_code >= 400:  # noqa: PLR2004
        return False
    if "Idempotent-Replayed" in response.headers:  # by @idempotent: the view was not run again
        return False
    condition: IfMatch = request.if_match  # type: ignore[attr-defined]
    return bool(condition) and not condition.used


def fresh_tag(response: HttpResponseBase, instance: VersionedModel | None, variant: str) -> None:
    """Add the ETag to a successful response without one, if the instance has a version."""
    successful = 200 <= response.status_code < 300  # noqa: PLR2004
    if instance is not None and instance.pk is not None and successful:
        # The version is unknown after a save that did not compare, and invalid after a rollback.
        with suppress(MissingVersion, StaleObject):
            response.headers.setdefault("ETag", etag(instance, variant))


def present_tag(
    response: HttpResponseBase,
    condition: IfMatch,
    error: StaleObject | PreconditionFailed,
    variant: str,
) -> None:
    """Add the row's present ETag to the response to a conflict, if it is known."""
    tag = condition.current_tag(error, variant)
    if tag is not None:
        response.headers["ETag"] = tag


def _begin(request: HttpRequest, *, required: bool) -> HttpResponse | None:
    try:
        condition = IfMatch("none") if request.method in SAFE else IfMatch.of(request)
    except MalformedTags:
        return respond(request, malformed_problem())
    request.if_match = condition  # type: ignore[attr-defined]
    if required and not condition and request.method not in SAFE:
        return respond(request, missing_problem())
    return None


def _finish(request: HttpRequest, response: Any, view: Any, variant: str) -> Any:
    if request.method in SAFE or not isinstance(response, HttpResponseBase):
        return response
    if unused(request, response):
        name = getattr(view, "__qualname__", view)
        raise RuntimeError(
            f"The client sent a precondition (If-Match), and {name} responded with "
            f"{response.status_code} without having used it. Call request.if_match.bind(instance) "
            f"before writing, or save_cas(expected=request.if_match.expected(instance)); if the "
            f"view writes nothing, call request.if_match.waive()."
        )
    fresh_tag(response, request.if_match.row(), variant)  # type: ignore[attr-defined]
    return response


def _refuse(request: HttpRequest, error: Exception, variant: str) -> HttpResponse:
    """Return the response to a conflict; raise any other error again."""
    condition: IfMatch = request.if_match  # type: ignore[attr-defined]
    problem = conflict_problem(error, conditional=bool(condition))
    if problem is None:
        raise error
    response = respond(request, problem)
    if isinstance(error, StaleObject | PreconditionFailed):
        present_tag(response, condition, error, variant)
    return response


def _is_async(view: Any) -> bool:
    """Return whether the view must be awaited; also for ``dispatch`` of an async class view."""
    if iscoroutinefunction(view):
        return True
    owner = getattr(getattr(view, "func", None), "__self__", None)
    return bool(getattr(owner, "view_is_async", False))
