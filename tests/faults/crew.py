"""``python -m tests.faults.crew``: forks workers as it is told, and ends them when it ends.

Its standard input is lines of JSON, each the orders of one worker; it answers with the worker's
process id. When the input ends, however the other side ended, the workers are killed. So one start
of Python and Django serves all workers of a run, and nothing is left behind.
"""

import importlib
import json
import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    # Ctrl-C is for the run, which closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.faults.settings"
    import django

    django.setup()
    from tests.faults import worker

    children: set[int] = set()
    signal.signal(signal.SIGCHLD, lambda *_: _reap(children))
    os.write(1, b"0\n")  # ready
    for line in sys.stdin:
        orders = json.loads(line)
        for kind in ("system", "workload"):  # before the fork, for all to come
            importlib.import_module(f"tests.faults.{kind}s.{orders[kind]}")
        child = os.fork()
        if child == 0:
            for number in (signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            worker.run(orders)  # never returns
        children.add(child)
        os.write(1, f"{child}\n".encode())
    for child in list(children):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _reap(children: set[int]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            children.discard(ended)


if __name__ == "__main__":
    main()
