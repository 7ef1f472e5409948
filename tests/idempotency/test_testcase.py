"""In a ``TestCase`` the response is stored for the test and rolled back after it."""

from django.test import TestCase

from tests.app import idempotent_views as views
from tests.idempotency.calling import ask, effects, rows


class Twice(TestCase):
    def test_replay_works_in_a_testcase(self):
        for number in range(2):
            answer = ask(views.default)
            assert ("Idempotent-Replayed" in answer.headers) == (number == 1)
        assert (effects(), rows()) == (1, 1)

    def test_next_test_finds_nothing(self):
        assert ask(views.default, "500").status_code == 500
        assert (effects(), rows()) == (0, 0)
