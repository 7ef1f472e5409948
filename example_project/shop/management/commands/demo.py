"""``manage.py demo``: the shop under attack; see the package ``shop.demo``."""

import signal
import tempfile
import time
import uuid
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.urls import reverse
from django.utils.crypto import get_random_string

from shop.catalogue import seed
from shop.demo.attack import Load
from shop.demo.database import NAME, use_own_database
from shop.demo.interruption import interruptible
from shop.demo.play import Round, Verdict, play
from shop.demo.report import Report
from shop.demo.rounds import ROUNDS
from shop.demo.site import running_acquirer
from shop.demo.stage import Stage

NEXT = """
What to look at next:
  example_project/shop/: purchase.py, staff.py, settlement.py, payments.py, outbox.py: the guards
  manage.py demo --serve: the shop with its lock monitor, for you to click through
  docs/which-one.md: which guard you need"""


class Command(BaseCommand):
    help = (
        "Attack the shop over HTTP from several processes, first without its guards, then with "
        "them, and compare what the database says afterwards. Exit status 0: the guards kept every "
        "invariant, and the absence of each broke one."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--buyers", type=_positive, default=600, help="buyers of one item each (%(default)s)")
        add("--stock", type=_positive, default=50, help="items in stock (%(default)s)")
        add("--edits", type=_positive, default=80, help="edits of one product (%(default)s)")
        add(
            "--payments",
            type=_positive,
            default=200,
            help="paid orders (%(default)s)",
        )
        add("--processes", type=_positive, default=4, help="attacking processes (%(default)s)")
        add("--threads", type=_positive, default=8, help="threads of each (%(default)s)")
        add("--workers", type=_positive, default=3, help="workers of the site (%(default)s)")
        add("--serve", action="store_true", help="run the guarded site, without an attack")
        add("--attack", action="store_true", help="with --serve: attack first")
        add("--port", type=int, default=0, help="for --serve; a free one by default")
        add("--sabotage", choices=("guarded", "unguarded"), help=SUPPRESS)

    def handle(
        self, *, serve: bool, attack: bool, port: int, sabotage: str | None, **sizes: Any
    ) -> None:
        if sizes["stock"] >= sizes["buyers"]:
            raise CommandError("There must be more buyers than stock, or nobody is refused.")
        report = Report()
        with interruptible(), tempfile.TemporaryDirectory(prefix="shop-demo-") as folder:
            started = time.monotonic()
            database_url = use_own_database()
            call_command("migrate", verbosity=0)
            seed()
            report.say(f"Database {NAME!r} is ready ({time.monotonic() - started:.1f} s).")
            stage = Stage(
                run=uuid.uuid4().hex[:6],
                load=Load(sizes["buyers"], sizes["processes"], sizes["threads"]),
                stock=sizes["stock"],
                edits=sizes["edits"],
                payments=sizes["payments"],
                workers=sizes["workers"],
                database_url=database_url,
                folder=Path(folder),
                report=report,
                sabotage=sabotage,
            )
            if attack or not serve:
                _attack(stage)
                report.say(f"The guards held ({time.monotonic() - started:.1f} s).")
            if serve:
                _serve(stage, port)
            else:
                report.say(NEXT)


def _attack(stage: Stage) -> None:
    try:
        verdicts = [_played(each, stage) for each in ROUNDS]
    finally:
        stage.clear_shelves()
    failures = [verdict.failure for verdict in verdicts if verdict.failure]
    if failures:
        raise CommandError("\n".join(failures))
    stage.report.summary(verdicts)


def _played(each: Round, stage: Stage) -> Verdict:
    verdict = play(each, stage)
    stage.report.verdict(verdict)
    return verdict


def _serve(stage: Stage, port: int) -> None:
    password = get_random_string(10)
    staff, _ = get_user_model().objects.get_or_create(
        username="demo", defaults={"is_staff": True, "is_superuser": True}
    )
    staff.set_password(password)
    staff.save()
    with (
        running_acquirer(stage.folder / "charges.sqlite3") as acquirer,
        stage.site(port=port, ACQUIRER_URL=acquirer) as address,
    ):
        stage.report.say(
            f"""
The shop is at {address}/
The lock monitor is at {address}{reverse("admin:django_dblock_lockmonitor_changelist")}
The login for both: demo, password: {password}
The acquirer's books are at {acquirer}/charges
The database: DATABASE_URL='{stage.database_url}'
To see its locks, in a second terminal and with that DATABASE_URL: python manage.py dblock watch
Ctrl-C ends it."""
        )
        # Being told to stop is how serving ends: the verdict stands.
        with suppress(SystemExit):
            signal.pause()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"{text} is not a number above 0")
    return number
