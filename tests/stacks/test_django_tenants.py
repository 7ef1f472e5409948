"""django-tenants: a schema per tenant, set in ``_cursor()`` of its database backend."""

import pytest


@pytest.fixture(scope="module")
def found(run_program):
    return run_program("tenants", needs=("django_tenants",))


@pytest.mark.parametrize("mode", ["atomic", "lease"])
def test_each_tenant_runs_its_own_work_once(found, mode):
    assert found["results"][mode] == [["acme", 1], ["globex", 1], ["acme", 0], ["globex", 0]]


def test_leases_of_two_tenants_outlive_their_ttl_side_by_side(found):
    first, second = found["tokens"]
    assert found["leases"] == {"acme": [first], "globex": [second]}


def test_lease_is_exclusive_within_its_tenant(found):
    assert found["busy"]


def test_namespace_separates_advisory_locks_of_tenants(found):
    """Advisory locks belong to the database; only their keys tell the tenants apart."""
    assert found["same_tenant_waits"]
    assert found["other_tenant_enters"]
