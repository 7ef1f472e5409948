"""The rows that are updated."""

from django.core.management import call_command
from django.db import connection, connections

from tests.app.models import Counter
from tests.benchmarks import models

ROWS = 1000


def create() -> None:
    """Make the tables, with ids from 1."""
    for app in ("auth", "sessions", "admin", "django_dblock"):
        call_command("migrate", app, verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(Counter)
        for model in models.MODELS:
            editor.create_model(model)
    for model in models.MODELS:
        model.objects.bulk_create(model(name=f"sku-{number}") for number in range(ROWS))
    Counter.objects.bulk_create(Counter(name=f"sku-{number}") for number in range(1, ROWS + 1))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def row_of(call: int) -> int:
    """Another row for each call: an update of the same one would find ever longer versions."""
    return call % ROWS + 1


def close() -> None:
    """Close this process's connections, so that the server stops at once."""
    connections.close_all()
