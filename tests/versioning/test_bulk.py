"""bulk_save_cas(): each row is compared, all of a batch in one statement."""

import datetime as dt
import threading
import uuid
from decimal import Decimal

import pytest
from django.db import DataError, connection, models, transaction
from django.db.models import F
from django.db.transaction import TransactionManagementError
from django.db.utils import DatabaseError, NotSupportedError

from django_dblock import MissingVersion, StaleObject, StaleObjects, bypass_versions
from django_dblock.signals import stale_object
from django_dblock.versioning import bulk
from tests.app import models as app
from tests.app.models import Counter, Gadget, Invoice, InvoiceLine, Product, Typed
from tests.helpers.observe import until
from tests.helpers.processes import process
from tests.versioning.conftest import overtake, version_of

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


def test_one_statement_writes_fresh_and_reports_stale(statements):
    rows = products(4)
    overtake(rows[1])
    Product.objects.filter(pk=rows[3].pk).delete()
    for row in rows:
        row.name, row.stock = "mine", 99
    with statements() as sent:
        stale = Product.objects.bulk_save_cas(rows, ["name"])
    assert stale == [rows[1].pk, rows[3].pk]
    assert len(writes(sent)) == 1
    assert len(sent) == 3, "BEGIN, the statement, COMMIT"
    assert list(Product.objects.order_by("pk").values_list("name", "stock", "version")) == [
        ("mine", 0, 2), ("theirs", 0, 2), ("mine", 0, 2),
    ]  # fmt: skip
    assert [row.version for row in rows] == [2, 1, 2, 1]
    rows[0].save()
    with pytest.raises(StaleObject):
        rows[1].save()


def test_statements_equal_bulk_update(statements):
    rows = products(10)
    counts = []
    for write in (
        lambda: Product.objects.bulk_update(rows, ["name"], batch_size=4),
        lambda: Product.objects.bulk_save_cas(
            Product.objects.order_by("pk"), ["name"], batch_size=4
        ),
    ):
        with statements() as sent:
            write()
        counts.append(len(writes(sent)))
    assert counts == [3, 3]
    assert set(Product.objects.values_list("version", flat=True)) == {3}


def break_by_the_orm(**_):
    Counter.objects.create(name=None)


def break_by_a_cursor(**_):
    connection.cursor().execute("SELECT 1/0")


def roll_back(**_):
    transaction.set_rollback(True)


@pytest.fixture(params=[break_by_the_orm, break_by_a_cursor, roll_back])
def breaking_receiver(request):
    """What a receiver of stale_object raises is only logged."""
    stale_object.connect(request.param)
    yield request.param
    stale_object.disconnect(request.param)


def test_receiver_that_breaks_the_transaction_is_no_success(breaking_receiver):
    rows = products()
    overtake(rows[2])
    with pytest.raises(TransactionManagementError, match="A receiver of stale_object"):
        Product.objects.bulk_save_cas(rows, ["name"])
    assert [row.version for row in rows] == [1, 1, 1]
    assert sorted(Product.objects.values_list("version", flat=True)) == [1, 1, 2]


@pytest.mark.parametrize("breaking_receiver", [break_by_the_orm, break_by_a_cursor], indirect=True)
def test_transaction_that_a_receiver_broke_does_not_commit(product, breaking_receiver):
    """Django must not take it for usable: COMMIT would be a rollback, and the hooks would run."""
    ran = []
    overtake(product)
    with transaction.atomic():
        transaction.on_commit(lambda: ran.append(1))
        Counter.objects.create(name="before")
        with pytest.raises(StaleObject):
            product.save()
    assert not Counter.objects.exists()
    assert ran == []


def test_on_conflict_raise_is_all_or_nothing():
    rows = products()
    overtake(rows[2])
    heard = []

    def hear(sender, error, **_):
        heard.append((sender, error))

    stale_object.connect(hear)
    try:
        with transaction.atomic():
            with pytest.raises(StaleObjects) as caught:
                Product.objects.bulk_save_cas(rows, ["name"], on_conflict="raise", batch_size=1)
            assert set(Product.objects.values_list("version", flat=True)) == {1, 2}
            assert [row.version for row in rows] == [1, 1, 1]
    finally:
        stale_object.disconnect(hear)
    assert (caught.value.pks, caught.value.using) == ([rows[2].pk], "default")
    assert caught.value.model == "app.Product"
    assert heard == [(Product, caught.value)]
    Product.objects.bulk_save_cas(rows[:2], ["name"], on_conflict="raise")
    assert [row.version for row in rows] == [2, 2, 1]


