"""A form saves only over what it has shown: the comparison is in its UPDATE."""

import datetime as dt
from typing import ClassVar

import pytest
from django import forms
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, transaction
from django.utils import translation

from django_dblock import MissingVersion, StaleObject, VersionedFormMixin, VersionedModelForm
from django_dblock.versioning.web.diff_display import readable
from tests.app.models import (
    Article,
    Gadget,
    Invoice,
    Plain,
    Product,
    ProductProxy,
    Setting,
    Shelf,
    Special,
    Tag,
)
from tests.versioning.pages import sent

pytestmark = pytest.mark.django_db


class ProductForm(VersionedModelForm):
    class Meta:
        model = Product
        fields = ("name", "price", "stock")


class PlainProductForm(forms.ModelForm):
    class Meta:
        model = Product
        fields = ("name", "price", "stock")


class ShelfForm(VersionedModelForm):
    copies = forms.IntegerField(required=False)

    class Meta:
        model = Shelf
        fields = (
            "name", "room", "built", "checked", "width", "open", "plan", "note", "extra", "main",
            "tags", "secret",
        )  # fmt: skip
        widgets: ClassVar = {"secret": forms.PasswordInput, "checked": forms.SplitDateTimeWidget}
        field_classes: ClassVar = {"checked": forms.SplitDateTimeField}


def post(form_class, instance, data, files=None, **options):
    """The form as it comes back: the row is read anew."""
    fresh = type(instance)._base_manager.get(pk=instance.pk)
    return form_class(data, files, instance=fresh, **options)


def conflict(form):
    """Save a valid form in vain; return it with its conflict."""
    assert form.is_valid(), form.errors
    with pytest.raises(StaleObject) as caught:
        form.save()
    form.add_conflict(caught.value)
    return form


