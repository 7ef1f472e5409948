"""A lease stays with its table and schema; its heartbeat has its own connection."""

import functools
import threading
from contextlib import ExitStack, suppress
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper

from django_dblock import LockLost, LockTimeout, SelfDeadlock, fenced_lock, force_release
from django_dblock.fencing import heartbeat as module
from django_dblock.fencing import store
from django_dblock.fencing.heartbeat import Line
from tests.fencing.helpers import NAME, lost_at_exit
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]

SCHEMA = 'Acme "50 %" %(name)s'
QUOTED = '"Acme ""50 %"" %(name)s"'


@pytest.fixture
def tenant():
    """A schema with lock tables of its own, which the search path leads to."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {QUOTED}".replace("%", "%%"), [])
        for table in ("fencedlock", "fencedticket"):
            cursor.execute(
                f"CREATE TABLE {QUOTED}.django_dblock_{table}"
                f" (LIKE public.django_dblock_{table} INCLUDING ALL)".replace("%", "%%"),
                [],
            )
    yield
    go_to("public")
    with connection.cursor() as cursor:
        cursor.execute(f"DROP SCHEMA {QUOTED} CASCADE".replace("%", "%%"), [])


def go_to(schema):
    with connection.cursor() as cursor:
        cursor.execute(f"SET search_path = {schema}".replace("%", "%%"), [])


def tenants_row(observer):
    return observer.execute(
        f"SELECT token, renewed_at, expires_at > clock_timestamp()"
        f" FROM {QUOTED}.django_dblock_fencedlock".replace("%", "%%"),
        [],
    ).fetchone()


class TestSchema:
    def test_lease_is_renewed_and_released_in_its_schema(self, tenant, observer):
        go_to(QUOTED)
        with fenced_lock(NAME, ttl=3) as lock:
            go_to("public")
            token, renewed_at, _ = tenants_row(observer)
            assert token == lock.token
            observe.until(lambda: tenants_row(observer)[1] > renewed_at, "it is renewed there")
            lock.check()
            lock.renew()
        assert tenants_row(observer) == (token, tenants_row(observer)[1], False)

    def test_two_tenants_hold_the_same_name_at_once(self, tenant, observer):
        with fenced_lock(NAME, ttl=3) as ours:
            go_to(QUOTED)
            with fenced_lock(NAME, ttl=3) as theirs:
                renewed_at = tenants_row(observer)[1]
                observe.until(lambda: tenants_row(observer)[1] > renewed_at, "a beat")
                ours.renew()
                theirs.renew()
                assert len({ours.place.schema, theirs.place.schema}) == 2

    @pytest.mark.parametrize("fair", [False, True])
    def test_holder_of_the_same_token_elsewhere_is_waited_for(self, tenant, observer, fair):
        """Two schemas may grant one token in the same millisecond."""
        with fenced_lock(NAME, ttl=30) as ours:
            observer.execute(
                f"INSERT INTO {QUOTED}.django_dblock_fencedlock (name, slot, token, owner,"
                f" acquired_at, renewed_at, expires_at, lock_delay, grants, metadata)"
                f" SELECT name, slot, token, 'theirs', now(), now(),"
                f" clock_timestamp() + interval '2 s', '0', 1, '{{}}'"
                f" FROM public.django_dblock_fencedlock".replace("%", "%%"),
                [],
            )
            go_to(QUOTED)
            with pytest.raises(LockTimeout) as caught, fenced_lock(NAME, ttl=30, fair=fair):
                pass
            assert "yourself" not in str(caught.value)
            with fenced_lock(NAME, ttl=30, timeout=None, fair=fair) as theirs:
                assert theirs.token > ours.token
            go_to("public")
            with pytest.raises(SelfDeadlock), fenced_lock(NAME, ttl=30, timeout=None, fair=fair):
                pass

    def test_guard_uses_the_leases_schema(self, tenant):
        go_to(QUOTED)
        with lost_at_exit(fenced_lock(NAME, ttl=30)) as lock:
            go_to("public")
            with lock.guard():
                pass
            go_to(QUOTED)
            assert force_release(NAME)
            go_to("public")
            with pytest.raises(LockLost), lock.guard():
                pytest.fail("it is not held")

    def test_statements_name_the_schema(self):
        text = store.in_schema("FROM django_dblock_fencedlock WHERE a = %(a)s", '"50 %\\1"')
        assert text == 'FROM "50 %%\\1".django_dblock_fencedlock WHERE a = %(a)s'
        assert store.in_schema("django_dblock_fencedlock", "") == "django_dblock_fencedlock"
        for table in ("fencedticket", "latchpart"):
            assert store.in_schema(f"django_dblock_{table}", "a") == f"a.django_dblock_{table}"


class Proxy:
    """What APM agents and pools put around the driver's connection."""

    def __init__(self, wrapped):
        object.__setattr__(self, "wrapped", wrapped)

    def __getattr__(self, name):
        return getattr(self.wrapped, name)

    def __setattr__(self, name, value):
        setattr(self.wrapped, name, value)

    def __delattr__(self, name):
        delattr(self.wrapped, name)


