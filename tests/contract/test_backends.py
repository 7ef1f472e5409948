"""The contract with every kind of database backend: one suite, a row per backend.

Each test is run on Django's own backend, which takes the fast path, and on the stand-ins of
``tests/helpers/backends.py``, which must not.
"""

import threading
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from io import StringIO

import psycopg
import pytest
from django.core import checks
from django.core.management import call_command
from django.db import NotSupportedError, OperationalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpRequest, JsonResponse
from psycopg.pq import PipelineStatus

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
    latch,
    leadership,
    lock_rows,
    lock_table,
    once_per,
    partitions,
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
from tests.fencing.helpers import beat_now, lost_at_exit
from tests.helpers import backends, observe
from tests.idempotency.calling import request

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
    pytest.mark.usefixtures("within_a_period"),
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

    def test_try_returns_whether_it_locked(self, rival):
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
        with fenced_lock(*KEY, ttl=60) as lease:
            before = lease.expires_at
            beat_now()
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
        with lost_at_exit(fenced_lock("a", ttl=30, heartbeat=False)) as old:
            force_release("a", by="tests")
            with fenced_lock("a", ttl=30) as new:
                account.save_fenced(new)
            account.balance = 5
            with pytest.raises(StaleFence):
                account.save_fenced(old)
        written = Account.objects.get()
        assert (written.balance, written.fence_token) == (0, new.token)


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

    def test_result_is_stored_and_replayed(self, mode):
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

    def test_open_transaction_is_joined(self):
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
            if len(keys) == 1:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_once("a", work=work, mode="lease")
        run_once("a", work=work, mode="lease")
        assert keys[0] == keys[1]
        assert len(keys[0]) > 10


class TestOperations:
    def test_locks_are_listed_by_name(self):
        with advisory_lock("inventory", "sku-1"), advisory_lock("b"):
            assert {lock.name for lock in inspect.advisory_locks()} == {"inventory:sku-1", "b"}

    def test_leases_and_requests_are_listed(self):
        with fenced_lock("nightly", ttl=30):
            assert [lease.name for lease in inspect.fenced_leases()] == ["nightly"]

        def look(_handle):
            return [request.state for request in inspect.unfinished_requests()]

        assert run_once("a", work=look, mode="lease") == ["leased"]
        assert inspect.unfinished_requests() == []

    def test_backend_is_ended(self, rival):
        hold(rival, *KEY)
        assert terminate_backend(rival.info.backend_pid, by="tests")
        with advisory_lock(*KEY, timeout=30):
            pass

    def test_checks_ask_the_server(self, statements):
        with statements() as sent:
            found = checks.run_checks(databases=["default"])
        assert sent
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
        FencedLock.objects.update(token=1, expires_at="2000-01-01T00:00Z")
        assert purge_fenced_locks() == 1
        assert not FencedLock.objects.exists()

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


@contextmanager
def pipelined():
    """Put psycopg's connection into pipeline mode; fail if it was not in it to the end."""
    driver = connection.connection
    with driver.pipeline():
        yield
        assert driver.info.pipeline_status == PipelineStatus.ON


def entered(*blocks):
    """Return a function that makes each of these in turn, and enters those that can be."""

    def act():
        with ExitStack() as stack:
            for block in blocks:
                made = block()
                if hasattr(made, "__enter__"):
                    stack.enter_context(made)

    return act


LAST_STATEMENT = "SELECT query, query_start, xact_start FROM pg_stat_activity WHERE pid = %s"


