"""How a version gets onto a compute, the same for every kind: plan, deliver, apply, wait, and back where that fails."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from modelkit.deploy.base import Delivery, Deployer, LogLine, Origin, Replica, Status, reasons
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
    "scale",
    "start_canary",
]

OnStatus = Callable[[Status], None]

_POLL_S = 0.5
_MAX_POLL_S = 3.0
_FAILED_FOR_S = 3.0
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
    """A version did not come up. `last_lines` are what its replicas wrote, `serving` what has become of the one before."""

    def __init__(
        self, spec: DeploymentSpec, reason: str, last_lines: tuple[LogLine, ...], serving: str
    ) -> None:
        self.last_lines = tuple(replace(line, text=spec.masked(line.text)) for line in last_lines)
        self.serving = serving
        super().__init__(
            f"{spec.name} {spec.version} did not come up: {spec.masked(reason)}; {serving}",
            cure="mend what the replica's last lines say; `modelkit serve --in-container` runs the same image here",
        )


class _VerdictError(DeployError):
    """The compute says that a version does not come up, or the time is over."""


def make_plan(deployer: Deployer, spec: DeploymentSpec) -> Plan:
    """Compare a specification with what the compute has. Raises UsageError for a name that another model has.

    A deployment that asks its callers for a key goes on doing so.
    """
    current = _current(deployer, spec.name)
    if current is None:
        return Plan("create", spec, None, tuple(_changes({}, _facts(spec))))
    if current.is_readable and current.spec.model_id != spec.model_id:
        raise UsageError(
            f"the deployment '{spec.name}' on {deployer.compute.name} is of another model, {current.spec.model_id}",
            cure="give this one a name of its own: --name NAME",
        )
    spec = replace(spec, api_key_env=spec.api_key_env or current.spec.api_key_env)
    changes = tuple(_changes(_facts(current.spec), _facts(spec)))
    return Plan("update" if changes else "none", spec, current, changes)


def roll_out(
    deployer: Deployer,
    plan: Plan,
    origin: Origin,
    delivery: Delivery,
    on_status: OnStatus,
    *,
    timeout_s: float,
) -> Status:
    """Deliver and apply a plan, and wait until the new version answers; where it does not, take it back.

    Raises FailedRolloutError with the replica's own last lines once what was there before was put back, DeployError
    where somebody else has changed the deployment meanwhile, which is then left as it is.
    """
    artifact = deployer.deliver(plan.spec, origin, delivery)
    current = _current(deployer, plan.spec.name)  # a delivery may take hours
    if not _is_same(current, plan.current):
        raise _changed_by_others(plan.spec.name, current)
    return _put(deployer, current, plan.spec.delivered(artifact), on_status, timeout_s=timeout_s)


def roll_back(
    deployer: Deployer,
    current: Record,
    version: str | None,
    on_status: OnStatus,
    *,
    timeout_s: float,
) -> Status:
    """Put an earlier version back, the last one where none is named. Raises UsageError where the record has none.

    What it needs to bear today's load stays: the number of replicas, and the key that callers are asked for.
    """
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
    now = current.spec.parsed_config().deployment
    spec = replace(
        spec.scaled(now.min_replicas, now.max_replicas),
        api_key_env=spec.api_key_env or current.spec.api_key_env,
    )
    return _put(deployer, current, spec, on_status, timeout_s=timeout_s)


def start_canary(
    deployer: Deployer, spec: DeploymentSpec, percent: int, on_status: OnStatus, *, timeout_s: float
) -> Status:
    """Run a version that was delivered beside the deployment of its name, and give it calls once it is ready.

    Raises FailedRolloutError where it does not come up; it is ended then, and has had no call.
    """
    name = spec.name
    deployer.set_canary(name, spec, 0)
    try:
        _wait(deployer, name, on_status, timeout_s, is_done=_canary_answers, check=_check_canary)
    except _VerdictError as error:
        lines = _last_lines(deployer, name, deployer.status(name).canary_replicas)
        deployer.set_canary(name, None, 0)
        raise FailedRolloutError(spec, error.message, lines, "it has had no call, and was ended") from error
    deployer.set_canary(name, spec, percent)
    return deployer.status(name)


def promote(deployer: Deployer, status: Status, on_status: OnStatus, *, timeout_s: float) -> Status:
    """Give all calls to the canary, which becomes the deployment, with as many replicas as that has.

    Raises UsageError where there is none.
    """
    if status.canary is None:
        raise UsageError(
            f"{status.name} has no canary",
            cure=f"modelkit rollout {status.name} chat:v4 --percent 10 starts one",
        )
    spec = status.canary.scaled(status.min_replicas, status.max_replicas)
    _put(deployer, status.record, spec, on_status, timeout_s=timeout_s)
    deployer.set_canary(status.name, None, 0)
    return deployer.status(status.name)


def scale(
    deployer: Deployer,
    name: str,
    min_replicas: int,
    max_replicas: int,
    on_status: OnStatus,
    *,
    timeout_s: float,
) -> Status:
    """Change the bounds, and wait until the replicas are within them. Raises UsageError for bounds that cannot be."""
    spec = deployer.status(name).record.spec
    if max_replicas < max(1, min_replicas):
        raise UsageError(
            f"at least {min_replicas} and at most {max_replicas} replicas cannot be",
            cure="let --max be as much as --min, and at least 1",
        )
    if min_replicas == 0 and spec.parsed_config().deployment.mode == "dedicated":
        raise UsageError(
            f"{name} is dedicated: at least one replica always runs",
            cure=f"`modelkit stop {name}` ends it; deployed with --mode serverless, none runs while there are no calls",
        )
    deployer.scale(name, min_replicas, max_replicas)

    def is_within(status: Status) -> bool:
        return status.state in {"running", "idle"} and min_replicas <= status.num_ready <= max_replicas

    return _wait(deployer, name, on_status, timeout_s, is_done=is_within)


# ------------------------------------------------------------------------------------------------------------- waiting


def _put(
    deployer: Deployer, current: Record | None, spec: DeploymentSpec, on_status: OnStatus, *, timeout_s: float
) -> Status:
    """Apply a specification that was delivered, and wait for it; where it does not come up, put `current` back."""
    record = _followed(deployer, current, spec)
    try:
        deployer.apply(record)
        return _wait(
            deployer,
            spec.name,
            on_status,
            timeout_s,
            is_done=_is_up,
            check=lambda status: _check(status, record),
        )
    except UnknownDeploymentError:
        raise DeployError(
            f"{spec.name} has gone while it was deployed",
            cure="somebody else has stopped it; deploy it again",
        ) from None
    except DeployError as error:
        # What was refused, or has given way to what somebody else deployed, is not ours to take back.
        if not isinstance(error, _VerdictError) and not _holds(deployer, record):
            raise
        lines = _last_lines(deployer, spec.name, _failing(deployer, spec))
        serving = _take_back(deployer, current, record, on_status, timeout_s=timeout_s)
        raise FailedRolloutError(spec, error.message, lines, serving) from error


def _followed(deployer: Deployer, current: Record | None, spec: DeploymentSpec) -> Record:
    """Return the record once `spec` is in place. What never answered is nothing that one would want back."""
    if current is None or not current.is_readable:
        return Record(spec)
    status = deployer.status(spec.name)
    answers = _is_up(status) or any(
        each.state == "ready" and each.version in {"", current.spec.version} for each in status.replicas
    )
    followed = current.followed_by(spec)
    if answers:
        return followed
    return Record(spec, tuple(each for each in followed.history if each != current.spec))


def _wait(
    deployer: Deployer,
    name: str,
    on_status: OnStatus,
    timeout_s: float,
    *,
    is_done: Callable[[Status], bool],
    check: Callable[[Status], None] = lambda _: None,
) -> Status:
    """Look again and again until it is done. A compute that does not answer for a moment is no reason to give up.

    Raises _VerdictError once the deployment has failed for a while, or when the time is over, and what `check` raises.
    """
    began_at = time.monotonic()
    failed_since: float | None = None
    said = ""
    last: Status | None = None
    while True:
        try:
            last = deployer.status(name)
        except UnknownDeploymentError:
            raise
        except DeployError as error:
            said = f"{deployer.compute.name} does not answer: {error.message}"
            if last is not None:
                on_status(replace(last, reason=said))
        else:
            said = "; ".join(reasons(last))
            on_status(last)
            check(last)
            if is_done(last):
                return last
            # A compute may call it failed for a moment: one health check that was late.
            failed_since = None if last.state != "failed" else failed_since or time.monotonic()
            if failed_since is not None and time.monotonic() - failed_since >= _FAILED_FOR_S:
                raise _VerdictError(said or "its replicas end as they start")
        waited_s = time.monotonic() - began_at
        if waited_s > timeout_s:
            raise _VerdictError(f"it is not ready after {timeout_s:.0f} s{f': {said}' if said else ''}")
        time.sleep(min(_POLL_S + waited_s / 60, _MAX_POLL_S))


def _is_up(status: Status) -> bool:
    return status.state in {"running", "idle"}


def _check(status: Status, record: Record) -> None:
    """Raise DeployError where it is no longer our change that is under way. Other bounds are the same change."""
    if not _is_same(status.record, record):
        raise _changed_by_others(status.name, status.record)


def _canary_answers(status: Status) -> bool:
    return bool(status.canary_replicas) and all(each.state == "ready" for each in status.canary_replicas)


def _check_canary(status: Status) -> None:
    failed = next((each for each in status.canary_replicas if each.state == "failed"), None)
    if status.canary is None:
        raise DeployError(
            f"the canary of {status.name} has gone", cure="somebody else has ended it; start it again"
        )
    if failed is not None:
        raise _VerdictError(failed.reason or "its replicas end as they start")


def _current(deployer: Deployer, name: str) -> Record | None:
    try:
        return deployer.status(name).record
    except UnknownDeploymentError:
        return None


def _is_same(one: Record | None, other: Record | None) -> bool:
    """Tell whether two records mean the same replicas, however many."""
    if one is None or other is None:
        return one is other
    return one.spec.of_replica() == other.spec.of_replica()


def _holds(deployer: Deployer, record: Record) -> bool:
    """Tell whether the compute has a record; not where it does not answer."""
    try:
        return _is_same(_current(deployer, record.spec.name), record)
    except DeployError:
        return False


def _changed_by_others(name: str, current: Record | None) -> DeployError:
    now = f"{current.spec.version} is there now" if current is not None else "it is gone"
    return DeployError(
        f"somebody else has changed {name} meanwhile: {now}",
        cure=f"see `modelkit status {name}`; deploy again where yours is to be there",
    )


def _failing(deployer: Deployer, spec: DeploymentSpec) -> tuple[Replica, ...]:
    try:
        replicas = deployer.status(spec.name).replicas
    except DeployError:
        return ()
    return tuple(each for each in replicas if each.state != "ready" and each.version in {"", spec.version})


def _last_lines(deployer: Deployer, name: str, replicas: Sequence[Replica]) -> tuple[LogLine, ...]:
    """Return what the worst of some replicas has said; nothing where even that cannot be read."""
    worst = sorted(replicas, key=lambda each: each.state != "failed")[:1]
    try:
        return tuple(
            line
            for each in worst
            for line in islice(
                deployer.logs(name, replica=each.name, num_lines=_NUM_LAST_LINES), _NUM_LAST_LINES
            )
        )
    except DeployError:
        return ()


def _take_back(
    deployer: Deployer, current: Record | None, record: Record, on_status: OnStatus, *, timeout_s: float
) -> str:
    """Put back what was there before; return in words what has become of it. Never raises what a compute raises."""
    name = record.spec.name
    try:
        if not _is_same(_current(deployer, name), record):
            return "somebody else has changed the deployment meanwhile, and it was left so"
        if current is None:
            with suppress(UnknownDeploymentError):
                deployer.delete(name)
            return "nothing of it is left on the compute"
        if not current.is_readable:
            return "what was there before cannot be put back: this modelkit cannot read its record"
        deployer.apply(current)
        before = current.spec.version
        try:
            _wait(
                deployer,
                name,
                on_status,
                timeout_s,
                is_done=_is_up,
                check=lambda status: _check(status, current),
            )
        except (DeployError, UsageError) as error:
            return f"{before} was put back, and does not answer yet: {error.message}"
    except (DeployError, UsageError) as error:
        return f"putting back what was there failed too: {error.message}"
    return f"{before} goes on serving"


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
