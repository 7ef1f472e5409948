"""How many statements a takeover and a new balance take: counts, which no busy machine changes."""

from contextlib import ExitStack

import pytest

from django_dblock import leadership, partitions
from django_dblock.fencing import acquire
from tests.coordination.rows import expire, held
from tests.helpers import queueing

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

PARTS, WORKERS, LEADER = "outbox~partition", "outbox~worker", "scheduler~leader"


@pytest.fixture(autouse=True)
def _no_listener_is_left():
    with queueing.no_listener_is_left():
        yield


@pytest.mark.parametrize("count", [64, 1024])
@pytest.mark.parametrize("workers", [1, 4, 16])
class TestPartitions:
    """A look is one statement, and what is given up or taken is one more, however much it is."""

    JOIN = 5  # register; look for other counts; look; take, in two if rows have to be made

    def enter(self, stack, count):
        return stack.enter_context(partitions("outbox", count=count, ttl=300))

    def sizes(self, shares):
        return sorted(len(share) for share in shares)

    def even(self, count, workers):
        share, rest = divmod(count, workers)
        return sorted([share] * (workers - rest) + [share + 1] * rest)

    def balance(self, shares, statements):
        """Each looks once, in the order in which they came."""
        for share in shares:
            with statements() as sent:
                share.balance()
            assert len(sent) <= 2

    def test_one_pass_balances_after_a_join(self, workers, count, statements):
        with ExitStack() as stack:
            shares = []
            for number in range(1, workers + 1):
                with statements() as sent:
                    shares.append(self.enter(stack, count))
                assert len(sent) <= self.JOIN + (number == 1)
                self.balance(shares, statements)
                assert self.sizes(shares) == self.even(count, number)
            assert held(PARTS) == list(range(count))

    def test_share_of_a_leaver_is_taken_in_one_pass(self, workers, count, statements):
        with ExitStack() as stack:
            shares = [self.enter(stack, count) for _ in range(workers)]
            self.balance(shares, statements)
            with ExitStack() as last:
                shares.append(self.enter(last, count))
                self.balance(shares, statements)
                leaving = shares.pop()
                with statements() as sent:
                    leaving.leave()
                assert len(sent) == 1
            self.balance(shares, statements)
            assert self.sizes(shares) == self.even(count, workers)

    def test_share_of_a_dead_worker_is_taken_in_one_pass(
        self, workers, count, statements, observer
    ):
        with ExitStack() as stack:
            shares = [self.enter(stack, count) for _ in range(workers + 1)]
            self.balance(shares, statements)
            dead = shares.pop()
            expire(observer, WORKERS, slot=workers)
            for number in dead.numbers:
                expire(observer, PARTS, slot=number)
            self.balance(shares, statements)
            assert self.sizes(shares) == self.even(count, workers)


class TestLeadership:
    @pytest.fixture
    def standby(self):
        attempt = leadership("scheduler", ttl=300)._lock.attempt()
        yield attempt
        attempt.close()

    def test_resigned_leader_is_replaced_with_one_statement(self, standby, statements):
        terms = iter(leadership("scheduler", ttl=300))
        next(terms)
        queueing.until_it_can_be_woken(standby)
        resigning = queueing.in_a_thread(terms.close)
        queueing.pause_until_woken(standby)
        resigning.join()
        with statements() as sent:
            assert standby.once() is not None
        assert len(sent) == 1

    def test_dead_leader_is_replaced_by_a_look_and_a_grant(
        self, standby, statements, observer, monkeypatch
    ):
        monkeypatch.setattr(acquire, "_SIGN", 600.0)
        terms = iter(leadership("scheduler", ttl=300))
        term = next(terms)
        queueing.until_it_can_be_woken(standby)
        queueing.stay_queued()
        assert standby.delay > 60
        observer.execute(
            "UPDATE django_dblock_fencedlock"
            " SET expires_at = clock_timestamp() + interval '60 s' WHERE name = %s",
            [LEADER],
        )
        assert standby.once() is None
        assert standby.delay <= 60, "it sleeps no longer than the lease lasts"
        expire(observer, LEADER)
        with statements() as sent:
            assert standby.once() is not None
        assert len(sent) == 2
        term.stop_renewing()
        terms.close()
