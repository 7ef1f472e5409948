"""The orders in which the statements of two requests can reach the server, up to a bound.

Each walk is cut off after ``LIMIT`` orders; 0 tries all of them, which takes hours.
"""

import json

import pytest
from django.db import connection, transaction

from django_dblock import purge_idempotency_keys, resolve_idempotency_key, run_once
from django_dblock.exceptions import IdempotencyError
from django_dblock.sql import idempotency as sql
from tests.helpers import observe, schedules

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.loss]

LIMIT = 5
OPERATOR = "the operator"

# The trigger looks at each change: no token falls, and an answer that is kept is not written over.
TABLES = """
CREATE TABLE schedules.effect (id serial, run text);
CREATE SEQUENCE schedules.broken MINVALUE 0 START 0;
CREATE FUNCTION schedules.watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.token < OLD.token OR (
        OLD.completed_at IS NOT NULL AND OLD.expires_at > schedules.clock_timestamp()
    ) THEN
        PERFORM nextval('schedules.broken');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER watch BEFORE UPDATE ON django_dblock_idempotencykey
    FOR EACH ROW EXECUTE FUNCTION schedules.watch();
"""
RESET = """
TRUNCATE django_dblock_idempotencykey, schedules.effect;
SELECT setval('schedules.broken', 0, false), setval('schedules.ahead', 0);
"""
DIGEST = """
SELECT (SELECT last_value FROM schedules.ahead),
    (SELECT array_agg(run ORDER BY id) FROM schedules.effect),
    (SELECT row(token, owner, steps, completed_at IS NULL, body,
        round(extract(epoch FROM locked_until - clock_timestamp()) / 10),
        round(extract(epoch FROM expires_at - clock_timestamp()) / 1000))::text
        FROM django_dblock_idempotencykey)
"""
EVENTS = {
    "the lease ends": lambda tree: tree.move_clock(61),
    "retention ends": lambda tree: tree.move_clock(90_000),
    "a's backend ends": lambda tree: tree.end_backend("a"),
}


@pytest.fixture
def looking(connect):
    with schedules.clocked(connect(), TABLES) as own:
        yield own


def write(run):
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO schedules.effect (run) VALUES (%s)", [run])


def effects_of(looking):
    return [run for [run] in looking.execute("SELECT run FROM schedules.effect ORDER BY id")]


def together(run, handle):
    """Effect and answer in one transaction."""
    with transaction.atomic():
        write(run)
        return handle.complete(run)


def after_a_step(run, handle):
    handle.run_step("call", lambda: run)
    return together(run, handle)


def guarded(run, handle):
    """The effect in the transaction of a step, the answer at the end."""
    with handle.guard(), handle.step("write") as step:
        if not step.done:
            write(run)
            step.result = run
    return step.result


def failing(run, handle):
    """The first gives up."""
    if run == "a":
        raise ZeroDivisionError
    return together(run, handle)


def failing_late(run, handle):
    """The first gives up after its step."""
    found = guarded(run, handle)
    if run == "a":
        raise ZeroDivisionError
    return found


def atomic(run):
    write(run)
    return run


def once(kind, run, **options):
    work = (lambda: kind(run)) if kind is atomic else (lambda handle: kind(run, handle))
    mode = "atomic" if kind is atomic else "lease"
    return run_once("key", work=work, mode=mode, **options)


def resolve(outcome, **answer):
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, token FROM django_dblock_idempotencykey")
        for row, token in cursor.fetchall():
            resolve_idempotency_key(row, outcome=outcome, token=token, **answer)
            return "resolved"
    return None


OTHERS = {
    "purge": purge_idempotency_keys,
    "retry": lambda: resolve("retry"),
    "done": lambda: resolve("done", status_code=200, body=json.dumps(OPERATOR).encode()),
}


def explore(looking, kind, *events, beside=(), runs="ab", bound=3, limit=LIMIT, **options):
    """Walk, and check each schedule; return how many there were."""
    actors = {run: (lambda run=run: once(kind, run, **options)) for run in runs}
    actors |= {name: OTHERS[name] for name in beside}
    with schedules.Explorer(
        looking,
        actors,
        [(name, EVENTS[name]) for name in events],
        lambda: repr(looking.execute(DIGEST).fetchone()),
        bound,
    ) as tree:
        for schedule in tree.walk(lambda: looking.execute(RESET), limit or None):
            try:
                check(looking, schedule, kind, runs)
                if options.get("on_abandoned") != "refuse":
                    check_one_more(looking, kind, tree)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{schedule.text}") from error
        return tree.runs


