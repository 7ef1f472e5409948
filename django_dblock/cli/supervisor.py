"""Supervise the command of ``dblock run``: end the command before another holder gets the lease.

The supervision counts back from the time until which the lease can be trusted:

- with 35 % of the ttl left: SIGTERM to the command's process group. The lease should have been
  renewed with two thirds left, and every attempt since has failed.
- with 10 % of the ttl left: SIGKILL. So the command has a quarter of the ttl to end.
- with 5 % of the ttl left: SIGKILL by the watchdog, in case this process is frozen.

If the heartbeat finds the lease lost, another holder may be at work already. Then the group gets
SIGTERM at once, and SIGKILL a quarter of the ttl later, but after 10 seconds at the latest, and
never later than above. When the command ends by itself, the processes that it left in its group are
ended in the same way, before the lock is released.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Timer
from types import FrameType, TracebackType
from typing import Any, Self, TypeAlias
from zoneinfo import ZoneInfoNotFoundError

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, OutputWrapper
from django.db import Error, connections
from django.utils.connection import ConnectionDoesNotExist

from django_dblock.cli.advisory_hold import TTL, AdvisoryHold
from django_dblock.cli.console import (
    FAILED,
    LOST,
    NOT_EXECUTABLE,
    NOT_FOUND,
    SIGNALLED,
    USAGE,
    printable,
    reason,
)
from django_dblock.cli.supervised_process import Job
from django_dblock.coordination.once_per import Period, once_per
from django_dblock.coordination.semaphore import fenced_semaphore
from django_dblock.core.application_name import named
from django_dblock.exceptions import DblockError, LockLost, LockTimeout
from django_dblock.fencing.deadline import now
from django_dblock.fencing.lease import Lease
from django_dblock.fencing.lock import fenced_lock
from django_dblock.keys import Key

# Receiving signals, and the loss of the lease, while ``dblock run`` waits.


ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
OTHERS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD)

_AGAIN = 0.01
"""Seconds until KeyboardInterrupt is raised again after Python has swallowed it."""


class Inbox:
    """The receiver of the process's signals while its block runs.

    A signal that the process ignores stays ignored (``nohup``). Until :meth:`collect` is called, a
    signal that ends a process raises KeyboardInterrupt, as Ctrl-C does. After :meth:`collect`, all
    signals are put into a queue.

    Attributes:
        interrupted_by: the signal that raised KeyboardInterrupt.
        is_interrupted: whether a signal has raised KeyboardInterrupt, perhaps where Python has
            swallowed it.
        asked_to_end: the latest collected signal that asks this process to end; None without one.
    """

    def __init__(self) -> None:
        self.interrupted_by: int = signal.SIGINT
        self.asked_to_end: int | None = None
        self.is_interrupted = False
        self._again: Timer | None = None
        self._hook = sys.unraisablehook
        # Threads write to the queue, and so does a signal handler that may have interrupted a
        # reader or a writer of the queue. SimpleQueue.put() is reentrant for that.
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        sys.unraisablehook = self._swallowed
        for number in ENDING:
            self._handle(number, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._again is not None:
            for ending in ENDING:
                self._handle(ending, self._put)  # so that no late signal ends this process
            self._again.cancel()
            self._again.join()
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        sys.unraisablehook = self._hook

    def collect(self) -> None:
        """Put all signals into the queue from now on, and raise KeyboardInterrupt no more.

        Raises:
            KeyboardInterrupt: an earlier one was swallowed.
        """
        for number in (*ENDING, *OTHERS):
            self._handle(number, self._put)
        if self.is_interrupted:
            raise KeyboardInterrupt

    def wake(self, *_: object) -> None:
        """End the present or the next :meth:`wait`; may be called from any thread."""
        self._queue.put(None)

    def wait(self, seconds: float) -> int | None:
        """Return the next signal; None after the timeout or after :meth:`wake`."""
        try:
            return self._queue.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def _handle(self, number: int, handler: Any) -> None:
        current = signal.getsignal(number)
        if current is not signal.SIG_IGN or number == signal.SIGCHLD:
            self._before.setdefault(number, current)
            signal.signal(number, handler)

    def _put(self, number: int, _frame: FrameType | None) -> None:
        if number in ENDING:
            self.asked_to_end = number
        self._queue.put(number)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.interrupted_by = number
        self.is_interrupted = True
        raise KeyboardInterrupt

    def _swallowed(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raise KeyboardInterrupt again if Python has swallowed it.

        Python swallows what is raised in the callback of a weak reference or in ``__del__``. A
        signal handler can run there: for example, an import ends with such a callback.
        """
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # a thread, because an alarm may be in use by others
            self._again = Timer(_AGAIN, os.kill, (os.getpid(), self.interrupted_by))
            self._again.daemon = True
            self._again.start()
        else:
            self._hook(unraisable)


