"""Errors of requests with an idempotency key: not run, or the response can't be stored."""

from django_dblock.exceptions.base import DblockError


class IdempotencyError(DblockError):
    """A request with an idempotency key was not run, or not to its end.

    The class itself is raised for a request that has its response already: ``complete()``,
    ``guard()`` or a step came after ``complete()``, or there is nothing for an operator to resolve.

    Attributes:
        scope: who owns the key; empty if the error came before the scope was known.
        key: the beginning of the key; never the whole key.
        using: the database alias.
        code: the kind of problem, for programs; the response to the client has the same code.
    """

    code = "idempotency_error"

    def __init__(self, message: str, *, scope: str = "", key: str = "", using: str = "") -> None:
        super().__init__(message)
        self.scope = scope
        self.key = key
        self.using = using


class IdempotencyKeyMissing(IdempotencyError):
    """The request has no idempotency key, and the view requires one. Nothing was run.

    The response is a 400 that names the header. The client sends a new key with each new request,
    and the same key with each retry (draft-ietf-httpapi-idempotency-key-header-07, "Error
    Scenarios").

    Attributes:
        header: the name of the header in which the key is expected; None if it is not a header.
    """

    code = "key_missing"

    def __init__(
        self,
        message: str,
        *,
        scope: str = "",
        key: str = "",
        using: str = "",
        header: str | None = "Idempotency-Key",
    ) -> None:
        super().__init__(message, scope=scope, key=key, using=using)
        self.header = header


class IdempotencyKeyInvalid(IdempotencyError):
    """The idempotency key that the request carries is not one key. Nothing was run.

    The response is a 400 that says what is wrong. The client sends 1 to 255 printable ASCII
    characters, bare or in double quotes (RFC 8941, 3.3.3).

    Attributes:
        header: the name of the header that carried the key; None if it was not a header.
        reason: what is wrong: ``"empty"``, ``"too_long"`` (over 255 characters), ``"unterminated"``
            (no closing quote), ``"unquoted"`` (the view takes quoted keys only) or
            ``"not_one_key"`` (anything else: spaces, control characters, several values).
    """

    code = "key_invalid"

    def __init__(  # noqa: PLR0913 - all but the first by name
        self,
        message: str,
        *,
        scope: str = "",
        key: str = "",
        using: str = "",
        header: str | None = "Idempotency-Key",
        reason: str = "not_one_key",
    ) -> None:
        super().__init__(message, scope=scope, key=key, using=using)
        self.header = header
        self.reason = reason


class IdempotencyKeyReused(IdempotencyError):
    """The key was used for a different request. Nothing was run.

    The response is a 422. A retry gets the same. The client uses a new key for a new request, or
    repeats the first request exactly as it was (draft-ietf-httpapi-idempotency-key-header-07,
    "Error Scenarios").
    """

    code = "key_reused"


class IdempotencyInProgress(IdempotencyError):
    """The same request is being processed by another run. Nothing was run.

    The response is a 409 with ``Retry-After``. The client retries with the same key; with ``wait=``
    the server waits instead (draft-ietf-httpapi-idempotency-key-header-07, "Error Scenarios").

    Attributes:
        retry_after: the whole seconds to wait before a retry.
    """

    code = "in_progress"

    def __init__(
        self, message: str, *, scope: str = "", key: str = "", using: str = "", retry_after: int = 1
    ) -> None:
        super().__init__(message, scope=scope, key=key, using=using)
        self.retry_after = retry_after


class IdempotencyAbandoned(IdempotencyError):
    """The run of the request has died, and an operator has to look. Nothing was run.

    Raised with ``on_abandoned="refuse"``. The response is a 409 until an operator has resolved the
    request: by ``manage.py dblock release --request`` or
    :func:`~django_dblock.resolve_idempotency_key`.
    """

    code = "abandoned"


class TooManyIdempotencyKeys(IdempotencyError):
    """The scope has as many live keys as ``DBLOCK_IDEMPOTENCY_MAX_KEYS`` allows. Nothing was run.

    The response is a 429. New keys are accepted again when some keys have expired.
    """

    code = "too_many_keys"


class IdempotencyLeaseLost(IdempotencyError):
    """The run took longer than its lease, and another run may have taken the request over.

    Don't catch this error, so that the transaction that raises it is rolled back. The client gets
    the other run's response, or a 409. Use a longer ``lease=``, or more steps.

    Attributes:
        token: the fencing token of the run.
    """

    code = "lease_lost"

    def __init__(
        self, message: str, *, scope: str = "", key: str = "", using: str = "", token: int = 0
    ) -> None:
        super().__init__(message, scope=scope, key=key, using=using)
        self.token = token


class IdempotencyNotReplicated(IdempotencyError):
    """The wait of a commit for the synchronous standby was cut short, so a failover may lose it.

    The commit holds on this server: the effects and the response of the request, or its claim or
    step. The response is 503 with ``Retry-After``. The client repeats the request with the same
    key, and gets the stored response once a standby has confirmed it. If a failover has lost the
    request, it runs again.

    Attributes:
        retry_after: the seconds after which the client should repeat the request.
    """

    code = "not_replicated"
    retry_after = 1


class DamagedAnswer(IdempotencyError):
    """A stored response, or the result of a step, can't be read. Nothing was run.

    Either something other than this package has written the row, or ``DBLOCK_IDEMPOTENCY_CIPHER``
    lacks the key that the data was encrypted with; then give the cipher that key again. Otherwise
    an operator has to look at the row.
    """

    code = "damaged"


class UnstorableResponse(IdempotencyError):
    """The response can't be stored, so a retry could not get it.

    In atomic mode the effects were rolled back. In lease mode what the view has committed stays,
    and the next retry runs the view again. The client gets a 500. The log of
    ``django_dblock.idempotency`` says why, and with ``DEBUG`` the response does. The view has
    returned

    - a stream, or something that is not a response,
    - a body longer than ``DBLOCK_IDEMPOTENCY_MAX_BODY``: ``store_body=False`` stores none,
    - a header with a character that can't be sent,
    - a header that makes the web server send a file, such as ``X-Accel-Redirect``, unless
      ``DBLOCK_IDEMPOTENCY_HEADERS`` names the header,
    - from ``run_once()``, a result that is not JSON.
    """

    code = "unstorable"