@pytest.mark.parametrize(
    ("objs", "fields", "options", "error", "match"),
    [
        (lambda p: [p], [], {}, ValueError, "Field names must be given"),
        (lambda p: [p], ["id"], {}, ValueError, "primary key"),
        (lambda p: [p], ["version"], {}, ValueError, "bumped anyway"),
        (lambda p: [p], ["lines"], {}, ValueError, "plain columns"),
        (lambda p: [p], ["nonsense"], {}, Exception, "no field named"),
        (lambda p: [Invoice()], ["name"], {}, TypeError, "got <Invoice"),
        (lambda p: [Product(name="x")], ["name"], {}, ValueError, "primary key set"),
        (lambda p: [Product(pk=1, name="x")], ["name"], {}, MissingVersion, "never read"),
        (lambda p: [p, p], ["name"], {}, ValueError, "is given twice"),
        (lambda p: [p], ["name"], {"batch_size": 0}, ValueError, "positive"),
        (lambda p: [p], ["name"], {"on_conflict": "ignore"}, ValueError, "'report' or 'raise'"),
    ],
)
def test_wrong_arguments_are_refused_before_sql(
    product, statements, objs, fields, options, error, match
):
    with statements() as sent, pytest.raises(error, match=match):
        Product.objects.bulk_save_cas(objs(product), fields, **options)
    assert len(sent) == 0


def test_expressions_are_refused(product):
    product.stock = F("stock") + 1
    with pytest.raises(ValueError, match="not expressions"):
        Product.objects.bulk_save_cas([product], ["stock"])


def test_generated_columns_and_parent_links_are_refused():
    article = app.Article.objects.create(title="a")
    with pytest.raises(ValueError, match="generated"):
        app.Article.objects.bulk_save_cas([article], ["slug"])
    coded = app.Coded.objects.create(name="a", code="x")
    for name in ("code_ptr", "plain_ptr", "id", "code"):
        with pytest.raises(ValueError, match="primary key"):
            app.Coded.objects.bulk_save_cas([coded], [name])


class Sealed(models.TextField):
    """As the fields that encrypt in the database."""

    def get_placeholder_sql(self, value, compiler, connection):
        return "upper(%s)", (value,)


def test_field_with_sql_wrapping_is_refused(product, monkeypatch):
    """Written as they are they would be the clear text."""
    assert bulk._made_of_sql(Sealed())
    name = Product._meta.get_field("name")
    monkeypatch.setattr(name, "get_placeholder", Sealed.get_placeholder_sql, raising=False)
    with pytest.raises(ValueError, match="get_placeholder"):
        Product.objects.bulk_save_cas([product], ["name"])


def test_empty_list_writes_nothing(product, statements):
    with statements() as sent:
        assert Product.objects.bulk_save_cas([], ["name"]) == []
    assert len(sent) == 0
    assert Product.objects.none().bulk_save_cas([product], ["name"]) == [product.pk]
    assert version_of(product) == 1


def values(number, product):
    moment = dt.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=dt.UTC)
    return {
        "short": "äb%"[:number],
        "amount": Decimal("-123456.78"),
        "data": {"a": [1, None, "%s"], "number": number},
        "words": ["one", "%s", None],
        "key": uuid.UUID(int=number),
        "day": dt.date(2024, 2, 29),
        "moment": moment,
        "span": dt.timedelta(days=400, microseconds=number),
        "raw": b"\x00%s\xff",
        "flag": bool(number),
        "ratio": 0.1 + 0.2,
        "small": -32768,
        "product": product,
    }


def read(row):
    row = Typed.objects.get(pk=row.pk)
    return {name: getattr(row, name) for name in values(0, None)}


@pytest.mark.parametrize("server_side", [False, True])
@pytest.mark.parametrize("nulls_first", [False, True])
def test_every_column_type_is_written(product, nulls_first, server_side, monkeypatch):
    """The first row names the types, so it is tried with NULLs and without."""
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", server_side)
    connection.close()
    rows = [Typed.objects.create() for _ in range(3)]
    empty = dict.fromkeys(values(0, None))
    given = [values(1, product), empty, values(3, product)]
    if nulls_first:
        given[0], given[1] = given[1], given[0]
    for row, wanted in zip(rows, given, strict=True):
        for name, value in wanted.items():
            setattr(row, name, value)
    assert Typed.objects.bulk_save_cas(rows, list(empty)) == []
    for row, wanted in zip(rows, given, strict=True):
        found = read(row)
        found["raw"] = found["raw"] and bytes(found["raw"])
        assert found == wanted
        row.save()
        assert version_of(row) == 3
    connection.close()