@pytest.fixture(autouse=True)
def _media(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path


@pytest.fixture
def product():
    return Product.objects.create(name="lamp", price=5, stock=3)


@pytest.fixture
def shelf():
    shelf = Shelf.objects.create(name="one", main=Tag.objects.create(name="<first>"))
    shelf.tags.add(shelf.main)
    return shelf


def test_unchanged_row_is_saved(product):
    form = post(ProductForm, product, sent(ProductForm(instance=product), name="two"))
    assert form.is_valid()
    assert form.save().version == 2
    assert Product.objects.get().name == "two"


def test_form_for_a_new_row_inserts():
    form = ProductForm(sent(ProductForm(), name="new", price="1", stock="1"))
    assert "version_token" not in ProductForm().fields
    assert form.is_valid()
    assert form.save().version == 1


def test_changed_row_is_not_overwritten(product):
    mine = sent(ProductForm(instance=product), name="mine")
    Product.objects.update(stock=9)
    form = conflict(post(ProductForm, product, mine))
    assert Product.objects.values("name", "stock", "version").get() == {
        "name": "lamp", "stock": 9, "version": 2,
    }  # fmt: skip
    assert not form.is_valid()
    assert form.has_error("__all__", "conflict")
    diff = form.conflict.fields
    assert [(each.original, each.mine, each.theirs) for each in diff.values()] == [
        ("lamp", "mine", "lamp"), (5, 5, 5), (3, 3, 9),
    ]  # fmt: skip


def test_second_submit_compares_the_newly_shown_row(product):
    mine = sent(ProductForm(instance=product), name="mine")
    Product.objects.update(name="theirs", stock=9)
    form = conflict(post(ProductForm, product, mine))
    again = sent(form)
    assert (again["name"], again["stock"]) == ("mine", "9")
    Product.objects.update(stock=10)
    newer = conflict(post(ProductForm, product, again))
    last = post(ProductForm, product, sent(newer))
    assert last.is_valid()
    last.save()
    assert Product.objects.values("name", "stock").get() == {"name": "mine", "stock": 10}


def test_chosen_theirs_overrides_the_input(product):
    mine = sent(ProductForm(instance=product), name="mine", stock="5")
    Product.objects.update(name="theirs", stock=9)
    form = conflict(post(ProductForm, product, mine))
    again = post(ProductForm, product, sent(form, name="x" * 99, version_choice_name="theirs"))
    assert again.is_valid(), again.errors
    assert again.changed_data == ["stock"]
    again.save()
    assert Product.objects.values("name", "stock").get() == {"name": "theirs", "stock": 5}


def test_chosen_theirs_stays_in_a_redisplayed_form(product):
    mine = sent(ProductForm(instance=product), name="mine", stock="5")
    Product.objects.update(name="theirs", stock=9)
    form = conflict(post(ProductForm, product, mine))
    again = post(ProductForm, product, sent(form, stock="none", version_choice_name="theirs"))
    assert not again.is_valid()
    again.full_clean()
    assert again["name"].value() == "theirs"
    assert "disabled" not in str(again["name"])


@pytest.mark.parametrize("token", [None, "", "x"])
def test_missing_or_tampered_token_is_refused(product, token):
    form = post(ProductForm, product, sent(ProductForm(instance=product), version_token=token))
    assert not form.is_valid()
    assert form.has_error("__all__", "version_unreadable" if token else "version_missing")
    with pytest.raises(ValueError, match="didn't validate"):
        form.save()


def test_token_of_another_row_is_refused(product):
    other = Product.objects.create(name="other")
    form = post(ProductForm, product, sent(ProductForm(instance=other)))
    assert form.has_error("__all__", "version_unreadable")


def test_form_error_keeps_the_seen_version(product):
    form = post(ProductForm, product, sent(ProductForm(instance=product), stock="none"))
    assert not form.is_valid()
    Product.objects.update(stock=9)
    conflict(post(ProductForm, product, sent(form, stock="4")))


def test_trap_update_compares_beside_clean(product, statements):
    """Somebody writes between the check and the save."""
    form = post(ProductForm, product, sent(ProductForm(instance=product), name="mine"))
    assert form.is_valid()
    Product.objects.update(stock=9)
    conflict(form)
    with statements() as sent_now:
        with pytest.raises(StaleObject):
            post_again = post(ProductForm, product, sent(ProductForm(instance=product)))
            assert post_again.is_valid()
            post_again.save()
    [update] = [each["sql"] for each in sent_now if each["sql"].startswith("UPDATE")]
    assert '"version" = 1' in update.partition("WHERE")[2]


def test_negative_twin_plain_form_loses_an_edit(product):
    mine = sent(PlainProductForm(instance=product), name="mine")
    Product.objects.update(stock=9)
    form = post(PlainProductForm, product, mine)
    assert form.is_valid()
    form.save()
    assert Product.objects.get().stock == 3


def test_form_adds_no_statement(product, statements):
    def count(form_class):
        instance = Product.objects.get()
        with statements() as queries:
            data = sent(form_class(instance=instance), name="n")
            form = form_class(data, instance=instance)
            assert form.is_valid()
            form.save()
        return len(queries)

    assert count(ProductForm) == count(PlainProductForm) == 1


def test_commit_false_is_compared_when_the_caller_saves(product):
    form = post(ProductForm, product, sent(ProductForm(instance=product), name="mine"))
    Product.objects.update(stock=9)
    assert form.is_valid()
    instance = form.save(commit=False)
    with pytest.raises(StaleObject):
        instance.save()
    with pytest.raises(StaleObject):
        instance.delete()
    assert Product.objects.get().name == "lamp"


def test_last_write_wins_model_is_compared():
    class SettingForm(VersionedModelForm):
        class Meta:
            model = Setting
            fields = "__all__"

    setting = Setting.objects.create(name="a")
    mine = sent(SettingForm(instance=setting), value="mine")
    Setting.objects.update(value="theirs")
    conflict(post(SettingForm, setting, mine))
    assert Setting.objects.get().value == "theirs"


def test_deleted_row_is_reported(product):
    form = post(ProductForm, product, sent(ProductForm(instance=product), name="mine"))
    assert form.is_valid()
    Product.objects.all().delete()
    conflict(form)
    assert form.conflict.deleted
    assert "deleted" in form.conflict_message()
    assert "version_token" not in form.data
    assert form.conflict_rows[0].mine == "mine"
    assert not Product.objects.exists()


def test_prefix_is_kept(product):
    form = ProductForm(instance=product, prefix="p")
    assert 'name="p-version_token"' in str(form)
    mine = sent(form, name="mine")
    Product.objects.update(name="theirs")
    form = conflict(post(ProductForm, product, mine, prefix="p"))
    assert form.conflict_rows[0].choice == "p-version_choice_name"
    again = sent(form, version_choice_name="theirs")
    assert post(ProductForm, product, again, prefix="p").changed_data == []


@pytest.mark.parametrize("model", [ProductProxy, Gadget, Invoice, Article])
def test_every_model_structure_is_supported(model):
    class Form(VersionedModelForm):
        class Meta:
            fields = "__all__"

    Form = forms.modelform_factory(model, form=Form)  # noqa: N806
    row = model.objects.create(**({"tags": ["a"]} if model is Article else {}))
    form = post(Form, row, sent(Form(instance=row), name="n", title="n", customer="n", state="s"))
    assert form.is_valid(), form.errors
    form.save()
    mine = sent(Form(instance=row))
    with connection.cursor():
        conflict(
            post(Form, row, {**mine, "name": "x", "title": "x", "customer": "x", "state": "s"})
        )


# An instance that was read with an older version than the user saw, as from a replica that lags.


class NameForm(VersionedModelForm):
    class Meta:
        model = Product
        fields = ("name",)


def conflict_then_lag(form_class, instance, changes, **theirs):
    """Lose against another writer; return the old instance, and what the next page would send."""
    model = type(instance)
    behind = model._base_manager.get(pk=instance.pk)
    shown = sent(form_class(instance=instance), **changes)
    assert model.objects.filter(pk=instance.pk).update(**theirs)
    return behind, sent(conflict(post(form_class, instance, shown)))


def refused(form, name="__all__"):
    assert not form.is_valid()
    assert form.has_error("__all__", "version_behind")
    assert "Send the page again" in str(form.non_field_errors())
    with pytest.raises(ValueError, match="didn't validate"):
        form.save()
    return form


def test_trap_older_instance_does_not_restore_columns_outside_the_form(product):
    """The UPDATE alone would match: the user saw 2, and the instance was read with 1."""
    behind, again = conflict_then_lag(NameForm, product, {"name": "mine"}, stock=9)
    form = refused(NameForm(again, instance=behind))
    form.full_clean()  # comparing with the version that the first one left would be too late
    refused(form)
    assert Product.objects.values("name", "stock", "version").get() == {
        "name": "lamp", "stock": 9, "version": 2,
    }  # fmt: skip
    last = post(NameForm, product, sent(form))
    assert last.is_valid(), last.errors
    last.save()
    assert Product.objects.values("name", "stock").get() == {"name": "mine", "stock": 9}


def test_older_instance_does_not_undo_the_choice_of_theirs(product):
    behind, again = conflict_then_lag(ProductForm, product, {"name": "mine"}, name="theirs")
    again["version_choice_name"] = "theirs"
    form = refused(ProductForm(again, instance=behind))
    assert form["name"].value() == "theirs"
    last = post(ProductForm, product, sent(form, stock="4"))
    assert last.is_valid(), last.errors
    last.save()
    assert Product.objects.values("name", "stock").get() == {"name": "theirs", "stock": 4}


def test_choice_of_every_field_type_is_shown_while_the_instance_is_older(shelf):
    other = Tag.objects.create(name="second")
    behind = Shelf.objects.get()
    mine = sent(ShelfForm(instance=shelf), tags=[], note="mine", extra="[1]", main="")
    theirs = Shelf.objects.get()
    theirs.note, theirs.extra, theirs.main = "long " * 2000, {"b": 2}, other
    theirs.save()
    theirs.tags.set([other])
    names = ("tags", "note", "extra", "main", "plan")
    choices = {f"version_choice_{name}": "theirs" for name in names}
    again = sent(conflict(post(ShelfForm, shelf, mine)), **choices)
    form = refused(ShelfForm(again, instance=behind))
    last = post(ShelfForm, shelf, sent(form, name="two"))
    assert last.is_valid(), last.errors
    saved = last.save()
    assert (saved.name, saved.note.strip(), saved.extra, saved.main) == (
        "two", ("long " * 2000).strip(), {"b": 2}, other,
    )  # fmt: skip
    assert list(saved.tags.all()) == [other]


def test_older_instance_that_the_view_has_changed_is_not_saved(product):
    behind, again = conflict_then_lag(NameForm, product, {"name": "mine"}, stock=9)
    behind.stock += 1
    refused(NameForm(again, instance=behind))
    assert behind.stock == 4
    with pytest.raises(StaleObject):
        behind.save()
    assert Product.objects.get().stock == 9


def test_two_forms_of_one_older_instance_are_both_refused(product):
    behind, again = conflict_then_lag(NameForm, product, {"name": "mine"}, stock=9)
    refused(NameForm(again, instance=behind))
    refused(NameForm(again, instance=behind))


@pytest.mark.parametrize("model", [ProductProxy, Gadget, Special, Invoice, Article])
def test_older_instance_of_every_model_structure_is_refused(model):
    class Form(VersionedModelForm):
        class Meta:
            fields = "__all__"

    Form = forms.modelform_factory(model, form=Form)  # noqa: N806
    row = model.objects.create(**({"tags": ["a"]} if model is Article else {}))
    behind = model._base_manager.get(pk=row.pk)
    row.save()
    version = row._version_field.attname
    refused(Form(sent(Form(instance=row)), instance=behind))
    assert getattr(model._base_manager.get(pk=row.pk), version) == getattr(behind, version) + 1


@pytest.mark.parametrize("fields", [("version",), ("version", "price")])
def test_deferred_version_of_a_posted_form_is_refused(product, fields):
    data = sent(ProductForm(instance=product))
    with pytest.raises(MissingVersion):
        ProductForm(data, instance=Product.objects.defer(*fields).get())


def test_version_that_was_read_alone_is_refused(product):
    behind, again = conflict_then_lag(NameForm, product, {"name": "mine"}, stock=9)
    behind.refresh_from_db(fields=["version"])
    with pytest.raises(MissingVersion):
        NameForm(again, instance=behind)


def test_older_instance_with_deferred_fields_is_refused(product):
    behind = Product.objects.defer("price").get()
    _, again = conflict_then_lag(NameForm, product, {"name": "mine"}, stock=9)
    refused(NameForm(again, instance=behind))
    assert Product.objects.get().stock == 9


# Every kind of field.


def test_form_of_every_field_type_round_trips(shelf):
    shelf.checked, shelf.built = (
        dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC),
        dt.date(2024, 2, 1),
    )
    shelf.save()
    shelf.refresh_from_db()
    form = post(ShelfForm, shelf, sent(ShelfForm(instance=shelf)))
    assert form.is_valid(), form.errors
    assert form.changed_data == []


