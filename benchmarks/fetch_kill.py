"""Kill a fetch (SIGKILL) at random moments, each time followed by one that has to end verified.

    python benchmarks/fetch_kill.py [--size-mib 1024] [--kills 20] [--seed 1] [--rate-mib 400] [--json FILE]

Every round begins with an empty cache: a fetch is started and killed when a random share of all bytes has been sent (every
fifth one while it still starts), then a second one ends it. After each round every byte of the checkpoint is compared with its sha256, and nothing may lie in
`partial`. Printed: what the killed one left, and how much of it the second one did not fetch again.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fetch_speed import make_files, make_folder, serving

STARTING_S = 0.5  # about what a fetch takes until it asks for the first byte


class Fetches:
    """Fetches of one model folder from one hub, as processes."""

    def __init__(self, work: Path, url: str) -> None:
        self.model = make_folder(work / "model")
        self.cache = work / "cache"
        self.environment = os.environ | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(work / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "MODELKIT_CACHE_DIR": str(self.cache),
        }

    def start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "modelkit", "fetch", "--json", str(self.model)]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, process: "subprocess.Popen[str]") -> Path:
        """Wait until a fetch has ended well; return the checkpoint's folder."""
        printed, errors = process.communicate(timeout=600)
        if process.returncode:
            sys.exit(f"a fetch failed:\n{errors}")
        return Path(json.loads(printed)["default"])

    def forget(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        (self.model / "modelkit.lock").unlink(missing_ok=True)

    def partial_bytes(self) -> int:
        """Return what lies on the disk of transfers under way."""
        found = [path for path in (self.cache / "partial").glob("*") if path.suffix == ""]
        return sum(path.stat().st_blocks * 512 for path in found)


def verify(folder: Path, sha256s: dict[str, str], cache: Path) -> None:
    for name, expected in sha256s.items():
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            sys.exit(f"{name} is {found}, and should be {expected}")
    left = [path.name for path in (cache / "partial").glob("*")]
    if left:
        sys.exit(f"left behind: {left}")


def sent_bytes(server: "subprocess.Popen[str]") -> int:
    server.stdin.write("sent\n")
    server.stdin.flush()
    return sum(json.loads(server.stdout.readline()).values())


def run(size_mib: int, kills: int, seed: int, rate_mib: float, files: int = 2) -> list[dict[str, float]]:
    """Do all rounds and return what each came to. Exits where one of them did not end verified."""
    dice, rows = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="modelkit-kill-") as temporary:
        work = Path(temporary)
        weights = make_files(work, files, size_mib)
        sha256s = {file.name: hashlib.file_digest(file.open("rb"), "sha256").hexdigest() for file in weights}
        with serving(weights, "--rate-mib", str(rate_mib)) as (url, server):
            fetches = Fetches(work, url)
            started = time.perf_counter()
            verify(fetches.end(fetches.start()), sha256s, fetches.cache)
            whole_s = time.perf_counter() - started
            whole_bytes = sent_bytes(server)
            while len(rows) < kills:
                fetches.forget()
                before = sent_bytes(server)
                process = fetches.start()
                share = dice.uniform(0.0, 1.0)
                if len(rows) % 5 == 0:
                    time.sleep(share * STARTING_S)
                else:
                    while sent_bytes(server) - before < share * whole_bytes and process.poll() is None:
                        time.sleep(0.005)
                was_running = process.poll() is None
                process.kill()
                process.communicate()
                if not was_running:  # too late: it had ended
                    continue
                left = fetches.partial_bytes()
                killed = sent_bytes(server)
                verify(fetches.end(fetches.start()), sha256s, fetches.cache)
                row = {
                    "partial_mib": round(left / 1024**2, 1),
                    "sent_before_mib": round((killed - before) / 1024**2, 1),
                    "sent_after_mib": round((sent_bytes(server) - killed) / 1024**2, 1),
                }
                rows.append(row)
                print(f"{len(rows):>3}/{kills}  {row}", flush=True)
        print(f"one whole fetch: {whole_s:.2f} s, {whole_bytes / 1024**2:.0f} MiB")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate-mib", type=float, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = run(options.size_mib, options.kills, options.seed, options.rate_mib)
    again = sum(row["sent_before_mib"] + row["sent_after_mib"] - options.size_mib for row in rows)
    print(
        f"{len(rows)} kills of a running fetch, each followed by one that ended verified; fetched twice: {again / len(rows):.1f} MiB a kill (what was on its way)"
    )
    if options.json:
        record = {"command": " ".join(sys.argv), "seed": options.seed, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
