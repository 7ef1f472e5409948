"""Requests with sessions, authentication and the CSRF check: through gunicorn, or Django alone."""

import functools
import http.client
import io
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.core.handlers.wsgi import WSGIHandler
from django.middleware.csrf import _get_new_csrf_string
from django.test import RequestFactory

from tests.benchmarks import once
from tests.benchmarks.crowd import EDGE, percentile
from tests.benchmarks.measure import Row, Scenario, Size
from tests.benchmarks.once import BODY, REPEATED
from tests.benchmarks.services import process
from tests.helpers.processes import race

ROOT = Path(__file__).resolve().parents[2]
WORKERS, THREADS = 2, 4
WAYS = (
    ("bare", "the view in transaction.atomic", "/bare/", True),
    ("hand", "a unique key and two statements, by hand", "/by-hand/", True),
    ("idempotent", "@idempotent, each key once", "/protected/", True),
    ("replay", "@idempotent, the same key again", "/protected/", False),
)


def scenario() -> Scenario:
    """Return the same requests in this process, without a server and clients that share its cores.

    They go through the whole of Django: the handler, the middleware, the URLs, and the end of the
    request.
    """
    once.by_hand("default")  # makes its table
    rows = [
        Row(name, label, functools.partial(_handled, path, new)) for name, label, path, new in WAYS
    ]
    return Scenario(
        "request",
        "A request with session, login and CSRF, in one process",
        rows,
        calls=5,
        limit="the view",
    )


def _handled(path: str, new: bool, _: int) -> None:
    handler, environ = _site()
    key = str(uuid4()) if new else REPEATED
    asked = {
        **environ,
        "PATH_INFO": path,
        "HTTP_IDEMPOTENCY_KEY": key,
        "wsgi.input": io.BytesIO(BODY),
    }
    started: list[str] = []
    response = handler(asked, lambda status, _: started.append(status))
    response.close()
    assert started == ["201 Created"], response.content


@functools.cache
def _site() -> tuple[Any, dict[str, Any]]:
    """Return Django's handler, and a request of a user who is logged in."""
    headers = _logged_in()
    content_type = headers.pop("Content-Type")
    request = RequestFactory().post("/", BODY, content_type=content_type, headers=headers)
    return WSGIHandler(), request.environ


def is_possible() -> bool:
    return find_spec("gunicorn") is not None


def timed(size: Size, clients: int) -> dict[str, Any]:
    """Let the ways take turns for some rounds; return what the JSON says of it, as of a crowd."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in WAYS}
    once.by_hand("default")  # makes its table
    with _serving() as port:
        headers = _logged_in()
        # One client's pace depends on the processors that the scheduler gives it and the server.
        for turn in range(size.crowd_rounds * (3 if clients == 1 else 1)):
            first = turn % len(WAYS)
            for name, _, path, new in [*WAYS[first:], *WAYS[:first]]:
                found = race(clients, _ask, port, path, headers, new, size.crowd_seconds)
                rounds[name].append(_figures(found, size.crowd_seconds))
    limit = [result["turns_per_s"] for result in rounds["bare"]]
    alone = clients == 1
    return {
        "name": "http-alone" if alone else "http",
        "title": f"Requests through gunicorn ({WORKERS} processes of {THREADS} threads), with "
        f"session, login and CSRF; {'one client' if alone else 'clients without a pause'}",
        "processes": clients,
        "seconds_per_round": size.crowd_seconds,
        "rounds": len(limit),
        "rows": [
            {
                "name": name,
                "label": label,
                "peer": False,
                **{
                    figure: round(median(result[figure] for result in rounds[name]), 3)
                    for figure in rounds[name][0]
                },
                "turns_per_s_spread": [
                    min(result["turns_per_s"] for result in rounds[name]),
                    max(result["turns_per_s"] for result in rounds[name]),
                ],
                "ratio": round(
                    median(
                        result["turns_per_s"] / (bare or 1)
                        for result, bare in zip(rounds[name], limit, strict=True)
                    ),
                    3,
                ),
            }
            for name, label, *_ in WAYS
        ],
    }


@contextmanager
def _serving() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen(128)
        command = [
            sys.executable, "-m", "gunicorn", "tests.benchmarks.wsgi",
            f"--bind=fd://{listener.fileno()}", f"--workers={WORKERS}", f"--threads={THREADS}",
            "--keep-alive=60", "--log-level=warning",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        with process(command, env=environment, cwd=ROOT, pass_fds=(listener.fileno(),)):
            yield listener.getsockname()[1]


def _logged_in() -> dict[str, str]:
    """Make a user with a session; return the headers of a client of hers."""
    user, _ = get_user_model().objects.get_or_create(username="shopper")
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    secret = _get_new_csrf_string()
    return {
        "Cookie": f"sessionid={session.session_key}; csrftoken={secret}",
        "X-CSRFToken": secret,
        "Content-Type": "application/json",
    }


def _ask(
    client: int, port: int, path: str, headers: dict[str, str], new: bool, seconds: float
) -> dict[str, Any]:
    """In a process of its own: one request after the other, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    key = f"{uuid4()}-{client}"
    waits: list[float] = []
    edge = min(EDGE, seconds)
    begins = time.perf_counter() + edge
    ends = begins + seconds
    while (asked := time.perf_counter()) < ends + edge:
        if new:
            key = str(uuid4())
        connection.request("POST", path, BODY, {**headers, "Idempotency-Key": key})
        response = connection.getresponse()
        text = response.read()
        assert response.status == 201, text
        if begins <= asked < ends:
            waits.append(1000 * (time.perf_counter() - asked))
    connection.close()
    return {"waits": waits}


def _figures(results: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    waits = sorted(wait for result in results for wait in result["waits"])
    counts = [len(result["waits"]) for result in results]
    return {
        "turns_per_s": round(sum(counts) / seconds, 1),
        "busiest_to_idlest": round(max(counts) / max(1, min(counts)), 2),
        "wait_p50_ms": percentile(waits, 50),
        "wait_p99_ms": percentile(waits, 99),
        "wait_max_ms": percentile(waits, 100),
        "lost_updates": 0,
    }