def test_values_are_shown_formatted(shelf):
    other = Tag.objects.create(name="second")
    mine = sent(
        ShelfForm(instance=shelf), room="a", built="2024-02-01", checked_0="2024-05-06",
        checked_1="07:08", width="1234.5", note="long\ntext", extra='{"a": [1]}', main="",
        tags=[str(other.pk)], secret="s", copies="4",
    )  # fmt: skip
    mine.pop("open")
    shelf.tags.clear()
    Shelf.objects.update(name="theirs")
    form = conflict(post(ShelfForm, shelf, mine, {"plan": SimpleUploadedFile("plan.txt", b"x")}))
    rows = {row.name: row for row in form.conflict_rows}
    assert "secret" not in rows
    assert (rows["room"].original, rows["room"].mine) == ("The cellar", "The <attic>")
    assert rows["built"].original == "(empty)"
    assert rows["built"].mine == "Feb. 1, 2024"
    assert rows["checked"].mine == "May 6, 2024, 2:08 a.m." or "7:08" in rows["checked"].mine
    assert rows["width"].mine in ("1234.50", "1,234.50")
    assert (rows["open"].original, rows["open"].mine) == ("Yes", "No")
    assert rows["plan"].mine.startswith("plans/plan")
    assert rows["plan"].upload
    assert rows["note"].mine == "long\ntext"
    assert rows["extra"].mine == '{\n  "a": [\n    1\n  ]\n}'
    assert (rows["main"].original, rows["main"].mine) == ("<first>", "(empty)")
    assert (rows["tags"].original, rows["tags"].mine, rows["tags"].theirs) == (
        "<first>", "second", "(empty)",
    )  # fmt: skip
    with translation.override("de"):
        assert {row.name: row for row in form.conflict_rows}["built"].mine == "1. Februar 2024"


