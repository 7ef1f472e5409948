"""Permissions over HTTP: every role, every act on locks, leases and requests, every method."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.middleware import csrf
from django.test import Client

from django_dblock import FencedLock, IdempotencyKey
from tests.helpers import observe
from tests.idempotency.rows import abandoned
from tests.monitor import scene
from tests.monitor.conftest import PAGE
from tests.monitor.conftest import stage as stage  # noqa: PLC0414 - a fixture
from tests.security.planted import CANARY

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss]

LEASES = "/admin/django_dblock/fencedlock/"
REQUESTS = "/admin/django_dblock/idempotencykey/"

LOOK = ("view_lockmonitor", "view_fencedlock", "view_idempotencykey")
STAFF: dict[str, Any] = {"is_staff": True}
ALL = (*LOOK, "release_fencedlock", "terminate_backend")
CHANGE = tuple(
    f"{do}_{model}"
    for do in ("add", "change", "delete")
    for model in ("fencedlock", "idempotencykey")
)
ROLES: dict[str, tuple[dict[str, Any] | None, tuple[str, ...], set[str]]] = {
    "a stranger": (None, (), set()),
    "a customer": ({}, (), set()),
    "a customer with all permissions": ({}, ALL, set()),
    "a superuser who has left": ({**STAFF, "is_superuser": True, "is_active": False}, (), set()),
    "staff": (STAFF, (), set()),
    "staff who may change all models": (STAFF, CHANGE, {"read"}),
    "who may look": (STAFF, LOOK, {"read", "look"}),
    "who may release": (
        STAFF, (*LOOK, "release_fencedlock"), {"read", "look", "choose", "release"}
    ),
    "who may terminate": (STAFF, (*LOOK, "terminate_backend"), {"read", "look", "terminate"}),
    "who may do both, and not look": (STAFF, ALL[3:], set()),
    "a superuser": (
        {**STAFF, "is_superuser": True}, (), {"read", "look", "choose", "release", "terminate"}
    ),
}  # fmt: skip
"""Their accounts and permissions, and what they may do. Nobody resolves a request by HTTP."""

TOKEN = csrf._get_new_csrf_string()
WAYS: dict[str, dict[str, str]] = {
    "without a token": {},
    "with an empty one": {"csrfmiddlewaretoken": ""},
    "with another": {"csrfmiddlewaretoken": csrf._get_new_csrf_string()},
}
"""POSTs of another site, with the cookies of this one."""


@pytest.fixture(params=ROLES)
def role(request):
    """A browser of each role, with CSRF checked; and what it may do."""
    account, permissions, acts = ROLES[request.param]
    client = Client(enforce_csrf_checks=True)
    client.cookies["csrftoken"] = TOKEN
    if account is not None:
        user = User.objects.create(username="ann", **account)
        found = Permission.objects.filter(codename__in=permissions)
        assert found.count() == len(permissions)
        user.user_permissions.set(found)
        client.force_login(user)
    return client, acts, bool(account and account.get("is_staff") and user.is_active)


@dataclass
class Scene:
    """A lease, a backend that holds a lock, and a request to resolve; what became of them."""

    stage: Any
    caplog: Any

    def __post_init__(self) -> None:
        facts = {"metadata": f'{{"card": "{CANARY}"}}', "left": 3600}
        scene.lease(self.stage.observer, "nightly", **facts)
        self.lease = FencedLock.objects.get()
        self.holder = self.stage.session("shop")
        self.stage.hold(self.holder, ("inventory", "sku-1"))
        self.pid = self.holder.info.backend_pid
        [(self.start,)] = self.stage.observer.execute(
            "SELECT backend_start FROM pg_stat_activity WHERE pid = %s", [self.pid]
        )
        self.request = abandoned(f"left-{CANARY}", steps={"charge": {"result": CANARY}})
        self.rows = list(IdempotencyKey.objects.values())

    def released(self) -> bool:
        return FencedLock.objects.get().token > self.lease.token

    def terminated(self) -> bool:
        found = self.stage.observer.execute(
            "SELECT FROM pg_stat_activity WHERE pid = %s", [self.pid]
        )
        return found.fetchone() is None

    def done(self) -> set[str]:
        """What was done, by the state of things."""
        found = {
            "release": self.released(),
            "terminate": self.terminated(),
            "resolve": list(IdempotencyKey.objects.values()) != self.rows,
        }
        return {act for act, was in found.items() if was}

    def audit(self) -> list[logging.LogRecord]:
        return [each for each in self.caplog.records if each.name == "django_dblock.audit"]

    def nothing(self) -> bool:
        """Nothing was done, and nothing was written down."""
        return not (self.done() or self.audit() or LogEntry.objects.exists())

    def acts(self) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
        """Where each act is asked for, with what, and with what it is done."""
        backend = {"pid": self.pid, "start": self.start.isoformat()}
        lease = {"lease": "0:nightly"}
        return {
            "look": (PAGE, {}, {}),
            "choose": (
                LEASES, {}, {"action": "release_leases", "_selected_action": self.lease.pk}
            ),
            "release": (f"{PAGE}release/", lease, {"grant": f"0:{self.lease.token}:nightly"}),
            "terminate": (f"{PAGE}terminate/", backend, backend),
            "resolve": (
                f"{REQUESTS}{self.request.pk}/change/",
                {},
                {"outcome": "done", "status_code": 200, "completed_at_0": "2026-01-01"},
            ),
        }  # fmt: skip


ACTS = ("look", "choose", "release", "terminate", "resolve")


@pytest.fixture
def there(db, stage, caplog):
    with caplog.at_level(logging.INFO, logger="django_dblock.audit"):
        yield Scene(stage, caplog)


def refused(answer, *, staff):
    """By the admin: staff by 403, others by the way to the login."""
    if staff:
        return answer.status_code == 403
    return answer.status_code == 302 and answer["Location"].startswith("/admin/login/")


def test_get_asks_permitted_roles_and_does_nothing(role, there):
    client, may, staff = role
    for act, (address, asked, data) in there.acts().items():
        answer = client.get(address, asked)
        needed = "read" if act in ("choose", "resolve") else act
        assert refused(answer, staff=staff) == (needed not in may), act
        assert refused(answer, staff=staff) or answer.status_code == 200, act
        client.get(address, {**asked, **data, "post": "yes", "csrfmiddlewaretoken": TOKEN})
        client.head(address, data)
        client.options(address)
        assert there.nothing(), act


def test_cross_site_post_does_nothing(role, there):
    client, _, _ = role
    for act, (address, _, data) in there.acts().items():
        for way, token in WAYS.items():
            assert client.post(address, {**data, **token}).status_code == 403, (act, way)
        for send in (client.put, client.patch, client.delete):
            assert send(address, data, "application/json").status_code == 403, act
        assert there.nothing(), act


@pytest.mark.parametrize("act", ACTS)
def test_post_with_the_token_does_what_the_role_may(act, role, there):
    client, may, staff = role
    address, _, data = there.acts()[act]
    answer = client.post(address, {**data, "csrfmiddlewaretoken": TOKEN})
    if act in may and act in ("release", "terminate"):
        assert (answer.status_code, answer["Location"]) == (302, PAGE)
        observe.until(lambda: there.done() == {act}, "it ends")
        [record] = there.audit()
        [entry] = LogEntry.objects.all()
        assert (record.by, record.levelname) == ("ann", "WARNING")
        assert entry.user.get_username() == "ann"
        assert CANARY not in repr(vars(record)) + repr(vars(entry))
        return
    if act == "choose" and "read" in may:
        assert answer.get("Location", "").startswith(f"{PAGE}release/") == (act in may)
    elif act in may:
        assert answer.status_code == 200
    else:
        assert refused(answer, staff=staff)
    assert there.nothing()


def test_matrix_has_a_role_for_each_act():
    """The matrix is not empty, and its columns are not the same."""
    for act in ("look", "release", "terminate"):
        who = {name for name, (_, _, may) in ROLES.items() if act in may}
        assert "a superuser" in who
        assert who != set(ROLES)
    assert [name for name, (*_, may) in ROLES.items() if may >= {"release", "terminate"}] == [
        "a superuser"
    ]


def test_no_page_resolves_requests(there):
    """A person does it by the command, or by Python; there is no URL that has that in its name."""
    from django.contrib import admin

    names = {str(pattern.name) for model in admin.site._registry.values() for pattern in model.urls}
    assert not [name for name in names if "resolve" in name]
