"""What a person does with a request whose worker is gone: free it, or answer it."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from django.db import connections, transaction

from django_dblock.audit import audit_log, doer
from django_dblock.conf import conf, seconds_of
from django_dblock.databases import in_callers_transaction
from django_dblock.exceptions import IdempotencyError, IdempotencyInProgress
from django_dblock.idempotency.answer import Answer
from django_dblock.idempotency.identity import masked
from django_dblock.idempotency.options import Duration
from django_dblock.idempotency.store import alias_for
from django_dblock.sql import idempotency_operate as sql

JSON = "application/json"
_STATUSES = range(200, 600)


class _Resolvable(NamedTuple):
    """A request that may be resolved: its name for people, and what the row says."""

    name: str
    facts: dict[str, str]
    method: str
    token: int
    owner: str


def resolve_idempotency_key(  # noqa: PLR0913 - an answer has parts
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
    """Decide what becomes of a request that was begun and not ended, after having looked into it.

    ``outcome="retry"`` frees it: the next repeat by its client runs, after the last step that was
    recorded. ``outcome="done"`` records an answer, which every repeat gets from then on.

    Guaranteed: whoever had the request is fenced off. What it still writes under
    ``request.idempotency.guard()`` or with ``complete()`` is rolled back. A request that runs, by
    its lease, or that was taken over meanwhile, is not touched. In an open transaction it holds
    when that commits.

    Not guaranteed: that the old worker stops, nor that what it did outside is undone; that is what
    to look for before. The steps of a freed request are remembered until its retention, which
    begins now, is over.

    Each request that was resolved is logged as a warning by ``django_dblock.audit``, when that
    commits; in a transaction without autocommit, at once.

    Args:
        pk: the row's, as ``dblock list --kind idempotency`` shows it.
        outcome: ``"retry"`` or ``"done"``.
        status_code: of the answer, 200 to 599; for ``"done"``.
        body: of the answer, likewise; stored as ``DBLOCK_IDEMPOTENCY_CIPHER`` says. Of
            ``run_once``: the result as JSON, with 200.
        content_type: of the body, where there is one.
        token: the token that was seen with the request: resolve it only if it is still that.
        ttl: how long to keep it, a timedelta or seconds; ``DBLOCK_IDEMPOTENCY_TTL`` if not given.
        by: who does this, for the audit log; the database role if not given.
        using: the database alias, as in ``idempotent``.

    Raises:
        ValueError: an argument is none of these; before any SQL, but for a result that is not JSON.
        UnstorableResponse: the body is too large, or the content type could not be sent;
            likewise.
        django.core.exceptions.ObjectDoesNotExist: there is no such row; it is
            ``IdempotencyKey.DoesNotExist``.
        IdempotencyInProgress: somebody is at work on the request.
        IdempotencyError: it has an answer already, or somebody else was here meanwhile.
        UnsupportedDatabase: the alias is not PostgreSQL's.

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
    with connections[alias].cursor() as cursor:
        if token in (None, found.token):
            parameters = {"id": pk, "token": found.token, "ttl": seconds, **answer}
            cursor.execute(statement, parameters)
            if cursor.fetchone() is not None:
                _once_committed(partial(_write_down, pk, found, status_code, by), alias)
                return
    raise IdempotencyError(
        f"{found.name} was taken over meanwhile, and was not touched. 'dblock list --kind "
        f"idempotency' shows who has it now.",
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
    decided = "freed it for a retry" if status is None else f"answered it with {status}"
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
            raise ValueError("outcome='retry' takes no answer: the request will run for one.")
        return sql.RETRY, {}
    if outcome != "done":
        raise ValueError(f"outcome={outcome!r} is not 'retry' or 'done'.")
    if status_code is None or status_code not in _STATUSES:
        raise ValueError(f"status_code={status_code!r} is not one from 200 to 599.")
    headers = {"Content-Type": content_type} if body else {}
    return sql.ANSWER, Answer(status_code, headers, bytes(body)).parameters(store_body=True)


def _resolvable(pk: int, alias: str) -> _Resolvable:
    """Return the request; or raise that it is not to be resolved."""
    from django_dblock.models import IdempotencyKey

    with connections[alias].cursor() as cursor:
        cursor.execute(sql.RESOLVABLE, {"id": pk})
        row = cursor.fetchone()
    if row is None:
        raise IdempotencyKey.DoesNotExist(
            f"There is no request {pk} on database {alias!r}. 'dblock list --kind idempotency' "
            f"shows those that have not ended."
        )
    scope, key, token, owner, method, done, remaining = row
    facts = {"scope": scope, "key": masked(key), "using": alias}
    name = f"Request {pk} (idempotency key {facts['key']} of {scope})"
    if done:
        raise IdempotencyError(
            f"{name} has its answer, and every repeat gets it. There is nothing to resolve.",
            **facts,
        )
    if remaining is not None and remaining > 0:
        raise IdempotencyInProgress(
            f"{name} is being worked on: its lease runs for another {remaining} s. Wait until that "
            f"is over, or end the worker first.",
            **facts,
            retry_after=remaining,
        )
    return _Resolvable(name, facts, method, token, owner)


def _refuse_no_json(name: str, body: bytes) -> None:
    try:
        json.loads(body)
    except ValueError as error:
        raise ValueError(
            f"{name} is of run_once(), so its answer is what that returns, as JSON; the body given "
            f"is not: {error}."
        ) from error
