"""The deployer of a compute, by its kind."""

from importlib import import_module

from modelkit.computes import Compute
from modelkit.deploy.base import Deployer

__all__ = ["open_deployer"]

# Each module has a `deployer(compute)`, and is imported when a compute of its kind is used.
_KINDS = {
    "ray": "modelkit.deploy.ray_serve.deployer",
    "kubernetes": "modelkit.deploy.kubernetes",
    "docker": "modelkit.deploy.docker",
}


def open_deployer(compute: Compute) -> Deployer:
    """Return what deploys to a compute; close it after use. Raises UsageError where a library for it is missing."""
    deployer: Deployer = import_module(_KINDS[compute.kind]).deployer(compute)
    return deployer
