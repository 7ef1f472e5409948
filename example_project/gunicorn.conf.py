"""How gunicorn serves the shop; it reads this file by itself when started in this folder."""

import os
from pathlib import Path
from typing import Any

import lifeline

worker_class = "gthread"
workers = 2
threads = 4  # more than cores: waiting for a lock takes one
preload_app = True  # a worker that takes the place of a dead one is there at once
graceful_timeout = 3
control_socket_disable = True  # newer releases put a socket into the home folder otherwise

if not os.environ.get("DATABASE_URL"):
    # Here and not in the workers' settings: this process outlives every worker.
    from shop_site import embedded

    embedded.database_url()


# Where somebody wants to know them: a file for each worker, named by its process id.
_workers = os.environ.get("SHOP_WORKERS_FOLDER")


def when_ready(_server: object) -> None:
    # The views, which Django imports with the first request: here once, and not in each worker.
    from django.urls import resolve

    resolve("/")


def post_worker_init(worker: Any) -> None:
    # In the workers, for the sake of their parent: it forks, and so must not have threads.
    if os.environ.get("SHOP_LIFELINE"):
        lifeline.hold_on(for_process=os.getppid())
    if _workers:
        Path(_workers, str(worker.pid)).touch()


def child_exit(_server: object, worker: Any) -> None:
    if _workers:
        Path(_workers, str(worker.pid)).unlink(missing_ok=True)
