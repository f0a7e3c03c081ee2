"""Deployments as applications of Ray Serve: told to a cluster over HTTP, run on it by `replica`.

Nothing but `replica` and what it imports needs ray; the machine that deploys has to have none.
"""

from modelkit.deploy.ray_serve.deployer import RayServeDeployer, deployer

__all__ = ["RayServeDeployer", "deployer"]
