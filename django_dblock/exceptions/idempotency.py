"""A request can't be run, or its answer can't be kept."""

from django_dblock.exceptions.base import DblockError


class IdempotencyError(DblockError):
    """A request with an idempotency key was not run, or not to its end.

    By itself it is about a request that has its answer already: ``complete()``, ``guard()`` or a
    step came after ``complete()``, or there is nothing for a person to resolve.

    Attributes:
        scope: whose key it is; empty where that is not known yet.
        key: the beginning of the key; never the whole.
        using: the database alias.
        code: which problem it is, for programs; as in the answer to a client.
    """

    code = "idempotency_error"

    def __init__(self, message: str, *, scope: str = "", key: str = "", using: str = "") -> None:
        super().__init__(message)
        self.scope = scope
        self.key = key
        self.using = using


class IdempotencyKeyMissing(IdempotencyError):
    """The request has no idempotency key, and the view requires one. Nothing was run.

    Answered with 400, which names the header. The client sends a new key with each new request, and
    the same key with each retry (draft-ietf-httpapi-idempotency-key-header-07, "Error Scenarios").

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

    Answered with 400, which says what is wrong. The client sends 1 to 255 printable ASCII
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
    """The key belongs to a request for something else. Nothing was run.

    Answered with 422. To repeat it is in vain: the client takes a new key for a new request, or
    repeats the first exactly as it was (draft-ietf-httpapi-idempotency-key-header-07, "Error
    Scenarios").
    """

    code = "key_reused"


class IdempotencyInProgress(IdempotencyError):
    """The same request is being worked on just now. Nothing was run.

    Answered with 409 and ``Retry-After``. The client asks again, with the same key; ``wait=`` waits
    here (draft-ietf-httpapi-idempotency-key-header-07, "Error Scenarios").

    Attributes:
        retry_after: whole seconds after which it is worth asking again.
    """

    code = "in_progress"

    def __init__(
        self, message: str, *, scope: str = "", key: str = "", using: str = "", retry_after: int = 1
    ) -> None:
        super().__init__(message, scope=scope, key=key, using=using)
        self.retry_after = retry_after


class IdempotencyAbandoned(IdempotencyError):
    """Whoever worked on the request is gone, and a person has to look. Nothing was run.

    Answered with 409, of ``on_abandoned="refuse"``, until somebody has resolved it: ``manage.py
    dblock release --request``, or :func:`~django_dblock.resolve_idempotency_key`.
    """

    code = "abandoned"


class TooManyIdempotencyKeys(IdempotencyError):
    """The scope has as many live keys as ``DBLOCK_IDEMPOTENCY_MAX_KEYS`` allows: nothing ran.

    Answered with 429. It ends when some have expired.
    """

    code = "too_many_keys"


class IdempotencyLeaseLost(IdempotencyError):
    """The run took longer than its lease, and somebody else has taken the request over.

    What the transaction that raises this has written is rolled back. Let it pass: the client gets
    the other run's answer, or 409. Allow a longer ``lease=``, or more steps.

    Attributes:
        token: the fencing token that the run had.
    """

    code = "lease_lost"

    def __init__(
        self, message: str, *, scope: str = "", key: str = "", using: str = "", token: int = 0
    ) -> None:
        super().__init__(message, scope=scope, key=key, using=using)
        self.token = token


class DamagedAnswer(IdempotencyError):
    """A stored answer, or the result of a step, can't be read, so it is not given.

    This package can't have written it, or ``DBLOCK_IDEMPOTENCY_CIPHER`` has not the key that it was
    encrypted with: then give it back. The request was not run again, either: a person has to look
    at the row.
    """

    code = "damaged"


class UnstorableResponse(IdempotencyError):
    """The answer can't be given a second time, so the first must not be given, either.

    What the view has written in the transaction is rolled back, and the client gets 500. It is a
    stream, no response, larger than ``DBLOCK_IDEMPOTENCY_MAX_BODY``, no JSON (of ``run_once``), or
    one of its kept headers could not be sent again. The log of ``django_dblock.idempotency`` says
    which. Mend the view, or give up the body with ``store_body=False``.
    """

    code = "unstorable"
