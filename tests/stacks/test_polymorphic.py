"""django-polymorphic: the child class is found, also through foreign keys, and saves compare."""

import pytest
from django.core.checks import run_checks

pytest.importorskip("polymorphic")

from django_dblock import StaleObject
from tests.stacks.shapes.models import Circle, Drawing, Shape

pytestmark = pytest.mark.django_db(transaction=True)


def test_no_check_complains():
    assert [each for each in run_checks() if each.id.startswith("dblock.E02")] == []


def test_child_class_is_found_everywhere():
    circle = Circle.objects.create(name="a")
    drawing = Drawing.objects.create(shape=circle)
    assert type(Shape.objects.get()) is Circle
    assert type(Drawing.objects.get().shape) is Circle
    assert type(Drawing.objects.select_related(None).get(pk=drawing.pk).shape) is Circle


def test_saves_compare_and_updates_bump():
    Circle.objects.create(name="a")
    shape, stale = Shape.objects.get(), Shape.objects.get()
    shape.radius = 2
    shape.save_cas()
    with pytest.raises(StaleObject):
        stale.save()
    Shape.objects.filter(pk=shape.pk).update(name="b")
    with pytest.raises(StaleObject):
        shape.save_cas()
    assert Circle.objects.values_list("name", "radius", "version").get() == ("b", 2, 3)
    Shape.objects.get().delete_cas()
    assert not Shape.objects.exists()
