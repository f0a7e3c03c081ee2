"""How a version gets onto a compute, the same for every kind: plan, deliver, apply, wait, and back where that fails."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from modelkit.deploy.base import Delivery, Deployer, LogLine, Origin, Status, reasons
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError

__all__ = [
    "Change",
    "FailedRolloutError",
    "Plan",
    "make_plan",
    "promote",
    "roll_back",
    "roll_out",
    "wait_until_ready",
]

_POLL_S = 0.5
_TAKE_BACK_TIMEOUT_S = 120.0
_NUM_LAST_LINES = 20


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between what is deployed and what is wanted; None where there is nothing on that side."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What deploying would change. `current` is what runs now."""

    action: Literal["create", "update", "none"]
    spec: DeploymentSpec
    current: Record | None
    changes: tuple[Change, ...]


class FailedRolloutError(DeployError):
    """A version did not come up. `last_lines` are what its replicas wrote, `serving` what answers calls now ("" for nothing)."""

    def __init__(
        self, spec: DeploymentSpec, reason: str, last_lines: tuple[LogLine, ...], serving: str
    ) -> None:
        self.last_lines = last_lines
        self.serving = serving
        now = f"{serving} goes on serving" if serving else "nothing of it is left on the compute"
        super().__init__(
            f"{spec.name} {spec.version} did not come up: {reason}; {now}",
            cure="mend what the replica's last lines say; `modelkit serve --in-container` runs the same image here",
        )


def make_plan(deployer: Deployer, spec: DeploymentSpec) -> Plan:
    """Compare a specification with what the compute has. Raises UsageError for a name that another model has."""
    try:
        current = deployer.status(spec.name).record
    except UnknownDeploymentError:
        return Plan("create", spec, None, tuple(_changes({}, _facts(spec))))
    if current.spec.model_id != spec.model_id:
        raise UsageError(
            f"the deployment '{spec.name}' on {deployer.compute.name} is of another model, {current.spec.model_id}",
            cure="give this one a name of its own: --name NAME",
        )
    changes = tuple(_changes(_facts(current.spec), _facts(spec)))
    return Plan("update" if changes else "none", spec, current, changes)


def roll_out(
    deployer: Deployer,
    plan: Plan,
    origin: Origin,
    delivery: Delivery,
    on_status: Callable[[Status], None],
    *,
    timeout_s: float,
) -> Status:
    """Deliver and apply a plan, and wait until the new version answers; where it does not, take it back.

    Raises FailedRolloutError with the replica's own last lines once what was there before serves again.
    """
    artifact = deployer.deliver(plan.spec, origin, delivery)
    return _put(deployer, plan.current, plan.spec.delivered(artifact), on_status, timeout_s=timeout_s)


def roll_back(
    deployer: Deployer,
    current: Record,
    version: str | None,
    on_status: Callable[[Status], None],
    *,
    timeout_s: float,
) -> Status:
    """Put an earlier version back, the last one where none is named. Raises UsageError where the record has none."""
    spec = current.find(version) if version else next(iter(current.history), None)
    if spec is None:
        known = ", ".join(each.version for each in current.history)
        what = f"no earlier version '{version}'" if version else "no earlier version"
        raise UsageError(
            f"the record of {current.spec.name} has {what}",
            cure=f"it has: {known}"
            if known
            else "deploy the version that you want: `modelkit serve REF --compute ...`",
        )
    return _put(deployer, current, spec, on_status, timeout_s=timeout_s)


def promote(
    deployer: Deployer, status: Status, on_status: Callable[[Status], None], *, timeout_s: float
) -> Status:
    """Give all calls to the canary, which becomes the deployment. Raises UsageError where there is none."""
    if status.canary is None:
        raise UsageError(
            f"{status.name} has no canary",
            cure=f"modelkit rollout {status.name} chat:v4 --percent 10 starts one",
        )
    _put(deployer, status.record, status.canary, on_status, timeout_s=timeout_s)
    deployer.set_canary(status.name, None, 0)
    return deployer.status(status.name)


