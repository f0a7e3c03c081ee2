"""`modelkit rollback`: an earlier version serves again."""

from typing import Annotated

import typer

from modelkit.cli import console
from modelkit.cli.deploy import failure_in_view
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

__all__ = ["command"]


def command(
    deployment: Named,
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]",
            help="The version, such as v2, or the beginning of its digest. Default: the last.",
        ),
    ] = None,
    *,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Put an earlier version of a deployment back."""
    from modelkit.deploy.rollout import roll_back

    compute, name = find(deployment)
    with opened(compute) as deployer:
        with console.status(f"asking {compute.name}"):
            record = deployer.status(name).record
        with failure_in_view(), watched(f"{compute.name}/{name}") as on_status:
            status = roll_back(deployer, record, version, on_status, timeout_s=timeout_s)
    announce(compute, status, as_json=as_json)
