"""The lock monitor in the admin, with its permissions and without a table."""

from typing import Any, ClassVar

from django.db import migrations


class Migration(migrations.Migration):
    """A proxy and two permissions; nothing is sent but their names."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("django_dblock", "0002_idempotencykey")]
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="LockMonitor",
            fields=[],
            options={
                "verbose_name": "lock monitor",
                "verbose_name_plural": "lock monitor",
                "permissions": (
                    ("terminate_backend", "Can end a connection that holds or awaits a lock"),
                ),
                "proxy": True,
                "default_permissions": ("view",),
                "indexes": [],
                "constraints": [],
            },
            bases=("django_dblock.fencedlock",),
        ),
        migrations.AlterModelOptions(
            name="fencedlock",
            options={"permissions": (("release_fencedlock", "Can end a fenced lock by force"),)},
        ),
    ]
