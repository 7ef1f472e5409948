"""From a request to its identity, and from an outcome to its answer: HTTP's half of the work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.encoding import escape_uri_path

from django_dblock.core.problem import respond
from django_dblock.exceptions import (
    IdempotencyError,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    UnstorableResponse,
)
from django_dblock.idempotency import (
    fingerprint,
    responses,
    rest_framework,
    store,
)
from django_dblock.idempotency.identity import (
    HEADER,
    Asked,
    Identity,
    parse,
    scope_from_user,
    scope_from_value,
)
from django_dblock.idempotency.options import Options
from django_dblock.idempotency.outcome import Done, Finished, Outcome, Replayed
from django_dblock.idempotency.responses import idempotency_problem


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a decorated view asks for, about HTTP; see :func:`django_dblock.idempotent`."""

    options: Options
    name: str
    key: Callable[[Any], str | None] | None
    scope: Callable[[Any], Any] | None
    fingerprint: Callable[[Any], Any] | None
    required: bool
    strict: bool
    methods: frozenset[str]
    store_5xx: bool

    def key_of(self, request: Any) -> str | None:
        """Return the client's key; None where it sent none, and needs none.

        Raises:
            IdempotencyKeyMissing, IdempotencyKeyInvalid: see there.
        """
        value = request.META.get("HTTP_IDEMPOTENCY_KEY")
        strict = self.strict
        if value is None and self.key is not None:
            value, strict = self.key(request), False
        if value is None:
            if self.required:
                raise IdempotencyKeyMissing(
                    f"{self.name} needs an {HEADER} header. Send a new key, a UUID for example, "
                    f"with each new request, and the same with each retry."
                )
            return None
        try:
            return parse(str(value), strict=strict)
        except ValueError as error:
            raise IdempotencyKeyInvalid(f"The {HEADER} header is not valid: {error}.") from error

    def identity(self, key: str, whose: str) -> Identity:
        """Return the identity of the request."""
        return Identity(whose, key, store.alias_for(self.options.using))

    def scope_of(self, request: Any) -> str | None:
        """Return whose request it is, if the view's ``scope=`` says; else None."""
        return None if self.scope is None else self.named_scope(self.scope(request))

    def named_scope(self, value: Any) -> str:
        """Return the scope that ``scope=`` returned."""
        return scope_from_value(value, self.name)

    def scope_of_user(self, user: Any) -> str:
        """Return the scope of a logged-in client."""
        return scope_from_user(user, self.name)

    def asked(self, request: Any) -> Asked:
        """Return what is asked for."""
        framework = rest_framework.is_request(request)
        plain: HttpRequest = request._request if framework else request  # noqa: SLF001 - its way
        if self.fingerprint is not None:
            found = fingerprint.of_value(plain, self.fingerprint(request))
        else:
            found = fingerprint.of_request(
                plain, rest_framework.parsed(request) if framework else None
            )
        path = escape_uri_path(plain.path)
        return Asked(found, fingerprint.VERSION, str(plain.method)[:16], path)

    def finished(self, request: Any, response: Any) -> Finished:
        """Return what becomes of the view's response."""
        try:
            if rest_framework.is_request(request):
                response = rest_framework.rendered(request, response)
            return self._decided(response)
        except UnstorableResponse as error:
            return self.unstorable(request, error)

    def kept(self, request: Any, response: Any) -> dict[str, Any]:
        """Return what is kept of a response that a view completes with by itself.

        Raises:
            UnstorableResponse: see there.
        """
        if rest_framework.is_request(request):
            response = rest_framework.rendered(request, response)
        return responses.kept(response, store_body=self.options.store_body)

    def failed(self, request: Any, error: Exception) -> Finished | None:
        """Return what becomes of a view's error; None where it goes on as it is."""
        try:
            return self._failed(request, error)
        except UnstorableResponse as unstorable:
            return self.unstorable(request, unstorable)

    def _failed(self, request: Any, error: Exception) -> Finished | None:
        if isinstance(error, UnstorableResponse):
            raise error
        if rest_framework.is_request(request):
            response = rest_framework.answered(request, error)
            if response is not None:
                return self._decided(response, undo=True, stack=True)
        if self.store_5xx:
            from django.core.handlers.exception import response_for_exception

            response = response_for_exception(django_request(request), error)
            if response.status_code >= 500:  # noqa: PLR2004
                return self._decided(response, undo=True)
        return None

    def _decided(self, response: Any, *, undo: bool = False, stack: bool = False) -> Finished:
        return responses.finished(
            response,
            store_body=self.options.store_body,
            store_5xx=self.store_5xx,
            undo=undo,
            stack=stack,
        )

    def unstorable(self, request: Any, error: UnstorableResponse) -> Finished:
        """Tell the log, and the client that nothing was done."""
        responses.logger.error(
            "%s %s: %s Everything was rolled back.",
            request.method,
            escape_uri_path(request.path),
            error,
            extra={"status_code": 500, "request": django_request(request), "error": error},
        )
        response = respond(django_request(request), idempotency_problem(error))
        return Finished(response, None, keep_effects=False, failed=True)


def django_request(request: Any) -> HttpRequest:
    """Return Django's own request."""
    found: HttpRequest = request._request if rest_framework.is_request(request) else request  # noqa: SLF001
    return found


def answer(request: Any, outcome: Outcome) -> Any:
    """Return the response to an outcome."""
    if isinstance(outcome, Done):
        return outcome.result
    if isinstance(outcome, Replayed):
        return responses.replay(outcome.answer)
    return refuse(request, outcome.error)


def refuse(request: Any, error: IdempotencyError) -> HttpResponse:
    """Return the response to a request that was not run."""
    return respond(django_request(request), idempotency_problem(error))
