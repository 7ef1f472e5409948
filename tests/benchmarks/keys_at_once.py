"""How the cost of a lock grows with the keys that one call locks."""

from typing import Any

from django.db import transaction

from tests.benchmarks import several
from tests.benchmarks.growth import curve, timed
from tests.benchmarks.measure import Size


def by_keys_at_once(size: Size) -> dict[str, Any]:
    values: dict[str, list[float]] = {"raw": [], "ours": []}
    for count in size.curve_together:

        def raw(count: int = count) -> None:
            with several.opened("default"):
                several.raw("default", 1, count)

        def ours(count: int = count) -> None:
            with several.opened("default"):
                several.ours("default", 1, count)

        found = timed({"raw": raw, "ours": ours}, times=200, seconds=size.seconds / 4)
        for way, value in found.items():
            values[way].append(value)
    assert not transaction.get_connection().in_atomic_block
    return curve(
        "together", "Keys that one call locks", "keys", "µs", size.curve_together,
        [("raw", "raw, one statement for all", values["raw"]),
         ("ours", "advisory_locks", values["ours"])],
    )  # fmt: skip
