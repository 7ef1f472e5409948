"""Django REST framework: a response is rendered, and an error answered, inside the transaction.

Nothing here imports the framework unless the request is one of its own.
"""

import sys
from typing import Any

from django.utils.datastructures import MultiValueDict


def is_request(request: Any) -> bool:
    """Whether it is the framework's wrapper around Django's request."""
    module = sys.modules.get("rest_framework.request")
    return module is not None and isinstance(request, module.Request)


def is_view(cls: type) -> bool:
    """Whether it is a class of views of the framework."""
    module = sys.modules.get("rest_framework.views")
    return module is not None and issubclass(cls, module.APIView)


def parsed(request: Any) -> Any:
    """Return what the framework has made of a body that it has read already; else None.

    In a list, so that ``null`` is something; a form with all values of its fields.
    """
    from rest_framework.request import Empty

    plain = request._request  # noqa: SLF001 - its way
    if plain.content_type == "multipart/form-data" and plain.method != "POST":
        _ = request.data  # else nobody parses it; the framework hands it to Django's request
    data = request._full_data  # noqa: SLF001 - request.data would read the body
    if data is Empty:
        return None
    return [dict(data.lists()) if isinstance(data, MultiValueDict) else data]


def rendered(request: Any, response: Any) -> Any:
    """Let the view finish the response as it would after the method, and render it."""
    context = request.parser_context
    view = context["view"]
    response = view.finalize_response(request, response, *context["args"], **context["kwargs"])
    if callable(getattr(response, "render", None)):
        response.render()
    return response


def answered(request: Any, error: Exception) -> Any:
    """Return the response that the view makes of a client's error; None for any other error.

    Not for what Django itself has a name for: ``Http404``, ``PermissionDenied``.
    """
    from rest_framework.exceptions import APIException

    if not isinstance(error, APIException) or error.status_code >= 500:  # noqa: PLR2004
        return None
    response = request.parser_context["view"].handle_exception(error)
    return rendered(request, response)
