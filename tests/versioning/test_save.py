"""save() and save_cas(): one statement, compared, and honest about what it did not write."""

import copy
import pickle
import uuid

import pytest
from django.db import IntegrityError, transaction
from django.db.models import F
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import post_save, pre_save

from django_dblock import MissingVersion, StaleObject, VersionField, bypass_versions
from tests.app import models as app
from tests.app.models import Gadget, Product
from tests.versioning.conftest import overtake, version_of

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


def sql_of(sent):
    return [query["sql"] for query in sent.captured_queries]


def test_save_is_one_comparing_update(product, statements):
    product.name = "mine"
    with statements() as sent:
        product.save_cas()
    [sql] = sql_of(sent)
    assert sql == (
        'UPDATE "app_product" SET "name" = \'mine\', "price" = 0.00, "stock" = 10, "version" = 2 '
        f'WHERE ("app_product"."version" = 1 AND "app_product"."id" = {product.pk})'
    )
    assert product.version == version_of(product) == 2


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize(
    ("model", "twin", "values", "more"),
    [
        (app.Product, app.TwinProduct, {"name": "a"}, 0),
        # A savepoint and its release are what a usable transaction costs with several tables.
        (app.Gadget, app.TwinGadget, {"name": "a", "watts": 1}, 2),
        (app.ProductProxy, app.TwinProduct, {"name": "a"}, 0),
        (app.Checked, app.TwinChecked, {"name": "a"}, 0),
    ],
)
def test_save_adds_no_statement(model, twin, values, more, atomic, statements):
    counts = []
    for each in (model, twin):
        with statements() as created:
            instance = each.objects.create(**values)
        instance = each.objects.get(pk=instance.pk)
        with transaction.atomic() if atomic else statements():
            with statements() as sent:
                instance.save()
            with statements() as narrow:
                instance.save(update_fields=["name"])
        counts.append((len(created), len(sent), len(narrow)))
    (created, ours, narrow), (twin_created, theirs, twin_narrow) = counts
    extra = more if atomic else 0
    assert created == twin_created
    assert (ours, narrow) == (theirs + extra, twin_narrow + extra)


@pytest.mark.parametrize("save", [lambda p: p.save(), lambda p: p.save_cas()])
@pytest.mark.parametrize("atomic", [True, False])
def test_conflict_writes_nothing_and_leaves_transaction_usable(product, save, atomic):
    overtake(product)
    product.name = "mine"
    with transaction.atomic() if atomic else transaction.mark_for_rollback_on_error("default"):
        with pytest.raises(StaleObject) as caught:
            save(product)
        assert Product.objects.get(pk=product.pk).name == "theirs"
        Product.objects.create(name="later")
    assert Product.objects.filter(name="later").exists()
    error = caught.value
    assert (error.instance, error.expected, error.actual) == (product, 1, 2)
    assert (error.deleted, error.rolled_back, error.using) == (False, False, "default")
    assert (error.model, error.pk) == ("app.Product", product.pk)
    assert product.version == 1
    with pytest.raises(StaleObject):
        save(product)
    product.refresh_from_db()
    product.name = "mine"
    save(product)
    assert version_of(product) == product.version == 3


def test_conflict_costs_one_more_statement(product, statements):
    overtake(product)
    with statements() as sent, pytest.raises(StaleObject):
        product.save()
    assert len(sent) == 2


def test_expected_replaces_the_instances_version(product):
    product.name = "mine"
    with pytest.raises(StaleObject) as caught:
        product.save_cas(expected=7)
    assert (caught.value.expected, caught.value.actual) == (7, 1)
    assert not caught.value.rolled_back, "nothing was written, so nothing was rolled back"
    product.save_cas(expected=1)
    assert product.version == 2
    overtake(product)
    product.save_cas(expected=3)
    assert product.version == version_of(product) == 4


@pytest.mark.parametrize("wrong", ["7", True, 7.0])
def test_wrong_expected_is_refused_before_sql(product, wrong, statements):
    with statements() as sent, pytest.raises(TypeError, match="whole number"):
        product.save_cas(expected=wrong)
    assert len(sent) == 0


@pytest.mark.parametrize("act", ["save_cas", "delete_cas"])
def test_expected_none_is_refused_before_sql(product, act, statements):
    posted = {"price": 7}
    with statements() as sent, pytest.raises(TypeError, match=r"expected=None .* leave expected="):
        getattr(product, act)(expected=posted.get("version"))
    assert len(sent) == 0


