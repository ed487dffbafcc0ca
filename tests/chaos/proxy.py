"""A TCP proxy that can fail: between the processes under test and their database, or their object store."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

__all__ = ["FaultProxy", "Mode"]

Mode = Literal["pass", "refuse", "silent"]
"""Let bytes through; end every connection at once; take connections and bytes, and say nothing."""
BLOCK = 64 * 1024


class FaultProxy:
    """Listens on a port of loopback, in a thread of its own, and connects on by `connect`."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._mode: Mode = "pass"
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._speaks = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def set_mode(self, mode: Mode) -> None:
        """Behave so from now on; `refuse` also ends what is open."""
        self._mode = mode
        self._loop.call_soon_threadsafe(self._speaks.clear if mode == "silent" else self._speaks.set)
        if mode == "refuse":
            self.reset()

    def reset(self) -> None:
        """End all open connections at once, in the middle of whatever they carry."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def close(self) -> None:
        """Listen no more, end everything."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        self._speaks.set()
        self._abort_all()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=5)

    async def _listen(self) -> asyncio.Server:
        self._speaks.set()
        return await asyncio.start_server(self._carry, "127.0.0.1", 0)

    def _abort_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            far_reader, far_writer = await self._connect()
            self._open |= {writer, far_writer}
            try:
                await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
            finally:
                self._open -= {writer, far_writer}
                for one in (writer, far_writer):
                    one.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(BLOCK):
                await self._speaks.wait()
                writer.write(block)
                await writer.drain()
        writer.transport.abort()
