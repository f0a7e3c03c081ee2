"""Puts one build of an engine into a virtual environment: with uv where there is one, with pip otherwise.

Both keep a promise that neither tool makes by itself: a machine without a GPU never gets CUDA's gigabytes. What would
be installed is asked first (a dry run), and where that has GPU libraries, uv takes torch's CPU build: it knows where
that one lies. The installer runs behind the guard of the engines, so that it ends when modelkit does.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from modelkit.engines.catalog import Build, Hardware
from modelkit.errors import EngineError

__all__ = ["Installer", "Pip", "Progress", "Uv", "choose_installer", "gpu_packages"]

_GPU_PREFIXES = ("nvidia-", "cuda-", "triton", "pytorch-triton")
_SHOWN_LINES = 12

# uv reads none of pip's settings. Those in the environment mean the same to a person, so they are handed on.
_PIP_SETTINGS_FOR_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_NO_INDEX": "UV_NO_INDEX",
    "PIP_CERT": "SSL_CERT_FILE",
}


def _ignore(_: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Who hears how an installation goes: `on_stage` a few phases, `on_output` each line of the installer."""

    on_stage: Callable[[str], None] = _ignore
    on_output: Callable[[str], None] = _ignore


class Installer(Protocol):
    """Makes a virtual environment and installs into it. Both raise EngineError, ending with the cure."""

    def make_environment(self, folder: Path, progress: Progress) -> Path:
        """Make an empty environment with this interpreter's version; return its Python."""
        ...

    def install(self, python: Path, build: Build, hardware: Hardware, progress: Progress) -> None:
        """Install `build` where `python` is."""
        ...


def choose_installer() -> "Installer":
    """Return uv, from the PATH or from this environment; pip, which Python brings along, where there is none."""
    on_path = shutil.which("uv")
    if on_path is not None:
        return Uv([on_path])
    return Uv([sys.executable, "-m", "uv"]) if find_spec("uv") else Pip()


def gpu_packages(names: Iterable[str]) -> list[str]:
    """Return those distributions that only a machine with a GPU can use, sorted."""
    return sorted(name for name in map(_canonical, names) if name.startswith(_GPU_PREFIXES))


class Uv:
    """uv: 147 packages in seconds where they are in its cache."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)

    def make_environment(self, folder: Path, progress: Progress) -> Path:
        """Make an empty environment with this interpreter's version; return its Python."""
        _run([*self._command, "venv", "--python", sys.executable, str(folder)], progress)
        return folder / "bin" / "python"

    def install(self, python: Path, build: Build, hardware: Hardware, progress: Progress) -> None:
        """Install `build` in one resolution; what it is to do without is overridden away."""
        overrides = python.parent.parent / "overrides.txt"
        overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in build.without))
        command = [
            *(*self._command, "pip", "install", "--python", str(python), "--override", str(overrides)),
            f"{build.distribution}=={build.version}",
        ]
        progress.on_stage("choosing versions")
        if hardware == "cpu" and not self._brings_no_gpu_packages(command, progress):
            command.append("--torch-backend=cpu")
        progress.on_stage(f"installing {build.distribution} {build.version} with uv")
        _run(command, progress)

    def _brings_no_gpu_packages(self, command: Sequence[str], progress: Progress) -> bool:
        """Ask what would be installed. False also where there is no answer: a CPU build may be on its own index."""
        try:
            plan = _run([*command, "--dry-run"], progress)
        except _InstallerError:
            return False
        added = [match[1] for line in plan if (match := re.match(r" \+ (\S+?)==", line))]
        return not gpu_packages(added)


