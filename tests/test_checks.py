"""System checks: each planted fault is found, and a sound project is left alone."""

from io import StringIO

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import ProgrammingError, connection, connections
from psycopg import IsolationLevel

from django_dblock.checks.settings import check_server, check_settings
from django_dblock.conf import conf
from django_dblock.sql import doctor as sql
from tests.conftest import conninfo
from tests.helpers import servers
from tests.helpers.registered import tags_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def ids(found):
    return [message.id for message in found]


def test_correct_project_has_no_message(statements):
    with statements() as sent:
        assert check_settings() == []
    assert len(sent) == 0
    assert check_server(databases=["default", "other"]) == []


def test_checks_are_registered():
    call_command("check", "--database", "default", "--fail-level", "WARNING")
    assert tags_of(check_settings) == ()
    assert tags_of(check_server) == (checks.Tags.database,), "it asks the server"


def test_w005_finds_tenants_without_namespaces(monkeypatch, settings):
    monkeypatch.setattr("django_dblock.checks.settings.TENANT_PACKAGES", {"tests"})
    settings.DBLOCK_NAMESPACE = "shop"
    [warning] = check_settings()
    assert warning.id == "dblock.W005"
    assert "'tests.app' is installed" in warning.msg
    settings.DBLOCK_NAMESPACE = lambda: 1 / 0  # only called where a key is made
    assert check_settings() == []


def test_e001_finds_another_engine(settings):
    settings.DBLOCK_DATABASE = "sqlite"
    [error] = check_settings()
    assert error.id == "dblock.E001"
    assert "'sqlite', which is SQLite" in error.msg
    assert error.hint.startswith("Set DBLOCK_DATABASE = 'default'")
    assert check_server(databases=["sqlite"]) == []


def test_e002_names_each_wrong_setting(settings):
    settings.DBLOCK_LABELS = "all"
    settings.DBLOCK_DATABASE = "nowhere"
    found = check_settings()
    assert ids(found) == ["dblock.E002"] * 2
    assert {message.msg.split()[0] for message in found} == {"DBLOCK_LABELS", "DBLOCK_DATABASE"}
    assert check_server(databases=["default"]) == []


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_w001_finds_snapshot_isolation_of_the_alias(level, monkeypatch, settings):
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", level)
    [warning] = check_settings()
    assert warning.id == "dblock.W001"
    assert level.name.replace("_", " ") in warning.msg
    settings.DBLOCK_ALLOW_SNAPSHOT_ISOLATION = True
    assert check_settings() == []


def test_read_committed_by_name_is_fine(monkeypatch):
    level = IsolationLevel.READ_COMMITTED
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", level)
    assert check_settings() == []


def test_invalid_isolation_level_is_left_to_django(monkeypatch):
    """Django takes the number as well."""
    value = int(IsolationLevel.SERIALIZABLE)
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", value)
    assert ids(check_settings()) == ["dblock.W001"]
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", "nonsense")
    assert check_settings() == []


def test_e004_finds_statement_pooling(rival, monkeypatch):
    """A pooler that refuses transactions is told as what it is, not as a broken connection."""
    other = connections["other"]
    other.close()
    name = other.settings_dict["NAME"]
    with servers.pgbouncer(conninfo("other"), name, mode="statement") as port:
        for key, value in {"HOST": "127.0.0.1", "PORT": port}.items():
            monkeypatch.setitem(other.settings_dict, key, value)
        monkeypatch.setattr(conf, "database", "other")
        [error] = check_server(databases=["other"])
        other.close()
    assert error.id == "dblock.E004"


def test_other_server_errors_propagate(monkeypatch):
    monkeypatch.setattr(sql, "SERVER", "SELECT nothing")
    with pytest.raises(ProgrammingError):
        check_server(databases=["default"])


def test_w002_finds_a_standby(standby, monkeypatch, settings):
    alias = connections["other"]
    alias.close()
    for name, value in {"HOST": "127.0.0.1", "PORT": standby.port, "NAME": "postgres"}.items():
        monkeypatch.setitem(alias.settings_dict, name, value)
    settings.DBLOCK_DATABASE = "other"
    assert ids(check_server(databases=["other"])) == ["dblock.W002"]
    assert check_server(databases=["default"]) == [], "only the databases that Django asks about"
    assert check_server() == []
    alias.close()


def test_w003_finds_snapshot_isolation_as_the_default():
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_isolation = 'repeatable read'")
    assert ids(check_server(databases=["default"])) == ["dblock.W003"]
    connection.close()


def test_e003_finds_cockroachdb():
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE SCHEMA impostor; CREATE FUNCTION impostor.version() RETURNS text LANGUAGE sql"
            " AS $$ SELECT 'CockroachDB CCL v24.1.0' $$; SET search_path = impostor, pg_catalog"
        )
        assert ids(check_server(databases=["default"])) == ["dblock.E003"]
        cursor.execute("DROP SCHEMA impostor CASCADE")
    connection.close()


def test_e001_without_any_postgresql_hints_at_the_engine(settings, monkeypatch):
    settings.DBLOCK_DATABASE = "sqlite"
    for alias in ("default", "other"):
        monkeypatch.setattr(connections[alias], "vendor", "sqlite")
    [error] = check_settings()
    assert "django.db.backends.postgresql" in error.hint
    assert "SILENCED_SYSTEM_CHECKS" in error.hint


class TestMissingTablesDuringMigrate:
    """``migrate`` checks the database before it makes the tables, and used to warn of itself."""

    @pytest.fixture
    def missing(self, db, monkeypatch):
        from django_dblock.checks import settings as module

        monkeypatch.setattr(module, "_missing", lambda alias, models: ["django_dblock_fencedlock"])

    def test_migrate_is_silent(self, missing):
        err = StringIO()
        call_command("migrate", "--plan", stdout=StringIO(), stderr=err, skip_checks=False)
        assert "W004" not in err.getvalue()

    def test_check_reports_missing_tables(self, missing):
        err = StringIO()
        call_command("check", databases=["default"], stdout=StringIO(), stderr=err)
        assert "dblock.W004" in err.getvalue()
