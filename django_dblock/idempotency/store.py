"""The results of the table: the state of a request, and whether a write took effect."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import Escaping

from django_dblock.advisory import acquire
from django_dblock.conf import conf
from django_dblock.core.connection import connection_for, fetch
from django_dblock.core.simple_query import Rows, exchange, send
from django_dblock.exceptions import DamagedAnswer, IdempotencyNotReplicated
from django_dblock.idempotency.identity import Identity, RequestFingerprint
from django_dblock.idempotency.stored_response import StoredResponse, Undecipherable, load_steps
from django_dblock.sql import idempotency as sql

State = Literal["new", "done", "leased", "expired", "free", "abandoned"]


@dataclass(frozen=True, slots=True)
class Found:
    """The state of a request at the moment when its row was read.

    Attributes:
        state: ``new`` if there is no row; else as :func:`_state` derives it.
        locked: whether our transaction holds the advisory lock, so that no other one runs the
            request.
        full: whether the scope has as many live keys as ``DBLOCK_IDEMPOTENCY_MAX_KEYS`` allows.
        id: the row's number; 0 without a row.
        token: the token of the latest claim.
        claim: the random identity of the latest claim; None if the latest run had none.
        same: False if the stored fingerprint shows that the key belongs to another request.
        remaining: whole seconds until the lease ends; 0 if that was not read.
        answer: the stored response, if it may be replayed.
        unconfirmed: whether no synchronous standby has confirmed the commit of the answer.
    """

    state: State
    locked: bool
    full: bool = False
    id: int = 0
    token: int = 0
    claim: str | None = None
    same: bool = True
    remaining: int = 0
    answer: StoredResponse | None = None
    unconfirmed: bool = False

    @property
    def another(self) -> bool:
        """Whether the key belongs to another request. An expired key belongs to no request."""
        return not self.same and self.state not in ("new", "expired")

    @property
    def waitable(self) -> bool:
        """Whether waiting for the holder of the lock can bring a response."""
        return not self.locked and self.answer is None and not self.another


class Claim(NamedTuple):
    """A claim on a request.

    Attributes:
        id: the row's primary key.
        token: the fencing token.
        claim: the random identity of this claim.
        steps: the recorded results, by the name of the step.
    """

    id: int
    token: int
    claim: str
    steps: dict[str, Any]

    def parameters(self) -> dict[str, Any]:
        """Return the claim in the form that the statements take."""
        return {"id": self.id, "token": self.token, "claim": self.claim}


def alias_for(using: str | None) -> str:
    """Return ``using``, else ``DBLOCK_DATABASE``, else where the router writes the table.

    Raises:
        UnsupportedDatabase: the alias is not a PostgreSQL database.
    """
    from django_dblock.models import IdempotencyKey  # the app registry may come after decorators

    return connection_for(using, IdempotencyKey).alias


def ask(
    connection: BaseDatabaseWrapper,
    identity: Identity,
    asked: RequestFingerprint,
    *then: str,
    read: str = sql.READ,
) -> Found:
    """Try to take the lock, and read the row, in one message that also begins the transaction.

    Args:
        connection: a connection in an atomic block.
        identity: the identity of the request.
        asked: the fingerprint of the request.
        then: statements without rows, for the same message.
        read: the statement that reads the row; ``sql.READ_WITH_REMAINING`` for ``remaining``.

    Raises:
        LockTableFull, UnsafeIsolation, StandbyDatabase, UnsupportedDatabase: the lock can't be
            taken, as :class:`~django_dblock.advisory_lock` says.
        DamagedAnswer: the stored response can't be read.
        ImproperlyConfigured: the stored response is encrypted, and no cipher is set.
    """
    statements, parameters = _reading(identity, read)
    locked, answers = acquire.try_lock_and(
        identity.lock(connection), *statements, *then, parameters=parameters
    )
    return _found(answers, identity, asked, locked=locked)


def ask_again(
    connection: BaseDatabaseWrapper, identity: Identity, asked: RequestFingerprint, *then: str
) -> Found:
    """Read the row while this transaction holds the lock. Raises as :func:`ask` for a response."""
    statements, parameters = _reading(identity, sql.READ)
    answers = exchange(connection, *statements, *then, parameters=parameters)
    return _found(answers, identity, asked, locked=True)


def record(  # noqa: PLR0913 - what an answer is kept with
    connection: BaseDatabaseWrapper,
    identity: Identity,
    asked: RequestFingerprint,
    answer: Mapping[str, Any],
    *then: str,
    ttl: float,
    new: bool,
) -> bool:
    """Write the response in the open transaction; return False if other code has written the row.

    Args:
        connection: the connection with the open transaction.
        identity: the identity of the request.
        asked: the fingerprint of the request.
        answer: the response, in the form that the statement takes.
        then: statements without rows, for the same message.
        ttl: the seconds for which to keep the response.
        new: whether there was no row when it was read.
    """
    parameters = {**identity.parameters(asked), "ttl": str(ttl), **answer}
    statement = sql.RECORD_NEW if new else sql.RECORD_AGAIN
    return bool(send(connection, statement, *then, parameters=parameters))


def record_and_commit(  # noqa: PLR0913 - as record()
    connection: BaseDatabaseWrapper,
    identity: Identity,
    asked: RequestFingerprint,
    answer: Mapping[str, Any],
    *then: str,
    ttl: float,
    new: bool,  # noqa: ARG001 - True: no row was read
) -> bool:
    """Write the response of a request without a row, and commit in the same message if possible.

    If COMMIT was sent with it, Django's own commit sends nothing and runs the on_commit hooks.

    Raises:
        IntegrityError: other code has written the row without the lock (:func:`is_own_conflict`);
            or a deferred constraint fails at COMMIT. Nothing is committed.
    """
    parameters = {**identity.parameters(asked), "ttl": str(ttl), **answer}
    exchange(connection, sql.RECORD_AND_COMMIT, *then, parameters=parameters, commits=True)
    return True


def is_own_conflict(error: Error) -> bool:
    """Return whether an error says that the request has a row already."""
    diagnostic = getattr(error.__cause__, "diag", None)
    return getattr(diagnostic, "constraint_name", None) == "django_dblock_idempotencykey_key"


def claim(  # noqa: PLR0913 - what a claim is made of
    connection: BaseDatabaseWrapper,
    identity: Identity,
    asked: RequestFingerprint,
    found: Found,
    *,
    owner: str,
    lease: float,
    ttl: float | None,
) -> Claim | None:
    """Write a claim in the open transaction; return None if another run was faster.

    It also returns None while a transaction of the last holder has the row locked.

    Raises:
        DamagedAnswer: the result of a step can't be read. Let the error roll the claim back.
        ImproperlyConfigured: the result of a step is encrypted, and no cipher is set. Let the error
            roll the claim back.
    """
    parameters = {
        **identity.parameters(asked),
        "owner": owner,
        "lease": str(lease),
        "ttl": None if ttl is None else str(ttl),
        "id": found.id,
        "token": found.token,
        "claim": found.claim,
        "resume": int(found.state in ("free", "abandoned")),
    }
    statement = sql.CLAIM_NEW if found.state == "new" else sql.CLAIM_AGAIN
    rows = send(connection, statement, parameters=parameters)
    if not rows:
        return None
    [(number, token, claim_id, recorded, _)] = rows
    return Claim(
        int(str(number)), int(str(token)), str(claim_id), _steps(identity, number, str(recorded))
    )


def write(using: str, claimed: Claim, statement: str, **parameters: Any) -> bool:
    """Run a statement that names a claim in its WHERE; return whether the claim still holds.

    Inside an open transaction the statement is part of it; else the statement commits by itself.
    """
    return bool(fetch(connections[using], statement, {**claimed.parameters(), **parameters}))


def look(connection: BaseDatabaseWrapper, identity: Identity, asked: RequestFingerprint) -> Found:
    """Read the row without the lock: enough to report its state, not enough to run the request."""
    rows = fetch(connection, sql.READ_WITH_REMAINING, identity.parameters())
    return _found([rows], identity, asked, locked=True)


def is_completed(using: str, claimed: Claim) -> bool:
    """Return whether the stored response was written by this claim."""
    return bool(fetch(connections[using], sql.IS_COMPLETED, claimed.parameters()))


def has_step(using: str, claimed: Claim, name: str) -> bool:
    """Return whether the claim holds, and the step is recorded."""
    return bool(fetch(connections[using], sql.HAS_STEP, {**claimed.parameters(), "name": name}))


def confirm(connection: BaseDatabaseWrapper, identity: Identity) -> None:
    """Write to the row of a stored response, so that the open transaction's commit confirms it."""
    fetch(connection, sql.CONFIRM, identity.parameters())


