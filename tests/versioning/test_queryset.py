"""Writes without save(): update() bumps, bulk_create() never overwrites."""

import threading

import pytest
from django.core.exceptions import FieldError
from django.db import NotSupportedError, connection, transaction
from django.db.models import Count, F, Q

from django_dblock import MissingVersion, StaleObject
from tests.app import models as app
from tests.app.models import Gadget, Invoice, InvoiceLine, Product
from tests.helpers import observe
from tests.versioning.conftest import version_of

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def products(count=3, model=Product, **values):
    model.objects.bulk_create(model(name=f"p{number}", **values) for number in range(count))
    return list(model.objects.order_by("pk"))


def writes(sent):
    return [
        query["sql"]
        for query in sent.captured_queries
        if query["sql"].startswith(("UPDATE", "WITH"))
    ]


def test_update_bumps_in_the_same_statement(product, statements):
    with statements() as sent:
        Product.objects.filter(pk=product.pk).update(stock=F("stock") + 1)
    [query] = sent.captured_queries
    assert '"version" = ("app_product"."version" + 1)' in query["sql"]
    with pytest.raises(StaleObject):
        product.save()


def test_update_never_sets_a_version_by_hand(product):
    with pytest.raises(ValueError, match="bumped by update"):
        Product.objects.update(version=7)
    assert Product.objects.update() == 0
    assert version_of(product) == 1


def test_update_of_a_childs_column_bumps_the_parents_version():
    gadget = Gadget.objects.create(name="a")
    Gadget.objects.update(watts=5)
    assert version_of(gadget) == 2
    special = app.Special.objects.create(name="a")
    app.Special.objects.update(name="b")
    assert version_of(special) == 2
    app.ProductProxy.objects.update(name="c")
    assert version_of(gadget) == 3


def test_update_with_composite_pk_and_renamed_version():
    app.Place.objects.create(row="A", number=1)
    app.Place.objects.filter(pk=("A", 1)).update(guest="x")
    assert app.Place.objects.get().version == 2
    app.Article.objects.create(title="a")
    app.Article.objects.update(title="b")
    assert app.Article.objects.get().revision == 2


def test_bulk_update_bumps_once():
    rows = products()
    Product.objects.bulk_update(rows, ["name"])
    assert {version_of(row) for row in rows} == {2}
    with pytest.raises(StaleObject):
        rows[0].save()


def test_related_managers_bump():
    invoice, other = Invoice.objects.create(), Invoice.objects.create()
    line = InvoiceLine.objects.create(invoice=invoice)
    other.lines.add(InvoiceLine.objects.get(), bulk=True)
    assert version_of(line) == 2
    other.lines.update(quantity=5)
    assert version_of(line) == 3
    product = Product.objects.create(name="a")
    product.lines.add(InvoiceLine.objects.get())
    product.lines.clear()
    assert version_of(line) == 5
    product.lines.set([InvoiceLine.objects.get()])
    product.lines.remove(InvoiceLine.objects.get())
    assert version_of(line) == 7


def test_custom_queryset_and_manager_bump():
    row = app.Managed.objects.create(price=3)
    assert app.Managed.objects.cheap().update(price=4) == 1
    assert version_of(row) == 2
    row.price = 5
    assert app.Managed.objects.cheap().bulk_save_cas([row], ["price"]) == [row.pk]
    row.refresh_from_db()
    assert app.Managed.objects.cheap().bulk_save_cas([row], ["price"]) == []


def test_bulk_created_objects_can_be_saved_but_not_upserted():
    [product] = Product.objects.bulk_create([Product(name="a")])
    product.name = "b"
    product.save()
    assert version_of(product) == 2
    more = {"update_fields": ["name"], "unique_fields": ["id"]}
    with pytest.raises(ValueError, match="without bumping their versions"):
        Product.objects.bulk_create([product], update_conflicts=True, **more)
    with pytest.raises(ValueError, match="without bumping their versions"):
        Product.objects.bulk_create([product], None, False, True, ["name"], ["id"])


def test_row_skipped_by_bulk_create_is_not_overwritten():
    """Both have version 1, but it is another's row."""
    Invoice.objects.create(customer="theirs")
    key = Invoice.objects.get().pk
    for positional in (False, True):
        mine = Invoice(pk=key, customer="mine")
        nameless = Product(name="a")
        if positional:
            Invoice.objects.bulk_create([mine], None, True)
            Product.objects.bulk_create([nameless], None, True)
        else:
            Invoice.objects.bulk_create([mine], ignore_conflicts=True)
            Product.objects.bulk_create([nameless], ignore_conflicts=True)
        with pytest.raises(MissingVersion):
            mine.save()
        nameless._state.adding = True
        nameless.save()
    assert Invoice.objects.get().customer == "theirs"


