"""What a registry refuses, in the words of the person who asked: one sentence of what and where, one of how to mend it.

Source of the codes: https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes
"""

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from modelkit.errors import RegistryError

if TYPE_CHECKING:
    import httpx

__all__ = [
    "AccessError",
    "TransientError",
    "UnknownReferenceError",
    "refusal",
    "transport_failure",
]

_MAX_MESSAGE_CHARACTERS = 300
_NAME_CODES = frozenset({"NAME_UNKNOWN", "NAME_INVALID"})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class UnknownReferenceError(RegistryError):
    """There is no such tag, digest or repository."""

    def __init__(self, reference: str, *, reason: str = "", cure: str = "") -> None:
        super().__init__(
            f"there is no {reference}" + (f": {reason}" if reason else ""),
            cure=cure or f"`modelkit versions {_without_tag(reference)}` lists what there is",
        )


def _without_tag(reference: str) -> str:
    name = reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


class AccessError(RegistryError):
    """The registry wants to know who asks, or does not let them do this."""


class TransientError(RegistryError):
    """A failure that may pass: the connection broke, or the registry is overloaded. `after_s` is its own advice."""

    def __init__(self, message: str, *, cure: str, after_s: float | None = None) -> None:
        super().__init__(message, cure=cure)
        self.after_s = after_s


def refusal(response: "httpx.Response", action: str, repository: str, login: str) -> RegistryError:
    """Return the error for a response that is not what was asked for.

    `action` completes "cannot ...", `login` says which credentials were sent.
    """
    codes, said = _details(response)
    status, registry, cannot = response.status_code, repository.partition("/")[0], f"cannot {action}"
    reason = f"{registry} answered {status}" + (f", {said}" if said else "")
    if status == HTTPStatus.UNAUTHORIZED:
        return _not_logged_in(cannot, registry, login)
    if status == HTTPStatus.FORBIDDEN:
        return AccessError(
            f"{cannot}: {reason}",
            cure=f"ask for the right to do that in {repository}, or see whether its quota is used up ({login})",
        )
    if status == HTTPStatus.NOT_FOUND and (codes & _NAME_CODES or not codes):
        return UnknownReferenceError(
            repository,
            reason=said or f"{registry} answered 404",
            cure=f"correct the name, or create the repository at {registry}: not every registry does at a push",
        )
    if status in _TRANSIENT:
        return _transient(response, f"{cannot}: {reason}", action)
    return _bad_content(codes, status, cannot, reason, registry)


def _bad_content(codes: set[str], status: int, cannot: str, reason: str, registry: str) -> RegistryError:
    """Return the error for a request that the registry has read and does not like."""
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or "SIZE_INVALID" in codes:
        return RegistryError(
            f"{cannot}: it is larger than {registry} takes ({reason})",
            cure="raise the limit of the registry or of the proxy before it (nginx: client_max_body_size 0)",
        )
    if "DIGEST_INVALID" in codes:
        return RegistryError(
            f"{cannot}: what arrived at {registry} does not have its digest",
            cure="let no other program write the files, and run the command again",
        )
    if "BLOB_UNKNOWN" in codes or status == HTTPStatus.NOT_FOUND:
        return RegistryError(
            f"{cannot}: {reason}", cure="push it again: the registry does not have it any more"
        )
    if codes & {"MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN"}:
        return RegistryError(
            f"{cannot}: {registry} has lost a part of it ({reason})",
            cure="run the command again: it sends what is missing",
        )
    if "HTTPS server" in reason:
        return RegistryError(f"{cannot}: {registry} speaks HTTPS", cure="leave --plain-http out")
    return RegistryError(f"{cannot}: {reason}", cure=f"see the log of {registry}")


def _not_logged_in(cannot: str, registry: str, login: str) -> AccessError:
    return AccessError(
        f"{cannot}: {registry} wants to know who you are, and {login}",
        cure=f"`docker login {registry}` or `podman login {registry}` once; in CI set MODELKIT_REGISTRY_HOST, "
        "MODELKIT_REGISTRY_USERNAME and MODELKIT_REGISTRY_PASSWORD",
    )


def _transient(response: "httpx.Response", message: str, action: str) -> TransientError:
    after_s = _seconds(response.headers.get("Retry-After", ""))
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        wait = f"wait {after_s:.0f} s" if after_s is not None else "wait a while"
        cure = f"{wait} and run the command again{_not_twice(action)}; a login may raise the limit"
    else:
        cure = f"run the command again when the registry is well{_not_twice(action)}"
    return TransientError(message, cure=cure, after_s=after_s)


def _not_twice(action: str) -> str:
    """Say what is spared to whoever tries again, where anything is: of what is sent alone."""
    return ": what has arrived is not sent twice" if action.startswith(("push", "mount")) else ""


def _seconds(retry_after: str) -> float | None:
    """Read `Retry-After`: a number of seconds, or a date (RFC 9110, 10.2.3)."""
    if retry_after.isdigit():
        return float(retry_after)
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        then = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max((then - datetime.now(UTC)).total_seconds(), 0.0)


def _details(response: "httpx.Response") -> tuple[set[str], str]:
    """Return the codes and the message of a registry's error; a proxy's page of HTML has neither."""
    try:
        errors = json.loads(response.content)["errors"]
        codes = {str(error.get("code", "")) for error in errors}
        said = "; ".join(filter(None, (_sentence(error) for error in errors)))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = response.text.strip()
        said = "" if text.startswith("<") else text
        codes = set()
    return codes - {""}, said[:_MAX_MESSAGE_CHARACTERS]


def _sentence(error: dict[str, object]) -> str:
    message, detail = str(error.get("message") or error.get("code") or ""), error.get("detail")
    return f"{message} ({json.dumps(detail)})" if detail else message


def transport_failure(error: Exception, action: str, registry: str) -> RegistryError:
    """Return the error for a request that got no answer: no connection, no trust, or a connection that broke."""
    text = str(error) or type(error).__name__
    cannot = f"cannot {action}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return RegistryError(
            f"{cannot}: the certificate of {registry} is not trusted ({text})",
            cure="set SSL_CERT_FILE to a file with the certificate of your authority beside the usual ones",
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return RegistryError(
            f"{cannot}: {registry} does not speak HTTPS",
            cure="give --plain-http where the network between is your own",
        )
    if "Name or service not known" in text or "getaddrinfo" in text or "Temporary failure in name" in text:
        return TransientError(
            f"{cannot}: there is no host {registry.partition(':')[0]}",
            cure="correct the name of the registry, or see to the network",
        )
    return TransientError(
        f"{cannot}: the connection to {registry} failed ({text})",
        cure=f"run the command again when the registry can be reached{_not_twice(action)}",
    )
