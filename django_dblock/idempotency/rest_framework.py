"""Django REST framework: a response is rendered, and an error answered, inside the transaction.

Nothing here imports the framework unless the request is one of its own.
"""

import sys
from typing import Any

from django.conf import settings
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
    """Return what the framework has made of a body that is not to be had as bytes; else None.

    That is one which it has read already, or which is larger than what Django reads into memory.
    In a list, so that ``null`` is something; a form with all values of its fields.

    Raises:
        rest_framework.exceptions.APIException: what the framework says to such a body.
    """
    from rest_framework.request import Empty

    plain = request._request  # noqa: SLF001 - its way
    if plain.content_type == "multipart/form-data":
        parse = plain.method != "POST"  # else nobody does, and hands it to Django's request
    else:
        parse = _is_too_large(plain)
    if parse:
        _ = request.data
        _hand_over(request, plain)
    data = request._full_data  # noqa: SLF001 - request.data would read the body
    if data is Empty:
        return None
    return [dict(data.lists()) if isinstance(data, MultiValueDict) else data]


def _is_too_large(plain: Any) -> bool:
    """Whether Django would refuse to read the body at once, as the framework's parsers do not."""
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    length = int(plain.META.get("CONTENT_LENGTH") or 0)
    return limit is not None and length > limit and not hasattr(plain, "_body")


def _hand_over(request: Any, plain: Any) -> None:
    """Let Django close the files at the end of the request, as the framework does for forms."""
    files = request._files  # noqa: SLF001 - its way
    if files and not hasattr(plain, "_files"):
        plain._post = request.POST  # noqa: SLF001 - what it sets together
        plain._files = MultiValueDict({name: [files[name]] for name in files})  # noqa: SLF001


def rendered(request: Any, response: Any) -> Any:
    """Let the view finish the response as it would after the method, and render it."""
    context = request.parser_context
    view = context["view"]
    response = view.finalize_response(request, response, *context["args"], **context["kwargs"])
    render = getattr(response, "render", None)
    return render() if callable(render) else response


def answered(request: Any, error: Exception) -> Any:
    """Return the response that the view makes of a client's error; None for any other error.

    Not for what Django itself has a name for: ``Http404``, ``PermissionDenied``.
    """
    from rest_framework.exceptions import APIException

    if not isinstance(error, APIException) or error.status_code >= 500:  # noqa: PLR2004
        return None
    response = request.parser_context["view"].handle_exception(error)
    return rendered(request, response)
