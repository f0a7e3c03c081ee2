"""Many calls at once from one thread.

modelkit serve examples/hello --local
python examples/clients/asynchronous.py [HOST:PORT]
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from modelkit import AsyncClient


async def lines() -> AsyncIterator[str]:
    for line in ("first line", "second line"):
        yield line
        await asyncio.sleep(0.05)


async def main(address: str | None = None) -> None:
    async with AsyncClient(address) as client:
        names = ["Ada", "Alan", "Grace"]
        people = [{"name": name, "languages": ["en"]} for name in names]
        answers = await asyncio.gather(*(client.methods.introduce(person=person) for person in people))
        print([answer["en"] for answer in answers])

        async for piece in client.generate("to be or not to be"):
            print(piece, end="", flush=True)
        print()

        async for answer in client.stream(lines()):
            print(answer)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
