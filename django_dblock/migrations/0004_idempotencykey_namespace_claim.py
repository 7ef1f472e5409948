"""The namespace as a part of the key, and the random identity of a claim."""

from typing import Any, ClassVar

from django.db import migrations, models

from django_dblock.conf import conf
from django_dblock.migrations._operations import PostgreSQLOnly
from django_dblock.sql import tables


def keep_namespace(apps: Any, editor: Any) -> None:
    """Give the rows that are there the namespace that their advisory locks had.

    A callable separates what one text did not, so it says nothing about these rows.
    """
    namespace = conf.namespace_source
    if isinstance(namespace, str) and namespace:
        rows = apps.get_model("django_dblock", "IdempotencyKey").objects
        rows.using(editor.connection.alias).filter(namespace="").update(namespace=namespace)


class Migration(migrations.Migration):
    """Two columns, another unique constraint, and an index for the number of live keys.

    Stop workers of the release before first: they name the constraint that this migration replaces.
    """

    dependencies: ClassVar[list[tuple[str, str]]] = [("django_dblock", "0003_lockmonitor")]
    operations: ClassVar[list[Any]] = [
        migrations.AddField(
            model_name="idempotencykey",
            name="namespace",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="DBLOCK_NAMESPACE when the request came, for example the tenant",
                max_length=255,
            ),
        ),
        migrations.AddField(
            model_name="idempotencykey",
            name="claim",
            field=models.UUIDField(help_text="the random identity of the latest claim", null=True),
        ),
        migrations.AlterField(
            model_name="idempotencykey",
            name="scope",
            field=models.CharField(
                help_text="the client that owns the key; other clients never see this row",
                max_length=255,
            ),
        ),
        PostgreSQLOnly(
            tables.IDEMPOTENCYKEY_NAMESPACE,
            tables.IDEMPOTENCYKEY_NAMESPACE_REVERSE,
            hints={"model_name": "idempotencykey"},
        ),
        migrations.RunPython(
            keep_namespace, migrations.RunPython.noop, hints={"model_name": "idempotencykey"}
        ),
        migrations.RemoveConstraint(
            model_name="idempotencykey", name="django_dblock_idempotencykey_scope_key"
        ),
        migrations.AddConstraint(
            model_name="idempotencykey",
            constraint=models.UniqueConstraint(
                fields=("namespace", "scope", "key"), name="django_dblock_idempotencykey_key"
            ),
        ),
        PostgreSQLOnly(
            tables.IDEMPOTENCYKEY_LIVE,
            tables.IDEMPOTENCYKEY_LIVE_REVERSE,
            hints={"model_name": "idempotencykey"},
        ),
    ]
