"""The tables. No policy: what may be written, and when, is decided in ``sql`` and ``fencing``."""

from typing import TYPE_CHECKING, Any

from django.db import models

if TYPE_CHECKING:
    from datetime import datetime, timedelta


class FencedLock(models.Model):
    """The lease on one name: who has it, until when, and the token of the latest grant.

    A row stays when its lease ends, because the next token must be greater. ``manage.py dblock
    purge`` removes rows that have been idle for so long that no token can repeat. Read it, don't
    write it: a changed row is a broken lock.
    """

    name: "models.CharField[str, str]" = models.CharField(max_length=255)
    slot: "models.IntegerField[int, int]" = models.IntegerField(default=0)
    token: "models.BigIntegerField[int, int]" = models.BigIntegerField()
    owner: "models.CharField[str, str]" = models.CharField(
        max_length=255, help_text="host:pid:thread, for people only"
    )
    acquired_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()
    renewed_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()
    expires_at: "models.DateTimeField[datetime, datetime]" = (
        models.DateTimeField()
    )  # no index: each renewal would have to write it
    lock_delay: "models.DurationField[timedelta, timedelta]" = models.DurationField()
    grants: "models.BigIntegerField[int, int]" = models.BigIntegerField()
    metadata: "models.JSONField[dict[str, Any], dict[str, Any]]" = models.JSONField()

    class Meta:  # noqa: D106 - Django's
        constraints = (
            models.UniqueConstraint(
                fields=("name", "slot"), name="django_dblock_fencedlock_name_slot"
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} (token {self.token})"


class FencedTicket(models.Model):
    """A place in the queue for a name, for those who wait with ``fair=True``."""

    name: "models.CharField[str, str]" = models.CharField(max_length=255)
    slot: "models.IntegerField[int, int]" = models.IntegerField(default=0)
    owner: "models.CharField[str, str]" = models.CharField(
        max_length=255, help_text="host:pid:thread, for people only"
    )
    expires_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField(
        help_text="a waiter that died is passed over after this"
    )

    class Meta:  # noqa: D106 - Django's
        indexes = (models.Index(fields=("name", "slot"), name="django_dblock_ticket_name_slot"),)

    def __str__(self) -> str:
        return f"{self.name} (ticket {self.pk})"
