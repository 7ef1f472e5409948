"""Models with a version, in every shape Django knows."""

import uuid
from typing import ClassVar

from django.db import models
from django.db.models.functions import Lower

from django_dblock import VersionedManager, VersionedModel, VersionedQuerySet, VersionField


class Product(VersionedModel):
    """The plain one."""

    name = models.CharField(max_length=80)
    price = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    stock = models.IntegerField(default=0)

    def __str__(self):
        return self.name


class ProductProxy(Product):
    class Meta:
        proxy = True


class Gadget(Product):
    """The version is in the parent's table."""

    watts = models.IntegerField(default=0)


class Plain(models.Model):
    name = models.CharField(max_length=80)


class Special(Plain, VersionedModel):
    """The version is in the child's table; the parent has none."""

    note = models.CharField(max_length=80, blank=True)


class Invoice(VersionedModel):
    """An aggregate root, with a pk that is there before the row is."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    customer = models.CharField(max_length=80, blank=True)


class InvoiceLine(VersionedModel):
    invoice = models.ForeignKey(Invoice, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.SET_NULL, null=True, related_name="lines")
    quantity = models.IntegerField(default=1)


class Place(VersionedModel):
    """A composite pk."""

    pk = models.CompositePrimaryKey("row", "number")
    row = models.CharField(max_length=2)
    number = models.IntegerField()
    guest = models.CharField(max_length=80, blank=True)


class Article(VersionedModel):
    """A version under another name; a column the database computes, and one it has a default for."""

    version = None
    revision = VersionField()
    title = models.CharField(max_length=80)
    slug = models.GeneratedField(
        expression=Lower("title"), output_field=models.CharField(max_length=80), db_persist=True
    )
    state = models.CharField(max_length=10, db_default="draft")
    tags = models.JSONField(default=list)


class Setting(VersionedModel):
    """Plain save() is the last write that wins."""

    cas_on_save = False
    name = models.CharField(max_length=40, unique=True)
    value = models.CharField(max_length=80, blank=True)


class Checked(VersionedModel):
    """Django looks before it updates."""

    name = models.CharField(max_length=80)

    class Meta:
        select_on_save = True


class OwnQuerySet(VersionedQuerySet):
    def cheap(self):
        return self.filter(price__lt=10)


class Managed(VersionedModel):
    price = models.IntegerField(default=0)
    objects: ClassVar = VersionedManager.from_queryset(OwnQuerySet)()
