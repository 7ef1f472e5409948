"""Waking waiters: one connection of this process listens, and wakes the waiters of a topic.

A waiter subscribes to a *topic*: a short text that is the payload of a NOTIFY. The NOTIFY is sent
in the transaction that changes the awaited rows. A notification is only a hint: a waiter still
looks at the rows from time to time, and often while no connection listens.

The listener is a thread with a connection of its own for each database, started by the first
subscription and ended soon after the last. It does not share the heartbeat's connection: a beat
may wait for a silent server for seconds, and a process that waits usually has no heartbeat.

A pooler in transaction mode accepts LISTEN and loses it. The listener detects a pooler without a
setting: behind a pooler, the backend's process id differs from the id that the client has received.
Then, and after any failure, :attr:`Subscription.heard` is false, and waiters poll.
"""

import asyncio
import selectors
import threading
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_dblock.core.clock import monotonic
from django_dblock.core.connection import after_fork_in_child, dedicated, fetch, unwrapped
from django_dblock.sql import notify as sql

_LINGER = 1.0
"""Seconds for which the connection stays without a subscription: waits come in bursts."""

_LOOK = 0.25
"""Seconds between two looks for subscriptions, while nothing arrives."""

_BREAK = 30.0
"""Seconds until a database that could not be listened to is tried again."""


def topic(*parts: str | int) -> str:
    """Return a short topic for names of any length, because a payload has at most 8,000 bytes."""
    digest = blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4) + data)
    return digest.hexdigest()


def notify(connection: BaseDatabaseWrapper, topic: str) -> None:
    """Wake the subscribers of the topic when the caller's transaction commits. One statement.

    Each COMMIT with a NOTIFY takes a lock of the whole server for a moment: send a NOTIFY only
    if a waiter waits.

    Args:
        connection: Django's connection, in the transaction of the change.
        topic: the topic to which the waiters have subscribed.

    Raises:
        django.db.Error: the statement failed.
    """
    fetch(connection, sql.NOTIFY, {"topic": topic})


