"""Which responses are stored, which of their parts, and how they are replayed.

=========================================  ============  ====================================
the view                                   its effects   its response
=========================================  ============  ====================================
returns 2xx, 3xx, 4xx                      committed     stored
returns 401, 403: authorisation            rolled back   not stored
returns 412, 428: a precondition           rolled back   not stored
returns 408, 423, 425, 429, or an error    rolled back   not stored; ``Retry-After`` is sent
with ``Retry-After``: "come back later"
returns another 5xx                        rolled back   not stored; stored with ``store_5xx``
returns what ``keep=`` refuses             rolled back   not stored
returns what can't be stored               rolled back   not stored; the client gets 500
raises a 4xx of REST framework             rolled back   stored, but for those named above
raises Django's ``Http404`` or             rolled back   not stored
``PermissionDenied``
raises an error of a conflict: a busy      rolled back   not stored
lock, a changed row, a deadlock
raises anything else                       rolled back   not stored; stored with ``store_5xx``
=========================================  ============  ====================================

"Committed" and "rolled back" apply to atomic mode. In lease mode the view's own transactions
decide, and "not stored" gives the claim back, so that the next retry runs the view again. If this
run or one before it has begun a step or derived a key, another system may know the key: then the
key stays bound to the request, and is refused with another body until its retention ends.

Sources: RFC 9110, 8 "Representation Data and Metadata", 10.2.3 "Retry-After", 13.2 "Evaluation of
Preconditions", 15.5 and 15.6; RFC 6585, 3 (428) and 4 (429); RFC 4918, 11.3 (423); RFC 8470, 5.2
(425).
"""

import logging
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string
from django.utils.translation import get_language, gettext
from django.utils.translation import gettext_lazy as _

from django_dblock.conf import conf
from django_dblock.core.problem import Problem
from django_dblock.exceptions import (
    IdempotencyError,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    LockLost,
    LockTimeout,
    UnstorableResponse,
)
from django_dblock.idempotency.outcome import Finished
from django_dblock.idempotency.stored_response import StoredResponse

logger = logging.getLogger("django_dblock.idempotency")

REPLAYED = "Idempotent-Replayed"

_REPRESENTATION = (
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-Disposition",  # RFC 6266
    "Content-Digest",  # RFC 9530
    "Repr-Digest",
    "ETag",
    "Last-Modified",
)
"""Headers that describe the body (RFC 9110, 8): without the body they say nothing."""

_DESCRIBING = frozenset(name.lower() for name in _REPRESENTATION)

_KEPT = (*_REPRESENTATION, "Content-Location", "Location", "Link", "Retry-After")

_SENDS_A_FILE = frozenset({"x-accel-redirect", "x-sendfile", "x-lighttpd-send-file"})
"""Headers for which the web server replaces the body by a file, in lower case: nginx and Caddy,
Apache's mod_xsendfile, lighttpd."""

_COME_BACK_LATER = frozenset({408, 423, 425, 429})
"""Statuses that are about the moment: a stored one would say the same until the key expires."""

_PRECONDITION = frozenset({412, 428})
"""Statuses that are about a header and the state of the row, neither of which the key is for. The
client reads the row and repeats its request with the row's new tag."""

_ABOUT_THE_CLIENT = frozenset({401, 403})
"""Statuses that are about who asks. Authentication below the decorator may have given
them, and a retry with the right credentials must not get them again."""

_NOT_STORED = _COME_BACK_LATER | _PRECONDITION | _ABOUT_THE_CLIENT


def may_be_stored(response: Any, *, store_5xx: bool) -> bool:
    """Return whether a response is about the request, not about the moment or the client."""
    status = getattr(response, "status_code", 0)
    if status in _NOT_STORED:
        return False
    if status >= 400 and "Retry-After" in response.headers:  # noqa: PLR2004
        return False  # a success or a redirect may say when to look again, and is stored
    return bool(status < 500 or store_5xx)  # noqa: PLR2004


