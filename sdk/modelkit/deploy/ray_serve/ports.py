"""Ports for a Ray of this machine's own: a block that no other Ray here uses, and that no connection is given by chance.

Ray opens its replicas' ports with SO_REUSEPORT: two Rays that take the same ones do not fail, but get each other's calls.
"""

import secrets
import socket
from typing import Final

from modelkit.errors import DeployError

__all__ = ["free_block"]

# Below the ports that Linux gives to outgoing connections (32768 and up) and Ray's own defaults (30000 and up).
_FIRST: Final = 10_000
_LAST: Final = 30_000
_NUM_TRIES: Final = 50


def free_block(size: int) -> range:
    """Return ports in a row that nobody uses at this moment. Raises DeployError where there is no such row."""
    starts = range(_FIRST, _LAST - size + 1, size)
    for _ in range(_NUM_TRIES):
        start = secrets.choice(starts)
        block = range(start, start + size)
        if all(_is_free(port) for port in block):
            return block
    raise DeployError(
        f"no {size} ports in a row are free on this machine between {_FIRST} and {_LAST}",
        cure="end what holds them: `ss -ltn` lists it",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
