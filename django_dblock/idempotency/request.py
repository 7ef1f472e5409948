"""The HTTP side of ``@idempotent``: the identity of a request, and the response to an outcome."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.utils.encoding import escape_uri_path

from django_dblock.core.problem import Problem, respond
from django_dblock.exceptions import (
    IdempotencyError,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    UnstorableResponse,
)
from django_dblock.idempotency import fingerprint, responses, rest_framework, store
from django_dblock.idempotency.identity import (
    Identity,
    InvalidKey,
    RequestFingerprint,
    parse,
    scope_from_user,
    scope_from_value,
)
from django_dblock.idempotency.options import Options
from django_dblock.idempotency.outcome import Done, Finished, Outcome, Replayed
from django_dblock.idempotency.responses import idempotency_problem
from django_dblock.idempotency.stored_response import StoredResponse

# RFC 9110, 5.1, without the underscore: servers drop it, as WSGI takes it for a hyphen.
_HEADER = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+")


class DjangoRequest:
    """Django's own request, as :class:`ViewConfig` needs it.

    :class:`~django_dblock.idempotency.rest_framework.FrameworkRequest` is the other adapter.

    Attributes:
        request: the request that the view gets.
        http: the same request.
    """

    def __init__(self, request: HttpRequest) -> None:
        self.request = self.http = request

    def user(self) -> Any:
        """Return the user that a middleware has set; None without such a middleware."""
        return getattr(self.request, "user", None)

    def parsed_body(self) -> Any:
        """Return None: only the view parses the body."""
        return None

    def finalised(self, response: Any) -> Any:
        """Return the response: a plain view has no hook that comes after it."""
        return response

    def response_to(self, error: Exception) -> Any:  # noqa: ARG002 - the other adapter's
        """Return None: Django turns errors into responses outside of the view."""
        return None

    def server_error(self, error: Exception) -> Any:
        """Return Django's response to a server error; None to a client's error."""
        return responses.server_error(self.http, error)

    def replay(self, stored: StoredResponse) -> HttpResponse:
        """Return the stored response."""
        return responses.replay(stored)

    def refusal(self, problem: Problem) -> HttpResponse:
        """Return the response to a request that was not run."""
        return respond(self.http, problem)


class AsyncDjangoRequest(DjangoRequest):
    """Django's request in an async view, which gets its user by ``await request.auser()``."""

    def user(self) -> Any:
        """Return the user, loaded so that the view's own ``auser()`` finds it loaded."""
        auser = getattr(self.request, "auser", None)
        return super().user() if auser is None else async_to_sync(auser)()


Adapter = DjangoRequest | rest_framework.FrameworkRequest


