"""How the cost of a request with a key grows with the rows of the table; operators' pages, too.

Beside each stands a table and a view as one would write them by hand: a unique key, the stored
response, an expiry, an index for the purge.
"""

import contextlib
import time
from collections.abc import Callable
from io import StringIO
from typing import Any
from uuid import uuid4

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from django_dblock.idempotency.operations import purge_in_batches
from tests.benchmarks import once
from tests.benchmarks.growth import curve, timed
from tests.benchmarks.measure import Size
from tests.benchmarks.purge import FILL

BATCH = 1_000
MOST_PURGED = 1_000_000
"""Rows after which the rate of a purge is known."""

# What an insert of a million rows would spend most of its time with.
DEFINITIONS = """
SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname),
       format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname,
              pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid = ANY (%s::regclass[]) AND contype = 'u'
UNION ALL
SELECT format('DROP INDEX %%s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index WHERE indrelid = ANY (%s::regclass[])
AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""
COPY = """
INSERT INTO request_by_hand (scope, key, fingerprint, status_code, body, created_at, expires_at)
SELECT scope, key, fingerprint, status_code, body, created_at, expires_at
FROM django_dblock_idempotencykey
"""
PURGE = """
DELETE FROM request_by_hand WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM request_by_hand WHERE expires_at <= now() LIMIT %s FOR UPDATE SKIP LOCKED
))
"""
LATEST = "SELECT id, scope, key, status_code FROM request_by_hand ORDER BY id DESC LIMIT 100"
TABLES = {"ours": "django_dblock_idempotencykey", "hand": "request_by_hand"}


def curves(size: Size) -> list[dict[str, Any]]:
    """Measure all points, one table size after the other."""
    figures: dict[str, list[float]] = {}
    with connection.cursor() as cursor:
        cursor.execute(once.TABLE)
    get_user_model().objects.create_superuser("operator", "", "operator")
    for rows in size.rows:
        _fill(rows)
        for name, value in _measured(rows, size).items():
            figures.setdefault(name, []).append(value)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE django_dblock_idempotencykey, request_by_hand")

    def shown(name: str, title: str, unit: str, **labels: str) -> dict[str, Any]:
        ways = [(way, label, figures[f"{name} {way}"]) for way, label in labels.items()]
        return curve(name, title, "rows", unit, size.rows, ways)

    both = {"hand": "by hand", "ours": "@idempotent"}
    return [
        shown("rows-first", "A view's first call, by rows of the table", "µs", **both),
        shown("rows-replay", "The same call repeated, by rows of the table", "µs", **both),
        shown("rows-wal", "WAL of a first call, by rows of the table", "bytes", **both),
        shown("rows-bytes", "Table and indexes, by rows", "bytes a row", **both),
        shown("rows-purge", "A purge, by rows of the table", "rows/s", **both),
        shown(
            "rows-pages", "Operators' pages, by rows of the table", "ms",
            hand="SELECT of the latest hundred, by hand",
            list="admin: the list", found="admin: a key looked for", missing="admin: a key missing",
            doctor="dblock doctor",
        ),
    ]  # fmt: skip


def _fill(rows: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE django_dblock_idempotencykey, request_by_hand")
        cursor.execute(DEFINITIONS, [list(TABLES.values())] * 2)
        definitions = cursor.fetchall()
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("SET maintenance_work_mem = '512MB'")
        for drop, _ in definitions:
            cursor.execute(drop)
        cursor.execute(FILL, {"rows": rows})
        cursor.execute(COPY)
        for _, create in definitions:
            cursor.execute(create)
        cursor.execute("VACUUM (ANALYZE) django_dblock_idempotencykey")
        cursor.execute("VACUUM (ANALYZE) request_by_hand")
        cursor.execute("RESET maintenance_work_mem")
        cursor.execute("RESET synchronous_commit")
        cursor.execute("CHECKPOINT")


def _measured(rows: int, size: Size) -> dict[str, float]:
    found: dict[str, float] = {}
    for way, table in TABLES.items():
        [total] = _one("SELECT pg_total_relation_size(%s::regclass)", table)
        found[f"rows-bytes {way}"] = total / rows
    views = {"ours": once.atomic("default"), "hand": once.by_hand("default")}
    first = {way: _call(view, lambda: str(uuid4())) for way, view in views.items()}
    replay = {way: _call(view, lambda: once.REPEATED) for way, view in views.items()}
    calls = {"first": first, "replay": replay}
    for name, ways in calls.items():
        for way, value in timed(ways, times=400, seconds=size.seconds / 2).items():
            found[f"rows-{name} {way}"] = value
    for way, call in first.items():
        found[f"rows-wal {way}"] = _wal(call, 100)
    found |= _pages(size)
    started = time.perf_counter()
    purged = 0
    for batch in purge_in_batches(batch=BATCH):
        purged += batch
        if purged >= MOST_PURGED:
            break
    found["rows-purge ours"] = purged / (time.perf_counter() - started)
    started = time.perf_counter()
    purged = _purge_by_hand()
    found["rows-purge hand"] = purged / (time.perf_counter() - started)
    return found


def _call(
    view: Callable[[HttpRequest], HttpResponse], key: Callable[[], str]
) -> Callable[[], None]:
    factory = RequestFactory()

    def call() -> None:
        request = factory.post(
            "/payments/",
            once.BODY,
            content_type="application/json",
            headers={"Idempotency-Key": key()},
        )
        assert view(request).status_code == 201

    return call


def _wal(call: Callable[[], None], times: int) -> float:
    position = "SELECT pg_current_wal_insert_lsn() - '0/0'"
    [before] = _one(position)
    for _ in range(times):
        call()
    [after] = _one(position)
    return float(after - before) / times


def _pages(size: Size) -> dict[str, float]:
    client = Client()
    client.force_login(get_user_model().objects.get(username="operator"))
    [key] = _one("SELECT key FROM django_dblock_idempotencykey LIMIT 1")
    address = "/admin/django_dblock/idempotencykey/"

    def page(**parameters: str) -> Callable[[], None]:
        def call() -> None:
            assert client.get(address, parameters).status_code == 200

        return call

    def latest() -> None:
        with connection.cursor() as cursor:
            cursor.execute(LATEST)
            cursor.fetchall()

    ways = {
        "hand": latest,
        "list": page(),
        "found": page(q=key),
        "missing": page(q=str(uuid4())),
        "doctor": _doctor,
    }
    found = timed(ways, times=5, seconds=size.seconds)
    return {f"rows-pages {name}": value / 1000 for name, value in found.items()}


def _doctor() -> None:
    with contextlib.suppress(SystemExit):  # it has found something to warn of
        call_command("dblock", "doctor", stdout=StringIO())


def _purge_by_hand() -> int:
    purged = 0
    while purged < MOST_PURGED:
        with connection.cursor() as cursor:
            cursor.execute(PURGE, [BATCH])
            if not cursor.rowcount:
                break
            purged += cursor.rowcount
    return purged


def _one(statement: str, *parameters: object) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchone()
