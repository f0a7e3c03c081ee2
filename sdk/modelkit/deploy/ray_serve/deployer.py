"""Puts deployments on a Ray cluster, through the HTTP API of its dashboard."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from modelkit.checkpoints.lock import named_checkpoints
from modelkit.computes import LOCAL_RAY, Compute
from modelkit.computes.ray_api import CANARY_SUFFIX, RayApi, endpoint_of, is_on_this_machine
from modelkit.deploy.base import Delivery, LineSink, LogLine, Origin, Replica, Report, Status
from modelkit.deploy.ray_serve import report
from modelkit.deploy.ray_serve.content import package_uri
from modelkit.deploy.ray_serve.logs import Source, find_dead, find_living, follow_logs, read_logs
from modelkit.deploy.ray_serve.manifest import (
    ALL_HOSTS,
    application,
    application_name,
    is_ours,
    read_record,
    serve_options,
    with_application,
    without_application,
)
from modelkit.deploy.ray_serve.setup import setup_problem, wait_for_proxies
from modelkit.deploy.ray_serve.states import read_status, reason_of
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError

__all__ = ["RayServeDeployer", "deployer"]

_POLL_S: Final = 0.3
_NUM_TRIES: Final = 5
# Longer than from another's reading to its writing.
_SETTLE_S: Final = 1.0
_DELETE_TIMEOUT_S: Final = 120.0

_Instance = Mapping[str, Any]


def deployer(compute: Compute) -> "RayServeDeployer":
    """Return what deploys to a Ray cluster. Raises UsageError where its token is not set."""
    return RayServeDeployer(compute)


class RayServeDeployer:
    """A Deployer for computes of kind ray."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self._api = RayApi(compute)

    # ------------------------------------------------------------------------------------------------------- the cluster

    def check(self) -> Report:
        """Look at the cluster. Never raises for what it finds."""
        return report.look(self._api)

    def setup(self, on_line: LineSink) -> None:
        """Start Serve with the contract and the options that modelkit needs; nothing where it runs with them."""
        instance = self._api.instance()
        if not _is_running(instance):
            on_line("starting Ray Serve with modelkit's contract")
            self._api.put_applications(serve_options(), [])
        elif problem := setup_problem(self.compute, instance):
            raise problem
        else:
            on_line("Ray Serve runs, and knows modelkit's contract")
        wait_for_proxies(self._api, on_line)

    # ---------------------------------------------------------------------------------------------------------- delivery

    def refuse(self, spec: DeploymentSpec, origin: Origin) -> None:
        """Raise UsageError for content that the cluster's nodes cannot get."""
        if is_on_this_machine(self.compute):
            return
        if origin.reference is not None and origin.reference.startswith("oci:"):
            raise UsageError(
                f"{origin.reference} is a folder on this machine, which the nodes of {self.compute.name} cannot read",
                cure="upload the version to a registry that they reach: `modelkit upload PATH --to registry.example.com/team/NAME`",
            )
        if origin.folder is None:
            return
        checkpoints = named_checkpoints(spec.parsed_config().checkpoints)
        local = [name for name, each in checkpoints.items() if each.type == "local"]
        if local:
            raise UsageError(
                f"the checkpoint '{local[0]}' is a folder on this machine, and weights do not travel through Ray",
                cure="upload the model to a registry, and deploy that: `modelkit upload PATH --to REFERENCE`, then "
                f"`modelkit serve REFERENCE --compute {self.compute.name}`",
            )

    def deliver(self, spec: DeploymentSpec, origin: Origin, delivery: Delivery) -> str:
        """Send a folder's package to the cluster's store; a version stays in its registry, where the nodes get it."""
        if origin.folder is None:
            assert origin.reference is not None
            return origin.reference
        data = _package(spec, origin.folder, delivery)
        uri = package_uri(data)
        self._api.put_package(uri, data)
        delivery.on_line(
            f"package {uri.removeprefix('gcs://')[:21]} ({len(data)} bytes) is in the cluster's store"
        )
        return package_uri(data, origin.folder) if _has_local_weights(spec) else uri

    # --------------------------------------------------------------------------------------------------------- lifecycle

    def render(self, record: Record) -> str:
        """Return the application as YAML, as `serve deploy` takes it inside of `applications`."""
        import yaml

        text: str = yaml.safe_dump(self._application(record, serve_options()), sort_keys=False, width=110)
        return text

    def apply(self, record: Record) -> None:
        """Tell the cluster; Ray starts the new replicas beside the old ones, and ends those once they answer."""
        self._hand_over_secrets(record.spec)
        self._put(lambda instance: self._application(record, instance))

    def status(self, name: str) -> Status:
        """Return a deployment as it is now."""
        return self._status(self._api.instance(), name)

    def statuses(self) -> list[Status]:
        """Return all deployments that modelkit made there, by name."""
        instance = self._api.instance()
        names = [name for name in _ours(instance) if not name.endswith(CANARY_SUFFIX)]
        return [self._status(instance, name) for name in sorted(names)]

    def scale(self, name: str, min_replicas: int, max_replicas: int) -> None:
        """Change the bounds; nothing restarts."""

        def scaled(instance: _Instance) -> dict[str, Any]:
            record = self._status(instance, name).record
            if not record.is_readable:
                raise DeployError(
                    f"the record of {name} cannot be read, and scaling writes it anew",
                    cure="scale it with the modelkit that has deployed it",
                )
            return self._application(record.scaled(min_replicas, max_replicas), instance)

        self._put(scaled)

    def set_canary(self, name: str, spec: DeploymentSpec | None, percent: int) -> None:
        """Run `spec` as an application of its own; callers that look the deployment up share their calls by percent."""
        self.status(name)
        if spec is None:
            self._remove({name + CANARY_SUFFIX})
            return
        if spec.name != name or not 0 <= percent < 100:  # noqa: PLR2004
            raise UsageError(
                f"a canary of {name} cannot get {percent} % of the calls", cure="give 0 to 99 percent"
            )
        self._hand_over_secrets(spec)
        record = Record(spec)
        self._put(lambda instance: self._application(record, instance, canary_percent=percent))

    def delete(self, name: str) -> None:
        """End the deployment and its canary; returns when their replicas have ended."""
        self.status(name)
        self._remove({name, name + CANARY_SUFFIX})

    def logs(
        self, name: str, *, replica: str | None = None, num_lines: int = 100, follow: bool = False
    ) -> Iterator[LogLine]:
        """Return the last lines of every replica, or of one; with `follow` what they write from now on too.

        Those that have ended are read where they are asked for by name, and where not all is well.
        """
        sources = self._sources(name, replica)
        if replica is not None and not sources:
            raise DeployError(
                f"{name} has no replica '{replica}'", cure="`modelkit status` names those that there are"
            )
        if follow:
            return follow_logs(self._api, lambda: self._sources(name, replica), num_lines=num_lines)
        return read_logs(self._api, sources, num_lines=num_lines)

    def close(self) -> None:
        """Release connections."""
        self._api.close()

    # ------------------------------------------------------------------------------------------------------------- parts

    def _application(
        self, record: Record, instance: _Instance, canary_percent: int | None = None
    ) -> dict[str, Any]:
        http_host = str((instance.get("http_options") or {}).get("host") or ALL_HOSTS)
        name = application_name(record.spec.name, is_canary=canary_percent is not None)
        there = (instance.get("applications") or {}).get(name)
        return application(record, public_host=http_host, canary_percent=canary_percent, there=there)

    def _hand_over_secrets(self, spec: DeploymentSpec) -> None:
        if self.compute.name == LOCAL_RAY:
            from modelkit.deploy.ray_serve.local import hand_over_secrets

            hand_over_secrets(spec)

    def _sources(self, name: str, replica: str | None) -> list[Source]:
        instance = self._api.instance()
        apps = {app: _ours(instance)[app] for app in (name, name + CANARY_SUFFIX) if app in _ours(instance)}
        if not apps:
            raise UnknownDeploymentError(self.compute.name, name, _names(instance))
        found = []
        for app, details in apps.items():
            living = find_living(details)
            if replica is not None or not living or details.get("status") != "RUNNING":
                living += find_dead(self._api, app)
            found += living
        return [source for source in found if replica in {None, source.replica}]

    def _put(self, make: Callable[[_Instance], dict[str, Any]]) -> None:
        """Read, change, write. Ray compares nothing, and whoever writes last wins.

        So we look whether our application is still there: also a little later, when all have written who had read before
        we wrote. Each looks after its own, for it cannot know of those that it has not read.
        """
        for _ in range(_NUM_TRIES):
            instance = self._api.instance()
            problem = setup_problem(self.compute, instance)
            if problem or not _is_running(instance):
                raise problem or DeployError(
                    f"compute {self.compute.name} has not been set up for modelkit",
                    cure=f"once per cluster: `modelkit compute setup {self.compute.name}`",
                )
            app = make(instance)
            self._api.put_applications(instance, with_application(_configs(instance), app))
            if self._has(app):
                time.sleep(_SETTLE_S)
                if self._has(app):
                    return
        raise DeployError(
            f"somebody else changes the applications of {self.compute.name} at the same time",
            cure="wait for them, then try again",
        )

    def _has(self, app: Mapping[str, Any]) -> bool:
        there = _ours(self._api.instance()).get(app["name"])
        config = there["deployed_app_config"] if there else {}
        return bool(config) and config.get("args") == app["args"] and read_record(config) == read_record(app)

    def _remove(self, names: set[str]) -> None:
        deadline = time.monotonic() + _DELETE_TIMEOUT_S
        while True:
            instance = self._api.instance()
            configs = _configs(instance)
            kept = without_application(configs, names)
            left = names & set(instance.get("applications") or {})
            if len(kept) != len(configs):
                self._api.put_applications(instance, kept)
            if not left:
                return
            drain_s = max(_drain_s(instance, name) for name in left)
            if time.monotonic() > deadline + drain_s:
                raise DeployError(
                    f"{', '.join(sorted(left))} has not ended within {_DELETE_TIMEOUT_S + drain_s:.0f} s",
                    cure="see its replicas in Ray's dashboard; a node that is gone is noticed in a minute",
                )
            time.sleep(_POLL_S)

    def _status(self, instance: _Instance, name: str) -> Status:
        ours = _ours(instance)
        if name not in ours:
            raise UnknownDeploymentError(self.compute.name, name, _names(instance))
        with suppress(DeployError):
            endpoint = endpoint_of(self.compute, instance, name)
        canary = ours.get(name + CANARY_SUFFIX)
        status = read_status(name, ours[name], canary, endpoint)
        failed = self._failed(name, ours[name])
        failed_canary = self._failed(name + CANARY_SUFFIX, canary) if canary else ()
        return replace(
            status,
            replicas=(*status.replicas, *failed),
            canary_replicas=(*status.canary_replicas, *failed_canary),
        )

    def _failed(self, app: str, details: _Instance) -> tuple[Replica, ...]:
        """Return the replicas of a version that could not start, which Ray itself lists no longer."""
        if details.get("status") != "DEPLOY_FAILED":
            return ()
        dead = find_dead(self._api, app, since_s=float(details.get("last_deployed_time_s") or 0))
        names = [each.replica for each in dead] or ["?"]
        return tuple(Replica(name=name, state="failed", reason=reason_of(details)) for name in names)


