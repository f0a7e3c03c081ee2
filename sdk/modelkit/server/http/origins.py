"""Which web pages may call: without this, every page a person opens could use the server on their own machine.

Browsers let a page send to any address and keep only the answer from it. They do tell whose page it is (`Origin`), and
which name the page has used for the server (`Host`), which catches a name that has been pointed to this machine (DNS
rebinding). Programs send no Origin, and are not asked for one.
Source: https://fetch.spec.whatwg.org/#origin-header
"""

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

from aiohttp import hdrs

from modelkit.errors import PermissionDeniedError

__all__ = ["Origins"]

# What changes nothing, and whose answer a page of another origin cannot read.
_SAFE_METHODS: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Origins:
    """The origins whose pages may call, beside the server's own; "*" for all. `listens_on` is the server's host."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = frozenset(allowed)
        self._allowed_hosts = {_split(origin).hostname for origin in allowed}
        self.listens_on = ""

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def has(self, origin: str) -> bool:
        """Whether pages of an origin may call, and read the answer."""
        return bool(self._allowed & {origin, "*"})

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Refuse what a page of another site sends. Raises PermissionDeniedError with what would allow it."""
        host, origin = headers.get(hdrs.HOST), headers.get(hdrs.ORIGIN)
        if host is not None and not self._is_own_name(host):
            raise PermissionDeniedError(
                f"this server listens on this machine only ({self.listens_on}), and is not called '{host}'",
                cure=f"call it by http://{self.listens_on}, or listen on an address of the network with --host; where a "
                f"proxy passes its own name on, --cors-origin https://{host} allows that name",
            )
        if method in _SAFE_METHODS or (origin is not None and self.has(origin)):
            return
        is_foreign = (
            headers.get("Sec-Fetch-Site") == "cross-site" if origin is None else not _is_at(origin, host)
        )
        if is_foreign:
            raise PermissionDeniedError(
                f"pages of {origin or 'other sites'} may not call this server",
                cure=f"allow them with --cors-origin {origin}" if origin else "",
            )

    def _is_own_name(self, host: str) -> bool:
        """Whether a server that listens on this machine only can have been called so; any other has any name."""
        if not _is_loopback(self.listens_on) or "*" in self._allowed:
            return True
        name = _split(f"//{host}").hostname
        return name is not None and (
            _is_loopback(name) or name == self.listens_on or name in self._allowed_hosts
        )


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_at(origin: str, host: str | None) -> bool:
    """Whether an origin is the host and port that a request was sent to. The scheme may have changed at a proxy."""
    page = _split(origin)
    target = _split(f"//{host or ''}")
    default = _DEFAULT_PORTS.get(page.scheme)
    return page.hostname is not None and (page.hostname, _port(page) or default) == (
        target.hostname,
        _port(target) or default,
    )


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # half an IPv6 address
        return urlsplit("")


def _port(url: SplitResult) -> int | None:
    try:
        return url.port
    except ValueError:
        return -1  # no port at all: equal to none
