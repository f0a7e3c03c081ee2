"""`python -m modelkit.cli`, the same as `modelkit`."""

import sys

from modelkit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
