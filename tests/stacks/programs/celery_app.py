"""A Celery application on Redis; the worker and the test both import it."""

import os

from tests.stacks import program

program.setup("tests.stacks.stock", migrate=False)

from celery import Celery  # noqa: E402
from django.db import connections  # noqa: E402

from django_dblock import LockTimeout, advisory_lock, fenced_lock, run_once  # noqa: E402
from tests.stacks.stock.models import Stock  # noqa: E402

app = Celery("stacks", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 3600},
)


@app.task
def sell():
    """Take one from the shelf, under a lock."""
    with advisory_lock("stock", "sku-1"):
        number = Stock.objects.get(name="sku-1").number
        Stock.objects.filter(name="sku-1").update(number=number - 1)
    return os.getpid()


@app.task
def pay(key):
    """Be delivered often, and have an effect once."""
    return run_once(
        "pay", key, work=lambda: Stock.objects.create(name="paid", number=1).pk, wait=20
    )


@app.task
def sync(ttl):
    """Hold a lease for longer than its ttl, in a child that was forked after Django was set up."""
    try:
        with fenced_lock("sync", ttl=ttl) as lease:
            program.outlive(lease, ttl)
            with lease.guard():
                return "held"
    except LockTimeout:
        return "busy"


@app.task
def wait_for_lock():
    """Wait for a lock that is never free, until the soft time limit ends the wait."""
    with advisory_lock("never", timeout=60):
        return "entered"


@app.task
def connected():
    """Say how many connections this child has open."""
    return len([each for each in connections.all() if each.connection])
