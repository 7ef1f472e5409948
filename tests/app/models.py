"""What the tests lock, count and write."""

import uuid

from django.db import models

from tests.app.versioned import *  # noqa: F403 - the models with a version
from tests.app.versioned_admin import *  # noqa: F403


class Counter(models.Model):
    """One number that processes read, add to in Python, and write back."""

    name = models.CharField(max_length=40, unique=True)
    value = models.IntegerField(default=0)


class CounterProxy(Counter):
    class Meta:
        proxy = True


class Child(Counter):
    """A child by multi-table inheritance: its pk is the parent's row."""

    note = models.CharField(max_length=40, blank=True)


class Document(models.Model):
    """A pk that is there before the row is."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)


class Seat(models.Model):
    """A composite pk."""

    pk = models.CompositePrimaryKey("row", "number")
    row = models.CharField(max_length=2)
    number = models.IntegerField()


from tests.app.fenced import (  # noqa: E402 - read with the other models
    Account,  # noqa: F401
    Cabinet,  # noqa: F401
    Reserve,  # noqa: F401
    Safe,  # noqa: F401
    Savings,  # noqa: F401
    Stock,  # noqa: F401
    Vault,  # noqa: F401
)
