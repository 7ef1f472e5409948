"""Multi-table inheritance: one version for several rows, and a conflict takes back all."""

import pytest
from django.db import IntegrityError, transaction
from django.db.utils import DatabaseError

from django_dblock import StaleObject
from tests.app import models as app
from tests.app.models import Gadget, Product
from tests.versioning.conftest import overtake, version_of

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("name", ["name", "watts"])
def test_child_shares_the_version_of_its_parent(name, atomic):
    gadget = Gadget.objects.create(name="a", watts=1)
    setattr(gadget, name, "9")
    gadget.save_cas(update_fields=[name])
    assert version_of(gadget) == gadget.version == 2
    overtake(Product.objects.get(pk=gadget.pk))
    gadget.watts = 99
    with transaction.atomic() if atomic else transaction.mark_for_rollback_on_error("default"):
        with pytest.raises(StaleObject):
            gadget.save()
        assert Gadget.objects.get().watts != 99
    assert gadget.version == 2


@pytest.mark.parametrize("atomic", [True, False])
def test_parent_table_is_restored_on_a_stale_child(atomic):
    special = app.Special.objects.create(name="a", note="a")
    overtake(special, note="theirs")
    special.name = special.note = "mine"
    with transaction.atomic() if atomic else transaction.mark_for_rollback_on_error("default"):
        with pytest.raises(StaleObject) as caught:
            special.save()
        app.Plain.objects.create(name="later")
    assert app.Plain.objects.get(pk=special.pk).name == "a"
    assert app.Plain.objects.filter(name="later").exists()
    assert special.version == 1
    assert special._version_origin["name"] == "a", "what was taken back is not the original"
    assert caught.value.expected == 1
    special.refresh_from_db()
    special.save()
    assert special.version == 3


@pytest.mark.parametrize("atomic", [True, False])
def test_parent_is_restored_on_a_missing_child_row(atomic, rival):
    gadget = Gadget.objects.create(name="a")
    Gadget.objects.get().delete(keep_parents=True)
    gadget.name = "mine"
    with transaction.atomic() if atomic else transaction.mark_for_rollback_on_error("default"):
        with pytest.raises(StaleObject) as caught:
            gadget.save()
        assert Product.objects.get().name == "a"
    assert caught.value.deleted
    assert caught.value.expected == gadget.version == version_of(gadget) == 1
    assert not Gadget.objects.exists()


def test_missing_parent_row_is_a_conflict():
    special = app.Special.objects.create(name="a")
    app.Special.objects.all().delete()
    with pytest.raises(StaleObject) as caught:
        special.save()
    assert caught.value.deleted
    assert not app.Plain.objects.exists()


def test_child_row_is_added_to_a_parent_only_once(statements):
    plain = app.Plain.objects.create(name="a")
    special = app.Special(plain_ptr=plain, name="b")
    special.save()
    assert version_of(special) == 1
    assert app.Plain.objects.get().name == "b"
    again = app.Special(plain_ptr=plain, name="c")
    with pytest.raises(IntegrityError):
        again.save()
    assert app.Plain.objects.get().name == "b"


@pytest.mark.parametrize("atomic", [True, False])
def test_failed_save_leaves_the_instance_unchanged(atomic):
    """All is as before the save, also where the transaction around it is lost."""
    gadget = Gadget.objects.create(name="a", watts=1)
    gadget.name, gadget.watts = "mine", 2**40
    with pytest.raises(DatabaseError):
        with transaction.atomic() if atomic else transaction.mark_for_rollback_on_error("default"):
            gadget.save()
    gadget.watts = 7
    assert atomic or gadget.version == 1
    gadget.save()
    assert gadget.version == version_of(gadget) == 2


def test_two_parents_with_keys_of_their_own_share_a_version():
    coded = app.Coded.objects.create(name="a", code="x", text="t")
    coded.text = coded.extra = "mine"
    coded.save_cas()
    coded.touch_version()
    assert version_of(coded) == 3
    app.Code.objects.update(text="theirs")
    with pytest.raises(StaleObject) as caught:
        coded.save_cas()
    assert caught.value.actual == 4
    with pytest.raises(StaleObject):
        coded.delete_cas()
    coded.refresh_from_db()
    coded.delete_cas()
    assert not app.Code.objects.exists()
