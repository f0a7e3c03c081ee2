"""Generate the gRPC stubs from proto/ into sdk/, or check that the ones checked in are what would be generated.

The compiler is pinned and lives in an environment of its own: its output decides which protobuf and grpcio a user may
have (generated code runs on its own version and newer ones), so it is older than what development uses.

    python scripts/generate_protos.py            write
    python scripts/generate_protos.py --check    fail on a difference, write nothing
"""

import argparse
import difflib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTO_DIR = ROOT / "proto"
OUTPUT_DIR = ROOT / "sdk"
PACKAGE = Path("modelkit/inference/v1")
COMPILER = ("grpcio-tools==1.76.0", "protobuf==6.31.1", "grpcio==1.76.0", "setuptools<81")


def compiler_python() -> Path:
    """Return the python of the pinned compiler's environment, made on first use."""
    environment = ROOT / ".cache" / ("protoc-" + COMPILER[0].partition("==")[2])
    python = environment / "bin" / "python"
    ready = environment / ".ready"
    if not ready.exists():
        print(f"making the compiler's environment in {environment.relative_to(ROOT)}", flush=True)
        venv.create(environment, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *COMPILER], check=True)
        ready.touch()
    return python


def generate(output_dir: Path) -> None:
    """Compile every .proto of the package into `output_dir`."""
    protos = sorted(str(path) for path in (PROTO_DIR / PACKAGE).glob("*.proto"))
    options = [f"--{kind}_out={output_dir}" for kind in ("python", "pyi", "grpc_python")]
    command = [str(compiler_python()), "-m", "grpc_tools.protoc", f"-I{PROTO_DIR}", *options, *protos]
    subprocess.run(command, check=True)


def differences(generated_dir: Path) -> list[str]:
    """Return a unified diff between the stubs checked in and the ones just generated."""
    lines: list[str] = []
    for fresh in sorted((generated_dir / PACKAGE).iterdir()):
        kept = OUTPUT_DIR / PACKAGE / fresh.name
        old = kept.read_text().splitlines(keepends=True) if kept.exists() else []
        new = fresh.read_text().splitlines(keepends=True)
        lines += difflib.unified_diff(old, new, str(kept.relative_to(ROOT)), "generated")
    return lines


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(OUTPUT_DIR)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        diff = differences(Path(directory))
    if diff:
        sys.stdout.writelines(diff)
        print("the generated stubs are stale: run `make protos` and commit the result", file=sys.stderr)
        return 1
    print("generated stubs are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
