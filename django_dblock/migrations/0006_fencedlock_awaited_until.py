"""The mark of a lease that somebody waits for."""

from typing import Any, ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """One nullable column, which PostgreSQL adds without writing the rows."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("django_dblock", "0005_latchpart")]
    operations: ClassVar[list[Any]] = [
        migrations.AddField(
            model_name="fencedlock",
            name="awaited_until",
            field=models.DateTimeField(
                editable=False,
                help_text="a release before this notifies the first waiter",
                null=True,
            ),
        ),
    ]
