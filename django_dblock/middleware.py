"""A conflict is an answer, not a server error: for views that don't answer it themselves."""

import logging

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin
from django.utils.encoding import escape_uri_path

from django_dblock.answers import problem_of
from django_dblock.problem import respond
from django_dblock.versioning.precondition import conditional

logger = logging.getLogger("django_dblock.middleware")


class ConflictMiddleware(MiddlewareMixin):
    """Answer a request that ended in a lock or version conflict, as JSON or HTML by ``Accept``.

    =============================================  ======================================
    ``LockTimeout``                                ``DBLOCK_LOCKED_STATUS`` (423)
    ``LockDeadlock``; SQLSTATE 40001 and 40P01     409
    ``StaleFence``, ``LockLost``                   409
    ``StaleObject``, ``StaleObjects``              409; 412 if the request had If-Match
    ``PreconditionFailed``                         412
    =============================================  ======================================

    With ``Retry-After`` where the same request may end better. For sync and async projects.

    Guarantees: the transaction of ATOMIC_REQUESTS is rolled back by the time the answer is made;
    neither keys nor values are shown.

    Does not guarantee: that a view without a transaction has written nothing before the error; nor
    anything about errors while a response is streamed or a template response is rendered by
    another middleware. It is logged to ``django_dblock.middleware`` at INFO: the error's class and
    the path; the error itself, with its keys, is in the record's ``error``.

    Source: RFC 9110, 15.5.10 (409), 15.5.13 (412); RFC 4918, 11.3 (423); RFC 9457.
    """

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the answer to a conflict; None for other errors, which go on."""
        problem = problem_of(exception, conditional=conditional(request))
        if problem is None:
            return None
        logger.info(
            "%s %s answered with %d: %s",
            request.method,
            escape_uri_path(request.path),
            problem.status,
            type(exception).__name__,
            extra={"status_code": problem.status, "request": request, "error": exception},
        )
        return respond(request, problem)
