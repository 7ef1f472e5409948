"""W3: the example shop under gunicorn; buyers pay through a bad line to it."""

import json
import os
import random
import subprocess
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Thread
from time import sleep
from urllib.parse import urlsplit

from tests.faults import checkers, evidence
from tests.faults.checkers import Violation
from tests.faults.clock import now
from tests.faults.history import OK, Operation, Writer
from tests.faults.stage import Stage

PROJECT = Path(__file__).resolve().parents[3] / "example_project"
PAYERS, TOTAL = 6, "19.90"
LOST = {"drop": 0.1, "drop_requests": 0.05}


class NotYet(Exception):
    """An answer that says: ask again."""


def prepare(database: evidence.Connection, trial: str) -> None:
    database.execute(f"DROP DATABASE IF EXISTS shop_{trial}")
    database.execute(f"CREATE DATABASE shop_{trial}")


@contextmanager
def running(stage: Stage) -> Iterator[str]:
    """Run the shop, its acquirer and the bad line; yield the line's address."""
    from shop.demo.site import running_acquirer, running_proxy, running_site

    url = stage.server.database_url(f"shop_{stage.trial.name}")
    environment = {
        "DATABASE_URL": url,
        "DBLOCK_IDEMPOTENCY_LEASE": "1",
        "DJANGO_SETTINGS_MODULE": "shop_site.settings",
    }
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v", "0", "--skip-checks"],
        cwd=PROJECT, env={**os.environ, **environment}, check=True,
    )  # fmt: skip
    workers = stage.folder / "workers"
    workers.mkdir()
    environment["SHOP_WORKERS_FOLDER"] = str(workers)
    with ExitStack() as stack:
        acquirer = stack.enter_context(running_acquirer(stage.folder / "books.sqlite3", delay=0.01))
        environment["ACQUIRER_URL"] = acquirer
        log = stage.folder / "site.log"
        site = stack.enter_context(running_site(workers=3, env=environment, log=log))
        yield stack.enter_context(running_proxy(site, seed=stage.trial.seed, **LOST))


def drive(stage: Stage, address: str) -> None:
    """Pay, one order after the other, each until there is an answer."""
    with evidence.connected(stage.server, f"shop_{stage.trial.name}") as database:
        references = _order(database, stage)
    payers = [
        Thread(target=_pay_all, args=[stage, number, address, references[number::PAYERS]])
        for number in range(PAYERS)
    ]
    for payer in payers:
        payer.start()
    for payer in payers:
        payer.join()


def _order(database: evidence.Connection, stage: Stage) -> list[str]:
    references = [str(uuid.UUID(int=stage.dice.getrandbits(128))) for _ in range(3000)]
    with database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO shop_order (reference, buyer, total, created_at)"
            " VALUES (%s, 'x', %s, now())",
            [(reference, TOTAL) for reference in references],
        )
    return references


def _pay_all(stage: Stage, number: int, address: str, references: list[str]) -> None:
    history = Writer(stage.folder / f"worker-{number}-0.jsonl", f"{number}.0")
    dice = random.Random(f"{stage.trial.seed} payer {number}")
    for reference in references:
        copies = dice.choice([1, 1, 2, 3])
        threads = [
            Thread(target=_until_paid, args=[stage, history, address, reference])
            for _ in range(copies)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if now() > stage.until:
            return


def _until_paid(stage: Stage, history: Writer, address: str, reference: str) -> None:
    # Whoever has begun goes on for a while, so that each charge has the answer that belongs to it.
    while now() < stage.until + 5:
        with suppress(NotYet, OSError, HTTPException):
            with history.operation("pay", name=reference) as operation:
                operation.in_doubt = True
                operation.answer["body"] = _asked(address, reference)
            return
        sleep(0.05)  # between two requests


def _asked(address: str, reference: str) -> str:
    connection = HTTPConnection(urlsplit(address).netloc, timeout=10)
    try:
        connection.request(
            "POST", f"/api/orders/{reference}/payments/", json.dumps({"amount": TOTAL}),
            {"Content-Type": "application/json", "Idempotency-Key": f"pay-{reference}"},
        )  # fmt: skip
        response = connection.getresponse()
        body = response.read().decode()
        if response.status != 201:
            raise NotYet(response.status)
        return body
    finally:
        connection.close()


def judge_books(stage: Stage, history: list[Operation]) -> list[Violation]:
    """Compare the acquirer's books with the answers, and with what the shop knows."""
    from acquirer.books import Books

    charged = Counter(
        charge["reference"] for charge in Books(stage.folder / "books.sqlite3").charges()
    )
    answers: dict[str, list[str]] = defaultdict(list)
    for operation in history:
        if operation.outcome == OK:
            answers[operation.data["name"]].append(operation.data["body"])
    with evidence.connected(stage.server, f"shop_{stage.trial.name}") as database:
        rows = database.execute(
            'SELECT "order".reference::text, count(*) FROM shop_payment AS payment'
            ' JOIN shop_order AS "order" ON "order".id = payment.order_id GROUP BY 1'
        ).fetchall()
    return (
        checkers.charges(charged, answers)
        + checkers.charges(dict(rows), answers)
        + checkers.replays(answers)
    )
