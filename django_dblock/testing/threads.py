"""``race``: threads with a connection each, started at the same moment."""

import inspect
import threading
from collections.abc import Callable
from typing import Any

from django.db import connections

from django_dblock.core.clock import monotonic
from django_dblock.core.connection import connection_for
from django_dblock.testing.leaks import refuse_transaction

WHY = "other connections don't see its rows, and would wait for its locks indefinitely"


def race(
    count: int,
    function: Callable[..., Any],
    *,
    catch: type[Exception] | tuple[type[Exception], ...] = (),
    using: str | None = None,
    timeout: float = 60.0,
) -> list[Any]:
    """Run a function in several threads at once; return the results in the order of the threads.

    Each thread opens a connection, waits until all threads have one, and closes it at the end. A
    function that takes an argument gets the thread's number, from 0::

        def test_the_last_item_is_sold_once():
            sold = race(8, lambda: buy("sku-1"), catch=SoldOut)
            assert sum(not isinstance(each, SoldOut) for each in sold) == 1

    Guaranteed: every thread has started before any thread calls the function; no thread is left
    when ``race`` returns.

    Not guaranteed: that the threads really meet. Remove the lock once, and see the test fail.

    Args:
        count: the number of threads.
        function: the function that each thread calls; the threads share its objects.
        catch: error classes that count as results; other errors are raised.
        using: the database alias to which each thread connects first.
        timeout: seconds for the whole race.

    Raises:
        ValueError: count is below 1.
        RuntimeError: called in a transaction, as in a ``TestCase``; or the test may not use the
            database.
        TimeoutError: a thread has not ended in time; perhaps two threads wait for each other.
    """
    if count < 1:
        raise ValueError(f"race() needs at least one thread, not {count!r}.")
    refuse_transaction(using, "race", WHY)
    barrier = threading.Barrier(count)
    racers = [_Racer(number, function, catch, using, barrier) for number in range(count)]
    deadline = monotonic() + timeout
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(max(0.0, deadline - monotonic()))
    if late := [str(racer.number) for racer in racers if racer.is_alive()]:
        raise TimeoutError(
            f"race(): {len(late)} of {count} threads have not ended after {timeout:g} s: number "
            f"{', '.join(late)}. Do they wait for each other, or for a transaction of the test's?"
        )
    _raise_first([racer.error for racer in racers if racer.error is not None])
    return [racer.result for racer in racers]


class _Racer(threading.Thread):
    def __init__(
        self,
        number: int,
        function: Callable[..., Any],
        catch: type[Exception] | tuple[type[Exception], ...],
        using: str | None,
        barrier: threading.Barrier,
    ) -> None:
        super().__init__(name=f"race-{number}", daemon=True)
        self.number = number
        self.result: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._catch = catch
        self._using = using
        self._barrier = barrier

    def run(self) -> None:
        try:
            self._line_up()
            self._go()
        except BaseException as error:  # noqa: BLE001 - raised by race(), in the test's thread
            self.error = error
        finally:
            connections.close_all()

    def _go(self) -> None:
        try:
            arguments = (self.number,) if _takes_one(self._function) else ()
            self.result = self._function(*arguments)
        except self._catch as error:
            self.result = error

    def _line_up(self) -> None:
        try:
            connection_for(self._using).ensure_connection()
        except BaseException:
            self._barrier.abort()  # the others would wait indefinitely
            raise
        self._barrier.wait()


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(0)
    except (TypeError, ValueError):  # it takes none, or is written in C and has no signature
        return False
    return True


def _raise_first(errors: list[BaseException]) -> None:
    """Raise the first error; errors of the broken barrier come last."""
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"race(): another thread raised {other!r}")
        raise errors[0]
