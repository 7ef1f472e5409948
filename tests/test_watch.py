"""``manage.py dblock watch``: the list, refreshed."""

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from io import StringIO

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from django_dblock import advisory_lock, fenced_lock
from django_dblock.cli import console as table
from django_dblock.cli import watch
from django_dblock.cli import watch as pause
from django_dblock.cli.watch import Picture
from tests.doctor.helpers import leading
from tests.fencing.running import ROOT, dblock, environment
from tests.helpers import observe, servers
from tests.helpers.locks import waiter_behind

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
    pytest.mark.slow,
]

LEAVE = b"\x1b[?1049l"

"""The terminal's own screen is back."""
STATEMENTS = 1 + 3 * 4
"""Of one look: one for the advisory locks; of three tables one each, with three around it."""


class Rounds:
    """In place of the pause: so many looks, then Ctrl-C; what is done between them is given."""

    def __init__(self, *between):
        self._between = list(between)
        self.asked = []

    @contextmanager
    def __call__(self):
        yield self._wait

    def _wait(self, seconds):
        self.asked.append(seconds)
        if not self._between:
            raise KeyboardInterrupt
        return self._between.pop(0)()


class Tty(StringIO):
    def isatty(self):
        return True


@pytest.fixture
def looks(monkeypatch):
    """Watch with these things done between the looks; return what was printed."""

    def run(*between, arguments=(), out=None):
        rounds = Rounds(*between)
        monkeypatch.setattr(watch, "pauses", rounds)
        out = out or StringIO()
        call_command("dblock", "watch", *arguments, stdout=out, no_color=True)
        run.asked = rounds.asked
        return out.getvalue()

    return run


class TestPipe:
    """Where no terminal is, one table after the other."""

    def test_each_refresh_is_one_table(self, looks, rival):
        shown = looks(lambda: rival.execute("SELECT pg_advisory_lock(7)") and False)
        rival.execute("SELECT pg_advisory_unlock(7)")
        first, nothing, empty, second, columns, lock, *_ = shown.splitlines()
        assert first.endswith(", every 2 s")
        assert second.endswith(", every 2 s")
        assert (nothing, empty) == ("Nothing is locked.", "")
        assert columns.split()[:3] == ["lock", "mode", "state"]
        assert lock.startswith("7 ")
        assert "\x1b" not in shown

    def test_filters_of_the_list_select_locks(self, looks, observer):
        with fenced_lock("nightly", ttl=60), waiter_behind(observer), advisory_lock("b"):
            assert "nightly" not in looks(arguments=["--kind", "advisory"])
            assert "exclusive" not in looks(arguments=["--name", "night*"])
            assert "\nb " not in looks(arguments=["--blocked"])
            keyed = looks(arguments=["--key", "nightly"])
            assert looks(arguments=["--using", "other"]).count("exclusive") == 0
        assert "nightly" in keyed
        assert "exclusive" not in keyed

    def test_refresh_reads_each_kind_with_one_statement(self, looks, statements):
        with statements() as sent:
            looks(lambda: False, lambda: False)
        assert len(sent) == 3 * STATEMENTS

    def test_no_transaction_stays_open_between_two_looks(self, looks, rival):
        """Also where the alias's transactions begin by themselves."""

        def transactions():
            [[count]] = rival.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            ).fetchall()
            seen.append(count)
            return False

        seen = []
        looks(transactions)
        with leading(AUTOCOMMIT=False):
            looks(transactions)
        assert seen == [0, 0]

    def test_options_that_list_refuses_are_refused(self, looks):
        with pytest.raises(CommandError, match="not a finite number"):
            looks(arguments=["--key", "decimal:NaN"])

    @pytest.mark.parametrize("interval", ["0", "-1", "0.05", "nan", "inf", "100000"])
    def test_wrong_interval_is_refused(self, interval):
        with pytest.raises(CommandError, match="--interval"):
            call_command("dblock", "watch", f"--interval={interval}")

    def test_interval_counts_from_before_the_look(self, looks):
        looks(arguments=["--interval", "60"])
        assert 0 < looks.__dict__["asked"][0] < 60

    def test_lost_connection_is_reported_and_survived(self, looks, rival):
        def end():
            rival.execute(
                "SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid]
            )
            return False

        first, away, again, *_ = looks(end, lambda: False).split("\n\n")
        assert "Nothing is locked." in first
        assert "The database can't be queried, trying again: " in away
        assert len(away.splitlines()) == 2
        assert "Nothing is locked." in again


