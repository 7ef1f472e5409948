"""The plan: which trials a run is made of. The same seed and length make the same plan."""

import random
from dataclasses import dataclass

from tests.helpers.backends import BACKENDS

TTL = 0.4
"""Seconds of the leases; short, so that many expire in a run of minutes."""

HOLDS, FAILS, CAUGHT = "holds", "fails", "caught"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: in the plan; with seed and length it names the trial for ever.
        system: a module of ``systems``.
        workload: a module of ``workloads``.
        nemesis: a module of ``nemeses``.
        expected: ``holds`` for ours; ``fails`` for a peer that is known to; ``caught`` for a
            mutation, of which the checkers must find something.
        mutation: which part of ours is broken on purpose.
        seconds: how long the workers run.
        seed: of everything that is thrown.
        version: of PostgreSQL.
        backend: what stands around Django's connection, by its name in ``helpers/backends.py``.
        ttl: seconds.
        workers: how many.
        attempt: which, where the first ones found nothing and something must be found.
    """

    number: int
    system: str
    workload: str
    nemesis: str
    expected: str
    seconds: float
    seed: str
    version: int
    mutation: str = ""
    backend: str = "django"
    ttl: float = TTL
    workers: int = 4
    attempt: int = 1

    @property
    def name(self) -> str:
        return f"t{self.number:03}" + "abcdefgh"[self.attempt - 1] * (self.attempt > 1)


OURS = {
    ("fenced", "counter"): (
        "pause", "near_ttl", "kill", "terminate", "crash", "cut", "failover",
        "app_clock", "database_clock", "pooler",
    ),
    ("saved", "saver"): ("pause", "near_ttl", "terminate"),
    ("advisory", "stock"): ("pause", "kill", "terminate", "crash", "cut", "pooler"),
    ("once", "payments"): ("pause", "kill", "terminate", "crash", "cut", "pooler"),
    ("once_leased", "acquirer"): ("pause", "kill", "cut"),
    ("shop", "shop"): ("site",),
    ("leases", "tokens"): (
        "pause", "near_ttl", "kill", "terminate", "crash", "cut", "failover", "zombie", "app_clock",
        "pooler",
    ),
    ("cas", "versions"): ("pause", "kill", "terminate", "crash", "cut"),
    ("semaphore", "permits"): ("pause", "near_ttl", "kill", "terminate", "crash", "cut", "pooler"),
    ("rwlock", "readers_writers"): ("pause", "near_ttl", "kill", "terminate", "crash", "cut"),
    ("leadership", "counter"): ("pause", "kill", "terminate", "crash", "cut"),
    ("once_per", "settlements"): ("pause", "kill", "terminate", "crash", "cut"),
    ("partitioned", "outbox"): ("pause", "kill", "terminate", "crash", "cut", "pooler"),
    ("latched", "latches"): ("kill", "terminate", "crash", "cut"),
    ("advisory", "deadlocks"): ("kill", "terminate", "cut"),
    ("advisory", "savepoints"): ("kill", "terminate", "cut"),
}  # fmt: skip

EVERY_NEMESIS = (
    "pause", "near_ttl", "kill", "terminate", "crash", "cut", "failover", "app_clock",
    "database_clock", "pooler",
)  # fmt: skip
"""What a long run throws at every workload. Not ``zombie``: a primary that says COMMIT without its
standby loses a plain transaction, and only leases promise to notice."""

_NOT_THROWN = {
    # Where the server's clock jumps nobody can trust a lease; guarded writes are safe all the same,
    # which the counter shows.
    ("tokens", "database_clock"),
    # Under libfaketime a server whose clock was moved has no working timers (lock_timeout does not
    # fire, either), so it finds no deadlock: that shows nothing of ours, and nothing of PostgreSQL.
    ("deadlocks", "database_clock"),
}

PEERS = [
    ("redis_py", "counter", "pause", TTL),
    ("python_redis_lock", "counter", "pause", 1.0),
    ("cache_add", "counter", "pause", 1.0),
    ("ttl_row", "counter", "pause", TTL),
    ("ttl_row_app_clock", "counter", "app_clock", TTL),
    ("session_lock", "counter", "pooler", TTL),
    ("plain_save", "versions", "terminate", TTL),
    ("counting_semaphore", "permits", "pause", TTL),
    ("rw_row", "readers_writers", "pause", TTL),
    ("set_nx", "settlements", "terminate", TTL),
    ("modulo", "outbox", "pause", TTL),
    ("counter_latch", "latches", "terminate", TTL),
    ("check_then_record", "payments", "terminate", TTL),
    ("django_idempotency_key", "payments", "terminate", TTL),
]

MUTATIONS = [
    ("guard_without_row_lock", "fenced", "counter", "pause"),
    ("application_clock", "leases", "tokens", "app_clock"),
    ("fence_by_comparison_alone", "saved", "saver", "near_ttl"),
    ("record_after_commit", "once", "payments", "kill"),
    ("key_of_the_run", "once_leased", "acquirer", "terminate"),
    ("complete_without_token", "once_leased", "acquirer", "pause"),
    ("step_after_commit", "once_leased", "acquirer", "terminate"),
    ("guard_without_row_lock", "semaphore", "permits", "pause"),
    ("write_beside_readers", "rwlock", "readers_writers", "pause"),
    ("count_beside_the_part", "latched", "latches", "terminate"),
]


LONG = [
    ("fenced", "counter", "patroni"),
    ("leases", "tokens", "patroni"),
]
"""What a run has once, if it lasts as long as that: a dead leader is replaced after 20 s."""

_LONG_MINUTES, _LONG_SECONDS = 15, 60


def plan(
    minutes: float, seed: str, versions: list[int], seconds: float | None = None
) -> list[Trial]:
    """Return the trials of a run: as many rounds as there is time for, in the seed's order.

    Args:
        minutes: how long the whole plan takes.
        seed: of the order, and of all that is thrown.
        versions: those of PostgreSQL.
        seconds: of each trial; None for what the minutes leave for it.
    """
    dice = random.Random(f"plan {seed}")
    kinds = _kinds(long=minutes >= _LONG_MINUTES)
    rounds = max(1, round(minutes * 60 / (len(kinds) * 7)))
    seconds = seconds or max(1.5, minutes * 60 / (rounds * len(kinds)) - _OVERHEAD)
    trials: list[Trial] = []
    for _ in range(rounds):
        dice.shuffle(kinds)
        for kind in kinds:
            number = len(trials) + 1
            trials.append(
                Trial(
                    number, seconds=round(seconds, 2), seed=f"{seed} {number}",
                    version=dice.choice(versions), **kind,
                    backend=_backend(f"{seed} {number}", **kind),
                )
            )  # fmt: skip
    if minutes >= _LONG_MINUTES:
        for system, workload, nemesis in LONG:
            number = len(trials) + 1
            trials.append(
                Trial(
                    number, system, workload, nemesis, HOLDS, seconds=_LONG_SECONDS,
                    seed=f"{seed} {number}", version=dice.choice(versions),
                    backend=_backend(f"{seed} {number}", expected=HOLDS, nemesis=nemesis),
                )
            )  # fmt: skip
    return trials


def _backend(seed: str, *, expected: str, nemesis: str, **_: object) -> str:
    """Draw what stands around the connection: in half of the trials nothing does.

    Peers and the shop run on Django's own backend. The path that a tenant's cursor sets is lost in
    a pooler that gives each statement another session, so that pair shows nothing of ours.
    """
    if expected == FAILS or nemesis == "site":
        return "django"
    others = [name for name in BACKENDS if (name, nemesis) != ("tenants", "pooler")][1:]
    return random.Random(f"{seed} backend").choice(["django"] * len(others) + others)


_OVERHEAD = 1.3
"""Seconds that a trial takes beside its workers' time, on average."""


def _kinds(*, long: bool) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        {"system": system, "workload": workload, "nemesis": nemesis, "expected": HOLDS}
        for (system, workload), nemeses in OURS.items()
        for nemesis in dict.fromkeys([*nemeses, *(EVERY_NEMESIS if long else ())])
        if (workload, nemesis) not in _NOT_THROWN and (workload == "shop") == (nemesis == "site")
    ]
    found += [
        {"system": system, "workload": workload, "nemesis": nemesis, "expected": FAILS, "ttl": ttl}
        for system, workload, nemesis, ttl in PEERS
    ]
    found += [
        {
            "system": system, "workload": workload, "nemesis": nemesis, "expected": CAUGHT,
            "mutation": mutation,
        }
        for mutation, system, workload, nemesis in MUTATIONS
    ]  # fmt: skip
    return found
