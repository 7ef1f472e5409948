"""A line to the server on which answers can be held back, and reports added."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SIZE = 65_536


class Relay:
    """A line to a server: answers to messages with a given text wait until ``let_through()``.

    Args:
        port: the port of the server.
        held_back: what a client's message contains if the server's answer to it is held back; None
            to hold nothing back.
        reported: a parameter and its value that the server seems to report when a session starts.
    """

    def __init__(
        self, port: int, held_back: bytes | None, reported: tuple[str, str] | None = None
    ) -> None:
        self._target = ("127.0.0.1", port)
        self._held_back = held_back
        self._report = b"" if reported is None else _parameter_status(*reported)
        self._gate = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self._start(self._accept)

    def let_through(self) -> None:
        self._gate.set()

    def close(self) -> None:
        self._gate.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    @staticmethod
    def _start(function: object, *arguments: object) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                holding = threading.Event()
                self._start(self._there, near, far, holding)
                self._start(self._back, far, near, holding)

    def _there(self, near: socket.socket, far: socket.socket, holding: threading.Event) -> None:
        with suppress(OSError):
            while message := near.recv(_SIZE):
                if self._held_back is not None and self._held_back in message:
                    holding.set()
                far.sendall(message)
            far.shutdown(socket.SHUT_WR)

    def _back(self, far: socket.socket, near: socket.socket, holding: threading.Event) -> None:
        report = self._report
        with suppress(OSError):
            while message := far.recv(_SIZE):
                if holding.is_set():
                    self._gate.wait()
                before, first, others = message.partition(_FIRST_STATUS)
                if report and first:
                    message = before + report + first + others
                    report = b""
                near.sendall(message)
            near.shutdown(socket.SHUT_WR)


# A ParameterStatus message of less than 256 bytes (PostgreSQL manual, 54.7 "Message Formats").
_FIRST_STATUS = b"S\0\0\0"


def _parameter_status(name: str, value: str) -> bytes:
    content = f"{name}\0{value}\0".encode()
    return b"S" + (len(content) + 4).to_bytes(4, "big") + content


@contextmanager
def relay(
    port: int, held_back: bytes | None = None, reported: tuple[str, str] | None = None
) -> Iterator[Relay]:
    """Run a relay during the block."""
    found = Relay(port, held_back, reported)
    try:
        yield found
    finally:
        found.close()
