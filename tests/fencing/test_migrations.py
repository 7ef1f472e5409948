"""Migrations: the tables of the release before get what the newest code needs."""

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from django_dblock import fenced_lock
from django_dblock.models import FencedLock

pytestmark = pytest.mark.django_db(transaction=True)

# Projects have run these: a column that is written into one of them reaches new projects only.
RELEASED = [("django_dblock", "0003_lockmonitor")]
COLUMNS_BEFORE = {
    "id", "name", "slot", "token", "owner", "acquired_at", "renewed_at", "expires_at",
    "lock_delay", "grants", "metadata",
}  # fmt: skip


def migrate(targets=None):
    executor = MigrationExecutor(connection)
    executor.migrate(targets or executor.loader.graph.leaf_nodes("django_dblock"))


@pytest.fixture
def released():
    migrate(RELEASED)
    yield
    migrate()


def columns():
    with connection.cursor() as cursor:
        table = FencedLock._meta.db_table
        return {
            column.name for column in connection.introspection.get_table_description(cursor, table)
        }


@pytest.mark.usefixtures("released")
def test_released_migrations_keep_their_columns():
    assert columns() == COLUMNS_BEFORE


@pytest.mark.usefixtures("released")
def test_leases_work_after_an_upgrade():
    migrate()
    assert columns() == {field.column for field in FencedLock._meta.concrete_fields}
    with fenced_lock("upgraded", ttl=30) as lock, lock.guard():
        pass


def test_migration_of_help_texts_sends_no_statement():
    executor = MigrationExecutor(connection)
    plan = [(executor.loader.get_migration("django_dblock", "0007_texts"), False)]
    lines = executor.loader.collect_sql(plan)
    assert [line for line in lines if not line.startswith("--")] in ([], ["BEGIN;", "COMMIT;"])
