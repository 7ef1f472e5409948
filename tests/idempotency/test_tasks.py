"""The purge as a task of django.tasks, of Celery, or of any other scheduler."""

import importlib
import sys
import types

import django
import pytest
from celery import Celery

from django_dblock import IdempotencyKey, fenced_lock, purge_idempotency_keys
from tests.idempotency.rows import make, over

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

NAME = "django_dblock.contrib.tasks"


@pytest.fixture
def fresh(monkeypatch):
    """The module, imported anew; gone after the test."""
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield lambda: importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


@pytest.fixture
def expired(observer):
    make("over-key", expires_at=over())
    make("kept-key")
    with fenced_lock("old", ttl=60):
        pass
    observer.execute(
        "UPDATE django_dblock_fencedlock SET expires_at = expires_at - interval '31 days',"
        " token = token - 31 * 86400000::bigint"
    )


@pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks came with Django 6.0")
class TestDjangosOwn:
    @pytest.fixture(autouse=True)
    def _immediate(self, settings):
        settings.TASKS = {
            "default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}
        }

    def test_task_purges_every_kind(self, expired, fresh):
        result = fresh().purge.enqueue()
        assert result.status == "SUCCESSFUL"
        assert result.return_value == {"idempotency": 1, "fenced": 1, "latches": 0}
        assert IdempotencyKey.objects.get().key == "kept-key"

    def test_task_purges_another_alias(self, expired, fresh):
        result = fresh().purge.enqueue(using="other")
        assert result.return_value == {"idempotency": 0, "fenced": 0, "latches": 0}

    def test_function_can_be_a_task_itself(self, expired):
        from django.tasks import task

        assert task(purge_idempotency_keys).enqueue(batch=1).return_value == 1


def test_import_before_django_6_names_an_alternative(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "django.tasks", None)
    with pytest.raises(ImportError, match=r"came with Django 6\.0\. Before that, call purge_"):
        fresh()


def test_purge_is_a_plain_task_function(expired, fresh, monkeypatch):
    """With a stand-in for the framework, which the oldest Django does not have."""
    module = types.ModuleType("django.tasks")
    module.task = lambda function: function
    monkeypatch.setitem(sys.modules, "django.tasks", module)
    assert fresh().purge() == {"idempotency": 1, "fenced": 1, "latches": 0}


def test_purge_runs_as_a_celery_task(expired):
    """The plain function, as a task that a beat calls; the real Celery, eagerly."""
    app = Celery("shop", set_as_current=False)
    app.conf.task_always_eager = True
    purge = app.task(purge_idempotency_keys)
    assert purge.name == "django_dblock.idempotency.operations.purge_idempotency_keys"
    assert purge.delay().get() == 1
    assert purge.apply_async(kwargs={"batch": 10, "using": "other"}).get() == 0
