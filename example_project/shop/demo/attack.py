"""Hundreds of visits by several processes, all started by one shot."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import quantiles

from django.core.management.base import CommandError

from shop.demo.children import child

_KINDS = {200: "saved", 201: "sold", 409: "sold out", 503: "busy"}


@dataclass(frozen=True, slots=True)
class Load:
    """How hard to attack."""

    visits: int
    processes: int
    threads: int

    def shares(self) -> list[int]:
        """How many visits each process makes."""
        least, more = divmod(self.visits, self.processes)
        return [least + (number < more) for number in range(self.processes)]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one visitor was answered in the end, after some tries. Status 0: nothing.

    Attributes:
        copies: how often the same was asked for at once.
        different: how many different answers there were to that.
        word: what the crowd calls it, where the status does not say.
    """

    status: int
    seconds: float
    waited: float = 0.0
    tries: int = 1
    copies: int = 1
    different: int = 1
    word: str = ""

    @property
    def kind(self) -> str:
        return self.word or _KINDS.get(self.status, "failed")


@dataclass(frozen=True, slots=True)
class Answers:
    """What all visitors were answered."""

    all: tuple[Answer, ...]

    def count(self, kind: str) -> int:
        return Counter(answer.kind for answer in self.all)[kind]

    @property
    def retried(self) -> int:
        """How many tries were not the first."""
        return sum(answer.tries - answer.copies for answer in self.all)

    @property
    def latency(self) -> tuple[float, float]:
        """The 50th and 99th percentile of the time to an answer, in seconds."""
        return _percentiles([answer.seconds for answer in self.all])

    @property
    def wait(self) -> tuple[float, float]:
        """The same of the time spent waiting for locks, as the site reports it."""
        return _percentiles([answer.waited for answer in self.all])


def attack(  # noqa: PLR0913 - who, where, what, how hard
    crowd: str,
    address: str,
    sku: str,
    load: Load,
    on_answer: Callable[[Answer], None],
    *,
    env: Mapping[str, str] | None = None,
) -> Answers:
    """Let a crowd visit one thing, all at once; tell of each answer as it comes.

    Args:
        crowd: ``buyers``, ``editors`` or ``payers``, the module beside this one.
        sku: what they visit; for ``payers``, which orders.
        env: what its processes need to know beside the address.
    """
    read_end, write_end = os.pipe()
    with ExitStack() as stack:
        answers = stack.enter_context(os.fdopen(read_end, "rb"))
        output = stack.enter_context(os.fdopen(write_end, "wb"))
        processes = [
            stack.enter_context(
                child(
                    f"shop.demo.{crowd}",
                    *(address, sku, f"{crowd}-{number}", str(share), str(load.threads)),
                    env=env,
                    stdout=output,
                )
            )
            for number, share in enumerate(load.shares(), 1)
        ]
        output.close()  # from here on, the pipe ends when the last process does
        for _ in processes:
            if answers.readline() != b"ready\n":
                raise CommandError(f"A process of {crowd} did not start.")
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        found = []
        for answer in _read(answers):
            on_answer(answer)
            found.append(answer)
    if len(found) != load.visits:
        raise CommandError(f"Only {len(found)} of {load.visits} {crowd} came back.")
    return Answers(tuple(found))


def _read(lines: Iterator[bytes]) -> Iterator[Answer]:
    for line in lines:
        yield Answer(**json.loads(line))


def _percentiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]
