"""From a registry's challenge to an Authorization header: Basic, or a bearer token from the service that it names.

Source: https://distribution.github.io/distribution/spec/auth/token/, .../spec/auth/oauth/
"""

import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from modelkit.registry.credentials import Credential, find_credential
from modelkit.registry.failures import AccessError, refusal, transport_failure
from modelkit.registry.reference import Reference

if TYPE_CHECKING:
    import httpx

__all__ = ["Authorizer"]

_CHALLENGE = re.compile(r"(?P<scheme>[A-Za-z]+)\s+(?P<rest>.*)")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"|(\w+)=([^",\s]+)')


class Authorizer:
    """Holds one repository's tokens, by scope. Credentials are looked for when the registry asks, and not before."""

    def __init__(
        self,
        http: "httpx.Client",
        reference: Reference,
        *,
        allow_http: bool,
        find: Callable[[str, str], Credential | None] = find_credential,
    ) -> None:
        self._http = http
        self._reference = reference
        self._allow_http = allow_http
        self._find = find
        self._lock = threading.Lock()
        self._headers: dict[str, str] = {}  # by scope; Basic is under ""
        self._credential: Credential | None = None
        self._has_looked = False

    @property
    def login(self) -> str:
        """Say which credentials were used, for an error message."""
        if self._credential is None:
            return "no credentials for it were found"
        user = self._credential.username
        return f"the credentials{f' of {user}' if user else ''} from {self._credential.origin} were refused"

    def header(self, scope: str) -> str | None:
        """Return the header for a scope such as "repository:chat:pull,push", None before the first challenge."""
        return self._headers.get(scope) or self._headers.get("")

    def answer(self, challenge: str, scope: str, refused: str | None) -> bool:
        """Get a header that answers a challenge. `refused` is the one that was sent; False where there is no other."""
        with self._lock:  # several threads are challenged at once; one asks, the others find what it got
            if self.header(scope) not in {None, refused}:
                return True
            return self._answer(challenge, scope, refused)

    def _answer(self, challenge: str, scope: str, refused: str | None) -> bool:
        match = _CHALLENGE.fullmatch(challenge.strip())
        if match is None:
            return False
        if not self._has_looked:
            self._credential = self._find(self._reference.registry, self._reference.repository)
            self._has_looked = True
        if match["scheme"].lower() == "basic":
            if self._credential is None or refused is not None:
                return False
            self._headers[""] = f"Basic {self._credential.basic}"
            return True
        if match["scheme"].lower() != "bearer":
            return False
        values = {m[1] or m[3]: m[2] or m[4] or "" for m in _PARAMETER.finditer(match["rest"])}
        self._headers[scope] = f"Bearer {self._token(values, scope)}"
        return True

    def _token(self, challenge: Mapping[str, str], scope: str) -> str:
        credential = self._credential
        if credential is not None and credential.registry_token:
            return credential.registry_token
        realm = challenge.get("realm", "")
        if not realm.startswith("https://") and not (self._allow_http and realm.startswith("http://")):
            raise AccessError(
                f"{self._reference.registry} asks to send credentials to '{realm}', unencrypted",
                cure="tell its administrator; --plain-http allows it where the network between is your own",
            )
        response = self._ask(realm, challenge.get("service", ""), scope, credential)
        if not response.is_success:
            raise refusal(response, "log in", self._reference.name, self.login)
        token = _token_in(response)
        if not token:
            raise AccessError(
                f"{realm}, where {self._reference.registry} sends for a token, answered without one",
                cure="see that a proxy does not answer in its place, or tell the administrator of the registry",
            )
        return token

    def _ask(self, realm: str, service: str, scope: str, credential: Credential | None) -> "httpx.Response":
        import httpx

        scopes = scope.split(" ")
        try:
            if credential is not None and credential.identity_token:
                form = {
                    "grant_type": "refresh_token",
                    "service": service,
                    "client_id": "modelkit",
                    "scope": scope,
                    "refresh_token": credential.identity_token,
                }
                return self._http.post(realm, data=form)
            headers = {} if credential is None else {"Authorization": f"Basic {credential.basic}"}
            return self._http.get(realm, params={"service": service, "scope": scopes}, headers=headers)
        except httpx.TransportError as error:
            raise transport_failure(error, "log in", httpx.URL(realm).host) from error


def _token_in(response: "httpx.Response") -> str:
    """Return the token of an answer, "" where it has none: a page of a proxy, say."""
    try:
        answer = response.json()
    except ValueError:
        return ""
    token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    return token if isinstance(token, str) else ""
