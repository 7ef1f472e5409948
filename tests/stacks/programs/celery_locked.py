"""Prefork workers that are killed, limited and revoked, with leases and once-only tasks."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent


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


with closing(socket.socket()) as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
os.environ["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
sys.path.insert(0, str(HERE))

import celery_locked_app as tasks  # noqa: E402
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError  # noqa: E402
from django.core.management import call_command  # noqa: E402

from django_dblock import FencedLock  # noqa: E402
from tests.stacks import program  # noqa: E402
from tests.stacks.stock.models import Stock  # noqa: E402


def answers():
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def is_held(name):
    row = FencedLock.objects.filter(name=name).first()
    return row is not None and row.expires_at.timestamp() > time.time()


def error_of(result):
    try:
        return result.get(timeout=100)
    except (SoftTimeLimitExceeded, TaskRevokedError) as error:
        return type(error).__name__


with (
    TemporaryDirectory() as folder,
    started(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder,
        stdout=subprocess.DEVNULL,
    ),
):  # fmt: skip
    program.until(answers, "Redis answers")
    call_command("migrate", run_syncdb=True, verbosity=0)
    worker = (
        sys.executable, "-m", "celery", "-A", "celery_locked_app", "worker", "--pool", "prefork",
        "--concurrency", "3", "--without-gossip", "--without-mingle", "--loglevel", "critical",
    )  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with started(*worker, env=os.environ, **quiet):
        before = tasks.pay.delay(f"{folder}/before", "before").get(timeout=100)
        after = tasks.pay.delay(f"{folder}/after", "after").get(timeout=100)
        died = [Path(folder, when).exists() for when in ("before", "after")]
        paid = Stock.objects.filter(name="paid").count()
        alone = [each.get(timeout=100) for each in [tasks.sync.delay() for _ in range(12)]]

        limited = error_of(tasks.slow.apply_async((60,), soft_time_limit=1))
        program.until(lambda: not is_held("slow"), "the lease was released")

        revoked = tasks.slow.delay(60)
        program.until(lambda: is_held("slow"), "it holds the lease")
        revoked.revoke(terminate=True)
        next_one = tasks.slow.delay(0).get(timeout=100)  # after the ttl

program.report(
    paid=paid, results=[before, after], died=died, alone=alone, limited=limited, next=next_one
)
