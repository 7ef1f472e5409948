# ruff: noqa: RUF012 - the form that Django gives to migrations
from django.db import migrations


def mark(apps, _schema_editor):
    """What was booked before payments were marked must not be booked again."""
    payments = apps.get_model("shop", "Payment").objects.filter(settlement=None)
    for settlement in apps.get_model("shop", "Settlement").objects.iterator():
        payments.filter(created_at__date=settlement.date).update(settlement=settlement)


class Migration(migrations.Migration):
    dependencies = [("shop", "0003_fenced_settlement")]

    # Apart from 0003, so that the tables are not locked for as long as the rows take.
    operations = [migrations.RunPython(mark, migrations.RunPython.noop)]
