"""``dblock run`` as a process of its own, and looking at processes from outside."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from django.db import connection

from tests.fencing.helpers import NAME
from tests.helpers import observe

ROOT = Path(__file__).resolve().parents[2]


def environment(url=None):
    """What a child needs to work on the test database."""
    server, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    return {
        **os.environ,
        "DATABASE_URL": url or f"{server}/{connection.settings_dict['NAME']}",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "example_project")]),
    }


def dblock(*arguments):
    return [sys.executable, "-m", "django", "dblock", *arguments]


@contextmanager
def running(*options, command, name=NAME, url=None, **more):
    """Start it, and leave nothing of it behind."""
    lock = [] if name is None else ["--lock", name]
    arguments = dblock("run", *lock, *options, "--", *command) if name else list(command)
    process = subprocess.Popen(
        arguments, env=environment(url), cwd=ROOT, text=True, start_new_session=True,
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )  # fmt: skip
    try:
        yield process
    finally:
        for pid in session(process.pid):
            with_no_error(os.kill, pid, signal.SIGKILL)
        process.kill()
        process.wait(90)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with_no_error(pipe.close)


def with_no_error(function, *arguments):
    with suppress(OSError):
        function(*arguments)


def session(leader):
    """All processes that a run has started, but for those that made a session of their own."""
    return [pid for pid, fields in stats() if int(fields[3]) == leader]


def stats():
    """(pid, the fields of its stat from the state on) of all processes that are alive."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        if fields[0] not in "ZX":
            yield int(path.parent.name), fields


def watchdog_of(process, *group):
    """Wait until the watchdog has left the command's process group; return the watchdog's pid."""
    found = {}

    def has_left():
        ours = {pid: int(fields[2]) for pid, fields in stats() if int(fields[3]) == process.pid}
        found.clear()
        found.update({pid: ours[pid] for pid in set(ours) - {process.pid, *group}})
        return len(found) == 1 and ours[group[0]] not in found.values()

    observe.until(has_left, "the watchdog leaves the group")
    [pid] = found
    return pid


def is_alive(pid):
    return any(each == pid for each, _ in stats())


def state(pid):
    return next((fields[0] for each, fields in stats() if each == pid), None)


def until_ended(*pids):
    observe.until(lambda: not any(map(is_alive, pids)), f"{pids} end")


def until_stopped(*pids):
    observe.until(lambda: all(state(pid) == "T" for pid in pids), f"{pids} are stopped")


def line(process):
    """The next line that the command prints."""
    found = process.stdout.readline()
    assert found, process.stderr.read()
    return found.strip()


def finish(process):
    """End its standard input, at which the command ends; return exit status and what it said."""
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def outcome(process):
    """Wait until it ends, whatever for; return the same."""
    process.wait(180)
    return process.returncode, process.stdout.read(), process.stderr.read()


# A command that says its pid, then that of each child it has forked, and waits until its
# standard input ends.
WAITS = (
    sys.executable, "-u", "-c",
    """
import os, sys, time
def tell():
    os.write(1, b"%d\\n" % os.getpid())  # in one piece
tell()
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        tell()
        time.sleep(600)
sys.stdin.read()
print("done")
""",
)  # fmt: skip

# The same, but it says which signals it gets, and does not end by them. A signal that arrives just
# before a blocking read does not interrupt the read, and Python's handler would run after it; the
# number that Python writes to the wake-up descriptor is never missed.
STUBBORN = (
    sys.executable, "-u", "-c",
    """
import os, select, signal
heard, wakes = os.pipe()
os.set_blocking(wakes, False)
signal.set_wakeup_fd(wakes)
for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2"):
    signal.signal(getattr(signal, f"SIG{name}"), lambda *_: None)
print(os.getpid())
while True:
    ready, _, _ = select.select([0, heard], [], [])
    if heard in ready:
        for number in os.read(heard, 100):
            os.write(1, signal.Signals(number).name.encode() + b"\\n")
    elif not os.read(0, 4096):
        break
print("done")
""",
)  # fmt: skip
