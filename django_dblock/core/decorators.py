"""The functions that this package's decorators accept, and the guards of decorated functions.

A decorator protects what runs *during the call*. A generator, a context manager made of one, or a
coroutine that was not awaited runs later, when the lock has been released and the transaction
has ended: the code would look protected, but would run unprotected.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, NamedTuple, NoReturn

_GUARDS = "_dblock_guards"


class Guard(NamedTuple):
    """One decorator of this package.

    Attributes:
        name: as in the code, ``advisory_lock``.
        outside: whether it must not be reached inside a transaction.
        using: the alias, as it was given.
    """

    name: str
    outside: bool
    using: str | None


def mark(guarded: Callable[..., Any], inner: Callable[..., Any], guard: Guard) -> None:
    """Record a guard on a function, in addition to the guards of the function that it wraps."""
    vars(guarded)[_GUARDS] = (*guards_of(inner), guard)


def guards_of(function: object) -> tuple[Guard, ...]:
    """Return the guards of a function; ``functools.wraps`` keeps them on a wrapper."""
    found: tuple[Guard, ...] = getattr(function, _GUARDS, ())
    return found


def refuse_what_runs_later(function: object, decorator: str) -> None:
    """Raise TypeError at decoration if the decorator could not protect the function.

    Args:
        function: the decorated object.
        decorator: the decorator's name, for the message.

    Raises:
        TypeError: the object is a class, a descriptor, not callable, or a generator function; also
            a generator function inside other decorators (``@contextmanager``,
            ``functools.partial``).
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    if isinstance(function, type):
        raise TypeError(
            f"{name} is a class: decorate the method that needs @{decorator}, with "
            f"django.utils.decorators.method_decorator(…, name='post') for a view."
        )
    if isinstance(function, _DESCRIPTORS):
        raise TypeError(
            f"{type(function).__name__} objects are no functions: put @{decorator} below "
            f"@{type(function).__name__}, next to the function."
        )
    if not callable(function):
        raise TypeError(f"@{decorator} decorates functions, not {function!r}.")
    for inner in _chain(function):
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            raise TypeError(
                f"{name} is a generator function, or is made of one: its body runs after the call, "
                f"when @{decorator} has ended. Use '{decorator}' inside the function instead."
            )


_DESCRIPTORS = (
    staticmethod,
    classmethod,
    property,
    functools.cached_property,
    functools.partialmethod,
)


def _chain(function: Any) -> list[Any]:
    """Return the function and all functions that it wraps or binds, ``__call__`` included."""
    found: list[Any] = []
    while function is not None and not any(function is known for known in found):
        found.append(function)
        if isinstance(function, functools.partial):
            function = function.func
        elif (wrapped := getattr(function, "__wrapped__", None)) is not None:
            function = wrapped
        elif inspect.ismethod(function):
            function = function.__func__
        elif not inspect.isroutine(function) and inspect.ismethod(function.__call__):
            function = function.__call__
        else:
            function = None
    return found


def refuse_unfinished(result: object, function: object, decorator: str) -> None:
    """Raise TypeError if a call's result is code that has yet to run.

    Args:
        result: the call's result.
        function: the function that was called.
        decorator: the decorator's name, for the message.

    Raises:
        TypeError: the result is a generator, a coroutine, or another awaitable.
    """
    kind: Any = type(result)
    if _is_unfinished(kind):
        _refuse(result, function, decorator)


@functools.lru_cache(maxsize=256)  # by type, because an abstract class takes long to compare with
def _is_unfinished(kind: type) -> bool:
    return issubclass(kind, Generator | AsyncGenerator | Awaitable)


def _refuse(result: object, function: object, decorator: str) -> NoReturn:
    if inspect.iscoroutine(result):
        result.close()  # else Python warns that it was never awaited
    name = getattr(function, "__qualname__", None) or repr(function)
    raise TypeError(
        f"{name} returned a {type(result).__name__}: its body would run after the call, when "
        f"@{decorator} has ended. Use '{decorator}' inside the function that does the work; for "
        f"async code decorate the 'async def' itself."
    )
