"""Read an answer while it is being made, and talk both ways at once.

modelkit serve examples/hello --local
python examples/clients/streaming.py [HOST:PORT]
"""

import sys
from collections.abc import Iterator

from modelkit import Client


def lines() -> Iterator[str]:
    """Stands for a microphone, a keyboard, a log: it is read while the answers arrive."""
    yield "first line"
    yield "second line"


def main(address: str | None = None) -> None:
    with Client(address) as client:
        for piece in client.generate("to be or not to be"):
            print(piece, end="", flush=True)
        print()

        # Leaving the loop early cancels the call; the model stops too.
        for number, piece in enumerate(client.generate("again and again", times=1000), start=1):
            if number == 5:
                print(f"enough after {piece!r}")
                break

        for answer in client.stream(lines(), shout=True):
            print(answer)


if __name__ == "__main__":
    main(*sys.argv[1:2])
