"""Two tenants of django-tenants: each has its own rows, leases and results, on both paths."""

from tests.stacks import program

program.setup(
    "django_tenants",
    "tests.stacks.tenants",
    engine="django_tenants.postgresql_backend",
    migrate=False,
    DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
    SHARED_APPS=[
        "django_tenants",
        "tests.stacks.tenants",
        "django.contrib.contenttypes",
        "django.contrib.auth",
    ],
    TENANT_APPS=["django_dblock", "django.contrib.contenttypes", "django.contrib.auth"],
    TENANT_MODEL="tenants.Client",
    TENANT_DOMAIN_MODEL="tenants.Domain",
    DBLOCK_NAMESPACE="tests.stacks.tenants.current_schema",
)

from django.core.management import call_command  # noqa: E402
from django_tenants.utils import tenant_context  # noqa: E402

from django_dblock import FencedLock, LockTimeout, advisory_lock, fenced_lock, run_once  # noqa: E402
from django_dblock.testing import hold_lock  # noqa: E402
from tests.stacks.tenants.models import Client  # noqa: E402

TTL = 2.0

call_command("migrate_schemas", verbosity=0)
acme, globex = (Client.objects.create(schema_name=name, name=name) for name in ("acme", "globex"))

results = {}
for mode in ("atomic", "lease"):
    for tenant in (acme, globex, acme, globex):
        with tenant_context(tenant):
            ran = []

            def work(*_):
                ran.append(1)  # noqa: B023 - called before the next turn
                return tenant.schema_name  # noqa: B023

            results.setdefault(mode, []).append(
                [run_once("pay", mode, work=work, mode=mode), len(ran)]
            )

leases = {}
with tenant_context(acme), fenced_lock("sync", ttl=TTL) as first:
    with tenant_context(globex), fenced_lock("sync", ttl=TTL) as second:
        program.outlive(second, TTL)
        with second.guard():
            leases["globex"] = list(FencedLock.objects.values_list("token", flat=True))
    program.outlive(first, TTL)
    with first.guard():
        leases["acme"] = list(FencedLock.objects.values_list("token", flat=True))
    try:
        with fenced_lock("sync", ttl=TTL):
            busy = False
    except LockTimeout:
        busy = True

with tenant_context(acme), hold_lock("stock", "sku-1"):
    try:
        with advisory_lock("stock", "sku-1", timeout=0):
            same_tenant_waits = False
    except LockTimeout:
        same_tenant_waits = True
    with tenant_context(globex), advisory_lock("stock", "sku-1", timeout=0):
        other_tenant_enters = True

program.report(
    results=results, leases=leases, tokens=[first.token, second.token], busy=busy,
    same_tenant_waits=same_tenant_waits, other_tenant_enters=other_tenant_enters,
)  # fmt: skip
