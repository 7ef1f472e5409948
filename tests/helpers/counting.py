"""Read-modify-writes of one counter, each under a lock: what the races about lost updates run."""

from django.db import transaction

from tests.app.models import Counter


def add_one():
    counter = Counter.objects.get(name="hits")
    counter.value += 1
    counter.save()


def own_transaction(_number, lock, rounds):
    for _ in range(rounds):
        with lock("counter", "hits"):
            add_one()


def outer_transaction(_number, lock, rounds):
    """As under ATOMIC_REQUESTS: the block ends before the transaction does."""
    for _ in range(rounds):
        with transaction.atomic():
            with lock("counter", "hits"):
                add_one()
            Counter.objects.count()  # the rest of the view
