"""Django REST framework: a response is rendered, and an error answered, inside the transaction.

Nothing here imports the framework unless the request is one of its own.
"""

import sys
from typing import Any


def is_request(request: Any) -> bool:
    """Whether it is the framework's wrapper around Django's request."""
    module = sys.modules.get("rest_framework.request")
    return module is not None and isinstance(request, module.Request)


def is_view(view: Any) -> bool:
    """Whether it is a class-based view of the framework, or an instance of one."""
    module = sys.modules.get("rest_framework.views")
    if module is None:
        return False
    return isinstance(view, module.APIView) or (
        isinstance(view, type) and issubclass(view, module.APIView)
    )


def parsed(request: Any) -> Any:
    """Return what the framework has made of a body that it has read already; else None."""
    data = request.__dict__.get("_full_data")
    return data if isinstance(data, dict | list | str) else None


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
