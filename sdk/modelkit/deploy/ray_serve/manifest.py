"""From a record to the application that Ray Serve is told to run, and back: pure, nothing is asked or sent.

The replica's own arguments hold what it runs, and nothing else: where they change, Ray starts new replicas. The record
with its history and bounds is `user_config`, which Ray changes in place; so scaling restarts nothing.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from modelkit.config import Config
from modelkit.deploy.ray_serve.accelerators import type_selectors
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.inference.contract import SERVICER_FUNCTION

__all__ = [
    "CANARY_SUFFIX",
    "DEPLOYMENT",
    "IMPORT_PATH",
    "Mark",
    "application",
    "is_ours",
    "read_mark",
    "read_record",
    "read_replica_args",
    "scaled",
    "serve_options",
    "with_application",
    "without_application",
]

DEPLOYMENT: Final = "model"
ALL_HOSTS: Final = "0.0.0.0"  # noqa: S104 - Ray's default: callers are on other machines
IMPORT_PATH: Final = "modelkit.deploy.ray_serve.replica:build"
# No deployment can be called so: a DNS label has no dot.
CANARY_SUFFIX: Final = ".canary"

# How long idle replicas stay; longer than a short pause between two bursts, shorter than anybody's lunch.
_DOWNSCALE_DELAY_S: Final = 60.0
_SCALE_TO_ZERO_AFTER_S: Final = 300.0
_UPSCALE_DELAY_S: Final = 2.0
# Ray is to refuse less than its own `metrics_interval_s`, 10 s.
_LOOK_BACK_S: Final = 11.0
# A replica that was killed is noticed by its health check.
_HEALTH_CHECK_PERIOD_S: Final = 2.0
_HEALTH_CHECK_TIMEOUT_S: Final = 30.0
_STOP_POLL_S: Final = 0.5
# What one replica of a model without any wish takes of a node, for the arithmetic of placing only.
_DEFAULT_CPUS: Final = 1.0

# What Serve's controller, its proxies and each replica have to be told alike. A replica may be told where they were not:
# then it answers at a port of its own that nobody is told of.
_SERVE_ENV: Final = {
    # Each replica answers gRPC itself, and callers need not go through the proxy, which costs 5 ms a call.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    # Callers look every 2 s where the replicas are: one that ends is not forgotten sooner.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # How often the proxy and the replicas tell of waiting calls. With Ray's 10 s the first call at zero waits as long.
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


class Mark:
    """What an application's canary says: which share of the calls it gets."""

    KEY: Final = "canary_percent"


def serve_options(
    *, grpc_port: int = 9000, http_port: int = 8000, http_host: str = ALL_HOSTS, every_node: bool = True
) -> dict[str, Any]:
    """Return the options that Serve takes once, when it first starts on a cluster: a later change is ignored."""
    return {
        "proxy_location": "EveryNode" if every_node else "HeadOnly",
        "http_options": {"host": http_host, "port": http_port},
        "grpc_options": {"port": grpc_port, "grpc_servicer_functions": [SERVICER_FUNCTION]},
        "controller_options": {"runtime_env": {"env_vars": dict(_SERVE_ENV)}},
    }


def application(
    record: Record,
    *,
    public_host: str = ALL_HOSTS,
    canary_percent: int | None = None,
) -> dict[str, Any]:
    """Return the application for a record; with `canary_percent` the canary beside it."""
    spec = record.spec
    name = spec.name + (CANARY_SUFFIX if canary_percent is not None else "")
    config = spec.parsed_config()
    user_config: dict[str, Any] = {"record": record.to_json()}
    if canary_percent is not None:
        user_config[Mark.KEY] = canary_percent
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": IMPORT_PATH,
        "args": {"spec": json.dumps(_replica_spec(spec), sort_keys=True), "public_host": public_host},
        "runtime_env": {"env_vars": dict(_SERVE_ENV)},
        "deployments": [
            {
                "name": DEPLOYMENT,
                **_scaling(config),
                "max_ongoing_requests": config.server.max_concurrency,
                "max_queued_requests": max(1, config.server.max_queue),
                "graceful_shutdown_timeout_s": max(config.server.drain_timeout_s, _STOP_POLL_S),
                "graceful_shutdown_wait_loop_s": _STOP_POLL_S,
                "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
                "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
                "max_surge_percent": config.deployment.max_surge_percent,
                "ray_actor_options": _resources(config),
                # The server's own log says what is worth a line; one for each call is not.
                "logging_config": {"enable_access_log": False},
                "user_config": user_config,
            }
        ],
    }


