"""Forwards a port of this network namespace to another address: `python tcp_forward.py PORT HOST PORT`."""

import asyncio
import contextlib
import sys

_PIECE_BYTES = 1024 * 1024


async def _pump(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE_BYTES):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def forward(port, host, target):
    async def on_connection(reader, writer):
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(host, target)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    server = await asyncio.start_server(on_connection, "127.0.0.1", port)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(forward(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
