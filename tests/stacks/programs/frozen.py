"""The clock stands still, by freezegun or time-machine: ``frozen.py NAME``.

What waits has to come to its end, and what is held has to be renewed.
"""

import sys
import threading

from tests.stacks import program

program.setup()

from django.db import connection  # noqa: E402

from django_dblock import LockTimeout, advisory_lock, fenced_lock, run_once  # noqa: E402
from django_dblock.testing import hold_lock  # noqa: E402

TTL = 2.0
AT = "2020-01-01 12:00:00"


def frozen():
    """Stop the clock as the package's manual says."""
    if sys.argv[1] == "freezegun":
        import freezegun

        return freezegun.freeze_time(AT)
    import time_machine

    return time_machine.travel(AT, tick=False)


def held_elsewhere(ready, done):
    try:
        with fenced_lock("busy", ttl=30):
            ready.set()
            done.wait()
    finally:
        connection.close()


ready, done = threading.Event(), threading.Event()
other = threading.Thread(target=held_elsewhere, args=[ready, done])
other.start()
ready.wait()
with frozen():
    import datetime as dt

    today = dt.datetime.now(tz=dt.UTC).year
    try:
        with fenced_lock("busy", ttl=30, timeout=0.2):
            lease_wait = "entered"
    except LockTimeout:
        lease_wait = "ended"
    with hold_lock("stock", "sku-1"):
        try:
            with advisory_lock("stock", "sku-1", timeout=0.2):
                advisory_wait = "entered"
        except LockTimeout:
            advisory_wait = "ended"
    with fenced_lock("sync", ttl=TTL) as lease:
        program.outlive(lease, TTL)
        with lease.guard():
            guarded = True
    ran = []
    results = [
        run_once("pay", work=lambda *_: ran.append(1) or 7, mode=mode)
        for mode in ("atomic", "atomic")
    ]
done.set()
other.join()

program.report(
    today=today, lease_wait=lease_wait, advisory_wait=advisory_wait, guarded=guarded,
    results=results, ran=len(ran),
)  # fmt: skip
