"""A row that is written conditionally."""

from django.db import models

from django_dblock import VersionedModel


class Stock(VersionedModel):
    """What is on a shelf."""

    name = models.CharField(max_length=20)
    number = models.IntegerField()

    class Meta:
        app_label = "stock"
