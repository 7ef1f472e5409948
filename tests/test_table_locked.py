"""A migration that has locked a table, or waits to, holds up nobody who only looks."""

from io import StringIO

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction

from django_dblock import advisory_lock
from django_dblock.cli import watch
from django_dblock.inspect import TableIsLocked, fenced_leases, short_wait
from django_dblock.monitor import page
from tests.doctor.helpers import with_options
from tests.helpers import observe

pytestmark = pytest.mark.django_db(transaction=True)

LEASES = "django_dblock_fencedlock"
KINDS = {
    LEASES: ["fenced"],
    "django_dblock_fencedticket": ["fenced", "latches"],
    "django_dblock_latchpart": ["latches"],
    "django_dblock_idempotencykey": ["idempotency"],
}


def listed(*arguments):
    out = StringIO()
    call_command("dblock", "list", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def lock(rival):
    """Lock tables for a session alone, as ALTER TABLE does; return what the list calls it."""
    rival.execute("SET application_name = 'migrate'")

    def lock_table(table):
        rival.execute(f"BEGIN; LOCK TABLE {table}")
        return f"backend {rival.info.backend_pid} (migrate)"

    yield lock_table
    rival.execute("ROLLBACK")


@pytest.mark.parametrize("table", KINDS)
def test_list_shows_the_rest_and_names_the_session(table, lock):
    session = lock(table)
    with advisory_lock("inventory", "sku-1"):
        shown = listed()
    assert "inventory:sku-1" in shown
    for kind in KINDS[table]:
        assert f"Note: {kind} is not shown: {session} has locked the table" in shown


def test_list_never_says_that_nothing_is_locked(lock):
    lock(LEASES)
    assert listed().startswith("There is nothing to show.\nNote: fenced is not shown: ")


def test_kind_given_by_name_is_an_error(lock):
    session = lock(LEASES)
    with pytest.raises(CommandError, match="'fenced' can't be shown: ") as found:
        listed("--kind", "fenced")
    assert session in str(found.value)


def test_session_that_waits_to_lock_the_table_is_named(connect):
    reader, migration = connect(), connect(application_name="migrate")
    reader.execute(f"BEGIN; SELECT FROM {LEASES}")
    migration.pgconn.send_query(f"BEGIN; LOCK TABLE {LEASES}".encode())
    pid = migration.info.backend_pid
    migration_waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s"
    observe.until(
        lambda: connection.cursor().execute(migration_waits, [pid]).fetchone(), "it waits"
    )
    shown = listed()
    reader.execute("ROLLBACK")
    migration.pgconn.get_result()
    assert f"backend {pid} (migrate) has locked the table for itself, or waits to" in shown


@pytest.mark.parametrize("kind", [None, "fenced"])
def test_watch_shows_the_reason(lock, kind):
    session = lock(LEASES)
    options = {
        "using": None, "kind": kind, "key": None, "name": None, "blocked": False, "held": False,
        "all_namespaces": False, "limit": 10, "interval": 2,
    }  # fmt: skip
    assert session in watch.take(options).remark


@pytest.mark.parametrize("table", KINDS)
def test_monitor_page_shows_the_rest(table, lock):
    session = lock(table)
    with advisory_lock("inventory", "sku-1"):
        shown, told = page.read(None)
    assert shown.counts.locks == 1
    assert [session in each for each in told] == [True] * len(KINDS[table])


@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        (LEASES, ["nightly", "--yes"]),
        ("django_dblock_idempotencykey", ["--request", "1", "--retry", "--yes"]),
    ],
)
def test_release_ends_in_a_line_that_names_the_session(table, arguments, lock):
    session = lock(table)
    with pytest.raises(CommandError, match="has locked the table for itself") as found:
        call_command("dblock", "release", *arguments)
    assert session in str(found.value)


def test_release_page_shows_the_reason(lock, admin_client):
    session = lock(LEASES)
    with with_options("-c statement_timeout=5s"):
        page = admin_client.get(
            "/admin/django_dblock/lockmonitor/release/?lease=0:nightly", follow=True
        )
    assert any(session in str(each) for each in page.context["messages"])


def test_limit_ends_with_the_block():
    before = fenced_limit()
    with short_wait("default"):
        assert fenced_limit() == "1s"
    assert fenced_limit() == before
    with transaction.atomic():
        with short_wait("default"):
            assert fenced_limit() == "1s"
        assert fenced_limit() == before


def fenced_limit():
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        [limit] = cursor.fetchone()
        return limit


def test_open_transaction_stays_usable(lock):
    lock(LEASES)
    with transaction.atomic():
        with pytest.raises(TableIsLocked), short_wait("default"):
            fenced_leases()
        assert fenced_limit()


def test_session_that_is_gone_by_then_is_not_named():
    error = OperationalError()
    error.__cause__ = psycopg.errors.LockNotAvailable()
    with pytest.raises(TableIsLocked, match=r"^another session has locked"), short_wait("default"):
        raise error


def test_other_errors_pass():
    with pytest.raises(OperationalError) as found, short_wait("default"):
        raise OperationalError
    assert not isinstance(found.value, TableIsLocked)