@pytest.mark.parametrize(
    ("name", "value"), [("short", "long"), ("words", ["longer"]), ("small", 2**17)]
)
@pytest.mark.parametrize("place", [0, 1])
def test_too_long_value_is_an_error_and_writes_no_row(name, value, place):
    rows = [Typed.objects.create() for _ in range(2)]
    setattr(rows[place], name, value)
    with pytest.raises(DatabaseError) as caught:
        Typed.objects.bulk_save_cas(rows, [name])
    assert isinstance(caught.value, DataError)
    assert Typed.objects.filter(version=1).count() == 2
    assert [row.version for row in rows] == [1, 1]


@pytest.mark.parametrize(
    ("kind", "value", "long"), [("char(3)", "abc", "abcd"), ("bit(3)", "101", "1010")]
)
def test_type_of_length_one_without_its_length_is_written_whole(kind, value, long, monkeypatch):
    """``char`` means char(1) and ``bit`` means bit(1), to which a cast cuts without an error."""
    row, field = Typed.objects.create(), Typed._meta.get_field("short")

    def become(kind):
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE app_typed ALTER short TYPE {kind} USING NULL::{kind}")

    monkeypatch.setattr(field, "db_type", lambda connection: kind)
    become(kind)
    try:
        row.short = value
        assert Typed.objects.bulk_save_cas([row], ["short"]) == []
        assert Typed.objects.get().short == value
        row.short = long
        with pytest.raises(DatabaseError):
            Typed.objects.bulk_save_cas([row], ["short"])
    finally:
        become("varchar(3)")


def test_auto_now_is_unchanged_as_in_bulk_update():
    row = Typed.objects.create()
    seen = row.seen
    Typed.objects.bulk_save_cas([row], ["short"])
    assert Typed.objects.get().seen == seen


def test_unsaved_related_object_is_refused():
    row = Typed.objects.create()
    row.product = Product(name="unsaved")
    with pytest.raises(ValueError, match="unsaved related object"):
        Typed.objects.bulk_save_cas([row], ["product"])


def test_filtered_or_sliced_queryset_limits_the_rows():
    rows = products(4)
    assert Product.objects.filter(name__in=["p0", "p1"]).bulk_save_cas(rows, ["stock"]) == [
        rows[2].pk, rows[3].pk,
    ]  # fmt: skip
    rows = list(Product.objects.order_by("pk"))
    last = Product.objects.order_by("-pk")[:1]
    assert last.bulk_save_cas(rows, ["stock"]) == [row.pk for row in rows[:3]]
    line = InvoiceLine.objects.create(invoice=Invoice.objects.create(customer="x"))
    mine = InvoiceLine.objects.filter(invoice__customer="x").exclude(quantity=7)
    assert mine.bulk_save_cas([line], ["quantity"]) == []
    assert mine.filter(quantity=8).bulk_save_cas([line], ["quantity"]) == [line.pk]


def test_union_is_refused(product):
    both = Product.objects.filter(name="a").union(Product.objects.filter(name="b"))
    with pytest.raises(NotSupportedError):
        both.bulk_save_cas([product], ["name"])


@pytest.mark.parametrize("filtered", [False, True])
def test_composite_pk_is_supported(filtered):
    rows = [app.Place.objects.create(row="A", number=number) for number in range(3)]
    overtake(rows[1], guest="theirs")
    for row in rows:
        row.guest = "mine"
    places = app.Place.objects.filter(row="A") if filtered else app.Place.objects
    assert places.bulk_save_cas(rows, ["guest"]) == [("A", 1)]
    assert app.Place.objects.filter(guest="mine", version=2).count() == 2


@pytest.mark.parametrize("fields", [["name"], ["watts"], ["name", "watts"]])
def test_child_compares_the_parents_version(fields, statements):
    rows = [Gadget.objects.create(name="a", watts=1) for _ in range(3)]
    overtake(Product.objects.get(pk=rows[1].pk), stock=1)
    for row in rows:
        row.name, row.watts = "mine", 2
    with statements() as sent:
        assert Gadget.objects.bulk_save_cas(rows, fields) == [rows[1].pk]
    assert len(writes(sent)) == (2 if "watts" in fields else 1)
    for row, version in zip(rows, [2, 2, 2], strict=True):
        assert version_of(row) == version
    found = Gadget.objects.exclude(pk=rows[1].pk).values_list("name", "watts")
    wanted = ("mine" if "name" in fields else "a", 2 if "watts" in fields else 1)
    assert set(found) == {wanted}
    assert Gadget.objects.get(pk=rows[1].pk).watts == 1


