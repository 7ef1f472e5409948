"""``python -m lossy``: prints its address as its first line, then serves until it is ended."""

import argparse
import asyncio
import signal
import sys

import lifeline

from lossy.proxy import Losses, Proxy


async def serve(proxy: Proxy, port: int, *, watched: bool) -> None:
    async with await asyncio.start_server(proxy.carry, "127.0.0.1", port, backlog=127) as server:
        host, port = server.sockets[0].getsockname()
        print(f"http://{host}:{port}", flush=True)
        if watched:
            lifeline.hold_on()
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
        sys.exit(0)  # without waiting for what is still on its way


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lossy", description="A bad line.")
    parser.add_argument("--upstream", required=True, metavar="URL", help="where it leads to")
    parser.add_argument("--port", type=int, default=0, help="a free one by default")
    parser.add_argument(
        "--drop", type=_share, default=0.3, help="share of the answers to lose (%(default)s)"
    )
    parser.add_argument(
        "--drop-requests", type=_share, default=0.0, help="share of the requests (%(default)s)"
    )
    parser.add_argument("--seed", default="1", help="of the dice (%(default)s)")
    parser.add_argument(
        "--lifeline", action="store_true", help="end when the standard input does, too"
    )
    options = parser.parse_args()
    losses = Losses(answers=options.drop, requests=options.drop_requests, seed=options.seed)
    asyncio.run(serve(Proxy(options.upstream, losses), options.port, watched=options.lifeline))


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


if __name__ == "__main__":
    main()
