"""The adapter of Django REST framework's requests for ``@idempotent``.

The module imports the framework only for a request of the framework.
"""

import json
import sys
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.datastructures import MultiValueDict

from django_dblock.core.problem import Problem, respond
from django_dblock.idempotency import responses
from django_dblock.idempotency.stored_response import StoredResponse


def is_request(request: Any) -> bool:
    """Return whether this is the framework's wrapper around Django's request."""
    module = sys.modules.get("rest_framework.request")
    return module is not None and isinstance(request, module.Request)


def is_view(cls: type) -> bool:
    """Return whether this is a class of views of the framework."""
    module = sys.modules.get("rest_framework.views")
    return module is not None and issubclass(cls, module.APIView)


class FrameworkRequest:
    """A request that REST framework, or a package on top of it such as adrf, has wrapped.

    Attributes:
        request: the request that the view gets.
        http: Django's own request.
    """

    def __init__(self, request: Any) -> None:
        self.request = request
        self.http: HttpRequest = request._request  # noqa: SLF001 - the framework's own way

    def user(self) -> Any:
        """Return the user that the view's authentication classes have found.

        ``auser()`` would return the user of Django's session, not the user of a token.
        """
        return self.request.user

    def parsed_body(self) -> Any:
        """Return the body as the framework has parsed it; None if it has not read the body yet.

        The data is in a list, so that a ``null`` differs from None; a form has all values of its
        fields.
        """
        from rest_framework.request import Empty

        data = self.request._full_data  # noqa: SLF001 - request.data would read the body
        if data is Empty:
            return None
        files = self.request._files  # noqa: SLF001
        if files and not hasattr(self.http, "_files"):
            # The framework does so for forms only. A raw upload would never be closed on a replay,
            # where the view does not run.
            plain: Any = self.http
            plain._post = self.request.POST  # noqa: SLF001 - what it sets together
            plain._files = MultiValueDict({name: [files[name]] for name in files})  # noqa: SLF001
        return [dict(data.lists()) if isinstance(data, MultiValueDict) else data]

    def finalised(self, response: Any) -> Any:
        """Let the view finalise the response, as ``dispatch()`` would, and only once."""
        context = self.request.parser_context
        return self._finaliser(self.request, response, *context["args"], **context["kwargs"])

    def response_to(self, error: Exception) -> Any:
        """Return the response that the view gives to a client's error; None to any other error.

        ``Http404`` and ``PermissionDenied`` are Django's own errors: for these, too, it is None.
        """
        from rest_framework.exceptions import APIException

        if not isinstance(error, APIException) or error.status_code >= 500:  # noqa: PLR2004
            return None
        return self._view.handle_exception(error)

    def server_error(self, error: Exception) -> Any:
        """Return the response that the view, or else Django, gives to a server error.

        To an error that either of them reports as a client's, it is None.
        """
        try:
            response = self._view.handle_exception(error)
        except Exception as unhandled:  # noqa: BLE001 - nearly always the same error
            return responses.server_error(self.http, unhandled)
        return response if response.status_code >= 500 else None  # noqa: PLR2004

    def replay(self, stored: StoredResponse) -> Any:
        """Return the stored response."""
        response = responses.replay(stored)
        return self._own(response, _data(response))

    def refusal(self, problem: Problem) -> Any:
        """Return the response to a request that was not run."""
        return self._own(respond(self.http, problem), problem.members())

    def _own(self, plain: HttpResponse, data: Any) -> Any:
        """Return a response as one of the framework's, rendered and finalised.

        The view may have wrapped the data of the first response when it was finalised. So its
        finaliser may add headers here, and the body stays as it is: it is what the data is of.
        """
        from rest_framework.response import Response

        response = Response(data, status=plain.status_code)
        response.content = plain.content
        del response.headers["Content-Type"]
        for name, value in plain.headers.items():
            response.headers[name] = value
        self.finalised(response)
        response.data = data
        # also if the view has replaced the response
        self._finaliser.done.append((response, response))
        return response

    @property
    def _view(self) -> Any:
        return self.request.parser_context["view"]

    @property
    def _finaliser(self) -> "_FinaliseOnce":
        """Put the guard before the view's finaliser; an instance of a view serves one request."""
        view = self._view
        if not isinstance(view.finalize_response, _FinaliseOnce):
            view.finalize_response = _FinaliseOnce(view.finalize_response)
        guard: _FinaliseOnce = view.finalize_response
        return guard


class _FinaliseOnce:
    """A view's ``finalize_response()`` that finalises no response a second time.

    ``@idempotent`` has to store what the client gets, so the view finalises its response while the
    transaction is open. ``dispatch()`` comes later and would do so again.

    Attributes:
        done: the responses that were finalised, each with its result.
    """

    def __init__(self, finalise: Any) -> None:
        self._finalise = finalise
        self.done: list[tuple[Any, Any]] = []

    def __call__(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        for given, result in reversed(self.done):
            if response is given or response is result:
                return result
        result = self._finalise(request, response, *args, **kwargs)
        self.done.append((response, result))
        return result


def _data(response: HttpResponse) -> Any:
    """Return what the body of a stored response says, for ``response.data``."""
    body = response.content
    if not body:
        return None
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            return json.loads(body)
        except ValueError:  # the view's own affair: it was sent so before
            pass
    elif not media_type.startswith("text/"):
        return body
    try:
        return body.decode(response.charset)
    except (LookupError, UnicodeDecodeError):
        return body
