"""A request can't be run, or its answer can't be kept."""

from django_dblock.exceptions.base import DblockError


class IdempotencyError(DblockError):
    """A request with an idempotency key was not run, or not to its end.

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
    """The request needs an ``Idempotency-Key`` header and has none. Nothing was run."""

    code = "key_missing"


class IdempotencyKeyInvalid(IdempotencyError):
    """The ``Idempotency-Key`` header is not one key. Nothing was run."""

    code = "key_invalid"


class IdempotencyKeyReused(IdempotencyError):
    """The key belongs to a request for something else. Nothing was run."""

    code = "key_reused"


class IdempotencyInProgress(IdempotencyError):
    """The same request is being worked on just now. Nothing was run.

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
    """Whoever worked on the request is gone, and a person has to look. Nothing was run."""

    code = "abandoned"


class TooManyIdempotencyKeys(IdempotencyError):
    """The scope has as many live keys as ``DBLOCK_IDEMPOTENCY_MAX_KEYS`` allows: nothing ran."""

    code = "too_many_keys"


class IdempotencyLeaseLost(IdempotencyError):
    """The run took longer than its lease, and somebody else has taken the request over.

    What the transaction that raises this has written is rolled back.

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
    """The stored answer can't have been written by this package, so it is not given.

    The request was not run again, either: a person has to look at the row.
    """

    code = "damaged"


class UnstorableResponse(IdempotencyError):
    """The answer can't be given a second time, so the first must not be given, either.

    What the view has written in the transaction is rolled back.
    """

    code = "unstorable"
