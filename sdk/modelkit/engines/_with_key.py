"""Runs an engine's module with a key that no command line shows.

    python _with_key.py OPTION MODULE ARGUMENTS...

For engines that take their key as an option only: a command line is everybody's to read (`ps`), an environment only its
owner's. Standard library only, for it runs in the engine's interpreter.
"""

import os
import runpy
import sys
from pathlib import Path

KEY_VARIABLE = "MODELKIT_ENGINE_KEY"


def main() -> None:
    """Run the module as `python -m` would, with the key as its last option."""
    option, module, *arguments = sys.argv[1:]
    # Python puts a script's folder first: this one holds files that are named like libraries.
    here = Path(__file__).parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry) != here]
    sys.argv = [module, *arguments, option, os.environ.pop(KEY_VARIABLE)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
