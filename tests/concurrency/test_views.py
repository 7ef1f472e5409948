"""Views in several processes, with ATOMIC_REQUESTS and without: nothing is lost."""

import pytest
from django.test import Client

from tests.app.models import Counter
from tests.helpers.processes import race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.processes,
    pytest.mark.loss,
    pytest.mark.server,
]


def visit(_number, path, rounds):
    client = Client()
    for _ in range(rounds):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("atomic_requests", [True, False])
@pytest.mark.parametrize("path", ["/hit/", "/decorated/hits/", "/class/hits/"])
def test_views_lose_no_update(path, atomic_requests):
    Counter.objects.create(name="hits")
    race(4, visit, path, 25, options={"ATOMIC_REQUESTS": atomic_requests})
    assert Counter.objects.get().value == 100
