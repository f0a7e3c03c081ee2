"""Deployments on a compute: planned, delivered, applied, waited for, and taken back where they do not come up."""

from modelkit.deploy.base import (
    Delivery,
    Deployer,
    DeploymentState,
    Gpus,
    LineSink,
    LogLine,
    Origin,
    Replica,
    ReplicaState,
    Report,
    Status,
    reasons,
)
from modelkit.deploy.choose import open_deployer
from modelkit.deploy.record import DeploymentSpec, Record

__all__ = [
    "Delivery",
    "Deployer",
    "DeploymentSpec",
    "DeploymentState",
    "Gpus",
    "LineSink",
    "LogLine",
    "Origin",
    "Record",
    "Replica",
    "ReplicaState",
    "Report",
    "Status",
    "open_deployer",
    "reasons",
]