@pytest.mark.parametrize("wrong", [-1, 2**63 - 1])
def test_out_of_range_expected_is_refused_before_sql(product, wrong, statements):
    with statements() as sent, pytest.raises(ValueError, match="not a version"):
        product.delete_cas(expected=wrong)
    assert len(sent) == 0


def test_expect_version_compares_every_later_save(product):
    overtake(product)
    product.expect_version(2)
    product.save()
    assert product.version == 3
    product.expect_version(2)
    with pytest.raises(StaleObject):
        product.save()
    with pytest.raises(StaleObject):
        product.delete_cas()
    with pytest.raises(TypeError):
        product.expect_version(None)


def test_expect_version_applies_to_last_write_wins_models():
    setting = app.Setting.objects.create(name="a")
    setting.expect_version(2)
    with pytest.raises(StaleObject):
        setting.save()
    assert app.Setting.cas_on_save is False


def test_save_cas_never_inserts(product, statements):
    Product.objects.filter(pk=product.pk).delete()
    with pytest.raises(StaleObject) as caught:
        product.save_cas()
    assert caught.value.deleted
    assert caught.value.actual is None
    fresh = Product(name="new")
    with statements() as sent:
        for seen in ({}, {"expected": 1}):
            with pytest.raises(MissingVersion):
                fresh.save_cas(**seen)
        with pytest.raises(MissingVersion):
            Product(pk=product.pk, name="new").save_cas()
    assert len(sent) == 0
    assert not Product.objects.exists()


@pytest.mark.parametrize("model", [Gadget, app.Special, app.Invoice])
def test_save_cas_of_a_new_object_with_expected_updates(model):
    row = model.objects.create()
    mine = model(pk=row.pk)
    with pytest.raises(StaleObject):
        mine.save_cas(expected=5)
    assert mine._state.adding
    mine.save_cas(expected=1)
    assert mine.version == version_of(row) == 2
    gone = model(pk=uuid.uuid4() if model is app.Invoice else 987654)
    with pytest.raises(StaleObject) as caught:
        gone.save_cas(expected=1)
    assert caught.value.deleted
    assert model.objects.count() == 1


def test_save_cas_of_a_child_without_key_is_refused():
    gadget = Gadget.objects.create(name="a")
    gadget.pk = None
    with pytest.raises(MissingVersion):
        gadget.save_cas()
    assert Product.objects.count() == 1


def test_save_cas_always_compares():
    setting = app.Setting.objects.create(name="a")
    overtake(setting, value="theirs")
    with pytest.raises(StaleObject), bypass_versions():
        setting.save_cas()


def test_overridden_save_that_does_nothing_is_an_error():
    fussy = app.Fussy.objects.create(name="a")
    fussy.name = "never"
    with pytest.raises(RuntimeError, match="without having called super"):
        fussy.save_cas()
    unread = app.Fussy(pk=fussy.pk, name="never")
    with pytest.raises(RuntimeError):
        unread.save_cas(expected=1)
    assert unread._state.adding
    fussy.name = "b"
    fussy.save_cas()
    assert version_of(fussy) == 2


def test_empty_update_fields_is_refused(product):
    with pytest.raises(ValueError, match="touch_version"):
        product.save_cas(update_fields=[])
    product.save(update_fields=[])
    assert version_of(product) == 1, "as Django's: nothing to write"


def test_update_fields_compares_and_bumps(product, statements):
    product.name, product.stock = "mine", 99
    with statements() as sent:
        product.save_cas(update_fields=(name for name in ["name"]))
    [sql] = sql_of(sent)
    assert '"version" = 2' in sql
    assert '"stock"' not in sql
    assert version_of(product) == 2
    overtake(product)
    with pytest.raises(StaleObject):
        product.save(update_fields=["stock"])


def test_deferred_version_is_never_loaded_silently(product, statements):
    deferred = Product.objects.defer("version").get(pk=product.pk)
    with statements() as sent, pytest.raises(MissingVersion) as caught:
        deferred.save()
    assert len(sent) == 0
    assert not caught.value.adding
    assert "version" not in deferred.__dict__
    assert deferred.version == 1
    with pytest.raises(MissingVersion):
        deferred.save()  # read apart from the other values, it is not theirs
    with pytest.raises(MissingVersion):
        deferred.save(update_fields=["name"])
    deferred.save_cas(expected=1)
    assert deferred.version == 2
    deferred.save()


