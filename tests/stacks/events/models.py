"""A row that django-pghistory follows with triggers, and one that django-pgtrigger protects."""

from typing import ClassVar

import pghistory
import pgtrigger
from django.db import models

from django_dblock import VersionedModel


@pghistory.track(pghistory.InsertEvent(), pghistory.UpdateEvent())
class Parcel(VersionedModel):
    """A parcel, with an event for each state."""

    place = models.CharField(max_length=40)


class Sealed(VersionedModel):
    """A row that a trigger lets nobody change."""

    text = models.CharField(max_length=40)

    class Meta:
        triggers: ClassVar = [
            pgtrigger.Trigger(
                name="skip", operation=pgtrigger.Update, when=pgtrigger.Before, func="RETURN NULL;"
            )
        ]
