"""Deployments on a Docker host: replicas as containers, replaced one after another, and nothing running but them.

There is no controller on a Docker host. What is wanted lies in a volume's labels; every look at a deployment
(`status`) takes the next step towards it, so that whoever looks goes on where another was killed.
"""

from modelkit.computes import Compute
from modelkit.deploy.docker.deployer import DockerDeployer

__all__ = ["deployer"]


def deployer(compute: Compute) -> DockerDeployer:
    """Return the deployer of a Docker host; it connects when it is first asked for something."""
    return DockerDeployer(compute)
