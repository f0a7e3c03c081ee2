"""From modelkit://COMPUTE/DEPLOYMENT to the place where it is called: asked of the compute each time."""

from importlib import import_module

from modelkit.computes.endpoint import Endpoint
from modelkit.computes.store import Compute, find_compute
from modelkit.errors import UsageError

__all__ = ["SCHEME", "locate", "locate_on", "parse_url"]

SCHEME = "modelkit://"

# Each has `locate(compute, name)`, and is imported when a compute of its kind is asked.
_KINDS = {
    "ray": "modelkit.computes.ray_api",
    "kubernetes": "modelkit.computes.kubernetes_api",
    "docker": "modelkit.computes.docker_api",
}


def parse_url(url: str) -> tuple[str, str]:
    """Return the compute and the deployment that a URL names. Raises UsageError."""
    compute, slash, name = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not compute or not slash or not name or "/" in name:
        raise UsageError(
            f"'{url}' names no deployment", cure=f"write {SCHEME}COMPUTE/DEPLOYMENT; `modelkit ps` lists them"
        )
    return compute, name


def locate(url: str) -> Endpoint:
    """Return where a deployment is called. Raises UsageError, DeployError, UnknownDeploymentError."""
    compute, name = parse_url(url)
    return locate_on(find_compute(compute), name)


def locate_on(compute: Compute, name: str) -> Endpoint:
    """Return where a deployment on a compute is called."""
    endpoint: Endpoint = import_module(_KINDS[compute.kind]).locate(compute, name)
    return endpoint
