"""Where the short record of a folder's last benchmark lies: `bench` writes it, `fit` and `upload` read it."""

from pathlib import Path
from typing import Final

__all__ = ["BENCH_RECORD"]

BENCH_RECORD: Final = Path(".modelkit") / "bench" / "latest.json"