class TestPipeline:
    """In psycopg's pipeline mode nobody knows whether a statement has worked: all is refused.

    What Django and psycopg do there is written down in ``tests/test_pipeline.py``.
    """

    @pytest.fixture(autouse=True)
    def connected(self, backend):
        connection.ensure_connection()

    @staticmethod
    def refused(act, observer):
        """The act is refused in a pipeline, and the server has not heard of it."""
        pid = [connection.connection.info.backend_pid]
        before = observer.execute(LAST_STATEMENT, pid).fetchone()
        with pipelined(), pytest.raises(NotSupportedError, match="before pipeline"):
            act()
        assert observer.execute(LAST_STATEMENT, pid).fetchone() == before

    @pytest.mark.parametrize(
        "act",
        [
            entered(lambda: advisory_lock(*KEY)),
            entered(lambda: advisory_lock(*KEY, timeout=0)),
            entered(lambda: advisory_locks(["a", "b"])),
            entered(transaction.atomic, lambda: try_advisory_lock("a")),
            entered(transaction.atomic, lambda: lock_rows(Counter.objects.all())),
            entered(transaction.atomic, lambda: lock_table(Counter)),
            entered(lambda: fenced_lock(*KEY, ttl=30)),
            entered(lambda: advisory_semaphore("a", permits=2)),
            entered(lambda: fenced_semaphore("a", permits=2, ttl=30)),
            entered(lambda: fenced_rwlock("a").read(ttl=30)),
            entered(lambda: partitions("a", count=3, ttl=30)),
            lambda: next(iter(leadership("a", ttl=30))),
            lambda: once_per("day", key="a")(lambda period: 1).run(),
            lambda: latch("a", parties=1).count_down(1),
            lambda: run_once("a", work=count),
            lambda: run_once("a", work=count, mode="lease"),
            lambda: force_release("a", by="tests"),
            lambda: terminate_backend(1, by="tests"),
            purge_fenced_locks,
            purge_idempotency_keys,
            inspect.advisory_locks,
            lambda: list(inspect.fenced_leases()),
            lambda: list(inspect.unfinished_requests()),
        ],
        ids=[
            "advisory_lock", "timeout=0", "advisory_locks", "try_advisory_lock", "lock_rows",
            "lock_table", "fenced_lock", "advisory_semaphore", "fenced_semaphore",
            "fenced_rwlock", "partitions", "leadership", "once_per", "latch", "run_once",
            "run_once in lease mode", "force_release", "terminate_backend", "purge_fenced_locks",
            "purge_idempotency_keys", "inspect.advisory_locks", "inspect.fenced_leases",
            "inspect.unfinished_requests",
        ],
    )  # fmt: skip
    def test_is_refused_before_any_statement(self, act, observer):
        self.refused(act, observer)

    @pytest.mark.parametrize("mode", ["atomic", "lease"])
    def test_view_is_refused_before_any_statement(self, mode, observer):
        @idempotent(scope=lambda request: "client", mode=mode)
        def view(request: HttpRequest, how: str) -> JsonResponse:
            return JsonResponse({"value": count()})

        self.refused(lambda: view(request(), "x"), observer)

    @pytest.mark.parametrize(
        "act",
        [
            lambda product: product.save(),
            lambda product: product.save_cas(),
            lambda product: product.delete_cas(),
            lambda product: product.touch_version(),
            lambda product: Product.objects.bulk_save_cas([product], ["stock"]),
            lambda product: Product(name="b").save(),
        ],
        ids=["save", "save_cas", "delete_cas", "touch_version", "bulk_save_cas", "create"],
    )
    def test_versioned_write_is_refused_before_any_statement(self, act, observer):
        product = Product.objects.create(name="a")
        self.refused(lambda: act(product), observer)
        product.stock = 3
        product.save()
        assert Product.objects.get().stock == 3, "after the pipeline it is written"

    @pytest.mark.parametrize(
        "act",
        [
            lambda lease: lease.renew(),
            lambda lease: lease.release(),
            lambda lease: lease.guard().__enter__(),
            lambda lease: Account.objects.get().save_fenced(lease),
        ],
        ids=["renew", "release", "guard", "save_fenced"],
    )
    def test_held_lease_survives_a_refusal(self, act, observer):
        Account.objects.create(name="a")
        with fenced_lock(*KEY, ttl=30, heartbeat=False) as lease:
            with pipelined(), pytest.raises(NotSupportedError, match="before pipeline"):
                act(lease)
            lease.check()
            with lease.guard():
                count()
        assert effects() == 1

    def test_pipeline_inside_a_block_commits_with_it(self, rival, observer):
        names = iter("abcdefghij")

        def insert():
            # the driver's cursor: what a wrapper makes two statements of, no pipeline takes
            with pipelined(), connection.connection.cursor() as cursor:
                for name in (next(names), next(names)):
                    cursor.execute("INSERT INTO app_counter (name, value) VALUES (%s, 1)", [name])

        with advisory_lock(*KEY):
            insert()
            assert len(observe.locks(observer)) == 1
            assert rival.execute("SELECT count(*) FROM app_counter").fetchone() == (0,)
        assert effects() == 2
        with pytest.raises(ZeroDivisionError), advisory_lock(*KEY):
            insert()
            raise ZeroDivisionError
        with fenced_lock(*KEY, ttl=30) as lease, lease.guard():
            insert()
        for mode in ("atomic", "lease"):
            run_once(mode, work=lambda *_: insert(), mode=mode)
        assert effects() == 8

    def test_check_notices_a_pipeline_that_is_off(self, monkeypatch):
        monkeypatch.setattr(psycopg.Connection, "pipeline", lambda _: nullcontext())
        with pytest.raises(AssertionError), pipelined():
            pass