def test_deferred_version_fetched_for_peers_is_not_trusted(product, monkeypatch):
    """Django 6.1 with FETCH_PEERS; before that, the same call."""

    def fetch_many(attribute, instances):
        versions = dict(Product.objects.values_list("pk", "version"))
        for each in instances:
            if each.pk in versions:
                each.version = versions[each.pk]

    if not hasattr(DeferredAttribute, "fetch_many"):
        monkeypatch.setattr(DeferredAttribute, "fetch_many", fetch_many, raising=False)
    gone = Product.objects.create(name="gone")
    read = list(Product.objects.defer("version").order_by("pk"))
    bare = Product.objects.only("pk").get(pk=product.pk)
    overtake(product)
    Product.objects.filter(pk=gone.pk).delete()
    Product.version.fetch_many([*read, bare])
    assert [each.__dict__.get("version") for each in read] == [2, None]
    for each in read:
        with pytest.raises(MissingVersion):
            each.save()
    bare.stock = 1  # nothing of it is older than its version
    bare.save()
    assert Product.objects.values_list("name", "stock").get() == ("theirs", 1)


def test_conflict_with_a_deferred_version_leaves_it_deferred(product):
    deferred = Product.objects.defer("version").get(pk=product.pk)
    with pytest.raises(StaleObject):
        deferred.save_cas(expected=3)
    assert "version" not in deferred.__dict__


def test_only_compares_with_deferred_fields(product, statements):
    partly = Product.objects.only("name", "version").get(pk=product.pk)
    partly.name = "mine"
    with statements() as sent:
        partly.save()
    [sql] = sql_of(sent)
    assert '"stock"' not in sql
    assert partly.version == version_of(partly) == 2
    overtake(partly)
    with pytest.raises(StaleObject):
        partly.save_cas()


def test_later_read_field_keeps_the_version(product):
    partly = Product.objects.defer("name").get(pk=product.pk)
    overtake(product)
    assert partly.name == "theirs"
    with pytest.raises(StaleObject):
        partly.save()


def test_full_refresh_makes_the_version_comparable(product):
    overtake(product)
    product.refresh_from_db(fields=["version"])
    with pytest.raises(MissingVersion):
        product.save()
    product.refresh_from_db(fields=["name", "price", "stock", "version"])
    product.save()
    assert product.version == 3


@pytest.mark.parametrize("left_out", [
    lambda: {"from_queryset": Product.objects.defer("name")},
    lambda: {"from_queryset": Product.objects.only("price", "stock", "version")},
    lambda: {
        "from_queryset": Product.objects.defer("name"),
        "fields": ["name", "price", "stock", "version"],
    },
])  # fmt: skip
def test_refresh_that_leaves_a_field_out_is_not_trusted(product, left_out):
    """The field keeps the value from before, which the new version would let overwrite theirs."""
    overtake(product, name="theirs")
    product.refresh_from_db(**left_out())
    assert (product.name, product.version) == ("original", 2)
    for write in (product.save, product.save_cas):
        with pytest.raises(MissingVersion):
            write()
    product.refresh_from_db(from_queryset=Product.objects.all())
    product.save()
    assert Product.objects.get().name == "theirs"


@pytest.mark.parametrize("fields", [None, ["name", "price", "stock", "version"]])
def test_refresh_from_a_manager(product, fields):
    """As Django's, which calls methods that a manager has, too."""
    overtake(product, name="theirs")
    product.refresh_from_db(from_queryset=Product.objects, fields=fields)
    product.stock = 3
    product.save()
    assert Product.objects.values_list("name", "stock", "version").get() == ("theirs", 3, 3)


def test_refresh_without_the_version_keeps_the_earlier_one(product):
    deferred = Product.objects.defer("version").get(pk=product.pk)
    partly = Product.objects.defer("price").get(pk=product.pk)
    overtake(product)
    for instance in (product, deferred):
        instance.refresh_from_db(from_queryset=Product.objects.only("name"))
        assert instance.name == "theirs"
    with pytest.raises(StaleObject):
        product.save()
    assert "version" not in deferred.__dict__
    partly.refresh_from_db(from_queryset=Product.objects.defer("stock"))
    assert (partly.name, partly.version) == ("theirs", 2)
    with pytest.raises(MissingVersion):
        partly.save()


def test_expressions_are_computed_by_the_database(product):
    product.stock = F("stock") + 5
    product.save_cas()
    product.refresh_from_db()
    assert (product.stock, product.version) == (15, 2)
    overtake(product)
    product.stock = F("stock") + 5
    with pytest.raises(StaleObject):
        product.save_cas()
    assert Product.objects.get(pk=product.pk).stock == 15


