"""Each form of a formset carries a version of its own."""

import pytest
from django import forms
from django.db import transaction

from django_dblock import StaleObject, VersionedModelForm
from tests.app.models import Box, Shelf
from tests.versioning.pages import sent

pytestmark = pytest.mark.django_db

BoxFormSet = forms.modelformset_factory(
    Box, form=VersionedModelForm, fields=("label", "items"), extra=1, can_delete=True
)
ItemsFormSet = forms.modelformset_factory(
    Box, form=VersionedModelForm, fields=("items",), extra=0, can_delete=True
)
InlineBoxFormSet = forms.inlineformset_factory(
    Shelf, Box, form=VersionedModelForm, fields="__all__", extra=0
)


@pytest.fixture
def shelf():
    shelf = Shelf.objects.create(name="one")
    Box.objects.create(shelf=shelf, label="red", items=1)
    Box.objects.create(shelf=shelf, label="blue", items=2)
    return shelf


def posted(formset, **changes):
    data = sent(formset.management_form)
    for form in formset:
        data |= sent(form)
    return {**data, **{name.replace("_", "-", 2): value for name, value in changes.items()}}


def items():
    return dict(Box.objects.values_list("label", "items"))


def save(formset):
    assert formset.is_valid(), (formset.errors, formset.non_form_errors())
    with transaction.atomic():
        formset.save()


def test_unchanged_rows_are_saved(shelf):
    save(BoxFormSet(posted(BoxFormSet(), form_0_items="10")))
    assert items() == {"red": 10, "blue": 2}


def test_one_conflict_rolls_back_all_rows(shelf):
    data = posted(BoxFormSet(), form_0_items="10", form_1_items="20")
    Box.objects.filter(label="blue").update(items=7)
    formset = BoxFormSet(data)
    with pytest.raises(StaleObject) as caught:
        save(formset)
    assert items() == {"red": 1, "blue": 7}
    [form] = [form for form in formset if form.instance is caught.value.instance]
    form.add_conflict(caught.value)
    assert form.prefix == "form-1"
    save(BoxFormSet(posted(formset)))
    assert items() == {"red": 10, "blue": 20}


def test_unchanged_row_is_not_written(shelf):
    data = posted(BoxFormSet(), form_0_items="10")
    Box.objects.filter(label="blue").update(items=7)
    save(BoxFormSet(data))
    assert items() == {"red": 10, "blue": 7}


def test_changed_row_is_not_deleted(shelf):
    data = posted(BoxFormSet(), form_0_DELETE="on")
    Box.objects.filter(label="red").update(items=7)
    formset = BoxFormSet(data)
    with pytest.raises(StaleObject) as caught:
        save(formset)
    assert items() == {"red": 7, "blue": 2}
    formset.forms[0].add_conflict(caught.value)
    save(BoxFormSet(posted(formset)))
    assert items() == {"blue": 2}


def test_trap_delete_without_version_is_refused(shelf):
    """Formsets don't look at the errors of a form that is to be deleted."""
    data = posted(BoxFormSet(), form_0_DELETE="on")
    del data["form-0-version_token"]
    formset = BoxFormSet(data)
    assert not formset.is_valid()
    assert formset.forms[0].has_error("__all__", "version_missing")
    assert items() == {"red": 1, "blue": 2}


def test_token_of_another_row_is_refused(shelf):
    data = posted(BoxFormSet(), form_0_items="10")
    data["form-0-version_token"] = data["form-1-version_token"]
    assert not BoxFormSet(data).is_valid()


def test_deleted_row_is_reported(shelf):
    data = posted(BoxFormSet(), form_0_items="10")
    Box.objects.filter(label="red").delete()
    formset = BoxFormSet(data)
    assert not formset.is_valid()
    assert formset.forms[0].has_error("__all__", "deleted")


@pytest.mark.parametrize("change", [{"form_0_items": "10"}, {"form_0_DELETE": "on"}])
def test_trap_row_that_was_read_older_than_it_was_shown_is_refused(shelf, change):
    """As from a replica that lags: the UPDATE alone would match, and restore the old label."""
    behind = list(Box.objects.all())
    Box.objects.filter(label="red").update(label="crimson")
    data = posted(ItemsFormSet(), **change)
    queryset = Box.objects.all()
    queryset._result_cache = behind
    formset = ItemsFormSet(data, queryset=queryset)
    assert not formset.is_valid()
    assert [form.has_error("__all__", "version_behind") for form in formset] == [True, False]
    assert items() == {"crimson": 1, "blue": 2}
    formset = ItemsFormSet(data)
    save(formset)
    assert items() == ({"blue": 2} if "form_0_DELETE" in change else {"crimson": 10, "blue": 2})


def test_new_row_is_added(shelf):
    formset = InlineBoxFormSet(instance=shelf)
    data = posted(formset) | {
        "boxes-TOTAL_FORMS": "3", "boxes-2-label": "green", "boxes-2-items": "3",
    }  # fmt: skip
    save(InlineBoxFormSet(data, instance=shelf))
    assert items() == {"red": 1, "blue": 2, "green": 3}


def test_parent_of_an_inline_row_is_no_part_of_a_conflict(shelf):
    data = posted(InlineBoxFormSet(instance=shelf), boxes_0_items="10")
    Box.objects.filter(label="red").update(items=7)
    formset = InlineBoxFormSet(data, instance=shelf)
    with pytest.raises(StaleObject) as caught:
        save(formset)
    formset.forms[0].add_conflict(caught.value)
    assert [row.name for row in formset.forms[0].conflict_rows] == ["label", "items"]


def test_copy_of_all_rows_needs_no_versions(shelf):
    data = posted(InlineBoxFormSet(instance=shelf))
    Box.objects.update(items=7)
    copy = Shelf.objects.create(name="copy")
    save(InlineBoxFormSet(data, instance=copy, save_as_new=True))
    assert copy.boxes.count() == 2


def test_formset_adds_no_statement(shelf, statements):
    plain = forms.modelformset_factory(Box, fields=("label", "items"), extra=1, can_delete=True)

    def count(formset):
        with statements() as queries:
            save(formset(posted(formset(), form_0_items="10", form_1_items="20")))
        Box.objects.filter(label="red").update(items=1)
        Box.objects.filter(label="blue").update(items=2)
        return len(queries)

    assert count(BoxFormSet) == count(plain)
