"""Which answers are kept, what of them, and how they are given again.

===================================  ===========  ===============================
the view                             its effects  its answer
===================================  ===========  ===============================
returns 2xx, 3xx, 4xx                committed    kept
returns 408, 425                     rolled back  not kept
returns 5xx                          rolled back  not kept; kept with ``store_5xx``
raises a 4xx of DRF's, but for       rolled back  kept, as DRF renders it
... 401, 403, 408, 425, 429          rolled back  not kept
raises Django's ``Http404``          rolled back  not kept
... or ``PermissionDenied``          rolled back  not kept
raises anything else                 rolled back  not kept; kept with ``store_5xx``
returns what can't be kept           rolled back  not kept; 500 is answered
===================================  ===========  ===============================

"Committed" and "rolled back" are of atomic mode; in lease mode the view's own transactions decide.
"""

import logging
from typing import Any

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils.translation import gettext_lazy as _

from django_dblock.conf import conf
from django_dblock.core.problem import Problem
from django_dblock.exceptions import IdempotencyError, UnstorableResponse
from django_dblock.idempotency.outcome import Finished
from django_dblock.idempotency.stored_response import Answer

logger = logging.getLogger("django_dblock.idempotency")

REPLAYED = "Idempotent-Replayed"

_KEPT = (
    "Content-Type",
    "Content-Language",
    "Content-Encoding",  # without it the body means nothing
    "Location",
    "Content-Location",
    "ETag",
    "Link",
)
_TRANSIENT = frozenset({408, 425})
"""They say "the same again later": a stored one would say it for ever."""

_OF_THE_STACK = frozenset({401, 403, 429})
"""They are about the client and the hour, not about the request."""


def finished(
    response: Any, *, store_body: bool, store_5xx: bool, undo: bool = False, stack: bool = False
) -> Finished:
    """Decide what becomes of a response, and of what the view has written.

    Args:
        response: the view's.
        store_body: keep the body, too.
        store_5xx: keep server errors, too.
        undo: the view has ended by an error, which became this response.
        stack: it may have been answered before the view, by authentication or throttling.

    Raises:
        UnstorableResponse: it would have to be kept, and can't be.
    """

    def may_end_better(status: int) -> bool:
        transient = status in _TRANSIENT or (stack and status in _OF_THE_STACK)
        return transient or (status >= 500 and not store_5xx)  # noqa: PLR2004

    if not may_end_better(getattr(response, "status_code", 0)):
        response = rendered(response)  # a callback may put another in its place
    status = getattr(response, "status_code", 0)
    if may_end_better(status):
        return Finished(response, None, keep_effects=False, failed=True)
    answer = kept(response, store_body=store_body)
    keep_effects = not (undo or status >= 500)  # noqa: PLR2004
    return Finished(response, answer, keep_effects, failed=status >= 400)  # noqa: PLR2004


def rendered(response: Any) -> Any:
    """Render a template response if need be, and return what Django would send of it."""
    render = getattr(response, "render", None)
    return render() if callable(render) else response


def kept(response: Any, *, store_body: bool) -> dict[str, Any]:
    """Render the response if need be, and return what is kept of it.

    Raises:
        UnstorableResponse: it is a stream, too large, or no response at all; or a callback has put
            another in its place, of which the caller would not know.
    """
    if not isinstance(response, HttpResponseBase):
        raise UnstorableResponse(
            f"The view has returned an object of type {type(response).__name__}, not a response."
        )
    if getattr(response, "streaming", False):
        raise UnstorableResponse(
            "The answer is a stream, which can be given only once. Answer with a Location, and let "
            "the client GET the stream."
        )
    if rendered(response) is not response:
        raise UnstorableResponse(
            "A callback of the template response has put another answer in its place. Return that "
            "one from the view, or render() the response before complete()."
        )
    names = (*_KEPT, *conf.idempotency_headers)
    headers = {name: response.headers[name] for name in names if name in response.headers}
    answer = Answer(response.status_code, headers, response.content)
    return answer.parameters(store_body=store_body)


def replay(answer: Answer) -> HttpResponse:
    """Make the first answer again.

    A body that was dropped is not there: 204 in place of 2xx, and nothing that describes it. Only
    headers that would be kept today are given.
    """
    allowed = {name.lower() for name in (*_KEPT, *conf.idempotency_headers)}
    response = HttpResponse(answer.body, status=answer.status_code)
    del response.headers["Content-Type"]  # Django's default is not the first answer's
    for name, value in answer.headers.items():
        described = name.lower() in ("content-type", "content-encoding", "etag")
        if name.lower() in allowed and not (answer.dropped and described):
            response.headers[name] = value
    if answer.dropped and 200 <= answer.status_code < 300:  # noqa: PLR2004
        response.status_code = 204
    response.headers[REPLAYED] = "true"
    response.headers["Cache-Control"] = "no-store"
    return response


# What a client is told whose request was not run.


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