def mark_unconfirmed(identity: Identity) -> IdempotencyNotReplicated:
    """Mark the response as unconfirmed if there is one; return the error for its caller.

    The mark is best effort. Without it, a replay can give a response that a failover then loses.
    """
    with suppress(Error):
        fetch(connections[identity.using], sql.MARK_UNCONFIRMED, identity.parameters())
    return not_replicated(identity)


def not_replicated(identity: Identity) -> IdempotencyNotReplicated:
    """Return the error for a commit that no synchronous standby has confirmed."""
    facts = identity.facts
    return IdempotencyNotReplicated(
        f"Idempotency key {facts['key']} of {facts['scope']} on database {facts['using']!r}: it is "
        f"committed, but no synchronous standby confirmed that, so a failover could lose it. "
        f"Repeat the request with the same key when replication works, and look for who cancels "
        f"the wait (pg_cancel_backend(), statement_timeout).",
        **facts,
    )


def at_commit(connection: Any, first: Callable[[], None], last: Callable[[], None]) -> None:
    """Register a function to run before all ``on_commit`` hooks, and one after those so far.

    Django ends at the first hook that raises. In TestCase's transaction, whose hooks tests count
    and run, both are one hook.
    """

    def both() -> None:
        first()
        last()

    alias = connection.alias
    if any(block._from_testcase for block in connection.atomic_blocks):  # noqa: SLF001
        transaction.on_commit(both, using=alias)
        return
    transaction.on_commit(first, using=alias)
    hooks = connection.run_on_commit
    hooks.insert(0, hooks.pop())
    transaction.on_commit(last, using=alias)