class Pip:
    """pip, the one that `python -m venv` puts into each environment."""

    def make_environment(self, folder: Path, progress: Progress) -> Path:
        """Make an environment that has pip; return its Python."""
        _run([sys.executable, "-m", "venv", str(folder)], progress)
        return folder / "bin" / "python"

    def install(self, python: Path, build: Build, hardware: Hardware, progress: Progress) -> None:
        """Resolve first, then install without dependencies what is left of the plan: pip cannot override one."""
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        progress.on_stage("choosing versions")
        try:
            plan = self._plan(pip, python.parent.parent / "plan.json", build, progress)
        except _InstallerError:
            if hardware == "gpu":
                raise
            plan = None
        if plan is None or (hardware == "cpu" and gpu_packages(plan)):
            progress.on_stage("fetching uv, which knows where torch's CPU build is")
            _run([*pip, "uv"], progress)
            Uv([str(python), "-m", "uv"]).install(python, build, hardware, progress)
            return
        locked = python.parent.parent / "requirements.txt"
        locked.write_text("".join(f"{name}=={version}\n" for name, version in plan.items()))
        progress.on_stage(f"installing {build.distribution} {build.version}: {len(plan)} packages with pip")
        _run([*pip, "--no-deps", "--requirement", str(locked)], progress)

    def _plan(self, pip: Sequence[str], report: Path, build: Build, progress: Progress) -> dict[str, str]:
        """Return what pip would install, name to version, less what the build does without."""
        requirement = f"{build.distribution}=={build.version}"
        _run([*pip, "--dry-run", "--report", str(report), requirement], progress)
        items = [item["metadata"] for item in json.loads(report.read_text())["install"]]
        return {
            item["name"]: item["version"] for item in items if _canonical(item["name"]) not in build.without
        }


def _canonical(name: str) -> str:
    """Spell a distribution's name in the one way: https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "-", name).lower()


# --------------------------------------------------------------------------------------------------- running the tool


@dataclass(frozen=True, slots=True)
class _Cause:
    pattern: re.Pattern[str]
    message: str
    cure: str


_CAUSES = (
    _Cause(
        re.compile(r"No space left on device", re.IGNORECASE),
        "the disk is full",
        "make room, or let MODELKIT_ENGINES_DIR name a folder on a larger disk",
    ),
    _Cause(
        re.compile(
            r"dns error|name resolution|NewConnectionError|Name or service not known|network is unreachable"
            r"|failed to establish a new connection|connection refused|could not connect|client error \(Connect\)"
            r"|network was disabled|network connectivity is disabled",
            re.IGNORECASE,
        ),
        "the package index cannot be reached",
        "check the network and the settings of pip or uv (PIP_INDEX_URL names a mirror); where there is no network, "
        "PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER install from a folder of wheels",
    ),
    _Cause(
        re.compile(r"No matching distribution found|there is no version of|no solution found", re.IGNORECASE),
        f"there is no such version for Python {sys.version_info.major}.{sys.version_info.minor} on this machine",
        "choose another version, or run modelkit with another Python",
    ),
    _Cause(
        re.compile(r"ensurepip is not available|No module named (?:venv|ensurepip)"),
        "this Python cannot make virtual environments",
        "install its venv module (Debian: apt install python3-venv), or install uv",
    ),
)  # fmt: skip


class _InstallerError(EngineError):
    """The installer failed; the message has the end of what it said."""


def _run(command: Sequence[str], progress: Progress) -> list[str]:
    """Run an installer to its end and return its lines. Raises _InstallerError with the cause where it is known."""
    guard = Path(__file__).with_name("_guard.py")
    lines: list[str] = []
    with subprocess.Popen(  # noqa: S603 - the installer that was found, with arguments made here
        [sys.executable, "-I", str(guard), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(os.environ),
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                progress.on_output(line.strip())
            code = process.wait()
        finally:
            # The guard ends the installer when this pipe closes: on Ctrl-C here, and on our own death.
            process.stdin.close()
    if code != 0:
        raise _failure(command, lines)
    return lines


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the installer's environment is: plain output, and pip's settings in uv's spelling too."""
    handed_on = {
        ours: environment[theirs]
        for theirs, ours in _PIP_SETTINGS_FOR_UV.items()
        if theirs in environment and ours not in environment
    }
    if "UV_FIND_LINKS" in handed_on:  # pip divides at spaces, uv at commas
        handed_on["UV_FIND_LINKS"] = ",".join(handed_on["UV_FIND_LINKS"].split())
    kept = {name: value for name, value in environment.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return kept | handed_on | {"NO_COLOR": "1", "UV_NO_PROGRESS": "1", "PYTHONUNBUFFERED": "1"}


def _failure(command: Sequence[str], lines: Sequence[str]) -> _InstallerError:
    text = "\n".join(lines)
    cause = next((cause for cause in _CAUSES if cause.pattern.search(text)), None)
    message = cause.message if cause is not None else f"the installer failed: {' '.join(command)}"
    shown = "".join(f"\n    {line}" for line in [line for line in lines if line][-_SHOWN_LINES:])
    return _InstallerError(
        message + shown, cure=cause.cure if cause is not None else "look at its last lines above"
    )
