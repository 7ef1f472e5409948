"""The outbox: each order's confirmation mail is written with the order, and sent by workers later.

A mail that was sent in the view would be lost if the process died after COMMIT, and would be sent
for an order that was rolled back. A row in the order's own transaction is neither.

The mails are spread over buckets, and each worker owns some of the buckets: ``partitions`` gives
every live worker its share, hands over what a dead worker owned, and gives a newcomer its part. No
worker waits for another one. Each batch is recorded under the partition's guard, so a worker that
was frozen past its lease records nothing. What it had handed to the mail server by then was handed
over: outside the database it is at least once, and the mail's own number lets the server drop it.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from django_dblock import partition_of, partitions
from shop.models import Mail, MailRecord, Order

BUCKETS = 16
BATCH = 5
PAUSE = 0.05  # seconds, when nothing waits to be sent
# What the demo compares with: a claim as SET key value NX PX would make it, which only expires.
_CLAIM = """
INSERT INTO shop_outboxclaim (bucket, owner, expires_at)
VALUES (%s, %s, clock_timestamp() + %s)
ON CONFLICT (bucket) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
WHERE shop_outboxclaim.expires_at < clock_timestamp()
"""
_UNCLAIM = """
UPDATE shop_outboxclaim SET expires_at = clock_timestamp() WHERE bucket = %s AND owner = %s
"""


def confirm(order: Order) -> Mail:
    """Write the order's confirmation mail into the outbox; belongs into the order's transaction."""
    return Mail.objects.create(order=order, bucket=partition_of(order.reference, BUCKETS))


def drain(worker: str, *, stop: Callable[[], bool]) -> int:
    """Send mails until told to stop; return how many this worker has recorded.

    With ``SHOP_PARTITIONS`` off the buckets are claimed one by one by locks that expire: all that
    the demo's two runs differ in.

    Args:
        worker: a name for people.
        stop: asked between two batches.
    """
    if not settings.SHOP_PARTITIONS:
        return _drain_claimed(worker, stop)
    total = 0
    ttl = settings.SHOP_OUTBOX_TTL
    with partitions("outbox", count=BUCKETS, ttl=ttl, metadata={"worker": worker}) as mine:
        while not stop():
            before = total
            for part in mine:
                with part:  # a partition that was lost ends the block, and the loop goes on
                    total += _send(part.number, worker, part.guard)
                if stop():
                    break
            if total == before:
                time.sleep(PAUSE)
    return total


def _drain_claimed(worker: str, stop: Callable[[], bool]) -> int:
    total = 0
    ttl = timedelta(seconds=settings.SHOP_OUTBOX_TTL)
    while not stop():
        before = total
        for bucket in range(BUCKETS):
            if _changed(_CLAIM, [bucket, worker, ttl]):
                total += _send(bucket, worker, transaction.atomic)
                _changed(_UNCLAIM, [bucket, worker])
        if total == before:
            time.sleep(PAUSE)
    return total


def _changed(statement: str, parameters: list[Any]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return bool(cursor.rowcount)


def _send(bucket: int, worker: str, recording: Callable[[], AbstractContextManager[object]]) -> int:
    batch = list(Mail.objects.filter(bucket=bucket, sent_at=None).select_related("order")[:BATCH])
    if not batch:
        return 0
    for mail in batch:
        _hand_over(mail)
    with recording():
        MailRecord.objects.bulk_create(MailRecord(mail=mail, worker=worker) for mail in batch)
        sent = [mail.pk for mail in batch]
        Mail.objects.filter(pk__in=sent).update(sent_at=timezone.now())
    return len(batch)


def _hand_over(mail: Mail) -> None:
    """Hand a mail to the mail server, which in this shop is a log line."""
    if os.environ.get("SHOP_PRINT_MAILS"):
        print(f"To {mail.order.buyer}: thank you for {mail.order}.")
