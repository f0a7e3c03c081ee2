"""`modelkit scale`: more or fewer replicas, without a restart."""

from typing import Annotated

import typer

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
from modelkit.errors import UsageError

__all__ = ["command"]


def command(
    deployment: Named,
    replicas: Annotated[
        int | None,
        typer.Argument(min=0, metavar="[REPLICAS]", help="Exactly so many; or give --min and --max."),
    ] = None,
    *,
    min_replicas: Annotated[int | None, typer.Option("--min", min=0, help="At least so many.")] = None,
    max_replicas: Annotated[int | None, typer.Option("--max", min=1, help="At most so many.")] = None,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Change how many replicas a deployment has; nothing restarts."""
    from modelkit.deploy.rollout import scale

    if (replicas is None) == (min_replicas is None and max_replicas is None):
        raise UsageError("scale wants a number, or bounds", cure="modelkit scale NAME 3, or --min 1 --max 4")
    compute, name = find(deployment)
    with opened(compute) as deployer:
        now = deployer.status(name)
        lower = _first(replicas, min_replicas, now.min_replicas)
        upper = _first(replicas, max_replicas, now.max_replicas)
        with watched(f"{compute.name}/{name}") as on_status:
            status = scale(deployer, name, lower, upper, on_status, timeout_s=timeout_s)
    announce(compute, status, as_json=as_json)


def _first(*numbers: int | None) -> int:
    return next(number for number in numbers if number is not None)