def _reading(identity: Identity, read: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    parameters = identity.parameters()
    if (max_keys := conf.idempotency_max_keys) is None:
        return (read,), parameters
    parameters["max_keys"] = max_keys
    return (read, sql.IS_FULL), parameters


def _found(
    answers: list[Rows], identity: Identity, asked: RequestFingerprint, *, locked: bool
) -> Found:
    """Read the rows. Values are text if they came in one message, else typed by the driver."""
    rows, *more = answers
    full = more == [[("true",)]]
    if not rows:
        return Found("new", locked, full)
    row: tuple[Any, ...] = rows[0]
    number, token, claimed, completed, over, leased, fingerprint, version, *answered = row
    status_code, headers, body, kind, *left = answered
    leased = _truth(leased)
    state = _state(completed=completed is not None, over=_truth(over), leased=leased)
    # Another version was made of other parts, so the two can't be compared. While a deployment runs
    # two releases, a retry may reach either, and must not be refused.
    comparable = int(version) == asked.fingerprint_version
    same = not comparable or _bytes(fingerprint) == asked.fingerprint
    answer = None
    if same and state == "done":
        try:
            answer = StoredResponse.read(status_code, headers, _bytes(body), kind)
        except ValueError as error:
            raise _damaged("answer", identity, number, error) from error
    return Found(
        state=state,
        locked=locked,
        full=full,
        id=int(number),
        token=int(token),
        claim=None if claimed is None else str(claimed),
        same=same,
        remaining=max(0, math.ceil(float(left[0] or 0))) if left else 0,
        answer=answer,
        unconfirmed=state == "done" and leased is not None,
    )


def _steps(identity: Identity, number: Any, recorded: str) -> dict[str, Any]:
    found = {}
    for name, record in json.loads(recorded).items():
        try:
            found[name] = load_steps(record)
        except ValueError as error:
            raise _damaged(f"result of step {name!r}", identity, number, error) from error
    return found


def _damaged(what: str, identity: Identity, number: Any, error: ValueError) -> DamagedAnswer:
    facts = identity.facts
    if what == "answer":
        otherwise = "delete it if the request may run again"
    else:  # the step has had its effect outside
        otherwise = f"give the request a response by 'manage.py dblock release --request {number}'"
    if isinstance(error, Undecipherable):
        why = f"can't be read with DBLOCK_IDEMPOTENCY_CIPHER ({error})"
        how = (
            "If its key was rotated, give the cipher the old key too, until what was encrypted "
            "with it has expired. If not, the row was changed: find"
        )
    else:
        why, how = f"was changed by other code ({error})", "Find"
    return DamagedAnswer(
        f"The stored {what} of idempotency key {facts['key']} of {facts['scope']} on database "
        f"{facts['using']!r} (row {number} of django_dblock_idempotencykey) {why}, so it is not "
        f"given, and the request is not run again. {how} out who may write the table, and restore "
        f"the row, or {otherwise}.",
        **facts,
    )


def _state(*, completed: bool, over: bool | None, leased: bool | None) -> State:
    """Return the state of a row.

    A completed request expires when its retention ends. An unfinished request is leased until its
    lease ends. After that it is abandoned, or free if its run has given it up.

    Args:
        completed: whether the request has a response.
        over: whether its retention has ended; None if it has none.
        leased: whether ``locked_until`` is in the future; None if it is NULL.
    """
    if completed and not over:
        return "done"
    if not completed and leased:
        return "leased"
    if over:
        return "expired"
    return "free" if leased is None else "abandoned"


def _bytes(value: Any) -> bytes:
    """Return the bytes of a bytea value, text or the driver's type; empty for NULL."""
    if value is None:
        return b""
    if not isinstance(value, str):
        return bytes(value)
    if value.startswith("\\x"):
        return bytes.fromhex(value[2:])
    return Escaping().unescape_bytea(value.encode())  # bytea_output = escape


def _truth(value: Any) -> bool | None:
    """Return a boolean value, text or the driver's type; None for NULL."""
    return value if value is None or isinstance(value, bool) else value == "t"
