"""The protocols, in every order of their steps: docs/explanation/the-lease-model.md.

Each is checked twice over: as it is, where Spin must find nothing; and with one part broken, or
with a claim that something never happens, where it must find a run that shows it.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.servers import need

pytestmark = pytest.mark.faults

MODELS = Path(__file__).parent / "model"
OPTIONS = ["-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=480"]  # megabytes

HOLD = [
    ("lease", ()),
    ("lease", ("CLAIM",)),
    ("lease", ("OPERATOR", "END_OF_TIME=4")),
    ("idempotency", ()),
    ("idempotency", ("LEASE",)),
    ("semaphore", ()),
    ("semaphore", ("LOWERED",)),
    ("semaphore", ("OPERATOR", "GRANTS=2")),
    ("semaphore", ("FAIR", "GRANTS=2")),
    ("rwlock", ()),
    ("rwlock", ("PURGES", "GRANTS=3")),
    ("rwlock", ("QUEUE", "GRANTS=2")),
    ("rwlock", ("CLIENTS=3", "GRANTS=3")),
    ("leadership", ()),
    ("once_per", ()),
    ("partitions", ()),
    ("partitions", ("WORK", "ROUNDS=1")),
    ("latch", ()),
]
BROKEN = [
    ("lease", ("WRITE_ONLY_FENCE",), "mine[i]==latest"),
    ("lease", ("CHECK_ONLY",), "mine[i]==latest"),
    ("lease", ("NO_RECHECK_GUARD",), "mine[i]==latest"),
    ("lease", ("APP_CLOCK",), "deadline[0]>now"),
    ("lease", ("NO_RECHECK_ACQUIRE",), "deadline[0]>now"),
    ("lease", ("TRUST_FROM_ANSWER",), "deadline[0]>now"),
    ("lease", ("EARLY_TOKEN",), "next>latest"),
    ("lease", ("PURGE_ANY",), "next>latest"),
    ("idempotency", ("RECORD_AFTER_COMMIT",), "charges<=1"),
    ("idempotency", ("RECORD_BEFORE",), "charges==1"),
    ("idempotency", ("NO_LOCK",), "charges<=1"),
    ("idempotency", ("LOCK_AFTER_READ",), "charges<=1"),
    ("idempotency", ("LEASE", "NO_TOKEN"), "charges<=1"),
    ("idempotency", ("LEASE", "CLAIM_ANYWAY"), "charges<=1"),
    ("idempotency", ("LEASE", "CLAIM_ANSWERED"), "charges<=1"),
    ("semaphore", ("CHECK_ONLY",), "mine[s]==token[s]"),
    ("semaphore", ("GUARD_FIRST",), "mine[s]==token[s]"),
    ("semaphore", ("LOOK_ONLY",), "!(live[s])"),
    ("semaphore", ("SOME",), "got=="),
    ("semaphore", ("RELEASE_ANY",), "token[s]==mine[s]"),
    ("semaphore", ("COUNTER",), "working<=2"),
    ("semaphore", ("FAIR", "NO_TURN"), "before)+taken"),
    ("semaphore", ("FAIR", "HEADS"), "before)+taken"),
    ("rwlock", ("ONE_STATEMENT",), "next>newest"),
    ("rwlock", ("ANY_GATE", "PURGES"), "next>newest"),
    ("rwlock", ("READERS_KEEP",), "latest_write<mine"),
    ("rwlock", ("WRITER_KEEPS",), "mine==newest"),
    ("rwlock", ("DOWNGRADE_KEEPS",), "mine==newest"),
    ("rwlock", ("COUNT_LIVE",), "next>newest"),
    ("rwlock", ("GAPS",), "mine==newest"),
    ("rwlock", ("OLD_TOKENS",), "next>newest"),
    ("rwlock", ("QUEUE", "NO_TURN"), "overtaken[s]<"),
    ("leadership", ("CHECK_ONLY",), "guarded==latest"),
    ("leadership", ("BY_OWNER",), "guarded==latest"),
    ("leadership", ("RESIGN_ANY",), "token==mine"),
    ("leadership", ("KEEP_TOKEN",), "token>latest"),
    ("leadership", ("RENEW_ENDED",), "resigned[token]"),
    ("leadership", ("PASS_GUARD",), "shared==0"),
    ("once_per", ("SET_NX",), "effect[i]==1"),
    ("once_per", ("RECORD_AFTER",), "effect[mine]<=1"),
    ("once_per", ("NO_LOCK",), "effect[mine]<=1"),
    ("once_per", ("NX_EXPIRES",), "effect[mine]<=1"),
    ("once_per", ("APP_CLOCK",), "mine<=period"),
    ("once_per", ("LATE_PERIOD",), "recorded[mine]"),
    ("partitions", ("WORK", "CHECK_ONLY", "EVENTS=2", "ROUNDS=1"), "working[p]==1"),
    ("partitions", ("WORK", "NO_LEASE", "EVENTS=2", "ROUNDS=1"), "working[p]==1"),
    ("partitions", ("TAKE_ANY",), "!(live[p])"),
    ("partitions", ("ROUND_UP",), "most-least"),
    ("partitions", ("ROUND_DOWN",), "number==4"),
    ("partitions", ("KEEP",), "most-least"),
    ("partitions", ("FOREVER",), "number==4"),
    ("latch", ("BESIDE",), "effect[0]"),
    ("latch", ("COUNTER",), "effect[0]"),
    ("latch", ("READ_AND_WRITE",), "&&open"),
    ("latch", ("ONE_ROW",), "violated 0"),
    ("latch", ("LAST_ACTS",), "&&open"),
]
HAPPENS = [
    ("lease", ("SEE_TAKEOVER",), "mine[(1-i)]==token"),
    ("lease", ("SEE_COMMITS",), "last_writer"),
    ("lease", ("SEE_REFUSAL",), "violated 0"),
    ("lease", ("SEE_RENEWED",), "renewing[i]+2"),
    ("idempotency", ("SEE_REPLAY",), "told==0"),
    ("idempotency", ("SEE_CRASH",), "charges==0"),
    ("idempotency", ("LEASE", "SEE_REPLAY"), "told==0"),
    ("idempotency", ("LEASE", "SEE_CRASH"), "charges==0"),
    ("idempotency", ("LEASE", "SEE_TAKEOVER"), "token==0"),
    ("semaphore", ("SEE_BOTH",), "working=="),
    ("semaphore", ("SEE_SKIP",), "seen[s]"),
    ("semaphore", ("SEE_TAKEOVER",), "token[s]==0"),
    ("semaphore", ("SEE_REFUSAL",), "violated 0"),
    ("semaphore", ("SEE_LATE",), "mine[s]==0"),
    ("rwlock", ("SEE_READERS",), "reading==1"),
    ("rwlock", ("SEE_WRITE",), "violated 0"),
    ("rwlock", ("SEE_DOWNGRADE",), "violated 0"),
    ("rwlock", ("SEE_REFUSAL",), "violated 0"),
    ("rwlock", ("PURGES", "SEE_PURGE"), "live[0]"),
    ("rwlock", ("QUEUE", "SEE_OVERTAKE"), "overtaken[s]==0"),
    ("leadership", ("SEE_TAKEOVER",), "owner=="),
    ("leadership", ("SEE_AGAIN",), "owner!=me"),
    ("leadership", ("SEE_REFUSAL",), "violated 0"),
    ("leadership", ("SEE_LATE",), "resigned[token]"),
    ("once_per", ("SEE_DONE",), "violated 0"),
    ("once_per", ("SEE_RUNNING",), "violated 0"),
    ("once_per", ("SEE_DEAD",), "violated 0"),
    ("once_per", ("SEE_MISSED",), "violated 0"),
    ("partitions", ("SEE_MOVE",), "violated 0"),
    ("partitions", ("WORK", "SEE_REFUSAL", "EVENTS=2", "ROUNDS=1"), "violated 0"),
    ("partitions", ("SEE_TAKEOVER",), "owner[p]"),
    ("partitions", ("SEE_BALANCED",), "events<1"),
    ("latch", ("SEE_OPEN",), "violated 0"),
    ("latch", ("SEE_ROLLBACK",), "counted[0]"),
    ("latch", ("SEE_TWICE",), "violated 0"),
]


class Found(NamedTuple):
    """What Spin says: the number of errors, the states it has been in, the broken assertion."""

    errors: int
    states: int
    said: str
    trail: int


def check(model: str, switches: tuple[str, ...], folder: Path) -> Found:
    """Go through all the states of a model."""
    spin, compiler = need("spin", "spin"), need("gcc", "gcc")
    shutil.copy(MODELS / f"{model}.pml", folder)
    defines = [f"-D{switch}" for switch in switches]
    for command in (
        [spin, *defines, "-a", f"{model}.pml"],
        [compiler, *OPTIONS, "-o", "pan", "pan.c"],
        ["./pan", "-m100000", "-w21"],
    ):  # fmt: skip
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    out = done.stdout
    errors, states = re.search(r"errors: (\d+)", out), re.search(r"(\d+) states, stored", out)
    assert errors, out
    assert states, out
    assert "search not completed" not in out.lower() or int(errors[1]), out  # depth or memory
    assert "max search depth too small" not in out, out
    said = re.search(r"^pan:1: (.*)", out, re.MULTILINE)
    trail = folder / f"{model}.pml.trail"
    steps = len(trail.read_text().splitlines()) if trail.exists() else 0
    found = Found(int(errors[1]), int(states[1]), said[1] if said else "", steps)
    print(f"{model} {' '.join(switches) or '(as it is)'}: {found}")
    return found


def named(value: object) -> str | None:
    return "-".join(value) or "as-it-is" if isinstance(value, tuple) else None


@pytest.mark.parametrize(("model", "switches"), HOLD, ids=named)
def test_the_protocol_holds_in_every_order_of_its_steps(model, switches, tmp_path):
    found = check(model, switches, tmp_path)
    assert (found.errors, found.said) == (0, "")
    assert found.states > 100  # it has been somewhere


@pytest.mark.parametrize(("model", "switches", "property_"), BROKEN, ids=named)
def test_with_one_part_broken_it_is_refuted(model, switches, property_, tmp_path):
    found = check(model, switches, tmp_path)
    assert found.errors >= 1
    assert property_ in found.said  # by what it promises, not by getting stuck
    assert found.trail > 0


@pytest.mark.parametrize(("model", "switches", "denied"), HAPPENS, ids=named)
def test_what_it_is_for_does_happen(model, switches, denied, tmp_path):
    """Else it would hold because nothing ever happens."""
    found = check(model, switches, tmp_path)
    assert found.errors >= 1
    assert denied in found.said


def test_every_switch_of_the_models_is_tried():
    """A variant that nobody runs proves nothing."""
    tried = {
        (model, s.partition("=")[0])
        for model, found, *_ in [*HOLD, *BROKEN, *HAPPENS]
        for s in found
    }
    bounds = {"TTL", "END_OF_TIME", "GRANTS", "COMMITS", "CRASHES", "PERMITS", "CLIENTS"}
    bounds |= {"CANDIDATES", "TERMS", "RUNNERS", "PERIODS", "CALLS", "DEATHS", "WORKERS", "COUNT"}
    bounds |= {"EVENTS", "ROUNDS", "FAILURES"}
    for path in MODELS.glob("*.pml"):
        text = path.read_text()
        own = set(re.findall(r"#define (\w+)", text))
        asked = set(re.findall(r"(?:#ifn?def |defined\()(\w+)", text)) - own - bounds
        assert asked == {switch for of, switch in tried if of == path.stem} - bounds
