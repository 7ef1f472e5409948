"""The table "What we answer", row by row: in a transaction of its own, and in an open one."""

import json
import logging

import psycopg
import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import OperationalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import Http404, HttpResponse

from django_dblock import IdempotencyKey, PreconditionFailed, idempotent, run_once, signals
from django_dblock.exceptions import (
    IdempotencyInProgress,
    LockLost,
    LockTimeout,
    UnsupportedDatabase,
)
from tests.app import idempotent_views as views
from tests.app.idempotent_views import add_one, client
from tests.app.models import Counter
from tests.idempotency import calling, pages
from tests.idempotency.calling import effects, is_replay, problem, request, rows

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


LOCK = {"keys": (("a",),), "name": "a", "using": "default"}
DEADLOCK = OperationalError("deadlock detected")
DEADLOCK.__cause__ = psycopg.errors.DeadlockDetected()
TEMPORARY = [
    LockTimeout(**LOCK, timeout=0, waited=0),
    LockLost(**LOCK, token=1, reason="expired"),
    IdempotencyInProgress("of run_once() in the view"),
    PreconditionFailed(instance=User(pk=7), expected=1, actual=2),
    DEADLOCK,
]


def expire():
    assert IdempotencyKey.objects.update(expires_at="2020-01-01T00:00:00Z")


# What is answered before anything is locked


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_pass_through(ask, method):
    for _ in range(2):
        assert ask(views.default, method=method, key=None).status_code == 201
    assert (effects(), rows()) == (2, 0)


def test_methods_are_configurable(ask):
    first = ask(pages.by_put, method="PUT")
    assert is_replay(ask(pages.by_put, method="PUT"), of=first)
    ask(pages.by_put)
    ask(pages.by_put)
    assert (effects(), rows()) == (3, 1)


def test_missing_key_is_400(ask):
    assert problem(ask(views.default, key=None)) == (400, "key_missing")
    assert (effects(), rows()) == (0, 0)


def test_missing_optional_key_runs_unprotected(ask):
    for _ in range(2):
        assert ask(pages.optional, key=None).status_code == 201
    assert (effects(), rows()) == (2, 0)
    first = ask(pages.optional)
    assert is_replay(ask(pages.optional), of=first)


@pytest.mark.parametrize("key", ["", "a" * 256, "a\x07b", "a, b", '"a', '"a", "b"'])
@pytest.mark.parametrize("view", [views.default, pages.optional], ids=["required", "optional"])
def test_invalid_key_is_400(ask, view, key):
    assert problem(ask(view, key=key)) == (400, "key_invalid")
    assert (effects(), rows()) == (0, 0)


def test_quoted_and_bare_are_the_same_key(ask):
    first = ask(views.default, key='"abc"')
    assert is_replay(ask(views.default, key="abc"), of=first)
    assert effects() == 1


def test_strict_accepts_only_quoted_keys(ask):
    assert problem(ask(pages.strict, key="abc")) == (400, "key_invalid")
    assert ask(pages.strict, key='"abc"').status_code == 201


def test_key_can_come_from_a_form_field(rf):
    def send(**fields):
        return pages.by_form(rf.post("/x/", fields), "201")

    assert problem(send()) == (400, "key_missing")
    first = send(once="7")
    assert is_replay(send(once="7"), of=first)
    assert problem(send(once="a, b")) == (400, "key_invalid")
    assert effects() == 1


def test_anonymous_client_without_scope_is_improperly_configured(ask):
    with pytest.raises(ImproperlyConfigured, match="the client is anonymous"):
        ask(views.by_user)
    assert (effects(), rows()) == (0, 0)


# The stack above decides first, also about a replay


def as_user(user, view):
    def called(request, how):
        request.user = user
        return view(request, how)

    return called


def test_anonymous_client_gets_no_replay(ask):
    user = User.objects.create(username="a")
    first = ask(as_user(user, pages.members_only))
    assert is_replay(ask(as_user(user, pages.members_only)), of=first)
    assert ask(as_user(AnonymousUser(), pages.members_only)).status_code == 302
    assert (effects(), rows()) == (1, 1)


