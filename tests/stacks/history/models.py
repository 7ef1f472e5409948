"""A row whose states django-simple-history keeps."""

from typing import ClassVar

from django.db import models
from simple_history.models import HistoricalRecords

from django_dblock import VersionedManager, VersionedModel


class Contract(VersionedModel):
    """A contract, with a table of what it was."""

    title = models.CharField(max_length=40)
    history = HistoricalRecords()
    objects: ClassVar = VersionedManager()
