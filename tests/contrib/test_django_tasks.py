"""@locked_task and @once_task for django.tasks, as its immediate backend runs them."""

import importlib
import sys
import types

import django
import pytest

from django_dblock import IdempotencyInProgress, LockTimeout, fenced_lock, run_once
from tests.app.models import Counter

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("within_a_period")]


@pytest.fixture
def tasks(monkeypatch):
    """The module; before Django 6.0 with a stand-in for ``@task``."""
    name = "django_dblock.contrib.tasks"
    if django.VERSION < (6, 0):
        module = types.ModuleType("django.tasks")
        module.task = lambda function: function
        monkeypatch.setitem(sys.modules, "django.tasks", module)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def sync(tenant, lease):
    with lease.guard():
        Counter.objects.create(name=f"{lease.name} {tenant}")
    return lease.name


def pay(order):
    return Counter.objects.create(name=f"paid {Counter.objects.count()}").pk


def charge(order, run):
    with run.step("charge") as step:
        step.result = f"charged {order}"
    return step.result


class TestLocked:
    def test_task_holds_the_lease_while_it_runs(self, tasks):
        locked = tasks.locked_task("sync", lambda tenant: tenant, ttl=30, pass_lease=True)(sync)
        assert locked("acme") == "sync:acme"
        with fenced_lock("sync", "acme", ttl=30), pytest.raises(LockTimeout):
            locked("acme")

    def test_busy_skip_ends_with_none(self, tasks):
        locked = tasks.locked_task("sync", ttl=30, busy="skip")(lambda: "ran")
        assert locked() == "ran"
        with fenced_lock("sync", ttl=30):
            assert locked() is None

    def test_wrong_arguments_are_refused_at_decoration(self, tasks):
        with pytest.raises(ValueError, match="busy"):
            tasks.locked_task("a", ttl=30, busy="retry")
        with pytest.raises(ValueError, match="ttl"):
            tasks.locked_task("a", ttl=0)
        enqueued = types.SimpleNamespace(enqueue=None)
        with pytest.raises(TypeError, match="below @task"):
            tasks.locked_task("a", ttl=30)(enqueued)


class TestOnce:
    def test_repeated_task_has_one_effect(self, tasks):
        once = tasks.once_task(key=lambda order: ("order", order))(pay)
        assert once("o-1") == once("o-1")
        assert once("o-2") != once("o-1")
        assert Counter.objects.count() == 2

    def test_lease_mode_passes_the_handle(self, tasks):
        once = tasks.once_task(key=lambda order: order, mode="lease")(charge)
        assert once("o-1") == once("o-1") == "charged o-1"

    def test_repeat_during_the_run_fails(self, tasks):
        once = tasks.once_task(key=lambda order: order, mode="lease")(charge)

        def work(handle):
            with pytest.raises(IdempotencyInProgress):
                once("o-1")
            return "done"

        name = f"{__name__}.charge"
        assert run_once("django.tasks", name, "o-1", work=work, mode="lease") == "done"


@pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks came with Django 6.0")
def test_decorators_work_below_the_task_decorator(tasks):
    from django.tasks import TaskResultStatus, task

    from tests.contrib import task_functions

    result = task(task_functions.settle).enqueue("o-1")
    assert result.status == TaskResultStatus.SUCCESSFUL
    again = task(task_functions.settle).enqueue("o-1")
    assert again.return_value == result.return_value
    with fenced_lock("settle", "o-1", ttl=30):
        busy = task(task_functions.settle).enqueue("o-1")
    assert busy.status == TaskResultStatus.FAILED
    assert busy.errors[0].exception_class is LockTimeout
    first = task(takes_context=True)(task_functions.of_this_message).enqueue()
    second = task(takes_context=True)(task_functions.of_this_message).enqueue()
    assert first.return_value != second.return_value
