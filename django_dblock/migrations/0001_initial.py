"""The tables of the fenced locks: leases, and the queue of those who wait in turn."""

from typing import Any, ClassVar

from django.db import migrations, models

from django_dblock.sql import tables


class PostgreSQLOnly(migrations.RunSQL):
    """Other engines may keep the empty tables, but know nothing of their storage."""

    def database_forwards(self, app_label: str, editor: Any, old: Any, new: Any) -> None:
        """Run it on PostgreSQL."""
        if editor.connection.vendor == "postgresql":
            super().database_forwards(app_label, editor, old, new)

    def database_backwards(self, app_label: str, editor: Any, old: Any, new: Any) -> None:
        """Take it back on PostgreSQL."""
        if editor.connection.vendor == "postgresql":
            super().database_backwards(app_label, editor, old, new)


def _primary_key() -> Any:
    return models.BigAutoField(
        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
    )


class Migration(migrations.Migration):
    """One table with a row for each name, one with a row for each waiter."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="FencedLock",
            fields=[
                ("id", _primary_key()),
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
                ("id", _primary_key()),
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
        PostgreSQLOnly(tables.FENCEDLOCK, tables.FENCEDLOCK_REVERSE),
        PostgreSQLOnly(tables.FENCEDTICKET, tables.FENCEDTICKET_REVERSE),
    ]
