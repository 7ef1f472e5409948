# ruff: noqa: PT027 - Django's own runner runs these, not pytest
"""The bad line: what is lost on it, and when."""

import subprocess
import sys
from http.client import RemoteDisconnected
from pathlib import Path

from django.test import SimpleTestCase
from lossy.proxy import Losses

from shop.demo.children import PROJECT
from shop.demo.site import running_proxy
from shop.tests.acquirers import AsksAcquirer, ask

BODY = {"amount": 100, "currency": "EUR"}


class TheLine(AsksAcquirer):
    def test_what_is_not_lost_passes_as_it_is(self) -> None:
        with running_proxy(self.url, drop=0) as line:
            status, charge = ask(line, "POST", "/charges", BODY | {"reference": "passes"})
            assert status == 201
            assert ask(line, "GET", "/health") == (200, {"status": "ok"})
        assert self.charges("passes") == [charge]

    def test_of_a_lost_answer_the_other_side_has_done_its_work(self) -> None:
        with running_proxy(self.url, drop=1) as line, self.assertRaises(RemoteDisconnected):
            ask(line, "POST", "/charges", BODY | {"reference": "answer"})
        assert len(self.charges("answer")) == 1

    def test_of_a_lost_request_the_other_side_knows_nothing(self) -> None:
        with (
            running_proxy(self.url, drop=0, drop_requests=1) as line,
            self.assertRaises(RemoteDisconnected),
        ):
            ask(line, "POST", "/charges", BODY | {"reference": "request"})
        assert self.charges("request") == []

    def test_where_nobody_is_the_line_is_dead(self) -> None:
        with (
            running_proxy("http://127.0.0.1:1", drop=0) as line,
            self.assertRaises(RemoteDisconnected),
        ):
            ask(line, "GET", "/health")

    def test_a_body_whose_end_it_can_not_tell_is_refused(self) -> None:
        with running_proxy(self.url, drop=1) as line, self.assertRaises(ValueError):
            ask(line, "POST", "/charges", BODY, **{"Transfer-Encoding": "chunked"})  # no JSON: 411


class TheDice(SimpleTestCase):
    def thrown(self, **shares: float) -> list[tuple[bool, bool]]:
        losses = Losses(**{"answers": 0.3, "requests": 0.1, "seed": "1"} | shares)
        return [losses.next() for _ in range(10_000)]

    def test_the_same_seed_loses_the_same(self) -> None:
        assert self.thrown() == self.thrown()
        assert self.thrown() != self.thrown(seed="2")

    def test_the_shares_are_kept(self) -> None:
        thrown = self.thrown()
        assert 2_800 < thrown.count((True, False)) < 3_200
        assert 900 < thrown.count((False, False)) < 1_100
        assert (False, True) not in thrown

    def test_what_is_no_share_is_said(self) -> None:
        command = [sys.executable, "-m", "lossy", "--upstream=http://127.0.0.1:1", "--drop=30"]
        done = subprocess.run(
            command, cwd=Path(PROJECT), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "30 is not between 0 and 1" in done.stderr
