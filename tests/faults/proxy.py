"""``python -m tests.faults.proxy PORT SEED``: a bad line to a PostgreSQL server.

Prints its own port, then a line for each thing it does: a request lost on the way there, an answer
lost on the way back, a line that is silent for a time. What is lost looks like a line that was cut.
"""

import asyncio
import random
import sys
from asyncio import StreamReader, StreamWriter
from contextlib import suppress

# By what it does, the share of the messages it does it to; and of those that commit.
SHARES = {"request lost": 0.003, "answer lost": 0.003, "silence": 0.002}
COMMIT_SHARES = {"request lost": 0.03, "answer lost": 0.03, "silence": 0.0}


class Line:
    """One connection, to both sides."""

    def __init__(self, dice: random.Random, near: tuple[StreamReader, StreamWriter]) -> None:
        self._dice = dice
        self._reader, self._writer = near
        self._losing = False
        self._open = asyncio.Event()
        self._open.set()

    async def carry(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        there = asyncio.ensure_future(self._there(writer))
        back = asyncio.ensure_future(self._back(reader))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await task
            for side in (writer, self._writer):
                side.close()

    async def _there(self, writer: StreamWriter) -> None:
        while message := await self._reader.read(65_536):
            what = self._thrown(message)
            if what:
                commits = " (COMMIT)" if _commits(message) else ""
                print(f"{what}{commits}", flush=True)
            if what == "request lost":
                return
            if what == "silence":
                self._open.clear()
                await asyncio.sleep(self._dice.uniform(0.1, 0.6))
                self._open.set()
            self._losing = what == "answer lost"
            writer.write(message)
            await writer.drain()

    async def _back(self, reader: StreamReader) -> None:
        while message := await reader.read(65_536):
            if self._losing:
                return
            await self._open.wait()
            self._writer.write(message)
            await self._writer.drain()

    def _thrown(self, message: bytes) -> str:
        if message[:1] not in {b"Q", b"P"}:  # how a connection begins, or its goodbye
            return ""
        thrown = self._dice.random()
        for what, share in (COMMIT_SHARES if _commits(message) else SHARES).items():
            if thrown < share:
                return what
            thrown -= share
        return ""


def _commits(message: bytes) -> bool:
    return message.startswith(b"Q") and message[5:11] == b"COMMIT"


async def serve(port: int, seed: str) -> None:
    dice = random.Random(seed)

    async def carry(reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(OSError):  # one of the two sides is gone
            await Line(dice, (reader, writer)).carry(port)
        writer.close()

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until we are left


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
