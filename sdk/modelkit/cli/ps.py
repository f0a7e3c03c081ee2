"""`modelkit ps`: everything that is deployed, on all computes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.cli import console
from modelkit.cli.deployments import AsJson, ask_all, document, replicas_text
from modelkit.cli.table import table
from modelkit.errors import ModelkitError

if TYPE_CHECKING:
    from modelkit.computes import Compute
    from modelkit.deploy import Status

__all__ = ["command"]


def command(
    compute: Annotated[
        str | None, typer.Argument(metavar="COMPUTE", help="Only what is there. Default: all computes.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> int:
    """List what is deployed, on all computes."""
    from modelkit.computes import find_compute, list_computes

    computes = list_computes() if compute is None else [find_compute(compute)]
    with console.status("asking the computes"):
        answers = ask_all(computes)
    found = [(each, status) for each, said in answers if isinstance(said, list) for status in said]
    failed = [(each, said) for each, said in answers if isinstance(said, ModelkitError)]
    if as_json:
        console.json(
            {
                "deployments": [document(each, status) for each, status in found],
                "unreachable": [{"compute": each.name, "reason": error.message} for each, error in failed],
            }
        )
    elif found:
        console.result(table(_rows(found)))
    elif not computes:
        console.info(
            "there is no compute yet; `modelkit compute add` adds one, `--compute local-ray` is for a try"
        )
    elif not failed:
        console.info("nothing is deployed; `modelkit serve PATH --compute NAME` deploys a model")
    for each, error in failed:
        console.warning(f"{each.name}: {error.message}", cure=error.cure)
    return 1 if failed else 0


def _rows(found: "Sequence[tuple[Compute, Status]]") -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("deployment", "model", "version", "state", "ready", "where")]
    for compute, status in found:
        canary = f" (+{status.canary.version} {status.canary_percent}%)" if status.canary else ""
        rows.append(
            (
                f"{compute.name}/{status.name}",
                status.record.spec.model_id,
                status.record.spec.version + canary,
                status.state,
                replicas_text(status),
                _where(status),
            )
        )
    return rows


def _where(status: "Status") -> str:
    targets = (
        [target for route in status.endpoint.routes for target in route.targets] if status.endpoint else []
    )
    shown = targets[:1] + ([f"+{len(targets) - 1}"] if len(targets) > 1 else [])
    return " ".join(shown) or "-"