# Passing the terminal to the command's process group, and taking it back.


class Terminal:
    """The terminal, if this process is in its foreground and uses it for input and output.

    In a pipeline (``dblock run … | less``) the terminal belongs to the whole pipeline, and is not
    passed on.
    """

    def __init__(self) -> None:
        self.is_given = False

    def give(self, group: int) -> None:
        """Make the command's group the foreground: it gets the input, Ctrl-C and Ctrl-Z."""
        if os.isatty(0) and os.isatty(1) and _foreground() == os.getpgrp():
            os.tcsetpgrp(0, group)
            self.is_given = True

    def take_back(self) -> None:
        """Make this process's group the foreground again, if the terminal was given."""
        if self.is_given:
            self.is_given = False
            # tcsetpgrp() from the background sends SIGTTOU, which would stop this process.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            try:
                with suppress(OSError):  # the terminal is gone
                    os.tcsetpgrp(0, os.getpgrp())
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _foreground() -> int | None:
    try:
        return os.tcgetpgrp(0)
    except OSError:  # the terminal belongs to another session
        return None


TERMINATE_AT, KILL_AT, WATCHDOG_AT = 0.35, 0.1, 0.05

_LONGEST_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL at most, after the lease was lost; as in ``docker stop``."""

_LONGEST_DYING = 2.0
"""Seconds to wait for killed processes. A process of another user can't be killed, and a container
whose first process reaps nothing keeps dead processes."""

_LOOK = 1.0
"""Seconds between two looks at the clock: a wait does not count time while the machine sleeps."""

_SHORT_LOOK = 0.01
"""Seconds between two looks at a group that is ending, because orphans send no SIGCHLD."""


class Supervision:
    """The supervision of one run of a command under one lease.

    Attributes:
        because: why the command was ended; empty if the command was not ended.
    """

    def __init__(
        self, lease: Lease | AdvisoryHold, ttl: float, job: Job, inbox: Inbox, terminal: Terminal
    ) -> None:
        self.because = ""
        self._lease = lease
        self._job = job
        self._inbox = inbox
        self._terminal = terminal
        self._ttl = ttl
        self._until = now()
        self._kill_at: float | None = None
        self._grace = min((TERMINATE_AT - KILL_AT) * self._ttl, _LONGEST_GRACE)
        self._dying = min(KILL_AT * self._ttl, _LONGEST_DYING)

    def keep(self) -> None:
        """Tell the watchdog until when the lease can be trusted."""
        if left := self._lease.remaining:
            self._until = now() + left
        self._job.keep_until(self._until - WATCHDOG_AT * self._ttl)

    def run(self) -> None:
        """Return when all processes of the command's group have ended, or resist being ended."""
        number = None
        while True:
            was_frozen = now() >= self._until - WATCHDOG_AT * self._ttl
            self.keep()
            self._job.look()
            if was_frozen and self._kill_at is None:
                self._follow_the_watchdog()
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

    def _follow_the_watchdog(self) -> None:
        """End the run: the watchdog has killed the command, or is about to."""
        if self._job.returncode in (None, -signal.SIGKILL):
            self.because = "'dblock run' was suspended until the lease was about to expire"
            self._kill_at = now()

    def _look_at_the_lease(self) -> None:
        latest = self._until - KILL_AT * self._ttl
        kill_at = min(now() + self._grace, latest)
        if self._lease.lost:
            self.because = self._lease.loss().reason
        elif self._job.returncode is not None:
            pass  # the command has ended by itself; end the processes that it left in its group
        elif self._until - now() <= TERMINATE_AT * self._ttl:
            self.because = "no renewal was confirmed, and the lease is about to expire"
            kill_at = latest  # until then the lease is still held
        else:
            return
        self._kill_at = max(now(), kill_at)
        if now() < latest:
            self._ask_to_end(signal.SIGTERM)

    def _pass_on(self, number: int | None) -> None:
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            self._job.signal_command(number)
            return  # whether the command has stopped is looked at next
        if number == signal.SIGTSTP:
            self._job.signal(number)
            self._stop()
        elif number in ENDING:
            self._ask_to_end(number)
        elif self._job.stopped and self._terminal.is_given:
            self._stop()
        elif number == signal.SIGCONT:
            self._terminal.give(self._job.group)
            self._job.signal(number)
        self._job.stopped = False

    def _ask_to_end(self, number: int) -> None:
        self._job.signal(number)
        self._job.signal(signal.SIGCONT)  # a stopped process handles SIGTERM only when continued

    def _stop(self) -> None:
        """Stop this process together with the command, as the shell expects."""
        # The heartbeat stops, too, so the lease is not renewed meanwhile.
        self._terminal.take_back()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _pause(self) -> float:
        if self._kill_at is None:
            return min(_LOOK, self._until - TERMINATE_AT * self._ttl - now())
        if self._job.returncode is None and now() < self._kill_at:
            return min(_LOOK, self._kill_at - now())
        return _SHORT_LOOK


