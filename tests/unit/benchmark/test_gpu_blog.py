"""benchmarks/gpu_blog.py ends the bench that it runs; what is measured takes a machine with a GPU."""

import os
import signal
import subprocess
import sys
import time

import pytest

# A bench that says that it runs, and ends on SIGINT, as `modelkit bench` does.
BENCH = """#!{python}
import signal, sys, time
from pathlib import Path
def interrupted(*_):
    Path("interrupted").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, interrupted)
Path("running").touch()
time.sleep(600)
"""
PROGRAM = """
import sys
import gpu_blog
sys.executable = {bench!r}
gpu_blog.main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_program_that_is_ended_interrupts_its_bench(number, code, tmp_path):
    bench = tmp_path / "bench.py"
    bench.write_text(BENCH.format(python=sys.executable))
    bench.chmod(0o755)
    options = ["--back-end", "vllm", "--architectures", "tiny", "--output", "out"]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(bench=str(bench)), *options],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "running").exists():
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    program.send_signal(number)
    assert program.wait(60) == code
    assert (tmp_path / "interrupted").exists()
