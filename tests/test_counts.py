"""What each operation costs in statements, round trips, commits, WAL and index writes.

Counted at the wire and at the server, on the fast path and on the ordinary cursor. A change of a
number here is a change of what users pay: explain it in the commit. Times are never asserted.
"""

import psycopg
import pytest
from django.db import transaction
from django.http import JsonResponse
from django.test import RequestFactory

from django_dblock import (
    advisory_lock,
    advisory_locks,
    advisory_semaphore,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    force_release,
    idempotent,
    latch,
    leadership,
    lock_rows,
    lock_table,
    once_per,
    partitions,
    purge_idempotency_keys,
    run_once,
    try_advisory_lock,
)
from django_dblock.core.application_name import named
from django_dblock.fencing import store
from django_dblock.fencing.store import Place
from tests.app.fenced import Account
from tests.app.versioned import Product
from tests.conftest import conninfo
from tests.helpers import backends, observe
from tests.helpers.wire_counts import counted, tapped

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.server,
    pytest.mark.usefixtures("within_a_period"),
]


def lock_in_a_transaction_of_its_own():
    with advisory_lock("inventory", "sku-1"):
        pass


def lock_in_an_open_transaction():
    with transaction.atomic(), advisory_lock("inventory", "sku-1"):
        pass


def try_lock_in_an_open_transaction():
    with transaction.atomic():
        assert try_advisory_lock("inventory", "sku-1")


def lock_three_keys():
    with advisory_locks([("inventory", number) for number in range(3)]):
        pass


def lease_and_release():
    with fenced_lock("nightly-sync", ttl=60):
        pass


def lease_guard_and_release():
    with fenced_lock("nightly-sync", ttl=60) as lock, lock.guard():
        pass


def lease_renew_and_release():
    with fenced_lock("nightly-sync", ttl=60, heartbeat=False) as lock:
        lock.renew()


def permit_and_release():
    with fenced_semaphore("api", permits=2, ttl=60):
        pass


def wait_for_a_permit():
    place = Place(named(("api",)), "api~semaphore", "default")
    ticket = store.take_ticket(place, 0, 60)
    store.look(place, ticket, 60)


def two_units_and_release():
    with fenced_semaphore("api", permits=2, units=2, ttl=60):
        pass


def read_and_release():
    with fenced_rwlock("catalogue").read(ttl=60):
        pass


def write_and_release():
    with fenced_rwlock("catalogue").write(ttl=60):
        pass


def count_down():
    latch("import", parties=2).count_down("part")


def count_down_while_somebody_waits():
    latch("awaited", parties=1).count_down("part")


def wait_for_the_latch():
    store.take_ticket(Place(named(("awaited",)), "awaited~latch", "default"), 0, 60)


def end_a_lease_that_nobody_holds():
    force_release("nightly-sync")


def run_once_atomic():
    run_once("invoice", 1, work=lambda: 1)


def run_once_lease():
    run_once("invoice", 1, work=lambda *_: 1, mode="lease")


def run_once_completing():
    """One statement more, after COMMIT: whether the transaction was really committed."""

    def work(handle):
        with transaction.atomic():
            return handle.complete(1)

    run_once("invoice", 1, work=work, mode="lease")


def read_and_save():
    product = Product.objects.get()
    product.name = "b"
    product.save_cas()


def lock_shared():
    with advisory_lock("inventory", "sku-1", shared=True):
        pass


def lock_some_keys_and_share_others():
    with advisory_locks(exclusive=[("account", 1)], shared=[("rates", 1)]):
        pass


def one_of_two_permits_in_a_transaction():
    with advisory_semaphore("pdf", permits=2):
        pass


def lock_a_row():
    with transaction.atomic():
        assert lock_rows(Product.objects.all())


def lock_the_table():
    with transaction.atomic():
        lock_table(Product)


def one_term():
    for _ in leadership("scheduler", ttl=60):
        break


def three_partitions():
    with partitions("outbox", count=3, ttl=60) as share:
        assert len(list(share)) == 3


def run_the_job_of_the_day():
    once_per("day", key="settlement", tz="UTC")(lambda period: None)()


def save_guarded():
    with fenced_lock("accounts", ttl=60) as lock:
        account = Account.objects.get()
        account.balance += 1
        account.save_fenced(lock)


def create():
    Product.objects.create(pk=1, name="a")


def save_without_reading():
    PRODUCTS["read"].save()


def delete_compared():
    PRODUCTS["read"].delete_cas()


def touch():
    PRODUCTS["read"].touch_version()


def save_many():
    products = list(Product.objects.all())
    for product in products:
        product.name = "b"
    assert Product.objects.bulk_save_cas(products, ["name"]) == []


def make_many():
    Product.objects.bulk_create(Product(pk=number, name="a") for number in range(1, 11))