def test_chosen_value_keeps_its_type(shelf):
    """Dates in two inputs, relations, JSON and files: theirs is taken, and shown."""
    other = Tag.objects.create(name="second")
    names = ("checked", "main", "tags", "extra", "open", "plan")
    mine = sent(ShelfForm(instance=shelf), checked_0="2020-01-01", checked_1="01:00", main="",
                tags=[], extra="[1]")  # fmt: skip
    mine.pop("open")
    moment = dt.datetime(2024, 5, 6, 7, 8, tzinfo=dt.UTC)
    theirs = Shelf.objects.get()
    theirs.checked, theirs.main, theirs.extra, theirs.plan = moment, other, {"b": 2}, "plans/x.txt"
    theirs.save()
    theirs.tags.set([other])
    form = conflict(post(ShelfForm, shelf, mine))
    again = sent(form, **{f"version_choice_{name}": "theirs" for name in names})
    again = post(ShelfForm, shelf, again)
    assert again.is_valid(), again.errors
    assert again.changed_data == []
    html = str(again)
    assert "2024-05-06" in html
    assert "{&quot;b&quot;: 2}" in html
    again.save()
    saved = Shelf.objects.get()
    assert (saved.checked, saved.main, saved.extra, saved.plan.name) == (
        moment, other, {"b": 2}, "plans/x.txt",
    )  # fmt: skip
    assert list(saved.tags.all()) == [other]


