"""`modelkit serve --compute`: a folder or a version becomes a deployment; shown first where that is asked for."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import typer

from modelkit.cli import console
from modelkit.cli.deployments import announce, opened, show_failure, watched
from modelkit.cli.options import DEFAULT_TIMEOUT_S
from modelkit.errors import UsageError

if TYPE_CHECKING:
    from modelkit.computes import Compute
    from modelkit.deploy import Delivery, Deployer, Status
    from modelkit.deploy.rollout import Plan
    from modelkit.deploy.source import Target

__all__ = [
    "DeployOptions",
    "delivering",
    "deploy",
    "failure_in_view",
    "read",
    "refuse_local_options",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """What the command line says of a deployment."""

    compute: str
    name: str | None = None
    mode: Literal["dedicated", "serverless"] | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    environment: str | None = None
    overrides: Sequence[str] = ()
    api_key_env: str | None = None
    plan: bool = False
    dry_run: bool = False
    output: Literal["yaml", "json"] = "yaml"
    attach: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    as_json: bool = False

    def all_overrides(self) -> tuple[str, ...]:
        """Return --set and the options that stand for one."""
        named = {
            "deployment.mode": self.mode,
            "deployment.min_replicas": self.min_replicas,
            "deployment.max_replicas": self.max_replicas,
        }
        return (*self.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None))


def deploy(target: str, options: DeployOptions) -> int:
    """Put a folder or a version on a compute; returns the exit code."""
    from modelkit.computes import LOCAL_RAY, find_compute
    from modelkit.deploy import Record
    from modelkit.deploy.rollout import make_plan, roll_out

    if options.compute == LOCAL_RAY:
        wanted = read(target, options)  # before Ray is started for nothing
        compute = _idle_ray() if options.dry_run else _private_ray()
    else:
        compute = find_compute(options.compute)
        wanted = read(target, options, compute)
    with opened(compute) as deployer:
        deployer.refuse(wanted.spec, wanted.origin)
        if options.dry_run:
            # Where the content is now says where the compute would get it, as far as that is known before a delivery.
            spec = wanted.spec.delivered(wanted.origin.reference or "")
            _print_manifests(deployer.render(Record(spec)), options.output)
            return 0
        with console.status(f"looking at {compute.name}"):
            plan = make_plan(deployer, wanted.spec)
        if options.plan and not _agreed(compute, plan, as_json=options.as_json):
            return 0
        _warn_of_fewer(plan)
        name = f"{compute.name}/{wanted.spec.name}"
        with failure_in_view(), delivering() as delivery, watched(name) as on_status:
            status = roll_out(deployer, plan, wanted.origin, delivery, on_status, timeout_s=options.timeout_s)
        announce(compute, status, as_json=options.as_json)
        return _follow(deployer, status) if options.attach else 0


def _private_ray() -> "Compute":
    from modelkit.deploy.ray_serve.local import ensure_local_ray

    with console.status("looking for the private Ray of this machine") as show:
        return ensure_local_ray(show)


def _idle_ray() -> "Compute":
    """Return the private Ray without starting it, for what asks it nothing."""
    from modelkit.computes import LOCAL_RAY, Compute
    from modelkit.deploy.ray_serve.local import local_ray

    return local_ray() or Compute(name=LOCAL_RAY, kind="ray", address="http://127.0.0.1:8265")


def read(target: str, options: DeployOptions, compute: "Compute | None" = None) -> "Target":
    """Return what is to be deployed, and show what is doubtful in it."""
    from modelkit.deploy.source import Wishes, read_target

    wishes = Wishes(
        name=options.name,
        environment=options.environment,
        overrides=options.all_overrides(),
        api_key_env=options.api_key_env or (compute.api_key_env if compute is not None else None),
    )
    with console.status(f"reading {target}"):
        wanted = read_target(target, wishes)
    if not console.is_quiet():
        console.problems(wanted.warnings)
    return wanted


def _warn_of_fewer(plan: "Plan") -> None:
    """Say that a deployment gets smaller: somebody may have scaled it since it was deployed last."""
    if plan.current is None or not plan.current.is_readable:
        return
    before = plan.current.spec.parsed_config().deployment.min_replicas
    after = plan.spec.parsed_config().deployment.min_replicas
    if after < before:
        console.warning(
            f"{plan.spec.name} has {before} replicas, and config.yaml asks for {after}",
            cure=f"--min-replicas {before} --max-replicas ... keeps them",
        )


@contextmanager
def delivering() -> "Iterator[Delivery]":
    """Show what a delivery does."""
    from modelkit.deploy import Delivery

    def on_line(line: str) -> None:
        if console.is_verbose():
            console.info(f"  {console.harmless(line)}")

    with console.transfer("delivering") as progress:
        yield Delivery(progress=progress, on_line=on_line)


@contextmanager
def failure_in_view() -> Iterator[None]:
    """Show the last lines of a replica that did not come up, before the error."""
    from modelkit.deploy.rollout import FailedRolloutError

    try:
        yield
    except FailedRolloutError as error:
        show_failure(error)
        raise


def _print_manifests(text: str, output: Literal["yaml", "json"]) -> None:
    if output == "yaml":
        console.result(text.rstrip())
        return
    import yaml

    documents = list(yaml.safe_load_all(text))
    console.json(documents[0] if len(documents) == 1 else documents)


def _plan_text(compute: "Compute", plan: "Plan") -> str:
    """Draw a plan: what happens, and each key that changes."""
    spec = plan.spec
    verbs = {"create": "is new", "update": "changes", "none": "stays as it is"}
    lines = [f"{spec.name} on {compute.name} ({compute.kind}) {verbs[plan.action]}"]
    width = max((len(change.key) for change in plan.changes), default=0)
    for change in plan.changes:
        mark, style = (
            ("+", "green")
            if change.before is None
            else ("-", "red")
            if change.after is None
            else ("~", "yellow")
        )
        both = change.before is not None and change.after is not None
        value = f"{change.before} → {change.after}" if both else change.after or change.before
        lines.append(f"  {console.paint(mark, style, sys.stdout)} {change.key.ljust(width)}  {value}")
    return "\n".join(lines)


def _agreed(compute: "Compute", plan: "Plan", *, as_json: bool) -> bool:
    """Show a plan, and ask on a terminal; elsewhere, and as JSON, it is only shown."""
    if as_json:
        changes = [{"key": each.key, "before": each.before, "after": each.after} for each in plan.changes]
        console.json(
            {"compute": compute.name, "name": plan.spec.name, "action": plan.action, "changes": changes}
        )
        return False
    console.result(_plan_text(compute, plan))
    if plan.action == "none" or not (sys.stdin is not None and sys.stdin.isatty()):
        return False
    return typer.confirm("apply it?", err=True)


def _follow(deployer: "Deployer", status: "Status") -> int:
    """Print what the replicas write until Ctrl-C, which ends the printing and nothing else."""
    try:
        for line in deployer.logs(status.name, num_lines=0, follow=True):
            console.result(f"{line.replica} │ {line.text}")
    except KeyboardInterrupt:
        console.info(f"detached; {status.name} runs on")
    return 0


def refuse_local_options(options: Sequence[tuple[str, bool]]) -> None:
    """Raise UsageError for options that are about this machine."""
    given = [name for name, is_given in options if is_given]
    if given:
        raise UsageError(
            f"{', '.join(given)} and --compute exclude each other: a replica listens where its compute says",
            cure="leave out one of them",
        )
