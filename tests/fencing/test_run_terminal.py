"""``manage.py dblock run`` at a terminal: the command has it, and gives it back."""

import os
import pty
import signal
import subprocess

import pytest

from django_dblock import force_release
from tests.fencing.helpers import NAME
from tests.fencing.running import (
    ROOT,
    WAITS,
    dblock,
    environment,
    is_alive,
    session,
    state,
    until_ended,
    until_stopped,
)
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes]

CTRL_C, CTRL_D, CTRL_Z = b"\x03", b"\x04", b"\x1a"


class Terminal:
    """A shell's part: a session with a terminal, and dblock run in its foreground."""

    def __init__(self, *options, command):
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "-c", "-w", *dblock("run", "--lock", NAME, *options, "--", *command)],
            env=environment(), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        self._seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pid in session(self.leader):
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(20)
        os.close(self._ours)

    @property
    def leader(self):
        return self.process.pid

    def type(self, text):
        os.write(self._ours, text)

    def line(self):
        while b"\n" not in self._seen:
            self._seen += os.read(self._ours, 4096)
        found, _, self._seen = self._seen.partition(b"\n")
        return found.decode().strip()

    def rest(self):
        """What is printed until nobody has the terminal any more."""
        try:
            while more := os.read(self._ours, 4096):
                self._seen += more
        except OSError:
            pass
        return self._seen.decode()
