"""Examine how long a client that hangs or has vanished keeps its locks.

PostgreSQL manual: 20.3.2 "TCP Settings", 20.11.1 "Statement Behavior".
"""

from collections.abc import Iterator

from django_dblock.conf import conf
from django_dblock.doctor.facts import Facts
from django_dblock.doctor.finding import Finding

_LONG = 300
"""Seconds of silence; most waiters for a lock have given up by then."""


def hung_client(facts: Facts) -> Iterator[Finding]:
    """Find sessions that may be idle in a transaction indefinitely."""
    limits = {
        name: facts.number(name) / 1000
        for name in ("idle_in_transaction_session_timeout", "transaction_timeout")
        if facts.number(name)
    }
    if limits:
        shown = ", ".join(f"{name} is {limit:g} s" for name, limit in limits.items())
        yield Finding("hung-client", "ok", f"{shown}.")
        return
    yield Finding(
        "hung-client", "warning",
        f"idle_in_transaction_session_timeout is 0{_newer(facts)}.",
        "A program that stops inside a lock's block, in a debugger or a call that hangs, keeps "
        "the lock indefinitely.",
        f"ALTER ROLE {facts.session.login} SET idle_in_transaction_session_timeout = '60s';",
    )  # fmt: skip


def _newer(facts: Facts) -> str:
    return ", and so is transaction_timeout" if "transaction_timeout" in facts.settings else ""


def vanished_client(facts: Facts) -> Iterator[Finding]:
    """Report after how many seconds the server notices that a client's machine has vanished."""
    whose = "pooler's" if facts.session.pooled else "client's"
    if facts.session.on_socket:
        yield Finding(
            "vanished-client", "ok",
            f"Connected by a Unix socket: the kernel reports at once when the {whose} process "
            f"ends.",
        )  # fmt: skip
        return
    idle, interval, count = (
        facts.number(f"tcp_keepalives_{name}") for name in ("idle", "interval", "count")
    )
    silence = idle + interval * count
    shown = (
        f"The server notices that a {whose} machine has vanished after {silence:,} s of silence "
        f"(tcp_keepalives_idle {idle}, _interval {interval}, _count {count}; tcp_user_timeout "
        f"{facts.number('tcp_user_timeout') / 1000:g} s)."
    )
    if silence <= _LONG:
        yield Finding("vanished-client", "ok", shown)
        return
    role = facts.session.login
    yield Finding(
        "vanished-client", "warning", shown,
        "Until then its transaction stays open and keeps its locks, unless another timeout ends "
        "the transaction sooner.",
        f"ALTER ROLE {role} SET tcp_keepalives_idle = '30s'; the same with "
        f"tcp_keepalives_interval = '10s' and tcp_keepalives_count = 3."
        + (
            " Set tcp_keepalive in the pooler, too, for the pooler's clients."
            if facts.session.pooled
            else ""
        ),
    )  # fmt: skip


def waiting_client(facts: Facts) -> Iterator[Finding]:
    """Find that the server does not check during a statement whether its client is connected."""
    interval = facts.number("client_connection_check_interval") / 1000
    if interval:
        yield Finding(
            "waiting-client", "ok", f"client_connection_check_interval is {interval:g} s."
        )
        return
    yield Finding(
        "waiting-client", "info",
        "client_connection_check_interval is 0.",
        "A disconnected waiter keeps its place in the queue, and is granted the lock when its turn "
        "comes.",
        f"ALTER ROLE {facts.session.login} SET client_connection_check_interval = '10s';",
    )  # fmt: skip


def time_limits(facts: Facts) -> Iterator[Finding]:
    """Find a server timeout that fires before the lock's own timeout."""
    statement, lock, transaction = (
        facts.number(f"{name}_timeout") / 1000 for name in ("statement", "lock", "transaction")
    )
    shown = f"statement_timeout is {statement:g} s, lock_timeout is {lock:g} s"
    shown += f", transaction_timeout is {transaction:g} s." if transaction else "."
    ours = conf.advisory_timeout
    shorter = [
        name
        for name, limit in (("statement", statement), ("transaction", transaction))
        if limit and (ours is None or limit <= ours)
    ]
    if shorter:
        mine = "without a limit" if ours is None else f"up to {ours:g} s"
        ends = "A long wait ends with Django's OperationalError instead of LockTimeout."
        if "transaction" in shorter:
            ends = (
                "A long wait ends with an error of Django's instead of LockTimeout; "
                "transaction_timeout also ends the connection."
            )
        yield Finding(
            "time-limits", "warning",
            f"{shown} A lock waits {mine} (DBLOCK_ADVISORY_TIMEOUT).",
            ends,
            f"Make DBLOCK_ADVISORY_TIMEOUT, or timeout=, shorter than "
            f"{' and '.join(f'{name}_timeout' for name in shorter)}.",
        )  # fmt: skip
    elif not statement and not transaction:
        yield Finding(
            "time-limits", "info", shown,
            "A statement that never ends keeps its transaction's locks; 0 means no limit.",
            f"ALTER ROLE {facts.session.login} SET statement_timeout = '30s';",
        )  # fmt: skip
    else:
        yield Finding("time-limits", "ok", shown)
