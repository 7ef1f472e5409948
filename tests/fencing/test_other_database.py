"""Rows in another database than the lease: a paused holder against the next holder's claim.

Two threads, each with its own connection to the rows. A thread is stopped before a statement; the
other one then runs until it has ended or waits for a lock of the server. Nothing sleeps.
"""

import re
import threading
from contextlib import contextmanager, suppress

import pytest
from asgiref.sync import async_to_sync
from django.db import NotSupportedError, connections, models, transaction
from django.db.models import Count, F, Q
from django.db.models.signals import pre_delete
from django.test.utils import isolate_apps

from django_dblock import FencedModel, FencedQuerySet, LockLost, StaleFence, fenced_lock
from tests.app.models import Account, Safe, Savings, Vault
from tests.fencing.helpers import NAME, expire
from tests.helpers import observe

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.server,
]


@pytest.fixture
def looking(connect):
    """A connection that looks at the sessions of the rows' database."""
    return connect("other")


@pytest.fixture
def holders(observer):
    """The leases of A, which has expired without A's knowledge, and of B, which came after A."""
    with suppress(LockLost), fenced_lock(NAME, ttl=300, heartbeat=False) as old:
        expire(observer)
        with fenced_lock(NAME, ttl=300) as new:
            yield old, new


@pytest.fixture
def lock(db):
    with fenced_lock(NAME, ttl=300) as held:
        yield held


class Work(threading.Thread):
    """Work in a thread, with the result or the error that it raised."""

    def __init__(self, work):
        super().__init__()
        self.work, self.result = work, None
        self.start()

    def run(self):
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.result = error
        finally:
            connections.close_all()

    def until_done_or_waiting(self, looking):
        observe.until(lambda: not self.is_alive() or blocked(looking), "it ends, or it waits")

    def outcome(self):
        self.join()
        return self.result


def blocked(looking):
    return looking.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend'"
        " AND pg_blocking_pids(pid) <> '{}'"
    ).fetchone()[0]


@contextmanager
def before(start, do):
    """Call ``do`` once, before this thread sends the first statement that starts so."""
    done = []

    def wrapper(execute, sql, params, many, context):
        if sql.startswith(start) and not done:
            done.append(True)
            do()
        return execute(sql, params, many, context)

    with connections["other"].execute_wrapper(wrapper):
        yield
    assert done, f"no {start} was sent"


def rows(model):
    return model.objects.using("other")


def claim(model, lock):
    """Claim the rows and read them, as the newer holder does."""
    return list(rows(model).fenced(lock))


def write_late(work, start, model, holders, looking):
    """Run the old holder's work, with the newer holder's claim before one of its statements.

    Returns what the old holder's work returned or raised, and the rows that the newer holder read.
    """
    newer = []

    def claim_meanwhile():
        newer.append(Work(lambda: claim(model, holders[1])))
        newer[0].until_done_or_waiting(looking)

    try:
        with before(start, claim_meanwhile):
            result = work()
    except StaleFence as error:
        result = error
    return result, newer[0].outcome()


