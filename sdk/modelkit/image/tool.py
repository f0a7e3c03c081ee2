"""Runs docker or podman: the client that builds, pushes and runs, and the cure for what it cannot do."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelkit.engines import catalog
from modelkit.errors import BuildError

__all__ = ["Tool", "find_tool", "guarded", "tool_problem"]

_GUARD = Path(catalog.__file__).with_name("_guard.py")
_ASK_TIMEOUT_S = 30.0
# The first client without BuildKit of its own: it needs the plugin buildx.
_BUILDX_VERSION = 23


@dataclass(frozen=True, slots=True)
class Tool:
    """One client on this machine; `environment` says which daemon it talks to, where that is not the usual one."""

    name: str
    path: str
    environment: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def is_docker(self) -> bool:
        """Whether it talks to a daemon that builds with BuildKit."""
        return self.name == "docker"

    def ask(self, *arguments: str, timeout_s: float = _ASK_TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
        """Run a short command to its end; its exit code is the caller's to judge."""
        command = [self.path, *arguments]
        try:
            return subprocess.run(  # noqa: S603 - a client found on the PATH
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no answer within {timeout_s:.0f} s")

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a long command, whose output is one stream of lines; it ends when its standard input closes.

        It is in a session of its own, so that Ctrl-C reaches modelkit alone, and does not outlive modelkit (Linux).
        """
        return guarded(
            [self.path, *arguments], environment={**os.environ, **self.environment, **(environment or {})}
        )

    def stream(
        self, *arguments: str, on_line: Callable[[str], None], environment: Mapping[str, str] | None = None
    ) -> int:
        """Run a long command to its end, hand on each of its lines, and return its exit code."""
        with self.start(*arguments, environment=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    on_line(line.rstrip())
                return process.wait()
            finally:
                process.stdin.close()


def guarded(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> "subprocess.Popen[str]":
    """Start a command whose output is one stream of lines; it ends when its standard input closes.

    It is in a session of its own, so that Ctrl-C reaches modelkit alone, and does not outlive modelkit (Linux).
    """
    guard = [sys.executable, "-IS", str(_GUARD)] if sys.platform == "linux" else []
    return subprocess.Popen(  # noqa: S603 - made by its callers
        [*guard, *command],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        encoding="utf-8",
        errors="replace",
        start_new_session=not guard,
    )


@functools.cache
def find_tool(name: str) -> Tool | None:
    """Return a client that can build, looking further on the PATH where the first docker has no BuildKit."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = shutil.which(name, path=folder)
        if path is not None and (name != "docker" or _has_buildkit(path)):
            return Tool(name, path)
    return None


def _has_buildkit(path: str) -> bool:
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    major = re.search(r"version (\d+)", version)
    if major is None:
        return False
    if int(major[1]) < _BUILDX_VERSION:
        return True
    return subprocess.run([path, "buildx", "version"], capture_output=True, check=False).returncode == 0  # noqa: S603


def tool_problem(tool: Tool) -> BuildError | None:
    """Return why a client cannot work now, None where it can: a daemon that does not run, or that does not permit."""
    if not tool.is_docker:
        return None
    answer = tool.ask("version", "--format", "{{.Server.Version}}")
    if answer.returncode == 0:
        return None
    said = (answer.stderr or answer.stdout).strip().splitlines()
    text = said[-1] if said else f"exit code {answer.returncode}"
    if "permission denied" in text.lower():
        return BuildError(
            "this user may not talk to the Docker daemon",
            cure="sudo usermod -aG docker $USER, then log in again; or `--builder oci`, which needs no Docker",
        )
    if re.search(
        r"cannot connect|is the docker daemon running|connection refused|no such file", text, re.IGNORECASE
    ):
        return BuildError(
            "the Docker daemon does not run",
            cure="start it (`sudo systemctl start docker`, or Docker Desktop), or use `--builder oci`, which needs none",
        )
    return BuildError(f"docker does not work: {text}", cure="see `docker version`")
