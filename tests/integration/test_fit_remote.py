"""Whether a model fits is known before it is fetched: a few kilobytes of headers are read over HTTP, and nothing else."""

import json
import os
import subprocess
import sys

import pytest

from hub_server import Content, HubServer
from modelkit.fit import read_architecture
from modelkit.fit.weights import expected_tensors
from unit.fit import checkpoints as ck

HEADERS_BYTES = 200_000


# More than any machine that runs this has; on disk it is a hole as well.
HUGE = ck.QWEN2_7B | {"intermediate_size": 200 * ck.QWEN2_7B["intermediate_size"]}


@pytest.fixture
def hub(tmp_path):
    """A hub with Qwen2-7B's config.json and its 14 GiB of weights, all of them a hole in a file; and a huge model."""
    hub = HubServer()
    for name, config in (("big", ck.QWEN2_7B), ("huge", HUGE)):
        weights = tmp_path / f"{name}.safetensors"
        tensors = {t.name: (t.dtype, t.shape) for t in expected_tensors(read_architecture(config))}
        ck.write_safetensors(weights, tensors)
        content = Content(weights.stat().st_size, "0" * 64, "0" * 40, path=weights)
        files = {"config.json": json.dumps(config).encode(), "model.safetensors": content}
        hub.add_repo(f"org/{name}", files)
    with hub.serving():
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "model: {id: big}\nengine: {name: transformers, max_model_len: 4096}\n"
        "checkpoints: {type: huggingface, repo_id: org/big}\n"
    )
    (folder / "model.py").write_text("from modelkit import LLM\n\n\nclass Big(LLM): ...\n")

    def run(verb, *arguments, offline="0"):
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": offline,
            "MODELKIT_CACHE_DIR": str(tmp_path / "cache"),
        }
        command = [sys.executable, "-m", "modelkit", verb, str(folder), *arguments]
        return subprocess.run(
            command, env=os.environ | settings, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_fit_reads_the_headers_of_a_checkpoint_that_is_not_here(hub, run):
    fits = run("fit", "--gpu", "H200", "--json")
    assert fits.returncode == 0, fits.stderr
    assert json.loads(fits.stdout)["largest_concurrency"] > 1
    assert run("fit", "--memory", "12GiB").returncode == 1
    assert 0 < sum(hub.sent.values()) < HEADERS_BYTES


def test_without_the_network_it_says_what_is_missing(hub, run):
    result = run("fit", "--gpu", "H200", offline="1")
    assert result.returncode == 1
    assert "org/big is not on this machine" in result.stderr
    assert "modelkit fetch" in result.stderr
    assert not hub.requests


def test_serve_refuses_what_cannot_fit_before_it_is_fetched(hub, run):
    result = run("serve", "--port", "0", "--set", "checkpoints.repo_id=org/huge")
    assert result.returncode == 1
    assert "big does not fit: the weights alone" in result.stderr
    assert "--skip-fit" in result.stderr
    assert sum(hub.sent.values()) < HEADERS_BYTES
