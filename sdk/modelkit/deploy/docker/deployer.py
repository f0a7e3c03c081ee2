"""The deployer of a Docker host: the shape of `deploy.base`, made of containers and of volumes that bear labels."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from modelkit.computes import Compute
from modelkit.computes.docker_api import (
    DEPLOYMENT,
    DRAINING,
    REVISION,
    DockerHost,
    bind_address,
    caller_host,
    docker_host,
    port_range,
)
from modelkit.deploy.base import Delivery, Gpus, LineSink, LogLine, Origin, Report, Status
from modelkit.deploy.docker.containers import (
    create,
    discard,
    end,
    entrypoint_of,
    environment_for,
    environment_of,
    free_numbers,
    left_for_later,
    number_of,
    remove,
    remove_nameless,
    runs,
    start,
    taken_gpus,
    takes_calls,
    untag,
    untag_version,
)
from modelkit.deploy.docker.deliver import deliver, image_tag
from modelkit.deploy.docker.gpus import Gpu, assign, list_gpus
from modelkit.deploy.docker.logs import read_logs
from modelkit.deploy.docker.look import View, gpus_of, look, status_of, steps_of
from modelkit.deploy.docker.replica import (
    container_options,
    drain_timeout_s,
    missing_options,
)
from modelkit.deploy.docker.roll import Seen, Steps, Surge
from modelkit.deploy.docker.state import State, forget, read_state, read_states, write_state
from modelkit.deploy.record import DeploymentSpec, Record
from modelkit.errors import DeployError, ModelkitError, UnknownDeploymentError, UsageError

__all__ = ["DockerDeployer"]

_SENT_S = 0.5  # the daemon goes on stopping a container when nobody waits for the answer
_LOOPBACK = ("127.0.0.1", "::1")


class DockerDeployer:
    """Deployments on one Docker host; see `deploy.base.Deployer`. It connects when it is first asked for something."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self._resources = ExitStack()
        self._connected: DockerHost | None = None
        self._told: set[str] = set()  # containers that this process has told to end
        self._gpus: list[Gpu] | None = None
        self._ends: dict[str, str] = {}  # how containers have ended

    @property
    def _host(self) -> DockerHost:
        if self._connected is None:
            self._connected = self._resources.enter_context(docker_host(self.compute))
        return self._connected

    def close(self) -> None:
        """Release the connection."""
        self._connected = None
        self._resources.close()

    # ---------------------------------------------------------------------------------------------------- the host

    def check(self) -> Report:
        """Look at the host."""
        try:
            host = self._host
            with host.asking("say what it is"):
                info, version = host.client.info(), host.client.version()
        except ModelkitError as error:
            return Report(problems=((error.message, error.cure),))
        gpus, notes = self._count_gpus(host, info)
        if (
            self.compute.address.startswith(("tcp://", "http://"))
            and not host.cli_environment["DOCKER_TLS_VERIFY"]
        ):
            notes.append("its daemon is reached without TLS: whoever reaches its port is root on the machine")
        if bind_address(self.compute) not in _LOOPBACK:
            notes.append(f"replicas answer at {caller_host(self.compute)}, to whoever reaches that address")
        return Report(
            versions=(("Docker", version["Version"]), ("API", version["ApiVersion"])),
            num_nodes=1,
            cpu_total=float(info["NCPU"]),
            memory_total_bytes=info["MemTotal"],
            gpus=gpus,
            notes=tuple(notes),
        )

    def _count_gpus(self, host: DockerHost, info: Mapping[str, Any]) -> tuple[tuple[Gpus, ...], list[str]]:
        if "nvidia" not in (info.get("Runtimes") or {}):
            return (), []
        image = next(iter(each["ImageID"] for each in host.containers(DEPLOYMENT)), None)
        if image is None:
            return (), ["it has NVIDIA's runtime; its GPUs are counted once a model is there"]
        try:
            found = list_gpus(host, image)
        except DeployError as error:
            return (), [error.message]
        listed = host.containers(DEPLOYMENT)
        taken = taken_gpus(listed, read_states(host, listed))
        kinds = dict.fromkeys(gpu.kind for gpu in found)
        return tuple(
            Gpus(
                kind,
                sum(gpu.kind == kind for gpu in found),
                sum(gpu.kind == kind and gpu.id not in taken for gpu in found),
            )
            for kind in kinds
        ), []

    def setup(self, on_line: LineSink) -> None:
        """Do nothing: a Docker host needs nothing beforehand."""
        on_line(f"{self.compute.name} needs no set-up")

    def refuse(self, spec: DeploymentSpec, origin: Origin) -> None:
        """Raise UsageError for what a Docker host cannot run."""
        del origin
        config = spec.parsed_config()
        wanted = config.deployment
        port_range(self.compute)
        if wanted.mode == "serverless" or wanted.min_replicas == 0:
            raise UsageError(
                "a Docker host cannot start replicas on demand, so nothing there is serverless",
                cure="--mode dedicated, or a compute of kind ray or kubernetes",
            )
        _refuse_range(self.compute, wanted.min_replicas, wanted.max_replicas)
        if config.compute.accelerator_fraction is not None:
            raise UsageError(
                "a Docker host gives whole GPUs only, and compute.accelerator_fraction asks for a share of one",
                cure="leave it out, or take a compute of kind ray",
            )
        is_open = bind_address(self.compute) not in _LOOPBACK and not self.compute.endpoint
        if is_open and not spec.api_key_env:
            raise UsageError(
                f"anyone who reaches {caller_host(self.compute)} could call {spec.name}",
                cure="ask callers for a key with --api-key-env NAME, or name the address to listen at: `modelkit "
                f"compute add {self.compute.name} --endpoint 10.0.0.5 ...`, 127.0.0.1 for that machine alone",
            )

    def deliver(self, spec: DeploymentSpec, origin: Origin, delivery: Delivery) -> str:
        """Build, pull or load the image on the host, and return its name there."""
        return deliver(self._host, spec, origin, delivery)

    # ------------------------------------------------------------------------------------------------- deployments

    def render(self, record: Record) -> str:
        """Return the containers as YAML; variables whose values come from this machine show none."""
        import yaml

        state = State(record=record)
        hidden = dict.fromkeys(record.spec.variables().all, "(from this machine)")
        command = missing_options(record.spec, ())
        containers = []
        for number in range(1, state.num_replicas + 1):
            options = container_options(
                self.compute, state, number, command=command, environment=hidden, gpus=()
            )
            if "gpus" in options:
                options["gpus"] = record.spec.parsed_config().compute.num_accelerators
            options["labels"] = {
                name: text for name, text in options["labels"].items() if not name.endswith(".record")
            }
            options["image"] = options["image"] or "(built or pulled there)"
            options["ports"] = {port: list(where) for port, where in options["ports"].items()}
            containers.append(options)
        plain = json.loads(json.dumps({"containers": containers}))  # no anchors for what several share
        return yaml.safe_dump(plain, sort_keys=False, width=110)

    def apply(self, record: Record) -> None:
        """Make the containers of the new revision and take the first step; `status` takes the further ones."""
        host, name = self._host, record.spec.name
        listed = host.containers(f"{DEPLOYMENT}={name}")
        current = read_state(host, name, listed)
        state = State(
            record=record,
            number=0 if current is None else current.number,
            roll=0 if current is None else current.roll,
            proven=frozenset() if current is None else current.proven,
        )
        if self._has_new_secrets(host, state, listed):
            state = replace(state, roll=state.roll + 1)
        made: list[str] = []
        try:
            discard(host, state, listed)
            made = self._make(host, state, host.containers(f"{DEPLOYMENT}={name}"))
            state = write_state(host, state)
        except ModelkitError:
            for identity in made:
                remove(host, identity)
            known = () if current is None else (current.record.spec, *current.record.history)
            if image_tag(record.spec) not in map(image_tag, known):
                untag_version(host, record.spec)
            raise
        # Here and not once it is complete: by then somebody may have brought the image of the next change.
        untag(host, name, (record.spec, *record.history))
        self._step(host, state)

    def status(self, name: str) -> Status:
        """Return a deployment as it is, having taken the next steps towards what is wanted."""
        host = self._host
        listed = host.containers(f"{DEPLOYMENT}={name}")
        state = read_state(host, name, listed)
        if state is None:
            raise UnknownDeploymentError(
                self.compute.name, name, list(read_states(host, host.containers(DEPLOYMENT)))
            )
        view, steps = self._step(host, state, listed)
        return status_of(host, view, steps)

    def statuses(self) -> list[Status]:
        """Return all deployments as they are, having taken the next steps of each."""
        host = self._host
        listed = host.containers(DEPLOYMENT)
        return [self._status_among(host, state, listed) for state in read_states(host, listed).values()]

    def _status_among(self, host: DockerHost, state: State, listed: Sequence[dict[str, Any]]) -> Status:
        """Return a deployment as it is; one that cannot go on keeps nobody from seeing the others."""
        try:
            view, steps = self._step(host, state, listed)
        except DeployError:
            view = look(host, state, listed, self._ends)
            steps = steps_of(view)
        return status_of(host, view, steps)

    def scale(self, name: str, min_replicas: int, max_replicas: int) -> None:
        """Change the number of replicas; those that stay are not touched."""
        _refuse_range(self.compute, min_replicas, max_replicas)
        if min_replicas < 1:
            raise UsageError(
                "a Docker host starts no replica on demand, so one has to run",
                cure=f"`modelkit stop {name}` ends the deployment",
            )
        status = self.status(name)
        if not status.record.is_readable:
            raise DeployError(
                f"{name} cannot be scaled: {status.reason}",
                cure="scale it with that modelkit, or deploy the version that you want: `modelkit serve REF --compute ...`",
            )
        self.apply(status.record.scaled(min_replicas, max_replicas))

    def logs(
        self, name: str, *, replica: str | None = None, num_lines: int = 100, follow: bool = False
    ) -> Iterator[LogLine]:
        """Return the last lines of every replica, or of one, and with `follow` what they write from now on."""
        self._known(name)
        return read_logs(self._host, name, replica=replica, num_lines=num_lines, follow=follow)

    def set_canary(self, name: str, spec: DeploymentSpec | None, percent: int) -> None:
        """Raise UsageError: nothing on a Docker host divides calls."""
        del spec, percent
        self._known(name)
        raise UsageError(
            "a Docker host has nothing that divides calls between two versions",
            cure="deploy the new one beside it under a name of its own (--name), or take a compute of kind ray or kubernetes",
        )

    def delete(self, name: str) -> None:
        """Drain and remove all replicas, forget the record, and untag the images that were made for the deployment."""
        host = self._host
        listed = host.containers(f"{DEPLOYMENT}={name}")
        state = read_state(host, name, listed)
        if state is None and not listed:
            self._known(name)
        if state is not None and not state.is_stopping:
            write_state(host, replace(state, is_stopping=True))
        timeout_s = 5 if state is None else drain_timeout_s(state.record.spec.parsed_config())
        if listed:
            with ThreadPoolExecutor(min(16, len(listed))) as threads:
                list(threads.map(lambda each: end(host, each, timeout_s), listed))
        untag(host, name)
        remove_nameless(host, [each["ImageID"] for each in listed])
        forget(host, name)

    # --------------------------------------------------------------------------------------------------- the steps

    def _known(self, name: str) -> None:
        """Raise UnknownDeploymentError where there is no such deployment."""
        states = read_states(self._host, self._host.containers(DEPLOYMENT))
        if name not in states:
            raise UnknownDeploymentError(self.compute.name, name, list(states))

    def _step(
        self, host: DockerHost, state: State, listed: Sequence[dict[str, Any]] | None = None
    ) -> tuple[View, Steps]:
        """Take the next steps; return what was seen before them, what was refused included, and them."""
        listed = host.containers(f"{DEPLOYMENT}={state.name}") if listed is None else listed
        view = look(host, state, listed, self._ends)
        steps = steps_of(view)
        timeout_s = drain_timeout_s(state.record.spec.parsed_config())
        tried = {each.id: start(host, each, view.containers[each.id]) for each in steps.start}
        if refused := {identity: why for identity, why in tried.items() if why}:
            view = view.refused(refused)
            steps = steps_of(view)
        for each in steps.drain:
            self._drain(host, each, timeout_s)
        self._remind(host, view, timeout_s)
        for each in steps.remove:
            with left_for_later():
                remove(host, each.id)
        with left_for_later():
            images = [view.containers[each.id]["ImageID"] for each in steps.remove]
            remove_nameless(host, images, (state.record.spec, *state.record.history))
        if steps.is_done and not state.is_complete:
            in_place = [each.id for each in view.seen if each.is_new and each.phase == "ready"]
            with suppress(DeployError):  # somebody else has written it
                write_state(host, state.completed(in_place))
        return view, steps

    def _drain(self, host: DockerHost, seen: Seen, timeout_s: int) -> None:
        """Tell a replica to end once its calls have. Only one of several that try the same gets to rename it."""
        import docker.errors

        try:
            with host.asking("mark a replica as draining"):
                host.client.api.rename(seen.id, seen.name + DRAINING)
        except DeployError as error:
            if isinstance(error.__cause__, docker.errors.APIError):
                return
            raise
        self._stop(host, seen.id, timeout_s)

    def _remind(self, host: DockerHost, view: View, timeout_s: int) -> None:
        """Tell those to end that are marked and still take calls: whoever marked them was killed before telling them."""
        for each in view.seen:
            container = view.containers[each.id]
            if each.phase == "draining" and each.id not in self._told and takes_calls(host, container):
                self._stop(host, each.id, timeout_s)

    def _stop(self, host: DockerHost, identity: str, timeout_s: int) -> None:
        """Send the signal, and leave the waiting and the killing after `timeout_s` to the daemon."""
        import requests.exceptions

        self._told.add(identity)
        api = host.client.api
        with host.asking("stop a replica"), suppress(requests.exceptions.ReadTimeout):
            api.post(
                f"{api.base_url}/v{api.api_version}/containers/{identity}/stop",
                params={"t": timeout_s},
                timeout=(30, _SENT_S),
            ).close()

    def _make(self, host: DockerHost, state: State, listed: Sequence[dict[str, Any]]) -> list[str]:
        """Make the containers that are missing, without starting them; return their ids."""
        spec = state.record.spec
        same = [each for each in listed if each["Labels"].get(REVISION) == state.revision]
        num_missing = state.num_replicas - len(same)
        if num_missing <= 0:
            return []
        entrypoint = entrypoint_of(host, spec)
        environment = environment_for(host, spec, listed)
        gpus = self._assign_gpus(host, state, num_missing, listed)
        numbers = free_numbers(listed, num_missing)
        made: list[str] = []
        try:
            for number, its_gpus in zip(numbers, gpus, strict=True):
                options = container_options(
                    self.compute,
                    state,
                    number,
                    command=missing_options(spec, entrypoint),
                    environment=environment,
                    gpus=its_gpus,
                )
                made.append(create(host, options))
        except BaseException:
            for identity in made:
                remove(host, identity)
            raise
        return made

    def _assign_gpus(
        self, host: DockerHost, state: State, num_missing: int, listed: Sequence[dict[str, Any]]
    ) -> list[tuple[str, ...]]:
        config = state.record.spec.parsed_config()
        if not config.compute.num_accelerators:
            return [()] * num_missing
        if self._gpus is None:
            self._gpus = list_gpus(host, state.record.spec.artifact)
        old = [each for each in listed if each["Labels"].get(REVISION) != state.revision]
        going = [gpus_of(each) for each in sorted(old, key=number_of) if runs(each)]
        surge = Surge.of(state.num_replicas, config.deployment.max_surge_percent)
        on_host = host.containers(DEPLOYMENT)
        return assign(
            config.compute,
            num_missing,
            self._gpus,
            sorted(taken_gpus(on_host, read_states(host, on_host) | {state.name: state})),
            going,
            may_wait=surge.more == 0,
        )

    @staticmethod
    def _has_new_secrets(host: DockerHost, state: State, listed: Sequence[dict[str, Any]]) -> bool:
        """Tell whether a replica of this very revision runs with other values of its secrets than this process has."""
        running = next(
            (
                each
                for each in listed
                if each["Labels"].get(REVISION) == state.revision and each["State"] == "running"
            ),
            None,
        )
        names = state.record.spec.variables().needed
        if running is None or not any(os.environ.get(name) for name in names):
            return False
        there = environment_of(host, running["Id"])
        return any(os.environ.get(name) not in {None, "", there.get(name)} for name in names)


def _refuse_range(compute: Compute, min_replicas: int, max_replicas: int) -> None:
    if min_replicas != max_replicas:
        num = max(1, min_replicas)
        raise UsageError(
            f"{compute.name} is a Docker host, which has no autoscaler: it runs a fixed number of replicas, "
            f"and {min_replicas} to {max_replicas} were asked for",
            cure=f"ask for as many at most as at least, such as {num} and {num}, or take a compute of kind ray or kubernetes",
        )