class Subscription:
    """One waiter's subscription to one topic. Close it when the wait is over.

    Attributes:
        topic: the topic whose notifications wake the waiter.
    """

    def __init__(self, listener: "Listener", topic: str) -> None:
        self.topic = topic
        self._listener = listener
        self._mutex = threading.Lock()
        self._event = threading.Event()
        self._async: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def heard(self) -> bool:
        """Whether a connection listens now, so that the waiter may look rarely."""
        return self._listener.hears or self._listener.start()

    def wake(self) -> None:
        """Wake the waiter, now or at its next wait; may be called from any thread."""
        with self._mutex:
            self._event.set()
            if self._async is not None:
                loop, event = self._async
                with suppress(RuntimeError):  # the event loop is closed, so no task waits
                    loop.call_soon_threadsafe(event.set)

    def wait(self, seconds: float) -> bool:
        """Wait until woken, or for so many seconds; return whether it was woken."""
        woken = self._event.wait(seconds)
        if woken:  # else a wake-up at this moment would be lost
            self._event.clear()
        return woken

    async def await_(self, seconds: float) -> bool:
        """Wait as :meth:`wait` does, without blocking the event loop."""
        event = asyncio.Event()
        with self._mutex:
            if self._event.is_set():
                event.set()
            self._async = (asyncio.get_running_loop(), event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            with self._mutex:
                self._async = None
                self._event.clear()
        return True

    def close(self) -> None:
        """End the subscription."""
        self._listener.drop(self)


class Listener:
    """The connection and the thread that listen for one database alias.

    Attributes:
        hears: whether notifications arrive at the moment.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._mutex = threading.Lock()
        self._waiters: dict[str, list[Subscription]] = {}
        self._thread: threading.Thread | None = None
        self._deaf_until = 0.0
        self._idle_since = 0.0
        self.hears = False

    def add(self, topic: str) -> Subscription:
        """Return a new subscription, and start the listener if necessary."""
        subscription = Subscription(self, topic)
        with self._mutex:
            self._waiters.setdefault(topic, []).append(subscription)
        self.start()
        return subscription

    def start(self) -> bool:
        """Start to listen, unless a try failed a moment ago; return whether the listener hears."""
        with self._mutex:
            if self._thread is None and monotonic() >= self._deaf_until:
                self._thread = threading.Thread(
                    target=self._run, name="dblock-listener", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # no thread can be started, so the waiter polls
                    self._thread = None
                    self._deaf_until = monotonic() + _BREAK
        return self.hears

    def drop(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        with self._mutex:
            waiters = self._waiters.get(subscription.topic, [])
            if subscription in waiters:
                waiters.remove(subscription)
                if not waiters:
                    del self._waiters[subscription.topic]
            if not self._waiters:
                self._idle_since = monotonic()

    def _run(self) -> None:
        connection = None
        try:
            connection = dedicated(self._alias)
            options = connection.settings_dict["OPTIONS"]
            options["application_name"] = f"{options.get('application_name', '')} listener".strip()
            options.setdefault("connect_timeout", 5)
            driver = self._listen(connection)
            if driver is None:
                self._deaf_until = monotonic() + _BREAK
                return
            self.hears = True
            self._wake_all()  # notifications before this moment were not received
            self._hear(driver)
        except Exception:  # noqa: BLE001 - after any error, waiters poll
            self._deaf_until = monotonic() + (1.0 if self.hears else _BREAK)
        finally:
            self.hears = False
            with self._mutex:
                self._thread = None
            self._wake_all()  # so that they look more often from now on
            if connection is not None:
                connection.close()

    def _listen(self, connection: BaseDatabaseWrapper) -> Any:
        """Return psycopg's connection that listens; None behind a pooler, or a proxy."""
        connection.ensure_connection()
        driver = unwrapped(connection.connection)
        if driver is None:
            return None
        [(pid,)] = fetch(connection, sql.BACKEND_PID, {})
        if pid != driver.pgconn.backend_pid:
            return None
        driver.add_notify_handler(lambda notice: self._wake(notice.payload))
        fetch(connection, sql.LISTEN, {})
        return driver

    def _hear(self, driver: Any) -> None:
        pgconn = driver.pgconn
        with selectors.DefaultSelector() as selector:
            selector.register(pgconn.socket, selectors.EVENT_READ)
            while self._is_wanted():
                if selector.select(_LOOK):
                    pgconn.consume_input()
                    while (notice := pgconn.notifies()) is not None:
                        self._wake(notice.extra.decode())

    def _is_wanted(self) -> bool:
        with self._mutex:
            return bool(self._waiters) or monotonic() - self._idle_since < _LINGER

    def _wake(self, topic: str) -> None:
        with self._mutex:
            waiters = tuple(self._waiters.get(topic, ()))
        for subscription in waiters:
            subscription.wake()

    def _wake_all(self) -> None:
        with self._mutex:
            waiters = [one for each in self._waiters.values() for one in each]
        for subscription in waiters:
            subscription.wake()


_listeners: dict[str, Listener] = {}
_mutex = threading.Lock()


def subscribe(alias: str, topic: str) -> Subscription:
    """Listen for a topic in the database of the alias. Sends nothing on the caller's connection.

    Guaranteed: a NOTIFY for the topic that commits while :attr:`Subscription.heard` is true wakes
    the waiter. It may also be woken without one.

    Not guaranteed: that a connection listens. Look at the rows yourself, often while ``heard`` is
    false.
    """
    with _mutex:
        listener = _listeners.setdefault(alias, Listener(alias))
    return listener.add(topic)


def _leave_to_parent() -> None:
    """Start without listeners in a forked child, and keep the parent's connections open."""
    global _mutex  # noqa: PLW0603 - no thread of the child could ever free the old mutex
    _mutex = threading.Lock()
    _of_parents.append(dict(_listeners))
    _listeners.clear()


_of_parents: list[dict[str, Listener]] = []

after_fork_in_child(_leave_to_parent)
