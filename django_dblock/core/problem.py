"""The response to a refused request: RFC 9457 or a small page, by the header Accept.

The page is ``django_dblock/problem.html``; a project overrides it with a template of that name.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.exceptions import TemplateDoesNotExist
from django.template.loader import render_to_string
from django.utils.cache import patch_vary_headers
from django.utils.translation import get_language, get_language_bidi

PROBLEM_JSON = "application/problem+json"
_OFFERED = [PROBLEM_JSON, "application/json", "text/html"]


@dataclass(frozen=True, slots=True)
class Problem:
    """The problem that a response reports. It names no row, key or value; the error has those.

    Attributes:
        status: the HTTP status.
        code: the kind of the problem, for programs.
        detail: what happened and what to do, as text for the user.
        retry_after: seconds after which a retry may succeed; None if a retry can't succeed.
    """

    status: int
    code: str
    detail: str
    retry_after: int | None = None

    @property
    def title(self) -> str:
        """The standard phrase of the status."""
        return HTTPStatus(self.status).phrase

    def members(self) -> dict[str, Any]:
        """Return the members of the JSON object, with this package's member ``code``."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }


def respond(request: HttpRequest, problem: Problem) -> HttpResponse:
    """Return the response in the form that the client prefers; no cache may store it."""
    response = _page(problem) if request.get_preferred_type(_OFFERED) == "text/html" else None
    if response is None:
        response = JsonResponse(problem.members(), status=problem.status, content_type=PROBLEM_JSON)
    response["Cache-Control"] = "no-store"
    if problem.retry_after is not None:
        response["Retry-After"] = str(problem.retry_after)
    patch_vary_headers(response, ["Accept"])
    return response


def _page(problem: Problem) -> HttpResponse | None:
    """Return the rendered page; None if there is no template."""
    context = {
        "problem": problem,
        "language": get_language(),
        "direction": "rtl" if get_language_bidi() else "ltr",
    }
    try:
        page = render_to_string("django_dblock/problem.html", context)
    except TemplateDoesNotExist:  # a project without APP_DIRS: JSON is better than an error
        return None
    return HttpResponse(page, status=problem.status)
