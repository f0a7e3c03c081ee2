"""The installers, run for real, of programs that only say that they are uv or pip."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from modelkit.engines import installers
from modelkit.engines.catalog import Build
from modelkit.engines.installers import Pip, Progress, Uv, choose_installer, gpu_packages
from modelkit.errors import EngineError

BUILD = Build(version="1.2", distribution="engine-cpu", without=("triton", "torchaudio"))


class Script:
    """A program that notes its arguments and prints what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tool"
        self.log = folder / "log"
        self.answer()

    def answer(self, dry_run: str = "", code: int = 0, text: str = "done") -> None:
        self.path.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            f"with open({str(self.log)!r}, 'a') as log: print(json.dumps(sys.argv[1:]), file=log)\n"
            f"if '--dry-run' in sys.argv: print({dry_run!r}); sys.exit()\n"
            f"print({text!r}); sys.exit({code})\n"
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


@pytest.fixture
def python(tmp_path):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    return tmp_path / "env" / "bin" / "python"


def test_gpu_libraries_are_told_by_name():
    names = ["torch", "nvidia_cublas", "triton", "cuda-toolkit", "Triton-Windows", "numpy", "vllm"]
    assert gpu_packages(names) == ["cuda-toolkit", "nvidia-cublas", "triton", "triton-windows"]


@pytest.mark.parametrize(
    ("hardware", "plan", "backend"),
    [
        ("cpu", " + torch==2.13.0+cpu\n + engine-cpu==1.2", []),
        ("cpu", " + torch==2.13.0\n + nvidia-cublas==13.1", ["--torch-backend=cpu"]),
        ("gpu", " + torch==2.13.0\n + nvidia-cublas==13.1", []),
    ],
)
def test_uv_takes_torch_for_cpus_where_the_plan_has_gpu_libraries(script, python, hardware, plan, backend):
    script.answer(plan)
    Uv([str(script.path)]).install(python, BUILD, hardware, Progress())
    *dry_runs, last = script.calls
    overrides = python.parent.parent / "overrides.txt"
    wanted = ["pip", "install", "--python", str(python), "--override", str(overrides), "engine-cpu==1.2"]
    assert last == wanted + backend
    assert dry_runs == ([[*wanted, "--dry-run"]] if hardware == "cpu" else [])
    assert overrides.read_text() == (
        "triton ; sys_platform == 'never'\ntorchaudio ; sys_platform == 'never'\n"
    )


def test_the_output_is_heard_and_a_failure_ends_with_it(script, python):
    script.answer(code=2, text="first\n\nlast")
    heard: list[str] = []
    stages: list[str] = []
    with pytest.raises(EngineError) as caught:
        Uv([str(script.path)]).install(python, BUILD, "gpu", Progress(stages.append, heard.append))
    assert heard == ["first", "", "last"]
    assert stages == ["choosing versions", "installing engine-cpu 1.2 with uv"]
    assert caught.value.message.startswith(f"the installer failed: {script.path} pip install")
    assert caught.value.message.endswith("\n    first\n    last")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("error: dns error: failed to lookup address information", "the package index cannot be reached"),
        (
            "Retrying after 'NewConnectionError(...)'\nERROR: No matching distribution found for vllm",
            "the package index cannot be reached",
        ),
        ("ERROR: No matching distribution found for vllm==9", "there is no such version for Python"),
        ("hint: Packages were unavailable because the network was disabled.", "cannot be reached"),
        ("  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of vllm", "no such"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("The virtual environment was not created successfully because ensurepip is not available", "venv"),
    ],
)  # fmt: skip
def test_well_known_failures_say_what_to_do(script, python, text, message):
    script.answer(code=1, text=text)
    with pytest.raises(EngineError) as caught:
        Uv([str(script.path)]).install(python, BUILD, "gpu", Progress())
    assert message in caught.value.message + caught.value.cure
    assert caught.value.cure


def test_an_installer_ends_with_the_person_who_waits(script, tmp_path):
    pid_path = tmp_path / "pid"
    script.path.write_text(f"#!/bin/sh\necho $$ > {pid_path}\necho started\nexec sleep 600\n")

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Uv([str(script.path)]).make_environment(tmp_path / "env", Progress(on_output=interrupt))
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_path.read_text()), 0)


