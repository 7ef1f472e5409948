"""Migrations where routers keep the package's tables in different databases."""

import pytest
from django.apps import apps
from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from django_dblock.models import IdempotencyKey

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

MODELS = [
    each for each in apps.get_app_config("django_dblock").get_models() if not each._meta.proxy
]
ALIASES = ("default", "other")
NOTHING = [("django_dblock", None)]


class OneTableElsewhere:
    """A router that keeps one table in the database ``other``, and knows models only by name."""

    moved = ""

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        if app_label != "django_dblock":
            return None
        return (db == "other") == (model_name == self.moved)


def described(model, alias):
    """The columns with their collations, the indexes and the storage of a table, as text."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            """
            SELECT attname || ' ' || coalesce(collname, '')
            FROM pg_attribute LEFT JOIN pg_collation ON pg_collation.oid = attcollation
            WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
            UNION ALL SELECT indexdef FROM pg_indexes WHERE tablename = %(table)s
            UNION ALL SELECT unnest(reloptions) FROM pg_class WHERE oid = to_regclass(%(table)s)
            ORDER BY 1
            """,
            {"table": model._meta.db_table},
        )
        return [line for (line,) in cursor.fetchall()]


def migrate(alias, targets=None):
    executor = MigrationExecutor(connections[alias])
    executor.migrate(targets or executor.loader.graph.leaf_nodes("django_dblock"))


@pytest.fixture
def move(settings):
    """Remove all tables, and let a router keep one of them elsewhere until the test ends."""
    for alias in ALIASES:
        migrate(alias, NOTHING)

    def move_one(name):
        router = OneTableElsewhere()
        router.moved = name
        settings.DATABASE_ROUTERS = [router]

    yield move_one
    for alias in ALIASES:
        migrate(alias, NOTHING)
    settings.DATABASE_ROUTERS = []
    for alias in ALIASES:
        migrate(alias)


@pytest.fixture
def complete():
    return {model: described(model, "default") for model in MODELS}


@pytest.mark.parametrize("moved", MODELS, ids=lambda model: model._meta.model_name)
def test_each_table_is_complete_where_a_router_keeps_it(moved, complete, move):
    move(moved._meta.model_name)
    for alias in ALIASES:
        migrate(alias)
    for model in MODELS:
        here, elsewhere = ("other", "default") if model is moved else ("default", "other")
        assert described(model, here) == complete[model]
        assert described(model, elsewhere) == []


def test_rows_of_a_moved_table_get_their_namespace(move, settings):
    move("idempotencykey")
    settings.DBLOCK_NAMESPACE = "shop"
    migrate("other", [("django_dblock", "0003_lockmonitor")])
    with connections["other"].cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_dblock_idempotencykey (scope, key, fingerprint,"
            " fingerprint_version, method, path, headers, body_kind, token, owner, steps,"
            " created_at) VALUES ('once', 'a', '', 1, '', '', '{}', 'plain', 1, '', '{}', now())"
        )
    for alias in ALIASES:
        migrate(alias)
    assert IdempotencyKey.objects.using("other").get().namespace == "shop"
