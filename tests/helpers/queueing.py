"""Waiters in the queue, step by step: what wakes them, and what they send."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.utils import timezone

from django_dblock.core import notify
from django_dblock.fencing.acquire import Attempt
from django_dblock.models import FencedTicket
from tests.helpers import observe

if TYPE_CHECKING:
    import psycopg


def listeners() -> list[threading.Thread]:
    """The listeners of this process that are alive."""
    return [one for one in threading.enumerate() if one.name == "dblock-listener"]


@contextmanager
def no_listener_is_left() -> Iterator[None]:
    """Leave none to the next test."""
    yield
    notify._LINGER, before = 0.0, notify._LINGER
    observe.until(lambda: not listeners(), "the listener ends")
    notify._LINGER = before


def until_somebody_listens(alias: str = "default") -> None:
    """Wait until this process listens: a ticket is taken before its listener is made."""

    def listens() -> bool:
        listener = notify._listeners.get(alias)
        return listener is not None and listener.hears

    observe.until(listens, "somebody listens")


def until_queued(one: Attempt) -> str:
    """Ask until the waiter has a ticket and has marked what it waits for; return its topic."""
    while one._ticket is None:
        assert one.once() is None
    assert one.once() is None
    return one._ticket.topic


def until_it_can_be_woken(one: Attempt) -> None:
    """Ask until somebody listens for the waiter, and it knows."""

    def can_be_woken() -> bool:
        assert one.once() is None
        one.delay = 0.0
        one.pause()
        return one._subscription is not None and one._subscription.heard

    observe.until(can_be_woken, "it can be woken")
    observe.until(lambda: one.once() is None and one.delay > 1, "it sleeps for long")


def pause_until_woken(one: Attempt) -> None:
    """Pause; fail if the waiter was not woken, but slept for the whole of its delay."""
    one.delay = 60.0
    began = time.monotonic()
    one.pause()
    assert time.monotonic() - began < 60


def stay_queued() -> None:
    """Let the waiters in the queue stay there, however slow the machine is."""
    FencedTicket.objects.update(expires_at=timezone.now() + timedelta(hours=1))


def in_a_thread(work: Callable[[], Any]) -> threading.Thread:
    """Start the work with connections of its own."""

    def work_and_close() -> None:
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=work_and_close)
    thread.start()
    return thread


def notified(rival: "psycopg.Connection[Any]") -> list[str]:
    """Who was notified since the rival listened."""
    rival.execute("SELECT 1")
    return [one.payload for one in rival.notifies(timeout=0.2)]
