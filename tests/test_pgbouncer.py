"""Advisory locks through PgBouncer in transaction mode: nothing depends on a session."""

import pytest
from django.db import connection, connections, transaction

from django_dblock import LockTimeout, UnsupportedDatabase, advisory_lock, advisory_locks
from tests.app.models import Counter
from tests.helpers import between, observe, servers
from tests.helpers.counting import outer_transaction, own_transaction
from tests.helpers.locks import hold
from tests.helpers.processes import race
from tests.helpers.relay import relay

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.loss,
    pytest.mark.server,
]

PROCESSES = 8


@pytest.mark.parametrize("work", [own_transaction, outer_transaction])
def test_concurrent_clients_lose_no_update(work, pooled):
    Counter.objects.create(name="hits")
    race(PROCESSES, work, advisory_lock, 25, options=pooled)
    assert Counter.objects.get().value == PROCESSES * 25


def test_negative_twin_session_lock_stays_in_the_pool(pooled, observer):
    """The client has gone, and the pool's connection to the server still holds its lock."""

    def on_two_servers():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(1)")

    on_two_servers()
    connection.close()
    assert observe.locks(observer) != []
    for [pid] in observer.execute(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
    ).fetchall():
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_timeout_leaves_transaction_usable(pooled, rival):
    hold(rival, "a")
    with transaction.atomic():
        with pytest.raises(LockTimeout), advisory_lock("a", timeout=0.01):
            pass
        with pytest.raises(LockTimeout), advisory_locks(["a", "b"], timeout=0.01):
            pass
        Counter.objects.create(name="after")
    assert Counter.objects.exists()


def test_label_ends_with_the_transaction(pooled, observer):
    def shown():
        return {
            row[0]
            for row in observer.execute(
                "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            ).fetchall()
        }

    with advisory_lock("inventory", "sku-1"):
        assert "tests lock[inventory:sku-1]" in shown()
    with advisory_lock("next"):
        assert "tests lock[next]" in shown()
    connection.close()
    assert not any("lock[" in name for name in shown())


def test_engine_is_known_behind_the_pooler(observer):
    """A pooler passes on what its server reports when a session starts."""
    alias = connections["default"]
    direct = {name: alias.settings_dict[name] for name in ("HOST", "PORT")}
    reported = ("crdb_version", "CockroachDB CCL v26.3.0")
    with relay(int(direct["PORT"]), reported=reported) as line:
        target = between.conninfo(port=line.port)
        with servers.pgbouncer(target, alias.settings_dict["NAME"]) as port:
            alias.close()
            alias.settings_dict.update(HOST="127.0.0.1", PORT=port)
            try:
                with pytest.raises(UnsupportedDatabase, match="CockroachDB"), advisory_lock("a"):
                    pass
            finally:
                alias.close()
                alias.settings_dict.update(direct)
    assert observe.locks(observer) == []