def read_one():
    PRODUCTS["read"] = Product.objects.get()


PRODUCTS: dict[str, Product] = {}


def view_of(mode):
    @idempotent(scope=lambda _: "client", mode=mode)
    def pay(request):
        return JsonResponse({}, status=201)

    return lambda: pay(RequestFactory().post("/", headers={"Idempotency-Key": "a"}))


pay_atomic, pay_lease = view_of("atomic"), view_of("lease")


def purge_nothing():
    assert purge_idempotency_keys() == 0


OPERATIONS = {
    "lock": (lock_in_a_transaction_of_its_own, []),
    "lock, shared": (lock_shared, []),
    "locks, some shared": (lock_some_keys_and_share_others, []),
    "permit in a transaction": (one_of_two_permits_in_a_transaction, []),
    "rows": (lock_a_row, [create]),
    "table": (lock_the_table, []),
    "term": (one_term, [one_term]),
    "partitions": (three_partitions, [three_partitions]),
    "job of the day": (run_the_job_of_the_day, []),
    "job of the day, again": (run_the_job_of_the_day, [run_the_job_of_the_day]),
    "save_fenced": (save_guarded, [lambda: Account.objects.create(pk=1, name="a", balance=1)]),
    "create": (create, []),
    "save": (save_without_reading, [create, read_one]),
    "delete_cas": (delete_compared, [create, read_one]),
    "touch_version": (touch, [create, read_one]),
    "bulk_save_cas of ten": (save_many, [make_many]),
    "view": (pay_atomic, []),
    "view, replay": (pay_atomic, [pay_atomic]),
    "view, lease": (pay_lease, []),
    "view, lease, replay": (pay_lease, [pay_lease]),
    "purge of nothing": (purge_nothing, [pay_atomic]),
    "lock, joined": (lock_in_an_open_transaction, []),
    "try, joined": (try_lock_in_an_open_transaction, []),
    "three locks": (lock_three_keys, []),
    "lease, first": (lease_and_release, []),
    "lease, again": (lease_and_release, [lease_and_release]),
    "lease, renewed": (lease_renew_and_release, [lease_and_release]),
    "lease, guarded": (lease_guard_and_release, [lease_and_release]),
    "permit": (permit_and_release, [permit_and_release]),
    "permit, awaited": (permit_and_release, [permit_and_release, wait_for_a_permit]),
    "two units": (two_units_and_release, [two_units_and_release]),
    "read lease": (read_and_release, [read_and_release]),
    "write lease after a read": (write_and_release, [read_and_release]),
    "part": (count_down, []),
    "part, awaited": (count_down_while_somebody_waits, [wait_for_the_latch]),
    "force release": (end_a_lease_that_nobody_holds, [lease_and_release]),
    "run_once": (run_once_atomic, []),
    "run_once, replay": (run_once_atomic, [run_once_atomic]),
    "run_once, lease": (run_once_lease, []),
    "run_once, lease, completing": (run_once_completing, []),
    "run_once, lease, replay": (run_once_lease, [run_once_lease]),
    "read and save_cas": (read_and_save, [lambda: Product.objects.create(pk=1, name="a")]),
}