def _replica_spec(spec: DeploymentSpec) -> dict[str, Any]:
    """Return what the replica has to know: nothing that may change while it runs."""
    config = {key: value for key, value in spec.config.items() if key != "deployment"}
    return asdict(replace(spec, config=config))


def read_replica_args(args: Mapping[str, Any]) -> tuple[DeploymentSpec, str]:
    """Return what `application` has written for the replica: its specification, and the host it is called by."""
    content = json.loads(args["spec"])
    return DeploymentSpec(**{**content, "overrides": tuple(content["overrides"])}), args["public_host"]


def _scaling(config: Config) -> dict[str, Any]:
    wanted = config.deployment
    if wanted.min_replicas == wanted.max_replicas and wanted.min_replicas > 0:
        return {"num_replicas": wanted.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": wanted.min_replicas,
            # So that a version that cannot start is seen when it is deployed, not by the first who calls it.
            "initial_replicas": max(1, wanted.min_replicas),
            "max_replicas": wanted.max_replicas,
            "target_ongoing_requests": wanted.target_concurrency,
            "upscale_delay_s": _UPSCALE_DELAY_S,
            "downscale_delay_s": _DOWNSCALE_DELAY_S,
            "downscale_to_zero_delay_s": wanted.scale_to_zero_after_s or _SCALE_TO_ZERO_AFTER_S,
            "look_back_period_s": _LOOK_BACK_S,
        }
    }


def _resources(config: Config) -> dict[str, Any]:
    """Return what Ray keeps free for one replica. Several GPUs are of one node: engines share them over its own links."""
    compute = config.compute
    cpus = compute.cpu_request_cores or compute.cpu_limit_cores or _DEFAULT_CPUS
    memory = compute.cpu_memory_request_bytes or compute.cpu_memory_bytes
    options: dict[str, Any] = {"num_cpus": cpus}
    if memory:
        options["memory"] = memory
    if compute.num_accelerators:
        options["num_gpus"] = compute.accelerator_fraction or compute.num_accelerators
        selectors = [_label_selector(names) for names in type_selectors(compute)]
        if selectors:
            options["label_selector"] = selectors[0]
        if selectors[1:]:
            options["fallback_strategy"] = [{"label_selector": each} for each in selectors[1:]]
    return options


def _label_selector(names: list[str]) -> dict[str, str]:
    return {"ray.io/accelerator-type": names[0] if len(names) == 1 else f"in({','.join(names)})"}


# ------------------------------------------------------------------------------------------- what the cluster has said


def is_ours(app: Mapping[str, Any]) -> bool:
    """Tell whether modelkit made an application; `app` is its configuration, as it was deployed."""
    return app.get("import_path") == IMPORT_PATH


def read_record(app: Mapping[str, Any]) -> Record:
    """Return the record of an application of ours. Raises ValueError, KeyError or TypeError for a damaged one."""
    return Record.from_json(_user_config(app)["record"])


def read_mark(app: Mapping[str, Any]) -> int:
    """Return the share of the calls that a canary gets, in percent."""
    return int(_user_config(app).get(Mark.KEY, 0))


def _user_config(app: Mapping[str, Any]) -> Mapping[str, Any]:
    user_config: Mapping[str, Any] = app["deployments"][0]["user_config"]
    return user_config


def scaled(record: Record, min_replicas: int, max_replicas: int) -> Record:
    """Return the record with other bounds."""
    config = dict(record.spec.config)
    deployment = dict(config.get("deployment") or {})
    deployment |= {"min_replicas": min_replicas, "max_replicas": max_replicas}
    return Record(replace(record.spec, config={**config, "deployment": deployment}), record.history)


# ----------------------------------------------------------------------------------------------- read, change, write


def with_application(apps: Iterable[Mapping[str, Any]], app: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return all applications, this one put in the place of the one of its name."""
    return [*without_application(apps, {app["name"]}), app]


def without_application(apps: Iterable[Mapping[str, Any]], names: set[str]) -> list[Mapping[str, Any]]:
    """Return all applications but those."""
    return [app for app in apps if app["name"] not in names]
