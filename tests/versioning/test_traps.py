"""The traps that other packages fell into, each by its name in the specification."""

import asyncio
import threading
from contextvars import copy_context

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import OperationalError, connection, transaction

from django_dblock import StaleObject, VersionField, bypass_versions
from tests.app.models import Product
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True)


def test_trap_extra_select_per_save(product, statements):
    with statements() as sent:
        product.save()
        product.save_cas()
    assert [query["sql"].split()[0] for query in sent.captured_queries] == ["UPDATE", "UPDATE"]


@pytest.mark.parametrize("save", ["save", "save_cas", "touch_version"])
def test_trap_version_in_memory_bumped_by_a_conflict(product, save):
    """So that the next save overwrote the winner."""
    overtake(product)
    for _ in range(3):
        with pytest.raises(StaleObject):
            getattr(product, save)()
    assert Product.objects.get().name == "theirs"


@pytest.mark.parametrize("options", [{}, {"update_fields": ["name"]}, {"force_update": True}])
def test_trap_deleted_row_is_reinserted(product, options):
    Product.objects.all().delete()
    with pytest.raises(StaleObject) as caught:
        product.save(**options)
    assert caught.value.deleted
    assert not Product.objects.exists()


def test_trap_update_fields_without_a_bump(product):
    other = Product.objects.get(pk=product.pk)
    product.save(update_fields=["name"])
    assert version_of(product) == 2
    with pytest.raises(StaleObject):
        other.save(update_fields=["stock"])


def test_trap_global_disable_switch_and_another_thread(product):
    overtake(product)
    found = []

    def other_thread():
        try:
            product.save()
        except StaleObject as error:
            found.append(error)
        finally:
            connection.close()

    with bypass_versions():
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert len(found) == 1
    assert Product.objects.get().name == "theirs"


def test_trap_global_disable_switch_and_another_task(product):
    """The same for tasks of one thread, and the threads that their database work runs in."""
    overtake(product)

    async def maintain(inside, done):
        with bypass_versions():
            inside.set()
            await done.wait()
            await Product.objects.filter(pk=product.pk).aupdate(stock=1)

    async def edit(inside, done):
        await inside.wait()
        try:
            with pytest.raises(StaleObject):
                await product.asave()
            await sync_to_async(product.refresh_from_db)()
        finally:
            done.set()

    async def both():
        events = asyncio.Event(), asyncio.Event()
        await asyncio.gather(maintain(*events), edit(*events))

    async_to_sync(both)()
    assert version_of(product) == 2, "the update inside the block did not bump"


def test_bypass_does_not_leak_from_a_copied_context(product):
    def inside():
        with bypass_versions():
            return version_of(product)

    copy_context().run(inside)
    overtake(product)
    with pytest.raises(StaleObject):
        product.save()


def test_trap_check_in_memory_only(product):
    """Between a look and a write there is room for another writer; here there is no look."""
    with transaction.atomic():
        product.name = "mine"
        overtake(product)
        with pytest.raises(StaleObject):
            product.save_cas(expected=1)
    assert Product.objects.get().name == "theirs"


def test_trap_microsecond_clock_as_version(product, monkeypatch):
    """Two writes in one microsecond have two versions: they are counted."""
    assert VersionField().get_internal_type() == "BigIntegerField"
    for wanted in range(2, 12):
        product.save()
        assert version_of(product) == product.version == wanted


def test_trap_repeatable_read_raises_40001(product, rival):
    """Not zero rows: PostgreSQL itself refuses, and the transaction is over."""
    with pytest.raises(OperationalError) as caught, transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        again = Product.objects.get(pk=product.pk)
        rival.execute("UPDATE app_product SET version = version + 1")
        again.save()
    assert caught.value.__cause__.sqlstate == "40001"


def test_trap_conflict_aborts_the_transaction(product):
    overtake(product)
    with transaction.atomic():
        Product.objects.create(name="before")
        with pytest.raises(StaleObject):
            product.save()
        product.refresh_from_db()
        product.name = "mine"
        product.save()
    assert set(Product.objects.values_list("name", flat=True)) == {"before", "mine"}
