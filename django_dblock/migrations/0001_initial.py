"""The tables of the fenced locks: leases, and the queue of waiters that wait in turn."""

from typing import Any, ClassVar

from django.db import migrations, models

from django_dblock.migrations._operations import PostgreSQLOnly, primary_key
from django_dblock.sql import tables


class Migration(migrations.Migration):
    """One table with a row for each name, one with a row for each waiter."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="FencedLock",
            fields=[
                ("id", primary_key()),
                ("name", models.CharField(max_length=255)),
                ("slot", models.IntegerField(default=0)),
                ("token", models.BigIntegerField()),
                (
                    "owner",
                    models.CharField(help_text="host:pid:thread, for people only", max_length=255),
                ),
                ("acquired_at", models.DateTimeField()),
                ("renewed_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("lock_delay", models.DurationField()),
                ("grants", models.BigIntegerField()),
                ("metadata", models.JSONField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("name", "slot"), name="django_dblock_fencedlock_name_slot"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="FencedTicket",
            fields=[
                ("id", primary_key()),
                ("name", models.CharField(max_length=255)),
                ("slot", models.IntegerField(default=0)),
                (
                    "owner",
                    models.CharField(help_text="host:pid:thread, for people only", max_length=255),
                ),
                (
                    "expires_at",
                    models.DateTimeField(help_text="a waiter that died is passed over after this"),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["name", "slot"], name="django_dblock_ticket_name_slot")
                ],
            },
        ),
        PostgreSQLOnly(
            tables.FENCEDLOCK, tables.FENCEDLOCK_REVERSE, hints={"model_name": "fencedlock"}
        ),
        PostgreSQLOnly(
            tables.FENCEDTICKET, tables.FENCEDTICKET_REVERSE, hints={"model_name": "fencedticket"}
        ),
    ]
