"""The cleanup between tests: nothing that one test commits is there in the next."""

import unittest.mock

import psycopg
import pytest
from django.contrib.auth.models import Permission, User
from django.db import connections

from tests.app.models import Counter
from tests.helpers import between

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def empty(*aliases):
    case = unittest.mock.Mock(_databases_names=lambda include_mirrors: list(aliases))
    between.empty(case)


def test_only_the_tests_databases_are_emptied():
    for alias in ("default", "other"):
        Counter.objects.using(alias).create(name="a")
    user = User.objects.create(username="a")
    user.user_permissions.add(Permission.objects.first())  # a row that refers to others
    empty("default")
    assert not Counter.objects.exists()
    assert not User.objects.exists()
    assert not User.user_permissions.through.objects.exists()
    assert Counter.objects.using("other").exists()
    empty("other")
    assert not Counter.objects.using("other").exists()


def test_rows_made_by_migrations_stay():
    before = Permission.objects.count()
    empty("default")
    assert Permission.objects.count() == before > 0


def test_table_made_by_a_test_is_emptied(rival):
    rival.execute('CREATE TABLE "made here" AS SELECT 1 AS n')
    try:
        empty("default")
        assert rival.execute('SELECT count(*) FROM "made here"').fetchone() == (0,)
    finally:
        rival.execute('DROP TABLE "made here"')


def test_sqlite_is_emptied_by_django():
    with unittest.mock.patch.object(between, "call_command") as flush:
        empty("sqlite")
    flush.assert_called_once_with("flush", verbosity=0, interactive=False, database="sqlite")


def test_ended_connection_is_replaced(rival):
    pid = between.kept().info.backend_pid
    assert between.kept().info.backend_pid == pid
    rival.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert between.kept().info.backend_pid != pid


def test_kept_connections_can_be_closed():
    opened = between.kept()
    between.close()
    assert opened.closed
    with pytest.raises(psycopg.OperationalError):
        opened.execute("")
    assert connections["default"].settings_dict["NAME"] == between.kept().info.dbname