class TestPausedWriter:
    """A is paused between two statements of one write, while B claims the rows and reads them.

    Whatever B has read stays as B has read it: either A is refused, or A was first.
    """

    def test_delete_leaves_what_a_newer_holder_has_read(self, holders, looking):
        """``Savings`` points to ``Account``, so Django reads the rows before it deletes them."""
        rows(Account).create(name="a")
        _, read = write_late(
            rows(Account).fenced(holders[0]).delete, "DELETE", Account, holders, looking
        )
        assert {row.pk for row in read} == set(rows(Account).values_list("pk", flat=True))

    def test_negative_twin_without_locked_rows_the_read_row_is_gone(
        self, holders, looking, monkeypatch
    ):
        """The token is compared in the statement that reads, which says nothing about DELETE."""
        monkeypatch.setattr(
            FencedQuerySet, "_lock", lambda self, rows, lock: {"fence_token__lte": lock.token}
        )
        rows(Account).create(name="a")
        _, read = write_late(
            rows(Account).fenced(holders[0]).delete, "DELETE", Account, holders, looking
        )
        assert len(read) == 1
        assert not rows(Account).exists()

    def test_delete_of_a_child_leaves_what_was_read(self, holders, looking):
        rows(Savings).create(name="a")
        _, read = write_late(
            rows(Savings).fenced(holders[0]).delete, "DELETE", Savings, holders, looking
        )
        assert {row.pk for row in read} == set(rows(Savings).values_list("pk", flat=True))
        assert rows(Account).count() == len(read)

    def test_delete_with_a_receiver_leaves_what_was_read(self, holders, looking):
        rows(Vault).create()
        received = []
        receiver = lambda **more: received.append(more["instance"])  # noqa: E731
        pre_delete.connect(receiver, sender=Vault)
        try:
            _, read = write_late(
                rows(Vault).fenced(holders[0]).delete, "DELETE", Vault, holders, looking
            )
        finally:
            pre_delete.disconnect(receiver, sender=Vault)
        assert len(received) == 1
        assert {row.pk for row in read} == set(rows(Vault).values_list("pk", flat=True))

    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            (Savings, {"rate": 5}),
            (Savings, {"rate": 5, "balance": 5}),
            (Safe, {"size": 5, "balance": 5}),
            (Vault, {"size": 5, "balance": 5, "depth": 5}),
        ],
    )
    def test_update_of_a_child_leaves_what_was_read(self, model, changes, holders, looking):
        rows(model).create()
        _, [read] = write_late(
            lambda: rows(model).fenced(holders[0]).update(**changes),
            "UPDATE",
            model,
            holders,
            looking,
        )
        found = rows(model).get()
        assert {name: getattr(found, name) for name in changes} == {
            name: getattr(read, name) for name in changes
        }
        assert found.fence_token == holders[1].token

    def test_bulk_update_of_a_child_leaves_what_was_read(self, holders, looking):
        savings = rows(Savings).create(name="a")
        savings.rate = 5
        _, [read] = write_late(
            lambda: rows(Savings).fenced(holders[0]).bulk_update([savings], ["rate"]),
            "UPDATE",
            Savings,
            holders,
            looking,
        )
        found = rows(Savings).get()
        assert (found.rate, found.fence_token) == (read.rate, holders[1].token)


class TestClaimThatIsNotCommitted:
    """B has claimed the rows in an open transaction when A's write starts, and commits then."""

    @contextmanager
    def claimed(self, model, lock, looking):
        """Run the block's work in a thread while the claim is open, and commit when it waits."""
        works = []
        with transaction.atomic(using="other"):
            [read] = claim(model, lock)
            yield lambda work: works.append(Work(work))
            works[0].until_done_or_waiting(looking)
        self.outcome = works[0].outcome()
        self.read = read

    @pytest.mark.parametrize(
        "write",
        [
            pytest.param(lambda found: found.update(balance=5), id="update"),
            pytest.param(lambda found: found.delete(), id="delete"),
        ],
    )
    @pytest.mark.parametrize(
        "limit",
        [
            pytest.param(lambda found: found.filter(savings__rate=0), id="join"),
            pytest.param(
                lambda found: found.annotate(n=Count("savings")).filter(n=1), id="aggregate"
            ),
            pytest.param(lambda found: found.filter(balance=0), id="plain"),
        ],
    )
    def test_write_is_refused(self, limit, write, holders, looking):
        old, new = holders
        rows(Savings).create(name="a")
        with self.claimed(Account, new, looking) as start:
            start(lambda: write(limit(rows(Account).fenced(old))))
        assert isinstance(self.outcome, StaleFence)
        found = rows(Account).get()
        assert (found.balance, found.fence_token) == (0, new.token)
        assert rows(Savings).count() == 1

    @pytest.mark.parametrize("model", [Savings, Safe, Vault])
    def test_read_is_refused(self, model, holders, looking):
        old, new = holders
        rows(model).create()
        with self.claimed(model, new, looking) as start:
            start(lambda: claim(model, old))
        assert isinstance(self.outcome, StaleFence)
        assert rows(model).get().fence_token == new.token


