"""What the verbs that look after deployments share: finding one, waiting in view, and saying where it is called."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.cli.options import DEFAULT_TIMEOUT_S
from modelkit.errors import ModelkitError, UsageError, closest

if TYPE_CHECKING:
    from modelkit.computes import Compute
    from modelkit.deploy import Deployer, Status
    from modelkit.deploy.rollout import FailedRolloutError

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "AsJson",
    "Named",
    "Timeout",
    "announce",
    "ask_all",
    "document",
    "find",
    "opened",
    "replicas_text",
    "show_failure",
    "watched",
]


Named = Annotated[
    str,
    typer.Argument(metavar="[COMPUTE/]NAME", help="The deployment; its compute where more than one has it."),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up when it is not ready after so long."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def opened(compute: "Compute") -> "Iterator[Deployer]":
    """Give what deploys to a compute, and close it."""
    from modelkit.deploy import open_deployer

    deployer = open_deployer(compute)
    try:
        yield deployer
    finally:
        deployer.close()


def ask_all(computes: "Sequence[Compute]") -> "list[tuple[Compute, list[Status] | ModelkitError]]":
    """Ask several computes at once what runs there; one that cannot be reached answers with its error."""

    def ask(compute: "Compute") -> "list[Status] | ModelkitError":
        try:
            with opened(compute) as deployer:
                return deployer.statuses()
        except ModelkitError as error:
            return error

    if not computes:
        return []
    with ThreadPoolExecutor(len(computes)) as pool:
        return list(zip(computes, pool.map(ask, computes), strict=True))


def find(text: str) -> "tuple[Compute, str]":
    """Return the compute and the name of a deployment: COMPUTE/NAME, its URL, or NAME where only one compute has it.

    Raises UsageError where none or more than one has it.
    """
    from modelkit.computes import find_compute, list_computes, parse_url
    from modelkit.computes.locate import SCHEME

    if text.startswith(SCHEME) or "/" in text:
        place, name = parse_url(text if text.startswith(SCHEME) else SCHEME + text)
        return find_compute(place), name
    computes = list_computes()
    if len(computes) == 1:
        return computes[0], text
    with console.status("looking for it"):
        answers = ask_all(computes)
    found = {
        compute.name: [status.name for status in said] for compute, said in answers if isinstance(said, list)
    }
    holders = [compute for compute, _ in answers if text in found.get(compute.name, ())]
    if len(holders) == 1:
        return holders[0], text
    if holders:
        names = " or ".join(f"{compute.name}/{text}" for compute in holders)
        raise UsageError(f"more than one compute has a deployment '{text}'", cure=f"say which: {names}")
    for compute, said in answers:
        if isinstance(said, ModelkitError):
            console.warning(f"{compute.name} was not asked: {said.message}", cure=said.cure)
    known = [name for names in found.values() for name in names]
    guess = closest(text, known)
    cure = f"did you mean {guess}?" if guess else "`modelkit ps` lists what runs where"
    raise UsageError(f"no compute has a deployment '{text}'", cure=cure)


@contextmanager
def watched(name: str) -> "Iterator[Callable[[Status], None]]":
    """Show how a deployment comes up; Ctrl-C ends the watching, and says how to go on."""
    with console.status(f"starting {name}") as show:
        said = ""

        def on_status(status: "Status") -> None:
            nonlocal said
            text = _progress(status)
            if text != said:
                said = text
                show(text)

        try:
            yield on_status
        except KeyboardInterrupt:
            if not said:  # nothing was applied yet
                raise
            console.info(
                f"no longer waiting: `modelkit status {name}` shows how it goes on, `modelkit rollback {name}` takes it back"
            )
            raise


def _progress(status: "Status") -> str:
    from modelkit.deploy import reasons

    why = list(reasons(status))
    text = f"{status.name} {status.record.spec.version}: {status.num_ready} of {status.num_wanted} ready"
    return f"{text}, {status.record.spec.masked('; '.join(why[:2]))}" if why else text


def show_failure(error: "FailedRolloutError") -> None:
    """Print the last lines of the replica that failed, before the error itself."""
    for line in error.last_lines:
        console.info(f"  │ {console.harmless(line.text)}")


def replicas_text(status: "Status") -> str:
    """Say how many replicas are ready, and within which bounds."""
    bounds = (
        f"{status.min_replicas}"
        if status.min_replicas == status.max_replicas
        else f"{status.min_replicas}-{status.max_replicas}"
    )
    return f"{status.num_ready}/{status.num_wanted} ({bounds})"


def announce(compute: "Compute", status: "Status", *, as_json: bool) -> None:
    """Say what runs now and how it is called."""
    if as_json:
        console.json(document(compute, status))
        return
    spec = status.record.spec
    url = f"modelkit://{compute.name}/{status.name}"
    num = "idle: the next call starts a replica" if status.state == "idle" else _count(status.num_ready)
    console.success(f"{status.name} {spec.version} is deployed on {compute.name}, {num}")
    endpoint = status.endpoint
    if endpoint is not None:
        targets = ", ".join(
            target for route in endpoint.routes for target in (*route.targets, *route.waiting)
        )
        console.info(f"  gRPC:    {targets or 'through the URL below'}")
        if endpoint.http_url:
            console.info(f"  HTTP:    {endpoint.http_url}")
    console.info(f'  Python:  from modelkit import Client; client = Client("{url}"); print(client.methods)')
    console.info(f"  shell:   modelkit describe --address {url}")
    if endpoint is not None and endpoint.http_url:
        console.info(f"  curl:    {_curl(spec.config, endpoint.http_url, spec.api_key_env)}")
    console.info(f"  `modelkit logs {compute.name}/{status.name} -f`, `scale`, `rollback`, `stop`")
    console.result(url)


def _curl(config: Any, http_url: str, api_key_env: str | None) -> str:
    key = f' -H "Authorization: Bearer ${api_key_env}"' if api_key_env else ""
    path = "/v1/models" if config.get("engine") else "/openapi.json"
    return f"curl{key} {shlex.quote(http_url.rstrip('/') + path)}"


def _count(num: int) -> str:
    return "1 replica" if num == 1 else f"{num} replicas"


def document(compute: "Compute", status: "Status") -> dict[str, Any]:
    """Return a deployment as JSON shows it."""
    spec, endpoint = status.record.spec, status.endpoint
    return {
        "name": status.name,
        "compute": compute.name,
        "url": f"modelkit://{compute.name}/{status.name}",
        "model_id": spec.model_id,
        "version": spec.version,
        "digest": spec.digest,
        "state": status.state,
        "reason": status.reason or None,
        "num_ready": status.num_ready,
        "num_wanted": status.num_wanted,
        "min_replicas": status.min_replicas,
        "max_replicas": status.max_replicas,
        "replicas": [
            {
                "name": each.name,
                "state": each.state,
                "version": each.version,
                "node": each.node,
                "reason": each.reason or None,
                "num_restarts": each.num_restarts,
            }
            for each in status.replicas
        ],
        "grpc": [target for route in endpoint.routes for target in route.targets] if endpoint else [],
        "http_url": endpoint.http_url if endpoint else None,
        "canary": {"version": status.canary.version, "percent": status.canary_percent}
        if status.canary
        else None,
        "history": [each.version for each in status.record.history],
    }
