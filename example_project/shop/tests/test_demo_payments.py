"""The parts of the demo's fourth round, each by itself; ``tests/example`` runs it whole."""

import json
import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from django.test import SimpleTestCase, TestCase

from shop.demo import payers
from shop.demo.attack import Answer, Answers, Load
from shop.demo.children import child
from shop.demo.kills import KILLS, Kills
from shop.demo.rounds import idempotent
from shop.demo.workers import until
from shop.models import Order, Payment
from shop.payments import cents

DONE = Answer(201, 0.1, tries=3, copies=2, word="paid")
SAME, BOTH, ONE_ANSWER = (
    "charges = orders",
    "both books agree to the cent",
    "each payment has one answer",
)


class Judging(TestCase):
    """Three orders, paid once each; then something is wrong with one of them."""

    def setUp(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            orders = Path(folder, "orders.json")
            self.references = idempotent._order(orders, Load(3, 2, 1))  # noqa: SLF001
            self.told = json.loads(orders.read_text())
        self.charges = []
        for number, order in enumerate(Order.objects.order_by("pk")):
            charge = {
                "id": f"ch_{number}",
                "reference": str(order.reference),
                "amount": cents(order.total),
            }
            self.charges.append(charge)
            Payment.objects.create(order=order, amount=order.total, charge_id=charge["id"])
        self.answers = [DONE] * 3

    def judge(self, killed: int = 1) -> idempotent.Run:
        answers = Answers(tuple(self.answers))
        return idempotent._judge(self.references, self.charges, answers, killed)  # noqa: SLF001

    def broken(self) -> set[str]:
        return {name for name, kept in self.judge().invariants.items() if not kept}

    def test_each_payer_has_an_order_and_knows_its_total(self) -> None:
        assert sorted(self.told) == ["payers-1-0", "payers-1-1", "payers-2-0"]
        assert {order["reference"] for order in self.told.values()} == set(self.references)
        for order in self.told.values():
            assert str(Order.objects.get(reference=order["reference"]).total) == order["amount"]

    def test_where_all_books_agree_nothing_is_broken(self) -> None:
        run = self.judge()
        assert run.kept
        assert run.worked
        assert run.lost == "0.00 EUR charged too much"
        assert run.figures["charges in the acquirer's books"] == "3"
        assert run.figures["charges in the shop's books"] == "3"
        assert run.figures["requests to pay them"] == "6"
        assert run.figures["sent again, lost or told to wait"] == "3"

    def test_a_second_charge_is_seen_also_where_the_shop_has_recorded_it(self) -> None:
        twice = self.charges[0] | {"id": "ch_again"}
        self.charges.append(twice)
        run = self.judge()
        assert self.broken() == {SAME, BOTH}
        assert run.figures["orders charged more than once"] == "1"
        assert run.figures["charges the shop knows nothing of"] == "1"
        order = Order.objects.get(reference=twice["reference"])
        assert run.lost == f"{order.total} EUR charged too much"
        Payment.objects.create(order=order, amount=order.total, charge_id="ch_again")
        assert self.broken() == {SAME, BOTH}
        assert self.judge().figures["charges the shop knows nothing of"] == "0"

    def test_a_payment_that_is_missing_in_either_book_is_seen(self) -> None:
        gone = self.charges.pop()
        assert self.broken() == {SAME, BOTH}
        self.charges.append(gone)
        Payment.objects.filter(charge_id=gone["id"]).delete()
        assert self.broken() == {BOTH}

    def test_one_cent_is_seen(self) -> None:
        self.charges[0] |= {"amount": self.charges[0]["amount"] + 1}
        assert self.broken() == {BOTH}

    def test_one_cent_from_one_order_to_another_is_seen(self) -> None:
        """The sums agree."""
        self.charges[0] |= {"amount": self.charges[0]["amount"] + 1}
        self.charges[1] |= {"amount": self.charges[1]["amount"] - 1}
        assert self.broken() == {BOTH}

    def test_charges_recorded_under_each_others_numbers_are_seen(self) -> None:
        one, other = self.charges[:2]
        one["id"], other["id"] = other["id"], one["id"]
        assert self.broken() == {BOTH}

    def test_a_payment_that_was_answered_in_two_ways_is_seen(self) -> None:
        self.answers[0] = replace(DONE, different=2)
        assert self.broken() == {ONE_ANSWER}

    def test_without_a_kill_a_loss_or_an_answer_it_proves_nothing(self) -> None:
        assert not self.judge(killed=0).worked
        self.answers = [replace(DONE, tries=2)] * 3
        assert not self.judge().worked
        self.answers = [DONE, DONE, replace(DONE, word="failed")]
        assert not self.judge().worked


class Killing(SimpleTestCase):
    """Real processes, of which some are the site's."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.stack = self.enterContext(ExitStack())

    def process(self, *, of_the_site: bool) -> Any:
        process = self.stack.enter_context(child("lifeline"))
        if of_the_site:
            Path(self.folder, str(process.pid)).touch()
        return process

    def test_only_the_sites_workers_are_killed_and_each_is_counted(self) -> None:
        other = self.process(of_the_site=False)
        workers = [self.process(of_the_site=True) for _ in range(2)]
        kills = Kills(self.folder, 20, "seed")
        killed = 0
        for _ in range(20):
            if not kills.on_answer():
                continue
            killed += 1
            # As gunicorn does when one has ended: it takes note, and starts another.
            [dead] = until(lambda: [each for each in workers if each.poll()], "none has ended")
            assert dead.returncode == -signal.SIGKILL
            Path(self.folder, str(dead.pid)).unlink()
            workers.remove(dead)
            workers.append(self.process(of_the_site=True))
        assert killed == kills.done == KILLS
        assert other.poll() is None

    def test_one_that_has_ended_by_itself_is_no_kill(self) -> None:
        gone = self.process(of_the_site=True)
        gone.kill()
        gone.wait()
        kills = Kills(self.folder, 20, "seed")
        assert not any(kills.on_answer() for _ in range(20))
        assert kills.done == 0

    def test_where_no_worker_is_known_none_is_killed(self) -> None:
        kills = Kills(self.folder, 20, "seed")
        assert not any(kills.on_answer() for _ in range(20))
        assert kills.done == 0


Say = Callable[[int], tuple[int, bytes]]


@contextmanager
def site_that_says(say: Say) -> Iterator[tuple[HTTPConnection, list[dict[str, str]]]]:
    """A site that answers the n-th request as it is told; status 0 hangs up."""
    asked: list[dict[str, str]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            with lock:
                asked.append(
                    {"path": self.path, "key": self.headers["Idempotency-Key"], "body": body}
                )
                status, content = say(len(asked))
            if not status:
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield HTTPConnection("127.0.0.1", server.server_port), asked
        finally:
            server.shutdown()
            thread.join()


class Paying(SimpleTestCase):
    """One payer, and a site that answers as it is told."""

    def setUp(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.orders = Path(folder, "orders.json")
        # Somebody who sends it three times at once.
        copies = {name: random.Random(name).randint(1, payers.MOST_COPIES) for name in "abcdefghij"}
        self.payer = next(name for name, number in copies.items() if number == 3)
        self.orders.write_text(json.dumps({self.payer: {"reference": "r-1", "amount": "1.00"}}))

    def pay(self, say: Say) -> tuple[dict[str, Any], list[dict[str, str]]]:
        with site_that_says(say) as (connection, asked):
            return payers.pay(connection, str(self.orders), self.payer), asked

    def test_all_copies_are_one_request_with_one_key(self) -> None:
        said, asked = self.pay(lambda _: (201, b"paid"))
        assert said == {"status": 201, "word": "paid", "tries": 3, "copies": 3, "different": 1}
        assert Counter(map(tuple, map(dict.values, asked))) == {
            ("/api/orders/r-1/payments/", f"{self.payer}-once", '{"amount": "1.00"}'): 3
        }

    def test_what_is_lost_or_told_to_wait_is_sent_again(self) -> None:
        first = {1: (0, b""), 2: (409, b'{"code": "in_progress"}'), 3: (502, b"")}
        said, asked = self.pay(lambda number: first.get(number, (201, b"paid")))
        assert (said["word"], said["tries"], said["different"]) == ("paid", 6, 1)
        assert len(asked) == 6

    def test_paid_already_is_the_end_and_another_answer(self) -> None:
        first = {1: (201, b"paid")}
        said, _ = self.pay(lambda number: first.get(number, (409, b"Paid already")))
        assert (said["word"], said["tries"], said["different"]) == ("paid", 3, 2)

    def test_a_refusal_is_not_paid_and_not_sent_again(self) -> None:
        said, asked = self.pay(lambda number: (422 if number == 1 else 201, b""))
        assert (said["word"], said["status"], len(asked)) == ("failed", 422, 3)


class ChildrenTest(SimpleTestCase):
    def test_a_wait_that_a_signal_has_broken_off_does_not_hold_up_the_end(self) -> None:
        ended = threading.Event()
        with ExitStack() as stack:
            process = stack.enter_context(child("lifeline"))
            # What a handler leaves behind that raises in the middle of Popen.wait.
            lock = process._waitpid_lock  # type: ignore[attr-defined]  # noqa: SLF001
            lock.acquire()
            self.addCleanup(lock.release)

            def end() -> None:
                stack.pop_all().close()
                ended.set()

            threading.Thread(target=end, daemon=True).start()
            assert ended.wait(30), "the end waits for the lock of Popen"
        assert process.returncode == -signal.SIGTERM
