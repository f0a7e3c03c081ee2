"""The deployer of a cluster: each verb is a few requests around what the pure modules decide."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from modelkit.computes import Compute, Endpoint
from modelkit.computes.kubernetes_api import KubernetesApi, KubernetesError, find_endpoint, label_selector
from modelkit.deploy.base import Delivery, LineSink, LogLine, Origin, Report, Status
from modelkit.deploy.kubernetes import logs
from modelkit.deploy.kubernetes.accelerators import gpu_resource
from modelkit.deploy.kubernetes.apply import apply_objects, owned_objects, prune
from modelkit.deploy.kubernetes.canary import GatewayRef, canary_objects, route_object
from modelkit.deploy.kubernetes.checks import check_cluster
from modelkit.deploy.kubernetes.flavors import (
    flavor_kind,
    host_of,
    serverless_objects,
    workload_kind,
)
from modelkit.deploy.kubernetes.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    GATEWAY,
    HTTP_ROUTE,
    KNATIVE_SERVICE,
    KUBERAY_SERVICE,
    POD,
    SECRET,
    SERVICE,
)
from modelkit.deploy.kubernetes.manifests import (
    CANARY,
    MAX_NAME_CHARACTERS,
    PERCENT,
    RECORD,
    as_yaml,
    dedicated_objects,
    starting_one,
)
from modelkit.deploy.kubernetes.observe import (
    Observed,
    deployment_status,
    instance_of,
    record_of,
    remains,
    resource_status,
)
from modelkit.deploy.kubernetes.secrets import create_command, secret_refs
from modelkit.deploy.publish import address_of, publish, refuse_unpublishable
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.errors import DeployError, UnknownDeploymentError, UsageError

__all__ = ["KubernetesDeployer"]

_CUSTOM_METRICS: Final = "custom.metrics.k8s.io/"
_RESERVED: Final = ("-canary", "-replicas")
_POLL_S: Final = 0.5
_DELETE_SLACK_S: Final = 120.0
_GRACE_S: Final = 30.0  # Kubernetes' own
_MAX_ASKED: Final = 3  # of replicas that are not ready, whose last line is worth a request each
# The kinds that stand for a deployment, each with its record; and those that only say how many replicas there are.
_WORKLOADS: Final = (DEPLOYMENT, KNATIVE_SERVICE, KUBERAY_SERVICE)
_SCALERS: Final = (DISRUPTION_BUDGET.name, AUTOSCALER.name)


class KubernetesDeployer:
    """Puts deployments on one cluster, in one namespace; see `modelkit.deploy.base.Deployer`."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self._api = KubernetesApi(compute)
        self._groups: frozenset[str] | None = None

    def check(self) -> Report:
        """See Deployer."""
        return check_cluster(self._api)

    def setup(self, on_line: LineSink) -> None:
        """See Deployer: a namespace that is not there is made; nothing else is needed."""
        path = "/api/v1/namespaces"
        if self._api.find(f"{path}/{self._api.namespace}") is None:
            on_line(f"making the namespace {self._api.namespace}")
            metadata = {"name": self._api.namespace}
            self._api.post(path, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def refuse(self, spec: DeploymentSpec, origin: Origin) -> None:
        """See Deployer."""
        config = spec.parsed_config()
        if len(spec.name) > MAX_NAME_CHARACTERS:
            raise UsageError(
                f"'{spec.name}' is too long for names that are made of it",
                cure=f"take one of at most {MAX_NAME_CHARACTERS} characters: --name NAME",
            )
        if spec.name.endswith(_RESERVED):
            raise UsageError(
                f"'{spec.name}' is what parts of another deployment may be called",
                cure="take a name that does not end with " + " or ".join(_RESERVED),
            )
        if config.compute.accelerator_fraction is not None:
            raise UsageError(
                "Kubernetes gives a container whole GPUs, and compute.accelerator_fraction asks for a part of one",
                cure="remove it; shares are for the owner of the nodes to set up (MIG, time-slicing), or use Ray",
            )
        gpu_resource(config.compute)
        if config.deployment.mode == "serverless":
            flavor_kind(self.compute)
        refuse_unpublishable(self.compute, origin)

    def deliver(self, spec: DeploymentSpec, origin: Origin, delivery: Delivery) -> str:
        """See Deployer: the image is in a registry when this returns."""
        self._require(spec)
        return publish(spec, self.compute, origin, delivery)

    def render(self, record: Record) -> str:
        """See Deployer: manifests that `kubectl apply -f -` takes."""
        address = address_of(record.spec, self.compute)
        return as_yaml(self._objects(Record(record.spec.delivered(address), record.history)))

    def apply(self, record: Record) -> None:
        """See Deployer."""
        spec = record.spec
        if not record.is_readable:
            raise _unreadable(spec.name)
        self._require(spec)
        current = self._api.find(DEPLOYMENT.path(self._api.namespace, spec.name))
        num_replicas = None if current is None else int(current["spec"].get("replicas", 0))
        wanted = [*starting_one(self._objects(record, num_replicas), current), *self._routes(spec)]
        apply_objects(self._api, wanted, self._served())
        # A canary belongs to the deployment: a new version beside it leaves it as it is.
        prune(self._api, spec.name, wanted, self._served(), keeps=_is_canary)

    def status(self, name: str) -> Status:
        """See Deployer."""
        if workloads := self._workloads(name):
            return self._status(workloads)
        if self._services(name):
            return remains(name, self._pods(name))
        raise self._unknown(name)

    def statuses(self) -> list[Status]:
        """See Deployer."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for workload in self._workloads(None):
            groups.setdefault(instance_of(workload), []).append(workload)
        found = {name: self._status(workloads) for name, workloads in groups.items()}
        for name in {instance_of(service) for service in self._services(None)} - found.keys():
            found[name] = remains(name, self._pods(name))
        return [found[name] for name in sorted(found)]

    def scale(self, name: str, min_replicas: int, max_replicas: int) -> None:
        """See Deployer: the pods' template stays as it is, so that no replica starts again."""
        workload = self._workload(name)
        record = self._readable(workload).scaled(min_replicas, max_replicas)
        if workload["kind"] != DEPLOYMENT.name:
            self.apply(record)
            return
        objects = self._objects(record, int(workload["spec"].get("replicas", 0)))
        deployment = next(item for item in objects if item["kind"] == DEPLOYMENT.name)
        others = [item for item in objects if item is not deployment]
        # What the cluster does not take is refused before anything has changed; an autoscaler that is no longer wanted
        # is gone before it can set other numbers; and the record goes with the number that it tells.
        apply_objects(self._api, others, self._served())
        prune(self._api, name, objects, self._served(), keeps=lambda item: item["kind"] not in _SCALERS)
        change: dict[str, Any] = {"metadata": {"annotations": {RECORD: record.to_json()}}}
        if (replicas := deployment["spec"].get("replicas")) is not None:
            change["spec"] = {"replicas": replicas}
        self._api.merge(DEPLOYMENT.path(self._api.namespace, name), change)

    def logs(
        self, name: str, *, replica: str | None = None, num_lines: int = 100, follow: bool = False
    ) -> Iterator[LogLine]:
        """See Deployer."""
        self._workload(name)

        def pods() -> list[dict[str, Any]]:
            found = self._pods(name)
            return [pod for pod in found if replica in {None, pod["metadata"]["name"]}]

        found = pods()
        if replica is not None and not found:
            names = ", ".join(pod["metadata"]["name"] for pod in self._pods(name)) or "none"
            raise DeployError(f"{name} has no replica '{replica}'", cure=f"it has: {names}")
        if follow:
            yield from logs.follow(self._api, pods, num_lines)
            return
        for pod in found:
            for line in logs.last_lines(self._api, pod, num_lines):
                yield LogLine(replica=pod["metadata"]["name"], text=line)

    def set_canary(self, name: str, spec: DeploymentSpec | None, percent: int) -> None:
        """See Deployer: where a Gateway shares the calls out."""
        workload = self._workload(name)
        record = self._readable(workload)
        if workload["kind"] != DEPLOYMENT.name or record.spec.parsed_config().deployment.mode == "serverless":
            raise UsageError(
                f"{name} is serverless, and has one version at a time",
                cure="deploy the new version under another name, or with --mode dedicated",
            )
        gateway = self._gateway()
        if gateway is None:
            raise UsageError(
                f"compute {self.compute.name} has nothing that shares calls out between two versions: "
                + ("no --endpoint" if not self.compute.endpoint else "no Gateway (Gateway API)"),
                cure="install a Gateway (https://gateway-api.sigs.k8s.io) and name its host as the compute's "
                "--endpoint; or deploy the new version under another name, or replace the old one",
            )
        if spec is not None:
            self._require_secrets(spec)
        own = [] if spec is None else canary_objects(replace(spec, name=name), self.compute, percent)
        route = route_object(
            record.spec, self.compute, gateway, self._host(name), percent=percent if spec else 0
        )
        apply_objects(self._api, [*own, route], self._served())
        if spec is None:
            prune(self._api, name, (), self._served(), keeps=lambda item: not _is_canary(item))

    def delete(self, name: str) -> None:
        """See Deployer: replicas that are told to end may finish their calls first, through services that stay so long.

        A stop that was cut short leaves these, and is found by them.
        """
        owned = owned_objects(self._api, name, self._served())
        if not owned:
            raise self._unknown(name)
        services = [(kind, item) for kind, item in owned if kind == SERVICE]
        for kind, item in reversed(owned):
            if kind != SERVICE:
                self._api.delete(kind.path(self._api.namespace, item["metadata"]["name"]))
        self._await_end(name)
        for kind, item in services:
            self._api.delete(kind.path(self._api.namespace, item["metadata"]["name"]))

    def _await_end(self, name: str) -> None:
        deadline: float | None = None
        while pods := self._pods(name):
            if deadline is None:
                grace_s = max(
                    float(pod["spec"].get("terminationGracePeriodSeconds") or _GRACE_S) for pod in pods
                )
                deadline = time.monotonic() + grace_s + _DELETE_SLACK_S
            if time.monotonic() > deadline:
                names = ", ".join(pod["metadata"]["name"] for pod in pods)
                raise DeployError(
                    f"{name} is deleted, but {names} did not end",
                    cure=f"see whether the node is up: `kubectl --namespace {self._api.namespace} describe pods`",
                )
            time.sleep(_POLL_S)

    def close(self) -> None:
        """See Deployer."""
        self._api.close()

    # ---------------------------------------------------------------------------------------------------- what is wanted

    def _objects(self, record: Record, num_replicas: int | None = None) -> list[dict[str, Any]]:
        if record.spec.parsed_config().deployment.mode == "serverless":
            return serverless_objects(record, self.compute, num_replicas)
        # What is rendered and not applied asks nothing, and is for a cluster of today.
        on_calls = self._groups is None or any(group.startswith(_CUSTOM_METRICS) for group in self._groups)
        return dedicated_objects(record, self.compute, num_replicas=num_replicas, scales_on_calls=on_calls)

    def _routes(self, spec: DeploymentSpec) -> list[dict[str, Any]]:
        """Return the route through the compute's Gateway, where it has one; a canary keeps its share."""
        if spec.parsed_config().deployment.mode == "serverless":
            return []
        gateway = self._gateway()
        if gateway is None:
            return []
        canary = self._api.find(DEPLOYMENT.path(self._api.namespace, f"{spec.name}-{CANARY}"))
        percent = 0 if canary is None else int(canary["metadata"]["annotations"].get(PERCENT, 0))
        return [route_object(spec, self.compute, gateway, self._host(spec.name), percent=percent)]

    def _host(self, name: str) -> str:
        return host_of(self.compute, name, self._api.namespace)

    def _gateway(self) -> GatewayRef | None:
        """Return the cluster's Gateway, None where the endpoint is no host of one. Raises UsageError where it has several."""
        if not self.compute.endpoint or HTTP_ROUTE.api_version not in self._served():
            return None
        found = self._api.items(f"/apis/{GATEWAY.api_version}/{GATEWAY.plural}")
        if len(found) > 1:
            own = [each for each in found if each["metadata"]["namespace"] == self._api.namespace]
            found = own if len(own) == 1 else found
        if len(found) > 1:
            names = ", ".join(f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in found)
            raise UsageError(
                f"compute {self.compute.name} has several Gateways: {names}",
                cure=f"put the one to use into the namespace {self._api.namespace}, or the deployments into its",
            )
        if not found:
            return None
        return {"name": found[0]["metadata"]["name"], "namespace": found[0]["metadata"]["namespace"]}

    def _require(self, spec: DeploymentSpec) -> None:
        """Raise UsageError or DeployError for what the cluster lacks, or has in the way."""
        self._require_secrets(spec)
        config = spec.parsed_config()
        if config.deployment.mode == "serverless":
            self._require_flavor()
        wanted = workload_kind(config, self.compute)
        for workload in self._workloads(spec.name):
            if (workload["apiVersion"], workload["kind"]) != (wanted.api_version, wanted.name):
                raise UsageError(
                    f"{spec.name} runs as a {workload['kind']} ({workload['apiVersion']}), and would as a "
                    f"{wanted.name} ({wanted.api_version}): the one would end before the other serves",
                    cure=f"deploy it beside, with --name OTHER, and then `modelkit stop {spec.name}`",
                )

    def _require_flavor(self) -> None:
        kind = flavor_kind(self.compute)
        if kind.api_version not in self._served():
            raise DeployError(
                f"compute {self.compute.name} does not know {kind.name} ({kind.api_version}), which --flavor "
                f"{self.compute.flavor} needs",
                cure="install its controller in the cluster, or deploy with --mode dedicated",
            )

    def _require_secrets(self, spec: DeploymentSpec) -> None:
        """Raise DeployError where a Secret is not there; of one that may not be looked at, the replica will say so."""
        for reference in secret_refs(spec):
            if reference.is_optional:
                continue
            try:
                found = self._api.has(SECRET.path(self._api.namespace, reference.secret))
            except KubernetesError:
                continue
            if not found:
                raise UsageError(
                    f"the cluster has no Secret '{reference.secret}', which the model needs for {reference.variable}",
                    cure=create_command(reference, self._api.namespace),
                )

    # ------------------------------------------------------------------------------------------------------ what is there

    def _served(self) -> frozenset[str]:
        if self._groups is None:
            self._groups = self._api.served()
        return self._groups

    def _workloads(self, name: str | None) -> list[dict[str, Any]]:
        """Return the objects that carry a record: of one deployment, or of all."""
        selector = label_selector(name)
        return [
            {"kind": kind.name, "apiVersion": kind.api_version, **item}
            for kind in _WORKLOADS
            if kind.api_version in self._served()
            for item in self._api.items(kind.path(self._api.namespace), labelSelector=selector)
            if RECORD in (item["metadata"].get("annotations") or {})
            and not item["metadata"].get("ownerReferences")
        ]

    def _services(self, name: str | None) -> list[dict[str, Any]]:
        """Return the services, which are what is left last: of one deployment, or of all."""
        found = self._api.items(SERVICE.path(self._api.namespace), labelSelector=label_selector(name))
        return [item for item in found if not item["metadata"].get("ownerReferences")]

    def _workload(self, name: str) -> dict[str, Any]:
        for workload in self._workloads(name):
            if not _is_canary(workload):
                return workload
        raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownDeploymentError:
        names = {instance_of(workload) for workload in self._workloads(None)}
        return UnknownDeploymentError(self.compute.name, name, sorted(names))

    def _readable(self, workload: Mapping[str, Any]) -> Record:
        """Return the record of an object that is to be changed. Raises DeployError for one that would be lost by that."""
        record = record_of(workload)
        if not record.is_readable:
            raise _unreadable(instance_of(workload))
        return record

    def _status(self, workloads: Sequence[Mapping[str, Any]]) -> Status:
        workload = next((each for each in workloads if not _is_canary(each)), workloads[0])
        canary = next((each for each in workloads if _is_canary(each) and each is not workload), None)
        name = instance_of(workload)
        observed = self._observe(name)
        if workload["kind"] == DEPLOYMENT.name:
            status = deployment_status(workload, observed, canary)
        else:
            status = resource_status(workload, observed)
        # Whoever waits asks again and again: not for where it is called before anything answers there.
        answers = status.state == "idle" or status.num_ready
        return replace(status, endpoint=self._endpoint(name)) if answers else status

    def _endpoint(self, name: str) -> Endpoint | None:
        try:
            return find_endpoint(self._api, name)
        except DeployError:
            return None

    def _observe(self, name: str) -> Observed:
        pods = self._pods(name)
        waiting = [pod for pod in pods if not _is_ready(pod) and not pod["metadata"].get("deletionTimestamp")]
        warnings = self._warnings({pod["metadata"]["name"] for pod in waiting}) if waiting else {}
        lines = {}
        for pod in waiting[:_MAX_ASKED]:
            # Of any other the container's state says more.
            said = logs.last_lines(self._api, pod, 1) if logs.is_running(pod) else []
            lines[pod["metadata"]["name"]] = said[-1] if said else ""
        return Observed(pods=pods, warnings=warnings, last_lines=lines)

    def _pods(self, name: str) -> list[dict[str, Any]]:
        """Return a deployment's pods, without those of which only the entry is left."""
        pods = self._api.items(POD.path(self._api.namespace), labelSelector=label_selector(name))
        return [pod for pod in pods if not _has_ended(pod)]

    def _warnings(self, names: set[str]) -> dict[str, str]:
        """Return the last warning about each of these pods, as far as it may be read."""
        path = f"/api/v1/namespaces/{self._api.namespace}/events"
        try:
            events = self._api.items(path, fieldSelector="type=Warning,involvedObject.kind=Pod")
        except DeployError:
            return {}
        events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        found: dict[str, str] = {}
        for event in events:
            about = event["involvedObject"]["name"]
            # That it backs off says nothing beside the fault itself.
            if (
                about in names
                and event.get("reason") not in {"BackOff", "Unhealthy"}
                and event.get("message")
            ):
                message = str(event["message"])
                if not (message.startswith("Error: ") and found.get(about)):
                    found[about] = message
        return found


def _unreadable(name: str) -> DeployError:
    return DeployError(
        f"the record of {name} cannot be read; a newer modelkit may have written it",
        cure="update modelkit, or deploy it again",
    )


def _is_canary(item: Mapping[str, Any]) -> bool:
    about = item["metadata"]
    return bool(about["name"] == f"{about['labels']['app.kubernetes.io/instance']}-{CANARY}")


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _has_ended(pod: Mapping[str, Any]) -> bool:
    """Tell whether nothing of a pod runs any more that was told to end; its entry may stay for half a minute."""
    containers = pod.get("status", {}).get("containerStatuses") or ()
    runs = any("running" in (each.get("state") or {}) for each in containers)
    return "deletionTimestamp" in pod["metadata"] and bool(containers) and not runs
