# ruff: noqa: RUF012 - the form that Django gives to migrations
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shop", "0002_product_version")]

    operations = [
        # As in 0002: neither column writes a row, but both tables are needed for a moment.
        migrations.RunSQL("SET LOCAL lock_timeout = '2s'", migrations.RunSQL.noop),
        migrations.AddField(
            model_name="settlement",
            name="token",
            field=models.BigIntegerField(
                default=0, help_text="the fencing token of the worker that wrote it last"
            ),
        ),
        migrations.AddField(
            model_name="payment",
            name="settlement",
            field=models.ForeignKey(
                db_index=False,
                editable=False,
                help_text="where it is booked; none until then",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="booked",
                to="shop.settlement",
            ),
        ),
    ]
