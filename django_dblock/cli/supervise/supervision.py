"""Watch over the command of ``dblock run``: it ends before the lease can be somebody else's.

Of a ttl, counted back from the time until which the lease can be trusted:

- with 35 % left (the lease was to be renewed at two thirds, and every try since has failed):
  SIGTERM to the command's group;
- with 10 % left: SIGKILL; so the command has a quarter of the ttl to come to its end;
- with 5 % left, should this process be frozen: SIGKILL by the keeper.

Where the heartbeat finds the lease gone, somebody else may be at work at once: SIGTERM then, and
SIGKILL a quarter of the ttl later, but after 10 seconds at the latest, and never later than above.
When the command ends by itself, what it left in its group is ended in the same way, before the lock
is given back.
"""

import os
import signal

from django_dblock.cli.supervise.inbox import Inbox
from django_dblock.cli.supervise.job import Job
from django_dblock.cli.supervise.terminal import Terminal
from django_dblock.fencing.lease import Lease
from django_dblock.fencing.trust import now

TERMINATE_AT, KILL_AT, KEEPER_AT = 0.35, 0.1, 0.05

_LONGEST_GRACE = 10.0
"""Seconds, as ``docker stop`` has them, where nothing is won by waiting."""

_LONGEST_DYING = 2.0
"""Seconds for which those are waited for that were killed: one may be out of our reach (another
user's), or its first process may bury nobody."""

_LOOK = 1.0
"""Seconds between two looks at the clock, for a machine that sleeps."""

_SHORT_LOOK = 0.01
"""Seconds between two looks at a group that is ending: its orphans tell nobody."""


class Supervision:
    """One run of one command under one lease.

    Attributes:
        because: why the command was ended; empty if it was not.
    """

    def __init__(self, lease: Lease, job: Job, inbox: Inbox, terminal: Terminal) -> None:
        self.because = ""
        self._lease = lease
        self._job = job
        self._inbox = inbox
        self._terminal = terminal
        self._ttl = lease.trust.ttl
        self._until = now()
        self._kill_at: float | None = None
        self._grace = min((TERMINATE_AT - KILL_AT) * self._ttl, _LONGEST_GRACE)
        self._dying = min(KILL_AT * self._ttl, _LONGEST_DYING)

    def keep(self) -> None:
        """Tell the keeper how long the lease can be trusted."""
        if left := self._lease.remaining:
            self._until = now() + left
        self._job.keep_until(self._until - KEEPER_AT * self._ttl)

    def run(self) -> None:
        """Return when the command has ended, with all of its group; or can't be ended in time."""
        number = None
        while True:
            was_frozen = now() >= self._until - KEEPER_AT * self._ttl
            self.keep()
            self._job.look()
            if was_frozen and self._kill_at is None:
                self._follow_the_keeper()
            if self._job.is_over():
                return
            if self._kill_at is None:
                self._look_at_the_lease()
            if self._kill_at is None:
                self._pass_on(number)
            elif now() >= self._kill_at:
                self._job.signal(signal.SIGKILL)
                if now() >= self._kill_at + self._dying:
                    return
            number = self._inbox.wait(self._pause())

    def _follow_the_keeper(self) -> None:
        """It has killed the command, or is about to; also where the lease can still be saved."""
        if self._job.returncode in (None, -signal.SIGKILL):
            self.because = "'dblock run' was frozen until the lease was about to run out"
            self._kill_at = now()

    def _look_at_the_lease(self) -> None:
        latest = self._until - KILL_AT * self._ttl
        kill_at = min(now() + self._grace, latest)
        if self._lease.lost:
            self.because = self._lease.loss().reason
        elif self._job.returncode is not None:
            pass  # it has ended by itself; what it left in its group has not
        elif self._until - now() <= TERMINATE_AT * self._ttl:
            self.because = "no renewal was confirmed, and the lease is about to run out"
            kill_at = latest  # it is still ours until then
        else:
            return
        self._kill_at = max(now(), kill_at)
        if now() < latest:
            self._ask_to_end(signal.SIGTERM)

    def _pass_on(self, number: int | None) -> None:
        if number == signal.SIGTSTP:
            self._job.signal(number)
            self._stop()
        elif self._job.stopped and self._terminal.is_given:
            self._stop()
        elif number == signal.SIGCONT:
            self._terminal.give(self._job.group)
            self._job.signal(number)
        elif number in (signal.SIGUSR1, signal.SIGUSR2):
            self._job.signal_command(number)
        elif number is not None and number != signal.SIGCHLD:
            self._ask_to_end(number)
        self._job.stopped = False

    def _ask_to_end(self, number: int) -> None:
        self._job.signal(number)
        self._job.signal(signal.SIGCONT)  # what is stopped ends only when it goes on

    def _stop(self) -> None:
        """Stop with the command, as the shell expects. Nobody renews the lease then."""
        self._terminal.take_back()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _pause(self) -> float:
        if self._kill_at is None:
            return min(_LOOK, self._until - TERMINATE_AT * self._ttl - now())
        if self._job.returncode is None and now() < self._kill_at:
            return min(_LOOK, self._kill_at - now())
        return _SHORT_LOOK
