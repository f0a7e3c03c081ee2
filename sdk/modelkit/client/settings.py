"""Where a client connects and with what credentials: read once, checked once, secrets never shown."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from modelkit.client.retry import RetryPolicy, checked_timeout
from modelkit.computes.locate import SCHEME, parse_url
from modelkit.computes.store import find_compute
from modelkit.errors import UsageError

__all__ = ["ADDRESS_ENV", "ALLOW_PLAINTEXT_ENV", "API_KEY_ENV", "DEFAULT_ADDRESS", "TLS", "Settings"]

DEFAULT_ADDRESS = "localhost:50051"
DEFAULT_PORT = 50051
ADDRESS_ENV = "MODELKIT_ADDRESS"
API_KEY_ENV = "MODELKIT_API_KEY"
ALLOW_PLAINTEXT_ENV = "MODELKIT_ALLOW_PLAINTEXT_API_KEY"

_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
_SCHEMES = {"grpc://": False, "grpcs://": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """How to trust the server and, with a certificate and key, how to be trusted by it. All files are PEM.

    Without `ca_path` the machine's usual authorities are trusted. `server_name` is the name to expect in the server's
    certificate where it differs from the address.
    """

    ca_path: str | Path | None = None
    certificate_path: str | Path | None = None
    key_path: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_path is None) != (self.key_path is None):
            raise UsageError(
                "a client certificate needs its key and the other way round",
                cure="give both certificate_path and key_path",
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a client was told, complete: what the constructor left out is filled in from the environment."""

    address: str
    timeout_s: float | None
    api_key: str | None = field(repr=False)
    tls: TLS | None
    retry: RetryPolicy | None
    metadata: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)  # a gateway's key may be among them
    allow_plaintext_api_key: bool = False

    @property
    def names_deployment(self) -> bool:
        """Whether the address is that of a deployment, modelkit://COMPUTE/NAME, which a compute finds."""
        return self.address.startswith(SCHEME)

    def check_plaintext(self, target: str) -> None:
        """Raise UsageError where the API key would travel to a target in plain text."""
        if self.api_key and self.tls is None and not self.allow_plaintext_api_key and not is_loopback(target):
            raise UsageError(
                f"the API key would travel to {target} in plain text",
                cure="pass tls=True (or a grpcs:// address); where the network in between is trusted, "
                f"pass allow_plaintext_api_key=True, or set {ALLOW_PLAINTEXT_ENV}=1",
            )

    @classmethod
    def resolve(
        cls,
        address: str | None,
        *,
        timeout_s: float | None,
        api_key: str | None,
        tls: bool | TLS | None,
        retry: RetryPolicy | None,
        metadata: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        allow_plaintext_api_key: bool,
    ) -> "Settings":
        """Fill in and check. Raises UsageError for an address that cannot be one and for a key sent in the open."""
        target, scheme_says_tls = parse_address(address or os.environ.get(ADDRESS_ENV) or DEFAULT_ADDRESS)
        key = api_key if api_key is not None else _key_for(target)
        _check_header("the API key", key or "")
        for name, value in (headers or {}).items():
            _check_header(f"the header '{name}'", value, name)
        settings = cls(
            address=target,
            timeout_s=checked_timeout(timeout_s),
            api_key=key or None,
            tls=_resolve_tls(tls, scheme_says_tls),
            retry=retry,
            metadata=dict(metadata or {}),
            headers={name.lower(): value for name, value in (headers or {}).items()},
            allow_plaintext_api_key=allow_plaintext_api_key or os.environ.get(ALLOW_PLAINTEXT_ENV) == "1",
        )
        if not settings.names_deployment:  # where that is called is known once its compute was asked
            settings.check_plaintext(target)
        return settings


def parse_address(address: str) -> tuple[str, bool | None]:
    """Return gRPC's target and whether the address asks for TLS (None where it does not say).

    Takes `host`, `host:port`, `[::1]:port`, `grpc://...`, `grpcs://...`, `unix:path` and `modelkit://compute/deployment`.
    """
    if address.startswith(SCHEME):
        compute, name = parse_url(address)
        return f"{SCHEME}{compute}/{name}", None
    for scheme, tls in _SCHEMES.items():
        if address.startswith(scheme):
            return parse_address(address.removeprefix(scheme).rstrip("/"))[0], tls
    if address.startswith("unix:"):
        return address, None
    if "://" in address or "/" in address or not address.strip():
        raise UsageError(
            f"'{address}' is not the address of a gRPC server",
            cure="write host:port, grpc://host:port or grpcs://host:port (with TLS)",
        )
    host, port = _split_port(address)
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"'{address}' has no valid port", cure=f"write {host}:{DEFAULT_PORT}")
    return f"{host}:{port}", None


def is_loopback(target: str) -> bool:
    """Tell whether a target never leaves this machine."""
    if target.startswith("unix:"):
        return True
    host = _split_port(target)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _key_for(target: str) -> str | None:
    """Return the API key that the environment has for an address.

    Raises UsageError where there is no such compute, or the variable that it names has no key.
    """
    key = os.environ.get(API_KEY_ENV)
    if not target.startswith(SCHEME):
        return key
    compute = find_compute(parse_url(target)[0])
    if compute.api_key_env is None:
        return key
    key = os.environ.get(compute.api_key_env) or key
    if not key:
        raise UsageError(
            f"the models on {compute.name} ask for an API key, and the environment variable {compute.api_key_env} has none",
            cure=f"export {compute.api_key_env}=..., or pass api_key=...",
        )
    return key


def _check_header(what: str, value: str | bytes, name: str = "authorization") -> None:
    """Raise UsageError for what gRPC would refuse to send, without showing the value, which may be secret."""
    if not _HEADER_NAME.fullmatch(name.lower()):
        raise UsageError(
            f"{what} has a name that cannot be sent", cure="use letters, digits, '-', '_' and '.' only"
        )
    if isinstance(value, str) and not (value.isascii() and value.isprintable()):
        raise UsageError(
            f"{what} has a character that cannot be sent, such as a newline at its end",
            cure="give it without newlines, and in ASCII",
        )


def _split_port(address: str) -> tuple[str, str]:
    if address.count(":") > 1 and not address.startswith("["):  # a bare IPv6 address
        return f"[{address}]", str(DEFAULT_PORT)
    host, colon, port = address.rpartition(":")
    if not colon or port.endswith("]"):
        return address, str(DEFAULT_PORT)
    return host, port


def _resolve_tls(tls: bool | TLS | None, scheme_says_tls: bool | None) -> TLS | None:
    if isinstance(tls, TLS):
        return tls
    return TLS() if (scheme_says_tls if tls is None else tls) else None
