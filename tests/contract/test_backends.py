"""What is promised holds whatever stands around Django's connection: one suite, every backend.

Each test is run on Django's own backend, which takes the fast path, and on the stand-ins of
``tests/helpers/backends.py``, which must not.
"""

import threading
from contextlib import nullcontext, suppress
from io import StringIO

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpRequest, JsonResponse

from django_dblock import (
    FencedLock,
    IdempotencyInProgress,
    IdempotencyKey,
    IdempotencyKeyReused,
    LockLost,
    LockTimeout,
    StaleFence,
    StaleObject,
    UnsafeIsolation,
    advisory_lock,
    advisory_locks,
    advisory_semaphore,
    fenced_lock,
    fenced_rwlock,
    fenced_semaphore,
    force_release,
    idempotent,
    inspect,
    purge_fenced_locks,
    purge_idempotency_keys,
    retry_on_conflict,
    run_once,
    terminate_backend,
    try_advisory_lock,
)
from django_dblock.core.connection import dedicated, fast_driver, unwrapped
from django_dblock.keys import encode, key_id
from tests.app.fenced import Account
from tests.app.models import Counter
from tests.app.versioned import Product
from tests.helpers import backends, observe
from tests.idempotency.calling import request

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
    pytest.mark.slow,  # what it runs in the package, quicker tests run, too
]

KEY = ("inventory", "it's 100%")


@pytest.fixture(params=backends.BACKENDS, autouse=True)
def backend(request, transactional_db):
    with backends.installed(request.param):
        yield request.param


def number(*key):
    return key_id(encode(key))


def hold(rival, *key):
    rival.execute("BEGIN")
    rival.execute("SELECT pg_advisory_xact_lock(%s)", [number(*key)])


def count(_=None):
    counter, _ = Counter.objects.get_or_create(name="effects")
    counter.value += 1
    counter.save()
    return counter.value


def effects():
    return sum(Counter.objects.values_list("value", flat=True))


def test_only_djangos_own_backend_takes_the_fast_path(backend):
    connection.ensure_connection()
    taken = fast_driver(connections["default"]) is not None
    assert taken == (backend == "django")


def test_only_an_opaque_proxy_hides_the_driver(backend):
    own = dedicated("default")
    try:
        for each in (connections["default"], own):
            each.ensure_connection()
            assert (unwrapped(each.connection) is None) == (backend == "opaque")
    finally:
        own.close()


class TestAdvisory:
    def test_lock_is_held_until_the_transaction_ends(self, observer):
        with advisory_lock(*KEY) as held:
            assert held.key_id == number(*KEY)
            assert held.waited == 0
            assert observe.locks(observer) == [(connection.connection.info.backend_pid, True)]
        assert observe.locks(observer) == []

    def test_timeout_leaves_outer_transaction_usable(self, rival):
        hold(rival, *KEY)
        with transaction.atomic():
            Counter.objects.create(name="before")
            for timeout in (0, 0.02):
                with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=timeout):
                    pass
            Counter.objects.create(name="after")
        assert Counter.objects.count() == 2

    def test_timeout_in_own_transaction_leaves_none_open(self, rival):
        hold(rival, *KEY)
        for timeout in (0, 0.02):
            with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=timeout):
                pass
        assert not connection.in_atomic_block
        assert connection.get_autocommit()

    def test_waiter_gets_the_lock(self, rival, observer):
        hold(rival, *KEY)
        waits = []

        def wait():
            with advisory_lock(*KEY, timeout=30) as held:
                waits.append(held.waited)
            connection.close()

        waiting = threading.Thread(target=wait)
        waiting.start()
        observe.until_blocked(observer)
        rival.execute("COMMIT")
        waiting.join()
        assert waits[0] > 0

    def test_several_keys_are_locked_together(self, observer, rival):
        with advisory_locks([("account", n) for n in range(5)]):
            assert len(observe.locks(observer)) == 5
        hold(rival, "account", 3)
        with transaction.atomic():
            with pytest.raises(LockTimeout):
                with advisory_locks([("account", n) for n in range(5)], timeout=0.02):
                    pass
            assert len(observe.locks(observer)) == 1, "the rival's"

    def test_shared_locks_share(self, rival):
        rival.execute("BEGIN")
        rival.execute("SELECT pg_advisory_xact_lock_shared(%s)", [number(*KEY)])
        with advisory_lock(*KEY, shared=True, timeout=0):
            with pytest.raises(LockTimeout), advisory_lock(*KEY, timeout=0):
                pass

    def test_trying_says_what_it_got(self, rival):
        hold(rival, "busy")
        with transaction.atomic():
            assert try_advisory_lock("free")
            assert try_advisory_lock("free")
            assert not try_advisory_lock("busy")
        with pytest.raises(TransactionManagementError):
            try_advisory_lock("free")

    def test_savepoint_that_is_rolled_back_frees_its_lock(self, observer):
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError), transaction.atomic(), advisory_lock(*KEY):
                raise ZeroDivisionError
            assert observe.locks(observer) == []
            with advisory_lock(*KEY):
                pass

    def test_snapshot_isolation_is_refused(self):
        with pytest.raises(UnsafeIsolation), transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            with advisory_lock(*KEY):
                pass

    def test_work_commits_and_rolls_back_with_the_block(self):
        with advisory_lock(*KEY):
            count()
        with pytest.raises(ZeroDivisionError), advisory_lock(*KEY):
            count()
            raise ZeroDivisionError
        assert effects() == 1

    def test_decorated_function_runs_under_its_lock(self, observer):
        @advisory_lock("inventory", lambda sku: sku)
        def buy(sku):
            return len(observe.locks(observer))

        assert buy("a") == 1


