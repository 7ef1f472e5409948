"""Rows that django-import-export brings in."""

from django.db import models

from django_dblock import VersionedModel


class Price(VersionedModel):
    """A price list's line."""

    code = models.CharField(max_length=10, unique=True)
    cents = models.IntegerField()
