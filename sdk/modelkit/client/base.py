"""What both clients share: everything but the waiting. `sync` and `aio` add the transport and nothing else."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

import grpc

from modelkit.client.channel import headers_for, opener
from modelkit.client.description import MethodDescription, ModelDescription
from modelkit.client.failures import from_rpc_error
from modelkit.client.messages import Invocation
from modelkit.client.retry import Attempts, Deadline, RetryPolicy
from modelkit.client.settings import TLS, Settings
from modelkit.errors import CallError, DeadlineExceededError, UnavailableError

__all__ = ["BaseClient", "BaseMethods", "BaseRemoteMethod", "Call", "Health", "ReadyWait"]

Health = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]


@dataclass(slots=True)
class Call:
    """One call with all its tries: what to send, until when, and what a failure of it means."""

    settings: Settings
    invocation: Invocation
    deadline: Deadline
    request_id: str
    attempts: Attempts

    def options(self) -> dict[str, Any]:
        """Return gRPC's options of the next try; the deadline covers all tries together."""
        return {
            "timeout": self.deadline.remaining_s(),
            "metadata": headers_for(self.settings, self.request_id),
        }

    def failure(self, error: grpc.RpcError) -> CallError:
        """Translate what gRPC raised."""
        return from_rpc_error(
            error, address=self.settings.address, deadline=self.deadline, request_id=self.request_id
        )


class BaseClient:
    """The settings of a client and the calls it prepares."""

    def __init__(
        self,
        address: str | None,
        channel_functions: tuple[Callable[..., Any], Callable[..., Any]],
        *,
        timeout_s: float | None,
        api_key: str | None,
        tls: bool | TLS | None,
        retry: RetryPolicy | None,
        metadata: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        allow_plaintext_api_key: bool,
    ) -> None:
        self._settings = Settings.resolve(
            address,
            timeout_s=timeout_s,
            api_key=api_key,
            tls=tls,
            retry=retry,
            metadata=metadata,
            headers=headers,
            allow_plaintext_api_key=allow_plaintext_api_key,
        )
        self._open_channel = opener(self._settings, *channel_functions)
        self._description: ModelDescription | None = None

    @property
    def address(self) -> str:
        """Where the client connects: host:port."""
        return self._settings.address

    def __repr__(self) -> str:
        parts = [repr(self.address)]
        if self._settings.timeout_s is not None:
            parts.append(f"timeout_s={self._settings.timeout_s:g}")
        if self._settings.api_key:
            parts.append("api_key=hidden")
        if self._settings.tls is not None:
            parts.append(f"tls={self._settings.tls}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _new_call(
        self,
        method: str = "",
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Call:
        """Prepare a call; the clock of its deadline starts here."""
        deadline = Deadline(self._settings.timeout_s if timeout_s is None else timeout_s)
        return Call(
            settings=self._settings,
            invocation=Invocation.of(
                method, arguments or {}, {**self._settings.metadata, **(metadata or {})}
            ),
            deadline=deadline,
            request_id=uuid4().hex,
            attempts=Attempts(self._settings.retry, deadline),
        )


class ReadyWait:
    """What is known while waiting for a server to become ready."""

    POLL_S = 0.1

    def __init__(self, call: Call) -> None:
        self._call = call
        self._last = "it has not answered"

    def saw(self, status: int) -> bool:
        """Take in an update of the health service; true when the model takes calls."""
        self._last = "the model is still loading"
        return status == 1  # SERVING, fixed by grpc.health.v1

    def pause_s(self, error: grpc.RpcError) -> float:
        """Return how long to wait before asking again. Raises when asking again is no use, or the time is over."""
        failure = self._call.failure(error)
        if isinstance(failure, UnavailableError):
            self._last = failure.message
        elif not isinstance(failure, DeadlineExceededError):
            raise failure from error
        self.check_deadline()
        return self.POLL_S

    def check_deadline(self) -> None:
        """Raise DeadlineExceededError once the time is over."""
        if self._call.deadline.remaining_s() == 0:
            settings, deadline = self._call.settings, self._call.deadline
            raise DeadlineExceededError(
                f"{settings.address} is not ready after {deadline.timeout_s:g} s: {self._last}"
            )


class BaseRemoteMethod:
    """A method of the served model that looks like a local function: `repr`, `help` and signature come from the server."""

    def __init__(
        self, description: MethodDescription, timeout_s: float | None, metadata: Mapping[str, str] | None
    ) -> None:
        self.description = description
        self._timeout_s = timeout_s
        self._metadata = metadata
        self.__name__ = description.name
        self.__doc__ = description.description or None
        self.__signature__ = _python_signature(description)

    def __repr__(self) -> str:
        about = self.description.description.strip()
        return f"{self.description}\n\n{about}" if about else str(self.description)


class BaseMethods:
    """The methods of the served model by name, as attributes and as items."""

    def _known(self) -> ModelDescription:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(self._known().method_names)

    def __len__(self) -> int:
        return len(self._known().methods)

    def __contains__(self, name: object) -> bool:
        return name in self._known().method_names

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._known().method_names]

    def __repr__(self) -> str:
        return "\n".join(
            f"{method}\n    {method.summary}" if method.summary else str(method)
            for method in self._known().methods
        )


def _python_signature(method: MethodDescription) -> inspect.Signature:
    """Return the signature that editors and `help` show; the names of types are text, the author's classes are not here."""
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(
            argument.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=argument.default if argument.has_default else empty if argument.required else ...,
            annotation=str(argument.type),
        )
        for argument in method.arguments
        if argument.name.isidentifier()
    ]
    # Python wants arguments without a default first; a keyword-only argument of the author's may stand behind others.
    parameters.sort(key=lambda parameter: parameter.default is not empty)
    return inspect.Signature(parameters, return_annotation=str(method.result))
