"""``manage.py dblock run`` at a terminal: the command gets the terminal, and returns it."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from django_dblock import fenced_lock
from tests.fencing.helpers import NAME
from tests.fencing.running import (
    ROOT,
    dblock,
    environment,
    is_alive,
    session,
    until_stopped,
)
from tests.helpers import observe

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.processes, pytest.mark.slow]

CTRL_C, CTRL_D, CTRL_Z = b"\x03", b"\x04", b"\x1a"


class Terminal:
    """A terminal, a shell that leads its session, and dblock run as its job in the foreground."""

    def __init__(self, *options, command, stdout=None):
        self._ours, theirs = pty.openpty()
        self._shell = subprocess.Popen(
            [sys.executable, "-c", SHELL, *dblock("run", "--lock", NAME, *options, "--", *command)],
            env=environment(), cwd=ROOT, stdin=theirs, stdout=stdout or theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.stdout = self._shell.stdout
        self._seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pid in session(self._shell.pid):
            os.kill(pid, signal.SIGKILL)
        self._shell.wait(90)
        os.close(self._ours)
        if self.stdout is not None:
            self.stdout.close()

    def dblock(self):
        """Its pid: the first that the shell has started."""
        return min(set(session(self._shell.pid)) - {self._shell.pid})

    def foreground(self):
        return os.tcgetpgrp(self._ours)

    def type(self, text):
        os.write(self._ours, text)

    def line(self):
        while b"\n" not in self._seen:
            self._seen += os.read(self._ours, 4096)
        found, _, self._seen = self._seen.partition(b"\n")
        return found.decode().strip()

    def end(self):
        """Wait for the job's end; return its exit status."""
        return self._shell.wait(90)


# What of a shell matters here: the job is a process group, in the foreground. It exits as the job.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
def foreground():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
status = subprocess.Popen(sys.argv[1:], preexec_fn=foreground).wait()
os.tcsetpgrp(0, os.getpgrp())
sys.exit(status)
"""

SPEAKS = (
    sys.executable, "-u", "-c",
    """
import os, sys
print(os.getpid(), os.isatty(0), os.tcgetpgrp(0) == os.getpgrp())
for line in sys.stdin:
    print("got", line.strip())
""",
)  # fmt: skip


@pytest.fixture
def terminal():
    with Terminal(command=SPEAKS) as found:
        yield found


def started(terminal):
    pid, is_terminal, foreground = terminal.line().split()
    assert (is_terminal, foreground) == ("True", "True")
    return int(pid)


def test_command_reads_from_the_terminal(terminal):
    started(terminal)
    terminal.type(b"hello\n")
    assert [terminal.line(), terminal.line()] == ["hello", "got hello"], "the echo, the answer"
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_ctrl_c_is_status_130(terminal):
    started(terminal)
    terminal.type(CTRL_C)
    assert terminal.end() == 130


def test_ctrl_z_returns_the_terminal_to_the_shell(terminal):
    """As a shell's ``fg`` does it: give the terminal back, then continue."""
    command = started(terminal)
    terminal.type(CTRL_Z)
    dblock = terminal.dblock()
    until_stopped(command, dblock)
    assert terminal.foreground() == os.getpgid(dblock), "ours again, for the shell to take"
    os.kill(dblock, signal.SIGCONT)
    observe.until(lambda: terminal.foreground() == os.getpgid(command), "the command has it")
    terminal.type(b"again\n")
    observe.until(lambda: terminal.line() == "got again", "it reads")
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_stopped_command_ends_before_the_lock_is_granted():
    """Nobody renews it meanwhile; the watchdog does not stop with us."""
    with Terminal("--ttl", "6", command=SPEAKS) as terminal:
        command = started(terminal)
        terminal.type(CTRL_Z)
        dblock = terminal.dblock()
        with fenced_lock(NAME, ttl=60, timeout=60):
            assert not is_alive(command)
            until_stopped(dblock)
            os.kill(dblock, signal.SIGCONT)
            assert terminal.end() == 79


def test_pipeline_keeps_the_terminal():
    """``dblock run … | less``: it is less that reads the keys."""
    with Terminal(command=SPEAKS, stdout=subprocess.PIPE) as terminal:
        said = terminal.stdout.readline().split()
        assert said[1:] == [b"True", b"False"]
        terminal.type(CTRL_C)
        assert terminal.end() == 130, "it comes to us, and is passed on"