def _package(spec: DeploymentSpec, folder: Path, delivery: Delivery) -> bytes:
    """Return the folder's package as one tar. Raises ConfigError where a secret is in it."""
    from modelkit.package import bundle
    from modelkit.versions.folder import read_folder

    read = read_folder(folder, environment=spec.environment, overrides=spec.overrides)
    for warning in read.warnings:
        delivery.on_line(f"{warning.path}: {warning.message}")
    return b"".join(bundle(read.content.package)())


def _has_local_weights(spec: DeploymentSpec) -> bool:
    checkpoints = named_checkpoints(spec.parsed_config().checkpoints)
    return any(each.type == "local" for each in checkpoints.values())


def _is_running(instance: _Instance) -> bool:
    return bool(instance.get("proxies") or instance.get("grpc_options") or instance.get("applications"))


def _configs(instance: _Instance) -> list[Mapping[str, Any]]:
    """Return the applications that were deployed over HTTP, ours and others', as they were sent."""
    applications = (instance.get("applications") or {}).values()
    return [
        app["deployed_app_config"]
        for app in applications
        if app.get("deployed_app_config") and app.get("status") != "DELETING"
    ]


def _ours(instance: _Instance) -> dict[str, Mapping[str, Any]]:
    applications: Mapping[str, Any] = instance.get("applications") or {}
    return {name: app for name, app in applications.items() if is_ours(app.get("deployed_app_config") or {})}


def _names(instance: _Instance) -> list[str]:
    return sorted(name for name in _ours(instance) if not name.endswith(CANARY_SUFFIX))


def _drain_s(instance: _Instance, name: str) -> float:
    config = ((instance.get("applications") or {}).get(name) or {}).get("deployed_app_config") or {}
    deployments = config.get("deployments") or [{}]
    return float(deployments[0].get("graceful_shutdown_timeout_s") or 0)