class Opaque(Proxy):
    """One that hides what it wraps: its methods are bound to nothing of the driver's."""

    def __getattr__(self, name):
        found = getattr(self.wrapped, name)
        return functools.partial(self._call, found) if callable(found) else found

    @staticmethod
    def _call(found, *args, **more):
        return found(*args, **more)


@pytest.mark.parametrize("proxy", [Proxy, Opaque])
def test_lease_behind_a_driver_proxy_outlives_its_ttl(proxy, monkeypatch, observer):
    connect = DatabaseWrapper.get_new_connection
    monkeypatch.setattr(
        DatabaseWrapper, "get_new_connection", lambda self, given: proxy(connect(self, given))
    )
    connection.close()
    with fenced_lock(NAME, ttl=2) as lock:
        later = lock.expires_at + timedelta(seconds=2)
        observe.until(lambda: lock.expires_at > later or lock.lost, "it outlives its ttl")
        lock.check()
    connection.close()


def test_heartbeat_connection_is_not_from_the_projects_pool(monkeypatch):
    """A pool of the application's may have nothing left to give."""

    class Pooled(DatabaseWrapper):
        def get_new_connection(self, given):
            pytest.fail("the heartbeat asked the application's pool")

    connection.ensure_connection()
    monkeypatch.setattr(connections["default"], "__class__", Pooled)
    with fenced_lock(NAME, ttl=60) as lock:
        line = Line("default")
        gone, skipped = line.renew([lock.trust], patience=5, schema=lock.place.schema)
        line.close()
    assert (gone, skipped) == ([], [])


class TestDeadConnection:
    @pytest.fixture
    def dead(self, observer):
        def kill():
            observer.execute(
                "SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid]
            )

        return kill

    def test_looping_candidate_reconnects(self, dead):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        dead()
        failures = 0
        for _ in range(3):
            try:
                with fenced_lock(NAME, ttl=30):
                    break
            except Exception:  # noqa: BLE001 - the first may fail, as a query would
                failures += 1
        assert failures <= 1

    @pytest.mark.parametrize("act", ["renew", "guard", "force_release"])
    def test_second_call_reconnects(self, act, dead):
        with fenced_lock(NAME, ttl=30) as lock:
            acts = {
                "renew": lock.renew,
                "guard": lambda: lock.guard().__enter__(),
                "force_release": lambda: force_release("another"),
            }
            dead()
            with pytest.raises(Exception, match=r"terminat|clos|lost"):
                acts[act]()
            if act == "guard":
                with lock.guard():
                    pass
            else:
                acts[act]()


class TestOneOfManyEnds:
    """A lease that is released, or lost, costs the others of its beat nothing."""

    def many(self, count):
        stack = ExitStack()
        leases = [
            stack.enter_context(fenced_lock("of-many", number, ttl=60, heartbeat=False))
            for number in range(count)
        ]
        return stack, leases

    def beat_while_slow(self, rival, leases, meanwhile):
        """One beat that the server answers after more than a look at the clock."""
        own = module.Heartbeat("default")
        own._due = dict.fromkeys((lease.trust for lease in leases), module.now())
        [(batch, trusts)] = own._batches().items()
        assert len(trusts) == len(leases)
        meanwhile()
        rival.execute("BEGIN; LOCK TABLE django_dblock_fencedlock IN ACCESS EXCLUSIVE MODE")
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted"

        def free():
            observe.until(lambda: rival.execute(waits).fetchone() == (1,), "the beat waits")
            rival.execute("SELECT pg_sleep(0.2)")  # several looks at the clock
            rival.execute("COMMIT")

        freeing = threading.Thread(target=free)
        freeing.start()
        own._beat(batch, trusts)
        freeing.join()
        own._line.close()

    @pytest.mark.parametrize("ends", ["released", "about to expire"])
    def test_ending_one_of_many_leases_disturbs_no_renewal(self, ends, rival, caplog):
        stack, leases = self.many(300)
        before = [lease.expires_at for lease in leases[50:]]

        def meanwhile():
            for lease in leases[:50]:
                if ends == "released":
                    lease.release()
                else:
                    lease.trust._deadline = module.now() + 0.1

        self.beat_while_slow(rival, leases, meanwhile)
        assert "A heartbeat on" not in caplog.text
        after = [lease.expires_at for lease in leases[50:]]
        assert all(late > early for early, late in zip(before, after, strict=True))
        if ends == "about to expire":
            assert all(lease.lost for lease in leases[:50]), "told while the server was silent"
        for lease in leases[:50]:
            lease.release()
        with suppress(LockLost):
            stack.close()


def test_briefly_locked_row_is_due_again_soon(rival):
    with fenced_lock(NAME, ttl=60) as lock:
        rival.execute("BEGIN; SELECT FROM django_dblock_fencedlock FOR UPDATE")
        own = module.Heartbeat("default")
        own._due = {lock.trust: module.now()}
        own._beat(module._batch_of(lock.trust), [lock.trust])
        rival.execute("COMMIT")
        assert own._due[lock.trust] - module.now() <= module._LONGEST_BREAK
        own._line.close()


def test_short_and_long_leases_are_renewed_in_separate_batches():
    with fenced_lock("short", ttl=0.6) as short, fenced_lock("long", ttl=60) as long:
        assert module._batch_of(short.trust) != module._batch_of(long.trust)
