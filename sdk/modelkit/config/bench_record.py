"""Where a model folder keeps what `modelkit bench` measured last: several rooms read it, and one writes it."""

from pathlib import Path
from typing import Final

__all__ = ["BENCH_RECORD"]

BENCH_RECORD: Final = Path(".modelkit") / "bench" / "latest.json"
