"""The dependencies of an image installed without running anything of it: wheels for its platform and Python, unpacked here.

pip judges markers such as `python_version < "3.12"` by the Python that runs it, whatever it installs for. Where that is
another version than the image's, uv does it, which judges by the target.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from modelkit.engines.installers import gpu_packages
from modelkit.errors import BuildError
from modelkit.image.builders.base import Progress
from modelkit.image.builders.causes import pip_failure
from modelkit.image.plan import VENV_DIR, ImagePlan, sdk_requirement
from modelkit.image.requirements import REQUIREMENTS
from modelkit.image.secrets import build_secrets
from modelkit.image.tool import guarded

__all__ = ["install_site_packages"]

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# Wheels for the C library of Debian 10 and everything since; an image's own may be newer, which does no harm.
_NEWEST_GLIBC = 28
_OLDEST_GLIBC = {"amd64": 5, "arm64": 17}
_SHOWN_LINES = 12
# What an installer notes about where and by whom: it names this machine, and the same wheels would differ.
_NOTES = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")


@contextmanager
def install_site_packages(
    plan: ImagePlan, wheel: Path | None, python_version: str, platform: str, progress: Progress
) -> Iterator[Path]:
    """Yield a folder with everything that the plan installs, as site-packages has it; it is gone afterwards.

    Raises BuildError: what cannot be resolved, with its line; a package that has no wheel for the platform.
    """
    with tempfile.TemporaryDirectory(prefix="modelkit-build-") as scratch:
        given, target = Path(scratch) / "given", Path(scratch) / "site-packages"
        given.mkdir()
        (given / REQUIREMENTS).write_text(plan.requirements.text, encoding="utf-8")
        for file in plan.requirements.files:
            (given / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, given / file.name)
        if wheel is not None:
            shutil.copyfile(wheel, given / wheel.name)
        wanted = ["--requirement", REQUIREMENTS, sdk_requirement(plan, wheel)]
        progress.on_stage("installing dependencies")
        command = _command(python_version, platform, target)
        _run(plan, [*command, *wanted], given, platform, progress)
        if plan.wants_cpu_torch and gpu_packages(_distributions(target)):
            # As for an engine's environment: uv knows where torch without CUDA is.
            shutil.rmtree(target)
            progress.on_stage("installing dependencies without CUDA")
            command = [*_uv_command(python_version, platform, target), "--torch-backend", "cpu"]
            _run(plan, [*command, *wanted], given, platform, progress)
        _clean(target)
        if _is_this_python(python_version):
            progress.on_stage("compiling")
            _compile(target, f"{VENV_DIR}/lib/python{python_version}/site-packages")
        yield target


def _command(python_version: str, platform: str, target: Path) -> list[str]:
    """Return the installer's command for an image's Python and platform."""
    machine = platform.split("/")[1]
    if machine not in _MACHINES:
        raise BuildError(f"the builder 'oci' knows no wheels for {platform}", cure="use `--builder docker`")
    if _is_this_python(python_version) and find_spec("pip"):
        tags = [
            f"manylinux_2_{glibc}_{_MACHINES[machine]}"
            for glibc in range(_NEWEST_GLIBC, _OLDEST_GLIBC[machine] - 1, -1)
        ]
        older = [f"manylinux2014_{_MACHINES[machine]}"]
        older += ["manylinux2010_x86_64", "manylinux1_x86_64"] if machine == "amd64" else []
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        command += ["--no-compile", "--only-binary=:all:", "--implementation", "cp", "--target", str(target)]
        command += ["--python-version", python_version]
        return command + [part for tag in [*tags, *older] for part in ("--platform", tag)]
    return _uv_command(python_version, platform, target)


def _uv_command(python_version: str, platform: str, target: Path) -> list[str]:
    on_path = shutil.which("uv")
    if on_path is None and not find_spec("uv"):
        raise BuildError(
            f"for Python {python_version} on {platform}, pip on this machine would choose the wrong packages",
            cure="pip install uv, which can choose for another machine",
        )
    uv = [on_path] if on_path is not None else [sys.executable, "-m", "uv"]
    return [
        *(*uv, "pip", "install", "--no-build", "--link-mode", "copy", "--target", str(target)),
        *("--python-version", python_version),
        *("--python-platform", f"{_MACHINES[platform.split('/')[1]]}-manylinux_2_{_NEWEST_GLIBC}"),
    ]


def _is_this_python(version: str) -> bool:
    return version == f"{sys.version_info.major}.{sys.version_info.minor}"


def _compile(target: Path, place: str) -> None:
    """Compile to byte code, which halves the start of a container, whose user could not write any.

    One process, in order, with one hash seed, by content and not by time: then it is the same bytes each time.
    """
    command = [sys.executable, "-S", "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(target), "-p", place, str(target)]
    # Files that are no Python of this version, as some packages have for their own purposes, are left as they are.
    subprocess.run(command, check=False, capture_output=True, env={"PYTHONHASHSEED": "0"})  # noqa: S603 - made here


def _distributions(target: Path) -> list[str]:
    return [info.name.partition("-")[0] for info in target.glob("*.dist-info")]


def _run(plan: ImagePlan, command: list[str], folder: Path, platform: str, progress: Progress) -> None:
    """Run an installer to its end. Raises BuildError where it fails."""
    lines: list[str] = []
    secrets = build_secrets()
    with guarded(command, folder=folder) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(secrets.hide(line.rstrip()))
                progress.on_output(lines[-1])
            process.wait()
        finally:
            process.stdin.close()  # by which the guard ends what still runs
    if process.returncode != 0:
        raise _failure(plan, lines, platform)


def _failure(plan: ImagePlan, lines: list[str], platform: str) -> BuildError:
    known = pip_failure(plan, lines)
    if known is not None:
        return BuildError(
            known.message,
            cure=f"{known.cure}; a package without a wheel for {platform} needs `--builder docker`",
        )
    shown = "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])
    return BuildError(
        f"the dependencies could not be installed{shown}",
        cure="look at its last lines above; a package that has to be compiled needs `--builder docker`",
    )


def _clean(target: Path) -> None:
    """Take away what would differ from machine to machine: notes, scripts that name this Python, compiled files."""
    shutil.rmtree(target / "bin", ignore_errors=True)
    (target / ".lock").unlink(missing_ok=True)
    for cache in list(target.rglob("__pycache__")):
        shutil.rmtree(cache)
    for info in target.glob("*.dist-info"):
        for name in _NOTES:
            (info / name).unlink(missing_ok=True)
        record = info / "RECORD"
        if record.is_file():
            kept = [
                line
                for line in record.read_text(encoding="utf-8").splitlines()
                if not line.startswith(("../", "bin/"))
                and line.partition(",")[0].rpartition("/")[2] not in _NOTES
                and "__pycache__/" not in line
            ]
            record.write_text("".join(f"{line}\n" for line in sorted(kept)), encoding="utf-8")
