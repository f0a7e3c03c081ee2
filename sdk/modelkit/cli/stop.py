"""`modelkit stop`: a deployment ends."""

from typing import Annotated

import typer

from modelkit.cli import console
from modelkit.cli.deployments import find, opened

__all__ = ["command"]


def command(
    deployments: Annotated[
        list[str], typer.Argument(metavar="[COMPUTE/]NAME...", help="The deployments to end.")
    ],
) -> None:
    """End a deployment; calls in progress may finish."""
    for deployment in deployments:
        compute, name = find(deployment)
        title = f"stopping {name} on {compute.name}, whose calls may finish"
        with opened(compute) as deployer, console.status(title):
            try:
                deployer.delete(name)
            except KeyboardInterrupt:
                console.info(f"no longer waiting; `modelkit stop {compute.name}/{name}` ends what is left")
                raise
        console.success(f"{compute.name}/{name} is gone")
