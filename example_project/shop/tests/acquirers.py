"""Acquirers to test against: a process of its own, and one that tells what it does and waits."""

import http.client
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from acquirer.books import Books, Request
from acquirer.server import Acquirer
from django.test import SimpleTestCase, TestCase, override_settings

from shop.demo.site import running_acquirer


def ask(
    address: str, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Send a request on a connection of its own; return the answer's status and content."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    try:
        connection.request(method, path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class AsksAcquirer(SimpleTestCase):
    """A mixin: one acquirer for all tests of the class."""

    url: str

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.url = cls.enterClassContext(running_acquirer(Path(folder) / "charges.sqlite3"))
        cls.enterClassContext(override_settings(ACQUIRER_URL=cls.url))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return ask(self.url, method, path, body, **headers)

    def charges(self, reference: object) -> list[dict[str, Any]]:
        charges = self.ask("GET", "/charges")[1]["charges"]
        return [charge for charge in charges if charge["reference"] == str(reference)]


class WithAcquirer(AsksAcquirer, TestCase):
    """One acquirer for all tests of the class, each in a transaction."""


class Teller(Books):
    """Books that tell when they have booked, and hold the answer until they are told to go on.

    Attributes:
        booked: one for each charge that was asked for and is in the books.
        go: let the answers go, these and all that follow.
        asked: how often a charge was asked for.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.booked = threading.Semaphore(0)
        self.go = threading.Event()
        self.asked = 0

    def charge(self, request: Request, key: str | None) -> tuple[dict[str, Any], bool]:
        answer = super().charge(request, key)
        self.asked += 1
        self.booked.release()
        assert self.go.wait(30), "was never told to go on"
        return answer

    def until_booked(self) -> None:
        """Wait for the next charge."""
        assert self.booked.acquire(timeout=30), "nobody came to charge"


@contextmanager
def acquirer_here() -> Iterator[Acquirer]:
    """Run an acquirer in this process, which is to be given books."""
    with Acquirer(0, None) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def telling(server: Acquirer) -> Iterator[Teller]:
    """Give it new books, which tell, for the time of the block."""
    with tempfile.TemporaryDirectory() as folder:
        server.books = books = Teller(Path(folder) / "charges.sqlite3")
        try:
            yield books
        finally:
            books.go.set()
