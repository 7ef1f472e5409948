"""Ciphers: everything stored for a project, key rotation, and failing ciphers."""

import base64
import json
import logging
import pickle

import pytest
from asgiref.sync import async_to_sync
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection, transaction
from django.http import HttpResponse, JsonResponse

from django_dblock import (
    DamagedAnswer,
    IdempotencyKey,
    UnsafeIsolation,
    arun_once,
    resolve_idempotency_key,
    run_once,
)
from tests.helpers.ciphers import Turned
from tests.idempotency.leasing import (
    die,
    effect,
    effects,
    expire,
    leased,
    post,
    row,
    unable_to_give_up,
)

pytestmark = pytest.mark.django_db(transaction=True)

REFUSE = {"on_abandoned": "refuse"}


def goes_on(request):
    """What a later run does: it finds the step, or makes it anew, and says which."""
    found = request.idempotency.run_step("charge", lambda: {"by": "me"})
    return JsonResponse(found)


VIEW = leased(goes_on)
FOUND = {"by": "the dead"}


def fernet():
    return Fernet(Fernet.generate_key())


class Broken:
    """A cipher whose keys can't be had just now."""

    def encrypt(self, data):
        raise ConnectionError("no keys")

    decrypt = encrypt


def test_step_is_encrypted_under_its_own_name(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = Turned()
    die("charge")
    assert list(row().steps) == ["charge"]
    assert list(row().steps["charge"]) == ["encrypted"]
    assert base64.b64decode(row().steps["charge"]["encrypted"]) == (
        b"~" + b'{"result": {"by": "the dead"}}'[::-1]
    )
    assert json.loads(post(VIEW).content) == FOUND


@pytest.mark.parametrize("result", [None, {"a": [1, {"b": "ü"}]}, "\\u0000", 1.5, 10**30, "\u2028"])
def test_step_result_is_decrypted_unchanged(result, settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()

    def work(request):
        assert request.idempotency.run_step("charge", lambda: result) == result
        with request.idempotency.step("charge") as step:
            assert step.done
        assert step.result == result
        raise RuntimeError

    def later(request):
        return JsonResponse(request.idempotency.run_step("charge", lambda: "again"), safe=False)

    with pytest.raises(RuntimeError):
        post(leased(work))
    assert json.loads(post(leased(later)).content) == result


@pytest.mark.parametrize("result", ["a\0b", {"\0": 1}, "\ud800", float("nan"), object()])
def test_unstorable_step_result_is_refused_with_a_cipher(result, settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()
    with pytest.raises(ValueError, match="The result of step 'charge'"):
        post(leased(lambda request: request.idempotency.run_step("charge", lambda: result)))
    assert row().steps == {}
    assert row().locked_until is None


class TestKeys:
    def test_plain_step_is_read_with_a_cipher(self, settings):
        die("charge")
        settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()
        assert json.loads(post(VIEW).content) == FOUND

    def test_plain_and_encrypted_steps_coexist(self, settings):
        die("charge")

        def dies_again(request):
            request.idempotency.run_step("mail", lambda: "sent")
            raise KeyboardInterrupt

        settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()
        with pytest.raises(KeyboardInterrupt):
            post(leased(dies_again))
        assert [list(one) for _, one in sorted(row().steps.items())] == [["result"], ["encrypted"]]

        def work(request):
            step = request.idempotency.run_step
            return JsonResponse([step("charge", list), step("mail", list)], safe=False)

        assert json.loads(post(leased(work)).content) == [{"by": "the dead"}, "sent"]

    def test_old_key_reads_during_rotation(self, settings):
        old, new = fernet(), fernet()
        settings.DBLOCK_IDEMPOTENCY_CIPHER = MultiFernet([old])
        die("charge")
        settings.DBLOCK_IDEMPOTENCY_CIPHER = MultiFernet([new, old])
        assert json.loads(post(VIEW).content) == FOUND

    def test_removed_cipher_is_an_error_and_runs_nothing(self, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = cipher = fernet()
        die("charge")
        settings.DBLOCK_IDEMPOTENCY_CIPHER = None
        before = IdempotencyKey.objects.values().get()
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured, match="DBLOCK_IDEMPOTENCY_CIPHER is not set"):
                post(leased(effect))
        assert IdempotencyKey.objects.values().get() == before
        settings.DBLOCK_IDEMPOTENCY_CIPHER = cipher
        assert json.loads(post(VIEW).content) == FOUND


def lose_the_key(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()


def tamper(settings):
    """Another byte in the middle of it."""
    kept = row()
    if kept.completed_at:
        kept.body = tampered(bytes(kept.body))
    else:
        secret = tampered(base64.b64decode(kept.steps["charge"]["encrypted"]))
        kept.steps = {"charge": {"encrypted": base64.b64encode(secret).decode()}}
    kept.save()


def tampered(secret):
    return secret[:40] + (b"B" if secret[40:41] == b"A" else b"A") + secret[41:]


def break_it(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = Broken()


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [(lose_the_key, InvalidToken), (tamper, InvalidToken), (break_it, ConnectionError)],
)
class TestUnreadable:
    def refused(self, again, spoil, cause, settings):
        """An error that names the request and what to do; and nothing is run, or touched."""
        spoil(settings)
        before, ran = IdempotencyKey.objects.values().get(), effects()
        for _ in range(2):
            with pytest.raises(DamagedAnswer) as caught:
                again()
        assert IdempotencyKey.objects.values().get() == before
        assert effects() == ran
        error = caught.value
        assert type(error.__cause__.__cause__) is cause
        assert (error.code, error.using) == ("damaged", "default")
        assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
        said = str(error)
        assert f"idempotency key {error.key} of {error.scope} on database 'default'" in said
        assert f"row {before['id']} of django_dblock_idempotencykey" in said
        assert f"DBLOCK_IDEMPOTENCY_CIPHER (it raised {cause.__name__})" in said
        assert "give the cipher the old key too" in said
        assert "the request is not run again" in said
        return said

    def test_unreadable_step_is_an_error(self, spoil, cause, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()
        die("charge")
        said = self.refused(lambda: post(leased(effect)), spoil, cause, settings)
        assert said.startswith("The stored result of step 'charge' of idempotency key k")

    def test_unreadable_response_is_an_error(self, spoil, cause, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()
        view = leased(effect)
        post(view)
        said = self.refused(lambda: post(view), spoil, cause, settings)
        assert said.startswith("The stored answer of idempotency key k")

    def test_unreadable_result_is_an_error(self, spoil, cause, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()
        run_once("invoice", work=lambda: 17)
        again = lambda: run_once("invoice", work=effect)  # noqa: E731
        self.refused(again, spoil, cause, settings)

    def test_unreadable_request_can_be_resolved(self, spoil, cause, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = cipher = fernet()
        die("charge")
        spoil(settings)
        settings.DBLOCK_IDEMPOTENCY_CIPHER = cipher
        resolve_idempotency_key(row().pk, outcome="done", status_code=201, body=b"{}")
        assert post(leased(effect)).content == b"{}"


def savepoints():
    """The package's savepoints that are open in the transaction; they are ended."""
    found = []
    with connection.cursor() as cursor:
        for name in (f"dblock_{depth}" for depth in range(5)):
            cursor.execute("SAVEPOINT probe")
            try:
                cursor.execute(f"RELEASE SAVEPOINT {name}")
                found.append(name)
            except DatabaseError:
                cursor.execute("ROLLBACK TO SAVEPOINT probe; RELEASE SAVEPOINT probe")
    return found


class TestInTheCallersTransaction:
    """What can't be read leaves the caller's transaction as it was, without a savepoint of ours."""

    @pytest.fixture(autouse=True)
    def unreadable(self, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = fernet()
        run_once("invoice", work=lambda: 17)
        lose_the_key(settings)

    @staticmethod
    def refused(error=DamagedAnswer):
        with pytest.raises(error):
            run_once("invoice", work=effect)
        assert savepoints() == []

    def test_refusal_leaves_the_transaction_usable(self):
        before = effects()
        with transaction.atomic():
            effect()
            for _ in range(2):
                self.refused()
            with transaction.atomic():
                self.refused()
            effect()
        assert effects() == before + 2

    def test_removed_cipher_leaves_no_savepoint(self, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = None
        with transaction.atomic():
            self.refused(ImproperlyConfigured)

    def test_refusal_without_autocommit_leaves_no_savepoint(self):
        connection.set_autocommit(False)
        try:
            self.refused()
        finally:
            connection.rollback()
            connection.set_autocommit(True)

    def test_refused_lock_leaves_no_savepoint(self):
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self.refused(UnsafeIsolation)

    def test_aborted_transaction_stays_aborted(self):
        with pytest.raises(transaction.TransactionManagementError), transaction.atomic():
            with pytest.raises(DatabaseError), connection.cursor() as cursor:
                cursor.execute("SELECT 1/0")
            with pytest.raises(DatabaseError):
                run_once("invoice", work=effect)
            effect()


@pytest.mark.parametrize(
    "record",
    [
        7,
        [],
        {},
        {"other": 1},
        {"result": 1, "encrypted": ""},
        {"encrypted": 7},
        {"encrypted": "no base64!"},
        {"encrypted": base64.b64encode(b"~nosj").decode()},
        {"encrypted": base64.b64encode(b"~" + b'{"encrypted": ""}'[::-1]).decode()},
        {"encrypted": base64.b64encode(b"~\xff").decode()},
    ],
)
def test_malformed_step_is_an_error(record, settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = Turned()
    die("charge")
    IdempotencyKey.objects.update(steps={"charge": record})
    with pytest.raises(DamagedAnswer, match=r"step 'charge' .* was changed by other code \("):
        post(leased(effect))
    assert effects() == 0


class TestFailingEncryption:
    """Its own error goes on; nothing is kept, least of all as it is."""

    @pytest.fixture(autouse=True)
    def cipher(self, settings):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = Broken()

    def test_unencryptable_step_is_not_recorded(self):
        with pytest.raises(ConnectionError, match="no keys"):
            post(VIEW)
        assert row().steps == {}
        assert row().locked_until is None

    def test_unencryptable_step_is_in_doubt_under_refuse(self):
        with pytest.raises(ConnectionError, match="no keys"):
            post(leased(goes_on, **REFUSE))
        assert json.loads(post(leased(goes_on, **REFUSE)).content)["code"] == "abandoned"
        assert row().steps == {}

    @pytest.mark.parametrize("mode", ["atomic", "lease"])
    def test_unencryptable_result_rolls_back(self, mode, caplog):
        def work(*handle):
            return "private"

        with caplog.at_level(logging.DEBUG), pytest.raises(ConnectionError, match="no keys"):
            run_once("invoice", work=work, mode=mode)
        assert not IdempotencyKey.objects.exists()
        assert "private" not in caplog.text

    def test_unencryptable_response_rolls_back(self):
        with pytest.raises(ConnectionError, match="no keys"):
            post(leased(lambda request: HttpResponse("private")))
        assert not IdempotencyKey.objects.exists()


def test_cipher_adds_no_statement(statements, settings):
    """Claim, step, answer; and a takeover, which reads a step, likewise."""
    connection.ensure_connection()
    counts = []
    for cipher in (None, fernet()):
        settings.DBLOCK_IDEMPOTENCY_CIPHER = cipher
        for prepare in (lambda: None, lambda: die("charge")):
            prepare()
            with statements() as sent:
                post(VIEW)
            counts.append(len(sent))
            IdempotencyKey.objects.all().delete()
    assert counts[:2] == counts[2:]


def test_result_and_steps_of_run_once_are_encrypted(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = Turned()

    def dies(handle):
        handle.run_step("charge", lambda: "ch_1")
        raise KeyboardInterrupt

    def work(handle):
        return [handle.run_step("charge", lambda: "ch_2")]

    with unable_to_give_up(), pytest.raises(KeyboardInterrupt):
        run_once("invoice", work=dies, mode="lease")
    expire()
    for _ in range(2):
        assert run_once("invoice", work=work, mode="lease") == ["ch_1"]
    assert (row().body_kind, bytes(row().body)) == ("encrypted", b"~" + b'["ch_1"]'[::-1])


def test_async_result_is_encrypted(settings):
    settings.DBLOCK_IDEMPOTENCY_CIPHER = Turned()

    async def charge():
        return "ch_1"

    async def work(handle):
        return await handle.arun_step("charge", charge)

    for _ in range(2):
        assert async_to_sync(arun_once)("invoice", work=work) == "ch_1"
    assert (list(row().steps["charge"]), row().body_kind) == (["encrypted"], "encrypted")
