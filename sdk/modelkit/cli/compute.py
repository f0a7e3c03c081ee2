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
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="ray, kubernetes or docker.")] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="ray: the dashboard, http://head:8265. kubernetes: a context of the kubeconfig. "
            "docker: ssh://user@host, tcp://host:2376, unix:///var/run/docker.sock.",
        ),
    ] = None,
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
        typer.Option(
            metavar="CLAIM", help="kubernetes: a PersistentVolumeClaim that keeps weights between replicas."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change one that is there: what is not given stays.")
    ] = False,
) -> None:
    """Add a compute. Nothing is sent to it; `modelkit compute check` does."""
    from modelkit.computes import LOCAL_RAY, add_compute, computes_path

    if name == LOCAL_RAY:
        raise UsageError(f"{LOCAL_RAY} is the private Ray of this machine", cure="take another name")
    given = {
        "kind": kind,
        "address": address,
        "token_env": token_env,
        "api_key_env": api_key_env,
        "ca_path": _absolute(ca),
        "registry": registry,
        "endpoint": endpoint,
        "namespace": namespace,
        "kubeconfig": _absolute(kubeconfig),
        "flavor": flavor,
        "cache_volume": cache_volume,
    }
    compute = _compute(name, given, replace=replace)
    _refuse_others(compute)
    if compute.kind == "docker":
        from modelkit.computes.docker_api import check_address

        check_address(compute.address)
    add_compute(compute, replace=replace)
    console.success(f"{name} is in {computes_path()}")
    console.info(f"  `modelkit compute check {name}` tells whether it can be used")


def _compute(name: str, given: dict[str, str | None], *, replace: bool) -> "Compute":
    from dataclasses import replace as changed

    from modelkit.computes import Compute, find_compute, list_computes

    new: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if replace and any(each.name == name for each in list_computes()):
        return changed(find_compute(name), **new)
    missing = [f"--{key}" for key in ("kind", "address") if key not in new]
    if missing:
        raise UsageError(
            f"{name} cannot be added without {' and '.join(missing)}",
            cure=f"modelkit compute add {name} --kind docker --address ssh://user@host",
        )
    return Compute(name=name, **new)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().absolute())


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


def _refuse_others(compute: "Compute") -> None:
    names = ("namespace", "kubeconfig", "flavor", "cache_volume")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(compute, name) is not None]
    if compute.kind != "kubernetes" and given:
        raise UsageError(f"{', '.join(given)} belongs to --kind kubernetes", cure="leave it out")


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
