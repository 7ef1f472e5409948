"""``dblock release``: end a fenced lock by force, whoever has it, and fence its holder off."""

import getpass
import logging
import os
import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.cli.table import printable, seconds
from django_dblock.fencing.operate import force_release_grant
from django_dblock.fencing.table import alias_for
from django_dblock.inspect import FencedLease, fenced_leases

audit = logging.getLogger("django_dblock.audit")


def add_arguments(parser: CommandParser) -> None:
    """Take the name, and whether to ask."""
    parser.add_argument("name", metavar="NAME", help="the lock, as 'dblock list' shows it")
    parser.add_argument(
        "--slot", type=int, default=0, help="which of several under this name; 0 if not given"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Show who has the lock, ask, end that grant, and write it to the audit log.

    Raises:
        CommandError: it is not held, or not by the one that was shown; or nobody said yes.
    """
    lease = _held(options["name"], options["slot"], options["using"])
    what = printable(f"{lease.name} (slot {lease.slot}, token {lease.token})")
    stdout.write(
        f"{what} is held by {printable(lease.owner)}, since {seconds(lease.age)}, for another "
        f"{seconds(lease.remaining)} unless renewed."
    )
    if not options["yes"]:
        _ask()
    if not force_release_grant(lease.name, lease.slot, lease.token, using=options["using"]):
        raise CommandError(
            f"{what} has ended meanwhile, and was not touched. 'dblock list' shows who has it now."
        )
    who, alias = _who(), alias_for(options["using"])
    audit.warning(
        "dblock: %s released %s (slot %s) on %r by force: token %s of %s is fenced off",
        who, lease.name, lease.slot, alias, lease.token, lease.owner,
        extra={
            "os_user": who, "lock": lease.name, "slot": lease.slot, "using": alias,
            "token": lease.token, "owner": lease.owner,
        },
    )  # fmt: skip
    stdout.write(f"{what} is released. Its holder is told at its next heartbeat or guard.")


def _held(name: str, slot: int, using: str | None) -> FencedLease:
    leases = [
        lease for lease in fenced_leases(using, name=name, expired=True) if lease.slot == slot
    ]
    if not leases:
        raise CommandError(
            f"There is no fenced lock {name!r} with slot {slot}. 'dblock list --kind fenced' shows "
            f"the names as they are in the table."
        )
    [lease] = leases
    if lease.state == "expired":
        raise CommandError(f"{name!r} is not held: anybody may have it.")
    if lease.state == "delayed":
        raise CommandError(
            f"{name!r} is not held any more: its delay ends by itself in {lease.free_in:.1f} s."
        )
    return lease


def _ask() -> None:
    if not sys.stdin.isatty():
        raise CommandError("Nobody is there to ask. Pass --yes to release it.")
    answer = input("Release it? What it protects may still be at work. [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("Not released.")


def _who() -> str:
    """Who runs this, by what the system knows, not by what the environment says."""
    try:
        import pwd

        uid = os.getuid()
        user = pwd.getpwuid(uid).pw_name
    except ImportError:  # Windows
        return getpass.getuser()
    except KeyError:  # a container that runs as a mere number
        return f"uid {uid}"
    behind = os.environ.get("SUDO_USER") if uid == 0 else None
    return f"{user} (sudo: {behind})" if behind else user
