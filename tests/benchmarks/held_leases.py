"""How the cost of a heartbeat, and of one more lease, grows with the leases of a process."""

from typing import Any

from django.db import connection, connections

from django_dblock import fenced_lock
from django_dblock.fencing.heartbeat import Line
from tests.benchmarks import lease
from tests.benchmarks.growth import curve, timed
from tests.benchmarks.measure import Size

TTL = 600
BEAT = """
UPDATE lease_by_hand SET expires_at = clock_timestamp() + interval '600 seconds'
WHERE name = ANY (%s) AND expires_at > clock_timestamp()
"""


def curves(size: Size) -> list[dict[str, Any]]:
    """Hold ever more leases; measure at each point."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE django_dblock_fencedlock")
        cursor.execute("SET synchronous_commit = off")  # for making them, not for what is timed
    by_hand = lease.by_hand("other")
    entered: list[tuple[Any, Any]] = []
    names: list[str] = []
    line = Line("default")
    beats: dict[str, list[float]] = {"hand": [], "ours": []}
    pairs: dict[str, list[float]] = {"hand": [], "ours": []}
    try:
        for count in size.leases:
            while len(entered) < count:
                block = fenced_lock("held", len(entered), ttl=TTL)
                entered.append((block, block.__enter__()))
                names.append(_held_by_hand(f"held:{len(names)}"))
            trusts = [trust for _, one in entered for trust in one.trusts]

            def beat(trusts: list[Any] = trusts) -> None:
                assert line.renew(trusts, patience=60) == ([], [])

            def beat_by_hand(names: list[str] = names) -> None:
                with connections["other"].cursor() as cursor:
                    cursor.execute(BEAT, [names])
                    assert cursor.rowcount == len(names)

            beaten = {"hand": beat_by_hand, "ours": beat}
            for way, value in timed(beaten, times=20, seconds=size.seconds / 2).items():
                beats[way].append(value / 1000)
            paired = {
                "hand": lambda: by_hand(1),
                "ours": lambda: lease.fenced("other", 1),
            }
            for way, value in timed(paired, times=200, seconds=size.seconds / 4).items():
                pairs[way].append(value)
    finally:
        line.close()
        for block, _ in reversed(entered):
            block.__exit__(None, None, None)
        with connection.cursor() as cursor:
            cursor.execute("RESET synchronous_commit")
            cursor.execute("TRUNCATE django_dblock_fencedlock, lease_by_hand")
    return [
        curve(
            "leases-beat", "One heartbeat for all leases of a process", "leases held", "ms",
            size.leases,
            [("hand", "UPDATE … WHERE name = ANY (…)", beats["hand"]),
             ("ours", "the heartbeat", beats["ours"])],
        ),
        curve(
            "leases-pair", "One more lease, taken and given back", "leases held", "µs",
            size.leases,
            [("hand", "the pair by hand", pairs["hand"]), ("ours", "fenced_lock", pairs["ours"])],
        ),
    ]  # fmt: skip


def _held_by_hand(name: str) -> str:
    with connections["other"].cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute(lease.TAKE, {"name": name, "owner": "host:1:main", "ttl": TTL})
        cursor.execute("RESET synchronous_commit")
    return name
