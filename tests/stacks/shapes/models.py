"""Models of django-polymorphic with a version."""

from typing import ClassVar

from django.db import models
from polymorphic.managers import PolymorphicManager
from polymorphic.models import PolymorphicModel
from polymorphic.query import PolymorphicQuerySet

from django_dblock import VersionedModel, VersionedQuerySet


class ShapeQuerySet(VersionedQuerySet, PolymorphicQuerySet):
    """Both: bumps the version, and finds the child classes."""


class Shape(VersionedModel, PolymorphicModel):
    """The base."""

    name = models.CharField(max_length=40)
    objects: ClassVar = PolymorphicManager.from_queryset(ShapeQuerySet)()


class Circle(Shape):
    """A child with a table of its own."""

    radius = models.IntegerField(default=1)


class Drawing(models.Model):
    """It finds its shape through a foreign key."""

    shape = models.ForeignKey(Shape, models.CASCADE, related_name="drawings")
