"""The response's INSERT travels with COMMIT where the transaction is the decorator's own."""

import pytest
from django.db import IntegrityError, connection, transaction
from django.http import HttpResponse
from django.test.utils import CaptureQueriesContext

from django_dblock import IdempotencyKey, idempotent, run_once
from tests.app.idempotent_views import add_one, client
from tests.idempotency.calling import ask, ask_joined, effects, rows

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.server]


def sent(call):
    """Return the texts of the messages that the call sent."""
    with CaptureQueriesContext(connection) as captured:
        call()
    return [query["sql"] for query in captured.captured_queries]


@pytest.fixture
def slowly():
    """Wrap each statement, so that the ordinary cursor is used."""
    with connection.execute_wrapper(lambda execute, *query: execute(*query)):
        yield


def paying(*hooks):
    @idempotent(scope=client)
    def pay(request, how):
        add_one()
        for hook in hooks:
            transaction.on_commit(hook)
        return HttpResponse("paid", status=201)

    return pay


def test_last_message_has_insert_release_and_commit():
    texts = sent(lambda: ask(paying()))
    [last] = [text for text in texts if "INSERT INTO django_dblock_idempotencykey" in text]
    assert [part.split()[0] for part in last.split(";")] == ["INSERT", "RELEASE", "COMMIT"]


def test_first_call_sends_two_messages_more_than_its_view():
    """Django logs a BEGIN and a COMMIT of its own, for which nothing is sent."""
    add_one()
    views_own = sent(add_one)
    texts = sent(lambda: ask(paying()))
    assert len([text for text in texts if text not in ("BEGIN", "COMMIT")]) == len(views_own) + 2


def test_callers_transaction_stays_open():
    texts = sent(lambda: ask_joined(paying()))
    assert not any("COMMIT" in text and text != "COMMIT" for text in texts)
    assert (effects(), rows()) == (1, 1)


@pytest.mark.usefixtures("slowly")
def test_ordinary_cursor_leaves_commit_to_django():
    texts = sent(lambda: ask(paying()))
    assert texts.count("COMMIT") == 1
    assert (effects(), rows()) == (1, 1)


@pytest.mark.parametrize("way", [ask, ask_joined])
def test_hooks_run_once_after_the_commit(way):
    seen = []

    def hook():
        seen.append((connection.in_atomic_block, rows()))

    way(paying(hook))
    assert seen == [(False, 1)]


def test_connection_state_is_restored():
    ask(paying())
    assert connection.get_autocommit()
    assert not connection.in_atomic_block
    assert connection.savepoint_ids == []
    with transaction.atomic():
        add_one()
        transaction.set_rollback(True)
    assert effects() == 1


DEFERRED = """
CREATE TABLE deferred_parent (id int PRIMARY KEY);
CREATE TABLE deferred_child (
    parent int REFERENCES deferred_parent DEFERRABLE INITIALLY DEFERRED
);
"""


@pytest.fixture
def deferred():
    with connection.cursor() as cursor:
        cursor.execute(DEFERRED)
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE deferred_child, deferred_parent")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.usefixtures("deferred")
def test_deferred_constraint_failure_stores_nothing(request, fast):
    if not fast:
        request.getfixturevalue("slowly")
    hooks = []

    @idempotent(scope=client)
    def view(request, how):
        add_one()
        transaction.on_commit(lambda: hooks.append(1))
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO deferred_child VALUES (1)")
        return HttpResponse(status=201)

    for _ in range(2):
        with pytest.raises(IntegrityError, match="deferred_child"):
            ask(view)
    assert (effects(), rows(), hooks) == (0, 0, [])
    assert connection.get_autocommit()
    assert run_once("next", work=lambda: "the connection is usable") is not None


@pytest.mark.usefixtures("transactional_db")
def test_projects_unique_violation_propagates():
    """Only our own constraint is put in other words."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE once (a int, UNIQUE (a) DEFERRABLE INITIALLY DEFERRED)")
    try:

        def work():
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO once VALUES (1), (1)")

        with pytest.raises(IntegrityError, match="once_a_key"):
            run_once("a", work=work)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE once")


@pytest.mark.parametrize("output", ["hex", "escape"])
def test_response_is_read_with_any_bytea_output(output):
    body = bytes(range(256)) * 2

    @idempotent(scope=client)
    def view(request, how):
        return HttpResponse(body, content_type="application/octet-stream")

    with connection.cursor() as cursor:
        cursor.execute(f"SET bytea_output = {output}")
    try:
        assert ask(view).content == body
        again = ask(view)
        assert (again.content, again.headers["Idempotent-Replayed"]) == (body, "true")
    finally:
        connection.close()


@pytest.mark.parametrize("level", ["off", "local", "remote_write", "on", "remote_apply"])
def test_commit_is_at_least_as_durable_as_promised(level):
    """A trigger notes the level that the commit of the row will have."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET synchronous_commit = {level}")
        cursor.execute(
            "CREATE TABLE levels (level text); CREATE FUNCTION note_level() RETURNS trigger"
            " LANGUAGE plpgsql AS $$ BEGIN INSERT INTO levels"
            " VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON django_dblock_idempotencykey"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note_level()"
        )
    try:
        run_once("level", work=lambda: 1)
        with connection.cursor() as cursor:
            cursor.execute("SELECT level FROM levels")
            [(found,)] = cursor.fetchall()
            cursor.execute("SHOW synchronous_commit")
            assert cursor.fetchone() == (level,)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(
                "DROP TRIGGER note ON django_dblock_idempotencykey; DROP FUNCTION note_level;"
                "DROP TABLE levels"
            )
        connection.close()
    assert found == ("remote_apply" if level == "remote_apply" else "on")


def test_first_response_has_the_token_1():
    ask(paying())
    assert IdempotencyKey.objects.get().token == 1