def test_client_without_the_permission_gets_no_replay(ask):
    user = User.objects.create(username="a")
    user.user_permissions.add(Permission.objects.get(codename="add_counter"))
    first = ask(as_user(User.objects.get(), pages.permitted_only))
    assert is_replay(ask(as_user(User.objects.get(), pages.permitted_only)), of=first)
    user.user_permissions.clear()
    with pytest.raises(PermissionDenied):
        ask(as_user(User.objects.get(), pages.permitted_only))
    assert (effects(), rows()) == (1, 1)


def test_throttled_request_is_not_recorded(ask, monkeypatch):
    monkeypatch.setattr(pages, "throttled", [True])
    assert ask(pages.throttled_view).status_code == 429
    assert (effects(), rows()) == (0, 0)
    monkeypatch.setattr(pages, "throttled", [])
    assert ask(pages.throttled_view).status_code == 201


# A new key


@pytest.mark.parametrize("how", ["200", "201", "204", "302", "400", "404", "409", "422"])
def test_returned_response_is_stored_with_effects(ask, how):
    first = ask(views.default, how)
    assert first.status_code == int(how)
    assert (effects(), rows()) == (1, 1)
    assert is_replay(ask(views.default, how), of=first)
    assert (effects(), rows()) == (1, 1)


@pytest.mark.parametrize("how", ["401", "403", "408", "423", "425", "429", "500", "503"])
def test_unstored_status_rolls_back_and_frees_the_key(ask, how):
    for _ in range(2):
        again = ask(views.default, how)
        assert again.status_code == int(how)
        assert "Idempotent-Replayed" not in again.headers
    assert (effects(), rows()) == (0, 0)


@pytest.mark.parametrize(("how", "error"), [("http404", Http404), ("crash", RuntimeError)])
def test_raised_error_rolls_back_and_frees_the_key(ask, how, error):
    for _ in range(2):
        with pytest.raises(error):
            ask(views.default, how)
    assert (effects(), rows()) == (0, 0)


def test_denied_permission_rolls_back_and_frees_the_key(ask, monkeypatch):
    monkeypatch.setitem(views.ANSWERS, "denied", views._raises(PermissionDenied()))
    for _ in range(2):
        with pytest.raises(PermissionDenied):
            ask(views.default, "denied")
    assert (effects(), rows()) == (0, 0)


@pytest.mark.parametrize("how", ["500", "crash"])
def test_store_5xx_keeps_the_error_without_the_effects(ask, how, settings, caplog):
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    caplog.set_level(logging.CRITICAL)
    first = ask(pages.keeps_5xx, how)
    assert first.status_code == 500
    assert (effects(), rows()) == (0, 1)
    assert is_replay(ask(pages.keeps_5xx, how), of=first)


@pytest.mark.parametrize("how", ["http404"])
def test_store_5xx_keeps_no_other_error(ask, how):
    for _ in range(2):
        with pytest.raises(Http404):
            ask(pages.keeps_5xx, how)
    assert (effects(), rows()) == (0, 0)


@pytest.mark.parametrize("error", TEMPORARY, ids=lambda error: type(error).__name__)
def test_store_5xx_keeps_no_conflict(ask, error, monkeypatch, settings):
    """The same request may succeed in a moment, and a middleware says so."""
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    monkeypatch.setitem(views.ANSWERS, "busy", views._raises(error))
    with pytest.raises(type(error)):
        ask(pages.keeps_5xx, "busy")
    assert (effects(), rows()) == (0, 0)


@pytest.mark.parametrize("how", ["stream", "large", "nothing", "bell"])
def test_unstorable_response_is_not_sent(ask, how, caplog):
    for _ in range(2):
        assert problem(ask(views.default, how)) == (500, "unstorable")
    assert (effects(), rows()) == (0, 0)
    assert "/x/" in caplog.text
    assert "Everything was rolled back" in caplog.text


