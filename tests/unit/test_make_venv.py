"""scripts/make_venv.sh on machines where something is missing, played by stand-ins for their Python."""

import subprocess
from pathlib import Path

from paths import ROOT

OLD = """case "$*" in
--version) echo Python 3.9.2;;
*version_info*) exit 1;;
esac"""
WITHOUT_VENV = """case "$*" in
--version) echo Python 3.12.3;;
*ensurepip*) echo "No module named ensurepip" >&2; exit 1;;
esac"""


def stand_in(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def make_venv(tmp_path: Path, *python: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", ROOT / "scripts" / "make_venv.sh", tmp_path / "venv", *python]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": path})


def test_a_python_that_is_too_old(tmp_path):
    python = stand_in(tmp_path / "python3", OLD)
    refused = make_venv(tmp_path, str(python))
    assert refused.returncode == 1
    assert refused.stderr == (
        f"make: modelkit needs Python 3.11 or newer; '{python}' is Python 3.9.2.\n"
        "make: Name another one: make PYTHON=/path/to/python3\n"
    )
    assert not (tmp_path / "venv").exists()


def test_no_python_that_is_new_enough(tmp_path):
    stand_in(tmp_path / "python3", OLD)
    refused = make_venv(tmp_path, path=str(tmp_path))
    assert refused.returncode == 1
    assert "modelkit needs Python 3.11 or newer, and found Python 3.9.2." in refused.stderr
    assert "sudo apt-get install python3 python3-venv" in refused.stderr


def test_no_python_at_all(tmp_path):
    refused = make_venv(tmp_path, path=str(tmp_path))
    assert refused.returncode == 1
    assert "modelkit needs Python 3.11 or newer, and found none." in refused.stderr


def test_a_newer_python_beside_an_old_one_is_found(tmp_path):
    stand_in(tmp_path / "python3", OLD)
    stand_in(tmp_path / "python3.12", WITHOUT_VENV)
    assert "python3.12 cannot make virtual environments" in make_venv(tmp_path, path=str(tmp_path)).stderr


def test_a_python_without_venv(tmp_path):
    python = stand_in(tmp_path / "python3", WITHOUT_VENV)
    refused = make_venv(tmp_path, str(python))
    assert refused.returncode == 1
    assert "Debian, Ubuntu: sudo apt-get install python3-venv" in refused.stderr
