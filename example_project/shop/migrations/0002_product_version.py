# ruff: noqa: RUF012 - the form that Django gives to migrations
from django.db import migrations

import django_dblock


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]

    operations = [
        # Adding the column writes no row, but needs the table for a moment: behind a long
        # transaction it would wait, and every sale behind it. So it gives up soon; run it again.
        migrations.RunSQL("SET LOCAL lock_timeout = '2s'", migrations.RunSQL.noop),
        migrations.AddField(
            model_name="product",
            name="version",
            field=django_dblock.VersionField(),
        ),
    ]
