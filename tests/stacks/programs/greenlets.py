"""gevent and django-db-geventpool: a pool of two connections, both busy while a lease is held."""

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

from tests.stacks import program  # noqa: E402

program.setup(
    "tests.stacks.stock",
    engine="django_db_geventpool.backends.postgresql_psycopg3",
    DATABASE={"OPTIONS": {"MAX_CONNS": 2}, "CONN_MAX_AGE": 0},
)

from django.db import connection, transaction  # noqa: E402

from django_dblock import LockTimeout, advisory_lock, fenced_lock, run_once  # noqa: E402
from tests.stacks.stock.models import Stock  # noqa: E402

TTL = 2.0
ROUNDS = 20
connection.close()


def closing(function):
    """Give the greenlet's connection back to the pool, as the end of a request does."""
    try:
        return function()
    finally:
        connection.close()


def sell():
    for _ in range(ROUNDS):
        with advisory_lock("stock", "sku-1"):
            number = Stock.objects.get(name="sku-1").number
            gevent.sleep(0)
            Stock.objects.filter(name="sku-1").update(number=number - 1)


closing(lambda: Stock.objects.create(name="sku-1", number=100))
for seller in [gevent.spawn(closing, sell) for _ in range(4)]:
    seller.get()
left = closing(lambda: Stock.objects.get(name="sku-1").number)

# Both connections of the pool are in a transaction while the heartbeat has to renew.
busy, go = [Event(), Event()], Event()


def occupy(event):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        event.set()
        go.wait()


def hold():
    with fenced_lock("sync", ttl=TTL) as lease:
        connection.close()
        others = [gevent.spawn(closing, lambda event=event: occupy(event)) for event in busy]
        for event in busy:
            event.wait()
        began = program.now()
        while program.now() < began + 2.5 * TTL:
            gevent.sleep(0.05)
            lease.check()
        go.set()
        gevent.joinall(others, raise_error=True)
        program.outlive(lease, TTL)
        try:
            gevent.spawn(closing, contend).get()
            exclusive = False
        except LockTimeout:
            exclusive = True
    return exclusive


def contend():
    with fenced_lock("sync", ttl=TTL):
        pass


ran = []
runs = [
    gevent.spawn(closing, lambda: run_once("pay", work=lambda: ran.append(1) or 7, wait=10))
    for _ in range(4)
]
program.report(
    left=left,
    exclusive=closing(hold),
    results=[run.get() for run in runs],
    ran=len(ran),
)