class TestClaimOfAChild:
    """B claims a row that is in several tables, while A saves a part of it."""

    @pytest.mark.parametrize(
        ("model", "field"),
        [
            (Savings, "balance"), (Savings, "rate"), (Safe, "size"), (Safe, "balance"),
            (Vault, "size"), (Vault, "balance"), (Vault, "depth"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("deferred", [False, True])
    def test_save_during_the_claim_is_refused(self, model, field, deferred, holders, looking):
        old, new = holders
        rows(model).create()
        [mine] = claim(model, old)
        setattr(mine, field, 5)
        works = []

        def save_meanwhile():
            works.append(Work(lambda: mine.save_fenced(old, update_fields=[field])))
            works[0].until_done_or_waiting(looking)

        claimed = rows(model).fenced(new)
        with before("UPDATE", save_meanwhile):
            read = (claimed.only(field) if deferred else claimed).get()
        assert isinstance(works[0].outcome(), StaleFence)
        assert getattr(read, field) == getattr(rows(model).get(), field) == 0
        read.save_fenced(new)

    @pytest.mark.parametrize(("model", "field"), [(Savings, "rate"), (Safe, "size")])
    def test_claim_reads_a_save_that_it_waited_for(self, model, field, holders, looking):
        """The tables are locked in the order in which a save writes them, so nothing deadlocks."""
        old, new = holders
        rows(model).create()
        [mine] = claim(model, old)
        setattr(mine, field, 5)
        with transaction.atomic(using="other"):
            mine.save_fenced(old, using="other")
            claiming = Work(lambda: claim(model, new))
            claiming.until_done_or_waiting(looking)
        [read] = claiming.outcome()
        assert getattr(read, field) == 5
        assert read.fence_token == rows(model).get().fence_token == new.token

    @pytest.mark.parametrize("model", [Savings, Safe, Vault])
    def test_claim_locks_reads_and_stamps_in_two_statements(self, model, lock, statements):
        rows(model).create()
        with statements("other") as sent:
            [read] = claim(model, lock)
        kinds = [query["sql"].split()[0] for query in sent]
        assert kinds == ["BEGIN", "SELECT", "UPDATE", "COMMIT"]
        assert read.fence_token == rows(model).get().fence_token == lock.token

    @pytest.mark.parametrize("deferring", ["only", "defer"])
    def test_deferred_token_is_loaded(self, deferring, lock, statements):
        rows(Savings).create(name="a")
        names = {"only": "rate", "defer": "fence_token"}[deferring]
        [read] = getattr(rows(Savings).fenced(lock), deferring)(names)
        with statements("other") as sent:
            assert read.fence_token == lock.token
        assert len(sent) == 0


class TestWrites:
    """What the rows get if nobody else writes them."""

    @pytest.mark.parametrize("model", [Account, Savings, Safe, Vault])
    def test_update_locks_and_writes(self, model, lock):
        rows(model).create(balance=1)
        assert rows(model).fenced(lock).filter(balance=1).update(balance=F("balance") + 4) == 1
        found = rows(model).get()
        assert (found.balance, found.fence_token) == (5, lock.token)
        assert rows(model).fenced(lock).filter(balance=1).update(balance=0) == 0
        assert rows(model).fenced(lock).none().update(balance=0) == 0

    def test_update_of_one_table_sends_two_statements(self, lock, statements):
        rows(Account).create(name="a")
        with statements("other") as sent:
            rows(Account).fenced(lock).update(balance=5)
        kinds = [query["sql"].split()[0] for query in sent]
        assert kinds == ["BEGIN", "SELECT", "UPDATE", "COMMIT"]
        assert re.search(r"ORDER BY \S+ ASC FOR UPDATE", sent[1]["sql"]), "in one order for all"

    def test_condition_on_the_token_is_kept(self, lock):
        """Rows that this holder has not written yet: the write itself sets the token."""
        rows(Account).create(name="a")
        mine = rows(Account).fenced(lock).filter(fence_token__lt=lock.token)
        assert mine.update(balance=5) == 1
        assert mine.update(balance=6) == 0
        assert rows(Account).get().balance == 5

    def test_row_that_stopped_matching_is_not_written(self, lock, looking):
        """The condition holds for the row as it is when the write has locked it."""
        rows(Savings).create(name="a")
        with transaction.atomic(using="other"):
            rows(Account).update(balance=1)
            updating = Work(
                lambda: (
                    rows(Account)
                    .fenced(lock)
                    .filter(savings__rate=0, balance=0)
                    .update(balance=F("balance") + 5)
                )
            )
            updating.until_done_or_waiting(looking)
        assert updating.outcome() == 0
        assert rows(Account).get().balance == 1

    def test_refused_write_changes_no_row(self, lock):
        rows(Savings).create(name="a")
        rows(Savings).create(name="b", fence_token=lock.token + 1)
        with pytest.raises(StaleFence, match="some of the rows"):
            rows(Savings).fenced(lock).update(rate=5)
        with pytest.raises(StaleFence, match="some of the rows"):
            rows(Savings).fenced(lock).delete()
        assert set(rows(Savings).values_list("rate", flat=True)) == {0}
        assert rows(Account).count() == 2

    def test_conditions_may_join_tables_that_may_lack_a_row(self, lock):
        """``FOR UPDATE`` alone could not be applied to such a join."""
        rows(Account).create(name="a", balance=1)
        found = rows(Account).fenced(lock).filter(Q(savings__rate=0) | Q(balance__gt=0))
        assert found.update(balance=2) == 1
        assert found.distinct().order_by("savings__rate").update(balance=3) == 1
        assert found.values("name").update(balance=4) == 1
        assert rows(Account).get().balance == 4
        assert found.select_for_update().delete()[0] == 1

    @isolate_apps("tests.app")
    def test_composite_keys_are_claimed_and_written(self, lock):
        class Seat(FencedModel):
            pk = models.CompositePrimaryKey("row", "number")
            row = models.CharField(max_length=2)
            number = models.IntegerField()
            price = models.IntegerField(default=0)

            class Meta:
                app_label = "app"
                db_table = "fenced_seat"

        with connections["other"].schema_editor() as editor:
            editor.create_model(Seat)
        try:
            for number in (1, 2):
                rows(Seat).create(row="a", number=number)
            assert rows(Seat).fenced(lock).filter(number=1).update(price=4) == 1
            seat = rows(Seat).fenced(lock).get(number=2)
            seat.price = 5
            seat.save_fenced(lock)
            written = rows(Seat).order_by("pk").values_list("price", "fence_token")
            assert list(written) == [(4, lock.token), (5, lock.token)]
            assert rows(Seat).fenced(lock).delete()[0] == 2
        finally:
            with connections["other"].schema_editor() as editor:
                editor.delete_model(Seat)

    def test_slices_are_refused_as_by_django(self, lock):
        rows(Account).create(name="a")
        with pytest.raises(TypeError, match="slice"):
            rows(Account).fenced(lock)[:1].update(balance=5)
        assert rows(Account).get().balance == 0


class TestReads:
    """Each way to read objects claims them, or is refused."""

    def read_async(self, reading):
        async def read():
            return [row async for row in reading()]

        return async_to_sync(read)()

    def test_aiterator_is_refused(self, lock):
        rows(Account).create(name="a")
        with pytest.raises(NotSupportedError, match=r"aiterator\(\)"):
            self.read_async(lambda: rows(Account).fenced(lock).aiterator())
        assert rows(Account).get().fence_token == 0

    def test_raw_is_refused(self, lock):
        with pytest.raises(NotSupportedError, match=r"raw\(\)"):
            rows(Account).fenced(lock).raw("SELECT * FROM app_account")

    def test_unfenced_querysets_read_as_django_does(self):
        rows(Account).create(name="a")
        assert len(self.read_async(lambda: rows(Account).aiterator())) == 1
        assert len(list(rows(Account).raw("SELECT * FROM app_account"))) == 1

    def test_reads_beside_the_lock_table_claim_nothing(self, lock):
        Account.objects.create(name="a")
        assert len(list(Account.objects.fenced(lock).raw("SELECT * FROM app_account"))) == 1
        [account] = self.read_async(lambda: Account.objects.fenced(lock).aiterator(chunk_size=1))
        assert account.fence_token == 0

    @pytest.mark.parametrize(
        "read",
        [
            pytest.param(lambda found: found.get(), id="get"),
            pytest.param(lambda found: async_to_sync(found.aget)(), id="aget"),
            pytest.param(lambda found: found.first(), id="first"),
            pytest.param(lambda found: found.latest("pk"), id="latest"),
            pytest.param(lambda found: next(iter(found.in_bulk().values())), id="in_bulk"),
            pytest.param(lambda found: found[0], id="index"),
            pytest.param(lambda found: found[:1][0], id="slice"),
        ],
    )
    def test_read_claims(self, read, lock):
        rows(Savings).create(name="a")
        assert read(rows(Savings).fenced(lock)).fence_token == lock.token
        assert rows(Savings).get().fence_token == lock.token

    @pytest.mark.parametrize("method", ["values", "values_list"])
    def test_plain_values_are_refused(self, method, lock):
        with pytest.raises(NotSupportedError, match=r"values\(\)"):
            list(getattr(rows(Account).fenced(lock), method)("name"))
