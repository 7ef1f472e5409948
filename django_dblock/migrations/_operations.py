"""What the migrations share."""

from typing import Any

from django.db import migrations, models


class PostgreSQLOnly(migrations.RunSQL):
    """SQL that other engines skip: they may keep the empty tables, but have no such storage.

    ``hints`` names the model of the table, as a router may keep each table in another database.
    """

    def database_forwards(self, app_label: str, editor: Any, old: Any, new: Any) -> None:
        """Run it on PostgreSQL."""
        if editor.connection.vendor == "postgresql":
            super().database_forwards(app_label, editor, old, new)

    def database_backwards(self, app_label: str, editor: Any, old: Any, new: Any) -> None:
        """Take it back on PostgreSQL."""
        if editor.connection.vendor == "postgresql":
            super().database_backwards(app_label, editor, old, new)


def primary_key() -> Any:
    """Return the tables' own key."""
    return models.BigAutoField(
        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
    )
