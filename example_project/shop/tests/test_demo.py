"""The demo's judgement, without running it; ``tests/example`` runs it."""

from types import SimpleNamespace

from django.test import SimpleTestCase

from shop.demo.attack import Answer, Answers, Load
from shop.demo.database import address_of
from shop.demo.play import ATTEMPTS, Run, Verdict, play


def run(*, kept: bool = True, worked: bool = True) -> Run:
    return Run(figures={}, invariants={"sold once": kept}, worked=worked)


class Round:
    title = "A round"
    guard = "a guard"

    def __init__(self, unguarded: list[Run]) -> None:
        self.runs = unguarded

    def unguarded(self, _stage: object, attempt: int) -> Run:
        return self.runs[attempt - 1]

    def guarded(self, _stage: object) -> Run:
        return run()


class Judging(SimpleTestCase):
    def failure(self, unguarded: Run, guarded: Run) -> str:
        return Verdict(Round([]), unguarded, guarded).failure or ""

    def test_only_broken_without_and_kept_with_the_guard_is_proof(self) -> None:
        broken = run(kept=False)
        assert self.failure(broken, run()) == ""
        assert "BROKEN under a guard: sold once" in self.failure(broken, broken)
        assert "The attack proves nothing" in self.failure(run(), run())
        assert "did not do what it could" in self.failure(broken, run(worked=False))

    def test_an_attack_that_breaks_nothing_is_repeated_but_not_for_ever(self) -> None:
        said: list[str] = []
        stage = SimpleNamespace(report=SimpleNamespace(say=said.append, title=print))
        assert play(Round([run(), run(kept=False)]), stage).failure is None
        assert len(said) == 1
        assert "proves nothing" in play(Round([run()] * ATTEMPTS), stage).failure


class Measuring(SimpleTestCase):
    def test_buyers_are_shared_out_to_the_last(self) -> None:
        assert Load(visits=10, processes=4, threads=1).shares() == [3, 3, 2, 2]

    def test_answers_are_counted_and_ranked(self) -> None:
        statuses = [201, 409, 409, 503, 0, 412]
        answers = Answers(tuple(Answer(status, n / 10) for n, status in enumerate(statuses)))
        kinds = ("sold", "sold out", "busy", "failed")
        assert [answers.count(kind) for kind in kinds] == [1, 2, 1, 2]
        assert answers.latency[0] == 0.25
        assert Answers(()).latency == (0.0, 0.0)

    def test_tries_after_the_first_are_counted(self) -> None:
        answers = Answers((Answer(200, 0.1), Answer(200, 0.1, tries=4)))
        assert (answers.count("saved"), answers.retried) == (2, 3)

    def test_another_database_of_the_same_server_keeps_all_else(self) -> None:
        for url, other in (
            (
                "postgres://u:p@h:5432/shop?sslmode=require",
                "postgres://u:p@h:5432/x?sslmode=require",
            ),
            ("postgres://u@:5432//run/pg/shop", "postgres://u@:5432//run/pg/x"),
            ("postgres://h/shop", "postgres://h/x"),
        ):
            assert address_of("x", url) == other
