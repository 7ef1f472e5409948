"""Round 2: many editors of one product; each save names the version that its editor has read."""

from dataclasses import dataclass, replace
from decimal import Decimal

from django.contrib.auth import get_user_model, login
from django.contrib.sessions.backends.db import SessionStore
from django.http import HttpRequest

from shop.demo.attack import Answers, Load, attack
from shop.demo.play import Run, milliseconds
from shop.demo.stage import Stage
from shop.models import Product

EDITOR = "demo-editor"
EDITORS = 2  # of each process; more of them would mostly refuse each other


@dataclass(frozen=True, slots=True)
class ManyEditors:
    title = "Many editors"
    guard = "a version, and If-Match"

    def unguarded(self, stage: Stage, attempt: int) -> Run:
        """Edit without looking at the version; each further attempt brings more edits."""
        harder = replace(stage, edits=stage.edits * attempt)
        return self._run(harder, f"off-{attempt}", guarded=False)

    def guarded(self, stage: Stage) -> Run:
        return self._run(stage, "on", guarded=True)

    def _run(self, stage: Stage, name: str, *, guarded: bool) -> Run:
        product = Product.objects.create(
            sku=f"many-editors-{stage.run}-{name}",
            name=f"Crate, versions {name.partition('-')[0]}",
            description="Deliveries:",
            price=Decimal("7.00"),
            stock=stage.stock,
        )
        load = Load(stage.edits, stage.load.processes, EDITORS)
        label = "guard on " if guarded else "guard off"
        with (
            stage.attacked_site("SHOP_VERSIONS", guarded=guarded) as address,
            stage.report.progress(label, load, crowd="edits", good="saved") as on_answer,
        ):
            env = {"EDITORS_SESSION": _session()}
            answers = attack("editors", address, product.sku, load, on_answer, env=env)
        return _judge(product, stage.stock, answers)


def _session() -> str:
    """Sign the editors in and return their session; passwords are not what is attacked here."""
    editor, _ = get_user_model().objects.get_or_create(username=EDITOR, defaults={"is_staff": True})
    request = HttpRequest()
    request.session = SessionStore()
    login(request, editor)
    request.session.save()
    return request.session.session_key


def _judge(product: Product, start: int, answers: Answers) -> Run:
    """Compare what the database says afterwards with what the editors were told."""
    product.refresh_from_db()
    saved = answers.count("saved")
    added = product.stock - start
    lines = product.description.splitlines()[1:]
    return Run(
        figures={
            "edits": str(len(answers.all)),
            "saved, as editors were told": str(saved),
            "in the database": str(added),
            "lost": str(saved - added),
            "refused and tried again": str(answers.retried),
            "failed": str(len(answers.all) - saved),
            "latency p50 / p99": milliseconds(answers.latency),
        },
        invariants={
            "stock = start + saved edits": added == saved,
            "each saved edit has its line": len(set(lines)) == len(lines) == saved,
        },
        worked=saved == len(answers.all),
        lost=f"{saved - added} edits lost",
    )