def test_relations_are_written_only_with_the_row(shelf):
    other = Tag.objects.create(name="second")
    mine = sent(ShelfForm(instance=shelf), tags=[str(other.pk)])
    Shelf.objects.update(name="theirs")
    conflict(post(ShelfForm, shelf, mine))
    assert list(shelf.tags.all()) == [shelf.main]


@pytest.mark.django_db(databases=["default", "other"])
def test_names_of_related_objects_are_of_the_instances_alias():
    """Another database may have another tenant's object under the same key."""

    class Form(VersionedModelForm):
        class Meta:
            model = Shelf
            fields = ("main", "tags")

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            for field in self.fields.values():
                if hasattr(field, "queryset"):
                    field.queryset = Tag.objects.using("other")

    Tag.objects.create(pk=1, name="default's")
    tag = Tag.objects.using("other").create(pk=1, name="other's")
    shelf = Shelf.objects.using("other").create(name="one")
    data = sent(Form(instance=shelf), main="1", tags=["1"])
    Shelf.objects.using("other").update(name="theirs")
    form = Form(data, instance=Shelf.objects.using("other").get())
    conflict(form)
    assert [row.mine for row in form.conflict_rows] == [tag.name, tag.name]


def test_initial_relation_is_not_the_original(shelf):
    form = ShelfForm(instance=shelf, initial={"tags": [], "name": "suggested"})
    assert form["name"].value() == "suggested"
    seen = post(ShelfForm, shelf, sent(form))
    assert "name" in seen.changed_data
    assert "tags" not in seen._seen.original


