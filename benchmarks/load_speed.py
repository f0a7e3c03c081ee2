"""What reading the weights ahead is worth: an engine's own cold start beside the same with its files read meanwhile.

    python benchmarks/load_speed.py [--checkpoint DIR] [--rounds 3] [--json FILE]

Each start is a process of its own: imports torch and transformers, loads the checkpoint, writes one token. Before each
the checkpoint's pages are dropped from the page cache. In the way `warmed` another process reads the files by several
threads from the moment of the start, as modelkit does (engines/read_ahead.py), which an engine that imports for seconds gives
time for. The two ways take turns;
medians and their ratio are printed, and beside them the bare reading of the files, once page by page through a mapping
and once by several threads. Without --checkpoint a random one of 2 GiB is made in .cache/load-speed. Linux only.

On two busy cores the ratio was 0.80, with rounds from 0.64 to 1.45: the import loses less than the load gains.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import platform, python_version
from typing import Any

from modelkit.engines.read_ahead import ReadAhead

ROOT = Path(__file__).resolve().parents[1]


def read_ahead(checkpoint: Path) -> ReadAhead:
    return ReadAhead(sorted(checkpoint.glob("*.safetensors")))


def start_once(checkpoint: Path) -> dict[str, float]:
    """Start like the engine does; runs in a process of its own."""
    began = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    imported = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype="auto", local_files_only=True)
    loaded = time.perf_counter()
    model(input_ids=torch.tensor([[1]]))
    ended = time.perf_counter()
    return {
        "import_s": imported - began,
        "load_s": loaded - imported,
        "token_s": ended - loaded,
        "total_s": ended - began,
    }


def drop_pages(checkpoint: Path) -> None:
    """Drop a checkpoint's pages from the page cache; that needs no rights beyond those to the files."""
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start(checkpoint: Path, *, warmed: bool) -> dict[str, float]:
    """Start in a process of its own; this one reads ahead, as modelkit's would."""
    drop_pages(checkpoint)
    ahead = read_ahead(checkpoint)
    command = [sys.executable, __file__, "--once", "--checkpoint", str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        if warmed:
            ahead.start()
        output, _ = process.communicate()
        if warmed:
            ahead.stop()
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def read_mapped(checkpoint: Path) -> float:
    """Return the seconds that touching every page of a mapping takes."""
    drop_pages(checkpoint)
    began = time.perf_counter()
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            sum(pages[:: mmap.PAGESIZE])
    return time.perf_counter() - began


def read_in_parallel(checkpoint: Path) -> float:
    drop_pages(checkpoint)
    began = time.perf_counter()
    ahead = read_ahead(checkpoint)
    ahead.start()
    ahead.wait()
    return time.perf_counter() - began


def measure(checkpoint: Path, rounds: int) -> dict[str, Any]:
    starts: dict[str, list[dict[str, float]]] = {"plain": [], "warmed": []}
    reads: dict[str, list[float]] = {"mapped": [], "parallel": []}
    start(checkpoint, warmed=False)  # the libraries' own files are in the page cache from here on
    for number in range(rounds):
        reads["mapped"].append(read_mapped(checkpoint))
        reads["parallel"].append(read_in_parallel(checkpoint))
        for way in sorted(starts, reverse=number % 2 == 1):  # none is always first
            starts[way].append(start(checkpoint, warmed=way == "warmed"))
    rows: dict[str, Any] = {
        "checkpoint_gib": round(sum(p.stat().st_size for p in checkpoint.glob("*.safetensors")) / 2**30, 2),
        "read_s": {way: round(statistics.median(found), 2) for way, found in reads.items()},
    }
    for way, found in starts.items():
        rows[way] = {key: round(statistics.median(one[key] for one in found), 2) for key in found[0]}
    rows["ratio_warmed_to_plain"] = round(rows["warmed"]["total_s"] / rows["plain"]["total_s"], 3)
    pairs = zip(starts["warmed"], starts["plain"], strict=True)
    rows["ratio_of_each_round"] = [round(warm["total_s"] / plain["total_s"], 3) for warm, plain in pairs]
    return rows


def record(rows: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return what is kept of a run."""
    return {
        "what": "a cold start beside the same with its files read ahead, by benchmarks/load_speed.py",
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python benchmarks/load_speed.py --rounds {rounds} --json FILE",
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform(),
            "load_1m_after": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": python_version()}
        | {name: version(name) for name in ("torch", "transformers", "safetensors")},
        "rows": rows,
    }


def make_checkpoint() -> Path:
    folder = ROOT / ".cache" / "load-speed"
    if not (folder / "config.json").exists():
        script = Path(__file__).with_name("random_checkpoint.py")
        command = [sys.executable, script, folder, "--architecture", "1b", "--device", "cpu"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(start_once(options.checkpoint)))
        return
    checkpoint = options.checkpoint or make_checkpoint()
    rows = measure(checkpoint, options.rounds)
    print(f"{rows['checkpoint_gib']} GiB, read: {rows['read_s']}")
    print(f"{'':8}{'import':>8}{'load':>8}{'token':>8}{'total':>8}")
    for way in ("plain", "warmed"):
        row = rows[way]
        print(f"{way:8}{row['import_s']:8.2f}{row['load_s']:8.2f}{row['token_s']:8.2f}{row['total_s']:8.2f}")
    print(f"warmed / plain: {rows['ratio_warmed_to_plain']}, round by round {rows['ratio_of_each_round']}")
    if options.json:
        options.json.write_text(json.dumps(record(rows, options.rounds), indent=2) + "\n")


if __name__ == "__main__":
    main()
