"""The ways of a request into a view: through which functions, from the outermost to the innermost.

They are read, not run, and what can't be seen into ends a way.
"""

from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

from django.utils.decorators import method_decorator

_AS_VIEW = frozenset({"django.views.generic.base", "rest_framework.viewsets"})


class Layer(NamedTuple):
    """One function on the way.

    Attributes:
        function: it.
        place: the name of the view, or of the method, that it stands around.
    """

    function: Any
    place: str


def ways(view: Any) -> Iterator[tuple[str, list[Layer]]]:
    """Return each way into the view, by the name of the method of its class; "" of a function."""
    outer = [*_around(view)]
    cls = _class_of(outer[-1])
    where = _name(outer[-1] if cls is None else cls)
    way = [Layer(function, where) for function in outer]
    if cls is None:
        yield "", way
        return
    way += _method(cls, "dispatch")
    yield "dispatch", way
    for name in dir(cls):
        if name != "dispatch":
            through = way if name in cls.http_method_names else []
            yield name, [*through, *_method(cls, name)]


def home(function: Any) -> str:
    """Return the module in which it was written; ``wraps`` can't change that."""
    found: str = getattr(function, "__globals__", {}).get("__name__", "")
    return found


def free(function: Any, name: str) -> Any:
    """Return what the name stands for in a function inside another; None where it is unknown."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return function.__closure__[names.index(name)].cell_contents if name in names else None


def calls(function: Any, name: str) -> bool:
    """Whether its code names it: ``super().dispatch()`` goes on with the next class."""
    return name in getattr(getattr(function, "__code__", None), "co_names", ())


def _around(function: Any) -> Iterator[Any]:
    """Return the function, and what it wraps; what ``as_view()`` returns is the last."""
    while function is not None:
        decorators = free(function, "decorators") if home(function) == _DJANGO else None
        if decorators is None:
            yield function
        for decorator in reversed(decorators or ()):  # which has them from the innermost
            *added, _ = _around(decorator(_trial()))
            yield from added
        if _class_of(function) is not None:  # it has the attributes of dispatch(), __wrapped__ too
            return
        function = getattr(function, "__wrapped__", None) or _inner(function)


def _inner(function: Any) -> Any:
    """Return what is called by those that don't say so with ``__wrapped__``."""
    if isinstance(function, partial):
        return function.func
    return free(function, "func") if home(function) == "rest_framework.decorators" else None


def _method(cls: type, name: str) -> Iterator[Layer]:
    """Return what is around a method, and around those of its parents that it calls."""
    for each in cls.__mro__:
        if name not in vars(each):
            continue
        if not isinstance(vars(each)[name], FunctionType):
            return
        place = f"{_name(each)}.{name}"
        found = [Layer(function, place) for function in _around(vars(each)[name])]
        yield from found
        if not calls(found[-1].function, name):
            return


def _class_of(function: Any) -> Any:
    """Return the class whose ``as_view()`` has made it."""
    return free(function, "cls") if home(function) in _AS_VIEW else None


_DJANGO = method_decorator.__module__


def _trial() -> Any:
    """Return a dummy to decorate, as ``method_decorator`` does, at each request and to look."""

    def dummy(*args: Any, **kwargs: Any) -> None: ...

    dummy.__module__ = _DJANGO
    return dummy


def _name(view: Any) -> str:
    return f"{view.__module__}.{getattr(view, '__qualname__', type(view).__name__)}"
