"""Help texts and a permission's name in plain words; no statement is sent."""

from typing import Any, ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """Changes of the state only: PostgreSQL has no help texts."""

    dependencies: ClassVar[list[tuple[str, str]]] = [
        ("django_dblock", "0006_fencedlock_awaited_until")
    ]
    operations: ClassVar[list[Any]] = [
        migrations.AlterModelOptions(
            name="fencedlock",
            options={
                "verbose_name": "lease",
                "verbose_name_plural": "leases",
                "permissions": (("release_fencedlock", "Can release a lease by force"),),
            },
        ),
        migrations.AlterField(
            model_name="fencedlock",
            name="owner",
            field=models.CharField(
                help_text="the holder as host:pid:thread, for display only", max_length=255
            ),
        ),
        migrations.AlterField(
            model_name="fencedlock",
            name="awaited_until",
            field=models.DateTimeField(
                editable=False,
                help_text="until this time, a release notifies the first waiter",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="fencedticket",
            name="owner",
            field=models.CharField(
                help_text="the waiter as host:pid:thread, for display only", max_length=255
            ),
        ),
        migrations.AlterField(
            model_name="fencedticket",
            name="expires_at",
            field=models.DateTimeField(help_text="after this time, a waiter that died is skipped"),
        ),
        migrations.AlterField(
            model_name="idempotencykey",
            name="namespace",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="DBLOCK_NAMESPACE at the time of the request, for example the tenant",
                max_length=255,
            ),
        ),
        migrations.AlterField(
            model_name="idempotencykey",
            name="fingerprint",
            field=models.BinaryField(
                help_text="SHA-256 of the request that the key belongs to", max_length=32
            ),
        ),
        migrations.AlterField(
            model_name="idempotencykey",
            name="owner",
            field=models.CharField(
                blank=True,
                help_text="the worker of the latest claim as host:pid:thread, for display only",
                max_length=255,
            ),
        ),
        migrations.AlterField(
            model_name="idempotencykey",
            name="expires_at",
            field=models.DateTimeField(
                help_text="empty: kept until the request is completed, or resolved manually",
                null=True,
            ),
        ),
    ]
