"""Every error modelkit raises, in one tree.

    ModelkitError                    exit  gRPC status
    ├── UsageError                     2   INVALID_ARGUMENT     the command line or a file asks for something impossible
    │   └── ConfigError                2   INVALID_ARGUMENT     config.yaml or model.py, with every problem found
    ├── LoadError                      1   FAILED_PRECONDITION  the model or its checkpoint could not be loaded
    ├── EngineError                    1   INTERNAL             the engine refused or died
    ├── ServeError                     1   UNAVAILABLE          the server could not start (a port in use, ...)
    ├── BuildError                     1   INTERNAL             an image could not be built
    ├── RegistryError                  1   UNAVAILABLE          a registry refused, or cannot be reached
    ├── DeployError                    1   UNAVAILABLE          a compute refused, cannot be reached, or a version did not start
    │   └── UnknownDeploymentError     1   NOT_FOUND            the compute has no deployment of that name
    └── CallError                      1   (its subclass says)  one call failed; the same class on both sides of the wire
        ├── InvalidArgumentError           INVALID_ARGUMENT
        ├── NotFoundError                  NOT_FOUND
        │   ├── MethodNotFoundError        NOT_FOUND
        │   └── ModelNotFoundError         NOT_FOUND            an OpenAI request names a model that is not here
        ├── FailedPreconditionError        FAILED_PRECONDITION
        ├── UnauthenticatedError           UNAUTHENTICATED
        ├── PermissionDeniedError          PERMISSION_DENIED
        ├── OverloadedError                RESOURCE_EXHAUSTED
        ├── UnavailableError               UNAVAILABLE
        ├── DeadlineExceededError          DEADLINE_EXCEEDED
        ├── CancelledCallError             CANCELLED
        ├── UnimplementedError             UNIMPLEMENTED
        └── InternalError                  INTERNAL             the model raised something it did not mean to

Exit codes and status names are class attributes, read in one place each: `cli.app` and `server.status`.
This file imports nothing from the project and nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

__all__ = [
    "BuildError",
    "CallError",
    "CancelledCallError",
    "ConfigError",
    "DeadlineExceededError",
    "DeployError",
    "EngineError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "LoadError",
    "MethodNotFoundError",
    "ModelNotFoundError",
    "ModelkitError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "Problem",
    "RegistryError",
    "ServeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownDeploymentError",
    "UsageError",
    "Violation",
    "closest",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong (or doubtful) in a file, with the place and the cure.

    Lines and columns count from 1; `None` where a problem has no place (a missing file).
    `source` is the offending line as written, so that a renderer can draw a caret under it.
    """

    message: str
    cure: str = ""
    path: Path | None = None
    line: int | None = None
    column: int | None = None
    end_column: int | None = None
    source: str | None = None
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True, slots=True)
class Violation:
    """One argument of a call that breaks its signature: `field` is a dotted path such as `messages[0].role`."""

    field: str
    description: str


class ModelkitError(Exception):
    """Base of every error raised on purpose. `cure` is the command or edit that mends it."""

    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure


class UsageError(ModelkitError):
    """The command line, or a file it names, asks for something that cannot be done."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class ConfigError(UsageError):
    """A model folder has problems; all that were found in one run are in `problems`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        num = len(self.problems)
        first = self.problems[0].message if num else "no details"
        super().__init__(first if num == 1 else f"{num} problems, the first: {first}")


class LoadError(ModelkitError):
    """The model, or the checkpoint it needs, could not be loaded."""

    grpc_status = "FAILED_PRECONDITION"


class EngineError(ModelkitError):
    """An engine refused its options, failed to start, or died."""

    grpc_status = "INTERNAL"


class ServeError(ModelkitError):
    """The server could not start."""

    grpc_status = "UNAVAILABLE"


class BuildError(ModelkitError):
    """An image could not be built, or its container could not be started."""

    grpc_status = "INTERNAL"


class RegistryError(ModelkitError):
    """A registry, or a layout on this machine, refused something, lacks it, or cannot be reached."""

    grpc_status = "UNAVAILABLE"


class DeployError(ModelkitError):
    """A compute refused something or cannot be reached, or what was deployed on it did not come up."""

    grpc_status = "UNAVAILABLE"


class UnknownDeploymentError(DeployError):
    """A compute has no deployment of that name."""

    grpc_status = "NOT_FOUND"

    def __init__(self, compute: str, name: str, available: Sequence[str]) -> None:
        guess = closest(name, available)
        if guess:
            cure = f"did you mean {guess}?"
        else:
            cure = (
                f"`modelkit ps {compute}` lists what runs there" if available else "nothing is deployed there"
            )
        super().__init__(f"compute {compute} has no deployment '{name}'", cure=cure)


class CallError(ModelkitError):
    """A call failed. Raised by the predictor, sent as a gRPC status, raised again by the client.

    A model's method may raise any subclass to choose the status that its caller sees. `executed` is False where the
    model has certainly not seen the call, so that repeating it cannot do anything twice.
    """

    def __init__(
        self,
        message: str,
        *,
        cure: str = "",
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
        request_id: str = "",
        executed: bool = True,
    ) -> None:
        super().__init__(message, cure=cure)
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.executed = executed


class InvalidArgumentError(CallError):
    """An argument is missing, unknown, of the wrong type, or outside its limits."""

    grpc_status = "INVALID_ARGUMENT"


class NotFoundError(CallError):
    """Something that the call names does not exist."""

    grpc_status = "NOT_FOUND"


class MethodNotFoundError(NotFoundError):
    """The model has no method of that name."""

    def __init__(self, name: str, available: Sequence[str]) -> None:
        guess = closest(name, available)
        hint = f"; did you mean '{guess}'?" if guess else ""
        super().__init__(
            f"the model has no method '{name}'{hint}",
            cure=f"call one of: {', '.join(available)}" if available else "",
        )


class ModelNotFoundError(NotFoundError):
    """A request in OpenAI's dialect names a model that this server does not have."""


class FailedPreconditionError(CallError):
    """The call cannot work in the state the model is in; repeating it changes nothing."""

    grpc_status = "FAILED_PRECONDITION"


class UnauthenticatedError(CallError):
    """No API key, or a wrong one."""

    grpc_status = "UNAUTHENTICATED"


class PermissionDeniedError(CallError):
    """The caller is known but may not do this."""

    grpc_status = "PERMISSION_DENIED"


class OverloadedError(CallError):
    """The queue of waiting calls is full, or a message is larger than the server takes."""

    grpc_status = "RESOURCE_EXHAUSTED"


class UnavailableError(CallError):
    """The model is loading or draining, or the server cannot be reached. Safe to repeat later."""

    grpc_status = "UNAVAILABLE"


class DeadlineExceededError(CallError):
    """The caller's deadline passed before the answer was ready."""

    grpc_status = "DEADLINE_EXCEEDED"


class CancelledCallError(CallError):
    """The caller went away."""

    grpc_status = "CANCELLED"


class UnimplementedError(CallError):
    """The method exists but not for this kind of call."""

    grpc_status = "UNIMPLEMENTED"


class InternalError(CallError):
    """The model raised an error of its own; the caller gets its type and message, the server's log the traceback."""

    grpc_status = "INTERNAL"


def closest(name: str, names: Sequence[str]) -> str | None:
    """Return the name most like `name`, or None where nothing is near enough to suggest."""
    from difflib import get_close_matches

    lowered = {candidate.lower(): candidate for candidate in names}
    matches = get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None
