"""Fetches as processes: killed at any moment, two at a time, interrupted, and then served with the network cut."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub_server import Content, HubServer

# The whole is done with 1 GiB by benchmarks/fetch_kill.py; the moments and what is looked at are the same.
SIZE_BYTES = 48 * 1024**2
RATE_BYTES_S = 64 * 1024**2
NUM_KILLS = 20


@pytest.fixture
def hub():
    hub = HubServer()
    weights = random.Random(7).randbytes(SIZE_BYTES)
    hub.add_repo("org/big", {"config.json": b"{}", "model.safetensors": weights})
    with hub.serving():
        yield hub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "model: {id: m}\nengine: {name: echo}\ncheckpoints: {type: huggingface, repo_id: org/big}\n"
    )
    (folder / "model.py").write_text("from modelkit import LLM\n\n\nclass M(LLM): ...\n")
    return folder


@pytest.fixture
def start(hub, folder, tmp_path):
    """Start a fetch; every one that a test leaves running is killed."""
    started = []
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "MODELKIT_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run():
        process = subprocess.Popen(
            [sys.executable, "-m", "modelkit", "fetch", "--json", str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def end(process) -> Path:
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return Path(json.loads(printed)["default"])


def verify(checkpoint, hub, tmp_path):
    repo = hub.repos["org/big"]
    for name, content in repo.commits[repo.branches["main"]].items():
        assert Content.at(checkpoint / name).sha256 == content.sha256
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


def forget(folder, tmp_path):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (folder / "modelkit.lock").unlink(missing_ok=True)


def wait_for(holds, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.timeout(400)
def test_after_a_kill_at_any_moment_the_next_fetch_ends_verified(hub, folder, start, tmp_path):
    dice = random.Random(8)
    hub.faults.rate_bytes_s = RATE_BYTES_S
    num_running = 0
    for _ in range(NUM_KILLS):
        forget(folder, tmp_path)
        hub.sent.clear()
        process = start()
        # By what has been sent, for a kill in time would miss on a busy machine; every fourth right at the beginning.
        share = dice.choice([0.0, *(dice.random() for _ in range(3))])
        wait_for(
            lambda p=process, s=share: hub.sent["model.safetensors"] >= s * SIZE_BYTES or p.poll() is not None
        )
        time.sleep(dice.uniform(0, 0.05))
        num_running += process.poll() is None
        process.kill()
        process.communicate()
        verify(end(start()), hub, tmp_path)
        # Only what was on its way is sent twice: at most a socket's buffers and a part of a second.
        assert hub.sent["model.safetensors"] < SIZE_BYTES + 16 * 1024**2
    assert num_running >= NUM_KILLS // 2


def test_two_processes_fetch_each_byte_once(hub, folder, start, tmp_path):
    hub.faults.rate_bytes_s = RATE_BYTES_S
    both = [start(), start()]
    folders = [end(process) for process in both]
    assert folders[0] == folders[1]
    verify(folders[0], hub, tmp_path)
    assert dict(hub.sent) == {"config.json": 2, "model.safetensors": SIZE_BYTES}


def test_who_waits_goes_on_when_the_other_one_dies(hub, folder, start, tmp_path):
    hub.faults.rate_bytes_s = RATE_BYTES_S / 4
    first = start()
    wait_for(lambda: hub.sent["model.safetensors"] > SIZE_BYTES // 8)
    second = start()
    line = next(line for line in second.stderr if "waiting" in line)
    assert line == "waiting for another process that fetches model.safetensors\n"
    first.kill()
    hub.faults.rate_bytes_s = None
    verify(end(second), hub, tmp_path)
    assert hub.sent["model.safetensors"] < SIZE_BYTES + 16 * 1024**2


def test_ctrl_c_ends_at_once_and_keeps_what_arrived(hub, folder, start, tmp_path):
    hub.faults.rate_bytes_s = RATE_BYTES_S / 8
    process = start()
    wait_for(lambda: hub.sent["model.safetensors"] > SIZE_BYTES // 8)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    hub.faults.rate_bytes_s = None
    hub.sent.clear()
    process = start()
    checkpoint = end(process)
    verify(checkpoint, hub, tmp_path)
    assert hub.sent["model.safetensors"] < SIZE_BYTES


def test_a_flipped_bit_is_caught(hub, folder, start, tmp_path):
    hub.faults.flips["model.safetensors"] = 1
    process = start()
    verify(end(process), hub, tmp_path)
    hub.faults.flips["model.safetensors"] = 1_000
    forget(folder, tmp_path)
    _, errors = start().communicate(timeout=60)
    assert "is not what it should be" in errors
    assert (
        not list((tmp_path / "cache" / "blobs").rglob("*/*/[0-9a-f]*"))
        or not (folder / "modelkit.lock").exists()
    )


def test_a_small_disk_is_noticed_before_anything_is_fetched(hub, folder, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "MODELKIT_CACHE_DIR": str(small / "cache"),
        "SMALL": str(small),
        "FOLDER": str(folder),
        "PYTHON": sys.executable,
    }
    script = 'mount -t tmpfs -o size=100m none "$SMALL" && exec "$PYTHON" -m modelkit fetch "$FOLDER"'
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"50.3 MB have to be fetched, and {small}/cache has 0.1 GB free, 67.1 MB of which" in done.stderr
    assert "MODELKIT_CACHE_DIR" in done.stderr
    assert hub.sent["model.safetensors"] == 0


@pytest.mark.timeout(300)
def test_a_fetched_model_is_served_where_there_is_no_network(
    hub, tiny_chat_checkpoint, start, folder, tmp_path
):
    """In a network namespace of its own, without routes: its loopback is for who calls the model, and not this machine's."""
    files = {path.name: Content.at(path) for path in tiny_chat_checkpoint.iterdir() if path.is_file()}
    small = {name: Content.of(each.path.read_bytes()) for name, each in files.items()}
    hub.add_repo("org/tiny-chat", small)
    (folder / "config.yaml").write_text(
        "model: {id: tiny-chat}\nengine: {name: transformers}\n"
        "checkpoints: {type: huggingface, repo_id: org/tiny-chat}\n"
    )
    end(start())
    hub.requests.clear()
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "MODELKIT_CACHE_DIR": str(tmp_path / "cache"),
    }
    script = """
    set -e
    ! "$PYTHON" -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)' "$HUB" 2>/dev/null
    ip link set lo up 2>/dev/null || "$PYTHON" "$LOOPBACK"
    ! "$PYTHON" -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)' "$HUB" 2>/dev/null
    "$PYTHON" -m modelkit serve "$FOLDER" --port 50077 --no-http --json > "$READY" 2> "$LOG" &
    server=$!
    for _ in $(seq 600); do [ -s "$READY" ] && break; kill -0 $server || break; sleep 0.1; done
    "$PYTHON" -m modelkit predict "What is gRPC?" --address 127.0.0.1:50077
    kill -TERM $server
    wait $server
    """
    loopback = tmp_path / "loopback.py"
    loopback.write_text(LOOPBACK)
    environment |= {
        "PYTHON": sys.executable,
        "FOLDER": str(folder),
        "LOOPBACK": str(loopback),
        "READY": str(tmp_path / "ready"),
        "LOG": str(tmp_path / "log"),
        "HUB": hub.url.rpartition(":")[2],
    }
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", "bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    assert len(done.stdout.split()) > 3
    assert hub.requests == []


# Sets the flag IFF_UP of the loopback interface, as `ip link set lo up` does: https://man7.org/linux/man-pages/man7/netdevice.7.html
LOOPBACK = """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    request = struct.pack("16sh14x", b"lo", 0)
    flags = struct.unpack("16sh14x", fcntl.ioctl(control, 0x8913, request))[1]
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))
"""
