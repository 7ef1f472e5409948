"""The wait-for graph, ready to be drawn: who holds, the lock, and who waits for it. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_dblock.monitor import graph_layout as graph
from django_dblock.monitor.formatting import lasting, role_name, short
from django_dblock.monitor.graph_layout import Size
from django_dblock.monitor.wait_queues import Party, Queue

MOST_QUEUES = 12
MOST_HOLDERS, MOST_WAITERS = 3, 5
ROOM = 1180
"""The width that a page has for the picture, in pixels."""

_WIDEST = (440, 360, 300, 250, 208)
"""How wide a box may be: the first for which the picture fits the page, else the last."""

_TITLE, _DETAIL, _LOCK, _PADDING = 8, 6, 7.6, 24
"""Pixels that a character of each line needs, and that a box needs beside its text."""

_NARROWEST: dict[str, int] = {"holder": 208, "waiter": 208, "lock": 168, "more": 208}
_HEIGHT: dict[str, int] = {"holder": 46, "waiter": 46, "lock": 46, "more": 28}

Kind = Literal["holder", "waiter", "lock", "more"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A box with its words.

    Attributes:
        kind: ``holder``, which waits for nothing; ``waiter``, which may also hold locks; ``lock``;
            or ``more``: those for whom there is no room.
        title: the first line.
        detail: the second one.
        whole: the complete text, shown under the pointer.
        x: of the upper left corner; y: of the upper left corner.
    """

    kind: Kind
    title: str
    detail: str
    whole: str
    x: float
    y: float
    width: int
    height: int

    @property
    def inner_width(self) -> int:
        """Of what is drawn, so that its border has room."""
        return self.width - 2

    @property
    def inner_height(self) -> int:
        """The height of the border that is drawn."""
        return self.height - 2


@dataclass(frozen=True, slots=True)
class Arrow:
    """A line with its head: from who waits to the lock, from the lock to who holds it.

    Attributes:
        waits: whether the arrow leads from a waiter; else it leads to a holder.
        cycle: whether it closes a cycle.
        path: the line, as the ``d`` of an SVG path.
        head: the arrow's head, as the ``d`` of an SVG path.
    """

    waits: bool
    cycle: bool
    path: str
    head: str


@dataclass(frozen=True, slots=True)
class Picture:
    """What to draw, and on how large a sheet.

    Attributes:
        left_out: how many queues there was no room for.
        cycles: how many arrows close a cycle.
    """

    shapes: tuple[Shape, ...]
    arrows: tuple[Arrow, ...]
    width: int
    height: int
    left_out: int
    cycles: int


@dataclass(frozen=True, slots=True)
class _Words:
    kind: Kind
    title: str
    detail: str
    whole: str


def draw(queues: Sequence[Queue]) -> Picture:
    """Draw the queues, the first ones if there are many; many in one place become one box."""
    drawn = queues[:MOST_QUEUES]
    seen = Counter(party.id for queue in drawn for party in (*queue.holders, *queue.waiters))
    words: dict[str, _Words] = {}
    edges: list[graph.Edge] = []
    for queue in drawn:
        holders = _some(queue.holders, seen, MOST_HOLDERS)
        waiters = _some(queue.waiters, seen, MOST_WAITERS)
        for party in holders:
            words.setdefault(party.id, _of_party(party))
        _add_rest(words, edges, queue, len(queue.holders) - len(holders), waits=False)
        edges += [(party.id, queue.id) for party in holders]
        words[queue.id] = _of_lock(queue)
        for party in waiters:
            words.setdefault(party.id, _of_party(party))
        edges += [(queue.id, party.id) for party in waiters]
        _add_rest(words, edges, queue, len(queue.waiters) - len(waiters), waits=True)
    for widest in _WIDEST:
        laid = graph.lay_out({key: _size(each, widest) for key, each in words.items()}, edges)
        if laid.width <= ROOM:
            break
    arrows = tuple(_arrow(line) for line in laid.lines)
    return Picture(
        shapes=tuple(_shape(words[box.id], box) for box in laid.boxes),
        arrows=arrows,
        width=round(laid.width),
        height=round(laid.height),
        left_out=len(queues) - len(drawn),
        cycles=sum(arrow.cycle for arrow in arrows),
    )


