"""`modelkit rollout`: a new version gets a part of the calls first, then all of them or none."""

from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.cli import console
from modelkit.cli.deploy import DeployOptions, delivering, failure_in_view, read
from modelkit.cli.deployments import (
    DEFAULT_TIMEOUT_S,
    AsJson,
    Named,
    Timeout,
    announce,
    find,
    opened,
    watched,
)
from modelkit.cli.options import Environment, Overrides
from modelkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelkit.computes import Compute
    from modelkit.deploy import Deployer, Status

__all__ = ["command"]


def command(
    deployment: Named,
    target: Annotated[
        str | None,
        typer.Argument(metavar="[PATH|REF]", help="The model folder or the version to try, such as chat:v4."),
    ] = None,
    *,
    percent: Annotated[
        int | None, typer.Option(min=1, max=99, help="Share of the calls that the new version gets.")
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Give it all calls; the old version ends.")
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Give it none; it ends.")] = False,
    environment: Environment = None,
    overrides: Overrides = None,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Try a new version on a part of the calls (a canary)."""
    if sum((percent is not None, promote, abort)) != 1 or (target is not None) == (promote or abort):
        raise UsageError(
            "rollout wants a version and its share, or what becomes of the one that runs",
            cure="modelkit rollout NAME chat:v4 --percent 10, then --promote or --abort",
        )
    compute, name = find(deployment)
    with opened(compute) as deployer, failure_in_view(), watched(f"{compute.name}/{name}") as on_status:
        if promote:
            status = _promote(deployer, name, on_status, timeout_s)
        elif abort:
            deployer.set_canary(name, None, 0)
            status = deployer.status(name)
        else:
            assert target is not None
            assert percent is not None
            options = DeployOptions(
                compute=compute.name,
                name=name,
                environment=environment,
                overrides=overrides or (),
                timeout_s=timeout_s,
            )
            status = _try(deployer, compute, target, options, percent, on_status)
    announce(compute, status, as_json=as_json)


def _try(
    deployer: "Deployer",
    compute: "Compute",
    target: str,
    options: DeployOptions,
    percent: int,
    on_status: "Callable[[Status], None]",
) -> "Status":
    from modelkit.deploy.rollout import make_plan, start_canary

    wanted = read(target, options, compute)
    deployer.refuse(wanted.spec, wanted.origin)
    plan = make_plan(deployer, wanted.spec)
    if plan.current is None:
        raise UsageError(
            f"there is no deployment {wanted.spec.name} yet, and so no part of its calls",
            cure=f"modelkit serve {target} --compute {compute.name} --name {wanted.spec.name}",
        )
    with delivering() as delivery:
        artifact = deployer.deliver(plan.spec, wanted.origin, delivery)
    spec = plan.spec.delivered(artifact)
    status = start_canary(deployer, spec, percent, on_status, timeout_s=options.timeout_s)
    console.info(
        f"{percent}% of the calls go to {spec.version}; then `modelkit rollout` --promote or --abort"
    )
    return status


def _promote(
    deployer: "Deployer", name: str, on_status: "Callable[[Status], None]", timeout_s: float
) -> "Status":
    from modelkit.deploy.rollout import promote

    return promote(deployer, deployer.status(name), on_status, timeout_s=timeout_s)
