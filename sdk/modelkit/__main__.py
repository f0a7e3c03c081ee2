"""`modelkit`, and `python -m modelkit`, which is the same."""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit code; a Ctrl-C ends it quietly from the first import on."""
    try:
        from modelkit.cli.app import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