# Statements; round trips on the fast path; statements and round trips through the ordinary cursor,
# which sends one at a time; transaction ids; at most so many bytes of WAL; updates, all heap-only
# but those of a claim in lease mode, whose completion an index has to know.
EXPECTED = {
    "lock": (3, 2, 3, 0, 0, 0),
    "lock, shared": (3, 2, 3, 0, 0, 0),
    "locks, some shared": (3, 2, 3, 0, 0, 0),
    "permit in a transaction": (3, 2, 3, 0, 0, 0),
    "rows": (7, 7, 7, 2, 200, 0),
    "table": (7, 7, 7, 0, 0, 0),
    "term": (2, 2, 2, 2, 500, 2),
    "partitions": (5, 5, 5, 3, 2000, 8),
    "job of the day": (8, 3, 8, 2, 1500, 0),
    "job of the day, again": (6, 3, 6, 0, 0, 0),
    "save_fenced": (7, 6, 7, 3, 1500, 2),
    "create": (1, 1, 1, 1, 450, 0),
    "save": (1, 1, 1, 1, 250, 1),
    "delete_cas": (7, 7, 7, 1, 300, 0),
    "touch_version": (1, 1, 1, 1, 250, 1),
    "bulk_save_cas of ten": (4, 4, 4, 1, 1800, 10),
    "view": (7, 2, 7, 2, 1500, 0),
    "view, replay": (5, 2, 5, 0, 0, 0),
    "view, lease": (6, 4, 6, 2, 2300, 1),
    "view, lease, replay": (4, 2, 4, 0, 0, 0),
    "purge of nothing": (2, 2, 2, 0, 0, 0),
    "lock, joined": (3, 2, 3, 0, 0, 0),
    "try, joined": (3, 2, 3, 0, 0, 0),
    "three locks": (3, 2, 3, 0, 0, 0),
    "lease, first": (2, 2, 2, 2, 1200, 1),
    "lease, again": (2, 2, 2, 2, 500, 2),
    "lease, renewed": (3, 3, 3, 3, 750, 3),
    "lease, guarded": (5, 4, 5, 3, 650, 2),
    "permit": (2, 2, 2, 2, 500, 2),
    "permit, awaited": (2, 2, 2, 2, 500, 2),
    "two units": (2, 2, 2, 2, 900, 4),
    "read lease": (5, 2, 5, 2, 600, 2),
    "write lease after a read": (5, 2, 5, 2, 800, 3),
    "part": (1, 1, 1, 1, 700, 0),
    "part, awaited": (2, 2, 2, 2, 700, 0),
    "force release": (1, 1, 1, 1, 250, 1),
    "run_once": (7, 2, 7, 2, 1500, 0),
    "run_once, replay": (5, 2, 5, 0, 0, 0),
    "run_once, lease": (6, 4, 6, 2, 2300, 1),
    "run_once, lease, completing": (9, 7, 9, 2, 2300, 1),
    "run_once, lease, replay": (4, 2, 4, 0, 0, 0),
    "read and save_cas": (2, 2, 2, 1, 250, 1),
}
WRITES_AN_INDEX = {"run_once, lease", "run_once, lease, completing", "view, lease"}
ONE_MESSAGE = {"read lease", "write lease after a read"}
"""Several statements that travel together, through the ordinary cursor as well."""


QUIET = {"autovacuum": "off", "checkpoint_timeout": "1d"}
"""After a checkpoint, a page whose hint bits a read sets is written to WAL as a whole, with 96
bytes at least. The tests' own servers make none in time."""

SNAPSHOT = 64
"""Bytes of WAL that no setting keeps away: every 15 s the background writer logs which transactions
are running, 56 bytes if none is."""


@pytest.fixture(scope="module", autouse=True)
def nobody_else_writes(django_db_setup):
    """Transaction ids and WAL are the server's: nothing of its own may spend any meanwhile."""
    with psycopg.connect(conninfo(), autocommit=True) as server:

        def shown():
            return {name: server.execute(f"SHOW {name}").fetchone()[0] for name in QUIET}

        def configure(clauses, values):
            for clause in clauses:
                server.execute(f"ALTER SYSTEM {clause}")
            server.execute("SELECT pg_reload_conf()")
            observe.until(lambda: shown() == values, f"the server has {values}")

        def at_work(condition):
            found = f"SELECT FROM pg_stat_activity WHERE {condition}"
            return server.execute(found).fetchall()

        checkpoint = "backend_type = 'checkpointer' AND wait_event <> 'CheckpointerMain'"
        vacuum = "backend_type LIKE 'autovacuum%'"

        if server.execute("SHOW is_superuser").fetchone() == ("off",):
            yield  # a given server: hope for the best
            return
        before = shown()
        configure([f"SET {name} = '{value}'" for name, value in QUIET.items()], QUIET)
        try:
            if at_work(checkpoint):  # of a given server; by itself it would take a day now
                server.execute("CHECKPOINT")
            observe.until(lambda: not at_work(f"{checkpoint} OR {vacuum}"), "the server is quiet")
            yield
        finally:
            configure([f"RESET {name}" for name in QUIET], before)


def measured(name, backend, looking):
    operation, before = OPERATIONS[name]
    with tapped() as tap, backends.installed(backend):
        for one in before:
            one()
        with counted(tap, looking) as counts:
            operation()
    return counts


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_keeps_its_cost(name, rival):
    statements, round_trips, _, transactions, wal, updates = EXPECTED[name]
    counts = measured(name, "django", rival)
    assert (counts.statements, counts.round_trips) == (statements, round_trips)
    assert (counts.transactions, counts.updates) == (transactions, updates)
    assert counts.hot == (0 if name in WRITES_AN_INDEX else updates)
    assert counts.wal <= wal + SNAPSHOT


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_through_the_cursor_keeps_its_cost(name, rival):
    """One round trip for each statement, and the same writes."""
    _, together, statements, transactions, wal, updates = EXPECTED[name]
    counts = measured(name, "proxied", rival)
    round_trips = together if name in ONE_MESSAGE else statements
    assert (counts.statements, counts.round_trips) == (statements, round_trips)
    assert (counts.transactions, counts.updates) == (transactions, updates)
    assert counts.hot == (0 if name in WRITES_AN_INDEX else updates)
    assert counts.wal <= wal + SNAPSHOT
