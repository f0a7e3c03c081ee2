"""`modelkit logs`: what the replicas of a deployment write."""

from typing import Annotated

import typer

from modelkit.cli import console
from modelkit.cli.deployments import Named, find, opened

__all__ = ["command"]


def command(
    deployment: Named,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what they write from now on.")
    ] = False,
    replica: Annotated[str | None, typer.Option(metavar="NAME", help="Only this replica.")] = None,
    num_lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each replica.")
    ] = 100,
) -> int:
    """Print what the replicas of a deployment write."""
    compute, name = find(deployment)
    with opened(compute) as deployer:
        status = deployer.status(name)
        labelled = (replica is None and len(status.replicas) > 1) or follow
        for line in deployer.logs(name, replica=replica, num_lines=num_lines, follow=follow):
            console.result(f"{line.replica} │ {line.text}" if labelled else line.text)
    return 0
