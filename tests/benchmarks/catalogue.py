"""What is measured. Later operations of the package add their scenarios here."""

from collections.abc import Callable
from functools import partial

from tests.benchmarks import (
    bulk,
    commit,
    inside,
    lease,
    lease_statements,
    listening,
    listing,
    once,
    over_http,
    save,
    several,
    slow_path,
)
from tests.benchmarks.crowd import Crowd
from tests.benchmarks.measure import Scenario

SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "inside": inside.scenario,
    "commit": commit.scenario,
    "commit-latency": commit.scenario_with_latency,
    "several": several.scenario,
    "several-latency": several.scenario_with_latency,
    "save": save.scenario,
    "save-inside": save.scenario_inside,
    "save-latency": save.scenario_with_latency,
    "bulk": bulk.scenario,
    "lease": lease.scenario,
    "lease-statements": lease_statements.scenario,
    "lease-latency": lease.scenario_with_latency,
    "once": once.scenario,
    "once-latency": once.scenario_with_latency,
    "replay": once.replay_scenario,
    "replay-latency": once.replay_scenario_with_latency,
    "request": over_http.scenario,
    "list": listing.scenario,
    "list-json": listing.scenario_as_json,
    "listening": listening.scenario,
    "slow-lock": partial(slow_path.lock, "default"),
    "slow-lock-latency": partial(slow_path.lock, "latency"),
    "slow-lease": partial(slow_path.leases, "default"),
    "slow-once": partial(slow_path.requests, "default"),
    "slow-once-latency": partial(slow_path.requests, "latency"),
}

CROWDS: dict[str, Crowd] = {
    crowd.name: crowd
    for crowd in (
        Crowd("hot", "One hot key, a row read and written under it"),
        Crowd("hot-empty", "One hot key, nothing done under it", writes=False),
    )
}
