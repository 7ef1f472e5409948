"""One request on each connection, carried to the other side or not, and its answer back or not."""

import asyncio
import random
import re
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from urllib.parse import urlsplit

_CONNECTION = re.compile(rb"\r\n(?:connection|keep-alive):[^\r]*", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_LENGTH_REQUIRED = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Losses:
    """What the dice say of each request: carried, lost on the way there, or lost on the way back.

    Args:
        answers: share of the answers that are lost; the other side has done its work.
        requests: share of the requests that are lost; the other side hears nothing.
        seed: the same seed throws the same dice.
    """

    def __init__(self, *, answers: float, requests: float, seed: str) -> None:
        self._answers = answers
        self._requests = requests
        self._dice = random.Random(seed)

    def next(self) -> tuple[bool, bool]:
        """Return whether the next request arrives, and whether its answer does."""
        thrown = self._dice.random()
        answer_lost = thrown < self._answers
        request_lost = not answer_lost and thrown < self._answers + self._requests
        return not request_lost, not (answer_lost or request_lost)


class Proxy:
    def __init__(self, upstream: str, losses: Losses) -> None:
        address = urlsplit(upstream)
        if address.scheme != "http" or not address.hostname:
            raise SystemExit(f"Only http:// addresses, not {upstream!r}.")
        self._host, self._port = address.hostname, address.port or 80
        self._losses = losses

    async def carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve one connection; what is lost looks like a line that went dead."""
        try:
            request = await _request(reader)
            if request is None:
                writer.write(_LENGTH_REQUIRED)
            elif request:
                arrives, returns = self._losses.next()
                answer = await self._ask(request) if arrives else b""
                if returns:
                    writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # one of the two sides is gone: the other sees a closed connection
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _ask(self, request: bytes) -> bytes:
        """Hand it on, and wait for the whole answer, also for one that will be lost."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
        head, end, body = answer.partition(b"\r\n\r\n")
        return _closing(head) + end + body


async def _request(reader: StreamReader) -> bytes | None:
    """Read one request; None for one whose end can't be told, nothing if there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    if _CHUNKED.search(head):
        return None
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return _closing(head.removesuffix(b"\r\n\r\n")) + b"\r\n\r\n" + body


def _closing(head: bytes) -> bytes:
    """Let it be the last on its connection: then the end of the answer is the end of the line."""
    return _CONNECTION.sub(b"", head) + b"\r\nConnection: close"