def test_dropped_body_may_exceed_the_limit(ask):
    first = ask(pages.no_body, "large")
    again = ask(pages.no_body, "large")
    assert (first.status_code, again.status_code, again.content) == (200, 204, b"")
    assert "Content-Type" not in again.headers
    assert effects() == 1


def test_dropped_body_keeps_an_error_status(ask):
    ask(pages.no_body, "422")
    again = ask(pages.no_body, "422")
    assert (again.status_code, again.content) == (422, b"")
    assert again.headers["Location"] == "/effects/1/"


def test_template_is_rendered_inside_the_transaction(ask, monkeypatch, settings):
    source = {"lazy.html": "Hello {{ name }}"}
    loaders = [("django.template.loaders.locmem.Loader", source)]
    backend = "django.template.backends.django.DjangoTemplates"
    settings.TEMPLATES = [{"BACKEND": backend, "OPTIONS": {"loaders": loaders}}]
    inside = []
    monkeypatch.setattr(
        pages,
        "rendered",
        type("L", (), {"append": lambda _, c: inside.append(c.in_atomic_block)})(),
    )
    first = ask(pages.template, "world")
    assert first.content == b"Hello world"
    assert inside == [True]
    assert is_replay(ask(pages.template, "world"), of=first)


# Done


def test_replay_has_only_the_allow_listed_headers(ask, settings):
    settings.DBLOCK_IDEMPOTENCY_HEADERS = ["x-kept"]

    def dated(request, value):
        headers = {
            "Content-Language": "de",
            "Content-Location": "/c/",
            "ETag": '"1"',
            "Link": "</l/>",
            "Date": "now",
            "X-Kept": "1",
        }
        response = views.answers(request, "201")
        for name, text in headers.items():
            response.headers[name] = text
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(views.ANSWERS, "dated", dated)
        first, again = ask(views.default, "dated"), ask(views.default, "dated")
    assert is_replay(again, of=first)
    assert first.cookies
    assert not again.cookies
    assert {name.lower(): value for name, value in again.headers.items()} == {
        "cache-control": "no-store",
        "content-type": "application/json",
        "content-language": "de",
        "content-location": "/c/",
        "location": first.headers["Location"],
        "etag": '"1"',
        "link": "</l/>",
        "x-kept": "1",
        "idempotent-replayed": "true",
    }


def test_replay_writes_nothing(ask, statements):
    ask(views.default)
    before = IdempotencyKey.objects.values().get()
    with statements() as sent:
        ask(views.default)
    text = " ".join(query["sql"].upper() for query in sent)
    assert not any(word in text for word in ("INSERT", "UPDATE ", "DELETE"))
    assert IdempotencyKey.objects.values().get() == before


@pytest.mark.parametrize(
    "other", [{"body": b"{1}"}, {"method": "PATCH"}, {"query": "?a=1"}, {"how": "200"}], ids=str
)
def test_key_of_another_request_is_422(ask, other):
    ask(views.default)
    assert problem(ask(views.default, **other)) == (422, "key_reused")
    assert effects() == 1


def test_fingerprint_of_the_project_s_own_replaces_the_body(ask):
    first = ask(pages.by_amount, query="?amount=5", body=b"{}")
    assert is_replay(ask(pages.by_amount, query="?amount=5", body=b"{ }"), of=first)


def test_scopes_are_independent(ask):
    for who in ("a", "b"):
        answer = ask(views.default, **{"X-Client": who})
        assert (answer.status_code, "Idempotent-Replayed" in answer.headers) == (201, False)
    assert (effects(), rows()) == (2, 2)


def test_unpurged_request_past_retention_is_new(ask):
    ask(views.default)
    expire()
    again = ask(views.default, body=b"other")
    assert (again.status_code, "Idempotent-Replayed" in again.headers) == (201, False)
    assert is_replay(ask(views.default, body=b"other"), of=again)
    assert (effects(), rows()) == (2, 1)
    assert IdempotencyKey.objects.get().token > 1


def test_ttl_sets_the_retention_of_a_view(ask):
    ask(pages.short)
    row = IdempotencyKey.objects.get()
    assert (row.expires_at - row.completed_at).total_seconds() == pytest.approx(60, abs=0.1)


