"""One product in every form: without a version, with ours, with a peer's."""

import importlib.util

from django.db import models

from django_dblock import VersionedModel


class Fields(models.Model):
    """What all of them have."""

    name = models.CharField(max_length=80)
    price = models.DecimalField(max_digits=10, decimal_places=2, default=1)
    stock = models.IntegerField(default=0)

    class Meta:
        abstract = True
        app_label = "benchmarks"  # the benchmark of waiting has other settings


class Plain(Fields):
    pass


class Same(Fields):
    """The columns of ``Versioned``, and nothing done with the version."""

    version = models.BigIntegerField(default=1)


class Versioned(Fields, VersionedModel):
    pass


MODELS: list[type[Fields]] = [Plain, Same, Versioned]

if importlib.util.find_spec("concurrency"):
    from concurrency.fields import IntegerVersionField

    class Concurrent(Fields):
        version = IntegerVersionField()

    MODELS.append(Concurrent)
