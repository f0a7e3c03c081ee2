"""Install PyTorch for this machine: never gigabytes of CUDA libraries where no GPU is there to use them.

The package index's own build of torch for Linux on x86-64 brings CUDA along. So pip is asked first what it would
install (a dry run); a plan without GPU libraries is followed, and so is any plan on a machine with an NVIDIA GPU.
Otherwise uv installs torch's CPU build: it knows where that one lies.

    python scripts/install_torch.py
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

REQUIREMENT = "torch==2.13.0"
# What the `transformers` extra in pyproject.toml takes.
OLDEST = (2, 6)
GPU_PREFIXES = ("nvidia-", "cuda-", "triton", "pytorch-triton")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which installer to use, and the reason, for the person who watches."""

    installer: Literal["pip", "uv"]
    reason: str


def fits(torch_version: str) -> bool:
    """Tell whether an installed version of torch, such as "2.13.0+cpu", is new enough."""
    numbers = torch_version.partition("+")[0].split(".")
    return (int(numbers[0]), int(numbers[1])) >= OLDEST


def gpu_packages(report: Mapping[str, Any]) -> list[str]:
    """Return the names of the GPU libraries in pip's installation report, sorted."""
    names = [item["metadata"]["name"].lower().replace("_", "-") for item in report["install"]]
    return sorted(name for name in names if name.startswith(GPU_PREFIXES))


def choose(report: Mapping[str, Any], *, has_gpu: bool) -> Choice:
    """Decide how to install torch from pip's plan and from whether the machine has an NVIDIA GPU."""
    unwanted = gpu_packages(report)
    if not unwanted:
        return Choice("pip", "the build that pip finds brings no GPU libraries")
    if has_gpu:
        return Choice("pip", "this machine has an NVIDIA GPU")
    return Choice("uv", f"no NVIDIA GPU here, and pip's build would bring {len(unwanted)} GPU libraries")


def usable_version() -> str | None:
    """Return the version of torch in this environment, None where it is absent, broken or too old."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return None
    trial = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False)
    return installed if trial.returncode == 0 and fits(installed) else None


def machine_has_gpu() -> bool:
    """Tell whether NVIDIA's driver lists a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU " in listing.stdout


def pip_plan() -> Mapping[str, Any]:
    """Ask pip what it would install; nothing is changed. Raises CalledProcessError when pip finds no way."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", REQUIREMENT]
    plan: Mapping[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return plan


def install(choice: Choice) -> None:
    """Carry out the choice. Raises CalledProcessError when the installer fails."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if choice.installer == "pip":
        subprocess.run([*pip, REQUIREMENT], check=True)
        return
    subprocess.run([*pip, "uv"], check=True)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run([*uv, "--torch-backend=cpu", REQUIREMENT], check=True)


def main() -> int:
    """Run the command line; returns the exit code."""
    present = usable_version()
    if present is not None:
        print(f"torch {present} is already installed")
        return 0
    try:
        choice = choose(pip_plan(), has_gpu=machine_has_gpu())
        print(f"installing {REQUIREMENT} with {choice.installer}: {choice.reason}", flush=True)
        install(choice)
    except subprocess.CalledProcessError as error:
        print(f"could not install {REQUIREMENT}; the command that failed: {error}", file=sys.stderr)
        return 1
    print(f"installed torch {usable_version()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