def wait_until_ready(
    deployer: Deployer,
    name: str,
    on_status: Callable[[Status], None],
    *,
    timeout_s: float,
    is_done: Callable[[Status], bool] = lambda status: status.state in {"running", "idle"},
) -> Status:
    """Wait for a deployment. Raises DeployError where it fails, or is not there in time; nothing is changed."""
    deadline = time.monotonic() + timeout_s
    while True:
        status = deployer.status(name)
        on_status(status)
        if is_done(status):
            return status
        said = "; ".join(reasons(status))
        if status.state == "failed":
            raise DeployError(said or "its replicas end as they start")
        if time.monotonic() > deadline:
            raise DeployError(
                f"it is not ready after {timeout_s:.0f} s{f': {said}' if said else ''}",
                cure="give it longer with --timeout SECONDS",
            )
        time.sleep(_POLL_S)


def _put(
    deployer: Deployer,
    current: Record | None,
    spec: DeploymentSpec,
    on_status: Callable[[Status], None],
    *,
    timeout_s: float,
) -> Status:
    """Apply a specification that was delivered, and wait for it."""
    record = Record(spec) if current is None else current.followed_by(spec)
    try:
        deployer.apply(record)
        return wait_until_ready(
            deployer, spec.name, on_status, timeout_s=timeout_s, is_done=lambda status: _answers(status, spec)
        )
    except UnknownDeploymentError:
        raise DeployError(
            f"{spec.name} has gone while it was deployed",
            cure="somebody else has stopped it; deploy it again",
        ) from None
    except DeployError as error:
        lines = _last_lines(deployer, spec)
        serving = _take_back(deployer, current, spec.name)
        raise FailedRolloutError(spec, error.message, lines, serving) from error


def _answers(status: Status, spec: DeploymentSpec) -> bool:
    """Tell whether it is this specification that answers, and not still the one before."""
    return status.state in {"running", "idle"} and status.record.spec == spec


def _last_lines(deployer: Deployer, spec: DeploymentSpec) -> tuple[LogLine, ...]:
    """Return what the replicas of a version that fails have said; nothing where even that cannot be read."""
    try:
        replicas = deployer.status(spec.name).replicas
        failing = [each for each in replicas if each.state != "ready" and each.version in {"", spec.version}]
        names = [each.name for each in failing][:1]
        lines = (
            deployer.logs(spec.name, replica=name, num_lines=_NUM_LAST_LINES, follow=False) for name in names
        )
        return tuple(line for each in lines for line in islice(each, _NUM_LAST_LINES))
    except DeployError:
        return ()


def _take_back(deployer: Deployer, current: Record | None, name: str) -> str:
    """Put back what was there before; return the version that serves then."""
    if current is None:
        with suppress(UnknownDeploymentError):
            deployer.delete(name)
        return ""
    deployer.apply(current)
    wait_until_ready(deployer, name, lambda _: None, timeout_s=_TAKE_BACK_TIMEOUT_S)
    return current.spec.version


# ------------------------------------------------------------------------------------------------------------- changes


def _facts(spec: DeploymentSpec) -> dict[str, str]:
    """Return what is compared and shown: every key that has a value, as config.yaml spells the path."""
    facts = {"version": spec.version, "digest": spec.digest.removeprefix("sha256:")[:12]}
    if spec.api_key_env:
        facts["api_key_env"] = spec.api_key_env
    # The model's own content is behind the digest; what is worth reading is what the compute is asked for.
    for section in ("deployment", "compute", "server", "engine", "secrets"):
        facts |= _flat(section, spec.config.get(section))
    return facts


def _flat(path: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {
            key: text for name, each in value.items() for key, text in _flat(f"{path}.{name}", each).items()
        }
    if isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) for each in value):
        return {
            key: text for i, each in enumerate(value) for key, text in _flat(f"{path}[{i}]", each).items()
        }
    if value is None or value in ((), [], {}, ""):
        return {}
    return {path: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)}


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    keys = dict.fromkeys([*before, *after])
    return [Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
