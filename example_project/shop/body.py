"""What a program sends."""

import json
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest

from shop.problems import problem


class Unreadable(Exception):
    """The body can't be used; ``response`` says why."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.response = problem(status, title, detail)


def json_body(request: HttpRequest) -> Any:
    """Return what the body says.

    Raises:
        Unreadable: it is no JSON, or too much, or a million brackets.
    """
    try:
        return json.loads(request.body)
    except RequestDataTooBig as error:
        raise Unreadable(413, "Too large", "The body is larger than anything asked for.") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(400, "Not JSON", "The body is not JSON.") from error