def test_renamed_version_beside_generated_columns_compares():
    article = app.Article.objects.create(title="One")
    article.refresh_from_db()
    assert (article.revision, article.state, article.slug) == (1, "draft", "one")
    assert not any(field.name == "version" for field in article._meta.fields)
    article.title = "Two"
    article.save_cas()
    article.refresh_from_db()
    assert (article.revision, article.slug) == (2, "two")
    overtake(article, title="Three")
    with pytest.raises(StaleObject):
        article.save()


def test_select_on_save_model_compares_and_never_reinserts():
    row = app.Checked.objects.create(name="a")
    overtake(row)
    with pytest.raises(StaleObject):
        row.save()
    row.refresh_from_db()
    row.save()
    assert version_of(row) == 3
    app.Checked.objects.all().delete()
    with pytest.raises(StaleObject) as caught:
        row.save()
    assert caught.value.deleted


def test_row_with_a_composite_pk_is_compared():
    place = app.Place.objects.create(row="A", number=1)
    place.guest = "mine"
    place.save_cas()
    overtake(place, guest="theirs")
    with pytest.raises(StaleObject) as caught:
        place.save()
    assert caught.value.pk == ("A", 1)
    assert app.Place.objects.get().version == 3
    place.number = 2
    with pytest.raises(MissingVersion):
        place.save()


def test_proxy_and_its_model_are_one_row(product):
    proxy = app.ProductProxy.objects.get(pk=product.pk)
    proxy.save()
    with pytest.raises(StaleObject) as caught:
        product.save()
    assert caught.value.actual == 2


def test_preset_pk_inserts_and_never_overwrites(statements):
    key = uuid.uuid4()
    with statements() as sent:
        app.Invoice.objects.create(id=key, customer="theirs")
    assert len(sent) == 1
    with pytest.raises(IntegrityError):
        app.Invoice(id=key, customer="mine").save()
    with pytest.raises(IntegrityError):
        Product(pk=Product.objects.create(name="theirs").pk, name="mine").save()
    assert app.Invoice.objects.get().customer == "theirs"
    assert Product.objects.get().name == "theirs"


def test_copy_by_pk_none_is_a_new_row(product):
    product.save()
    old = product.pk
    product.pk = None
    product.save()
    assert product.pk != old
    assert version_of(product) == product.version
    product._state.adding, product.pk = True, None
    product.save(force_insert=True)
    assert Product.objects.count() == 3
    product.save_cas()


def test_another_row_is_not_overwritten_by_a_changed_pk(product, statements):
    """Its version says nothing about that row, though the numbers may be the same."""
    other = Product.objects.create(name="theirs")
    product.pk = other.pk
    with statements() as sent:
        for write in (product.save, product.save_cas, product.delete_cas, product.touch_version):
            with pytest.raises(MissingVersion, match="primary key"):
                write()
    assert len(sent) == 0
    product.save_cas(expected=1)
    assert version_of(other) == 2
    product.save()
    assert version_of(other) == 3
    product.pk = Product.objects.create(name="third").pk
    with pytest.raises(MissingVersion):
        product.save()
    product.expect_version(1)
    product.save()


def test_pk_given_as_text_is_the_same_row(product):
    product.pk = str(product.pk)
    product.save()
    assert version_of(product) == 2
    product.pk = int(product.pk)
    product.save()


def test_pk_of_a_wrong_type_is_refused(product):
    product.pk = "seven"
    with pytest.raises(MissingVersion):
        product.save()


def test_deleted_row_is_not_inserted_again(product):
    Product.objects.all().delete()
    for save in (product.save, product.save_cas, lambda: product.save(update_fields=["name"])):
        with pytest.raises(StaleObject) as caught:
            save()
        assert caught.value.deleted
    assert not Product.objects.exists()


def test_save_after_delete_inserts(product):
    product.delete()
    product.save()
    assert Product.objects.count() == 1
    product.save_cas()


def test_suppressing_trigger_is_reported(product, rival):
    rival.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER keep BEFORE UPDATE ON app_product FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    try:
        with pytest.raises(StaleObject, match="a trigger or a row-level security policy"):
            product.save()
    finally:
        rival.execute("DROP TRIGGER keep ON app_product; DROP FUNCTION keep()")


def test_force_update_compares(product):
    product.save(force_update=True)
    assert version_of(product) == 2
    overtake(product)
    with pytest.raises(StaleObject):
        product.save(force_update=True)
    with pytest.raises(MissingVersion):
        Product(pk=product.pk).save(force_update=True)


# The last write wins


