"""A payment by HTTP, run once and replayed: what protecting a view costs."""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from uuid import uuid4

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory

from django_dblock import idempotent
from tests.benchmarks import models, peers
from tests.benchmarks.measure import Row, Scenario

BODY = b'{"order": 4711, "amount": "19.90", "currency": "EUR"}'
REPEATED = "00000000-0000-4000-8000-000000000000"
"""The key that is asked for again and again."""

View = Callable[[HttpRequest], HttpResponse]

# Written by hand: a unique key, the stored response, an expiry, an index for the purge. A second
# request waits for the first one. No owner's scope is checked, no header is stored, no response is
# refused, and nothing but the body is compared.
TABLE = """
CREATE TABLE IF NOT EXISTS request_by_hand (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope varchar(255) NOT NULL,
    key varchar(255) NOT NULL,
    fingerprint bytea NOT NULL,
    status_code smallint,
    body bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    UNIQUE (scope, key)
);
CREATE INDEX IF NOT EXISTS request_by_hand_expires ON request_by_hand (expires_at)
"""
BEGIN = """
INSERT INTO request_by_hand (scope, key, fingerprint, expires_at)
VALUES (%s, %s, %s, now() + interval '1 day')
ON CONFLICT (scope, key) DO NOTHING
"""
READ = """
SELECT fingerprint, status_code, body FROM request_by_hand WHERE scope = %s AND key = %s
"""
END = """
UPDATE request_by_hand SET status_code = %s, body = %s WHERE scope = %s AND key = %s
"""


def scenario() -> Scenario:
    return _first("default", "once", "A view that inserts a row: its first call", calls=5)


def scenario_with_latency() -> Scenario:
    title = "A view that inserts a row: its first call; 1 ms each way to the server"
    return _first("latency", "once-latency", title, calls=3)


def replay_scenario() -> Scenario:
    return _replay("default", "replay", "The same call repeated", calls=5)


def replay_scenario_with_latency() -> Scenario:
    title = "The same call repeated; 1 ms each way to the server"
    return _replay("latency", "replay-latency", title, calls=3)


def _first(alias: str, name: str, title: str, *, calls: int) -> Scenario:
    limit = "the view"
    return Scenario(
        name, title, _rows(alias), around=new_key, calls=calls, alias=alias, limit=limit
    )


def _replay(alias: str, name: str, title: str, *, calls: int) -> Scenario:
    return Scenario(
        name,
        title,
        _rows(alias),
        around=repeated_key,
        calls=calls,
        alias=alias,
        limit="the view",
    )


def _rows(alias: str) -> list[Row]:
    rows = [
        Row("bare", "the view in transaction.atomic", called(bare(alias))),
        Row("idempotent", "@idempotent", called(atomic(alias))),
        Row("lease", '@idempotent(mode="lease")', called(_lease(alias))),
        Row("hand", "a unique key and two statements, by hand", called(by_hand(alias))),
    ]
    if peers.has_redis() and importlib.util.find_spec("idempotency_key"):
        rows.append(_peer("django-idempotency-key", alias, alias))
        if alias == "default":
            name = "django-idempotency-key, Redis with appendfsync always"
            rows.append(_peer(name, alias, "durable"))
    return rows


def called(view: View) -> Callable[[int], None]:
    def call(_: int) -> None:
        response = view(_request.current)
        assert response.status_code == 201

    return call


def paid(alias: str, request: HttpRequest) -> HttpResponse:
    payment = models.Plain.objects.using(alias).create(name=str(len(request.body)))
    return JsonResponse({"id": payment.pk, "status": "paid"}, status=201)


def bare(alias: str) -> View:
    @transaction.atomic(using=alias)
    def pay(request: HttpRequest) -> HttpResponse:
        return paid(alias, request)

    return pay


def by_hand(alias: str) -> View:
    with connections[alias].cursor() as cursor:
        cursor.execute(TABLE)

    @transaction.atomic(using=alias)
    def pay(request: HttpRequest) -> HttpResponse:
        place = ["shopper", request.headers["Idempotency-Key"]]
        fingerprint = sha256(request.body).digest()
        with connections[alias].cursor() as cursor:
            cursor.execute(BEGIN, [*place, fingerprint])
            if not cursor.rowcount:
                cursor.execute(READ, place)
                stored, status, body = cursor.fetchone()
                assert bytes(stored) == fingerprint
                return HttpResponse(bytes(body), status=status)
            response = paid(alias, request)
            cursor.execute(END, [response.status_code, response.content, *place])
        return response

    return pay


def atomic(alias: str) -> View:
    @idempotent(scope=lambda _: f"atomic on {alias}", using=alias)
    def pay(request: HttpRequest) -> HttpResponse:
        return paid(alias, request)

    return pay


def _lease(alias: str) -> View:
    @idempotent(mode="lease", scope=lambda _: f"lease on {alias}", using=alias)
    def pay(request: HttpRequest) -> HttpResponse:
        with transaction.atomic(using=alias):
            return request.idempotency.complete(paid(alias, request))  # type: ignore[attr-defined]

    return pay


def _peer(label: str, alias: str, redis: str) -> Row:
    """Its middleware around the bare view, called as Django's handler calls them."""
    settings = {
        "IDEMPOTENCY_KEY": {
            "STORAGE": {"CLASS": "idempotency_key.storage.CacheKeyStorage", "CACHE_NAME": redis},
            "LOCK": {
                "CLASS": "idempotency_key.locks.redis.MultiProcessRedisLock",
                "LOCATION": os.environ[peers.ALIASES[redis]],
            },
            "CONFLICT_STATUS_CODE": None,  # the first answer's own, as ours
        }
    }

    @functools.cache
    def protected() -> View:
        from idempotency_key.decorators import idempotency_key
        from idempotency_key.middleware import ExemptIdempotencyKeyMiddleware

        view = idempotency_key(bare(alias))
        middleware = ExemptIdempotencyKeyMiddleware(
            lambda request: middleware.process_view(request, view, (), {}) or view(request)
        )
        return middleware

    def call(_: int) -> None:
        response = protected()(_request.current)
        assert response.status_code == 201

    return Row(f"peer-{redis}", label, call, settings=settings, peer=True)


class _Request:
    """The one that the next call gets, made before the time starts."""

    current: HttpRequest


_request = _Request()


def _make(key: str) -> None:
    _request.current = RequestFactory().post(
        "/payments/", BODY, content_type="application/json", headers={"Idempotency-Key": key}
    )


@contextmanager
def new_key() -> Iterator[None]:
    _make(str(uuid4()))
    yield


@contextmanager
def repeated_key() -> Iterator[None]:
    _make(REPEATED)
    yield
