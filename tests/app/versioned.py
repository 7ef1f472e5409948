"""Models with a version, in every shape Django knows."""

import uuid
from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
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
    """The version is in the child's table; the parent has none, and its manager would be first."""

    note = models.CharField(max_length=80, blank=True)
    objects: ClassVar = VersionedManager()


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
    """A version under another name; a column the database computes; one it has a default for."""

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


class Code(VersionedModel):
    """A pk of its own name."""

    code = models.CharField(max_length=10, primary_key=True)
    text = models.CharField(max_length=80, blank=True)


class Coded(Plain, Code):
    """Two parents: its own pk is not that of the table with the version."""

    extra = models.CharField(max_length=80, blank=True)
    objects: ClassVar = VersionedManager()


class Words(ArrayField):
    def check(self, **_):
        return []  # it would ask for an app that queries on each new connection


class Typed(VersionedModel):
    """A column of each kind that needs care on its way into a statement."""

    short = models.CharField(max_length=3, null=True)  # noqa: DJ001
    amount = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    data = models.JSONField(null=True)
    words = Words(models.CharField(max_length=5), null=True)
    key = models.UUIDField(null=True)
    day = models.DateField(null=True)
    moment = models.DateTimeField(null=True)
    span = models.DurationField(null=True)
    raw = models.BinaryField(null=True)
    flag = models.BooleanField(null=True)
    ratio = models.FloatField(null=True)
    small = models.SmallIntegerField(null=True)
    seen = models.DateTimeField(auto_now=True)
    product = models.ForeignKey(Product, models.SET_NULL, null=True, related_name="typed")

    class Meta:
        required_db_vendor = "postgresql"


class TwinProduct(models.Model):
    """Product without a version."""

    name = models.CharField(max_length=80)
    price = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    stock = models.IntegerField(default=0)


class TwinGadget(TwinProduct):
    watts = models.IntegerField(default=0)


class TwinChecked(models.Model):
    name = models.CharField(max_length=80)

    class Meta:
        select_on_save = True


class Fussy(VersionedModel):
    """It overrides what it may override."""

    name = models.CharField(max_length=80)
    goodbye = ""

    def save(self, **options):
        if self.name != "never":
            super().save(**options)

    def delete(self, **options):
        Fussy.goodbye = self.name
        return super().delete(**options)


class Note(VersionedModel):
    """Its row is checked when the transaction ends."""

    name = models.CharField(max_length=80)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["name"], name="note_name", deferrable=models.Deferrable.DEFERRED
            )
        ]
