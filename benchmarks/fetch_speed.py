"""Fetching a checkpoint beside huggingface_hub's snapshot_download, from the same hub on loopback, in one run.

    python benchmarks/fetch_speed.py [--size-mib 1024] [--files 2] [--runs 3] [--json FILE]

Each side is a process of its own with an empty cache; wall seconds, CPU seconds and peak memory are its own, the hub's are
not counted. What the two do is not the same: modelkit also computes every file's sha256 and brings it to the disk (fsync)
before it counts. `hashing alone` is what the sha256 costs by itself, `+ sync` what bringing the files to the disk does.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SNAPSHOT = "from huggingface_hub import snapshot_download; snapshot_download('org/big')"
SNAPSHOT_SYNC = f"{SNAPSHOT}; import os; os.sync()"
HASHING = "import hashlib, sys; [hashlib.file_digest(open(name, 'rb'), 'sha256') for name in sys.argv[1:]]"


def make_files(folder: Path, num: int, size_mib: int) -> list[Path]:
    files = [folder / f"model-{index:05}.safetensors" for index in range(num)]
    for file in files:
        with file.open("wb") as stream:
            for _ in range(size_mib // num):
                stream.write(os.urandom(1024**2))
    return files


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "model: {id: big}\nengine: {name: echo}\ncheckpoints: {type: huggingface, repo_id: org/big}\n"
    )
    (folder / "model.py").write_text("from modelkit import LLM\n\n\nclass Big(LLM): ...\n")
    return folder


@contextmanager
def serving(files: list[Path], *options: str):
    """Run the hub in a process of its own; yields its URL and the process."""
    command = [sys.executable, str(ROOT / "tests" / "hub_server.py"), *options]
    for file in files:
        command += ["--file", str(file)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip(), server
    finally:
        server.stdin.close()
        server.wait(30)
        server.stdout.close()


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        sys.exit(f"{command[0]} failed:\n{errors.decode()}")
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelkit-bench-") as temporary:
        work = Path(temporary)
        files = make_files(work, options.files, options.size_mib)
        model = make_folder(work / "model")
        modelkit = [str(Path(sys.executable).parent / "modelkit"), "fetch", "-q", str(model)]
        commands = {
            "modelkit fetch": modelkit,
            "snapshot_download": [sys.executable, "-c", SNAPSHOT],
            "snapshot_download + sync": [sys.executable, "-c", SNAPSHOT_SYNC],
            "hashing alone": [sys.executable, "-c", HASHING, *map(str, files)],
        }
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        with serving(files) as (url, _):
            for _ in range(options.runs):
                for name, command in commands.items():
                    environment = os.environ | {
                        "HF_ENDPOINT": url,
                        "HF_HOME": str(work / "hf"),
                        "MODELKIT_CACHE_DIR": str(work / "cache"),
                        "HF_HUB_DISABLE_XET": "1",
                        "HF_HUB_OFFLINE": "0",
                        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                    }
                    samples[name].append(measure(command, environment))
                    shutil.rmtree(work / "hf", ignore_errors=True)
                    shutil.rmtree(work / "cache", ignore_errors=True)
                    (model / "modelkit.lock").unlink(missing_ok=True)
                    os.sync()
    rows = [
        {"command": name} | {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for name, runs in samples.items()
    ]
    base = rows[1]["wall_s"]
    print(f"{options.size_mib} MiB in {options.files} files, median of {options.runs}")
    print(f"{'':<26}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}{'MiB/s':>8}{'wall ratio':>12}")
    for row in rows:
        rate = options.size_mib / row["wall_s"]
        print(
            f"{row['command']:<26}{row['wall_s']:>8.2f}{row['cpu_s']:>8.2f}{row['peak_mib']:>10.0f}"
            f"{rate:>8.0f}{row['wall_s'] / base:>12.2f}"
        )
    if options.json:
        record = {
            "command": " ".join(sys.argv),
            "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
            "versions": {"python": platform.python_version(), "huggingface_hub": version("huggingface_hub")},
            "size_mib": options.size_mib,
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