class TestTerminal:
    def test_terminal_shows_names_and_waiters(self, looks, rendering, observer, monkeypatch):
        if rendering == "plain":
            monkeypatch.setitem(sys.modules, "rich.live", None)
        monkeypatch.setenv("COLUMNS", "150")
        with waiter_behind(observer):
            shown = looks(lambda: False, out=Tty())
        assert "inventory:sku-1" in shown
        assert "waits for" in shown
        assert shown.count("every 2 s") >= 2
        assert shown.rstrip().endswith("\x1b[?1049l") or "\x1b[?1049l\x1b[?25h" in shown

    def test_more_than_fits_is_counted(self, looks, rendering, rival, monkeypatch):
        monkeypatch.setenv("LINES", "10")
        monkeypatch.setenv("COLUMNS", "80")
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 300) AS n")
        shown = looks(out=Tty())
        rival.execute("ROLLBACK")
        assert "… 294 more" in shown

    def test_resize_redraws_without_a_query(self, looks, rendering, statements):
        with statements() as sent:
            shown = looks(lambda: True, out=Tty())
        assert len(sent) == STATEMENTS
        assert shown.count("Nothing is locked.") >= 2

    def test_markup_and_emoji_codes_are_not_rendered(self, looks, rendering, rival, monkeypatch):
        monkeypatch.setenv("COLUMNS", "300")
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
        rival.execute("SELECT '[red]a:lock:b'")
        shown = looks(out=Tty())
        rival.execute("ROLLBACK")
        assert "SELECT '[red]a:lock:b'" in shown

    def test_control_characters_become_question_marks(self, looks, rendering, rival, monkeypatch):
        monkeypatch.setenv("COLUMNS", "300")
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(1)")
        rival.execute("SELECT '\x1b]0;pwned\x07'")
        shown = looks(out=Tty())
        rival.execute("ROLLBACK")
        assert "'?]0;pwned?'" in shown
        assert "\x1b]0;" not in shown


@pytest.mark.parametrize(
    ("lines", "left", "remark"),
    [(100, [3, 2], ""), (9, [3], "… 2 more"), (7, [3], "… 2 more"), (6, [2], "… 3 more"),
     (2, [], "… 5 more")],
)  # fmt: skip
def test_picture_is_cropped_to_the_terminal(lines, left, remark):
    tables = ((("a",), (("1",), ("2",), ("3",))), (("b",), (("4",), ("5",))))
    cropped = Picture("now", tables).cropped(80, lines)
    assert [len(rows) for _, rows in cropped.tables] == left
    assert cropped.remark == remark


@pytest.mark.parametrize(
    ("width", "cells"),
    [
        (100, ("inventory:sku-1", "4711", "SELECT something")),
        (30, ("inventory:…", "4711", "SELECT som…")),
        (9, ("…", "4…", "S…")),
        (1, ("…", "…", "…")),
    ],
)
def test_widest_columns_are_cut_first(width, cells):
    _, [row] = table.fitted(
        ("lock", "pid", "query"), [("inventory:sku-1", "4711", "SELECT something")], width
    )
    if width > 1:
        assert len("  ".join(row)) <= width
    assert row == cells


class TestPause:
    def test_resize_ends_the_pause_and_restores_handlers(self):
        before = [signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGTERM)]
        with pause.pauses() as wait:
            assert not wait(0)
            os.kill(os.getpid(), signal.SIGWINCH)
            assert wait(60)
        assert before == [signal.getsignal(n) for n in (signal.SIGWINCH, signal.SIGTERM)]

    def test_sigterm_interrupts(self):
        with pytest.raises(KeyboardInterrupt), pause.pauses() as wait:
            os.kill(os.getpid(), signal.SIGTERM)
            wait(60)

    def test_sigterm_that_python_swallows_interrupts_the_next_wait(self, monkeypatch):
        class Finalized:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)

        swallowed = []
        monkeypatch.setattr(sys, "unraisablehook", lambda error: swallowed.append(error.exc_type))
        with pause.pauses() as wait:
            Finalized()
            assert swallowed == [KeyboardInterrupt]
            with pytest.raises(KeyboardInterrupt):
                wait(1)

    def test_ignored_signals_stay_ignored(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with pause.pauses():
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)


