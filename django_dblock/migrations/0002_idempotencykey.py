"""The table of the requests that happen once."""

from typing import Any, ClassVar

from django.db import migrations, models

from django_dblock.migrations._operations import PostgreSQLOnly, primary_key
from django_dblock.sql import tables


class Migration(migrations.Migration):
    """One row for each request, with its first answer."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("django_dblock", "0001_initial")]
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                ("id", primary_key()),
                (
                    "scope",
                    models.CharField(
                        help_text="whose key it is; nobody else's request ever meets it",
                        max_length=255,
                    ),
                ),
                ("key", models.CharField(max_length=255)),
                (
                    "fingerprint",
                    models.BinaryField(help_text="SHA-256 of what was asked for", max_length=32),
                ),
                ("fingerprint_version", models.PositiveSmallIntegerField()),
                ("method", models.CharField(blank=True, max_length=16)),
                ("path", models.TextField(blank=True)),
                ("status_code", models.PositiveSmallIntegerField(null=True)),
                ("headers", models.JSONField(default=dict)),
                ("body", models.BinaryField(null=True)),
                (
                    "body_kind",
                    models.CharField(
                        choices=[
                            ("plain", "plain"),
                            ("encrypted", "encrypted"),
                            ("dropped", "dropped"),
                        ],
                        default="plain",
                        max_length=9,
                    ),
                ),
                (
                    "token",
                    models.BigIntegerField(
                        default=1, help_text="the fencing token of the latest claim"
                    ),
                ),
                (
                    "owner",
                    models.CharField(
                        blank=True,
                        help_text="host:pid:thread of the latest claim, for people only",
                        max_length=255,
                    ),
                ),
                ("locked_until", models.DateTimeField(null=True)),
                ("steps", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField()),
                ("completed_at", models.DateTimeField(null=True)),
                (
                    "expires_at",
                    models.DateTimeField(
                        help_text="none: kept until it is completed, or resolved by a person",
                        null=True,
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["expires_at"], name="django_dblock_idem_expires"),
                    models.Index(
                        condition=models.Q(("completed_at", None)),
                        fields=["locked_until"],
                        name="django_dblock_idem_unfinished",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("scope", "key"), name="django_dblock_idempotencykey_scope_key"
                    )
                ],
            },
        ),
        PostgreSQLOnly(
            tables.IDEMPOTENCYKEY,
            tables.IDEMPOTENCYKEY_REVERSE,
            hints={"model_name": "idempotencykey"},
        ),
    ]
