"""The computes a person has, how each is talked to, and where its deployments are called: what client and deploy share."""

from modelkit.computes.endpoint import Endpoint, Route
from modelkit.computes.locate import locate, parse_url
from modelkit.computes.store import (
    LOCAL_RAY,
    Compute,
    ComputeKind,
    add_compute,
    computes_path,
    find_compute,
    list_computes,
    remove_compute,
)

__all__ = [
    "LOCAL_RAY",
    "Compute",
    "ComputeKind",
    "Endpoint",
    "Route",
    "add_compute",
    "computes_path",
    "find_compute",
    "list_computes",
    "locate",
    "parse_url",
    "remove_compute",
]
