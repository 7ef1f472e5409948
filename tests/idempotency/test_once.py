"""``run_once``: the same guarantee without HTTP."""

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from django_dblock import IdempotencyKey, run_once, signals
from django_dblock.exceptions import (
    IdempotencyAbandoned,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    UnstorableResponse,
)
from tests.app.idempotent_views import add_one
from tests.app.models import Product
from tests.helpers import observe
from tests.helpers.processes import process
from tests.idempotency.leasing import Died, effects, expire, row, unable_to_give_up, update

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

MODES = pytest.mark.parametrize("mode", ["atomic", "lease"])


def work(handle=None):
    return {"value": add_one(), "pair": (1, 2)}


@MODES
def test_first_and_replayed_results_are_json(mode):
    results = [run_once("a", 1, work=work, mode=mode) for _ in range(2)]
    assert results == [{"value": 1, "pair": [1, 2]}] * 2
    assert effects() == 1


@MODES
def test_result_that_is_not_json_stores_nothing(mode):
    with pytest.raises(UnstorableResponse, match="is not JSON"):
        run_once("a", work=lambda *handle: object(), mode=mode)
    assert not IdempotencyKey.objects.exists()


@MODES
def test_failed_work_raises_and_frees_the_key(mode):
    def fail(*handle):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_once("a", work=fail, mode=mode)
    assert run_once("a", work=work, mode=mode)["value"] == 1


@MODES
def test_keys_with_the_same_text_and_other_types_are_different(mode):
    for key in [("a", 1), ("a", "1"), ("a:1",)]:
        run_once(*key, work=work, mode=mode)
    assert effects() == 3


@MODES
def test_key_reused_for_other_work_is_refused(mode):
    run_once("a", work=work, mode=mode, fingerprint={"amount": 1})
    run_once("a", work=work, mode=mode, fingerprint={"amount": 1})
    with pytest.raises(IdempotencyKeyReused) as raised:
        run_once("a", work=work, mode=mode, fingerprint={"amount": 2})
    assert (raised.value.scope, raised.value.using) == ("once", "default")
    assert effects() == 1


@MODES
def test_signals_report_the_outcome(mode):
    told = []

    def tell(*, signal, sender, **facts):
        told.append((signal, facts["mode"], facts["scope"]))

    for signal in (signals.idempotent_executed, signals.idempotent_replayed):
        signal.connect(tell)
    for _ in range(2):
        run_once("a", work=work, mode=mode)
    assert told == [
        (signals.idempotent_executed, mode, "once"),
        (signals.idempotent_replayed, mode, "once"),
    ]


def test_open_transaction_is_joined():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        run_once("a", work=work)
        raise ZeroDivisionError
    assert effects() == 0
    with transaction.atomic():
        assert run_once("a", work=work) == run_once("a", work=work)
    assert effects() == 1


def test_failed_work_keeps_the_hooks_of_earlier_work():
    product, ran = Product.objects.create(name="read"), []

    def pay():
        transaction.on_commit(lambda: ran.append("paid"))
        product.name = "paid"
        product.save()

    def fail():
        transaction.on_commit(lambda: ran.append("failed"))
        Product.objects.create(name="failed")
        raise ZeroDivisionError

    with transaction.atomic():
        run_once("a", work=pay)
        with pytest.raises(ZeroDivisionError):
            run_once("b", work=fail)
    assert ran == ["paid"]
    product.save()  # its version is known to be committed
    assert Product.objects.get().version == product.version == 3


def test_in_lease_mode_an_open_transaction_is_refused():
    with transaction.atomic(), pytest.raises(ImproperlyConfigured):
        run_once("a", work=work, mode="lease")


def test_later_run_resumes_after_the_last_step():
    calls, tokens = [], []

    def steps(handle):
        handle.run_step("charge", lambda: calls.append(1))
        tokens.append(handle.token)
        if len(tokens) == 1:
            raise RuntimeError
        return "done"

    with pytest.raises(RuntimeError):
        run_once("a", work=steps, mode="lease")
    assert run_once("a", work=steps, mode="lease") == "done"
    assert tokens[0] < tokens[1]
    assert calls == [1]


def test_work_can_complete_with_its_effects():
    def complete(handle):
        with transaction.atomic():
            return handle.complete(work())

    results = [run_once("a", work=complete, mode="lease") for _ in range(2)]
    assert [result["value"] for result in results] == [1, 1]


def test_abandoned_work_under_refuse_waits_for_an_operator():
    def die(handle):
        raise Died

    with unable_to_give_up(), pytest.raises(Died):
        run_once("a", work=die, mode="lease", on_abandoned="refuse")
    expire()
    with pytest.raises(IdempotencyAbandoned, match=f"--request {row().pk}"):
        run_once("a", work=work, mode="lease", on_abandoned="refuse")


def test_stale_run_gets_the_winners_result():
    def zombie(handle):
        expire()
        run_once("a", work=work, mode="lease")
        return "zombie"

    assert run_once("a", work=zombie, mode="lease")["value"] == 1


def test_stale_run_beside_a_running_winner_raises():
    def zombie(handle):
        update("token = token + 1")
        return "zombie"

    with pytest.raises(IdempotencyInProgress) as raised:
        run_once("a", work=zombie, mode="lease")
    assert raised.value.retry_after == 5


def _hold(channel, mode):
    def hold(handle=None):
        channel.send("running")
        channel.receive()
        return work()

    return run_once("a", work=hold, mode=mode)


@pytest.mark.processes
@MODES
def test_running_work_raises_in_progress(mode):
    with process(_hold, mode) as other:
        other.receive()
        with pytest.raises(IdempotencyInProgress) as raised:
            run_once("a", work=work, mode=mode)
        assert raised.value.retry_after >= 1
        with pytest.raises(IdempotencyInProgress):
            run_once("a", work=work, mode=mode, wait=0.05)
        other.send("go on")
        assert other.receive()["value"] == 1
    assert run_once("a", work=work, mode=mode)["value"] == 1


def _wait(channel, mode):
    return run_once("a", work=work, mode=mode, wait=30)


@pytest.mark.processes
def test_waiter_gets_the_result(observer):
    with process(_hold, "atomic") as other:
        other.receive()
        with process(_wait, "atomic") as waiter:
            observe.until_blocked(observer)
            other.send("go on")
            assert waiter.receive() == other.receive()
    assert effects() == 1


@pytest.mark.parametrize("mode", ["atomic", "lease"])
def test_work_that_runs_later_is_refused(mode):
    """Its effects would come after the record."""

    async def later(*_):
        add_one()

    with pytest.raises(TypeError, match="later"):
        run_once("a", work=later, mode=mode)
    assert not IdempotencyKey.objects.exists()
