"""A hub on loopback, model folders to fetch for, and the command line in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import HubServer
from modelkit.checkpoints.cache import Cache

WEIGHTS = bytes(range(256)) * 400  # 102,400 bytes


@pytest.fixture
def hub():
    hub = HubServer()
    hub.add_repo(
        "org/tiny",
        {
            "config.json": b"{}",
            "model.safetensors": WEIGHTS,
            "pytorch_model.bin": b"the same weights, in an older format",
            "original/consolidated.pth": b"and once more",
            "sub/empty.txt": b"",
        },
    )
    with hub.serving():
        yield hub


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def write_folder(tmp_path):
    """Write a model folder with these keys of `checkpoints`, and return it."""

    def write(checkpoints: str, name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(
            f"model: {{id: m}}\nengine: {{name: echo}}\ncheckpoints: {{{checkpoints}}}\n"
        )
        (folder / "model.py").write_text("from modelkit import LLM\n\n\nclass M(LLM): ...\n")
        return folder

    return write


@pytest.fixture
def modelkit(hub, tmp_path):
    """Run the command line against the hub; the Hub's library reads its settings as it is imported."""

    def run(*arguments, environment=None, check=True):
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "MODELKIT_CACHE_DIR": str(tmp_path / "cache"),
        }
        result = subprocess.run(
            [sys.executable, "-m", "modelkit", *map(str, arguments)],
            env=os.environ | settings | (environment or {}),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    return run
