"""gRPC channels, made the same way for both clients."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from modelkit.client.settings import TLS, Settings, is_loopback
from modelkit.errors import UsageError
from modelkit.inference.v1.inference_pb2_grpc import InferenceServiceStub

__all__ = ["headers_for", "inference_stub", "open_channel", "opener"]

_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'


def opener(settings: Settings, insecure: Callable[..., Any], secure: Callable[..., Any]) -> Callable[[], Any]:
    """Return what opens the channel, with the functions of `grpc` or of `grpc.aio`.

    The certificates are read now, so that a wrong path is an error of the constructor.
    """
    options = _options(settings.tls, is_local=is_loopback(settings.address))
    if settings.tls is None:
        return lambda: insecure(settings.address, options=options)
    credentials = _credentials(settings.tls)
    return lambda: secure(settings.address, credentials, options=options)


def open_channel(
    targets: Sequence[str], tls: TLS | None, insecure: Callable[..., Any], secure: Callable[..., Any]
) -> Any:
    """Open a channel to servers that are all as good as each other: calls go to those that answer, in turn.

    Several targets are IP addresses, all of one family; gRPC keeps a connection to each.
    """
    options = [*_options(tls, is_local=all(map(is_loopback, targets))), ("grpc.service_config", _ROUND_ROBIN)]
    name = targets[0]
    if len(targets) > 1:
        name = f"{'ipv6' if name.startswith('[') else 'ipv4'}:{','.join(targets)}"
    if tls is None:
        return insecure(name, options=options)
    return secure(name, _credentials(tls), options=options)


def headers_for(settings: Settings, request_id: str) -> tuple[tuple[str, str], ...]:
    """Return the HTTP/2 headers of a call."""
    headers = {**settings.headers, "x-request-id": request_id}
    if settings.api_key:
        headers["authorization"] = f"Bearer {settings.api_key}"
    return tuple(headers.items())


def inference_stub(channel: Any) -> Any:
    """Return the contract's methods on a channel of either kind; the generated class has no annotations."""
    return InferenceServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]


def _options(tls: TLS | None, *, is_local: bool) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        # The caller asked for the answer: its size is the server's business.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Below the pauses of RetryPolicy: with gRPC's default of a second, a retry would only be told of the old failure.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if is_local:
        options.append(("grpc.enable_http_proxy", 0))  # http_proxy is meant for the world outside
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _credentials(tls: TLS) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_path, "the CA file"),
        private_key=_read(tls.key_path, "the client's key"),
        certificate_chain=_read(tls.certificate_path, "the client's certificate"),
    )


def _read(path: str | Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {what} '{path}': {error.strerror}", cure="name a PEM file") from error
