"""The lease on one name as a thing that does one act after the other: what it may answer, and when.

Who takes it gets a token greater than all before, and does so when it was given back or when its
time may be over. Who checked or renewed it with success, or gave it back and was told that it had
it, did so before anybody got a greater one, and had not been told of a loss. A lease expires by
time alone, which is nobody's operation; so all that can be said is when it can *not* have expired:
it lasts for its ttl from the beginning of the acquire, or of a renewal.

A check asks the holder's own clock, and is judged all the same: what it promises is that nobody
else has been granted the lease by the moment at which it looks, somewhere within the operation.

- An unknown release may have happened, at any time since; it never has to.
- An unknown acquire is left out. Had it been granted, it would only have forbidden things.
- So is an unknown renewal, which adds time at most, and what has failed.
- LockLost has told the holder of its loss, whether in a check or in a renewal.
"""

from math import inf
from typing import NamedTuple

from tests.faults.history import FAIL, OK, Operation

_CLOCKS = 0.95
"""The share of a ttl that must have passed by our clock when it has by the server's."""


class Call(NamedTuple):
    """One operation, as far as it says something; an unknown one ends never (``inf``).

    Attributes:
        act: ``acquire``, ``use``, ``release``, ``leave`` (it may have been ours), or ``lost``.
        until: when the time that it promises is over, at the earliest.
    """

    id: str
    act: str
    token: int
    began: float
    ended: float
    until: float = -inf


class State(NamedTuple):
    """The latest grant, whether its holder may trust it, and when it can first have expired."""

    token: int = 0
    trusted: bool = False
    until: float = -inf


def step(state: State, call: Call) -> State | None:
    """Return the state after the call; None where that can't have been its answer.

    What is possible and changes nothing is about a grant that is over, or is allowed already what
    it asks for; so it changes nothing in any later state in which it is possible.
    """
    if call.act == "acquire":
        early = call.token <= state.token or call.ended < state.until
        return None if early else State(call.token, trusted=True, until=call.until)
    if call.token != state.token:
        over = call.token < state.token and call.act in ("leave", "lost")
        return state if over else None
    if call.act == "leave":
        return State(state.token)
    if call.act == "lost":
        return state._replace(trusted=False)
    if not state.trusted:
        return None
    if call.act == "release":
        return State(state.token)
    return state._replace(until=max(state.until, call.until))


def read(operation: Operation) -> Call | None:
    """Say what an operation tells about the lease; None for nothing."""
    act, data, told = operation.act, operation.data, operation.outcome == OK
    ended = inf if operation.ended is None else operation.ended
    if act in ("check", "renew") and data.get("error") == "LockLost":
        act = "lost"
    elif act == "release" and operation.outcome != FAIL:
        act = "release" if told and data["had"] else "leave"
        ended = ended if told else inf
    elif not told:
        return None
    elif act in ("check", "renew"):
        act = "use"
    until = operation.began + data["ttl"] * _CLOCKS if "ttl" in data else -inf
    return Call(operation.id, act, data["token"], operation.began, ended, until)