def adapter_of(candidate: Any, *, asynchronous: bool) -> Adapter | None:
    """Return the adapter of a request; None if the object is not a request."""
    if isinstance(candidate, HttpRequest):
        return AsyncDjangoRequest(candidate) if asynchronous else DjangoRequest(candidate)
    if rest_framework.is_request(candidate):
        return rest_framework.FrameworkRequest(candidate)
    return None


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """The HTTP options of a decorated view; :func:`django_dblock.idempotent` describes them.

    All methods run in a thread; coroutine functions among the options are awaited in the view's
    loop.
    """

    options: Options
    name: str
    key: Callable[[Any], Any] | None
    header: str | None
    scope: Callable[[Any], Any] | None
    fingerprint: Callable[[Any], Any] | None
    keep: Callable[[Any], Any] | None
    required: bool
    strict: bool
    methods: frozenset[str]
    store_5xx: bool

    def identify(self, adapter: Adapter) -> tuple[Identity, RequestFingerprint] | None:
        """Return the identity and fingerprint of a request; None if it has no key and needs none.

        Raises:
            IdempotencyKeyMissing: the request has no key, and the view requires one.
            IdempotencyKeyInvalid: the key is not one key.
            ImproperlyConfigured: the owner of the key is unknown: the client is anonymous and there
                is no ``scope=``, or ``scope=`` identifies no client.
        """
        key = self._key(adapter)
        if key is None:
            return None
        identity = Identity(self._scope(adapter), key, store.alias_for(self.options.using))
        return identity, self._asked(adapter)

    def _key(self, adapter: Adapter) -> str | None:
        # key= comes before the header, because a client may add any header to a signed event.
        if self.key is not None:
            value = _awaited(self.key(adapter.request))
            if value is not None:
                return self._parsed(str(value), None, strict=False)
        if self.header is not None:
            value = adapter.http.META.get(_meta_name(self.header))
            if value is not None:
                return self._parsed(value, self.header, strict=self.strict)
        if not self.required:
            return None
        places = [] if self.key is None else ["key= returned None"]
        if self.header is not None:
            places.append(f"there is no {self.header} header")
        raise IdempotencyKeyMissing(
            f"{self.name} needs an idempotency key: {' and '.join(places)}. Send a new key, a UUID "
            f"for example, with each new request, and the same key with each retry.",
            header=self.header,
        )

    def _parsed(self, value: str, header: str | None, *, strict: bool) -> str:
        try:
            return parse(value, strict=strict)
        except InvalidKey as error:
            source = "what key= returned" if header is None else f"the {header} header"
            raise IdempotencyKeyInvalid(
                f"{self.name}: {source} is no idempotency key: {error}.",
                header=header,
                reason=error.reason,
            ) from error

    def _scope(self, adapter: Adapter) -> str:
        if self.scope is None:
            return scope_from_user(adapter.user(), self.name)
        return scope_from_value(_awaited(self.scope(adapter.request)), self.name)

    def _asked(self, adapter: Adapter) -> RequestFingerprint:
        request = adapter.http
        if self.fingerprint is not None:
            value = _awaited(self.fingerprint(adapter.request))
            found = fingerprint.of_value(request, value)
        else:
            found = fingerprint.of_request(request, adapter.parsed_body())
        path = escape_uri_path(request.path)
        return RequestFingerprint(found, fingerprint.VERSION, str(request.method)[:16], path)

    def finished(self, adapter: Adapter, response: Any, *, undo: bool = False) -> Finished:
        """Return how a run ends with a response: what is stored, and whether effects are kept.

        Args:
            adapter: the request's adapter.
            response: the view's response.
            undo: whether the view has raised an error, which became this response.
        """
        try:
            return self._finished(adapter, response, undo=undo)
        except UnstorableResponse as error:
            return self._unstorable(adapter, error)

    def _finished(self, adapter: Adapter, response: Any, *, undo: bool) -> Finished:
        if not responses.may_be_stored(response, store_5xx=self.store_5xx):
            return responses.not_stored(response)
        # a finaliser or a callback may change the response, or replace it
        response = responses.rendered(adapter.finalised(response))
        if not responses.may_be_stored(response, store_5xx=self.store_5xx):
            return responses.not_stored(response)
        unwanted = (
            self.keep is not None
            and isinstance(response, HttpResponse)  # other objects are refused below
            and not _awaited(self.keep(response))
        )
        if unwanted:
            return responses.not_stored(response)
        return responses.stored(response, store_body=self.options.store_body, undo=undo)

    def failed(self, adapter: Adapter, error: Exception) -> Finished | None:
        """Return how a run ends with an error of the view; None if the error is passed on."""
        if isinstance(error, UnstorableResponse):
            return self._unstorable(adapter, error)
        response = adapter.response_to(error)
        if response is None and self.store_5xx and not responses.is_temporary(error):
            response = adapter.server_error(error)
        if response is None:
            return None
        return self.finished(adapter, response, undo=True)

    def kept(self, adapter: Adapter, response: Any) -> dict[str, Any]:
        """Return the stored part of a response that the view has passed to ``complete()``.

        ``keep=`` is not called, because the view has decided.

        Raises:
            UnstorableResponse: the response can't be stored.
        """
        return responses.kept(adapter.finalised(response), store_body=self.options.store_body)

    def _unstorable(self, adapter: Adapter, error: UnstorableResponse) -> Finished:
        """Log why the response is not stored; return a response that describes the effects."""
        request = adapter.http
        committed = self.options.mode == "lease"  # the view's own transactions have decided
        responses.logger.error(
            "%s %s: %s %s",
            request.method,
            escape_uri_path(request.path),
            error,
            "What the view has committed stays." if committed else "Everything was rolled back.",
            extra={"status_code": 500, "request": request, "error": error},
        )
        problem = idempotency_problem(error, committed=committed)
        return responses.not_stored(adapter.refusal(problem))


def checked_header(name: Any) -> str | None:
    """Return the ``header=`` of a view.

    Raises:
        ValueError: the name is not that of a header.
    """
    if name is None:
        return None
    if not isinstance(name, str) or not _HEADER.fullmatch(name):
        raise ValueError(
            f"header={name!r} is not the name of a header: letters, digits and hyphens, as in "
            f"'Idempotency-Key'; or None if only key= gives the key."
        )
    return name


def response_of(adapter: Adapter, outcome: Outcome) -> Any:
    """Return the response to an outcome."""
    if isinstance(outcome, Done):
        return outcome.result
    if isinstance(outcome, Replayed):
        return adapter.replay(outcome.answer)
    return refused(adapter, outcome.error)


def refused(adapter: Adapter, error: IdempotencyError) -> Any:
    """Return the response to a request that was not run, or whose effects were undone."""
    return adapter.refusal(idempotency_problem(error))


def _awaited(value: Any) -> Any:
    """Return the result of an option, which an async view may give as a coroutine function."""
    if isinstance(value, str) or not isawaitable(value):  # a text nearly always
        return value
    return async_to_sync(_await)(value)


async def _await(value: Any) -> Any:
    return await value


def _meta_name(header: str) -> str:
    """Return the key of a header in ``request.META``."""
    name = header.upper().replace("-", "_")
    return name if name in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{name}"