def test_too_many_live_keys_are_429(ask, settings):
    settings.DBLOCK_IDEMPOTENCY_MAX_KEYS = 2
    first = ask(views.default, key="1")
    ask(views.default, key="2")
    assert problem(ask(views.default, key="3")) == (429, "too_many_keys")
    assert is_replay(ask(views.default, key="1"), of=first)
    assert ask(views.default, key="3", **{"X-Client": "other"}).status_code == 201
    IdempotencyKey.objects.filter(key="2").update(expires_at="2020-01-01T00:00:00Z")
    assert ask(views.default, key="3").status_code == 201


# What must not be committed


def test_success_after_a_swallowed_database_error_is_refused(ask):
    with pytest.raises(TransactionManagementError, match="swallowed"):
        ask(views.default, "swallowed-200")
    assert (effects(), rows()) == (0, 0)


def test_error_after_a_swallowed_database_error_is_stored(ask):
    first = ask(views.default, "swallowed-409")
    assert first.status_code == 409
    assert (effects(), rows()) == (0, 1)
    assert is_replay(ask(views.default, "swallowed-409"), of=first)


def test_success_after_set_rollback_is_refused(ask):
    with pytest.raises(TransactionManagementError, match="set_rollback"):
        ask(views.default, "set-rollback")
    assert (effects(), rows()) == (0, 0)


def test_connection_closed_in_the_view_is_an_error():
    with pytest.raises(TransactionManagementError, match="swallowed"):
        calling.ask(pages.broken_connection)
    assert rows() == 0


def test_on_commit_hooks_run_only_after_a_commit(ask, monkeypatch):
    monkeypatch.setattr(pages, "hooks", [])
    ask(pages.hooked, "500", key="a")
    ask(pages.hooked, "swallowed-409", key="b")
    assert pages.hooks == []
    ask(pages.hooked, "201", key="c")
    ask(pages.hooked, "201", key="c")
    assert pages.hooks == ["201"]


def test_nested_protected_view_is_one_request(ask):
    first = ask(views.default, "nested")
    assert first.status_code == 201
    assert rows() == 1
    assert is_replay(ask(views.default, "nested"), of=first)


def test_second_view_of_a_request_gets_no_response_of_the_first():
    @idempotent(scope=client)
    def charge(request):
        return HttpResponse(f"charged {add_one()}")

    @idempotent(scope=client)
    def ship(request):
        return HttpResponse(f"shipped {add_one()}")

    for _ in range(2):
        asked = request()
        assert charge(asked).content == charge(asked).content == b"charged 1"
        with pytest.raises(ImproperlyConfigured, match=r"ship was called .*charge has used"):
            ship(asked)
    ship_too = idempotent(scope=client, key=lambda asked: "ship")(ship.__wrapped__)
    assert ship_too(asked).content == b"shipped 2"


def test_second_view_runs_where_the_first_left_the_key_free():
    @idempotent(scope=client)
    def new(request):
        raise ZeroDivisionError

    asked = request()
    with pytest.raises(ZeroDivisionError):
        new(asked)
    assert views.default(asked, "201").status_code == 201


def test_row_written_without_the_lock_is_an_error(ask, rival):
    def during():
        rival.execute(
            "INSERT INTO django_dblock_idempotencykey (scope, key, fingerprint,"
            " fingerprint_version, method, path, headers, body_kind, token, owner, steps,"
            " created_at, completed_at, expires_at) VALUES ('scope:client', 'k', '', 1, '', '',"
            " '{}', 'plain', 1, '', '{}', now(), now(), now() + interval '1 day')"
        )

    with pytest.raises(TransactionManagementError, match="without its lock"):
        ask(pages.slow(during))
    assert effects() == 0


# The database


def test_unreachable_database_runs_nothing():
    connection.close()
    ran = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OperationalError):
        patch.setitem(connection.settings_dict, "PORT", "1")
        calling.ask(pages.slow(lambda: ran.append(1)))
    assert ran == []
    connection.close()