def _size(words: _Words, widest: int) -> Size:
    narrowest = _NARROWEST[words.kind]
    per_character = _LOCK if words.kind == "lock" else _TITLE
    needed = max(len(words.title) * per_character, len(words.detail) * _DETAIL) + _PADDING
    most = widest - 208 + narrowest
    return Size(round(min(max(needed, narrowest), most)), _HEIGHT[words.kind])


def _some(parties: Sequence[Party], seen: Counter[str], most: int) -> list[Party]:
    """Return the first parties, and some parties that connect this queue to another queue."""
    if len(parties) <= most + 1:  # a box that says "and one more" takes the same room
        return list(parties)
    first = list(parties[:most])
    return first + [party for party in parties[most:] if seen[party.id] > 1][:most]


def _add_rest(
    words: dict[str, _Words], edges: list[graph.Edge], queue: Queue, count: int, *, waits: bool
) -> None:
    if not count:
        return
    key = f"more:{waits}:{queue.id}"
    text = (
        ngettext("and %(count)d more waits", "and %(count)d more wait", count)
        if waits
        else ngettext("and %(count)d more holds it", "and %(count)d more hold it", count)
    ) % {"count": count}
    words[key] = _Words("more", text, "", text)
    edges.append((queue.id, key) if waits else (key, queue.id))


def _of_party(party: Party) -> _Words:
    if party.pid is not None:
        title = f"{party.pid}  {party.name}"
    else:
        title = party.name or _("prepared transaction")
    detail = doing(party)
    kind: Kind = "waiter" if party.waits else "holder"
    return _Words(kind, title, detail, f"{title}\n{detail}")


def doing(party: Party) -> str:
    """Return what a party does, and for how long."""
    if party.waits_for:
        said = {"what": party.waits_for, "time": lasting(party.lasting or 0)}
        return _("waits for %(what)s, %(time)s") % said
    if party.waits:
        if party.lasting is None:
            return _("waits in turn")
        return _("waits for %(time)s") % {"time": lasting(party.lasting)}
    if party.hidden:
        return _("hidden")
    state = party.state or (_("holds the lease") if party.pid is None and party.name else "")
    since = "" if party.lasting is None else lasting(party.lasting)
    return ", ".join(filter(None, (state, since)))


def _of_lock(queue: Queue) -> _Words:
    waiting = _("%(count)d waiting") % {"count": len(queue.waiters)}
    kinds = {"fenced": role_name(queue.role), "other": _("not an advisory lock")}
    kind = kinds.get(queue.kind) or (_("shared") if queue.shared else _("exclusive"))
    detail = f"{kind} · {waiting}"
    return _Words("lock", queue.name, detail, f"{queue.name}\n{detail}")


def _shape(words: _Words, box: graph.Box) -> Shape:
    room = box.size.width - _PADDING
    return Shape(
        kind=words.kind,
        title=short(words.title, int(room / (_LOCK if words.kind == "lock" else _TITLE))),
        detail=short(words.detail, int(room / _DETAIL)),
        whole=words.whole,
        x=round(box.x, 1),
        y=round(box.y, 1),
        width=box.size.width,
        height=box.size.height,
    )


def _arrow(line: graph.Line) -> Arrow:
    """Return an arrow to the left: waiters are on the right of the lock that they wait for."""
    x, y = line.end if line.turned else line.tip
    head = f"M{x:.1f} {y:.1f}l{'-9 -5v10z' if line.turned else '9 -5v10z'}"
    waits = line.edge[0].startswith(("lock:", "lease:", "other:"))
    return Arrow(waits=waits, cycle=line.turned, path=line.path, head=head)