def test_what_pip_is_told_uv_is_told_too(monkeypatch):
    given = {
        "PIP_INDEX_URL": "http://mirror/simple",
        "PIP_FIND_LINKS": "/wheels /more",
        "UV_INDEX": "http://mine",
        "PIP_EXTRA_INDEX_URL": "http://other",
        "PYTHONPATH": "/mine",
        "HOME": "/home/me",
    }
    environment = installers._environment(given)
    assert environment["UV_DEFAULT_INDEX"] == "http://mirror/simple"
    assert environment["UV_FIND_LINKS"] == "/wheels,/more"
    assert environment["UV_INDEX"] == "http://mine"
    assert environment["HOME"] == "/home/me"
    assert "PYTHONPATH" not in environment


def test_uv_is_chosen_where_it_is(script, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    script.path.rename(tmp_path / "bin" / "uv")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    chosen = choose_installer()
    assert isinstance(chosen, Uv)
    assert chosen._command == (str(tmp_path / "bin" / "uv"),)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installers, "find_spec", lambda name: object())
    assert choose_installer()._command == (sys.executable, "-m", "uv")
    monkeypatch.setattr(installers, "find_spec", lambda name: None)
    assert isinstance(choose_installer(), Pip)


# ---------------------------------------------------------------------------------------------------------------- pip


def pip(python: Path, plan: dict[str, str] | None) -> Path:
    """Put a Python in place whose pip knows of `plan` only, and whose uv does whatever it is asked."""
    log = python.parent / "log"
    items = [{"metadata": {"name": name, "version": version}} for name, version in (plan or {}).items()]
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        f"with open({str(log)!r}, 'a') as log: print(json.dumps(sys.argv[1:]), file=log)\n"
        "if '--report' in sys.argv:\n"
        f"    if {plan is None!r}: sys.exit('ERROR: No matching distribution found for torch==2.13.0+cpu')\n"
        "    path = sys.argv[sys.argv.index('--report') + 1]\n"
        f"    open(path, 'w').write(json.dumps({{'install': {items!r}}}))\n"
    )
    python.chmod(0o755)
    return log


def commands(log: Path) -> list[str]:
    return [" ".join(json.loads(line)) for line in log.read_text().splitlines()]


def test_pip_installs_the_plan_without_what_is_left_out(python):
    log = pip(python, {"engine-cpu": "1.2", "torch": "2.13.0+cpu", "Triton": "3.9", "torchaudio": "2"})
    stages: list[str] = []
    Pip().install(python, BUILD, "cpu", Progress(stages.append))
    locked = python.parent.parent / "requirements.txt"
    assert locked.read_text() == "engine-cpu==1.2\ntorch==2.13.0+cpu\n"
    assert commands(log)[-1].endswith(f"--no-deps --requirement {locked}")
    assert stages == ["choosing versions", "installing engine-cpu 1.2: 2 packages with pip"]


@pytest.mark.parametrize("plan", [None, {"engine-cpu": "1.2", "torch": "2.13.0", "nvidia-cublas": "13.1"}])
def test_pip_never_brings_gpu_libraries_to_a_machine_without_a_gpu(python, plan):
    log = pip(python, plan)
    Pip().install(python, BUILD, "cpu", Progress())
    _, fetch_uv, _, last = commands(log)
    assert fetch_uv.startswith("-m pip install")
    assert fetch_uv.endswith(" uv")
    assert last.startswith("-m uv pip install")
    assert [line for line in commands(log) if "--requirement" in line] == []


def test_pip_brings_them_to_a_machine_with_one(python):
    pip(python, {"engine": "1.2", "torch": "2.13.0", "nvidia-cublas": "13.1"})
    Pip().install(python, BUILD, "gpu", Progress())
    assert "nvidia-cublas==13.1" in (python.parent.parent / "requirements.txt").read_text()


def test_a_version_that_pip_does_not_find_is_an_error_where_there_is_a_gpu(python):
    pip(python, None)
    with pytest.raises(EngineError, match="there is no such version"):
        Pip().install(python, BUILD, "gpu", Progress())
