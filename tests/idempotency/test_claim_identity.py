"""A claim is more than its row's number and token: a failover or a restore repeats both."""

import pytest
from django.db import connection
from django.http import HttpResponse
from django.test import RequestFactory

from django_dblock import IdempotencyKey, idempotent, resolve_idempotency_key, run_once
from django_dblock.exceptions import IdempotencyError, IdempotencyLeaseLost
from tests.app.idempotent_views import add_one
from tests.idempotency import rows
from tests.idempotency.leasing import effects

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss, pytest.mark.server]

IN_2017 = 1_500_000_000_000  # milliseconds since 1970


def forget_claim():
    """Lose the newest row and its number, as an asynchronous failover or pg_restore does."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_dblock_idempotencykey RETURNING id")
        [number] = cursor.fetchone()
        cursor.execute("SELECT setval('django_dblock_idempotencykey_id_seq', %s, false)", [number])


def by_client(request):
    return request.headers["X-Client"]


def charging(during):
    """A view in lease mode that runs ``during[client]``, and responds with the client's card."""

    @idempotent(scope=by_client, mode="lease")
    def charge(request):
        client = by_client(request)
        during.pop(client, lambda request: None)(request)
        return HttpResponse(f"card of {client}")

    return charge


def post(view, client):
    headers = {"Idempotency-Key": "k", "X-Client": client}
    return view(RequestFactory().post("/", headers=headers))


def lose_to_bob(request):
    """Lose alice's claim, and give its number and token to a claim of bob."""
    lost = IdempotencyKey.objects.get()
    forget_claim()
    rows.unfinished("k", "scope:bob", pk=lost.pk, token=lost.token)


def test_bob_is_never_given_the_response_of_alice():
    """The sequence repeats the number, as an outside measurement has seen it in a real failover."""
    numbers = []

    def alice(request):
        numbers.append(IdempotencyKey.objects.get().pk)
        forget_claim()
        post(charge, "bob")

    def bob(request):
        numbers.append(IdempotencyKey.objects.get().pk)
        with pytest.raises(IdempotencyLeaseLost):
            claims[0].record("charge", "card of alice")

    claims = []
    charge = charging(
        {"alice": lambda request: (claims.append(request.idempotency.lease), alice(request)),
         "bob": bob}
    )  # fmt: skip
    assert post(charge, "alice").status_code == 409
    assert numbers[0] == numbers[1]
    assert post(charge, "bob").content == b"card of bob"


ACTS = {
    "step": lambda handle: handle.run_step("charge", lambda: "of alice"),
    "complete": lambda handle: handle.complete(HttpResponse("card of alice")),
    "guard": lambda handle: handle.guard().__enter__(),
}


@pytest.mark.parametrize("act", ACTS)
def test_lost_claim_writes_nothing_into_another_row(act):
    def alice(request):
        lose_to_bob(request)
        with pytest.raises(IdempotencyLeaseLost):
            ACTS[act](request.idempotency)
        add_one()

    post(charging({"alice": alice}), "alice")
    row = IdempotencyKey.objects.get()
    assert (row.scope, row.steps, row.completed_at) == ("scope:bob", {}, None)
    assert effects() == 1


def test_response_of_a_lost_claim_is_stored_nowhere():
    assert post(charging({"alice": lose_to_bob}), "alice").status_code == 409
    row = IdempotencyKey.objects.get()
    assert (row.scope, row.completed_at, row.body) == ("scope:bob", None, None)


def test_failed_run_frees_no_other_claim():
    def alice(request):
        lose_to_bob(request)
        raise LookupError

    with pytest.raises(LookupError):
        post(charging({"alice": alice}), "alice")
    assert IdempotencyKey.objects.get().locked_until is not None


def test_lost_claim_does_not_return_anothers_response():
    """Alice's view asks whether its response is stored; what is stored is bob's."""

    def alice(request):
        lose_to_bob(request)
        IdempotencyKey.objects.update(
            status_code=200, body=b"card of bob", completed_at="2020-01-01T00:00Z",
            locked_until=None,
        )  # fmt: skip

    response = post(charging({"alice": alice}), "alice")
    assert response.status_code == 409


def test_token_of_a_claim_is_never_behind_the_clock():
    """A row that was lost and made again repeats no token that others were shown."""
    tokens = []
    for _ in range(2):
        run_once("a", work=lambda handle: tokens.append(handle.token), mode="lease")
        IdempotencyKey.objects.all().delete()
    assert IN_2017 < tokens[0] < tokens[1]


def test_token_of_a_takeover_exceeds_one_ahead_of_the_clock():
    rows.abandoned("k", "scope:alice", token=2**60, fingerprint_version=0)
    tokens = []
    charge = charging({"alice": lambda request: tokens.append(request.idempotency.token)})
    assert post(charge, "alice").status_code == 200
    assert tokens == [2**60 + 1]


@pytest.mark.parametrize("outcome", ["retry", "done"])
def test_resolving_touches_no_row_that_took_the_number(monkeypatch, outcome):
    """The row that an operator has looked at is lost, and another request gets its number."""
    from django_dblock.idempotency import operations

    seen = rows.abandoned("k", "scope:alice", token=IN_2017, claim=rows.CLAIM)
    look = operations._resolvable

    def then_lost(pk, alias):
        found = look(pk, alias)
        forget_claim()
        rows.abandoned("k", "scope:bob", token=IN_2017, pk=seen.pk, claim=rows.OTHER_CLAIM)
        return found

    monkeypatch.setattr(operations, "_resolvable", then_lost)
    more = {"status_code": 200} if outcome == "done" else {}
    with pytest.raises(IdempotencyError, match="taken over"):
        resolve_idempotency_key(seen.pk, outcome=outcome, **more)
    row = IdempotencyKey.objects.get()
    assert (row.token, row.completed_at) == (IN_2017, None)


def test_resolving_fences_the_claim_off():
    """Its random identity goes too, so not even a repeated token brings the run back."""
    row = rows.abandoned("k", "scope:alice", token=2, claim=rows.CLAIM)
    resolve_idempotency_key(row.pk, outcome="retry")
    row.refresh_from_db()
    assert row.claim is None
    assert row.token > IN_2017


def test_claim_of_the_release_before_can_be_taken_over():
    """It has no random identity: the column was added while its run was at work."""
    rows.abandoned("k", "scope:alice", token=1, claim=None, fingerprint_version=0)
    assert post(charging({}), "alice").status_code == 200


def test_negative_twin_number_and_token_find_the_row_of_bob():
    """What the statements compared before."""
    row = rows.unfinished("k", "scope:alice", token=1)
    forget_claim()
    rows.unfinished("k", "scope:bob", token=1, pk=row.pk)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_dblock_idempotencykey SET body = 'card of alice'"
            " WHERE id = %s AND token = 1 RETURNING scope",
            [row.pk],
        )
        assert cursor.fetchone() == ("scope:bob",)
