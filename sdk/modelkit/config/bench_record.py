"""What `bench` leaves in a model folder, for those who look there: `fit` and `upload` read it, a package leaves it out."""

from pathlib import Path
from typing import Final

__all__ = ["BENCH_RECORD", "BENCH_RUN_MARK"]

# The short record of the folder's last run.
BENCH_RECORD: Final = Path(".modelkit") / "bench" / "latest.json"
# A file that says that its folder is a run, wherever --output has put it.
BENCH_RUN_MARK: Final = ".modelkit-bench-run"