class TestLeases:
    def test_lease_is_granted_renewed_and_released(self):
        with fenced_lock(*KEY, ttl=30) as lease:
            lease.check()
            lease.renew()
            with lease.guard():
                count()
        assert effects() == 1
        with fenced_lock(*KEY, ttl=30, timeout=0) as again:
            assert again.token > lease.token

    def test_held_lease_is_refused(self):
        refused = []

        def compete():
            try:
                with fenced_lock(*KEY, ttl=30, timeout=0):
                    pass
            except LockTimeout as error:
                refused.append(error)
            finally:
                connection.close()

        with fenced_lock(*KEY, ttl=30):
            competing = threading.Thread(target=compete)
            competing.start()
            competing.join()
        assert len(refused) == 1

    def test_heartbeat_renews(self):
        with fenced_lock(*KEY, ttl=0.6) as lease:
            before = lease.expires_at
            observe.until(lambda: lease.expires_at > before, "renewed")
            lease.check()

    def test_guard_refuses_a_lost_lease(self):
        with pytest.raises(LockLost), fenced_lock(*KEY, ttl=30, heartbeat=False) as lease:
            assert force_release(*KEY, by="tests")
            with lease.guard():
                count()
        assert effects() == 0

    def test_stale_holder_writes_nothing(self):
        account = Account.objects.create(name="a")
        with pytest.raises(LockLost), fenced_lock("a", ttl=30, heartbeat=False) as old:
            force_release("a", by="tests")
            with fenced_lock("a", ttl=30) as new:
                account.save_fenced(new)
            with pytest.raises((StaleFence, LockLost)):
                account.save_fenced(old)


class TestVersions:
    def test_save_compares_and_bumps(self):
        product = Product.objects.create(name="a")
        other = Product.objects.get()
        product.stock = 1
        product.save_cas()
        other.stock = 2
        with pytest.raises(StaleObject):
            other.save_cas()
        assert Product.objects.get().stock == 1

    def test_bulk_save_compares_and_bumps(self):
        Product.objects.bulk_create(Product(name=str(n)) for n in range(3))
        products = list(Product.objects.all())
        for product in products:
            product.stock = 7
        Product.objects.bulk_save_cas(products, ["stock"])
        assert set(Product.objects.values_list("stock", flat=True)) == {7}

    def test_touch_and_delete_compare(self):
        product = Product.objects.create(name="a")
        other = Product.objects.get()
        product.touch_version()
        with pytest.raises(StaleObject):
            other.delete_cas()
        product.delete_cas()
        assert not Product.objects.exists()

    def test_conflict_is_retried(self):
        Product.objects.create(name="a")
        tries = []

        @retry_on_conflict(attempts=3)
        def change():
            product = Product.objects.get()
            if not tries:
                Product.objects.get().touch_version()
            tries.append(product)
            product.save_cas()

        change()
        assert len(tries) == 2


