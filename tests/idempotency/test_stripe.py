"""Stripe's own client, pointed at a view of ours: its retries have one effect."""

import socket
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import stripe
from django.core.wsgi import get_wsgi_application
from django.db import connections

from django_dblock import IdempotencyKey
from tests.app import idempotent_matrix as matrix
from tests.app.models import Counter

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.app.idempotent_matrix"),
]


class Handler(WSGIRequestHandler):
    def get_environ(self):
        return {**super().get_environ(), "test.connection": self.connection}

    def log_message(self, *args): ...


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False  # closing the server waits for its threads

    def process_request_thread(self, *args):
        try:
            super().process_request_thread(*args)
        finally:
            connections.close_all()


class Site:
    """A site over a line that may break after the work.

    Attributes:
        lose: how many answers get lost on their way.
        answered: the status of each answer, whether or not it arrived.
        on_conflict: called when a 409 goes out.
    """

    def __init__(self):
        self.lose = 0
        self.answered = []
        self.on_conflict = lambda: None
        self._application = get_wsgi_application()

    def __call__(self, environ, start_response):
        def start(status, headers, *more):
            self.answered.append(int(status[:3]))
            if self.answered[-1] == 409:
                self.on_conflict()
            return start_response(status, headers, *more)

        response = self._application(environ, start)
        if self.lose:
            self.lose -= 1
            environ["test.connection"].shutdown(socket.SHUT_RDWR)
        return response


@pytest.fixture
def site():
    return Site()


@pytest.fixture
def stripe_client(site, monkeypatch):
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.05)
    server = make_server("127.0.0.1", 0, site, Server, Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    found = []

    def client(retries=3, key="sk_test_1"):
        found.append(stripe.RequestsClient())
        return stripe.StripeClient(
            key,
            base_addresses={"api": f"http://127.0.0.1:{server.server_port}"},
            max_network_retries=retries,
            http_client=found[-1],
        )

    yield client
    for each in found:
        each.close()
    server.shutdown()
    thread.join()
    server.server_close()


def pay(client, amount=500, **options):
    intents = getattr(client, "v1", client).payment_intents
    return intents.create({"amount": amount, "currency": "eur"}, options)


def replayed(paid):
    return paid.last_response.headers.get("Idempotent-Replayed") == "true"


def effects():
    return sum(Counter.objects.values_list("value", flat=True))


def test_client_retries_a_lost_response(site, stripe_client):
    site.lose = 2
    paid = pay(stripe_client())
    assert (paid.id, paid.amount) == ("pi_1", 500)
    assert replayed(paid), "the client sees that it is not the first answer"
    assert site.answered == [200, 200, 200]
    assert effects() == 1
    assert IdempotencyKey.objects.count() == 1


def test_requests_without_a_loss_are_no_replays(site, stripe_client):
    client = stripe_client()
    first, second = pay(client), pay(client)
    assert not replayed(first)
    assert not replayed(second)
    assert (first.id, second.id) == ("pi_1", "pi_2"), "a new key for a new request"
    assert site.answered == [200, 200]


def test_later_client_run_with_its_key_replays(site, stripe_client):
    site.lose = 1
    with pytest.raises(stripe.APIConnectionError):
        pay(stripe_client(retries=0), idempotency_key="order-1")
    paid = pay(stripe_client(), idempotency_key="order-1")
    assert (paid.id, replayed(paid)) == ("pi_1", True)
    assert effects() == 1


def test_reused_key_for_another_request_is_refused(stripe_client):
    pay(stripe_client(), idempotency_key="order-1")
    with pytest.raises(stripe.StripeError) as caught:
        pay(stripe_client(), amount=700, idempotency_key="order-1")
    assert (caught.value.http_status, caught.value.json_body["code"]) == (422, "key_reused")
    assert effects() == 1


def test_equal_key_of_another_account_is_independent(stripe_client):
    for account in ("sk_test_1", "sk_test_2"):
        assert not replayed(pay(stripe_client(key=account), idempotency_key="order-1"))
    assert effects() == 2


def test_client_error_is_replayed(stripe_client):
    for again in (None, "true"):
        with pytest.raises(stripe.InvalidRequestError, match="negative") as caught:
            pay(stripe_client(), amount=-1, idempotency_key="order-1")
        assert caught.value.headers.get("Idempotent-Replayed") == again


def test_conflict_in_flight_is_retried_by_the_client(site, stripe_client, monkeypatch):
    """409 is what its client waits on; it then gets the answer of the one that was first."""
    running, told = threading.Event(), threading.Event()
    site.on_conflict = told.set

    def until_told():
        running.set()
        assert told.wait(60)

    monkeypatch.setattr(matrix, "DURING", [until_told])
    found = []
    first = threading.Thread(
        target=lambda: found.append(pay(stripe_client(), idempotency_key="order-1"))
    )
    first.start()
    assert running.wait(60)
    second = pay(stripe_client(retries=50), idempotency_key="order-1")
    first.join()
    assert (found[0].id, second.id) == ("pi_1", "pi_1")
    assert (replayed(found[0]), replayed(second)) == (False, True)
    assert 409 in site.answered
    assert effects() == 1
