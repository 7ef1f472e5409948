"""A model that django-modeltranslation gives a column for each language."""

from typing import ClassVar

from django.db import models

from django_dblock import VersionedManager, VersionedModel


class Poster(VersionedModel):
    """Its title is in two languages."""

    title = models.CharField(max_length=40)
    objects: ClassVar = VersionedManager()
