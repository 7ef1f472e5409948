"""The check of the tables: a missing migration is reported before the first request."""

import pytest
from django.core import checks
from django.db import connection

from django_dblock.checks.settings import check_tables
from tests.helpers.registered import tags_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def renamed():
    """Tables that are not there, for a while."""
    names = []

    def rename(*tables):
        for name in tables:
            with connection.cursor() as cursor:
                cursor.execute(f"ALTER TABLE {name} RENAME TO {name}_away")
            names.append(name)

    yield rename
    for name in names:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {name}_away RENAME TO {name}")


def test_correct_project_has_no_message(statements):
    with statements() as sent:
        assert check_tables(databases=["default", "other", "sqlite"]) == []
    assert len(sent) == 1
    assert check_tables() == []


def test_check_queries_only_with_databases():
    assert tags_of(check_tables) == (checks.Tags.database,)


def test_w004_names_the_tables_that_are_missing(renamed):
    renamed("django_dblock_idempotencykey")
    [warning] = check_tables(databases=["default"])
    assert (warning.id, warning.level) == ("dblock.W004", checks.WARNING)
    assert warning.msg == "Database 'default' has no table django_dblock_idempotencykey."
    assert "manage.py migrate django_dblock --database default" in warning.hint
    renamed("django_dblock_fencedlock")
    [warning] = check_tables(databases=["default"])
    assert warning.msg.endswith("django_dblock_fencedlock, django_dblock_idempotencykey.")
    assert check_tables(databases=["other"]) == [], "only those that Django asks about"


def test_check_follows_dblock_database(settings, renamed):
    settings.DBLOCK_DATABASE = "other"
    renamed("django_dblock_idempotencykey")
    assert check_tables(databases=["default", "other"]) == []


class Router:
    """The requests are in another database than the leases."""

    def db_for_write(self, model, **hints):
        return "other" if model._meta.model_name == "idempotencykey" else None


def test_check_follows_the_router(settings, renamed):
    settings.DATABASE_ROUTERS = [Router()]
    renamed("django_dblock_idempotencykey")
    assert check_tables(databases=["default", "other"]) == []
    renamed("django_dblock_fencedticket")
    [warning] = check_tables(databases=["default", "other"])
    assert warning.msg == "Database 'default' has no table django_dblock_fencedticket."


def test_check_skips_wrong_settings(settings, renamed):
    settings.DBLOCK_LABELS = "all"
    renamed("django_dblock_idempotencykey")
    assert check_tables(databases=["default"]) == []
