"""Deployments on Kubernetes: objects that are pure functions of a record, applied on the server's side.

`manifests` decides what there is, `pods` what a replica is, `flavors` and `kuberay` who runs what may scale to zero,
`canary` how two versions share the calls; `apply` sends, `observe` reads what became of it, `publish` brings the image
to where the cluster pulls it; `cluster` puts them together.
"""

from modelkit.computes import Compute
from modelkit.deploy.base import Deployer

__all__ = ["deployer"]


def deployer(compute: Compute) -> Deployer:
    """Return what deploys to a cluster. Raises UsageError where its context or the `kubernetes` package is missing."""
    from modelkit.deploy.kubernetes.cluster import KubernetesDeployer

    return KubernetesDeployer(compute)
