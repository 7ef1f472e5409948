"""delete_cas() and touch_version() compare as save_cas() does."""

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models.signals import post_delete, post_save, pre_delete
from django.test.utils import isolate_apps

from django_dblock import MissingVersion, StaleObject, VersionedModel, bypass_versions
from tests.app import models as app
from tests.app.models import Gadget, Invoice, InvoiceLine, Product
from tests.versioning.conftest import overtake, version_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


def verbs(sent):
    return [query["sql"].split()[0] for query in sent.captured_queries]


def test_fast_delete_is_one_statement(statements):
    place = app.Place.objects.create(row="A", number=1)
    with statements() as sent:
        assert place.delete_cas() == (1, {"app.Place": 1})
    assert verbs(sent) == ["DELETE"]
    assert place.pk == (None, None)
    row = app.Checked.objects.create(name="a")
    with statements() as sent:
        assert row.delete_cas() == (1, {"app.Checked": 1})
    [query] = sent.captured_queries
    assert '"version" = 1' in query["sql"]
    assert row.pk is None


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("model", [app.Checked, Product, Gadget, app.Special, app.Fussy, Invoice])
def test_conflict_keeps_the_row_and_a_usable_transaction(model, atomic):
    row = model.objects.create()
    overtake(row, **({"customer": "x"} if model is Invoice else {"name": "theirs"}))
    if model is app.Special:  # only the parent's table was written: that is not versioned
        overtake(row, note="theirs")
    actual = version_of(row)
    with transaction.atomic() if atomic else transaction.mark_for_rollback_on_error("default"):
        with pytest.raises(StaleObject) as caught:
            row.delete_cas()
        assert model.objects.count() == 1
    assert (caught.value.expected, caught.value.actual) == (1, actual)
    assert row.pk is not None
    row.delete_cas(expected=actual)
    assert not model.objects.exists()


def test_deleted_row_is_a_conflict():
    for row in (app.Checked.objects.create(), Product.objects.create()):
        type(row).objects.all().delete()
        with pytest.raises(StaleObject) as caught:
            row.delete_cas()
        assert caught.value.deleted


def test_delete_cascades(statements):
    invoice = Invoice.objects.create()
    InvoiceLine.objects.create(invoice=invoice)
    with statements() as sent:
        assert invoice.delete_cas() == (2, {"app.InvoiceLine": 1, "app.Invoice": 1})
    assert "FOR UPDATE" in sent.captured_queries[1]["sql"]
    assert not InvoiceLine.objects.exists()


def test_set_null_bumps_referring_rows():
    """What Django writes by itself changes the row all the same."""
    product = Product.objects.create(name="a")
    line = InvoiceLine.objects.create(invoice=Invoice.objects.create(), product=product)
    product.delete_cas()
    assert version_of(line) == 2
    line.product_id = None
    with pytest.raises(StaleObject):
        line.save()


def test_receivers_may_write_the_row():
    heard = []

    def write(instance, **_):
        heard.append(instance.pk)
        type(instance).objects.filter(pk=instance.pk).update(name="last words")

    pre_delete.connect(write, sender=app.Checked)
    post_delete.connect(write, sender=app.Checked)
    try:
        row = app.Checked.objects.create(name="a")
        row.delete_cas()
    finally:
        pre_delete.disconnect(write, sender=app.Checked)
        post_delete.disconnect(write, sender=app.Checked)
    assert len(heard) == 2
    assert not app.Checked.objects.exists()


def test_overridden_delete_is_called():
    row = app.Fussy.objects.create(name="bye")
    row.delete_cas()
    assert app.Fussy.goodbye == "bye"
    assert not app.Fussy.objects.exists()


def test_child_and_parent_are_deleted_together():
    gadget = Gadget.objects.create(name="a")
    assert gadget.delete_cas() == (2, {"app.Gadget": 1, "app.Product": 1})


def test_proxy_model_is_supported():
    product = Product.objects.create(name="a")
    app.ProductProxy.objects.get().delete_cas()
    with pytest.raises(StaleObject):
        product.delete_cas()


@isolate_apps("tests.app")
def test_result_names_the_proxy_as_djangos_does():
    class Proxy(app.Note):
        class Meta:
            proxy = True
            app_label = "app"

    app.Note.objects.create(name="a")
    app.Note.objects.create(name="b")
    first, second = Proxy.objects.all()
    assert first.delete_cas() == second.delete() == (1, {"app.Proxy": 1})


def test_refused_delete_marks_the_transaction_for_rollback(rival):
    """A foreign key that Django doesn't know of."""
    row = app.Checked.objects.create(name="a")
    rival.execute(f"CREATE TABLE stranger AS SELECT {row.pk}::bigint AS id")
    rival.execute("ALTER TABLE stranger ADD FOREIGN KEY (id) REFERENCES app_checked")
    try:
        with transaction.atomic():
            with pytest.raises(IntegrityError):
                row.delete_cas()
            assert transaction.get_rollback()
    finally:
        rival.execute("DROP TABLE stranger")