# Taking the lease, running the command, and the exit status.


logger = logging.getLogger("django_dblock.run")


def run_under_lock(key: Key, options: dict[str, Any]) -> int:
    """Run the command under a lock or a semaphore's permit.

    Returns:
        The command's exit status; 128 + n if signal n ended the command.

    Raises:
        CommandError: the lock was not acquired or was lost, or the command can't be run; with the
            exit status of the failure.
    """
    return run_under(partial(_block, key, options), options)


def run_once_per(key: Key, options: dict[str, Any], stdout: OutputWrapper) -> int:
    """Run the command under a lock of the job's name, unless the job has succeeded in this period.

    The success is recorded in a transaction that checks that the lock is still held.

    Returns:
        The command's exit status; 0 if the job has succeeded in this period already; 128 + n if
        signal n ended the command.

    Raises:
        CommandError: the period or the time zone is wrong, the lock was not acquired or was lost,
            the command can't be run, or the success could not be recorded; with the exit status of
            the failure.
    """
    try:
        job = once_per(options["once_per"], key=key, tz=options["tz"], using=options["using"])
    except (TypeError, ValueError, ZoneInfoNotFoundError) as error:
        raise CommandError(str(error), returncode=USAGE) from error
    lock = ("once_per", *key, options["once_per"])
    return run_under(partial(_block, lock, options), options, Record(job, stdout))


Block: TypeAlias = AbstractContextManager[Any]
"""The block in which the command runs; entering returns a Lease or an AdvisoryHold."""


class LostWhileRunning(CommandError):
    """The lock was lost while the command ran.

    Attributes:
        asked_to_end: the signal that asked this process to end meanwhile; None if there was none.
    """

    asked_to_end: int | None = None


class Record:
    """The record of whether the job of ``--once-per`` has succeeded in the current period.

    Attributes:
        is_kept: whether this run's success has been recorded.
    """

    def __init__(self, job: once_per, stdout: OutputWrapper) -> None:
        self.is_kept = False
        self._job = job
        self._stdout = stdout
        self._period: Period | None = None

    def is_made(self) -> bool:
        """Return whether the job has succeeded in the current period; print that if it has."""
        self._period = self._job.current()
        if not self._job.is_finished(self._period):
            return False
        self._stdout.write(f"{self._job.name} is done for {self._period} already: nothing was run.")
        return True

    def make(self, lease: Any) -> None:
        """Record that the job has succeeded, if the lock is still held.

        Raises:
            LockLost: the lock is not held any more. Nothing was recorded.
        """
        assert self._period is not None  # noqa: S101 - is_made() was called before
        self._job.record(self._period, lease)
        self.is_kept = True


