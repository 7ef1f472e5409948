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


def test_rows_are_saved_as_they_were_shown(shelf):
    save(BoxFormSet(posted(BoxFormSet(), form_0_items="10")))
    assert items() == {"red": 10, "blue": 2}


def test_one_conflict_undoes_all_and_is_shown_in_its_row(shelf):
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


def test_a_row_left_alone_is_not_put_back(shelf):
    data = posted(BoxFormSet(), form_0_items="10")
    Box.objects.filter(label="blue").update(items=7)
    save(BoxFormSet(data))
    assert items() == {"red": 10, "blue": 7}


def test_a_row_is_deleted_only_as_it_was_shown(shelf):
    data = posted(BoxFormSet(), form_0_DELETE="on")
    Box.objects.filter(label="red").update(items=7)
    formset = BoxFormSet(data)
    with pytest.raises(StaleObject) as caught:
        save(formset)
    assert items() == {"red": 7, "blue": 2}
    formset.forms[0].add_conflict(caught.value)
    save(BoxFormSet(posted(formset)))
    assert items() == {"blue": 2}


def test_trap_a_row_is_not_deleted_without_its_version(shelf):
    """Formsets don't look at the errors of a form that is to be deleted."""
    data = posted(BoxFormSet(), form_0_DELETE="on")
    del data["form-0-version_token"]
    formset = BoxFormSet(data)
    assert not formset.is_valid()
    assert formset.forms[0].has_error("__all__", "version_missing")
    assert items() == {"red": 1, "blue": 2}


def test_the_token_of_one_row_is_no_good_for_another(shelf):
    data = posted(BoxFormSet(), form_0_items="10")
    data["form-0-version_token"] = data["form-1-version_token"]
    assert not BoxFormSet(data).is_valid()


def test_a_row_that_is_gone_is_said_to_be(shelf):
    data = posted(BoxFormSet(), form_0_items="10")
    Box.objects.filter(label="red").delete()
    formset = BoxFormSet(data)
    assert not formset.is_valid()
    assert formset.forms[0].has_error("__all__", "deleted")


def test_a_new_row_is_added(shelf):
    formset = InlineBoxFormSet(instance=shelf)
    data = posted(formset) | {
        "boxes-TOTAL_FORMS": "3", "boxes-2-label": "green", "boxes-2-items": "3",
    }  # fmt: skip
    save(InlineBoxFormSet(data, instance=shelf))
    assert items() == {"red": 1, "blue": 2, "green": 3}


def test_the_parent_of_an_inline_row_is_no_part_of_a_conflict(shelf):
    data = posted(InlineBoxFormSet(instance=shelf), boxes_0_items="10")
    Box.objects.filter(label="red").update(items=7)
    formset = InlineBoxFormSet(data, instance=shelf)
    with pytest.raises(StaleObject) as caught:
        save(formset)
    formset.forms[0].add_conflict(caught.value)
    assert [row.name for row in formset.forms[0].conflict_rows] == ["label", "items"]


def test_a_copy_of_all_rows_needs_no_versions(shelf):
    data = posted(InlineBoxFormSet(instance=shelf))
    Box.objects.update(items=7)
    copy = Shelf.objects.create(name="copy")
    save(InlineBoxFormSet(data, instance=copy, save_as_new=True))
    assert copy.boxes.count() == 2


def test_no_statement_more_than_the_plain_formset(shelf, statements):
    plain = forms.modelformset_factory(Box, fields=("label", "items"), extra=1, can_delete=True)

    def count(formset):
        with statements() as queries:
            save(formset(posted(formset(), form_0_items="10", form_1_items="20")))
        Box.objects.filter(label="red").update(items=1)
        Box.objects.filter(label="blue").update(items=2)
        return len(queries)

    assert count(BoxFormSet) == count(plain)