def test_token_has_no_password_or_disabled_field(shelf):
    class Form(ShelfForm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)

    Form.base_fields["note"].disabled = True
    shelf.secret, shelf.note = "top secret", "fixed"
    shelf.save()
    form = post(Form, shelf, sent(Form(instance=shelf), note="changed", name="two"))
    assert form.is_valid(), form.errors
    assert not {"secret", "note"} & form._seen.original.keys()
    form.save()
    assert Shelf.objects.get().note == "fixed"


class RestrictedForm(ProductForm):
    """What is common: some users don't get all fields."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        del self.fields["price"]
        self.fields["stock"].disabled = True


def test_token_has_no_field_that_the_form_has_removed(product):
    data = sent(RestrictedForm(instance=product), name="mine")
    form = post(RestrictedForm, product, data)
    assert form._seen.original == {"name": "lamp"}
    assert form.is_valid()
    form.save()
    assert Product.objects.values_list("name", "price", "stock").get() == ("mine", 5, 3)


def test_conflict_of_a_form_that_has_removed_a_field_is_shown(product):
    data = sent(RestrictedForm(instance=product), name="mine")
    Product.objects.update(name="theirs", price=6, stock=4)
    form = conflict(post(RestrictedForm, product, data))
    assert [row.name for row in form.conflict_rows] == ["name"]
    theirs = {"version_choice_price": "theirs", "version_choice_name": "theirs"}
    again = post(RestrictedForm, product, sent(form, **theirs))
    assert again.is_valid()
    assert again.changed_data == []


def test_long_value_is_compared(shelf):
    shelf.note = "long " * 2000
    shelf.save()
    mine = sent(ShelfForm(instance=shelf), name="mine")
    Shelf.objects.update(name="theirs")
    form = conflict(post(ShelfForm, shelf, mine))
    assert [row.original for row in form.conflict_rows if row.name == "note"] == ["(not known)"]


def test_array_is_shown_as_a_list_of_words():
    field = Product._meta.get_field("name")
    assert readable(field, ["a", None, 2]) == "a, (empty), 2"
    assert readable(Shelf._meta.get_field("room"), "z") == "z"  # a choice of former days
    assert readable(field, []) == readable(field, "") == "(empty)"


# Mistakes of a programmer.


def test_mixin_after_model_form_is_refused():
    with pytest.raises(TypeError, match="before ModelForm"):

        class Wrong(forms.ModelForm, VersionedFormMixin):
            pass


def test_model_without_a_version_is_refused():
    class Form(VersionedModelForm):
        class Meta:
            model = Plain
            fields = "__all__"

    with pytest.raises(TypeError, match="not a VersionedModel"):
        Form()


def test_deferred_version_is_refused(product):
    with pytest.raises(MissingVersion):
        ProductForm(instance=Product.objects.defer("version").get())


def test_conflict_of_another_object_is_not_shown(product):
    form = post(ProductForm, product, sent(ProductForm(instance=product)))
    error = StaleObject(instance=product, expected=1, actual=2, using="default")
    assert form.is_valid()
    with pytest.raises(ValueError, match="the conflict is of another object"):
        form.add_conflict(error)
    assert form.conflict_rows == []


@pytest.mark.django_db(transaction=True)
def test_row_and_relations_are_one_transaction(shelf, rival):
    """Or somebody could read the new version with the old relations, and put these back."""
    form = post(ShelfForm, shelf, sent(ShelfForm(instance=shelf), tags=[]))
    assert form.is_valid()
    seen = []

    def look(**_):
        seen.append(rival.execute("SELECT version FROM app_shelf").fetchone()[0])

    from django.db.models.signals import m2m_changed

    m2m_changed.connect(look, sender=Shelf.tags.through)
    try:
        form.save()
    finally:
        m2m_changed.disconnect(look, sender=Shelf.tags.through)
    assert seen
    assert set(seen) == {1}
    assert not transaction.get_connection().in_atomic_block
