"""`modelkit status`: one deployment, replica by replica."""

from typing import TYPE_CHECKING

from modelkit.cli import console
from modelkit.cli.deployments import AsJson, Named, document, find, opened, replicas_text
from modelkit.cli.table import table

if TYPE_CHECKING:
    from modelkit.computes import Compute
    from modelkit.deploy import Status

__all__ = ["command"]


def command(deployment: Named, *, as_json: AsJson = False) -> int:
    """Show a deployment, replica by replica."""
    compute, name = find(deployment)
    with opened(compute) as deployer, console.status(f"asking {compute.name}"):
        status = deployer.status(name)
    if as_json:
        console.json(document(compute, status))
    else:
        console.result(_text(compute, status))
    return 1 if status.state == "failed" else 0


def _text(compute: "Compute", status: "Status") -> str:
    spec = status.record.spec
    lines = [
        f"{compute.name}/{status.name}  {spec.model_id} {spec.version} ({spec.digest[:19]})",
        f"  state      {status.state}{f': {spec.masked(status.reason)}' if status.reason else ''}",
        f"  replicas   {replicas_text(status)} ready",
        f"  URL        modelkit://{compute.name}/{status.name}",
    ]
    if status.endpoint is not None:
        targets = [target for route in status.endpoint.routes for target in route.targets]
        lines += [f"  gRPC       {', '.join(targets)}"] if targets else []
        lines += [f"  HTTP       {status.endpoint.http_url}"] if status.endpoint.http_url else []
    if status.canary is not None:
        lines.append(f"  canary     {status.canary.version} gets {status.canary_percent}% of the calls")
    if status.record.history:
        lines.append(f"  earlier    {', '.join(each.version for each in status.record.history)}")
    if status.replicas:
        rows = [("replica", "version", "state", "restarts", "node", "why")]
        rows += [
            (each.name, each.version, each.state, str(each.num_restarts), each.node, spec.masked(each.reason))
            for each in status.replicas
        ]
        lines += ["", table(rows)]
    return "\n".join(lines)
