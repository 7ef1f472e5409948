"""Django's features around save(): fixtures, shortcuts, signals, aliases, rollback marks, async."""

import pytest
from asgiref.sync import async_to_sync
from django.core import serializers
from django.db import transaction
from django.db.models.signals import post_save, pre_save
from django.db.utils import DatabaseError

from django_dblock import StaleObject
from django_dblock.signals import stale_object
from tests.app import models as app
from tests.app.models import Gadget, Product
from tests.versioning.conftest import Replica, overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.mark.parametrize("form", ["json", "xml"])
@pytest.mark.parametrize("model", [Product, Gadget, app.Article, app.Place])
def test_fixture_never_brings_back_an_old_version(form, model):
    values = {app.Article: {"title": "a"}, app.Place: {"row": "A", "number": 1, "guest": "a"}}
    row = model.objects.create(**values.get(model, {"name": "a"}))
    parents = [row.product_ptr] if model is Gadget else []
    dumped = serializers.serialize(form, [*parents, row])
    row.save()
    row.save()
    reader = model.objects.get(pk=row.pk)
    assert version_of(row) == 3
    for each in serializers.deserialize(form, dumped):
        each.save()
    assert version_of(row) == 4
    with pytest.raises(StaleObject):
        reader.save()
    row.delete()
    for each in serializers.deserialize(form, dumped):
        each.save()
    assert version_of(model.objects.get()) == 1


def test_fixture_with_a_newer_version_keeps_it():
    row = Product.objects.create(name="a")
    dumped = serializers.serialize("json", [row]).replace('"version": 1', '"version": 9')
    for each in serializers.deserialize("json", dumped):
        each.save()
    assert version_of(row) == 9


# Django's shortcuts, signals, aliases


def test_get_or_create_and_update_or_create_work(statements):
    made, created = Product.objects.get_or_create(name="a", defaults={"stock": 1})
    assert created
    again, created = Product.objects.get_or_create(name="a")
    assert (again.pk, created, again.version) == (made.pk, False, 1)
    again, created = Product.objects.update_or_create(name="a", defaults={"stock": 2})
    assert (created, again.version, version_of(made)) == (False, 2, 2)
    _, created = Product.objects.update_or_create(name="b", defaults={"stock": 2})
    assert created


def connect(signal, receiver):
    signal.connect(receiver, sender=Product)
    return lambda: signal.disconnect(receiver, sender=Product)


@pytest.fixture
def receive(request):
    def add(signal, receiver):
        request.addfinalizer(connect(signal, receiver))

    return add


@pytest.mark.parametrize("signal", [pre_save, post_save])
@pytest.mark.parametrize("save", [lambda p: p.save(), lambda p: p.save_cas()])
def test_receiver_may_save_the_same_instance(product, receive, signal, save):
    depth = []

    def again(instance, **_):
        if not depth:
            depth.append(1)
            instance.save(update_fields=["stock"])

    receive(signal, again)
    save(product)
    assert product.version == version_of(product) == 3
    assert "_version_attempt" not in product.__dict__


@pytest.mark.parametrize("signal", [pre_save, post_save])
def test_receiver_may_meet_a_conflict_of_another_row(product, receive, signal):
    other = Product.objects.create(name="other")
    stale = Product.objects.get(pk=other.pk)
    overtake(other)

    def save_other(instance, **_):
        if instance.pk == product.pk:
            stale.save()

    receive(signal, save_other)
    with transaction.atomic():
        with pytest.raises(StaleObject) as caught:
            product.save()
        assert caught.value.pk == other.pk
        Product.objects.create(name="later")
    assert product.version == version_of(product) == (1 if signal is pre_save else 2)


@pytest.mark.parametrize("signal", [pre_save, post_save])
def test_error_of_a_receiver_propagates(product, receive, signal):
    def fail(**_):
        raise LookupError

    receive(signal, fail)
    with pytest.raises(LookupError):
        product.save()
    assert product.version == version_of(product) == (1 if signal is pre_save else 2)


def test_conflict_sends_stale_object_and_no_post_save(product, receive):
    seen, errors = [], []
    receive(post_save, lambda **facts: seen.append(facts))

    def hear(sender, error, **_):
        errors.append((sender, error))

    stale_object.connect(hear)
    try:
        overtake(product)
        with pytest.raises(StaleObject) as caught:
            product.save()
    finally:
        stale_object.disconnect(hear)
    assert seen == []
    assert errors == [(Product, caught.value)]


def test_save_compares_on_the_alias_of_the_instance():
    product = Product(name="a")
    product.save(using="other")
    assert not Product.objects.using("default").exists()
    product.name = "b"
    product.save_cas()
    assert version_of(product, "other") == 2
    mine = Product.objects.using("other").get()
    Product.objects.using("other").update(stock=1)
    with pytest.raises(StaleObject) as caught:
        mine.save_cas(using="other")
    assert caught.value.using == "other"
    with pytest.raises(StaleObject) as caught:
        mine.save_cas(using="default")
    assert caught.value.deleted


def test_replica_router_writes_to_the_primary(settings):
    row = Product.objects.create(name="a")
    Product.objects.using("other").create(pk=row.pk, name="a")
    settings.DATABASE_ROUTERS = [Replica()]
    product = Product.objects.get(pk=row.pk)
    assert product._state.db == "other"
    product.save()
    assert Product.objects.using("default").get().version == 2
    product = Product.objects.get(pk=row.pk)  # the replica lags
    with pytest.raises(StaleObject) as caught:
        product.save()
    assert (caught.value.using, caught.value.actual) == ("default", 2)
    with pytest.raises(StaleObject):
        product.delete_cas()
    with pytest.raises(StaleObject):
        product.touch_version()


# Marks


def sql_of(sent):
    return [query["sql"] for query in sent.captured_queries]


def test_earlier_rollback_mark_stays(product):
    overtake(product)
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(transaction.TransactionManagementError):
            product.save()
        assert transaction.get_rollback()
    assert product.version == 1


def test_rollback_mark_of_another_alias_stays(product):
    overtake(product)
    with transaction.atomic(), transaction.atomic(using="other"):
        Product.objects.using("other").create(name="a")
        transaction.set_rollback(True, using="other")
        with pytest.raises(StaleObject):
            product.save()
        assert transaction.get_rollback(using="other")
        assert not transaction.get_rollback()
    assert not Product.objects.using("other").exists()


@pytest.mark.parametrize("model", [Product, Gadget])
def test_rollback_mark_of_other_errors_stays(model):
    row = model.objects.create(name="a")
    row.name = "x" * 99
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            row.save()
        assert transaction.get_rollback()


def test_unneeded_savepoint_is_dropped(statements):
    gadget = Gadget.objects.create(name="a")
    with transaction.atomic():
        with statements() as sent:
            gadget.save()
            overtake(gadget)
            with pytest.raises(StaleObject):
                gadget.save()
    verbs = [sql.split()[0] for sql in sql_of(sent)]
    assert verbs.count("SAVEPOINT") == verbs.count("RELEASE") == 2
    assert verbs.count("ROLLBACK") == 1


# Async


def test_async_save_compares(product):
    async def work():
        product.name = "mine"
        await product.asave_cas()
        await product.asave_cas(expected=2, update_fields=["name"])
        await product.asave()
        await product.atouch_version()
        await Product.objects.filter(pk=product.pk).aupdate(stock=3)
        with pytest.raises(StaleObject):
            await product.asave()
        with pytest.raises(StaleObject):
            await product.adelete_cas()
        await product.arefresh_from_db()
        return await product.adelete_cas()

    assert async_to_sync(work)() == (1, {"app.Product": 1})