class TestIdempotency:
    @pytest.fixture(params=["atomic", "lease"])
    def mode(self, request):
        return request.param

    def test_result_is_kept_and_given_again(self, mode):
        assert [run_once("a", 1, work=count, mode=mode) for _ in range(2)] == [1, 1]
        assert effects() == 1

    def test_failed_work_runs_again(self, mode):
        def fail(*handle):
            count()
            raise ZeroDivisionError

        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run_once("a", work=fail, mode=mode)
        run_once("a", work=count, mode=mode)
        assert effects() == (1 if mode == "atomic" else 3)

    def test_key_for_another_request_is_refused(self, mode):
        run_once("a", work=count, mode=mode, fingerprint={"amount": 1})
        with pytest.raises(IdempotencyKeyReused):
            run_once("a", work=count, mode=mode, fingerprint={"amount": 2})

    def test_request_in_progress_is_refused(self, mode):
        def inside(*handle):
            refused = []

            def again():
                try:
                    run_once("a", work=count, mode=mode)
                except IdempotencyInProgress as error:
                    refused.append(error)
                finally:
                    connection.close()

            thread = threading.Thread(target=again)
            thread.start()
            thread.join()
            return len(refused)

        assert run_once("a", work=inside, mode=mode) == 1

    def test_response_is_replayed(self, mode):
        @idempotent(scope=lambda request: "client", mode=mode)
        def view(request: HttpRequest, how: str) -> JsonResponse:
            return JsonResponse({"value": count(), "text": "it's 100% \\"}, status=201)

        first, again = view(request(), "x"), view(request(), "x")
        assert first.content == again.content
        assert again.headers["Idempotent-Replayed"] == "true"
        assert effects() == 1

    def test_transaction_that_is_open_is_joined(self):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            run_once("a", work=count)
            raise ZeroDivisionError
        with transaction.atomic():
            assert run_once("a", work=count) == 1
        assert effects() == 1

    def test_steps_are_not_repeated(self):
        done = []

        def work(handle):
            handle.run_step("charge", lambda: done.append(1) or "it's paid")
            if len(done) == 1 and not interrupted:
                interrupted.append(True)
                raise ZeroDivisionError
            return "ok"

        interrupted = []
        with pytest.raises(ZeroDivisionError):
            run_once("a", work=work, mode="lease")
        assert run_once("a", work=work, mode="lease") == "ok"
        assert done == [1]

    def test_derived_keys_repeat(self):
        keys = []

        def work(handle):
            keys.append(handle.derived_key("charge"))

        run_once("a", work=work, mode="lease")
        assert len(keys[0]) > 10


class TestOperations:
    def test_locks_are_listed_by_name(self):
        with advisory_lock("inventory", "sku-1"), advisory_lock("b"):
            assert {lock.name for lock in inspect.advisory_locks()} == {"inventory:sku-1", "b"}

    def test_leases_and_requests_are_listed(self):
        with fenced_lock("nightly", ttl=30):
            assert [lease.name for lease in inspect.fenced_leases()] == ["nightly"]
        assert list(inspect.unfinished_requests()) == []

    def test_backend_is_ended(self, rival):
        hold(rival, *KEY)
        assert terminate_backend(rival.info.backend_pid, by="tests")
        with advisory_lock(*KEY, timeout=30):
            pass

    def test_checks_ask_the_server(self):
        found = checks.run_checks(databases=["default"])
        assert not [message for message in found if message.id.startswith("dblock.E")]

    def test_doctor_asks_the_server(self):
        output = StringIO()
        with suppress(SystemExit):
            call_command("dblock", "doctor", stdout=output)
        assert output.getvalue().startswith("ok  ")

    def test_tables_are_purged(self):
        run_once("a", work=count)
        IdempotencyKey.objects.update(expires_at="2000-01-01T00:00Z")
        purge_idempotency_keys()
        assert not IdempotencyKey.objects.exists()
        with fenced_lock("a", ttl=30):
            pass
        FencedLock.objects.update(expires_at="2000-01-01T00:00Z")
        purge_fenced_locks()

    @pytest.mark.parametrize(
        "lock",
        [
            advisory_lock,
            lambda key: fenced_lock(key, ttl=30),
            lambda key: advisory_semaphore(key, permits=2),
            lambda key: fenced_semaphore(key, permits=2, ttl=30),
            lambda key: fenced_rwlock(key).write(ttl=30),
            lambda key: nullcontext(run_once(key, work=count)),
            lambda key: nullcontext(run_once(key, work=count, mode="lease")),
        ],
        ids=[
            "advisory_lock",
            "fenced_lock",
            "advisory_semaphore",
            "fenced_semaphore",
            "fenced_rwlock",
            "run_once",
            "run_once in lease mode",
        ],
    )
    def test_dead_connection_is_replaced(self, observer, lock):
        """A loop that locks outside of a request goes on after the server was restarted."""
        connection.ensure_connection()
        observer.execute(
            "SELECT pg_terminate_backend(%s, 30000)", [connection.connection.info.backend_pid]
        )
        with pytest.raises(OperationalError), lock("a"):
            pass
        with lock("a"):
            pass
