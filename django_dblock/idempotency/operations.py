"""What an operator does with a request whose worker is lost: free it, or give it a response."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, NamedTuple
from uuid import UUID

import psycopg
from django.db import Error, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from django_dblock.conf import conf, seconds_of
from django_dblock.core.connection import caused_by, fetch, in_callers_transaction
from django_dblock.core.logging import audit_log, doer
from django_dblock.core.replication import watch_commits
from django_dblock.exceptions import (
    IdempotencyError,
    IdempotencyInProgress,
    IdempotencyNotReplicated,
)
from django_dblock.idempotency.identity import shown_key
from django_dblock.idempotency.options import Duration
from django_dblock.idempotency.store import alias_for
from django_dblock.idempotency.stored_response import StoredResponse
from django_dblock.sql import idempotency_operations as sql

JSON = "application/json"
_STATUSES = range(200, 600)


class _Resolvable(NamedTuple):
    """A request that may be resolved: its readable name, and values of its row."""

    name: str
    facts: dict[str, str]
    method: str
    token: int
    claim: UUID | None
    owner: str


def resolve_idempotency_key(  # noqa: PLR0913 - a response has parts
    pk: int,
    *,
    outcome: Literal["retry", "done"],
    status_code: int | None = None,
    body: bytes = b"",
    content_type: str = JSON,
    token: int | None = None,
    ttl: Duration | None = None,
    by: str | None = None,
    using: str | None = None,
) -> None:
    """Resolve a request that was begun and has not ended, after you have looked into it.

    ``outcome="retry"`` frees the request: the next repetition by its client runs, after the last
    recorded step. ``outcome="done"`` records a response, which each later repetition gets.

    Guaranteed: the last holder of the request is fenced off. What it still writes under
    ``request.idempotency.guard()`` or with ``complete()`` is rolled back. A request whose lease
    runs, or that was taken over meanwhile, is not changed. The commit waits for the disk and the
    synchronous standbys, whatever ``synchronous_commit`` the session has. In an open transaction,
    the guarantee begins with its commit.

    Not guaranteed: that the old worker stops, or that its effects outside are undone. Look for
    those before. The steps of a freed request are kept until its retention ends, which begins now.

    ``django_dblock.audit`` logs each resolved request as a warning, when the transaction commits;
    in a transaction without autocommit, at once.

    Args:
        pk: the row's number, as ``dblock list --kind idempotency`` shows it.
        outcome: ``"retry"`` or ``"done"``.
        status_code: the response's status for ``"done"``, 200 to 599.
        body: the response's body for ``"done"``, stored as ``DBLOCK_IDEMPOTENCY_CIPHER`` says. For
            a request of ``run_once``: the result as JSON, with status 200.
        content_type: the media type of the body.
        token: resolve the request only if it still has this token, which you have seen.
        ttl: how long to keep the row, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_TTL`` by
            default.
        by: the person who decides, for the audit log; the database role by default.
        using: the database alias, as in ``idempotent``.

    Raises:
        ValueError: an argument is invalid. Raised before any SQL, except for a result that is not
            JSON.
        UnstorableResponse: the body is too large, or the content type can't be sent. Raised before
            any SQL.
        django.core.exceptions.ObjectDoesNotExist: there is no such row; it is
            ``IdempotencyKey.DoesNotExist``.
        IdempotencyInProgress: the request is running.
        IdempotencyError: the request has a response already, or its claim has changed meanwhile.
        IdempotencyNotReplicated: no synchronous standby has confirmed the commit. The request is
            resolved on this server, but a failover may lose that. In an open transaction, its
            atomic block raises it.
        UnsupportedDatabase: the alias is not a PostgreSQL database.

    Source: M. Kleppmann, "How to do distributed locking", 2016: fencing tokens.
    """
    statement, answer = _decision(outcome, status_code, body, content_type)
    seconds = conf.idempotency_ttl if ttl is None else seconds_of(ttl)
    if seconds is None:
        raise ValueError(f"ttl={ttl!r} is not a timedelta or a number of seconds above 0.")
    alias = alias_for(using)
    found = _resolvable(pk, alias)
    if outcome == "done" and not found.method:
        _refuse_no_json(found.name, body)
    seen = {"id": pk, "token": found.token, "claim": found.claim, "ttl": seconds, **answer}
    connection = connections[alias]
    watch = watch_commits(connection)
    before = watch.unconfirmed

    def committed() -> None:
        _write_down(pk, found, status_code, by)
        if watch.unconfirmed != before:
            raise _not_replicated(pk, found, connection)

    if token in (None, found.token) and fetch(connection, statement, seen):
        _once_committed(committed, alias)
        return
    raise IdempotencyError(
        f"{found.name} was taken over meanwhile, and was not touched. 'dblock list --kind "
        f"idempotency' shows its holder.",
        **found.facts,
    )


def _not_replicated(
    pk: int, found: _Resolvable, connection: BaseDatabaseWrapper
) -> IdempotencyNotReplicated:
    """Mark the response as unconfirmed if there is one; return the error for the operator.

    The mark is best effort. Without it, a replay can give a response that a failover then loses.
    """
    with suppress(Error):
        fetch(connection, sql.MARK_UNCONFIRMED, {"id": pk})
    return IdempotencyNotReplicated(
        f"{found.name} on database {connection.alias!r} is resolved, but no synchronous standby "
        f"confirmed that, so a failover could lose it. Look for who cancels the wait "
        f"(pg_cancel_backend(), statement_timeout). After a failover, resolve the request again if "
        f"'dblock list --kind idempotency' still shows it.",
        **found.facts,
    )


def _once_committed(call: Callable[[], None], alias: str) -> None:
    connection = connections[alias]
    if connection.in_atomic_block and in_callers_transaction(connection):
        transaction.on_commit(call, using=alias)
    else:
        call()


def _write_down(pk: int, found: _Resolvable, status: int | None, by: str | None) -> None:
    alias = found.facts["using"]
    who = doer(by, alias)
    decided = "freed it for a retry" if status is None else f"responded to it with {status}"
    audit_log.warning(
        "dblock: %s resolved request %s (idempotency key %s of %s) on %r: %s; token %s of %s is "
        "fenced off",
        who, pk, found.facts["key"], found.facts["scope"], alias, decided, found.token, found.owner,
        extra={
            "by": who, "request_id": pk, **found.facts, "token": found.token, "owner": found.owner,
            "outcome": "retry" if status is None else "done", "status_code": status,
        },
    )  # fmt: skip


def _decision(
    outcome: str, status_code: int | None, body: bytes, content_type: str
) -> tuple[str, dict[str, Any]]:
    """Return the statement, and what it writes besides the token."""
    if outcome == "retry":
        if status_code is not None or body:
            raise ValueError("outcome='retry' takes no response: the next retry runs the request.")
        return sql.RETRY, {}
    if outcome != "done":
        raise ValueError(f"outcome={outcome!r} is not 'retry' or 'done'.")
    if status_code is None or status_code not in _STATUSES:
        raise ValueError(f"status_code={status_code!r} is not one from 200 to 599.")
    headers = {"Content-Type": content_type} if body else {}
    return sql.ANSWER, StoredResponse(status_code, headers, bytes(body)).parameters(store_body=True)


def _resolvable(pk: int, alias: str) -> _Resolvable:
    """Return the request that may be resolved.

    Raises:
        IdempotencyKey.DoesNotExist: there is no such row.
        IdempotencyError: the request has a response already.
        IdempotencyInProgress: the request is running.
    """
    from django_dblock.models import IdempotencyKey

    rows = fetch(connections[alias], sql.RESOLVABLE, {"id": pk})
    if not rows:
        raise IdempotencyKey.DoesNotExist(
            f"There is no request {pk} on database {alias!r}. 'dblock list --kind idempotency' "
            f"shows the requests that have not ended."
        )
    scope, key, token, claim, owner, method, done, remaining = rows[0]
    facts = {"scope": scope, "key": shown_key(scope, key), "using": alias}
    name = f"Request {pk} (idempotency key {facts['key']} of {scope})"
    if done:
        raise IdempotencyError(
            f"{name} has its response, and every retry gets it. There is nothing to resolve.",
            **facts,
        )
    if remaining is not None and remaining > 0:
        raise IdempotencyInProgress(
            f"{name} is running: its lease runs for another {remaining} s. Wait until then, or end "
            f"the worker first.",
            **facts,
            retry_after=remaining,
        )
    return _Resolvable(name, facts, method, token, claim, owner)


def _refuse_no_json(name: str, body: bytes) -> None:
    try:
        json.loads(body)
    except ValueError as error:
        raise ValueError(
            f"{name} is of run_once(), so its response is the result as JSON; the given body is "
            f"not JSON: {error}."
        ) from error


# Removing the rows of requests whose retention has ended.


BATCH = 1_000


def purge_idempotency_keys(
    *, batch: int = BATCH, abandoned: bool = True, using: str | None = None
) -> int:
    """Remove the requests whose retention has ended; return how many were removed.

    Guaranteed: a request whose lease runs is not removed, nor is one that waits for an operator
    (``on_abandoned="refuse"``). A removed key is a new key, as it was since its retention ended.
    Several purges may run at once, beside all traffic: locked rows are skipped, and each batch is a
    commit of its own. A repetition of a key that is being removed waits for that batch, which takes
    some milliseconds.

    Not guaranteed: that no expired row is left. Rows that were locked, or that expire meanwhile,
    are removed by the next purge. Nor that the table's file gets smaller: its pages are used again
    (PostgreSQL manual, 24.1.2).

    Args:
        batch: the number of rows in one commit, 1 or more.
        abandoned: whether to remove requests whose worker was lost and that no client has repeated
            in time. False leaves them to an operator.
        using: the database alias, as in ``idempotent``.

    Raises:
        ValueError: ``batch`` is less than 1. Raised before any SQL.
        TransactionManagementError: a transaction is open. Raised before any SQL.
        UnsupportedDatabase: the alias is not a PostgreSQL database.

    Source: PostgreSQL manual, "SELECT, The Locking Clause" (SKIP LOCKED), 24.1.2 "Recovering Disk
    Space".
    """
    return sum(purge_in_batches(batch=batch, abandoned=abandoned, using=using))


def purge_in_batches(
    *, batch: int = BATCH, abandoned: bool = True, using: str | None = None
) -> Iterator[int]:
    """Purge one batch at a time; yield the number of rows that each commit has removed.

    Guarantees and arguments are those of :func:`django_dblock.purge_idempotency_keys`. A caller
    that takes no further batch ends the purge; the batches before are committed.

    Raises:
        ValueError, TransactionManagementError, UnsupportedDatabase: as
            :func:`django_dblock.purge_idempotency_keys`.
    """
    if batch < 1:
        raise ValueError(f"batch={batch!r}: at least 1 row goes in a commit.")
    connection = connections[alias_for(using)]
    _refuse_transaction(connection)
    parameters = {"batch": batch, "abandoned": abandoned, "now": _now(connection)}
    removed, latest = batch, "-infinity"
    while removed == batch:
        _refuse_transaction(connection)  # the caller may have begun one between two batches
        removed, latest = _remove(connection, {**parameters, "after": latest})
        yield removed


def count_expired_idempotency_keys(*, abandoned: bool = True, using: str | None = None) -> int:
    """Return how many requests a purge would remove now. Removes nothing.

    Not guaranteed: that a later purge removes as many.

    Args:
        abandoned: as of :func:`django_dblock.purge_idempotency_keys`.
        using: the database alias, as in ``idempotent``.

    Raises:
        UnsupportedDatabase: the alias is not a PostgreSQL database.
    """
    connection = connections[alias_for(using)]
    parameters = {"abandoned": abandoned, "now": _now(connection)}
    [(count,)] = fetch(connection, sql.COUNT_EXPIRED, parameters)
    return int(count)


def _now(connection: BaseDatabaseWrapper) -> str:
    [(now,)] = fetch(connection, sql.CLOCK, {})
    return str(now)


def _remove(connection: BaseDatabaseWrapper, parameters: dict[str, Any]) -> tuple[int, str]:
    """Remove one batch; return the number of rows, and the latest expiry among them."""
    while True:
        try:
            [(removed, latest, _)] = fetch(connection, sql.PURGE, parameters)
        except OperationalError as error:
            # Above READ COMMITTED, another purge shows as a serialization failure: look again.
            if not caused_by(error, psycopg.errors.SerializationFailure):
                raise
        else:
            return removed, latest


def _refuse_transaction(connection: BaseDatabaseWrapper) -> None:
    if in_callers_transaction(connection):
        raise TransactionManagementError(
            f"Idempotency keys can't be purged inside an open transaction on database "
            f"{connection.alias!r}: all the rows would stay locked until its end. Purge outside "
            f"transaction.atomic(); ATOMIC_REQUESTS opens one around each view."
        )