def test_missing_version_or_key_sends_nothing(statements):
    Product.objects.create(name="a")
    deferred = Product.objects.defer("version").get()
    nameless = Product(name="b")
    with statements() as sent:
        for row in (deferred, nameless):
            with pytest.raises(MissingVersion):
                row.delete_cas()
            with pytest.raises(MissingVersion):
                row.touch_version()
        with pytest.raises(ValueError, match="None"):
            app.Checked(name="b").delete_cas(expected=1)
    assert all("BEGIN" in each["sql"] or "ROLL" in each["sql"] for each in sent.captured_queries)


def test_bypass_does_not_affect_delete_cas(product):
    overtake(product)
    with bypass_versions(), pytest.raises(StaleObject):
        product.delete_cas()


# touch_version


def test_touch_only_bumps(product, statements):
    product.name = "not yet"
    with statements() as sent:
        product.touch_version()
    [query] = sent.captured_queries
    assert query["sql"] == (
        'UPDATE "app_product" SET "version" = 2 WHERE ("app_product"."id" = '
        f'{product.pk} AND "app_product"."version" = 1)'
    )
    assert product.version == 2
    product.save()
    assert Product.objects.get().name == "not yet"


def test_touch_is_compared(product):
    overtake(product)
    with transaction.atomic():
        with pytest.raises(StaleObject):
            product.touch_version()
        assert Product.objects.count() == 1
    assert product.version == 1
    Product.objects.all().delete()
    with pytest.raises(StaleObject) as caught:
        product.touch_version()
    assert caught.value.deleted


@pytest.mark.parametrize("first", [VersionedModel.touch_version, VersionedModel.save_cas])
def test_touch_once_per_transaction(product, first, statements):
    with transaction.atomic():
        first(product)
        with statements() as sent:
            for _ in range(3):
                product.touch_version()
            with transaction.atomic(savepoint=False):
                product.touch_version()
        assert len(sent) == 0
    assert product.version == version_of(product) == 2
    with transaction.atomic():
        product.touch_version()
    product.touch_version()
    assert version_of(product) == 4


def test_touch_of_a_row_inserted_in_the_transaction_is_free(statements):
    with transaction.atomic():
        product = Product.objects.create(name="a")
        with statements() as sent:
            product.touch_version()
    assert len(sent) == 0


@pytest.mark.parametrize("write", [
    lambda keys: Product.objects.filter(name="another's").update(stock=1),
    lambda keys: Product.objects.filter(pk__in=keys, name="another's").update(stock=1),
])  # fmt: skip
def test_touch_bumps_a_row_that_the_transaction_may_not_have_written(product, write):
    """Its read can't tell, so one bump too many is right, and none would lose an update."""
    another = Product.objects.create(name="another's")
    with transaction.atomic():
        assert write([product.pk, another.pk]) == 1
        again = Product.objects.get(pk=product.pk)
        again.touch_version()
        assert again.version == version_of(product) == 2
        again.refresh_from_db()
        again.touch_version()
        assert version_of(product) == 2, "it is known to have written this row"


def test_touch_again_when_the_first_was_rolled_back(product):
    with transaction.atomic():
        point = transaction.atomic()
        with pytest.raises(LookupError), point:
            product.touch_version()
            raise LookupError
        product.touch_version()
    assert product.version == version_of(product) == 2


def test_refused_touch_marks_the_transaction_for_rollback(product, rival):
    """Or Django would take the server's ROLLBACK for a COMMIT, and run the hooks."""
    ran = []
    with rival.transaction():
        rival.execute("SELECT FROM app_product FOR UPDATE")
        with transaction.atomic():
            Product.objects.create(name="lost")
            transaction.on_commit(lambda: ran.append(1))
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '20ms'")
            with pytest.raises(OperationalError):
                product.touch_version()
            assert transaction.get_rollback()
    assert not Product.objects.filter(name="lost").exists()
    assert ran == []


def test_touching_the_root_guards_an_aggregate():
    """A part changes; whoever has the whole on the screen notices."""
    invoice = Invoice.objects.create()
    line = InvoiceLine.objects.create(invoice=invoice)
    reader = Invoice.objects.get()

    def touch_root(instance, **_):
        instance.invoice.touch_version()

    post_save.connect(touch_root, sender=InvoiceLine)
    try:
        with transaction.atomic():
            line.save()
            line.save()
    finally:
        post_save.disconnect(touch_root, sender=InvoiceLine)
    assert version_of(invoice) == 2
    with pytest.raises(StaleObject):
        reader.save()


@pytest.mark.parametrize("model", [Gadget, app.Special, app.ProductProxy])
def test_touch_bumps_inherited_and_proxy_models(model):
    row = model.objects.create(name="a")
    row.touch_version()
    assert row.version == version_of(row) == 2
    row.save()