def run_under(
    block: Callable[[Inbox], Block],
    options: dict[str, Any],
    record: Record | None = None,
    leads: Callable[[Any], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Run the command inside a block.

    Args:
        block: makes the block.
        options: the command's options.
        record: where success is recorded, with ``--once-per``.
        leads: returns a context manager that is entered while the lease is held.

    Returns:
        The command's exit status; 128 + n if signal n ended the command.

    Raises:
        CommandError: the lock was not acquired or was lost, the command can't be run, or its
            success could not be recorded; with the exit status of the failure.
    """
    with Inbox() as inbox:
        try:
            return _run(block, options, inbox, record, leads)
        except KeyboardInterrupt:
            return SIGNALLED + inbox.interrupted_by
        except CommandError:
            # An interrupt was swallowed just before. It must end 'dblock lead', too.
            if inbox.is_interrupted:
                return SIGNALLED + inbox.interrupted_by
            raise


def _run(
    block: Callable[[Inbox], Block],
    options: dict[str, Any],
    inbox: Inbox,
    record: Record | None,
    leads: Callable[[Any], AbstractContextManager[object]],
) -> int:
    status, because = None, ""
    try:
        with Job() as job, block(inbox) as held:
            if record is not None and record.is_made():
                return 0
            with leads(held):
                because = _attend(job, held, options["command"], inbox)
                status = _status(job)
            if record is not None and status == 0 and not because:
                record.make(held)
    except LockTimeout as error:
        if options["quiet"]:
            return int(options["exit_code"])
        raise CommandError(printable(str(error)), returncode=options["exit_code"]) from error
    except LockLost as error:
        because = error.reason
    except (DblockError, Error, ImproperlyConfigured, ConnectionDoesNotExist) as error:
        said = reason(error) if isinstance(error, Error) else str(error)
        if status is None:
            raise CommandError(f"Nothing was run: {said}", returncode=FAILED) from error
        if record is not None and status == 0 and not record.is_kept:
            raise CommandError(
                f"The command succeeded, but that could not be recorded: {said}. It is due again.",
                returncode=FAILED,
            ) from error
        logger.warning("The lock was not released; it expires: %s", error, extra={"error": error})
    if because:
        loss = LostWhileRunning(
            f"The lock was lost while the command ran ({because}). The command "
            f"{_fate(status)}. Its last effects may conflict with the next holder's work.",
            returncode=LOST,
        )
        loss.asked_to_end = inbox.asked_to_end
        raise loss
    assert status is not None  # noqa: S101 - the command ran, and the lock was not lost
    return status


def _block(key: Key, options: dict[str, Any], inbox: Inbox) -> "Block":
    if options["advisory"]:
        return AdvisoryHold(named(key), using=options["using"], timeout=options["timeout"])
    terms = {
        "ttl": options["ttl"],
        "timeout": options["timeout"],
        "hold_at_least": options["hold_at_least"],
        "lock_delay": options["lock_delay"],
        "using": options["using"],
        "on_lost": inbox.wake,
    }
    try:
        if options["semaphore"]:
            return fenced_semaphore(*key, permits=options["permits"], **terms)
        return fenced_lock(*key, **terms)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), returncode=USAGE) from error


def _attend(job: Job, lease: Lease | AdvisoryHold, command: list[str], inbox: Inbox) -> str:
    """Run the command under the lock; return why the command was ended, or an empty string."""
    if isinstance(lease, AdvisoryHold):
        environment, ttl = {"DBLOCK_LOCK": lease.name}, TTL
    else:
        environment = {"DBLOCK_LOCK": lease.trust.place.name, "DBLOCK_TOKEN": str(lease.token)}
        ttl = lease.trust.ttl
    # The connection would be idle while the command runs, perhaps for hours. The release opens
    # another connection.
    if not connections[lease.using].in_atomic_block:
        connections[lease.using].close()
    terminal = Terminal()
    inbox.collect()
    supervision = Supervision(lease, ttl, job, inbox, terminal)
    try:
        supervision.keep()
        terminal.give(job.group)
        _start(job, command, {**os.environ, **environment})
        supervision.run()
    finally:
        terminal.take_back()
    return supervision.because


def _start(job: Job, command: list[str], environment: dict[str, str]) -> None:
    try:
        job.start(command, environment)
    except ChildProcessError as error:
        raise CommandError(str(error), returncode=FAILED) from error
    except FileNotFoundError as error:
        raise CommandError(
            f"{command[0]}: there is no such command", returncode=NOT_FOUND
        ) from error
    except OSError as error:
        raise CommandError(
            f"{command[0]} can't be run: {error}", returncode=NOT_EXECUTABLE
        ) from error


def _status(job: Job) -> int | None:
    code = job.returncode
    return code if code is None or code >= 0 else SIGNALLED - code


def _fate(status: int | None) -> str:
    return "could not be ended" if status is None else f"ended with exit status {status}"
