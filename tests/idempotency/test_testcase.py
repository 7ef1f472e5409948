"""In a ``TestCase`` the response is stored for the test and rolled back after it."""

import unittest

import pytest
from django.db import transaction
from django.http import HttpResponse
from django.test import TestCase

from tests.app import idempotent_views as views
from tests.idempotency.calling import ask, effects, rows
from tests.idempotency.leasing import leased, post


class Twice(TestCase):
    def test_replay_works_in_a_testcase(self):
        for number in range(2):
            answer = ask(views.default)
            assert ("Idempotent-Replayed" in answer.headers) == (number == 1)
        assert (effects(), rows()) == (1, 1)

    def test_complete_in_a_transaction_is_one_hook(self):
        def work(request):
            with transaction.atomic():
                return request.idempotency.complete(HttpResponse())

        with self.captureOnCommitCallbacks(execute=True) as hooks:
            assert post(leased(work)).status_code == 200
        assert len(hooks) == 1


@pytest.mark.django_db(transaction=True)
def test_response_of_a_testcase_is_rolled_back():
    class Asking(TestCase):
        def test(self):
            assert ask(views.default).status_code == 201
            assert (effects(), rows()) == (1, 1)

    result = unittest.TestSuite([Asking("test")]).run(unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert (effects(), rows()) == (0, 0)