def test_missing_child_row_is_stale():
    rows = [Gadget.objects.create(name="a") for _ in range(2)]
    Gadget.objects.get(pk=rows[0].pk).delete(keep_parents=True)
    for row in rows:
        row.name = "mine"
    assert Gadget.objects.bulk_save_cas(rows, ["name"]) == [rows[0].pk]
    assert Product.objects.get(pk=rows[0].pk).name == "a"
    assert Gadget.objects.bulk_save_cas(rows[:1], ["watts"]) == [rows[0].pk]


def test_parents_without_version_are_written():
    special = app.Special.objects.create(name="a", note="a")
    special.name = special.note = "mine"
    assert app.Special.objects.bulk_save_cas([special], ["name", "note"]) == []
    assert app.Special.objects.filter(name="mine", note="mine", version=2).count() == 1
    app.Plain.objects.create(name="so that the keys differ")
    coded = app.Coded.objects.create(name="a", code="x")
    coded.name = coded.text = coded.extra = "mine"
    among = app.Coded.objects.filter(name="a")
    assert among.bulk_save_cas([coded], ["name", "text", "extra"]) == []
    assert app.Coded.objects.filter(name="mine", text="mine", extra="mine").count() == 1
    assert version_of(coded) == 2


def test_proxy_model_is_supported(product):
    proxy = app.ProductProxy.objects.get()
    assert app.ProductProxy.objects.bulk_save_cas([proxy], ["name"]) == []
    assert Product.objects.bulk_save_cas([product], ["name"]) == [product.pk]


def test_bulk_save_uses_its_alias_and_bumps_under_bypass():
    product = Product.objects.using("other").create(name="a")
    with bypass_versions():
        assert Product.objects.using("other").bulk_save_cas([product], ["name"]) == []
    assert version_of(product, "other") == 2
    assert Product.objects.using("default").bulk_save_cas([product], ["name"]) == [product.pk]


def test_stale_row_is_not_locked(rival):
    rows = products(2)
    overtake(rows[0])
    with rival.transaction(), transaction.atomic():
        rival.execute("SELECT FROM app_product WHERE id = %s FOR UPDATE", [rows[0].pk])
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '200ms'")
        assert Product.objects.bulk_save_cas(rows, ["name"]) == [rows[0].pk]


@pytest.mark.parametrize("joined", ["as planned", "in the order given"])
def test_rows_are_locked_in_the_order_of_their_keys(joined, rival, observer):
    """However they are given and joined: while the first is another's, the last is free."""
    rows = products(2)

    def write():
        with connection.cursor() as cursor:
            if joined == "in the order given":
                for way in ("seqscan", "hashjoin", "mergejoin"):
                    cursor.execute(f"SET enable_{way} = off")
        return Product.objects.bulk_save_cas(reversed(rows), ["name"])

    with rival.transaction():
        rival.execute("SELECT FROM app_product WHERE id = %s FOR UPDATE", [rows[0].pk])
        stale = run_beside(write)
        until(lambda: waits_for_a_row(observer), "waits for the first row")
        observer.execute("SELECT FROM app_product WHERE id = %s FOR UPDATE NOWAIT", [rows[1].pk])
    assert stale() == []


def rewrite(channel, pk):
    """Change the row without its version, and wait with COMMIT."""
    with bypass_versions(), transaction.atomic():
        Product.objects.filter(pk=pk).update(stock=7)
        channel.send("written")
        channel.receive()


@pytest.mark.processes
@pytest.mark.parametrize("bump", [True, False])
def test_concurrently_changed_row_is_stale_if_it_was_bumped(product, bump, observer):
    """It waits for the row; then the version decides, as the row has it by now."""
    product.name = "mine"
    with process(rewrite if not bump else rewrite_and_bump, product.pk) as rival:
        rival.receive()
        rows = run_beside(lambda: Product.objects.bulk_save_cas([product], ["name"]))
        until(lambda: waits_for_a_row(observer), "waits for the row")
        rival.send("commit")
        rival.receive()
        assert rows() == ([product.pk] if bump else [])
    found = Product.objects.get()
    assert (found.name, found.stock) == ("original" if bump else "mine", 7)


def rewrite_and_bump(channel, pk):
    with transaction.atomic():
        Product.objects.filter(pk=pk).update(stock=7)
        channel.send("written")
        channel.receive()


def waits_for_a_row(observer):
    return observer.execute(
        "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"
    ).fetchone()


def run_beside(function):
    """Run it in a thread; return what waits for its result."""
    results = []

    def run():
        try:
            results.append(function())
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join()
        return results[0]

    return result
