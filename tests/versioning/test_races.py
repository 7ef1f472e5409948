"""Real processes on one row: no update is lost. Each with the twin that does lose."""

import pytest
from django.db import OperationalError, connection, transaction

from django_dblock import StaleObject, bypass_versions, retry_on_conflict
from tests.app.models import Gadget, Product, TwinProduct
from tests.helpers.processes import process, race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.loss,
    pytest.mark.server,
]

PROCESSES, FEW, ROUNDS = 16, 6, 20
LEVELS = ["read committed", "repeatable read"]


def isolate(level):
    with connection.cursor() as cursor:
        cursor.execute(f"SET default_transaction_isolation = '{level}'")


def increment(model):
    row = model.objects.get()
    row.stock += 1
    row.save()


def retried(_number, model, level):
    isolate(level)
    work = retry_on_conflict(attempts=1000, base=0.01, cap=0.5)(increment)
    for _ in range(ROUNDS):
        work(model)


def in_a_loop(_number, model, level):
    """As users write it who know no decorator: each save stands alone."""
    isolate(level)
    for _ in range(ROUNDS):
        while True:
            try:
                increment(model)
                break
            except StaleObject:
                continue


def unchecked(_number, model, level):
    isolate(level)
    for _ in range(ROUNDS):
        row = model.objects.get()
        row.stock += 1
        while not saved(row):
            pass


def saved(row):
    """Save, whatever was written meanwhile; an UPDATE alone may be refused above READ COMMITTED."""
    try:
        row.save()
    except OperationalError as error:
        assert error.__cause__.sqlstate == "40001"  # noqa: PT017
        return False
    return True


def bypassed(_number, model, level):
    with bypass_versions():
        unchecked(_number, model, level)


def count(work, model, level, processes=PROCESSES):
    model.objects.create(name="hot")
    race(processes, work, model, level)
    return model.objects.get()


@pytest.mark.parametrize("level", LEVELS)
def test_16_processes_lose_no_increment(level):
    row = count(retried, Product, level)
    assert row.stock == PROCESSES * ROUNDS
    assert row.version == PROCESSES * ROUNDS + 1, "each write bumped once"


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_lost_where_a_row_has_two_tables(level):
    row = count(retried, Gadget, level, processes=4)
    assert row.stock == row.version - 1 == 4 * ROUNDS


def test_loop_without_a_transaction_loses_nothing():
    row = count(in_a_loop, Product, "read committed", processes=FEW)
    assert row.stock == FEW * ROUNDS


@pytest.mark.parametrize("level", LEVELS)
def test_negative_twin_without_the_version_updates_are_lost(level):
    """Outside a transaction: there each statement sees the newest, on either level."""
    assert count(unchecked, TwinProduct, level, processes=FEW).stock < FEW * ROUNDS


def test_negative_twin_retried_without_versions_loses_updates():
    row = count(retried, TwinProduct, "read committed", processes=FEW)
    assert row.stock < FEW * ROUNDS


def test_negative_twin_bypassing_versions_loses_updates():
    row = count(bypassed, Product, "read committed", processes=FEW)
    assert row.stock < FEW * ROUNDS


# Overlapping rows in opposite order


def rewrite(number, how):
    """Write all rows up to 20 times, the odd processes from behind; return the number of deadlocks.

    One is enough: each takes the server's deadlock_timeout.
    """
    deadlocks = 0
    for _ in range(20):
        rows = list(Product.objects.order_by("pk"))
        if number % 2:
            rows.reverse()
        try:
            if how == "bulk_save_cas":
                Product.objects.bulk_save_cas(rows, ["name"])
            else:
                one_by_one(rows)
        except OperationalError as error:
            assert error.__cause__.sqlstate == "40P01"  # noqa: PT017
            deadlocks += 1
            break
    return deadlocks


@transaction.atomic
def one_by_one(rows):
    """What bulk_update does, too, where a batch is one row: each locks in the order given."""
    Product.objects.bulk_update(rows, ["name"], batch_size=1)


@pytest.mark.parametrize("how", ["bulk_save_cas", "bulk_update"])
def test_only_bulk_update_deadlocks_in_opposite_order(how):
    """They never deadlock; the negative twin, bulk_update, does."""
    Product.objects.bulk_create(Product(name=f"p{number}") for number in range(60))
    deadlocks = sum(race(2, rewrite, how))
    assert (deadlocks == 0) == (how == "bulk_save_cas")


def hold_until_told(channel, pk):
    row = Product.objects.get(pk=pk)
    channel.send("read")
    channel.receive()
    row.name = "stale"
    try:
        row.save()
    except StaleObject as error:
        return error.expected, error.actual
    return None


def test_error_from_another_process_has_its_data():
    row = Product.objects.create(name="a")
    with process(hold_until_told, row.pk) as other:
        assert other.receive() == "read"
        row.name = "mine"
        row.save()
        other.send("go")
        assert other.receive() == (1, 2)
    assert Product.objects.get().name == "mine"
