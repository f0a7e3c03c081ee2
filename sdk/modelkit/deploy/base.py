"""One shape for every kind of compute: what a Deployer does, and the values it speaks in.

The flow is the same everywhere and lives in `rollout`: plan, deliver, apply, wait, and where that fails, back. A
deployer only knows its compute's own API; no scheduler, autoscaler or balancer is ours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from modelkit.computes import Compute, Endpoint
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.progress import TransferProgress

__all__ = [
    "Delivery",
    "Deployer",
    "DeploymentState",
    "Gpus",
    "LineSink",
    "LogLine",
    "Origin",
    "Replica",
    "ReplicaState",
    "Report",
    "Status",
    "reasons",
]

# idle: no replica runs, and the next call starts one.
DeploymentState = Literal["starting", "running", "updating", "idle", "failed", "stopping"]
ReplicaState = Literal["starting", "ready", "unready", "draining", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the content of a deployment is now: a model folder here, or a version, pinned by its digest.

    `reference` is such as registry.example.com/team/chat@sha256:..., or oci:/home/ada/.modelkit/registry/chat@sha256:...
    """

    folder: Path | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One running server of a deployment; `reason` says why it is not ready."""

    name: str
    state: ReplicaState
    version: str = ""
    node: str = ""
    reason: str = ""
    num_restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A deployment as it is now. `num_wanted` is how many replicas the compute aims at at this moment.

    `reason` says why it is not (yet) what was asked for, in the compute's own words where it has some.
    `canary` gets `canary_percent` of the calls where two versions run side by side; its replicas are not among
    `replicas`, and count for nothing else.
    """

    name: str
    record: Record
    state: DeploymentState
    replicas: tuple[Replica, ...] = ()
    num_wanted: int = 0
    min_replicas: int = 1
    max_replicas: int = 1
    reason: str = ""
    endpoint: Endpoint | None = None
    canary: DeploymentSpec | None = None
    canary_percent: int = 0
    canary_replicas: tuple[Replica, ...] = ()

    @property
    def num_ready(self) -> int:
        """How many replicas answer calls."""
        return sum(replica.state == "ready" for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of one type: how many there are, and how many are free."""

    kind: str
    num_total: int
    num_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check of a compute has found. `problems` keep it from being used, each with its cure; `notes` do not."""

    versions: tuple[tuple[str, str], ...] = ()  # such as ("Ray", "2.60.0")
    num_nodes: int = 0
    cpu_total: float | None = None
    cpu_free: float | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    gpus: tuple[Gpus, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()  # what is wrong, what mends it
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line that a replica wrote."""

    replica: str
    text: str


# Takes one line of text.
LineSink = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a delivery hears about: progress of transfers, and lines of what is being built."""

    progress: TransferProgress
    on_line: LineSink = field(default=lambda _: None)


class Deployer(Protocol):
    """How deployments are put on one compute and looked after.

    Every method raises DeployError where the compute refuses or cannot be reached, and UsageError for what it cannot do
    at all; those that name a deployment raise UnknownDeploymentError where it has none of that name.
    """

    compute: Compute

    def check(self) -> Report:
        """Look at the compute: reachable, authorised, versions, GPUs, free capacity. Never raises for what it finds."""

    def setup(self, on_line: LineSink) -> None:
        """Do what has to be done once per compute; nothing where it was done."""

    def refuse(self, spec: DeploymentSpec, origin: Origin) -> None:
        """Raise UsageError, before anything is sent, for what this compute cannot run."""

    def deliver(self, spec: DeploymentSpec, origin: Origin, delivery: Delivery) -> str:
        """Bring the content to where the compute gets it, and return its address there: `spec.artifact`."""

    def render(self, record: Record) -> str:
        """Return what `apply` would send, as text; nothing is asked or sent."""

    def apply(self, record: Record) -> None:
        """Start the change towards `record.spec`, which was delivered; the old version serves until the new one answers.

        From when it returns, `status` says `updating` or `starting` until the change is complete.
        """

    def status(self, name: str) -> Status:
        """Return a deployment as it is now."""

    def statuses(self) -> list[Status]:
        """Return all deployments that modelkit made there, by name."""

    def scale(self, name: str, min_replicas: int, max_replicas: int) -> None:
        """Change the bounds; nothing restarts. The record is changed with them."""

    def logs(
        self, name: str, *, replica: str | None = None, num_lines: int = 100, follow: bool = False
    ) -> Iterator[LogLine]:
        """Return the last lines of every replica, or of one; with `follow` what they write from now on too."""

    def set_canary(self, name: str, spec: DeploymentSpec | None, percent: int) -> None:
        """Run `spec` beside the deployment with that share of the calls; None ends it. UsageError where it cannot.

        With 0 percent it runs and gets none: the flow gives it its share once its replicas are ready.
        """

    def delete(self, name: str) -> None:
        """End the deployment and everything of it; returns when it is gone."""

    def close(self) -> None:
        """Release connections."""


def reasons(status: Status) -> Sequence[str]:
    """Return why a deployment is not ready yet, one sentence each, the same ones once."""
    said = [status.reason, *(replica.reason for replica in status.replicas)]
    return list(dict.fromkeys(reason for reason in said if reason))
