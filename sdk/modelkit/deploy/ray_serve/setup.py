"""Whether a cluster's Serve is one that modelkit can use: its options are fixed when it first starts."""

import time
from collections.abc import Mapping
from typing import Any, Final

from modelkit.computes import Compute
from modelkit.computes.ray_api import RayApi
from modelkit.deploy.base import LineSink
from modelkit.errors import DeployError
from modelkit.inference.contract import SERVICER_FUNCTION

__all__ = ["setup_problem", "wait_for_proxies"]

_POLL_S: Final = 0.5
_TIMEOUT_S: Final = 90.0
# A proxy that a busy node makes wait is said to be unhealthy for a moment too.
_UNHEALTHY_S: Final = 20.0
_TELL_EVERY_S: Final = 5.0


def setup_problem(compute: Compute, instance: Mapping[str, Any]) -> DeployError | None:
    """Return what is wrong with a Serve that runs; None where it knows the contract."""
    options = instance.get("grpc_options") or {}
    functions = options.get("grpc_servicer_functions") or []
    if SERVICER_FUNCTION in functions:
        return None
    if not instance.get("proxies") and not instance.get("applications"):
        return None
    others = sorted(instance.get("applications") or {})
    ends = f", which ends {', '.join(others)}" if others else ""
    return DeployError(
        f"Ray Serve on {compute.name} was started without modelkit's contract, and takes no other options while it runs",
        cure=f"end it with `serve shutdown` on the cluster{ends}, then `modelkit compute setup {compute.name}`; or start it with "
        f"grpc_servicer_functions: [{SERVICER_FUNCTION}]",
    )


def wait_for_proxies(api: RayApi, on_line: LineSink) -> None:
    """Wait until a proxy takes calls. Raises DeployError with what keeps them from it."""
    started = told = well = time.monotonic()
    while True:
        proxies = list((api.instance().get("proxies") or {}).values())
        states = [str(each.get("status")) for each in proxies]
        if states and all(state == "HEALTHY" for state in states):
            return
        now = time.monotonic()
        well = well if "UNHEALTHY" in states else now
        if now - started > _TIMEOUT_S or now - well > _UNHEALTHY_S:
            raise DeployError(
                f"the proxies of Ray Serve on {api.compute.name} do not start ({', '.join(states) or 'none there'})",
                cure="install modelkit (pip install modelkit-sdk) into the Python environment or the image of every node, in the "
                "version that is used here; the proxies' logs in Ray's dashboard say what they lack",
            )
        if now - told > _TELL_EVERY_S:
            told = now
            on_line(f"waiting for the proxies: {', '.join(states) or 'starting'}")
        time.sleep(_POLL_S)
