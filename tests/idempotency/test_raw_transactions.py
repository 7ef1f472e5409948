"""A view that ends its transaction by raw SQL, or a write without the lock: nothing is stored."""

import pytest
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse
from django.utils import timezone

from django_dblock import IdempotencyKey, idempotent, run_once
from tests.app.idempotent_views import add_one, client
from tests.app.models import Counter
from tests.idempotency import calling
from tests.idempotency import rows as made
from tests.idempotency.calling import effects, rows

pytestmark = pytest.mark.django_db(transaction=True)


def send(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)


ENDS = {
    "COMMIT": lambda: send("COMMIT"),
    "ROLLBACK": lambda: send("ROLLBACK"),
    "COMMIT AND CHAIN": lambda: send("COMMIT AND CHAIN"),
    "ROLLBACK AND CHAIN": lambda: send("ROLLBACK AND CHAIN"),
    "ROLLBACK; BEGIN": lambda: (send("ROLLBACK"), send("BEGIN")),
    "connection.commit()": lambda: connection.connection.commit() or None,
    "connection.rollback()": lambda: connection.connection.rollback() or None,
}


@pytest.mark.parametrize("status", [201, 400])
@pytest.mark.parametrize("end", ENDS)
def test_view_that_ends_the_transaction_is_an_error(ask, end, status):
    """Else a repeat would be told of a payment that was rolled back by the view's own SQL."""

    @idempotent(scope=client)
    def view(request, how):
        add_one()
        ENDS[end]()
        return HttpResponse(status=status)

    for _ in range(2):
        with pytest.raises(TransactionManagementError, match="COMMIT or ROLLBACK without Django"):
            ask(view)
    assert rows() == 0
    assert not connection.in_atomic_block
    assert connection.get_autocommit()


def test_run_once_that_ends_the_transaction_is_an_error():
    def work():
        add_one()
        send("ROLLBACK")
        return 1

    with pytest.raises(TransactionManagementError, match="without Django"):
        run_once("a", work=work)
    assert rows() == 0


def test_other_errors_of_the_record_propagate(ask):
    """Only a savepoint that is gone is put in other words."""

    @idempotent(scope=client)
    def view(request, how):
        send("ALTER TABLE django_dblock_idempotencykey RENAME TO elsewhere")
        return HttpResponse(status=201)

    with pytest.raises(Exception, match="does not exist") as caught:
        ask(view)
    assert not isinstance(caught.value, TransactionManagementError)
    assert rows() == 0


SAVEPOINT = getattr(transaction, "savepoint_create", None) or transaction.savepoint  # since 6.1


@pytest.mark.parametrize("end", ["savepoint", "SAVEPOINT", "rolled back to"])
def test_view_may_use_savepoints(ask, end):
    @idempotent(scope=client)
    def view(request, how):
        add_one()
        if end == "SAVEPOINT":
            send("SAVEPOINT mine")
        else:
            savepoint = SAVEPOINT()
            add_one()
            if end == "rolled back to":
                transaction.savepoint_rollback(savepoint)
        return HttpResponse(status=201)

    assert ask(view).status_code == 201
    assert ask(view).headers["Idempotent-Replayed"] == "true"
    assert effects() == (2 if end == "savepoint" else 1)


def test_row_inserted_without_the_lock_is_not_overwritten(ask):
    @idempotent(scope=client)
    def view(request, how):
        add_one()
        made.make("k", "scope:client")
        return HttpResponse(status=201)

    with pytest.raises(TransactionManagementError, match="without its lock"):
        ask(view)
    assert (effects(), rows()) == (0, 0)


@pytest.mark.parametrize("now", ["answered", "claimed"])
def test_row_reclaimed_without_the_lock_is_not_overwritten(ask, now):
    """It was over when it was read, and is somebody's when it is written."""
    over = timezone.now() - made.HOUR
    made.make("k", "scope:client", expires_at=over)
    taken = {
        "answered": {"expires_at": timezone.now() + made.HOUR},
        "claimed": {"completed_at": None, "locked_until": timezone.now() + made.HOUR},
    }[now]

    @idempotent(scope=client)
    def view(request, how):
        add_one()
        IdempotencyKey.objects.update(**taken)
        return HttpResponse(status=201)

    with pytest.raises(TransactionManagementError, match="without its lock"):
        ask(view)
    assert effects() == 0
    assert IdempotencyKey.objects.get().expires_at == over


def begin():
    send("BEGIN")
    Counter.objects.create(name="effects", value=1)


def leave_autocommit_off():
    transaction.set_autocommit(False)
    add_one()


@pytest.mark.parametrize("leave", [begin, leave_autocommit_off])
def test_lease_mode_finds_a_transaction_left_open(leave):
    """Else the client is told of a success that goes with the connection."""

    @idempotent(scope=client, mode="lease")
    def view(request):
        leave()
        return HttpResponse(status=201)

    try:
        with pytest.raises(TransactionManagementError, match="left a transaction open"):
            view(calling.request())
    finally:
        connection.close()  # as Django does at the end of the request
    assert effects() == 0
    assert IdempotencyKey.objects.get().completed_at is None


def test_lease_mode_view_may_close_its_connection():
    @idempotent(scope=client, mode="lease")
    def view(request):
        add_one()
        connection.close()
        return HttpResponse(status=201)

    assert view(calling.request()).status_code == 201
    assert view(calling.request()).headers["Idempotent-Replayed"] == "true"
    assert effects() == 1


def test_lease_mode_view_may_complete_between_begin_and_commit():
    @idempotent(scope=client, mode="lease")
    def view(request):
        begin()
        request.idempotency.complete(HttpResponse(b"first", status=201))
        send("COMMIT")
        return HttpResponse(b"first", status=201)

    assert view(calling.request()).status_code == 201
    assert view(calling.request()).headers["Idempotent-Replayed"] == "true"
    assert effects() == 1


def test_lease_mode_response_rolled_back_by_raw_sql_is_an_error():
    """Else the client is told of a payment that was rolled back."""

    @idempotent(scope=client, mode="lease")
    def view(request):
        begin()
        response = request.idempotency.complete(HttpResponse(status=201))
        send("ROLLBACK")
        return response

    for _ in range(2):
        with pytest.raises(TransactionManagementError, match="is gone"):
            view(calling.request())
    assert (effects(), rows()) == (0, 0)


def test_lease_mode_step_rolled_back_by_raw_sql_is_in_doubt():
    @idempotent(scope=client, mode="lease", on_abandoned="refuse")
    def view(request):
        begin()
        request.idempotency.run_step("charge", lambda: 1)
        send("ROLLBACK")
        assert not request.idempotency.step("charge").done
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        view(calling.request())
    assert calling.problem(view(calling.request())) == (409, "abandoned")
