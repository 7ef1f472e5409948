"""What each operation costs in statements, round trips, commits, WAL and index writes.

Counted at the wire and at the server, on the fast path and on the ordinary cursor. A change of a
number here is a change of what users pay: explain it in the commit. Times are never asserted.
"""

import pytest
from django.db import transaction

from django_dblock import (
    advisory_lock,
    advisory_locks,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    force_release,
    latch,
    run_once,
    try_advisory_lock,
)
from django_dblock.core.application_name import named
from django_dblock.fencing import store
from django_dblock.fencing.store import Place
from tests.app.versioned import Product
from tests.helpers import backends
from tests.helpers.wire_counts import counted, tapped

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


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


def read_and_save():
    product = Product.objects.get()
    product.name = "b"
    product.save_cas()


OPERATIONS = {
    "lock": (lock_in_a_transaction_of_its_own, []),
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
    "run_once, lease, replay": (run_once_lease, [run_once_lease]),
    "read and save_cas": (read_and_save, [lambda: Product.objects.create(pk=1, name="a")]),
}


# Statements; round trips on the fast path; statements and round trips through the ordinary cursor,
# which sends one at a time; transaction ids; at most so many bytes of WAL; updates, all heap-only
# but those of a claim in lease mode, whose completion an index has to know.
EXPECTED = {
    "lock": (3, 2, 3, 0, 0, 0),
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
    "run_once, lease, replay": (4, 2, 4, 0, 0, 0),
    "read and save_cas": (2, 2, 2, 1, 250, 1),
}
WRITES_AN_INDEX = {"run_once, lease"}
ONE_MESSAGE = {"read lease", "write lease after a read"}
"""Several statements that travel together, through the ordinary cursor as well."""


def measured(name, backend, looking):
    operation, before = OPERATIONS[name]
    with tapped() as tap, backends.installed(backend):
        for one in before:
            one()
        with counted(tap, looking) as counts:
            operation()
    return counts


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_costs_what_it_did(name, rival):
    statements, round_trips, _, transactions, wal, updates = EXPECTED[name]
    counts = measured(name, "django", rival)
    assert (counts.statements, counts.round_trips) == (statements, round_trips)
    assert (counts.transactions, counts.updates) == (transactions, updates)
    assert counts.hot == (0 if name in WRITES_AN_INDEX else updates)
    assert counts.wal <= wal


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_through_the_ordinary_cursor_costs_what_it_did(name, rival):
    """One round trip for each statement, and the same writes."""
    _, together, statements, transactions, wal, updates = EXPECTED[name]
    counts = measured(name, "proxied", rival)
    round_trips = together if name in ONE_MESSAGE else statements
    assert (counts.statements, counts.round_trips) == (statements, round_trips)
    assert (counts.transactions, counts.updates) == (transactions, updates)
    assert counts.hot == (0 if name in WRITES_AN_INDEX else updates)
    assert counts.wal <= wal
