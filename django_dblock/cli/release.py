"""``dblock release``: end a fenced lock by force, or decide what becomes of an open request."""

from typing import Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.audit import audit_log
from django_dblock.cli.person import confirm, operator_name
from django_dblock.cli.release_request import add_request_arguments, given_request_options, resolve_request
from django_dblock.cli.table import printable, seconds
from django_dblock.fencing.operate import force_release_grant
from django_dblock.fencing.table import alias_for
from django_dblock.inspect import FencedLease, fenced_leases


def add_arguments(parser: CommandParser) -> None:
    """Take the name of a lock or the number of a request, and whether to ask."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="the lock, as 'dblock list' shows it"
    )
    parser.add_argument(
        "--slot", type=int, default=0, help="which of several under this name; 0 if not given"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_request_arguments(parser)


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Show who has the lock, ask, end that grant, and write it to the audit log.

    Raises:
        CommandError: it is not held, or not by the one that was shown; or nobody said yes.
    """
    if (options["name"] is None) == (options["request"] is None):
        raise CommandError("Give the NAME of a fenced lock, or --request with the ID of a request.")
    if options["request"] is not None:
        resolve_request(stdout, options)
        return
    if given := given_request_options(options):
        raise CommandError(f"{' and '.join(given)}: only with --request.")
    lease = _held(options["name"], options["slot"], options["using"])
    what = printable(f"{lease.name} (slot {lease.slot}, token {lease.token})")
    stdout.write(
        f"{what} is held by {printable(lease.owner)}, since {seconds(lease.age)}, for another "
        f"{seconds(lease.remaining)} unless renewed."
    )
    if not options["yes"]:
        confirm("Release it? What it protects may still be at work.")
    if not force_release_grant(lease.name, lease.slot, lease.token, using=options["using"]):
        raise CommandError(
            f"{what} has ended meanwhile, and was not touched. 'dblock list' shows who has it now."
        )
    who, alias = operator_name(), alias_for(options["using"])
    audit_log.warning(
        "dblock: %s released %s (slot %s) on %r by force: token %s of %s is fenced off",
        who, lease.name, lease.slot, alias, lease.token, lease.owner,
        extra={
            "by": who, "lock": lease.name, "slot": lease.slot, "using": alias,
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
