"""The acquirer's HTTP: POST /charges, GET /charges, GET /health."""

import json
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from acquirer.books import Books, KeyReused, Request

_MAX_BODY = 10_000


class Acquirer(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, port: int, books: Books, *, delay: float = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.books = books
        self.delay = delay

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Who asked is gone: the charge is booked all the same, and nothing is wrong here.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Acquirer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(HTTPStatus.OK, {"status": "ok"})
        elif self.path == "/charges":
            self._answer(HTTPStatus.OK, {"charges": self.server.books.charges()})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is /charges and /health.")

    def do_POST(self) -> None:
        if self.path != "/charges":
            self.close_connection = True  # the body is left unread
            self._refuse(HTTPStatus.NOT_FOUND, "Charges are POSTed to /charges.")
            return
        try:
            request = self._request()
        except (ValueError, KeyError, TypeError) as error:
            self.close_connection = True
            self._refuse(HTTPStatus.BAD_REQUEST, f"Not a charge: {error!r}.")
            return
        try:
            charge, new = self.server.books.charge(request, self.headers.get("Idempotency-Key"))
        except KeyReused:
            self._refuse(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "This Idempotency-Key was used for another charge: take a new one.",
            )
            return
        time.sleep(self.server.delay)
        self._answer(HTTPStatus.CREATED if new else HTTPStatus.OK, charge)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: the books are the record."""

    def _request(self) -> Request:
        length = int(self.headers.get("Content-Length", ""))
        if not 0 < length <= _MAX_BODY:
            raise ValueError("Content-Length")
        body = json.loads(self.rfile.read(length))
        amount, currency, reference = body["amount"], body["currency"], body["reference"]
        if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
            raise ValueError("amount: a whole number of the smallest unit, above 0")
        if not (isinstance(currency, str) and len(currency) == 3):
            raise ValueError("currency: three letters")
        if not (isinstance(reference, str) and reference):
            raise ValueError("reference: the merchant's own name for it")
        return Request(amount, currency, reference)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self._answer(status, {"title": status.phrase, "detail": detail})

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
