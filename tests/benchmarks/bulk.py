"""Write a thousand rows at once."""

from django.db import transaction

from tests.benchmarks import models
from tests.benchmarks.measure import Row, Scenario

ROWS = 1000


def scenario() -> Scenario:
    rows = [
        Row("plain", "bulk_update", _updated(models.Same)),
        Row("bulk_save_cas", "bulk_save_cas", _saved),
        Row("bulk_update", "VersionedModel's bulk_update", _updated(models.Versioned)),
        Row("loop", "save_cas() of each", _looped),
    ]
    return Scenario("bulk", "Write 1,000 rows", rows, calls=1, limit="bulk_update")


def _updated(model):
    def update(number: int) -> None:
        model.objects.bulk_update(_changed(model, number), ["stock"])

    return update


def _saved(number: int) -> None:
    assert (
        models.Versioned.objects.bulk_save_cas(_changed(models.Versioned, number), ["stock"]) == []
    )


def _looped(number: int) -> None:
    with transaction.atomic():
        for instance in _changed(models.Versioned, number):
            instance.save_cas(update_fields=["stock"])


def _changed(model, number: int) -> list[models.Fields]:
    found = list(model.objects.order_by("pk")[:ROWS])
    for instance in found:
        instance.stock = number
    return found
