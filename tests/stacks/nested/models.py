"""Rows of rows of rows, edited on one page with django-nested-admin."""

import nested_admin
from django.contrib import admin
from django.db import models

from django_dblock import VersionedAdmin, VersionedModel


class Store(VersionedModel):
    """The page's object."""

    name = models.CharField(max_length=40)


class Aisle(VersionedModel):
    """Its inline."""

    store = models.ForeignKey(Store, models.CASCADE, related_name="aisles")
    label = models.CharField(max_length=40)


class Bay(VersionedModel):
    """The inline of the inline."""

    aisle = models.ForeignKey(Aisle, models.CASCADE, related_name="bays")
    goods = models.CharField(max_length=40)


class BayInline(nested_admin.NestedTabularInline):
    """Inside an aisle."""

    model = Bay
    extra = 0


class AisleInline(nested_admin.NestedStackedInline):
    """Inside a store."""

    model = Aisle
    extra = 0
    inlines = (BayInline,)


@admin.register(Store)
class StoreAdmin(VersionedAdmin, nested_admin.NestedModelAdmin):
    """The page."""

    inlines = (AisleInline,)
