"""Take the lease, run the command, and say in an exit status how that went."""

import logging
import os
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import Error, connections
from django.utils.connection import ConnectionDoesNotExist

from django_dblock.cli.exit_status import (
    FAILED,
    LOST,
    NOT_EXECUTABLE,
    NOT_FOUND,
    SIGNALLED,
    USAGE,
)
from django_dblock.cli.supervise.inbox import Inbox
from django_dblock.cli.supervise.job import Job
from django_dblock.cli.supervise.supervision import Supervision
from django_dblock.cli.supervise.terminal import Terminal
from django_dblock.conf import conf
from django_dblock.exceptions import DblockError, LockLost, LockTimeout
from django_dblock.fencing.lease import Lease
from django_dblock.fencing.lock import fenced_lock
from django_dblock.fencing.names import lease_name
from django_dblock.keys import Key
from django_dblock.labels import named

logger = logging.getLogger("django_dblock.run")


def run_under_lock(key: Key, options: dict[str, Any]) -> int:
    """Return the command's exit status, 128 + n if signal n ended it.

    Raises:
        CommandError: with the exit status of what went wrong.
    """
    with Inbox() as inbox:
        try:
            return _run(key, options, inbox)
        except KeyboardInterrupt:
            return SIGNALLED + inbox.interrupted_by


def _run(key: Key, options: dict[str, Any], inbox: Inbox) -> int:
    status, because = None, ""
    try:
        with Job() as job, _block(key, options, inbox) as lease:
            because = _attend(job, lease, lease_name(named(key), conf.namespace), options, inbox)
            status = _status(job)
    except LockTimeout as error:
        if options["quiet"]:
            return int(options["exit_code"])
        raise CommandError(str(error), returncode=options["exit_code"]) from error
    except LockLost as error:
        because = error.reason
    except (DblockError, Error, ImproperlyConfigured, ConnectionDoesNotExist) as error:
        if status is None:
            raise CommandError(f"Nothing was run: {error}", returncode=FAILED) from error
        logger.warning("The lock was not given back, it expires: %s", error, extra={"error": error})
    if because:
        raise CommandError(
            f"The lock was lost while the command ran ({because}). The command "
            f"{_fate(status)}. What it has done may have met the work of the next holder.",
            returncode=LOST,
        )
    assert status is not None  # noqa: S101 - it ran, and nothing was lost
    return status


def _block(key: Key, options: dict[str, Any], inbox: Inbox) -> fenced_lock:
    try:
        return fenced_lock(
            *key,
            ttl=options["ttl"],
            timeout=options["timeout"],
            hold_at_least=options["hold_at_least"],
            lock_delay=options["lock_delay"],
            using=options["using"],
            on_lost=inbox.wake,
        )
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), returncode=USAGE) from error


def _attend(job: Job, lease: Lease, name: str, options: dict[str, Any], inbox: Inbox) -> str:
    """Run the command under the lease; return why it was ended, or nothing."""
    # It would stand idle meanwhile, perhaps for hours; the release opens another.
    if not connections[lease.using].in_atomic_block:
        connections[lease.using].close()
    environment = {**os.environ, "DBLOCK_LOCK": name, "DBLOCK_TOKEN": str(lease.token)}
    terminal = Terminal()
    inbox.collect()
    supervision = Supervision(lease, job, inbox, terminal)
    try:
        supervision.keep()
        terminal.give(job.group)
        _start(job, options["command"], environment)
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