@pytest.mark.parametrize(
    ("model", "change"), [(Gadget, {"watts": 5}), (app.Special, {"name": "b"})]
)
def test_update_of_several_tables_bumps_with_the_change_or_not_at_all(model, change):
    """Committed by itself, the change would be there under the old version."""
    row = model.objects.create(name="a")
    updates = []

    def lose_the_second(execute, sql, *args):
        if sql.startswith("UPDATE"):
            updates.append(sql)
            if len(updates) == 2:
                raise ZeroDivisionError
        return execute(sql, *args)

    with pytest.raises(ZeroDivisionError), connection.execute_wrapper(lose_the_second):
        model.objects.filter(pk=row.pk).update(**change)
    assert not model.objects.filter(**change).exists()
    assert version_of(row) == 1


@pytest.mark.parametrize(
    ("model", "change"), [(Gadget, {"watts": 5}), (app.Special, {"name": "b"})]
)
def test_update_of_several_tables_does_not_deadlock_with_a_save(model, change, observer):
    """Both lock the tables in the same order: the parents' rows first."""
    row = model.objects.get(pk=model.objects.create(name="a").pk)
    saving = []

    def save():
        try:
            row.save()
        except Exception as error:  # noqa: BLE001 - judged below
            saving.append(error)
        finally:
            connection.close()

    other = threading.Thread(target=save)

    def pause_after_the_first(execute, sql, *args):
        result = execute(sql, *args)
        if sql.startswith("UPDATE") and not other.ident:
            other.start()
            observe.until(lambda: observer.execute(BLOCKED).fetchone()[0], "the save waits")
        return result

    with connection.execute_wrapper(pause_after_the_first):
        assert model.objects.filter(Q(pk=row.pk) | Q(pk=row.pk)).update(**change) == 1
    other.join()
    [conflict] = saving
    assert isinstance(conflict, StaleObject)
    assert model.objects.filter(**change).exists()
    assert version_of(row) == 2


BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pg_blocking_pids(pid) <> '{}'"
)


def test_update_of_several_tables_locks_the_parents_rows_first(statements):
    Gadget.objects.create(name="a")
    with statements() as sent:
        Gadget.objects.order_by("name").select_for_update(of=("self",)).update(watts=5)
    queries = [each["sql"] for each in sent.captured_queries]
    assert [sql.split()[0] for sql in queries] == [
        "BEGIN", "SELECT", "SELECT", "UPDATE", "UPDATE", "COMMIT"
    ]  # fmt: skip
    lock = queries[1]
    assert 'FROM "app_product" WHERE' in lock
    assert lock.endswith("ORDER BY 1 ASC FOR NO KEY UPDATE")
    assert lock.count("UPDATE") == 1


def test_update_locks_all_tables_but_the_last(statements):
    app.Coded.objects.create(name="a", code="a")
    with statements() as sent:
        app.Coded.objects.update(extra="b", text="b", name="b")
    locks = [each["sql"] for each in sent.captured_queries if "FOR NO KEY" in each["sql"]]
    assert [sql.split(" FROM ")[1].split()[0] for sql in locks] == ['"app_plain"', '"app_code"']
    assert app.Coded.objects.values_list("name", "text", "extra", "version").get() == (*"bbb", 2)


def test_update_of_several_tables_may_aggregate_and_change_what_it_matches():
    gadgets = [Gadget.objects.create(name=name) for name in "ab"]
    InvoiceLine.objects.create(invoice=Invoice.objects.create(), product=gadgets[0])
    rows = Gadget.objects.annotate(lines_now=Count("lines")).filter(lines_now=1, watts=0)
    assert rows.update(watts=5, name="c") == 1
    found = Gadget.objects.order_by("pk").values_list("name", "watts", "version")
    assert list(found) == [("c", 5, 2), ("b", 0, 1)]


def test_update_that_is_refused_does_not_break_the_transaction():
    Gadget.objects.create(name="a")
    both = Gadget.objects.union(Gadget.objects.all())
    with transaction.atomic():
        with pytest.raises(TypeError, match="slice"):
            Gadget.objects.all()[:1].update(watts=5)
        with pytest.raises(NotSupportedError):
            both.update(watts=5)
        with pytest.raises(FieldError):
            Gadget.objects.update(watts=F("name__nothing"))
        assert Gadget.objects.get().watts == 0
