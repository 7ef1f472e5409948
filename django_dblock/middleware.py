"""The middleware that turns the package's errors into responses: 409, 412, 423, not 500."""

import logging

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin
from django.utils.encoding import escape_uri_path
from django.utils.translation import gettext as _

from django_dblock.conf import conf
from django_dblock.core.problem import Problem, respond
from django_dblock.exceptions import IdempotencyError, LockLost, LockTimeout, StaleFence
from django_dblock.idempotency.responses import idempotency_problem
from django_dblock.versioning.web.http import conflict_problem
from django_dblock.versioning.web.preconditions import conditional

logger = logging.getLogger("django_dblock.middleware")

# Errors of run_once() in a view that are not mistakes in the project.
_TOLD = frozenset({"in_progress", "lease_lost", "abandoned", "too_many_keys", "not_replicated"})


def problem_of(error: BaseException, *, conditional: bool) -> Problem | None:
    """Return the problem to report for an error; None if the error stays a server error.

    A busy lock and a changed row are reported to the client: a retry, or reading the row again, may
    help. An error that shows a mistake in the project (a missing version, an unsafe
    isolation level, a full lock table) stays a server error.

    Args:
        error: the error that the view raised.
        conditional: whether the request carried ``If-Match`` or ``If-None-Match: *``.
    """
    if isinstance(error, LockTimeout):
        detail = _("Somebody else is working on this right now. Nothing was saved. Try again.")
        return Problem(conf.locked_status, "locked", detail, retry_after=1)
    if isinstance(error, IdempotencyError) and error.code in _TOLD:
        return idempotency_problem(error)
    if isinstance(error, StaleFence):
        detail = _("Somebody else has taken this over in the meantime. Your change was not saved.")
        return Problem(409, "taken_over", detail)
    if isinstance(error, LockLost):  # writes without guard() may have been committed
        detail = _("Somebody else may have taken this over. Look at what is there now.")
        return Problem(409, "lock_lost", detail)
    return conflict_problem(error, conditional=conditional)


class ConflictMiddleware(MiddlewareMixin):
    """Respond to a request that ended in a lock or version conflict, in JSON or HTML by ``Accept``.

    =============================================  ======================================
    ``LockTimeout``                                ``DBLOCK_LOCKED_STATUS`` (423)
    ``LockDeadlock``; SQLSTATE 40001 and 40P01     409
    ``StaleFence``, ``LockLost``                   409
    ``StaleObject``, ``StaleObjects``              409; 412 if the request had If-Match
    ``PreconditionFailed``                         412
    ``IdempotencyError`` of ``run_once()``         as of ``@idempotent``; 500 for a mistake in
                                                   the project
    =============================================  ======================================

    The response has ``Retry-After`` if the same request may succeed later. Works in sync and async
    projects.

    Guarantees: the transaction of ATOMIC_REQUESTS is rolled back before the response is made; the
    response shows neither keys nor values.

    Does not guarantee: that a view without a transaction has written nothing before the error.
    Errors that are raised while a response is streamed, or while another middleware renders a
    template response, do not come here.

    Each conflict is logged to ``django_dblock.middleware`` at INFO with the error's class and the
    path. The error itself, with its keys, is in the record's ``error``.

    Source: RFC 9110, 15.5.10 (409), 15.5.13 (412); RFC 4918, 11.3 (423); RFC 9457.
    """

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the response to a conflict; None to any other error, which Django then handles."""
        problem = problem_of(exception, conditional=conditional(request))
        if problem is None:
            return None
        logger.info(
            "%s %s responded with %d: %s",
            request.method,
            escape_uri_path(request.path),
            problem.status,
            type(exception).__name__,
            extra={"status_code": problem.status, "request": request, "error": exception},
        )
        return respond(request, problem)
