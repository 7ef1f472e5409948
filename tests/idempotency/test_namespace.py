"""The namespace is a part of a key: equal keys of two tenants are independent."""

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpResponse

from django_dblock import IdempotencyKey, idempotent, purge_idempotency_keys, run_once
from django_dblock.exceptions import TooManyIdempotencyKeys
from tests.app.idempotent_views import add_one, client
from tests.idempotency.calling import ask, effects, problem

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]

MODES = pytest.mark.parametrize("mode", ["atomic", "lease"])


@MODES
def test_equal_user_ids_of_two_tenants_are_independent(mode, settings):
    """Both send the same key, and both have the same primary key."""

    @idempotent(scope=client, mode=mode)
    def pay(request, how):
        return HttpResponse(f"payment {add_one()} of {settings.DBLOCK_NAMESPACE}")

    for number, tenant in enumerate(["acme", "globex"], 1):
        settings.DBLOCK_NAMESPACE = tenant
        for _ in range(2):
            assert ask(pay).content == f"payment {number} of {tenant}".encode()
    assert effects() == 2
    assert set(IdempotencyKey.objects.values_list("namespace", "scope", "key")) == {
        ("acme", "scope:client", "k"),
        ("globex", "scope:client", "k"),
    }


@MODES
def test_work_is_run_once_in_each_namespace(mode, settings):
    runs = []

    def work(*_):
        runs.append(settings.DBLOCK_NAMESPACE)
        return settings.DBLOCK_NAMESPACE

    for tenant in ["acme", "globex", "acme", "globex"]:
        settings.DBLOCK_NAMESPACE = tenant
        assert run_once("report", work=work, mode=mode) == tenant
    assert runs == ["acme", "globex"]


def test_expired_key_of_one_tenant_spares_another(settings):
    for tenant in ["acme", "globex"]:
        settings.DBLOCK_NAMESPACE = tenant
        run_once("report", work=lambda: "first")
    IdempotencyKey.objects.filter(namespace="acme").update(expires_at="2020-01-01T00:00Z")
    settings.DBLOCK_NAMESPACE = "acme"
    assert run_once("report", work=lambda: "second") == "second"
    settings.DBLOCK_NAMESPACE = "globex"
    assert run_once("report", work=lambda: "second") == "first"


def test_derived_key_differs_between_namespaces(settings):
    keys = set()
    for tenant in ["acme", "globex"]:
        settings.DBLOCK_NAMESPACE = tenant
        run_once("pay", mode="lease", work=lambda handle: keys.add(handle.derived_key("charge")))
    assert len(keys) == 2


def test_namespace_is_read_once_for_a_run(settings):
    """A view that changes it can't complete the request of another tenant."""
    settings.DBLOCK_NAMESPACE = "acme"
    keys = []

    def work(handle):
        keys.append(handle.derived_key("charge"))
        settings.DBLOCK_NAMESPACE = "globex"
        keys.append(handle.derived_key("charge"))
        handle.run_step("charge", lambda: 1)
        return "done"

    assert run_once("pay", mode="lease", work=work) == "done"
    row = IdempotencyKey.objects.get()
    assert (row.namespace, row.completed_at is not None) == ("acme", True)
    assert keys[0] == keys[1]


def test_each_namespace_has_its_own_number_of_live_keys(settings):
    settings.DBLOCK_IDEMPOTENCY_MAX_KEYS = 1
    for tenant in ["acme", "globex"]:
        settings.DBLOCK_NAMESPACE = tenant
        run_once("a", work=lambda: 1)
        with pytest.raises(TooManyIdempotencyKeys):
            run_once("b", work=lambda: 1)


def test_purge_covers_all_namespaces(settings):
    for tenant in ["acme", "globex"]:
        settings.DBLOCK_NAMESPACE = tenant
        run_once("a", work=lambda: 1)
    IdempotencyKey.objects.update(expires_at="2020-01-01T00:00Z")
    assert purge_idempotency_keys() == 2


BEFORE = [("django_dblock", "0003_lockmonitor")]
AFTER = [("django_dblock", "0004_idempotencykey_namespace_claim")]


def migrate(targets):
    executor = MigrationExecutor(connection)
    executor.migrate(targets)


@pytest.fixture
def latest():
    """Whatever a test leaves behind, the next one finds the newest tables."""
    yield
    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes("django_dblock"))


@pytest.mark.parametrize("namespace", ["", "shop"])
@pytest.mark.usefixtures("latest")
def test_migration_keeps_stored_responses(settings, namespace):
    """Else each retry of the day before would be run again."""
    settings.DBLOCK_NAMESPACE = namespace
    assert run_once("settle", work=lambda: "first") == "first"
    migrate(BEFORE)
    migrate(AFTER)
    assert run_once("settle", work=lambda: "second") == "first"


@pytest.mark.usefixtures("latest")
def test_migration_gives_a_callable_namespace_to_no_old_row(settings):
    settings.DBLOCK_NAMESPACE = ""
    run_once("settle", work=lambda: "first")
    migrate(BEFORE)
    settings.DBLOCK_NAMESPACE = lambda: "acme"
    migrate(AFTER)
    settings.DBLOCK_NAMESPACE = ""
    assert IdempotencyKey.objects.get().namespace == ""


def test_reused_key_is_new_in_another_namespace(settings):
    """A key that one tenant used for another request is as new for the next tenant."""

    @idempotent(scope=client)
    def pay(request, how):
        return HttpResponse("paid")

    settings.DBLOCK_NAMESPACE = "acme"
    ask(pay)
    assert problem(ask(pay, body=b'{"other": 1}')) == (422, "key_reused")
    settings.DBLOCK_NAMESPACE = "globex"
    assert ask(pay, body=b'{"other": 1}').content == b"paid"
