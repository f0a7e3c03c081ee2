"""scripts/install_torch.py decides on recorded plans: one of a machine with a CPU wheel at hand, one of the index's."""

import json
from types import ModuleType

import pytest

from paths import ROOT, load_script

REPORTS = ROOT / "tests" / "data" / "pip-reports"


@pytest.fixture(scope="module")
def install_torch() -> ModuleType:
    return load_script("install_torch")


def report(name: str) -> dict:
    return json.loads((REPORTS / f"{name}.json").read_text())


def test_a_plan_without_gpu_libraries_is_followed(install_torch):
    for has_gpu in (False, True):
        assert install_torch.choose(report("cpu"), has_gpu=has_gpu).installer == "pip"


def test_cuda_is_never_pulled_without_a_gpu(install_torch):
    choice = install_torch.choose(report("cuda"), has_gpu=False)
    assert choice.installer == "uv"
    assert choice.reason == "no NVIDIA GPU here, and pip's build would bring 19 GPU libraries"


def test_a_gpu_gets_the_build_made_for_it(install_torch):
    assert install_torch.choose(report("cuda"), has_gpu=True).installer == "pip"


def test_gpu_libraries_are_told_by_name(install_torch):
    assert install_torch.gpu_packages(report("cpu")) == []
    assert {"triton", "cuda-toolkit", "nvidia-cudnn-cu13"} <= set(install_torch.gpu_packages(report("cuda")))


@pytest.mark.parametrize(
    ("version", "fits"), [("2.13.0+cpu", True), ("2.6.0", True), ("2.5.1", False), ("3.0.0a0", True)]
)
def test_old_versions_do_not_fit(install_torch, version, fits):
    assert install_torch.fits(version) is fits


def test_the_oldest_version_is_the_one_that_pyproject_names(install_torch):
    assert f'"torch>={".".join(map(str, install_torch.OLDEST))}"' in (ROOT / "pyproject.toml").read_text()
