"""Crashes at each point: one effect and one response."""

import json
import os
import random
import time

import pytest
from django.db import connection

from tests.app.models import Document
from tests.helpers.crashes import crash_at
from tests.helpers.processes import process, race
from tests.idempotency.crashing import VIEWS, first_call
from tests.idempotency.leasing import expire, post

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.loss]

KEYS, CLIENTS = 40, 12


@pytest.mark.parametrize("how", ["SIGKILL", "pg_terminate_backend"])
@pytest.mark.parametrize("name", ["atomic", "lease"])
def test_retry_after_any_crash_leaves_one_effect(name, how, observer):
    seen = []
    while (what := crash_at(len(seen), how, observer, first_call, name)) is not None:
        seen.append(what)
        committed = list(Document.objects.values_list("pk", flat=True))
        expire()
        first, again = post(VIEWS[name]), post(VIEWS[name])
        [document] = Document.objects.all()
        assert json.loads(first.content) == {"document": str(document.pk)}, what
        assert (again.status_code, again.content) == (201, first.content)
        assert committed in ([], [document.pk])
        if committed:
            assert first.headers["Idempotent-Replayed"] == "true"
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE django_dblock_idempotencykey, app_document")
    commits = 1 if name == "atomic" else 2  # the claim's, and that of effect and answer
    assert seen.count("before COMMIT") == seen.count("after COMMIT") == commits
    # In lease mode the last one looks, after COMMIT, whether the response is there.
    assert sum("django_dblock_idempotencykey" in what for what in seen) == (
        2 if name == "atomic" else 5
    )


def test_trap_crash_between_effect_and_record(observer):
    """The negative twin: without complete() in the effect's transaction there is such a moment."""
    stops = 0
    while (what := crash_at(stops, "SIGKILL", observer, first_call, "careless")) is not None:
        expire()
        post(VIEWS["careless"])
        if Document.objects.count() == 2:
            break
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE django_dblock_idempotencykey, app_document")
        stops += 1
    assert what == "after COMMIT"


def test_retry_reveals_the_outcome_of_an_unheard_commit(observer):
    """The worker dies after COMMIT and before its client has the answer."""
    with process(first_call, "atomic") as child:
        while child.receive()[0] != "after COMMIT":
            child.send(True)
        child.kill()
    [document] = Document.objects.all()
    answer = post(VIEWS["atomic"])
    assert json.loads(answer.content) == {"document": str(document.pk)}
    assert answer.headers["Idempotent-Replayed"] == "true"


def send_all(number, name):
    """One client: all keys in an order of its own, each until it has an answer."""
    keys = [str(key) for key in range(KEYS)]
    random.Random(number).shuffle(keys)
    answers = {}
    for key in keys:
        while (response := post(VIEWS[name], key=f'"{key}"')).status_code == 409:
            time.sleep(0.001)  # as a client does; nothing depends on how long
        assert response.status_code == 201
        answers[key] = json.loads(response.content)["document"]
    return os.getpid(), answers


@pytest.mark.parametrize("name", ["atomic", "lease"])
def test_twelve_clients_with_forty_keys_have_forty_effects(name):
    results = race(CLIENTS, send_all, name)
    assert len({pid for pid, _ in results}) == CLIENTS
    first = results[0][1]
    assert all(answers == first for _, answers in results)
    made = {str(pk) for pk in Document.objects.values_list("pk", flat=True)}
    assert made == set(first.values())
    assert len(made) == KEYS


def test_negative_twin_without_the_decorator_has_more_effects():
    race(CLIENTS, send_all, "unprotected")
    assert Document.objects.count() == KEYS * CLIENTS
