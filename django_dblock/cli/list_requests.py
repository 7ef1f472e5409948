"""The requests with idempotency keys that have not ended, in ``dblock list``."""

from typing import Any

from django_dblock.cli.missing import tolerate_missing_table
from django_dblock.cli.table import printable, seconds
from django_dblock.inspect import UnfinishedRequest, unfinished_requests

REQUEST_COLUMNS = (
    "request", "state", "scope", "key", "method", "path", "token", "owner", "age", "lease",
    "expires in", "steps",
)  # fmt: skip


def find_requests(options: dict[str, Any]) -> list[UnfinishedRequest]:
    """Return those that the filters leave; none where the table was never made.

    Nobody waits for a request that can be seen here, and it is no lock on a key.
    """
    if options["key"] or options["blocked"]:
        return []
    requests: list[UnfinishedRequest] = []
    with tolerate_missing_table("idempotency", options["kind"]):
        requests = unfinished_requests(options["using"])
    return [each for each in requests if each.state == "leased" or not options["held"]]


def request_row(request: UnfinishedRequest) -> tuple[str, ...]:
    """Put one into words."""
    return (
        str(request.id),
        request.state,
        printable(request.scope),
        printable(request.key),
        printable(request.method),
        printable(request.path),
        str(request.token),
        printable(request.owner),
        seconds(request.age),
        seconds(request.remaining if request.state == "leased" else None),
        "" if request.expires_in is None else f"{request.expires_in:.0f} s",
        ", ".join(map(printable, request.steps)),
    )
