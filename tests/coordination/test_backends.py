"""Each primitive behind what other packages put around Django's connection."""

import pytest
from django.db import connection, connections, transaction

from django_dblock import (
    FencedLock,
    LockTimeout,
    SelfDeadlock,
    advisory_semaphore,
    fenced_rwlock,
    fenced_semaphore,
    inspect,
    latch,
    leader,
    leadership,
    once_per,
    partitions,
)
from tests.app.models import Counter
from tests.helpers import backends
from tests.helpers.queueing import notified, until_queued

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
    pytest.mark.usefixtures("within_a_period"),
]

TABLES = ("fencedlock", "fencedticket", "idempotencykey", "latchpart")


@pytest.fixture(params=backends.BACKENDS, autouse=True)
def backend(request, transactional_db):
    with backends.installed(request.param):
        yield request.param


@pytest.fixture
def tenants(observer):
    """Two schemas with tables of their own; returns a function that goes into one of them."""
    for schema in ("acme", "globex"):
        observer.execute(f"CREATE SCHEMA {schema}")
        for table in TABLES:
            name = f"django_dblock_{table}"
            observer.execute(f"CREATE TABLE {schema}.{name} (LIKE public.{name} INCLUDING ALL)")

    def enter(schema):
        backends.Tenants.schema = schema
        with connection.cursor() as cursor:  # on other backends, as a middleware does
            cursor.execute(f'SET search_path = "{schema}", public')

    yield enter
    enter("public")
    observer.execute("DROP SCHEMA acme, globex CASCADE")


def permit(using=None):
    with fenced_semaphore("a", permits=2, ttl=30, units=2, using=using) as held:
        with pytest.raises(LockTimeout), fenced_semaphore("a", permits=2, ttl=30, using=using):
            pass
        held.renew()
        with held.guard():
            pass


def read_and_write(using=None):
    lock = fenced_rwlock("a", using=using)
    with lock.read(ttl=30) as reading, reading.guard():
        pass
    with lock.write(ttl=30) as writing:
        writing.renew()
        with writing.downgrade() as reading, reading.guard():
            pass


def lead(using=None):
    for term in leadership("a", ttl=30, using=using):
        term.renew()
        with term.guard():
            assert leader("a", using=using).token == term.token
        break
    assert leader("a", using=using) is None


def split(using=None):
    with partitions("a", count=3, ttl=30, using=using) as mine:
        for part in mine:
            with part, part.guard():
                pass
        mine.balance()
        assert len(mine) == 3


def settle(using=None):
    job = once_per("day", key="a", using=using)(lambda period: "settled")
    assert [job.run().state, job.run().state] == ["ran", "done"]


def count_down(using=None):
    done = latch("a", parties=2, using=using)
    assert not done.done
    for part in (1, 2):
        with transaction.atomic(using=using):
            done.count_down(part)
    done.wait(timeout=0)


def advise(using=None):
    with advisory_semaphore("a", permits=1, using=using):
        Counter.objects.using(using or "default").create(name="in the block")


ALL = [permit, read_and_write, lead, split, settle, count_down, advise]


@pytest.mark.parametrize("use", ALL)
def test_primitive_works_and_leaves_no_lease(use):
    use()
    assert inspect.fenced_leases() == []


@pytest.mark.parametrize("use", ALL)
def test_primitive_on_another_alias_leaves_the_default_alone(use):
    use("other")
    assert not FencedLock.objects.exists()
    assert connections["default"].in_atomic_block is False


@pytest.mark.parametrize("use", [permit, read_and_write, lead, split, settle, count_down])
def test_primitive_in_a_tenants_schema_writes_there_only(use, tenants, observer):
    """Rows go to the tenant's tables, and what one tenant has done is not done for another."""
    for schema in ("acme", "globex"):
        tenants(schema)
        use()
    rows = [
        observer.execute(f"SELECT count(*) FROM public.django_dblock_{table}").fetchone()[0]
        for table in TABLES
    ]
    assert rows == [0, 0, 0, 0]


def test_read_write_lock_of_another_tenant_is_another_lock(tenants):
    """Without a namespace only the schema tells which of two locks of one name a lease is of."""
    catalogue = fenced_rwlock("catalogue")
    tenants("acme")
    with catalogue.write(ttl=30):
        tenants("globex")
        with catalogue.read(ttl=30):
            tenants("acme")
            for block in (catalogue.read, catalogue.write):
                with pytest.raises(SelfDeadlock, match="held for writing"):
                    block(ttl=30).__enter__()
            tenants("globex")
            with catalogue.read(ttl=30):
                pass
            with pytest.raises(SelfDeadlock, match="upgraded"):
                catalogue.write(ttl=30).__enter__()
        with catalogue.write(ttl=30) as writing, writing.downgrade():
            tenants("public")
            with catalogue.write(ttl=30):
                pass


def test_last_part_wakes_its_tenants_waiter_at_commit(tenants, rival):
    """The search path is another tenant's when the part's transaction commits."""
    tenants("acme")
    waiter = latch("a", parties=1)._attempt(60)
    topic = until_queued(waiter)
    rival.execute("LISTEN django_dblock")
    with transaction.atomic():
        latch("a", parties=1).count_down("the part")
        tenants("globex")
        assert not latch("a", parties=1).done
    assert notified(rival) == [topic]
    tenants("acme")
    assert waiter.once() is not None
    waiter.close()


def test_last_part_on_another_alias_wakes_its_waiter(connect):
    """The part commits on its own alias, whatever is open on the default alias."""
    waiter = latch("a", parties=1, using="other")._attempt(60)
    topic = until_queued(waiter)
    other_rival = connect("other")
    other_rival.execute("LISTEN django_dblock")
    with transaction.atomic():
        with transaction.atomic(using="other"):
            latch("a", parties=1, using="other").count_down("the part")
            assert notified(other_rival) == []
        assert notified(other_rival) == [topic]
    assert waiter.once() is not None
    waiter.close()
