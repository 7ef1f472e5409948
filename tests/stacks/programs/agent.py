"""The four ideas under a tracing agent, which wraps the driver: ``agent.py NAME``.

Reports what happened, and every text that the agent would have sent.
"""

import sys

from tests.stacks import agents, program

agent = agents.AGENTS[sys.argv[1]]()
agent.start()
program.setup("tests.stacks.stock", **agent.settings)
agent.ready()

from django.db import connection  # noqa: E402

from django_dblock import StaleObject, advisory_lock, fenced_lock, run_once  # noqa: E402
from tests.stacks.stock.models import Stock  # noqa: E402

TTL = 2.0
SECRET = "secret-sku-4711"

with agent.traced():
    with advisory_lock("stock", SECRET):
        proxied = type(connection.connection).__module__
    ran = []
    replies = [
        run_once("pay", SECRET, work=lambda *_: ran.append(1) or SECRET, mode=mode)
        for mode in ("atomic", "atomic", "lease")
    ]
    lease_runs = []
    for _ in range(2):
        run_once("ship", SECRET, work=lambda *_: lease_runs.append(1), mode="lease")

    with fenced_lock("sync", SECRET, ttl=TTL) as lease:
        program.outlive(lease, TTL)
        with lease.guard():
            Stock.objects.create(name="a", number=1)

    stock, stale = Stock.objects.get(), Stock.objects.get()
    stock.number = 2
    stock.save_cas()
    try:
        stale.save_cas()
        refused = False
    except StaleObject:
        refused = True

texts = agent.texts()
program.report(
    proxied=proxied,
    runs=len(ran),
    lease_runs=len(lease_runs),
    replies=replies,
    refused=refused,
    spans=len(texts),
    statements=[text for text in texts if "django_dblock" in text or "advisory" in text],
    leaks=[text for text in texts if SECRET in text],
)
