"""The original of a conflict is a copy, so that a value changed in place is noticed."""

import datetime as dt
import decimal

import pytest
from django.core.files.base import ContentFile
from django.db import models, transaction
from django.db.models import F
from django.test.utils import isolate_apps

from django_dblock import StaleObject, VersionedModel, conflict_diff
from django_dblock.versioning import loaded_state, save
from django_dblock.versioning.web.diff import FieldDiff
from tests.app.models import Article, Member, Product, Shelf, Special, Typed
from tests.versioning.conftest import overtake

pytestmark = pytest.mark.django_db


def diff_of(instance):
    with pytest.raises(StaleObject) as caught:
        instance.save_cas()
    return conflict_diff(caught.value)


def created():
    return Article.objects.create(title="a", tags=["old"])


def read():
    return Article.objects.get(pk=created().pk)


def saved():
    article = read()
    article.save()
    return article


def saved_many():
    article = read()
    assert Article.objects.bulk_save_cas([article], ["tags"]) == []
    return article


def refreshed():
    article = read()
    article.refresh_from_db()
    return article


@pytest.mark.parametrize("make", [created, read, saved, saved_many, refreshed])
def test_json_changed_in_place_has_its_original(make):
    article = make()
    article.tags.append("mine")
    overtake(article, tags=["theirs"])
    tags = diff_of(article).fields["tags"]
    assert (tags.original, tags.mine, tags.theirs) == (["old"], ["old", "mine"], ["theirs"])
    assert tags.conflicting


def test_json_changed_in_place_by_one_side_is_no_conflict():
    article = read()
    article.tags.append("mine")
    overtake(article, title="theirs")
    diff = diff_of(article)
    assert diff.conflicting == []
    assert diff.fields["tags"].changed_by_me
    assert not diff.fields["tags"].changed_by_them


def test_nested_values_changed_in_place_have_their_originals():
    typed = Typed.objects.get(pk=Typed.objects.create(words=["a"], data={"deep": {"list": [1]}}).pk)
    typed.words.append("b")
    typed.data["deep"]["list"].append(2)
    overtake(typed, small=1)
    diff = diff_of(typed)
    assert diff.fields["words"].original == ["a"]
    assert diff.fields["data"].original == {"deep": {"list": [1]}}
    assert diff.conflicting == []


