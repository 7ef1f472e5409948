"""The private parts of Django that are used: a changed signature fails here first.

What ``guarded`` overrides and calls, per version of Django. If one of these fails on a new
version, read the body of ``Model.save_base()`` there before the number is added.
"""

import inspect

import django
import pytest
from django.db import connection, connections, models, transaction
from django.db.models.deletion import Collector

from django_dblock.versioning.save import GuardedSave
from tests.app.models import Product, TwinProduct

VERSION = django.VERSION[:2]

UPDATE = ["self", "base_qs", "using", "pk_val", "values", "update_fields", "forced_update"]
FROM_DB = ["cls", "db", "field_names", "values"]
SIGNATURES = {
    (5, 2): {"_do_update": UPDATE, "from_db": FROM_DB},
    (6, 0): {"_do_update": [*UPDATE, "returning_fields"], "from_db": FROM_DB},
    (6, 1): {
        "_do_update": [*UPDATE, "returning_fields"],
        "from_db": [*FROM_DB, "fetch_mode"],
    },
}
EVERYWHERE = {
    "_do_insert": ["self", "manager", "using", "fields", "returning_fields", "raw"],
    "save_base": ["self", "raw", "force_insert", "force_update", "using", "update_fields"],
    "refresh_from_db": ["self", "using", "fields", "from_queryset"],
    "_get_pk_val": ["self", "meta"],
    "_is_pk_set": ["self", "meta"],
    "_prepare_related_fields_for_save": ["self", "operation_name", "fields"],
    "delete": ["self", "using", "keep_parents"],
}


def parameters(name):
    found = getattr(models.Model, name)
    return list(inspect.signature(getattr(found, "__func__", found)).parameters)


def test_django_version_was_reviewed():
    assert VERSION in SIGNATURES


@pytest.mark.parametrize("name", ["_do_update", "from_db", *EVERYWHERE])
def test_signatures_of_used_django_methods_are_known(name):
    assert parameters(name) == {**EVERYWHERE, **SIGNATURES[VERSION]}[name]


def test_save_base_arguments_pass_through():
    ours = inspect.signature(GuardedSave.save_base).parameters
    theirs = inspect.signature(models.Model.save_base).parameters
    assert [(each.name, each.default) for each in ours.values()] == [
        (each.name, each.default) for each in theirs.values()
    ]


def test_private_attributes_that_are_read_exist():
    read = {"run_on_commit", "savepoint_ids", "atomic_blocks", "needs_rollback", "in_atomic_block"}
    assert read <= vars(connections["default"]).keys()
    assert "_from_testcase" in vars(transaction.atomic())
    assert list(inspect.signature(Collector.can_fast_delete).parameters) == [
        "self", "objs", "from_field",
    ]  # fmt: skip


@pytest.mark.django_db(transaction=True)
def test_django_commit_hooks_have_three_parts():
    """Fates are put among them, and found in them, by these."""
    with transaction.atomic(), transaction.atomic():
        transaction.on_commit(int)
        [(savepoints, function, robust)] = connection.run_on_commit
        assert (savepoints, function, robust) == (set(connection.savepoint_ids), int, False)
        assert len(connection.savepoint_ids) == len(connection.atomic_blocks) - 1


def returned(model, monkeypatch):
    """What _do_update returns for a row that is there, and for one that is not."""
    found = []
    inner = model._do_update

    def spy(self, *args, **more):
        found.append(inner(self, *args, **more))
        return found[-1]

    row = model.objects.create(name="a")
    with monkeypatch.context() as patch:
        patch.setattr(model, "_do_update", spy)
        row.save()
    return found


@pytest.mark.django_db
def test_return_values_of_django_pass_through(monkeypatch):
    assert returned(Product, monkeypatch) == returned(TwinProduct, monkeypatch)
