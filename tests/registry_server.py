"""A real registry, Debian's docker-registry, on a free port of this machine."""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from modelkit.registry import Reference

PROGRAM = "docker-registry"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


class RegistryServer:
    """One registry with a storage folder of its own; it can be killed and started again on the same port."""

    def __init__(self, folder: Path, **sections) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.host = f"localhost:{self.port}"
        self.log_path = folder / "log"
        self.storage = folder / "storage"
        http = {"addr": f"127.0.0.1:{self.port}", "secret": "the same after a restart"} | sections.pop(
            "http", {}
        )
        config = {
            "version": 0.1,
            "log": {"level": "info", "fields": {"service": "registry"}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": http,
        } | sections
        self.config_path = folder / "config.yml"
        self.config_path.write_text(json.dumps(config))  # YAML reads JSON
        self.process: subprocess.Popen | None = None

    def start(self) -> "RegistryServer":
        with self.log_path.open("ab") as log:
            command = [PROGRAM, "serve", str(self.config_path)]
            environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        self.kill()
        raise AssertionError(self.log_path.read_text())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def reference(self, repository: str, tag: str | None = None) -> Reference:
        return Reference(self.host, repository, tag)
