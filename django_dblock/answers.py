"""Which answer a request gets that one of the package's errors has ended."""

from django.utils.translation import gettext as _

from django_dblock.conf import conf
from django_dblock.exceptions import IdempotencyError, LockLost, LockTimeout, StaleFence
from django_dblock.idempotency.problems import idempotency_problem
from django_dblock.problem import Problem
from django_dblock.versioning.http import conflict_problem

_TOLD = frozenset({"in_progress", "lease_lost", "abandoned", "too_many_keys"})
"""What ``run_once()`` in a view may end with that is no mistake of the project."""


def problem_of(error: BaseException, *, conditional: bool) -> Problem | None:
    """Return what to tell the client; None where the error is not one to be told.

    That it may end better next time, or after another look at what is there, is told. What shows
    a mistake in the project (a missing version, an unsafe isolation level, a full lock table) is
    not: it stays an error.

    Args:
        error: what was raised.
        conditional: the request carried ``If-Match`` or ``If-None-Match: *``.
    """
    if isinstance(error, LockTimeout):
        detail = _("Somebody else is working on this just now. Nothing was saved. Try again.")
        return Problem(conf.locked_status, "locked", detail, retry_after=1)
    if isinstance(error, IdempotencyError) and error.code in _TOLD:
        return idempotency_problem(error)
    if isinstance(error, StaleFence):
        detail = _("Somebody else has taken this over in the meantime. It was not saved.")
        return Problem(409, "taken_over", detail)
    if isinstance(error, LockLost):  # what was not guarded may have been saved
        detail = _("Somebody else may have taken this over. Look at what is there now.")
        return Problem(409, "lock_lost", detail)
    return conflict_problem(error, conditional=conditional)