def not_stored(response: Any) -> Finished:
    """Return the end of a run whose effects are undone and whose key is free again."""
    return Finished(response, None, keep_effects=False, failed=True)


def stored(response: Any, *, store_body: bool, undo: bool) -> Finished:
    """Return the end of a run whose response is stored.

    Args:
        response: the view's rendered response.
        store_body: whether to store the body as well.
        undo: whether the view has raised an error, which became this response.

    Raises:
        UnstorableResponse: the response can't be stored.
    """
    status = getattr(response, "status_code", 0)
    answer = kept(response, store_body=store_body)
    keep_effects = not (undo or status >= 500)  # noqa: PLR2004
    failed = status >= 400  # noqa: PLR2004
    return Finished(response, answer, keep_effects, failed, returned=response)


def server_error(request: HttpRequest, error: Exception) -> Any:
    """Return Django's response to a server error; None to Http404 and other errors of a client."""
    from django.core.handlers.exception import response_for_exception

    response = response_for_exception(request, error)
    return response if response.status_code >= 500 else None  # noqa: PLR2004


def is_temporary(error: Exception) -> bool:
    """Return whether an error is about the moment; ConflictMiddleware responds to such errors."""
    from django_dblock.versioning.retry import is_conflict
    from django_dblock.versioning.web.preconditions import PreconditionFailed

    temporary = LockTimeout | LockLost | IdempotencyError | PreconditionFailed
    return isinstance(error, temporary) or is_conflict(error)


def rendered(response: Any) -> Any:
    """Render a template response; return the response that Django would send."""
    render = getattr(response, "render", None)
    return render() if callable(render) else response


def kept(response: Any, *, store_body: bool) -> dict[str, Any]:
    """Render the response, and return its stored part as parameters of the SQL statements.

    Raises:
        UnstorableResponse: the response is a stream, too large, or not a response; or the web
            server replaces its body by a file; or a callback of a template response has returned
            another response, which the caller would not know.
    """
    if not isinstance(response, HttpResponseBase):
        raise UnstorableResponse(
            f"The view has returned an object of type {type(response).__name__}, not a response."
        )
    if getattr(response, "streaming", False):
        raise UnstorableResponse(
            "The response is a stream, which can be sent only once. Respond with a Location and "
            "let the client GET the stream."
        )
    if rendered(response) is not response:
        raise UnstorableResponse(
            "A callback of the template response has returned another response. Return that one "
            "from the view, or render() the response before complete()."
        )
    names = _stored_names(conf.idempotency_headers)
    headers = {}
    for name, value in response.headers.items():
        if (kept_name := names.get(name.lower())) is not None:
            headers[kept_name] = value
        elif store_body and name.lower() in _SENDS_A_FILE:
            raise UnstorableResponse(
                f"The web server sends a file instead of this response's body, and "
                f"DBLOCK_IDEMPOTENCY_HEADERS does not keep its {name}, so a retry would get the "
                f"body without the file. Respond with a Location and let the client GET the file, "
                f"name the header in the setting, or don't store the body: store_body=False."
            )
    if (language := _language_of_the_middleware()) is not None:
        headers.setdefault("Content-Language", language)
    answer = StoredResponse(response.status_code, headers, response.content)
    return answer.parameters(store_body=store_body)


@lru_cache
def _stored_names(more: tuple[str, ...]) -> dict[str, str]:
    """Return the names of the headers that are stored, by their names in lower case."""
    return {name.lower(): name for name in (*_KEPT, *more)}


def _language_of_the_middleware() -> str | None:
    """Return the language that Django's LocaleMiddleware will name on this response.

    LocaleMiddleware does so after this decorator. Otherwise a client that repeats the request in
    another language would be told that the stored text was in that language.
    """
    if settings.USE_I18N and _has_locale_middleware(tuple(settings.MIDDLEWARE)):
        return get_language()
    return None