def test_file_changed_in_place_has_its_original(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    shelf = Shelf.objects.create(plan="plans/old.txt")
    assert shelf.plan.name == "plans/old.txt"  # the attribute is a FieldFile from now on
    shelf.save()
    shelf.plan.save("new.txt", ContentFile(b"x"), save=False)
    overtake(shelf, plan="plans/theirs.txt")
    plan = diff_of(shelf).fields["plan"]
    assert plan.original == "plans/old.txt"
    assert plan.conflicting


class Opaque:
    """An object that can't be copied."""

    def __deepcopy__(self, memo):
        raise TypeError

    def __str__(self):
        return "opaque"


class OpaqueField(models.CharField):
    def from_db_value(self, value, expression, connection):
        return Opaque()

    def to_python(self, value):
        return value


def test_uncopyable_value_has_no_original(monkeypatch):
    monkeypatch.setattr(
        loaded_state, "_mutable_attributes", lambda model: frozenset({"name", "stock"})
    )
    product = Product.objects.get(pk=Product.objects.create(name="a", stock=3).pk)
    monkeypatch.undo()
    loaded_state.written(product, [(Product._meta.get_field("name"), None, Opaque())])
    assert "name" not in product._version_origin
    assert product._version_origin["stock"] == 3


def test_uncopyable_value_can_be_read():
    names, values = ["id", "tags"], (1, Opaque())
    article = Article.from_db("default", names, values)
    assert article._version_origin == {"id": 1}


class Truths:
    """What a comparison of arrays returns: no truth value of many."""

    def __init__(self, truths):
        self.truths = truths

    def any(self):
        return any(self.truths)

    def __bool__(self):
        raise ValueError


class Array:
    """Compares as NumPy's arrays do, which pgvector's fields return."""

    def __init__(self, *numbers):
        self.numbers, self.shape = numbers, (len(numbers),)

    def __ne__(self, other):
        if isinstance(other, Array):
            if self.shape != other.shape:
                raise ValueError
            other = other.numbers
        else:
            other = [other] * len(self.numbers)
        return Truths([one != two for one, two in zip(self.numbers, other, strict=True)])

    __hash__ = None


@pytest.mark.parametrize(
    ("other", "differs"),
    [(Array(1, 2), False), (Array(1, 3), True), (Array(1, 2, 3), True), (None, True)],
)
def test_arrays_are_compared_as_a_whole(other, differs):
    assert loaded_state.differ(Array(1, 2), other) is differs
    diff = FieldDiff("f", "f", original=Array(1, 2), mine=Array(1, 2), theirs=other)
    assert (diff.changed_by_me, diff.changed_by_them, diff.conflicting) == (False, differs, False)
    diff = FieldDiff("f", "f", original=Array(1, 2), mine=other, theirs=Array(9, 9))
    assert diff.conflicting is differs


class ArrayField(models.CharField):
    """As pgvector's, in a column of text."""

    def from_db_value(self, value, expression, connection):
        return Array(*map(int, value.split(",")))

    def to_python(self, value):
        return value

    def get_prep_value(self, value):
        return ",".join(map(str, value.numbers))


@pytest.fixture
def embedded(monkeypatch):
    """A member whose name is an array that no version counts."""
    monkeypatch.setattr(Member._meta.get_field("name"), "__class__", ArrayField)
    monkeypatch.setattr(Member, "unversioned", {"name"})
    for cached in (save.unversioned_names, loaded_state._mutable_attributes):
        cached.cache_clear()
    pk = Member.objects.create(name=Array(1, 2)).pk
    yield Member.objects.get(pk=pk)
    for cached in (save.unversioned_names, loaded_state._mutable_attributes):
        cached.cache_clear()


def test_object_with_an_array_is_saved_and_merged(embedded):
    embedded.views = 1
    embedded.save()
    with transaction.atomic():
        Member.objects.filter(pk=embedded.pk).update(name=Array(3, 4), views=2)
        embedded.save()
    assert (embedded.name.numbers, embedded.views, embedded.version) == ((3, 4), 2, 4)


def test_plain_values_are_not_copied():
    """The values are kept as Django has them, and nothing is copied."""
    values = (1, "name", decimal.Decimal(1), 2, 3)
    names = ["id", "name", "price", "stock", "version"]
    product = Product.from_db("default", names, values)
    assert product._version_origin[1] is values


def test_mutable_fields_of_each_model_are_known():
    assert loaded_state._mutable_attributes(Product) == frozenset()
    assert loaded_state._mutable_attributes(Article) == {"tags", "slug"}
    assert loaded_state._mutable_attributes(Typed) == {"data", "words"}


def test_auto_now_never_conflicts_by_itself():
    typed = Typed.objects.get(pk=Typed.objects.create(small=1).pk)
    typed.small = 2
    overtake(typed, seen=dt.datetime(2020, 1, 1, tzinfo=dt.UTC), ratio=1)
    diff = diff_of(typed)
    assert diff.conflicting == []
    seen = diff.fields["seen"]
    assert not seen.counts
    assert not seen.changed_by_me
    assert seen.changed_by_them
    assert diff.fields["small"].counts


@isolate_apps("tests.app")
def test_generated_fields_never_conflict():
    class Stamped(models.IntegerField):
        def pre_save(self, model_instance, add):
            return 7

    from django_dblock.versioning.web.diff import counts

    class Row(VersionedModel):
        made = Stamped(editable=False)
        edited = Stamped()
        hidden = models.IntegerField(editable=False)
        file = models.FileField(editable=False)
        first = models.DateTimeField(auto_now_add=True)
        last = models.DateField(auto_now=True)
        clock = models.TimeField(editable=False)
        views = models.IntegerField()
        unversioned = ("views",)

        class Meta:
            app_label = "app"

    fields = [field for field in Row._meta.fields if field.name != "version"]
    assert [each.name for each in fields if not counts(Row, each)] == [
        "made", "first", "last", "views",
    ]  # fmt: skip


def test_value_that_the_update_has_returned_is_the_original():
    product = Product.objects.create(name="a", stock=1)
    product.stock = F("stock") + 1
    product.save()
    if hasattr(product.stock, "resolve_expression"):  # until Django 6.0
        product.refresh_from_db()
    overtake(product)
    stock = diff_of(product).fields["stock"]
    assert (stock.original, stock.changed_by_me) == (2, False)


@pytest.mark.django_db(transaction=True)
def test_rollback_returns_the_originals_of_a_parent_without_a_version():
    """The parent's table is written before that of the version."""
    special = Special.objects.get(pk=Special.objects.create(name="read").pk)
    special.name = "mine"
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        special.save()
        raise ZeroDivisionError
    overtake(special, note="theirs")
    name = diff_of(special).fields["name"]
    assert (name.original, name.mine, name.theirs) == ("read", "mine", "read")


def test_returned_values_come_after_the_expressions():
    stock = Product._meta.get_field("stock")
    written = [(stock, None, F("stock") + 1)]
    both = loaded_state.with_returned(written, [(2,)], [stock])
    assert both == [*written, (stock, None, 2)]
    assert loaded_state.with_returned(written, [()], [stock]) == written, "nothing was sent"
