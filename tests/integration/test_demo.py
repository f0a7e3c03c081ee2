"""scripts/demo.py as `make demo` runs it: the right answer, how fast it came, and nothing left, whatever happens."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paths import ROOT

pytestmark = [pytest.mark.checkpoint, pytest.mark.timeout(240)]


def start(*arguments: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "scripts" / "demo.py", *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_the_demo_answers_and_leaves_nothing(tiny_chat_checkpoint):
    demo = start()
    output, errors = demo.communicate()
    assert demo.returncode == 0, errors
    assert "Paris" in output
    assert re.search(r"TTFT", output + errors)
    assert re.search(r"tokens/s", output + errors)
    assert output.rstrip().endswith("Stopped; nothing is left running")


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tiny_chat_checkpoint, sent):
    demo = start(start_new_session=True)
    deadline = time.monotonic() + 60
    while not (servers := children_of(demo.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    demo.send_signal(sent)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "interrupted" in errors
    for pid in servers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_demo_that_fails_shows_the_log_of_the_server(tiny_chat_checkpoint, tmp_path):
    broken = tmp_path / "modelkit"
    broken.write_text("#!/bin/sh\necho the weights are gone\nexit 3\n")
    broken.chmod(0o755)
    program = (
        f"import demo, pathlib; demo.MODELKIT = pathlib.Path({str(broken)!r}); raise SystemExit(demo.main())"
    )
    demo = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True, check=False
    )
    assert demo.returncode == 1
    assert "the weights are gone" in demo.stderr
    assert "demo failed: the server ended with exit code 3 before it was ready" in demo.stderr
