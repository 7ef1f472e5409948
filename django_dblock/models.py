"""The package's tables. The statements that write them are in ``django_dblock.sql``."""

from typing import TYPE_CHECKING, Any

from django.db import models
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID


# The permissions of this app that its pages ask for.
MAY_RELEASE = "django_dblock.release_fencedlock"
MAY_TERMINATE = "django_dblock.terminate_backend"
MAY_SEE_OTHERS = "django_dblock.view_other_namespaces"


class FencedLock(models.Model):
    """The lease on one name: its holder, its expiry, and the token of the latest grant.

    A row stays when its lease ends, because the next token must be greater. ``manage.py dblock
    purge`` deletes rows that have been idle for so long that no token can repeat. Read it, don't
    write it: a changed row is a broken lock.
    """

    name: "models.CharField[str, str]" = models.CharField(max_length=255)
    slot: "models.IntegerField[int, int]" = models.IntegerField(default=0)
    token: "models.BigIntegerField[int, int]" = models.BigIntegerField()
    owner: "models.CharField[str, str]" = models.CharField(
        max_length=255, help_text="the holder as host:pid:thread, for display only"
    )
    acquired_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()
    renewed_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()
    expires_at: "models.DateTimeField[datetime, datetime]" = (
        models.DateTimeField()
    )  # no index: each renewal would have to write it
    lock_delay: "models.DurationField[timedelta, timedelta]" = models.DurationField()
    grants: "models.BigIntegerField[int, int]" = models.BigIntegerField()
    metadata: "models.JSONField[dict[str, Any], dict[str, Any]]" = models.JSONField()
    awaited_until: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True, editable=False, help_text="until this time, a release notifies the first waiter"
    )

    class Meta:  # noqa: D106 - Django's
        constraints = (
            models.UniqueConstraint(
                fields=("name", "slot"), name="django_dblock_fencedlock_name_slot"
            ),
        )
        verbose_name = _("lease")
        verbose_name_plural = _("leases")
        permissions = (("release_fencedlock", "Can release a lease by force"),)

    def __str__(self) -> str:
        return f"{self.name} (token {self.token})"


class LockMonitor(FencedLock):
    """The lock monitor as a model, for the admin's index and its permissions. It has no table."""

    class Meta:  # noqa: D106 - Django's
        proxy = True
        verbose_name = verbose_name_plural = _("lock monitor")
        default_permissions = ("view",)
        permissions = (
            ("terminate_backend", "Can end a connection that holds or awaits a lock"),
            ("view_other_namespaces", "Can see and end locks of other namespaces and programs"),
        )


class FencedTicket(models.Model):
    """The place of one waiter in the queue for a name."""

    name: "models.CharField[str, str]" = models.CharField(max_length=255)
    slot: "models.IntegerField[int, int]" = models.IntegerField(default=0)
    owner: "models.CharField[str, str]" = models.CharField(
        max_length=255, help_text="the waiter as host:pid:thread, for display only"
    )
    expires_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField(
        help_text="after this time, a waiter that died is skipped"
    )

    class Meta:  # noqa: D106 - Django's
        indexes = (models.Index(fields=("name", "slot"), name="django_dblock_ticket_name_slot"),)

    def __str__(self) -> str:
        return f"{self.name} (ticket {self.pk})"


class IdempotencyKey(models.Model):
    """One request that takes effect once, with its response (:mod:`django_dblock.idempotency`).

    A row without ``completed_at`` belongs to ``mode="lease"``: a run owns the request until
    ``locked_until``; after that the request is abandoned. Read it, don't write it.
    """

    namespace: "models.CharField[str, str]" = models.CharField(
        max_length=255,
        blank=True,
        default="",
        db_default="",
        help_text="DBLOCK_NAMESPACE at the time of the request, for example the tenant",
    )
    scope: "models.CharField[str, str]" = models.CharField(
        max_length=255,
        help_text="the client that owns the key; other clients never see this row",
    )
    key: "models.CharField[str, str]" = models.CharField(max_length=255)
    fingerprint: "models.BinaryField[bytes, bytes]" = models.BinaryField(
        max_length=32, help_text="SHA-256 of the request that the key belongs to"
    )
    fingerprint_version: "models.PositiveSmallIntegerField[int, int]" = (
        models.PositiveSmallIntegerField()
    )
    method: "models.CharField[str, str]" = models.CharField(max_length=16, blank=True)
    path: "models.TextField[str, str]" = models.TextField(blank=True)
    status_code: "models.PositiveSmallIntegerField[int | None, int | None]" = (
        models.PositiveSmallIntegerField(null=True)
    )
    headers: "models.JSONField[dict[str, str], dict[str, str]]" = models.JSONField(default=dict)
    body: "models.BinaryField[bytes | None, bytes | None]" = models.BinaryField(null=True)
    body_kind: "models.CharField[str, str]" = models.CharField(
        max_length=9,
        default="plain",
        choices=[("plain", "plain"), ("encrypted", "encrypted"), ("dropped", "dropped")],
    )
    token: "models.BigIntegerField[int, int]" = models.BigIntegerField(
        default=1, help_text="the fencing token of the latest claim"
    )
    claim: "models.UUIDField[UUID | None, UUID | None]" = models.UUIDField(
        null=True, help_text="the random identity of the latest claim"
    )
    owner: "models.CharField[str, str]" = models.CharField(
        max_length=255,
        blank=True,
        help_text="the worker of the latest claim as host:pid:thread, for display only",
    )
    locked_until: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True
    )
    steps: "models.JSONField[dict[str, Any], dict[str, Any]]" = models.JSONField(default=dict)
    created_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()
    completed_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True
    )
    expires_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True, help_text="empty: kept until the request is completed, or resolved manually"
    )

    class Meta:  # noqa: D106 - Django's
        constraints = (
            models.UniqueConstraint(
                fields=("namespace", "scope", "key"), name="django_dblock_idempotencykey_key"
            ),
        )
        indexes = (
            models.Index(fields=("expires_at",), name="django_dblock_idem_expires"),
            models.Index(
                fields=("locked_until",),
                condition=models.Q(completed_at=None),
                name="django_dblock_idem_unfinished",
            ),
        )

    def __str__(self) -> str:
        return f"request {self.pk} of {self.scope}"


class LatchPart(models.Model):
    """One part of a latch that is done (:mod:`django_dblock.coordination.latch`)."""

    latch: "models.CharField[str, str]" = models.CharField(max_length=255)
    part: "models.CharField[str, str]" = models.CharField(max_length=255)
    done_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()

    class Meta:  # noqa: D106 - Django's
        constraints = (
            models.UniqueConstraint(
                fields=("latch", "part"), name="django_dblock_latchpart_latch_part"
            ),
        )

    def __str__(self) -> str:
        return f"{self.latch}: {self.part}"
