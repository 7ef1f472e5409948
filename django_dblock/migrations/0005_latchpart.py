"""The table of the latches."""

from typing import Any, ClassVar

from django.db import migrations, models

from django_dblock.migrations._operations import PostgreSQLOnly, primary_key
from django_dblock.sql import tables


class Migration(migrations.Migration):
    """One row for each part that is done."""

    dependencies: ClassVar[list[tuple[str, str]]] = [
        ("django_dblock", "0004_idempotencykey_namespace_claim")
    ]
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="LatchPart",
            fields=[
                ("id", primary_key()),
                ("latch", models.CharField(max_length=255)),
                ("part", models.CharField(max_length=255)),
                ("done_at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("latch", "part"), name="django_dblock_latchpart_latch_part"
                    )
                ],
            },
        ),
        PostgreSQLOnly(
            tables.LATCHPART, tables.LATCHPART_REVERSE, hints={"model_name": "latchpart"}
        ),
    ]
