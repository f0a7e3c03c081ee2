"""Make the base image of the tests: Debian with its own Python, from packages, where nothing can or should be pulled.

    python scripts/make_test_base.py

Kept as a tar in .cache/, so that it is made once (20 to 70 s); needs mmdebstrap, and root or user namespaces.
"""

import subprocess
import sys
from pathlib import Path

TAR = Path(__file__).resolve().parents[1] / ".cache" / "test-base" / "bookworm.tar"

PACKAGES = ("python3", "python3-venv", "ca-certificates")


def main() -> int:
    """Make the tar, unless it is there; it appears whole or not at all."""
    if TAR.is_file():
        return 0
    TAR.parent.mkdir(parents=True, exist_ok=True)
    draft = TAR.with_suffix(".draft.tar")
    print("making the base image of the tests, once")
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        "bookworm",
        str(draft),
    ]
    made = subprocess.run(command, check=False).returncode
    if made == 0:
        draft.replace(TAR)
    draft.unlink(missing_ok=True)
    return made


if __name__ == "__main__":
    sys.exit(main())
