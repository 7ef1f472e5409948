# ruff: noqa: RUF012 - the form that Django gives to migrations
import django.db.models.manager
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("shop", "0004_mark_booked_payments")]

    operations = [
        # Sends nothing: it notes that a VersionedModel has a base manager.
        migrations.AlterModelManagers(
            name="product",
            managers=[
                ("objects", django.db.models.manager.Manager()),
                ("_versioned", django.db.models.manager.Manager()),
            ],
        ),
    ]
