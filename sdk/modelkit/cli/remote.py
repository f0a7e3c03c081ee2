"""What the verbs that call a server share: the options of the connection, and the client made from them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.errors import UsageError

if TYPE_CHECKING:
    from modelkit.client import Client

__all__ = ["Address", "ApiKeyEnv", "CaPath", "Tls", "connect"]

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        metavar="HOST:PORT",
        help="Where the server is, or modelkit://COMPUTE/NAME. [MODELKIT_ADDRESS, else localhost:50051]",
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The environment variable with the API key. [MODELKIT_API_KEY]"),
]
Tls = Annotated[bool, typer.Option("--tls", help="Connect with TLS.")]
CaPath = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Trust this authority's certificate (PEM); implies --tls."),
]


def connect(address: str | None, api_key_env: str | None, *, tls: bool, ca: Path | None) -> "Client":
    """Return a client. Raises UsageError for an address that cannot be one, a missing key or an unreadable file."""
    # gRPC's own log lines (a connection that went away) are no news to the user; must be set before it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from modelkit.client import TLS, Client

    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise UsageError(
                f"the environment variable '{api_key_env}' has no API key", cure=f"export {api_key_env}=..."
            )
    try:
        return Client(address, api_key=key, tls=TLS(ca_path=ca) if ca is not None else tls or None)
    except UsageError as error:
        if "allow_plaintext_api_key" not in error.cure:
            raise
        raise UsageError(
            error.message,
            cure="add --tls, or write a grpcs:// address; where the network in between is trusted: "
            "export MODELKIT_ALLOW_PLAINTEXT_API_KEY=1",
        ) from error
