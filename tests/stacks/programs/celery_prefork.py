"""Celery with prefork children and a real Redis: late acknowledgements, repeats, time limits."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
TTL = 2.0


@contextmanager
def started(*command, **more):
    process = subprocess.Popen(command, start_new_session=True, **more)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port():
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


port = free_port()
os.environ["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
sys.path.insert(0, str(HERE))

import celery_app  # noqa: E402
from celery.exceptions import SoftTimeLimitExceeded  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from django_dblock.testing import hold_lock  # noqa: E402
from tests.stacks import program  # noqa: E402
from tests.stacks.stock.models import Stock  # noqa: E402


def waiting():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone()[0]


with (
    TemporaryDirectory() as folder,
    started(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder,
        stdout=subprocess.DEVNULL,
    ),
):  # fmt: skip
    program.until(lambda: answers(port), "Redis answers")
    call_command("migrate", run_syncdb=True, verbosity=0)
    Stock.objects.create(name="sku-1", number=100)
    worker = (
        sys.executable, "-m", "celery", "-A", "celery_app", "worker", "--pool", "prefork",
        "--concurrency", "3", "--without-gossip", "--without-mingle", "--loglevel", "error",
    )  # fmt: skip
    with started(*worker, env=os.environ, stdout=subprocess.DEVNULL):
        sales = [celery_app.sell.delay() for _ in range(30)]
        children = {sale.get(timeout=100) for sale in sales}
        left = Stock.objects.get(name="sku-1").number
        payments = [celery_app.pay.delay("order-1").get(timeout=100) for _ in range(4)]
        syncs = [celery_app.sync.delay(TTL) for _ in range(2)]
        held = sorted(each.get(timeout=100) for each in syncs)
        with hold_lock("never"):
            hopeless = celery_app.wait_for_lock.apply_async(soft_time_limit=1)
            try:
                limited = hopeless.get(timeout=100)
            except SoftTimeLimitExceeded:
                limited = "SoftTimeLimitExceeded"
            program.until(lambda: not waiting(), "the wait has ended in the server, too")

program.report(
    left=left, children=len(children), payments=payments,
    paid=Stock.objects.filter(name="paid").count(), held=held, limited=limited,
)  # fmt: skip
