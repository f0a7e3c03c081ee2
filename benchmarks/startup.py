"""How long a command line takes to answer, beside the interpreter's own start.

    python benchmarks/startup.py [--runs 21] [--json FILE]

Each round runs every command once, so that a noisy moment hits all of them; medians are printed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN_DIR = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import typer": [sys.executable, "-c", "import typer"],
    "import grpc": [sys.executable, "-c", "import grpc"],
    "import modelkit": [sys.executable, "-c", "import modelkit"],
    "import modelkit.client": [sys.executable, "-c", "import modelkit.client"],
    "modelkit --help": [str(BIN_DIR / "modelkit"), "--help"],
    "modelkit version": [str(BIN_DIR / "modelkit"), "version"],
}


def run(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"})
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, command in COMMANDS.items():
            samples[name].append(run(command))
    floor = statistics.median(samples["python -c pass"])
    rows = []
    print(f"{'command':<26}{'median s':>10}{'above the floor':>18}{'ratio':>8}")
    for name, times in samples.items():
        median = statistics.median(times)
        rows.append({"command": name, "median_s": round(median, 4), "min_s": round(min(times), 4)})
        print(f"{name:<26}{median:>10.3f}{median - floor:>18.3f}{median / floor:>8.1f}")
    if options.json:
        record = {
            "command": " ".join(sys.argv),
            "versions": {"python": platform.python_version()},
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
