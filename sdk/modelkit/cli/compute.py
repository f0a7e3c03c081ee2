"""`modelkit compute`: the places where deployments run, kept by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.cli.deployments import AsJson, opened
from modelkit.cli.table import table
from modelkit.errors import UsageError
from modelkit.progress import size_text

if TYPE_CHECKING:
    from modelkit.computes import Compute
    from modelkit.deploy import Report

__all__ = ["SUBCOMMANDS", "add", "check", "command", "remove", "setup", "show"]

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The compute.")]


def command(context: typer.Context) -> None:
    """Add, check and remove the computes that deployments run on."""
    if context.invoked_subcommand is None:
        show()


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    *,
    kind: Annotated[str, typer.Option(metavar="KIND", help="ray, kubernetes or docker.")],
    address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="ray: the dashboard, http://head:8265. kubernetes: a context of the kubeconfig. "
            "docker: ssh://user@host, tcp://host:2376, unix:///var/run/docker.sock.",
        ),
    ],
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable with the token for its API.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The environment variable with the key that models there ask callers for."
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust this authority's certificate (PEM).")
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(metavar="REGISTRY/REPO", help="Where folders are uploaded to before they are deployed."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where callers reach it, if it cannot say so itself."),
    ] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="kubernetes: the namespace.")] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(metavar="FILE", help="kubernetes: default KUBECONFIG, else ~/.kube/config.")
    ] = None,
    flavor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="kubernetes: what runs serverless deployments: keda, knative or kuberay."
        ),
    ] = None,
    cache_volume: Annotated[
        str | None,
        typer.Option(metavar="CLAIM", help="kubernetes: a volume claim that keeps fetched weights."),
    ] = None,
) -> None:
    """Add a compute. Nothing is sent to it; `modelkit compute check` does."""
    from modelkit.computes import LOCAL_RAY, Compute, add_compute, computes_path

    if name == LOCAL_RAY:
        raise UsageError(f"{LOCAL_RAY} is the private Ray of this machine", cure="take another name")
    own = {"namespace": namespace, "kubeconfig": kubeconfig, "flavor": flavor, "cache-volume": cache_volume}
    _refuse_others(kind, own)
    compute = Compute(
        name=name,
        kind=kind,  # type: ignore[arg-type] # add_compute says what is wrong with it
        address=address,
        token_env=token_env,
        api_key_env=api_key_env,
        ca_path=None if ca is None else str(ca.expanduser().absolute()),
        registry=registry,
        endpoint=endpoint,
        namespace=namespace,
        kubeconfig=None if kubeconfig is None else str(kubeconfig.expanduser().absolute()),
        flavor=flavor,
        cache_volume=cache_volume,
    )
    add_compute(compute)
    console.success(f"{name} is added to {computes_path()}")
    console.info(f"  `modelkit compute check {name}` tells whether it can be used")


def show(*, as_json: AsJson = False) -> None:
    """List the computes."""
    from modelkit.computes import list_computes

    computes = list_computes()
    if as_json:
        console.json([_document(compute) for compute in computes])
    elif computes:
        rows = [("compute", "kind", "address", "token")]
        rows += [(each.name, each.kind, each.address, each.token_env or "-") for each in computes]
        console.result(table(rows))
    else:
        console.info("there is no compute yet; `modelkit compute add NAME --kind ... --address ...` adds one")


def check(name: _Name, *, as_json: AsJson = False) -> int:
    """Tell whether a compute can be used: reachable, authorised, versions, GPUs, free capacity."""
    from modelkit.computes import find_compute

    compute = find_compute(name)
    with opened(compute) as deployer, console.status(f"asking {name}"):
        report = deployer.check()
    if as_json:
        console.json(_report_document(compute, report))
    else:
        console.result(_report_text(compute, report))
        for note in report.notes:
            console.info(f"  {note}")
        for problem, cure in report.problems:
            console.warning(problem, cure=cure)
        if not report.problems:
            console.success(f"{name} can be used")
    return 1 if report.problems else 0


def setup(name: _Name) -> None:
    """Do what a compute needs once, before the first deployment."""
    from modelkit.computes import find_compute

    with opened(find_compute(name)) as deployer, console.status(f"setting up {name}") as show_stage:
        deployer.setup(show_stage)
    console.success(f"{name} is set up")


def remove(name: _Name) -> None:
    """Forget a compute; what runs there runs on. The private Ray of this machine ends."""
    from modelkit.computes import LOCAL_RAY, remove_compute

    if name != LOCAL_RAY:
        remove_compute(name)
        console.success(f"{name} is removed; what runs there runs on")
        return
    from modelkit.deploy.ray_serve.local import end_local_ray

    with console.status("ending the private Ray"):
        was_there = end_local_ray()
    if not was_there:
        raise UsageError("no private Ray runs on this machine", cure=f"`--compute {LOCAL_RAY}` starts one")
    console.success(f"{LOCAL_RAY} has ended, with everything on it")


SUBCOMMANDS = {"add": add, "list": show, "check": check, "setup": setup, "remove": remove}


def _refuse_others(kind: str, given: dict[str, Any]) -> None:
    names = [f"--{name}" for name, value in given.items() if value is not None]
    if kind != "kubernetes" and names:
        raise UsageError(f"{', '.join(names)} belongs to --kind kubernetes", cure="leave it out")


def _document(compute: "Compute") -> dict[str, Any]:
    from dataclasses import asdict

    return {key: value for key, value in asdict(compute).items() if value is not None}


def _report_document(compute: "Compute", report: "Report") -> dict[str, Any]:
    from dataclasses import asdict

    document = asdict(report)
    document["versions"] = dict(report.versions)
    document["problems"] = [{"message": message, "cure": cure} for message, cure in report.problems]
    return {"compute": compute.name, "kind": compute.kind, "usable": not report.problems, **document}


def _report_text(compute: "Compute", report: "Report") -> str:
    rows: list[Sequence[str]] = [("compute", f"{compute.name} ({compute.kind}, {compute.address})")]
    rows += [(what, version) for what, version in report.versions]
    if report.num_nodes:
        rows.append(("nodes", str(report.num_nodes)))
    if report.cpu_total is not None:
        rows.append(("CPU cores", _of(report.cpu_free, report.cpu_total, "{:g}".format)))
    if report.memory_total_bytes is not None:
        rows.append(("memory", _of(report.memory_free_bytes, report.memory_total_bytes, size_text)))
    rows += [
        (f"GPU {gpus.kind}".rstrip(), f"{gpus.num_free} of {gpus.num_total} free") for gpus in report.gpus
    ]
    return table(rows)


def _of(free: float | None, total: float, text: Any) -> str:
    return text(total) if free is None else f"{text(free)} of {text(total)} free"
