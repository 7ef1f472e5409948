"""``dblock release``: end a fenced lock by force, or resolve a request without a response."""

from pathlib import Path
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_dblock.cli.console import confirm, operator_name, printable, seconds
from django_dblock.core.logging import audit_log
from django_dblock.exceptions import IdempotencyError
from django_dblock.fencing.lease_name import names_of
from django_dblock.fencing.operations import force_release_grant
from django_dblock.fencing.store import alias_for
from django_dblock.idempotency.operations import JSON, resolve_idempotency_key
from django_dblock.idempotency.store import alias_for as requests_alias
from django_dblock.inspect import (
    FencedLease,
    UnfinishedRequest,
    fenced_leases,
    short_wait,
    unfinished_requests,
)

# ``dblock release --request``: free a request whose worker is lost, or give it a response.


_ANSWERS = {"retry": "--retry", "answer": "--answer", "body_file": "--body-file",
            "content_type": "--content-type"}  # fmt: skip


def add_request_arguments(parser: CommandParser) -> None:
    """Add the arguments for the request and its outcome."""
    parser.add_argument(
        "--request",
        type=int,
        metavar="ID",
        help="not a lease, but this request, as 'dblock list --kind idempotency' shows it",
    )
    outcome = parser.add_mutually_exclusive_group()
    outcome.add_argument(
        "--retry",
        action="store_true",
        help="of a request: let the next retry run it, after the last recorded step",
    )
    outcome.add_argument(
        "--answer",
        type=int,
        metavar="STATUS",
        help="of a request: the status of the response that every retry gets",
    )
    parser.add_argument(
        "--body-file", type=Path, metavar="FILE", help="the response's body; empty if not given"
    )
    parser.add_argument(
        "--content-type",
        metavar="TYPE",
        help=f"the content type of the response's body; {JSON} if not given",
    )


def given_request_options(options: dict[str, Any]) -> list[str]:
    """Return the options that are about requests."""
    return [written for name, written in _ANSWERS.items() if options[name] not in (None, False)]


def resolve_request(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Show the request, ask, and resolve it as it was shown.

    Raises:
        CommandError: there is no such request, a worker holds it, or the prompt was declined.
    """
    decision = _decision(options)
    request = _shown(stdout, options)
    what = f"Request {request.id}"
    if not options["yes"]:
        confirm("Resolve it? Its worker may still be running, or have had an effect elsewhere.")
    try:
        resolve_idempotency_key(
            request.id, token=request.token, by=operator_name(), using=options["using"], **decision
        )
    except ObjectDoesNotExist as error:
        raise CommandError(f"{what} no longer exists, or has ended.") from error
    except (IdempotencyError, ValueError) as error:
        raise CommandError(printable(str(error))) from error
    if decision["outcome"] == "retry":
        stdout.write(f"{what} is free: the next retry resumes after its last step.")
    else:
        stdout.write(f"{what} has a response: every retry gets {decision['status_code']}.")


def _decision(options: dict[str, Any]) -> dict[str, Any]:
    if options["slot"]:
        raise CommandError("--slot belongs to a lease; a request has no slot.")
    if options["retry"]:
        if given_request_options(options) != ["--retry"]:
            raise CommandError("--retry takes no response: the next retry runs the request.")
        return {"outcome": "retry"}
    if options["answer"] is None:
        raise CommandError("Choose what happens to the request: --retry, or --answer STATUS.")
    try:
        body = b"" if options["body_file"] is None else options["body_file"].read_bytes()
    except OSError as error:
        raise CommandError(f"--body-file can't be read: {error}.") from error
    return {
        "outcome": "done",
        "status_code": options["answer"],
        "body": body,
        "content_type": options["content_type"] or JSON,
    }


def _shown(stdout: OutputWrapper, options: dict[str, Any]) -> UnfinishedRequest:
    with short_wait(requests_alias(options["using"])):
        found = unfinished_requests(options["using"], pk=options["request"])
    if not found:
        raise CommandError(
            f"There is no request {options['request']} that has not ended. 'dblock list --kind "
            f"idempotency' shows the requests that have not ended."
        )
    [request] = found
    asked = f"{request.method} {request.path}".strip() or "run_once"
    steps = ", ".join(request.steps) or "none"
    stdout.write(
        printable(
            f"Request {request.id}: {asked} of {request.scope}, key {request.key}, is "
            f"{request.state}, started {seconds(request.age)} ago. Last worker: "
            f"{request.owner or 'none'}, token {request.token}. Steps recorded: {steps}."
        )
    )
    return request


def add_arguments(parser: CommandParser) -> None:
    """Take the name of a lock or the number of a request, and whether to ask."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="the lease, as 'dblock list' shows it"
    )
    parser.add_argument(
        "--slot", type=int, default=0, help="which lease, if the name has several; 0 if not given"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_request_arguments(parser)


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Show the lease's holder, ask, release that grant, and write it to the audit log.

    Raises:
        CommandError: it is not held, or not by the one that was shown; or the prompt was declined.
    """
    if (options["name"] is None) == (options["request"] is None):
        raise CommandError("Give the NAME of a lease, or --request with the ID of a request.")
    if options["request"] is not None:
        resolve_request(stdout, options)
        return
    if given := given_request_options(options):
        raise CommandError(f"{' and '.join(given)}: only with --request.")
    lease = _held(options["name"], options["slot"], options["using"])
    place = f"{'slot' if lease.role == 'lock' else lease.role} {lease.slot}"
    what = printable(f"{lease.key} ({place}, token {lease.token})")
    stdout.write(
        f"{what} is held by {printable(lease.owner)}, since {seconds(lease.age)}, for another "
        f"{seconds(lease.remaining)} unless renewed."
    )
    if not options["yes"]:
        confirm("Release it? The holder is not stopped: its work may still be running.")
    if not force_release_grant(lease.name, lease.slot, lease.token, using=options["using"]):
        raise CommandError(
            f"{what} has ended, or has another holder by now. Nothing was done. "
            f"'dblock list' shows the present holder."
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
    stdout.write(f"{what} is released. Its holder notices at its next heartbeat or guard.")


def _held(name: str, slot: int, using: str | None) -> FencedLease:
    """Return the lease with this name; one name can be that of a lock and of a semaphore, too.

    Raises:
        CommandError: there is none, it is not held, or there are several.
    """
    with short_wait(alias_for(using)):
        found = fenced_leases(using, name=names_of(name), expired=True)
    leases = [lease for lease in found if lease.slot == slot]
    held = [lease for lease in leases if lease.state == "held"]
    leases = [lease for lease in held if lease.name == name] or held or leases[:1]
    if not leases:
        raise CommandError(
            f"There is no lease {name!r} with slot {slot}. 'dblock list --kind fenced' shows the "
            f"names and slots."
        )
    if len(leases) > 1:
        names = ", ".join(lease.name for lease in leases)
        raise CommandError(f"{name!r} names several leases: give one of these names: {names}.")
    [lease] = leases
    if lease.state == "expired":
        raise CommandError(
            f"{name!r} is not held: it can be granted as soon as no guarded transaction of its "
            f"last holder is open."
        )
    if lease.state == "delayed":
        raise CommandError(
            f"{name!r} is not held any more: its lock_delay or hold_at_least ends in "
            f"{lease.free_in:.1f} s."
        )
    return lease
