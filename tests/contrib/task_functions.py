"""Functions of a module's top level, which is what django.tasks takes."""

from django_dblock.contrib.tasks import locked_task, once_task
from tests.app.models import Counter


@locked_task("settle", lambda order: order, ttl=30)
@once_task(key=lambda order: order)
def settle(order):
    return Counter.objects.create(name=f"settled {order}").pk


@once_task(key=lambda context: context.task_result.id)
def of_this_message(context):
    return Counter.objects.create(name=f"message {Counter.objects.count()}").pk
