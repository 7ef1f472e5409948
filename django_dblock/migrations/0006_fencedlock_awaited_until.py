"""The mark of a lease that somebody waits for, and permissions' names."""

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
        migrations.AlterModelOptions(
            name="fencedlock",
            options={
                "verbose_name": "lease",
                "verbose_name_plural": "leases",
                "permissions": (("release_fencedlock", "Can end a lease by force"),),
            },
        ),
        migrations.AlterModelOptions(
            name="lockmonitor",
            options={
                "default_permissions": ("view",),
                "permissions": (
                    ("terminate_backend", "Can end a connection that holds or awaits a lock"),
                    (
                        "view_other_namespaces",
                        "Can see and end locks of other namespaces and programs",
                    ),
                ),
                "verbose_name": "lock monitor",
                "verbose_name_plural": "lock monitor",
            },
        ),
    ]
