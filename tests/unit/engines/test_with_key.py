"""An engine's module is run with its key as an option that no command line shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

from modelkit.engines import _with_key

# Engines start their workers by multiprocessing's "spawn", which imports the main module again.
MODULE = """
import json, multiprocessing, os, sys
from pathlib import Path

def work(queue):
    queue.put("worker")

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    print(json.dumps({
        "argv": sys.argv[1:],
        "worker": queue.get(timeout=30),
        "shown": Path("/proc/self/cmdline").read_bytes().decode(),
        "variable": os.environ.get("MODELKIT_ENGINE_KEY"),
        "path": sys.path,
    }))
    process.join()
"""


def test_the_module_gets_the_key_and_its_workers_start(tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").touch()
    (tmp_path / "server" / "launch.py").write_text(MODULE)
    script = Path(_with_key.__file__)
    answer = subprocess.run(
        [sys.executable, str(script), "--api-key", "server.launch", "--port", "80"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "MODELKIT_ENGINE_KEY": "s3cret"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seen = json.loads(answer.stdout)
    assert seen["argv"] == ["--port", "80", "--api-key", "s3cret"]
    assert seen["worker"] == "worker"
    assert "s3cret" not in seen["shown"]
    assert seen["variable"] is None
    # engines/openai.py must not be taken for the library of that name.
    assert str(script.parent) not in seen["path"]