@lru_cache
def _has_locale_middleware(middleware: tuple[str, ...]) -> bool:
    from django.middleware.locale import LocaleMiddleware  # it pulls in the URL resolver

    found = map(import_string, middleware)
    return any(isinstance(each, type) and issubclass(each, LocaleMiddleware) for each in found)


def replay(answer: StoredResponse) -> HttpResponse:
    """Return the stored response to a repeated request.

    A response whose body was dropped has no header that describes the body, and a 2xx becomes 204.
    Headers that are no longer allowed by ``DBLOCK_IDEMPOTENCY_HEADERS`` are left out.
    """
    allowed = _stored_names(conf.idempotency_headers)
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name.lower() in allowed and not (answer.dropped and name.lower() in _DESCRIBING)
    }
    headers |= {REPLAYED: "true", "Cache-Control": "no-store"}
    empty = answer.dropped and 200 <= answer.status_code < 300  # noqa: PLR2004
    response = HttpResponse(
        answer.body, status=204 if empty else answer.status_code, headers=headers
    )
    if "Content-Type" not in headers:
        del response.headers["Content-Type"]  # Django's default
    return response


# The problem details of a request that was not run; the keys are the codes of the errors.
_PROBLEMS = {
    "key_missing": (400, _("%(source)s is missing. Send a new key with each new request.")),
    "key_invalid": (400, _("%(source)s is not one key.")),  # each reason has a text of its own
    "key_reused": (
        422,
        _("This idempotency key was used for another request. Use a new key."),
    ),
    "in_progress": (
        409,
        _("The same request is being processed now. Try again in a moment."),
    ),
    "lease_lost": (
        409,
        _("This request took too long and is being processed again. Try again in a moment."),
    ),
    "abandoned": (
        409,
        _(
            "This request was started, and its outcome is unknown. An operator has to look at it. "
            "Don't send it with another key."
        ),
    ),
    "too_many_keys": (
        429,
        _("There are too many requests with an idempotency key. Try again later."),
    ),
    "not_replicated": (
        503,
        _("The request was processed, but it is not safely stored yet. Repeat it in a moment."),
    ),
    "damaged": (500, _("The stored response can't be read. An operator has to look at it.")),
    "unstorable": (500, _("The response could not be kept, so nothing was done.")),
}

_REASONS = {
    "empty": _("%(source)s is empty."),
    "too_long": _("%(source)s is longer than 255 characters."),
    "unterminated": _("%(source)s has an opening quote and no closing quote."),
    "unquoted": _("%(source)s must be one string in double quotes."),
    "not_one_key": _(
        "%(source)s is not one key: 1 to 255 printable ASCII characters without spaces, commas and "
        "semicolons, or one string in double quotes."
    ),
}


_UNSTORABLE_IN_LEASE_MODE = _(
    "The response could not be kept, and some effects of the request may stay. Find out which "
    "before you send the request again."
)


def idempotency_problem(error: IdempotencyError, *, committed: bool = False) -> Problem:
    """Return the problem to report to the client.

    Args:
        error: the error of the request.
        committed: whether the view may have committed effects before an UnstorableResponse.
    """
    status, detail = _PROBLEMS[error.code]
    if isinstance(error, IdempotencyKeyInvalid):
        detail = _REASONS[error.reason]
    elif isinstance(error, UnstorableResponse) and committed:
        detail = _UNSTORABLE_IN_LEASE_MODE
    text = str(detail)
    if isinstance(error, IdempotencyKeyMissing | IdempotencyKeyInvalid):
        text %= {"source": _source(error.header)}
    elif isinstance(error, UnstorableResponse) and settings.DEBUG:
        text = f"{text} {error}"  # the error may contain parts of the view's response
    retry_after = getattr(error, "retry_after", 1 if error.code == "lease_lost" else None)
    return Problem(status, error.code, text, retry_after=retry_after)


def _source(header: str | None) -> str:
    """Return the subject of a sentence about a key."""
    if header is None:
        return gettext("The idempotency key of this request")
    return gettext("The %(header)s header") % {"header": header}