def test_other_engine_is_refused():
    with pytest.raises(UnsupportedDatabase):
        calling.ask(pages.nowhere)


# The handle, and who is told


def test_handle_has_key_scope_and_a_stable_derived_key(ask):
    told = json.loads(ask(pages.shows_handle).content)
    derived = told.pop("derived")
    assert len(derived) == 64
    assert told == {
        "key": "k",
        "scope": "scope:client",
        "mode": "atomic",
        "token": None,
        "protected": True,
    }
    expire()
    assert json.loads(ask(pages.shows_handle).content)["derived"] == derived
    told = json.loads(ask(pages.shows_handle, method="GET").content)
    assert told.pop("derived") != derived
    assert not any(told.values())


def test_steps_are_refused_in_atomic_mode(ask):
    with pytest.raises(TypeError, match="mode='lease'"):
        ask(pages.steps)


def test_signals_never_have_the_whole_key(ask):
    told = []

    def listen(signal, sender, **facts):
        told.append((signal, sender, facts["key"], facts.get("code")))

    names = ("idempotent_executed", "idempotent_replayed", "idempotent_refused")
    for name in names:
        getattr(signals, name).connect(listen)
    try:
        ask(views.default, key="a-long-secret-key")
        ask(views.default, key="a-long-secret-key")
        ask(views.default, key="a-long-secret-key", body=b"other")
        ask(views.default, "500", key="another-key")
    finally:
        for name in names:
            getattr(signals, name).disconnect(listen)
    executed, replayed, refused = (getattr(signals, name) for name in names)
    assert told == [
        (executed, IdempotencyKey, "a-long…", None),
        (replayed, IdempotencyKey, "a-long…", None),
        (refused, IdempotencyKey, "a-long…", "key_reused"),
    ]


def break_by_the_orm(**facts):
    Counter.objects.create(name=None)


def break_by_a_cursor(**facts):
    """Django does not notice, and sends a COMMIT that the server turns into a rollback."""
    connection.cursor().execute("SELECT 1/0")


def roll_back(**facts):
    transaction.set_rollback(True)


@pytest.fixture(params=[break_by_the_orm, break_by_a_cursor, roll_back])
def breaking_receiver(request):
    """What a receiver raises is only logged."""
    told = (signals.idempotent_executed, signals.idempotent_replayed)
    for signal in told:
        signal.connect(request.param)
    yield
    for signal in told:
        signal.disconnect(request.param)


@pytest.mark.usefixtures("breaking_receiver")
def test_receiver_that_breaks_the_transaction_is_no_success():
    """Else the client is told of a payment that was rolled back, as under ATOMIC_REQUESTS."""
    for _ in range(2):
        with pytest.raises(TransactionManagementError, match="A receiver of"):
            calling.ask_joined(views.default)
        with pytest.raises(TransactionManagementError, match="A receiver of"), transaction.atomic():
            run_once("a", work=add_one)
    assert (effects(), rows()) == (0, 0)


@pytest.mark.usefixtures("breaking_receiver")
def test_receiver_that_fails_after_the_commit_changes_nothing():
    first = calling.ask(views.default)
    assert is_replay(calling.ask(views.default), of=first)
    assert (effects(), rows()) == (1, 1)


@pytest.mark.usefixtures("breaking_receiver")
def test_receiver_that_breaks_the_transaction_of_a_replay_raises():
    calling.ask(views.default)
    with pytest.raises(TransactionManagementError, match="A receiver of"):
        calling.ask_joined(views.default)


def test_response_commits_with_the_outer_transaction(rival):
    def seen():
        return rival.execute("SELECT count(*) FROM django_dblock_idempotencykey").fetchone()[0]

    with transaction.atomic():
        calling.ask(views.default)
        assert seen() == 0
        transaction.set_rollback(True)
    assert (effects(), rows()) == (0, 0)
    with transaction.atomic():
        calling.ask(views.default)
    assert (effects(), rows(), seen()) == (1, 1, 1)
    assert connections["default"].in_atomic_block is False