class TestNobodyReads:
    class Closed(StringIO):
        error = errno.EPIPE

        def flush(self):
            raise OSError(self.error, os.strerror(self.error))

    def test_closed_pipe_ends_watch(self, looks):
        looks(out=self.Closed())
        assert looks.__dict__["asked"] == [], "it does not pause for another look"

    def test_vanished_terminal_ends_watch(self, looks, monkeypatch):
        monkeypatch.setattr(self.Closed, "error", errno.EIO)
        looks(out=self.Closed())
        assert looks.__dict__["asked"] == []

    def test_full_disk_is_an_error(self, looks, monkeypatch):
        monkeypatch.setattr(self.Closed, "error", errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            looks(out=self.Closed())

    def test_buffered_output_is_discarded(self, looks, monkeypatch):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(watch, "pauses", Rounds())
            call_command("dblock", "watch")


PLAIN = """
import sys
from django.core.management import execute_from_command_line
sys.modules["rich.console"] = None
execute_from_command_line(sys.argv)
"""
# A terminal has to be that of the session, or hanging up tells nobody.
WITH_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Watching:
    """``dblock watch`` in a process of its own, at a terminal, with or without ``rich``."""

    def __init__(self, *arguments, plain=False, url=None, size=(24, 120)):
        self._ours, theirs = pty.openpty()
        self.resize(*size, theirs)
        env = {**environment(url), "TERM": "xterm-256color"}
        env.pop("COLUMNS", None)
        env.pop("LINES", None)
        command = dblock("watch", "--interval", "0.2", *arguments)
        if plain:
            command = [sys.executable, "-c", PLAIN, *command[3:]]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WITH_TERMINAL, *command],
            env=env, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait(90)
        with suppress(OSError):
            os.close(self._ours)

    def resize(self, lines, columns, terminal=None):
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._ours if terminal is None else terminal, termios.TIOCSWINSZ, size)

    def type(self, text):
        os.write(self._ours, text)

    def read(self):
        if select.select([self._ours], [], [], 0.1)[0]:
            with suppress(OSError):  # EIO: it has ended
                self.seen += os.read(self._ours, 65_536)
        return self.seen

    def until(self, *texts):
        """Wait until all of these were written since the last time."""
        self.seen = b""
        observe.until(lambda: all(text in self.read() for text in texts), f"{texts}: {self.seen!r}")
        return self.seen

    def hang_up(self):
        os.close(self._ours)

    def ended(self):
        observe.until(
            lambda: self.read() is not None and self.process.poll() is not None, "it ends"
        )
        self.read()
        return self.process.returncode


@pytest.mark.processes
@pytest.mark.parametrize("plain", [False, True], ids=["rich", "plain"])
class TestAtATerminal:
    def test_locks_appear_and_disappear(self, plain, rival):
        with Watching(plain=plain) as watching:
            watching.until(b"Nothing is locked.")
            rival.execute("SELECT pg_advisory_lock(4711)")
            watching.until(b"4711", b"exclusive")
            rival.execute("SELECT pg_advisory_unlock(4711)")
            watching.until(b"Nothing is locked.")

    @pytest.mark.parametrize("end", ["ctrl-c", signal.SIGTERM, signal.SIGHUP])
    def test_ctrl_c_and_signals_restore_the_terminal(self, plain, end):
        with Watching(plain=plain) as watching:
            watching.until(b"Nothing is locked.")
            if end == "ctrl-c":
                watching.type(b"\x03")
            else:
                watching.process.send_signal(end)
            assert watching.ended() == 0
            assert LEAVE in watching.seen
            assert b"Traceback" not in watching.seen

    def test_closed_terminal_ends_watch(self, plain):
        with Watching(plain=plain) as watching:
            watching.until(b"Nothing is locked.")
            watching.hang_up()
            assert watching.process.wait(90) == 0

    def test_resize_is_followed(self, plain, rival):
        rival.execute("BEGIN; SELECT pg_advisory_xact_lock(n) FROM generate_series(1, 50) AS n")
        with Watching("--interval", "600", plain=plain) as watching:
            watching.until("… 30 more".encode())
            watching.resize(12, 60)
            watching.until("… 42 more".encode())
        rival.execute("ROLLBACK")


@pytest.mark.processes
def test_watch_survives_a_server_restart():
    server = servers.throw_away()
    try:
        with Watching("--kind", "advisory", url=server.url) as watching:
            watching.until(b"Nothing matches.")
            server.stop()
            watching.until(b"trying again")
            server.start()
            watching.until(b"Nothing matches.")
            with psycopg.connect(server.url) as holding:
                holding.execute("SELECT pg_advisory_xact_lock(4711)")
                watching.until(b"4711")
    finally:
        server.remove()


@pytest.mark.processes
def test_reader_that_stops_ends_watch_silently():
    """As ``dblock watch | head`` does."""
    process = subprocess.Popen(
        dblock("watch", "--interval", "0.1"), env=environment(), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert b"every 0.1 s" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(90) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_hidden_sessions_are_marked(looks, observer, rival):
    observer.execute("DROP ROLE IF EXISTS dblock_plain; CREATE ROLE dblock_plain LOGIN")
    rival.execute("BEGIN; SELECT pg_advisory_xact_lock(7)")
    with leading(USER="dblock_plain"):
        shown = looks(arguments=["--kind", "advisory"])
    rival.execute("ROLLBACK")
    observer.execute("DROP ROLE dblock_plain")
    assert shown.splitlines()[2].split()[-2:] == ["hidden", "hidden"]
