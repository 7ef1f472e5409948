"""Who looks at the monitor, and what there is to see."""

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from tests.conftest import conninfo
from tests.monitor import scene

MAY = {
    "view": "view_lockmonitor",
    "release": "release_fencedlock",
    "terminate": "terminate_backend",
    "others": "view_other_namespaces",
}


@pytest.fixture
def root(db):
    """Somebody who may do everything."""
    return signed_in(User.objects.create_superuser("root"))


@pytest.fixture
def person(db):
    """Make one of the staff, with some permissions: ``person("ann", "view", "release")``."""

    def make(name, *may):
        user = User.objects.create_user(name, is_staff=True)
        for each in may:
            user.user_permissions.add(Permission.objects.get(codename=MAY.get(each, each)))
        return signed_in(user)

    return make


def signed_in(user):
    client = Client(enforce_csrf_checks=False)
    client.force_login(user)
    return client


@pytest.fixture
def stage(db):
    """Sessions that hold locks and wait for them."""
    with scene.stage(conninfo()) as found:
        yield found


PAGE = "/admin/django_dblock/lockmonitor/"
