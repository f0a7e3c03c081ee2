"""From a record to the application that Ray Serve is told to run, and back: pure, nothing is asked or sent.

The replica's own arguments hold what it runs, and nothing else: where they change, Ray starts new replicas. The record
with its history and bounds is `user_config`, which Ray changes in place; so scaling restarts nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelkit.computes.ray_api import CANARY_SUFFIX
from modelkit.config import Config
from modelkit.deploy.ray_serve.accelerators import type_selectors
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.inference.contract import SERVICER_FUNCTION

__all__ = [
    "DEPLOYMENT",
    "IMPORT_PATH",
    "Mark",
    "application",
    "application_name",
    "is_ours",
    "num_wanted",
    "read_mark",
    "read_record",
    "read_replica_args",
    "serve_options",
    "with_application",
    "without_application",
]

DEPLOYMENT: Final = "model"
ALL_HOSTS: Final = "0.0.0.0"  # noqa: S104 - Ray's default: callers are on other machines
IMPORT_PATH: Final = "modelkit.deploy.ray_serve.replica:build"

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
    *,
    grpc_port: int = 9000,
    http_port: int = 8000,
    http_host: str = ALL_HOSTS,
    every_node: bool = True,
    replica_ports: range | None = None,
) -> dict[str, Any]:
    """Return the options that Serve takes once, when it first starts on a cluster: a later change is ignored.

    `replica_ports` are for the replicas to answer at, half of them gRPC and half HTTP; Ray's own, 40000 and 30000 and
    more, where none are given. Two clusters whose nodes are one machine must not share any: Ray opens them in such a way
    that calls to one's replica reach the other's.
    """
    environment = _SERVE_ENV | (_port_variables(replica_ports) if replica_ports else {})
    return {
        "proxy_location": "EveryNode" if every_node else "HeadOnly",
        "http_options": {"host": http_host, "port": http_port},
        "grpc_options": {"port": grpc_port, "grpc_servicer_functions": [SERVICER_FUNCTION]},
        "controller_options": {"runtime_env": {"env_vars": environment}},
    }


def _port_variables(ports: range) -> dict[str, str]:
    middle = ports.start + len(ports) // 2
    return {
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(middle - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(middle),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.stop - 1),
    }


def application(
    record: Record,
    *,
    public_host: str = ALL_HOSTS,
    canary_percent: int | None = None,
    there: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the application for a record; with `canary_percent` the canary beside it.

    `there` is what the cluster says of the application of that name, where it has one: as many replicas as it has now,
    within the new bounds, is where autoscaling goes on from.
    """
    spec = record.spec
    name = application_name(spec.name, is_canary=canary_percent is not None)
    config = spec.parsed_config()
    # A record of its own, so that a node of an older modelkit can read what a newer one has written.
    args = {"spec": Record(spec.of_replica()).to_json(), "public_host": public_host}
    user_config: dict[str, Any] = {"record": record.to_json()}
    if canary_percent is not None:
        user_config[Mark.KEY] = canary_percent
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": IMPORT_PATH,
        "args": args,
        "runtime_env": {"env_vars": dict(_SERVE_ENV)},
        "deployments": [
            {
                "name": DEPLOYMENT,
                **_scaling(config, initial=_initial_replicas(config, args, there)),
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


def application_name(name: str, *, is_canary: bool = False) -> str:
    """Return what the application of a deployment, or of its canary, is called."""
    return name + CANARY_SUFFIX if is_canary else name


def read_replica_args(args: Mapping[str, Any]) -> tuple[DeploymentSpec, str]:
    """Return what `application` has written for the replica: its specification, and the host it is called by."""
    return Record.from_json(args["spec"]).spec, args["public_host"]


def _initial_replicas(config: Config, args: Mapping[str, Any], there: Mapping[str, Any] | None) -> int | None:
    """Return how many replicas a version starts with; None for as many as there are, where none of them is replaced.

    Ray goes back to this number whenever anything of a deployment changes.
    """
    if there is not None and (there.get("deployed_app_config") or {}).get("args") == args:
        return None
    wanted = config.deployment
    # At least one, so that a version that cannot start is seen when it is deployed, not by the first who calls it.
    return min(max(1, wanted.min_replicas, num_wanted(there)), wanted.max_replicas)


def num_wanted(there: Mapping[str, Any] | None) -> int:
    """Return how many replicas the cluster aims at for an application."""
    deployment = ((there or {}).get("deployments") or {}).get(DEPLOYMENT) or {}
    return int(deployment.get("target_num_replicas") or 0)


def _scaling(config: Config, *, initial: int | None) -> dict[str, Any]:
    """Return the bounds. Also where they are equal: from and to `num_replicas` Ray builds anew, and replaces all replicas."""
    wanted = config.deployment
    return {
        "autoscaling_config": {
            "min_replicas": wanted.min_replicas,
            **({} if initial is None else {"initial_replicas": initial}),
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
    """Return the record of an application of ours; for one that cannot be read, one that says no more than the name."""
    name = str(app.get("name") or "").removesuffix(CANARY_SUFFIX)
    record = Record.read(_user_config(app).get("record", ""), name)
    try:
        record.spec.parsed_config()
    except ValueError:  # a newer modelkit knows more keys
        return Record.unreadable(name)
    return record


def read_mark(app: Mapping[str, Any]) -> int:
    """Return the share of the calls that a canary gets, in percent."""
    percent = _user_config(app).get(Mark.KEY)
    return percent if isinstance(percent, int) else 0


def _user_config(app: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        user_config = app["deployments"][0]["user_config"]
    except (KeyError, IndexError, TypeError):
        return {}
    return user_config if isinstance(user_config, Mapping) else {}


# ----------------------------------------------------------------------------------------------- read, change, write


def with_application(apps: Iterable[Mapping[str, Any]], app: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return all applications, this one put in the place of the one of its name."""
    return [*without_application(apps, {app["name"]}), app]


def without_application(apps: Iterable[Mapping[str, Any]], names: set[str]) -> list[Mapping[str, Any]]:
    """Return all applications but those."""
    return [app for app in apps if app["name"] not in names]
