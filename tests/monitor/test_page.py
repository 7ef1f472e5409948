"""The page on real locks."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

from django_dblock import advisory_lock, fenced_lock
from tests.monitor.conftest import PAGE

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def root(db):
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def test_it_renders(root):
    with fenced_lock("nightly", ttl=30), advisory_lock("inventory", "sku-1"):
        answer = root.get(PAGE)
    assert answer.status_code == 200
    print(answer.content.decode())
