"""Somebody else who was faster."""

import pytest
from django.db.models import Q

from tests.app.models import Product


def overtake(instance, **changes):
    """Write the row of an instance as another editor would, behind its back.

    The condition is no plain one of the key, or the write would be known as this transaction's own.
    """
    rows = type(instance)._default_manager.filter(Q(pk=instance.pk) | Q(pk=instance.pk))
    assert rows.update(**(changes or {"name": "theirs"})) == 1


def version_of(instance, using="default"):
    """What the row has, whatever the instance says."""
    field = instance._version_field
    rows = field.model._base_manager.using(using)
    return rows.values_list(field.attname, flat=True).get(pk=instance._version_pk)


class Replica:
    """A router that reads from one alias, which may lag, and writes to the other."""

    def db_for_read(self, model, **hints):
        return "other"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, *_, **__):
        return True


@pytest.fixture
def product(db):
    """A product that was read; its row has version 1."""
    return Product.objects.get(pk=Product.objects.create(name="original", stock=10).pk)
