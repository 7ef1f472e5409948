"""What a client is told whose request was not run."""

from django.utils.translation import gettext_lazy as _

from django_dblock.exceptions import IdempotencyError
from django_dblock.problem import Problem

_PROBLEMS = {
    "key_missing": (
        400,
        _("This request needs an Idempotency-Key header: a new key for each new request."),
    ),
    "key_invalid": (
        400,
        _(
            "The Idempotency-Key header is not one key: 1 to 255 printable ASCII characters, as "
            "they are or in double quotes."
        ),
    ),
    "key_reused": (
        422,
        _("This Idempotency-Key was used for another request. Take a new one."),
    ),
    "in_progress": (
        409,
        _("The same request is being worked on just now. Ask again in a moment."),
    ),
    "lease_lost": (
        409,
        _("This request took too long, and is being worked on again. Ask again in a moment."),
    ),
    "abandoned": (
        409,
        _(
            "This request was begun, and it is not known how it ended. Somebody has to look. "
            "Don't send it with another key."
        ),
    ),
    "too_many_keys": (
        429,
        _("There are too many requests with an Idempotency-Key. Try again later."),
    ),
    "damaged": (500, _("The answer that was kept can't be given. Somebody has to look.")),
    "unstorable": (500, _("The answer could not be kept, so nothing was done.")),
}


def idempotency_problem(error: IdempotencyError) -> Problem:
    """Return what to tell a client."""
    status, detail = _PROBLEMS[error.code]
    retry_after = getattr(error, "retry_after", 1 if error.code == "lease_lost" else None)
    return Problem(status, error.code, str(detail), retry_after=retry_after)
