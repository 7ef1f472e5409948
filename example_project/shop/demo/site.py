"""The real site under a real multi-process server, and what it talks to and through."""

import http.client
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from shop.demo.children import child

START_TIMEOUT = 60.0
# One less than macOS's default limit; the attack opens fewer connections at once.
BACKLOG = 127


@contextmanager
def running_site(*, workers: int, env: dict[str, str], log: Path, port: int = 0) -> Iterator[str]:
    """Serve the shop for the time of the block, and give its address.

    The socket is opened here and handed on, so no other program can take the port in between, and
    a server that fails to start closes it rather than letting us wait.
    """
    with log.open("ab") as output, socket.create_server(("127.0.0.1", port)) as listener:
        listener.listen(BACKLOG)
        host, port = listener.getsockname()
        command = (
            "shop_site.wsgi",
            f"--bind=fd://{listener.fileno()}",
            f"--workers={workers}",
        )
        environment = {**env, "SHOP_LIFELINE": "1"}
        with child(
            "gunicorn",
            *command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(listener.fileno(),),
        ):
            listener.close()
            address = f"http://{host}:{port}"
            _wait_for(address, log)
            yield address


def _wait_for(address: str, log: Path) -> None:
    # The socket takes connections already: one request waits until a worker is there to answer.
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=START_TIMEOUT)
    try:
        connection.request("GET", "/health/")
        status = connection.getresponse().status
    except OSError as error:
        raise CommandError(f"The site did not start: {error}\n{_end_of(log)}") from error
    finally:
        connection.close()
    if status != 200:
        raise CommandError(f"The site answers {status}.\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-25:])


def running_acquirer(books: Path, *, delay: float = 0) -> AbstractContextManager[str]:
    """Run the acquirer for the time of the block, and give its address."""
    return _running("acquirer", "--port=0", f"--books={books}", f"--delay={delay}")


def running_proxy(
    upstream: str, *, drop: float, drop_requests: float = 0, seed: str = "1"
) -> AbstractContextManager[str]:
    """Run a bad line to that address for the time of the block, and give its own."""
    return _running(
        *("lossy", f"--upstream={upstream}", f"--seed={seed}"),
        *(f"--drop={drop}", f"--drop-requests={drop_requests}"),
    )


@contextmanager
def _running(module: str, *arguments: str) -> Iterator[str]:
    with child(module, *arguments, "--lifeline", stdout=subprocess.PIPE) as process:
        address = process.stdout.readline().decode().strip()
        if not address:
            raise CommandError(f"{module} did not start.")
        yield address
