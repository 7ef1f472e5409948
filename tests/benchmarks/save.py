"""Save one row that nobody else has written: what the comparison costs."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from tests.benchmarks import models, tables
from tests.benchmarks.measure import Row, Scenario


def scenario() -> Scenario:
    return Scenario("save", "Save a row, commit", _rows("default"), calls=5, limit="save()")


def scenario_inside() -> Scenario:
    return Scenario(
        "save-inside",
        "Save a row inside a transaction",
        _rows("default"),
        around=_transaction,
        calls=20,
        limit="save()",
    )


def scenario_with_latency() -> Scenario:
    return Scenario(
        "save-latency",
        "Save a row, commit; 1 ms each way to the server",
        _rows("latency"),
        calls=3,
        alias="latency",
        limit="save()",
    )


def _rows(alias: str) -> list[Row]:
    rows = [
        Row("plain", "Model.save(), same columns", _saved(models.Same, alias)),
        Row("bare", "Model.save(), no version column", _saved(models.Plain, alias)),
        Row("save_cas", "save_cas()", _saved_cas(alias)),
        Row("save", "VersionedModel.save()", _saved(models.Versioned, alias)),
    ]
    peers = models.MODELS[3:]
    return [
        *rows,
        *(
            Row("concurrency", "django-concurrency", _saved(peer, alias), peer=True)
            for peer in peers
        ),
    ]


def _saved(model: type[models.Fields], alias: str) -> Callable[[int], None]:
    def save(number: int) -> None:
        instance = _instances(model, alias)[number % tables.ROWS]
        instance.stock = number
        instance.save()

    return save


def _saved_cas(alias: str) -> Callable[[int], None]:
    def save(number: int) -> None:
        # The same instances as of save(): their versions go on from there.
        instance = _instances(models.Versioned, alias)[number % tables.ROWS]
        instance.stock = number
        instance.save_cas()

    return save


@functools.cache
def _instances(model: type[models.Fields], alias: str) -> list[models.Fields]:
    """Read before the first time that counts; nobody else writes these rows."""
    return list(model.objects.using(alias).order_by("pk"))


@contextmanager
def _transaction() -> Iterator[None]:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")  # BEGIN goes out with the first statement: not with ours
        yield
