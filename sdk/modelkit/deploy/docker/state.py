"""What a Docker host remembers of a deployment: one volume per change, with the record in its labels; the last one counts.

Labels cannot be changed, so a change is a new volume with the next number. Two that change at the same time want the
same number, and the daemon gives it to one of them. Each container bears the record that it was made for, too: if
somebody prunes the volumes, the newest of those counts that was ever started.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from modelkit.computes.docker_api import DEPLOYMENT, DockerHost
from modelkit.deploy.record import Record
from modelkit.errors import DeployError

__all__ = ["State", "forget", "read_state", "read_states", "write_state"]

_RECORD = "modelkit.deployment.record"
_NUMBER = "modelkit.deployment.number"
_ROLL = "modelkit.deployment.roll"
_STOPPING = "modelkit.deployment.stopping"
_COMPLETE = "modelkit.deployment.complete"
_PROVEN = "modelkit.deployment.proven"
_WRITER = "modelkit.deployment.writer"

_ID_CHARACTERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is wanted. `number` counts the changes; another `roll` replaces replicas of the same specification.

    `is_complete` once all of it was in place, and nothing else. `proven` are the containers that were in place when a
    change was last complete, by the beginning of their ids: where one of them ends, that is an accident and not a bad
    version, however often it has and whatever is changed meanwhile.
    """

    record: Record
    number: int = 0
    roll: int = 0
    is_stopping: bool = False
    is_complete: bool = False
    proven: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.record.spec.name

    @property
    def num_replicas(self) -> int:
        """How many replicas are wanted."""
        return max(1, self.record.spec.parsed_config().deployment.min_replicas)

    @property
    def revision(self) -> str:
        """What a container has to be made of: the same for two specifications that differ in the number of replicas only."""
        content = json.dumps([asdict(self.record.spec.of_replica()), self.roll], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def has_proven(self, identity: str) -> bool:
        """Tell whether a container has been in place."""
        return identity[:_ID_CHARACTERS] in self.proven

    def completed(self, identities: Iterable[str]) -> "State":
        """Return the state once these containers are in place, and no other."""
        proven = frozenset(identity[:_ID_CHARACTERS] for identity in identities)
        return replace(self, is_complete=True, proven=proven)

    def labels(self) -> dict[str, str]:
        """Return the labels that say all this."""
        labels = {
            DEPLOYMENT: self.name,
            _RECORD: self.record.to_json(),
            _NUMBER: str(self.number),
            _ROLL: str(self.roll),
        }
        more = {
            _STOPPING: "true" if self.is_stopping else "",
            _COMPLETE: "true" if self.is_complete else "",
            _PROVEN: ",".join(sorted(self.proven)),
        }
        return labels | {label: text for label, text in more.items() if text}

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> "State | None":
        """Return the state that labels tell, None where they are of no deployment.

        What cannot be read of it stands for nothing: the record may be a newer modelkit's, see `Record.read`.
        """
        name = labels.get(DEPLOYMENT)
        if not name:
            return None
        return cls(
            record=Record.read(labels.get(_RECORD, ""), name),
            number=_number(labels.get(_NUMBER)),
            roll=_number(labels.get(_ROLL)),
            is_stopping=labels.get(_STOPPING) == "true",
            is_complete=labels.get(_COMPLETE) == "true",
            proven=frozenset(filter(None, labels.get(_PROVEN, "").split(","))),
        )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def read_state(host: DockerHost, name: str, containers: Sequence[Mapping[str, Any]]) -> State | None:
    """Return what is wanted of a deployment, None where there is none."""
    return _states(_volumes(host, f"{DEPLOYMENT}={name}"), containers).get(name)


def read_states(host: DockerHost, containers: Sequence[Mapping[str, Any]]) -> dict[str, State]:
    """Return what is wanted of all deployments, by name."""
    return _states(_volumes(host, DEPLOYMENT), containers)


def _states(
    volumes: Mapping[str, Mapping[str, str]], containers: Sequence[Mapping[str, Any]]
) -> dict[str, State]:
    # A container that was made and never started may be of a change that was cut off before it counted.
    started = [each["Labels"] for each in containers if each["State"] != "created"]
    found = _newest(started) | _newest(list(volumes.values()))
    return dict(sorted(found.items()))


def _newest(labels: Sequence[Mapping[str, str]]) -> dict[str, State]:
    found: dict[str, State] = {}
    for state in map(State.of, labels):
        if state is not None and (state.name not in found or found[state.name].number < state.number):
            found[state.name] = state
    return found


def write_state(host: DockerHost, state: State) -> State:
    """Keep a state as the one that counts from now on, and return it with its number.

    Raises DeployError where somebody else was faster.
    """
    state = replace(state, number=state.number + 1)
    writer = secrets.token_hex(8)
    name = _volume_name(state.name, state.number)
    with host.asking("write down the deployment"):
        host.client.api.create_volume(name=name, labels={**state.labels(), _WRITER: writer})
        # A volume that is there already is returned as it is, without a word.
        is_mine = host.client.api.inspect_volume(name)["Labels"].get(_WRITER) == writer
    if not is_mine:
        raise DeployError(
            f"somebody else has changed {state.name} on {host.compute.name} at this moment",
            cure="look at it with `modelkit status`, and try again",
        )
    forget(host, state.name, before=state.number)
    return state


def forget(host: DockerHost, name: str, *, before: int | None = None) -> None:
    """Remove the states of a deployment, or those before a number."""
    import docker.errors

    for volume, labels in _volumes(host, f"{DEPLOYMENT}={name}").items():
        state = State.of(labels)
        if before is None or state is None or state.number < before:
            with host.asking("forget an earlier state"):
                try:
                    host.client.api.remove_volume(volume)
                except docker.errors.NotFound:
                    continue  # another process was faster


def _volumes(host: DockerHost, label: str) -> dict[str, dict[str, str]]:
    with host.asking("list deployments"):
        volumes = host.client.api.volumes(filters={"label": [label]})["Volumes"] or []
    return {each["Name"]: each["Labels"] or {} for each in volumes}


def _volume_name(name: str, number: int) -> str:
    return f"modelkit-deployment-{name}-{number}"
