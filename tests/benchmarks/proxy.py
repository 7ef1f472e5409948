"""A TCP proxy that adds 1 ms each way, so that a round trip costs what it costs in a data centre.

``python -m tests.benchmarks.proxy SOCKET`` prints its port and ends when its standard input does.
"""

import contextlib
import os
import queue
import socket
import sys
import threading
import time

LATENCY = 0.001


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what arrives, each piece LATENCY after it came, however many are on their way."""
    underway: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def receive() -> None:
        data = b" "
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            underway.put((time.monotonic() + LATENCY, data))

    def send() -> None:
        while True:
            due, data = underway.get()
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            with contextlib.suppress(OSError):
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)

    threading.Thread(target=receive, daemon=True).start()
    threading.Thread(target=send, daemon=True).start()


def serve(path: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = socket.socket(socket.AF_UNIX)
        server.connect(path)
        pump(client, server)
        pump(server, client)


if __name__ == "__main__":
    threading.Thread(target=serve, args=(sys.argv[1],), daemon=True).start()
    sys.stdin.read()
    os._exit(0)  # the daemon threads hold nothing worth an orderly end