def check(looking, schedule, kind, runs):
    effects = effects_of(looking)
    outcomes = schedule.outcomes
    periods = 1 + schedule.events.count("retention ends")
    operated = outcomes.get("done") == "resolved"
    known = {*effects, OPERATOR} if operated else {*effects}
    assert looking.execute("SELECT is_called FROM schedules.broken").fetchone() == (False,)
    if not (operated and kind is guarded):  # whose answer is another thing than its effect
        assert len(effects) + operated <= periods, f"{effects} in {periods} period(s)"
    assert len(set(effects)) == len(effects)
    assert {found for found in outcomes.values() if found in [*runs]} <= known, "told, not done"
    for name, outcome in outcomes.items():
        if isinstance(outcome, IdempotencyError):
            refused = kind not in (guarded, failing_late) and name in runs
            assert not refused or type(outcome) is not IdempotencyError, repr(outcome)
            assert not refused or name not in effects, f"{name} was refused, and has its effect"
        elif isinstance(outcome, BaseException):
            failed = isinstance(outcome, ZeroDivisionError)
            assert failed or f"{name}'s backend ends" in schedule.events, repr(outcome)
    kept = looking.execute(
        "SELECT body FROM django_dblock_idempotencykey"
        " WHERE completed_at IS NOT NULL AND expires_at > clock_timestamp()"
    ).fetchall()
    for [body] in kept:
        assert json.loads(body) == (OPERATOR if operated else effects[-1])
    observe.until(lambda: not observe.locks(looking), "no advisory lock is left", 5)


def check_one_more(looking, kind, tree):
    """Whatever has happened: a minute later a repeat gets an answer, the same if there is one."""
    before = effects_of(looking)
    [kept] = looking.execute(
        "SELECT coalesce(bool_or(completed_at IS NOT NULL AND expires_at > clock_timestamp()),"
        " false) FROM django_dblock_idempotencykey"
    ).fetchone()
    tree.move_clock(61)
    answer = tree.alone(lambda: once(kind, "z"))
    assert answer in {*effects_of(looking), OPERATOR}, repr(answer)
    assert not kept or effects_of(looking) == before


@pytest.mark.parametrize("kind", [together, after_a_step, guarded, failing, failing_late])
def test_one_effect_whenever_the_lease_ends(looking, kind):
    assert explore(looking, kind, "the lease ends") > 1


@pytest.mark.parametrize("kind", [together, guarded])
@pytest.mark.parametrize(
    ("beside", "event"),
    [("retry", "the lease ends"), ("done", "the lease ends"), ("purge", "retention ends")],
)
def test_one_effect_beside_an_operator_and_a_purge(looking, kind, beside, event):
    assert explore(looking, kind, event, beside=(beside,)) > 1


@pytest.mark.parametrize("kind", [together, guarded])
def test_one_effect_when_a_backend_ends(looking, kind):
    assert explore(looking, kind, "the lease ends", "a's backend ends") > 1


@pytest.mark.parametrize("wait", [0, 20])
@pytest.mark.parametrize(
    ("beside", "event"), [((), "a's backend ends"), (("purge",), "retention ends")]
)
def test_atomic_mode_has_one_effect_in_every_order(looking, wait, beside, event):
    assert explore(looking, atomic, event, beside=beside, wait=wait) > 1


@pytest.mark.parametrize(
    ("kind", "name", "taken_out"),
    [
        (
            together,
            "CLAIM_AGAIN",
            """
        AND (completed_at IS NULL AND coalesce(locked_until, '-infinity') <= clock_timestamp()
            OR completed_at IS NOT NULL AND expires_at <= clock_timestamp())""",
        ),
        (together, "COMPLETE", "AND token = %(token)s::bigint AND claim = %(claim)s::uuid"),
        (guarded, "GUARD", "AND token = %(token)s::bigint AND claim = %(claim)s::uuid"),
    ],
)
def test_negative_twin_weaker_statement_is_found(looking, monkeypatch, kind, name, taken_out):
    """The negative twin."""
    whole = getattr(sql, name)
    assert taken_out in whole
    monkeypatch.setattr(sql, name, whole.replace(taken_out, ""))
    if name == "GUARD":  # the step beside it would find out, too
        monkeypatch.setattr(sql, "STEP", sql.STEP.replace(taken_out, ""))
    with pytest.raises(AssertionError) as caught:
        explore(looking, kind, "the lease ends", limit=400)
    assert not any(
        word in str(caught.value) for word in ("hangs", "all wait", "not the same again")
    )
