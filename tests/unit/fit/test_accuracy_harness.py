"""benchmarks/fit_accuracy.py reads what engines log. The lines are put together from the formats in their sources:
vLLM 0.26 and 0.32, SGLang 0.5.16, LMDeploy 0.18; the program itself is run on a machine with a GPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paths import ROOT, load_file

VLLM = """
(EngineCore pid=5) INFO 11-27 02:01:06 [gpu_model_runner.py:5149] Model loading took 14.25 GiB memory and 3.213000 seconds
(EngineCore pid=5) DEBUG 11-27 02:01:36 [gpu_worker.py:540] Initial free memory: 78.62 GiB; Requested memory: 0.920000 (util), 72.84 GiB
(EngineCore pid=5) DEBUG 11-27 02:01:36 [gpu_worker.py:554] Memory profiling takes 12.21 seconds. Total non KV cache memory: 16.65GiB; \
torch peak memory increase: 2.13GiB; non-torch forward increase memory: 0.27GiB; weights memory: 14.25GiB.
(EngineCore pid=5) INFO 11-27 02:01:36 [gpu_worker.py:560] Available KV cache memory: 56.19 GiB
(EngineCore pid=5) INFO 11-27 02:01:36 [kv_cache_utils.py:2178] GPU KV cache size: 1,052,128 tokens
(EngineCore pid=5) INFO 11-27 02:01:36 [kv_cache_utils.py:2179] Maximum concurrency for 8,192 tokens per request: 128.43x
(EngineCore pid=5) INFO 11-27 02:01:49 [model_runner.py:748] Graph capturing finished in 12 secs, took 0.58 GiB
"""
SGLANG = """
[2026-11-27 02:00:00] server_args=ServerArgs(model_path='/m', mem_fraction_static=0.83, max_running_requests=None)
[2026-11-27 02:00:09] Load weight begin. avail mem=78.61 GB
[2026-11-27 02:00:19] Load weight end. elapsed=9.90 s, type=Qwen2ForCausalLM, avail mem=64.22 GB, mem usage=14.39 GB.
[2026-11-27 02:00:20] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 951234, K size: 25.40 GB, V size: 25.40 GB
[2026-11-27 02:00:29] Capture target decode CUDA graph end. elapsed=8.90 s, mem usage=0.52 GB, avail mem=12.40 GB.
[2026-11-27 02:00:31] max_total_num_tokens=951234, chunked_prefill_size=8192, max_prefill_tokens=16384, \
max_running_requests=3715, context_len=8192, available_gpu_mem=12.30 GB
"""
SGLANG_WINDOWS = """
KV Cache is allocated. dtype: torch.bfloat16, #tokens: 100, K size: 4.00 GB, V size: 4.00 GB
KV Cache is allocated. dtype: torch.bfloat16, #tokens: 125, K size: 5.00 GB, V size: 5.00 GB
SWAKVPool mem usage: 18.00 GB, swa size: 100, full size: 125
max_total_num_tokens=125, chunked_prefill_size=8192
"""
TURBOMIND = "[TM][INFO] Object cache budget: 51200.00 MB from free 64000.00 MB and ratio 0.800\n"
PYTORCH = """
2026-11-27 02:00:00,000 - lmdeploy - DEBUG - base.py:339 - minimal free gpu memory: 65536 mb
2026-11-27 02:00:00,000 - lmdeploy - DEBUG - base.py:389 - estimated max runtime memory: 2970 mb
2026-11-27 02:00:00,000 - lmdeploy - INFO - base.py:439 - Building CacheEngine with config:
CacheConfig(max_batches=1024, block_size=64, num_cpu_blocks=0, num_gpu_blocks=14298, kernel_block_size=64, window_size=-1).
"""


@pytest.fixture(scope="module")
def harness():
    return load_file(ROOT / "benchmarks" / "fit_accuracy.py")


def test_vllm(harness):
    found = harness.read_vllm(VLLM)
    assert (found.weights_gib, found.kv_gib, found.kv_tokens) == (14.25, 56.19, 1_052_128)
    assert (found.activation_gib, found.graphs_gib) == (2.13, 0.58)
    assert found.details["non_torch_gib"] == 0.27
    assert found.details["initial_free_gib"] == 78.62
    assert found.details["requested_gib"] == 72.84
    assert found.details["concurrency"] == 128.43
    newer = harness.read_vllm(
        "CPU KV cache size: 32,768 tokens, Maximum concurrency for 1,024 tokens per request: 32.00x"
    )
    assert newer.kv_tokens == 32_768


def test_sglang(harness):
    found = harness.read_sglang(SGLANG)
    assert (found.weights_gib, found.kv_gib, found.kv_tokens) == (14.39, 50.8, 951_234)
    assert found.graphs_gib == 0.52
    assert found.details["mem_fraction_static"] == 0.83
    windows = harness.read_sglang(SGLANG_WINDOWS)
    assert (windows.kv_gib, windows.kv_tokens) == (18.0, 125)


def test_lmdeploy(harness):
    turbomind = harness.read_turbomind(TURBOMIND)
    assert (turbomind.kv_gib, turbomind.free_after_weights_gib) == (50.0, 62.5)
    pytorch = harness.read_pytorch(PYTORCH)
    assert (pytorch.kv_tokens, pytorch.free_after_weights_gib) == (14298 * 64, 64.0)
    assert pytorch.activation_gib == pytest.approx(2.9, abs=0.01)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "turbomind", "pytorch"])
def test_a_log_that_says_nothing_is_not_enough(harness, engine):
    assert (
        not harness.READINGS[engine].read("Traceback (most recent call last):\nOutOfMemoryError\n").is_enough
    )


def test_each_start_is_waited_for_until_its_last_line(harness):
    for engine, log in {"vllm": VLLM, "sglang": SGLANG, "turbomind": TURBOMIND, "pytorch": PYTORCH}.items():
        assert harness.re.search(harness.READINGS[engine].finished, log), engine


def test_errors_are_relative_to_what_was_measured(harness):
    predicted = {"weights_gib": 14.19, "kv_gib": 55.0, "kv_tokens": 1_000_000, "usable_gib": 79.0,
                 "free_after_weights_gib": 64.0}  # fmt: skip
    found = harness.errors(predicted, harness.read_vllm(VLLM))
    assert found == {"weights_gib": -0.0042, "kv_gib": -0.0212, "kv_tokens": -0.0495}
    assert harness.errors(predicted, harness.read_turbomind(TURBOMIND))["weights_and_context"] == round(
        15 / 16.5 - 1, 4
    )


def test_an_engine_and_its_children_are_ended(harness, tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('GPU KV cache size: 10 tokens', child.pid, flush=True)\n"
        "print('Graph capturing finished', flush=True)\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    assert harness.start_and_read("vllm", [sys.executable, "-c", code], {}, log, 20) == "read"
    child = int(log.read_text().split()[6])
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid):
    """A process that has ended and that nobody has asked after is a zombie: its state is Z."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("code", "timeout_s", "ended"),
    [("raise SystemExit(3)", 60, "exit code 3"), ("import time; time.sleep(600)", 1, "over 1 s")],
)
def test_a_start_that_fails_or_hangs_is_told(harness, tmp_path, code, timeout_s, ended):
    command = [sys.executable, "-c", code]
    assert harness.start_and_read("vllm", command, {}, tmp_path / "log", timeout_s) == ended


# The program's own end, with an engine that never says what it measured in place of a start on a checkpoint.
PROGRAM = """
import sys
from pathlib import Path
import fit_accuracy as harness
engine = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
harness.prepare = lambda *_: None
harness.compare = lambda *_: harness.start_and_read("vllm", [sys.executable, "-c", engine], {}, Path("log"), 600)
harness.main()
"""


def test_a_run_that_is_ended_leaves_no_engine_and_no_checkpoint(tmp_path):
    (tmp_path / "tmp").mkdir()
    options = ["--engine", "vllm=/bin/false", "--architecture", "qwen2.5-0.5b", "--json", "fit.json"]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *options],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path / "tmp")},
    )
    log = tmp_path / "log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engine = int(log.read_text())
    assert list((tmp_path / "tmp").iterdir())
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 128 + signal.SIGTERM
    assert not is_running(engine)
    assert not list((tmp_path / "tmp").iterdir())
