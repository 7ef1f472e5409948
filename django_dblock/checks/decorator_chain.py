"""The functions through which a request gets into a view, from the outermost to the innermost.

The functions are read, not run. A function whose inner function can't be found ends a chain.
"""

from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

from django.utils.decorators import method_decorator

_AS_VIEW = frozenset({"django.views.generic.base", "rest_framework.viewsets", "adrf.viewsets"})
_API_VIEW = frozenset({"rest_framework.decorators", "adrf.decorators"})
_METHOD_DECORATOR = method_decorator.__module__


class Layer(NamedTuple):
    """One function of a chain.

    Attributes:
        function: the function.
        place: the name of the view, or of the method, that the function wraps.
    """

    function: Any
    place: str


def chains(view: Any) -> Iterator[tuple[str, list[Layer]]]:
    """Yield each chain into a view, by the name of the method of its class; "" of a function."""
    outer = [*_wrapped(view)]
    cls = _class_of(outer[-1])
    place = name_of(outer[-1] if cls is None else cls)
    chain = [Layer(function, place) for function in outer]
    if cls is None:
        yield "", chain
        return
    chain += _method(cls, "dispatch")
    yield "dispatch", chain
    for name in dir(cls):
        if name != "dispatch":
            # An action of a viewset is called under the name of an HTTP method.
            through = chain if name in cls.http_method_names else []
            yield name, [*through, *_method(cls, name)]


def home(function: Any) -> str:
    """Return the module in which a function was written; ``wraps`` can't change that."""
    module: str = getattr(function, "__globals__", {}).get("__name__", "")
    return module


def free(function: Any, name: str) -> Any:
    """Return the value of a variable that a function closes over; None if there is none."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return function.__closure__[names.index(name)].cell_contents if name in names else None


def names_in(function: Any) -> tuple[str, ...]:
    """Return the global names and the attributes that the code of a function uses."""
    names: tuple[str, ...] = getattr(getattr(function, "__code__", None), "co_names", ())
    return names


def name_of(view: Any) -> str:
    """Return the name of a view in messages."""
    return f"{view.__module__}.{getattr(view, '__qualname__', type(view).__name__)}"


def _wrapped(function: Any) -> Iterator[Any]:
    """Yield a function and what it wraps; what ``as_view()`` returns is the last."""
    while function is not None:
        decorators = free(function, "decorators") if home(function) == _METHOD_DECORATOR else None
        if decorators is None:
            yield function
        for decorator in reversed(decorators or ()):  # Django keeps them from the innermost
            *added, _ = _wrapped(decorator(_dummy()))
            yield from added
        # The view of a class has the attributes of its dispatch(), __wrapped__ among them.
        if _class_of(function) is not None:
            return
        function = getattr(function, "__wrapped__", None) or _called(function)


def _called(function: Any) -> Any:
    """Return the function that a wrapper without ``__wrapped__`` calls; None if unknown."""
    if isinstance(function, partial):
        return function.func
    return free(function, "func") if home(function) in _API_VIEW else None


def _method(cls: type, name: str) -> Iterator[Layer]:
    """Yield the functions around a method, and around the parents' methods that it calls."""
    for each in cls.__mro__:
        if name not in vars(each):
            continue
        if not isinstance(vars(each)[name], FunctionType):
            return
        place = f"{name_of(each)}.{name}"
        layers = [Layer(function, place) for function in _wrapped(vars(each)[name])]
        yield from layers
        if name not in names_in(layers[-1].function):  # no super().dispatch()
            return


def _class_of(function: Any) -> Any:
    """Return the class whose ``as_view()`` has made a function; None for other functions."""
    return free(function, "cls") if home(function) in _AS_VIEW else None


def _dummy() -> Any:
    """Return a function to try a decorator on, as ``method_decorator`` itself does."""

    def dummy(*args: Any, **kwargs: Any) -> None: ...

    dummy.__module__ = _METHOD_DECORATOR
    return dummy
