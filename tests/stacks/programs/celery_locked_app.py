"""A Celery application on Redis, whose tasks hold leases and have their effects once."""

import os
import signal
import time
from pathlib import Path

from tests.stacks import program

program.setup("tests.stacks.stock", migrate=False)

from celery import Celery, shared_task  # noqa: E402
from django.db import transaction  # noqa: E402

from django_dblock.contrib.celery import locked_task, once_task  # noqa: E402
from tests.stacks.stock.models import Stock  # noqa: E402

app = Celery("stacks", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


def die_once(flag):
    """Be killed as by an out-of-memory killer, the first time."""
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task
@once_task()
def pay(flag, when):
    """Die before or after the commit of the payment."""
    made = Stock.objects.create(name="paid", number=1)
    if when == "before":
        die_once(flag)
    else:
        transaction.on_commit(lambda: die_once(flag))
    return made.pk


@shared_task
@locked_task("sync", ttl=5, retry_after=0.2)
def sync():
    """Say whether another run was there at the same time."""
    Stock.objects.create(name="inside", number=1)
    alone = Stock.objects.filter(name="inside").count() == 1
    time.sleep(0.05)
    Stock.objects.filter(name="inside").delete()
    return alone


@shared_task
@locked_task("slow", ttl=2, retry_after=0.2)
def slow(seconds):
    """Hold the lease for so long."""
    time.sleep(seconds)
    return "done"