def test_last_write_wins_bumps(statements):
    setting = app.Setting.objects.create(name="a", value="1")
    overtake(setting, value="theirs")
    setting.value = "mine"
    with statements() as sent:
        setting.save()
    assert len(sent) == 1
    assert app.Setting.objects.get().value == "mine"
    assert version_of(setting) == 3
    setting.save()
    assert version_of(setting) == 4
    with pytest.raises(MissingVersion):
        setting.save_cas()
    assert setting.version == 4


def test_last_write_wins_never_reinserts():
    setting = app.Setting.objects.create(name="a")
    app.Setting.objects.all().delete()
    with pytest.raises(StaleObject) as caught:
        setting.save()
    assert caught.value.deleted
    assert not app.Setting.objects.exists()
    setting = app.Setting(pk=setting.pk, name="new")
    setting.save()
    app.Setting(pk=setting.pk, name="again").save()
    assert app.Setting.objects.get().name == "again", "as Django's: never read, the last wins"
    assert version_of(setting) == 2


# Bypass, copies


def test_bypass_neither_compares_nor_bumps(product):
    overtake(product)
    with bypass_versions():
        product.name = "maintained"
        product.save()
        Product.objects.update(stock=1)
    assert (version_of(product), Product.objects.get().name) == (2, "maintained")
    assert product.version == 1
    with pytest.raises(StaleObject):
        product.save()


def test_bypass_ends_after_an_error(product):
    with pytest.raises(LookupError), bypass_versions(), bypass_versions():
        raise LookupError
    overtake(product)
    with pytest.raises(StaleObject):
        product.save()


def test_copies_and_pickles_compare(product):
    product.save()
    for again in (copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))):
        twin = again(Product.objects.get(pk=product.pk))
        twin.save()
        overtake(twin)
        with pytest.raises(StaleObject) as caught:
            twin.save()
        error = pickle.loads(pickle.dumps(caught.value))
        assert vars(error) == vars(caught.value)
        assert error.instance.version == twin.version


def test_copy_has_its_own_original(product):
    product.save()
    twin = copy.copy(product)
    twin.name = "mine"
    twin.save()
    assert product._version_origin["name"] == "original"


# The field


def test_fixed_field_options_cannot_change():
    field = VersionField(default=7, editable=True, null=True, verbose_name="revision")
    assert (field.default, field.editable, field.null) == (1, False, False)
    assert field.verbose_name == "revision"
    _, path, args, options = field.deconstruct()
    assert (path, args) == ("django_dblock.VersionField", [])
    assert options == {"verbose_name": "revision"}
    assert VersionField().clone().default == 1


@pytest.mark.parametrize("version", [99, 0])
def test_version_set_by_hand_is_reported(product, version):
    """It is neither somebody else's write nor a transaction that was rolled back."""
    product.version = version
    with pytest.raises(
        StaleObject, match=f"read with 1, but .* set to {version} by hand"
    ) as caught:
        product.save()
    error = caught.value
    assert (error.read, error.expected, error.actual) == (1, version, 1)
    assert not error.rolled_back
    assert version_of(product) == 1
    assert pickle.loads(pickle.dumps(error)).read == 1
    product.refresh_from_db()
    product.save()


def test_expected_version_is_not_reported_as_set_by_hand(product):
    overtake(product)
    again = Product.objects.get(pk=product.pk)
    again.expect_version(1)
    with pytest.raises(StaleObject, match="changed since it was read") as caught:
        again.save()
    assert caught.value.read is None


@pytest.fixture
def saved_again():
    """Let a receiver save each instance once more, with what the caller has set."""
    connected = []

    def connect(signal):
        inside = []

        def save_again(instance, **_):
            if not inside:
                inside.append(instance)
                try:
                    instance.save()
                finally:
                    inside.clear()

        signal.connect(save_again)
        connected.append((signal, save_again))

    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver)


@pytest.mark.parametrize("signal", [pre_save, post_save])
@pytest.mark.parametrize("model", [Product, Gadget, app.Setting], ids=lambda model: model.__name__)
def test_save_by_a_receiver_compares_with_the_expected_version(model, signal, saved_again):
    row = model.objects.create(name="read")
    late, expected = model.objects.get(), row.version
    model.objects.update(name="winner")
    saved_again(signal)
    late.refresh_from_db()
    late.name = "stale"
    with pytest.raises(StaleObject) as caught:
        late.save_cas(expected=expected)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert model.objects.get().name == "winner"
    late.save_cas(expected=2)
    assert model.objects.values_list("name", "version").get() == ("stale", 4)
