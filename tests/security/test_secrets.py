"""Secrets: bodies at rest, keys in logs and labels; and who may read what."""

import base64
import logging
import re

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse, JsonResponse
from django.test import Client

from django_dblock import (
    FencedLock,
    IdempotencyKey,
    LockTimeout,
    advisory_lock,
    arun_once,
    idempotent,
    resolve_idempotency_key,
    run_once,
    signals,
)
from tests.app import idempotent_views as views
from tests.helpers.ciphers import Turned
from tests.idempotency import aleasing, calling, leasing
from tests.idempotency.rows import abandoned, make
from tests.security.planted import CANARY

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.loss]

LIST = "/admin/django_dblock/idempotencykey/"


@pytest.fixture
def answer(monkeypatch):
    """A view's answer holds the canary."""

    def told(request, value):
        return views.HttpResponse(CANARY.encode(), status=201)

    monkeypatch.setitem(views.ANSWERS, "canary", told)


def dump():
    """Every byte of our tables, as ``pg_dump`` writes it."""
    from embedded_postgres import binaries

    from tests.conftest import conninfo
    from tests.helpers import servers

    program = binaries(servers.version()) / "pg_dump"
    found = servers.subprocess.run(
        [str(program), "--data-only", "--table=django_dblock_*", "--dbname", conninfo()],
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout


def readable(text):
    """Whether the canary is there, as it is, in the hexadecimal digits of bytea, or in base64."""
    encoded = [base64.b64decode(one) for one in re.findall(r"(?:[A-Za-z0-9+/]{4})+", text)]
    return (
        CANARY in text
        or CANARY.encode().hex() in text
        or any(CANARY.encode() in one for one in encoded)
    )


def test_negative_twin_search_finds_every_encoding():
    """The negative twin of all that is not readable below."""
    raw = f'{{"result": "{CANARY}"}}'.encode()
    for text in (raw.decode(), raw.hex(), base64.b64encode(raw).decode()):
        assert readable(f"1\t{text}\tx")
    assert not readable(base64.b64encode(raw[::-1]).decode())


def step():
    """A view records it, and its run is dead."""

    def work(request):
        with request.idempotency.step("charge") as step:
            step.result = {"card": CANARY}
        raise leasing.Died

    with leasing.unable_to_give_up(), pytest.raises(leasing.Died):
        leasing.post(leasing.leased(work))


def step_of_an_answered_request():
    def work(request):
        request.idempotency.run_step("charge", lambda: [CANARY])
        return HttpResponse()

    leasing.post(leasing.leased(work))


def step_of_an_async_view():
    async def work(request):
        async def call():
            return CANARY

        return JsonResponse(await request.idempotency.arun_step("charge", call), safe=False)

    async_to_sync(aleasing.leased(work))(aleasing.request())


def answer_in_lease_mode():
    leasing.post(leasing.leased(lambda request: HttpResponse(CANARY)))


def answer_that_a_view_completes():
    def work(request):
        return request.idempotency.complete(HttpResponse(CANARY))

    leasing.post(leasing.leased(work))


def answer_of_a_person():
    row = abandoned("left-key")
    resolve_idempotency_key(row.pk, outcome="done", status_code=200, body=CANARY.encode())


def work():
    run_once("invoice", work=lambda: {"name": CANARY})


def work_in_lease_mode():
    def work(handle):
        return handle.run_step("charge", lambda: CANARY)

    run_once("invoice", work=work, mode="lease")


def async_work():
    async def work(handle):
        return CANARY

    async_to_sync(arun_once)("invoice", work=work)


WAYS = (
    step,
    step_of_an_answered_request,
    step_of_an_async_view,
    answer_in_lease_mode,
    answer_that_a_view_completes,
    answer_of_a_person,
    work,
    work_in_lease_mode,
    async_work,
)
"""Each way in which a project gives us something to keep."""


class TestAtRest:
    def test_negative_twin_plain_body_is_in_the_dump(self, answer):
        """The negative twin: the dump is looked through in the right way."""
        calling.ask(views.default, "canary")
        assert readable(dump())

    def test_dropped_body_is_not_in_the_dump(self, answer):
        view = idempotent(scope=views.client, store_body=False)(views.answers)
        assert CANARY.encode() in calling.ask(view, "canary").content
        assert calling.ask(view, "canary").status_code == 204
        found = dump()
        assert "dropped" in found
        assert not readable(found.replace("/x/canary/", ""))

    def test_encrypted_body_is_not_readable(self, answer, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = Turned()
        calling.ask(views.default, "canary")
        assert CANARY.encode() in calling.ask(views.default, "canary").content
        found = dump()
        assert "encrypted" in found
        assert not readable(found)

    def test_result_of_run_once_is_encrypted(self, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = Turned()
        assert run_once("invoice", work=lambda: CANARY) == CANARY
        assert not readable(dump())

    @pytest.mark.parametrize("cipher", [None, Turned()], ids=["without", "with a cipher"])
    @pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
    def test_only_a_cipher_hides_stored_columns(self, way, cipher, settings):
        """All columns of all our tables; without a cipher it is there: what is asked for is."""
        settings.DBLOCK_IDEMPOTENCY_CIPHER = cipher
        way()
        found = dump()
        assert found.count("COPY public.django_dblock_") == 4
        assert IdempotencyKey.objects.exists()
        assert readable(found) == (cipher is None)

    def test_request_is_stored_as_a_digest(self):
        calling.ask(views.default, body=CANARY.encode())
        assert not readable(dump())

    def test_admin_shows_neither_bodies_nor_step_results(self, admin_client):
        rows = [
            make("done-key", body=CANARY.encode()),
            abandoned("left-key", steps={"charge": {"result": CANARY}}),
        ]
        pages = [LIST, f"{LIST}?q=done-key", *(f"{LIST}{row.pk}/change/" for row in rows)]
        for address in pages:
            page = admin_client.get(address)
            assert page.status_code == 200
            assert not readable(page.content.decode())
        for row in rows:  # what was done to it is nothing that is shown, either
            page = admin_client.get(f"{LIST}{row.pk}/history/", follow=True)
            assert not readable(page.content.decode())


KEY = f"k{CANARY}-and-more"


def told_about(view, caplog):
    """All that listeners, logs and errors are told about a request with the secret key."""
    heard = []

    def listen(sender, **facts):
        heard.append(repr((sender, facts)))

    listeners = [
        signals.idempotent_executed,
        signals.idempotent_replayed,
        signals.idempotent_refused,
        signals.lock_acquired,
        signals.lock_released,
    ]
    for signal in listeners:
        signal.connect(listen)
    try:
        with caplog.at_level(logging.DEBUG):
            answers = [calling.ask(view, key=KEY) for _ in range(2)]
            answers.append(calling.ask(view, key=KEY, body=b"[]"))
            with connection.cursor() as cursor:
                cursor.execute("SELECT string_agg(application_name, ' ') FROM pg_stat_activity")
                heard.append(cursor.fetchone()[0])
    finally:
        for signal in listeners:
            signal.disconnect(listen)
    own = [record.getMessage() for record in caplog.records if "django_dblock" in record.name]
    return [*heard, *own, *(one.serialize().decode() for one in answers)]


class TestKeys:
    def test_idempotency_key_is_never_logged(self, caplog):
        told = told_about(views.default, caplog)
        assert len(told) > 5
        assert not [text for text in told if CANARY in text]

    def test_idempotency_key_is_hidden_from_other_sessions(self, observer):
        seen = []

        @idempotent(scope=views.client)
        def looking(request, how):
            seen.extend(observer.execute("SELECT application_name FROM pg_stat_activity"))
            return views.answers(request, how)

        calling.ask(looking, key=KEY)
        assert any("idempotency" in name for (name,) in seen)
        assert not [name for (name,) in seen if CANARY in name]

    @pytest.mark.parametrize(("labels", "shown"), [("full", 1), ("first", 0), ("off", 0)])
    def test_label_shows_what_dblock_labels_allows(self, labels, shown, settings, observer):
        settings.DBLOCK_LABELS = labels
        look = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
        with advisory_lock("mail", CANARY):
            assert observer.execute(look, [f"%{CANARY}%"]).fetchone() == (shown,)

    def test_busy_key_is_in_the_error_but_not_logged(self, rival, caplog):
        """The error has the key, for the project to decide; nothing is logged."""
        with advisory_lock("mail", CANARY, timeout=0) as held:
            pass
        rival.execute("SELECT pg_advisory_lock(%s)", [held.key_id])
        with caplog.at_level(logging.DEBUG), pytest.raises(LockTimeout, match=CANARY):
            with advisory_lock("mail", CANARY, timeout=0):
                pytest.fail("the block ran")
        rival.execute("SELECT pg_advisory_unlock_all()")
        own = [record for record in caplog.records if "django_dblock" in record.name]
        assert own == []


ROLES = {
    "a stranger": (None, 302),
    "a customer": ({}, 302),
    "staff": ({"is_staff": True}, 403),
    "a viewer": ({"is_staff": True, "may": ("view_idempotencykey",)}, 200),
    "an editor": (
        {
            "is_staff": True,
            "may": tuple(f"{do}_idempotencykey" for do in ("view", "add", "change")),
        },
        200,
    ),
    "a superuser": ({"is_staff": True, "is_superuser": True}, 200),
}


@pytest.fixture(params=ROLES)
def role(request):
    """A browser of each role, with CSRF checked; and what reading the admin's list gives it."""
    facts, status = ROLES[request.param]
    client = Client(enforce_csrf_checks=True)
    if facts is not None:
        facts = dict(facts)
        may = facts.pop("may", ())
        user = User.objects.create(username="somebody", **facts)
        user.user_permissions.set(Permission.objects.filter(codename__in=may))
        client.force_login(user)
    return client, status


def test_roles_read_what_they_may_and_never_write(role):
    """Role by role: the admin's list, its pages, and each way to change or remove a row."""
    client, status = role
    row = abandoned("left-key")
    before = IdempotencyKey.objects.values().get()
    assert client.get(LIST).status_code == status
    assert client.get(f"{LIST}{row.pk}/change/").status_code == status
    for address, data in (
        (f"{LIST}add/", {"key": "made"}),
        (f"{LIST}{row.pk}/change/", {"key": "changed"}),
        (f"{LIST}{row.pk}/delete/", {"post": "yes"}),
        (LIST, {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"}),
    ):
        for csrf in (True, False):
            client.handler.enforce_csrf_checks = csrf
            assert client.post(address, data).status_code in (200, 302, 403)
    assert IdempotencyKey.objects.values().get() == before
    assert not FencedLock.objects.exists()
