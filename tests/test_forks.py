"""Fork hooks, also on a platform without fork."""

import os
import subprocess
import sys

from django_dblock.core.connection import after_fork_in_child


def test_callback_runs_first_in_the_child():
    done = (
        "import os; from django_dblock.core.connection import after_fork_in_child\n"
        "after_fork_in_child(lambda: os._exit(7))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(os.fork(), 0)[1]))"
    )
    found = subprocess.run([sys.executable, "-c", done], capture_output=True, text=True, check=True)
    assert found.stdout == "7\n"


def test_child_forked_during_an_entry_can_enter():
    """No thread of the child could ever free the mutex that the parent's thread holds."""
    forks = (
        "import os, signal; from django_dblock.fencing.lock import Blocks, Entry\n"
        "blocks = Blocks('forked')\n"
        "blocks._mutex.acquire()  # as if another thread were entering just now\n"
        "if not (child := os.fork()):\n"
        "    signal.alarm(30)\n"
        "    blocks.add(Entry('block', 'lease'))\n"
        "    print(blocks.remove('block'), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", forks], capture_output=True, text=True, check=True
    )
    assert found.stdout == "lease\n"


def test_platform_without_fork_needs_no_hook(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork")
    after_fork_in_child(print)


def test_modules_with_fork_hooks_import_without_fork():
    imported = (
        "import os; del os.fork, os.register_at_fork\n"
        "import django_dblock.fencing.heartbeat, django_dblock.contrib.prometheus"
    )
    subprocess.run([sys.executable, "-c", imported], check=True)
