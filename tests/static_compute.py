"""A compute whose deployments a test writes down: `address` is a JSON file of endpoints by name, read with each locate."""

import contextlib
import json
import time
from pathlib import Path

from modelkit.computes.endpoint import Endpoint, Route
from modelkit.errors import DeployError, UnknownDeploymentError


class Deployments:
    """The file. What is put into it is what the next `locate` returns."""

    def __init__(self, path):
        self.path = path
        self.path.write_text("{}")

    def put(self, name, *routes, **endpoint):
        content = json.loads(self.path.read_text())
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps({**content, name: {"routes": routes, **endpoint}}))
        draft.replace(self.path)

    def remove(self, name):
        content = json.loads(self.path.read_text())
        del content[name]
        self.path.write_text(json.dumps(content))

    @contextlib.contextmanager
    def silent(self):
        """Let whoever asks wait until the block ends."""
        hold = self.path.with_suffix(".hold")
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    @property
    def num_asked(self):
        log = self.path.with_suffix(".log")
        return len(log.read_text().splitlines()) if log.exists() else 0


def locate(compute, name):
    path = Path(compute.address)
    with path.with_suffix(".log").open("a") as log:
        log.write(f"{name}\n")
    while path.with_suffix(".hold").exists():
        time.sleep(0.01)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DeployError(f"compute {compute.name} cannot be reached", cure="start it") from None
    if name not in content:
        raise UnknownDeploymentError(compute.name, name, list(content))
    fields = content[name]
    routes = tuple(Route(**route) for route in fields.pop("routes"))
    return Endpoint(routes=routes, **fields)
