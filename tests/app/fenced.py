"""What the tests write under fenced locks."""

from django.db import models

from django_dblock import (
    FencedModel,
    FencedQuerySet,
    VersionedManager,
    VersionedModel,
    VersionedQuerySet,
)


class Account(FencedModel):
    name = models.CharField(max_length=40, unique=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "app"


class Savings(Account):
    """A child by multi-table inheritance: the fence is in the parent's table."""

    rate = models.IntegerField(default=0)

    class Meta:
        app_label = "app"


class BothQuerySet(FencedQuerySet, VersionedQuerySet):
    pass


class Stock(VersionedModel, FencedModel):
    """A version and a fence."""

    number = models.IntegerField(default=0)

    objects = VersionedManager.from_queryset(BothQuerySet)()

    class Meta:
        app_label = "app"


class Reserve(FencedModel, VersionedModel):
    """The same, the parents in the other order."""

    number = models.IntegerField(default=0)

    objects = VersionedManager.from_queryset(BothQuerySet)()

    class Meta:
        app_label = "app"


class Cabinet(models.Model):
    """A parent without a fence."""

    size = models.IntegerField(default=0)

    class Meta:
        app_label = "app"


class Safe(FencedModel, Cabinet):
    """A child by multi-table inheritance: the fence is in the child's own table."""

    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "app"


class Vault(Safe):
    """A child of the child: its row is in three tables, and the fence is in the middle one."""

    depth = models.IntegerField(default=0)

    class Meta:
        app_label = "app"
