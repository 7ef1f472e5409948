"""The decorators refuse functions whose work runs after the call."""

import contextlib
import functools

import pytest

from django_dblock import advisory_lock, fenced_lock
from django_dblock.core.decorators import refuse_unfinished, refuse_what_runs_later


def rows():
    yield


async def async_rows():
    yield


async def coroutine():
    return 1


class Callable:
    def __call__(self):
        yield


class Methods:
    def rows(self):
        yield

    def plain(self):
        return 1


LATER = {
    "generator": rows,
    "async generator": async_rows,
    "contextmanager": contextlib.contextmanager(rows),
    "asynccontextmanager": contextlib.asynccontextmanager(async_rows),
    "partial": functools.partial(rows),
    "wrapped": functools.wraps(rows)(lambda: list(rows())),
    "bound method": Methods().rows,
    "object": Callable(),
    "staticmethod": staticmethod(len),
    "classmethod": classmethod(len),
    "property": property(len),
    "cached_property": functools.cached_property(len),
    "partialmethod": functools.partialmethod(len),
    "class": Methods,
    "no function": "key",
}


@pytest.mark.parametrize("what", LATER)
def test_deferred_functions_are_refused_at_decoration(what):
    with pytest.raises(TypeError):
        refuse_what_runs_later(LATER[what], "fenced_lock")
    for block in (fenced_lock("k", ttl=30), advisory_lock("k")):
        with pytest.raises(TypeError):
            block(LATER[what])


@pytest.mark.parametrize(
    "function",
    [len, lambda: 1, Methods().plain, functools.partial(len, []), coroutine, Methods.plain],
)
def test_ordinary_functions_are_accepted(function):
    refuse_what_runs_later(function, "fenced_lock")
    fenced_lock("k", ttl=30)(function)


def test_circular_wrapping_terminates():
    def first():
        pass

    first.__wrapped__ = first
    refuse_what_runs_later(first, "fenced_lock")


@pytest.mark.parametrize(
    ("made", "kind"),
    [(rows, "generator"), (async_rows, "async_generator"), (coroutine, "coroutine")],
)
def test_unfinished_result_is_refused(made, kind):
    with pytest.raises(TypeError, match=f"returned a {kind}"):
        refuse_unfinished(made(), made, "fenced_lock")


@pytest.mark.parametrize("result", [None, 1, [1], iter([1])])
def test_finished_result_is_accepted(result):
    refuse_unfinished(result, rows, "fenced_lock")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("block", [fenced_lock("k", ttl=30), advisory_lock("k")])
def test_hidden_coroutine_is_refused_at_run_time(block):
    """And never ran, so nothing has happened without the lock."""
    ran = []

    async def work():
        ran.append(1)

    @block
    def hidden():
        return work()

    with pytest.raises(TypeError, match="returned a coroutine"):
        hidden()
    assert ran == []
