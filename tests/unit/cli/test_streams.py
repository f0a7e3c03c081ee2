"""What a served model prints is seen when it prints it, also where no terminal reads it."""

import subprocess
import sys

PRINTS = """
from modelkit.cli.streams import outlive_readers
outlive_readers()
print("one line")
input()
"""


def test_a_line_is_there_when_it_was_printed():
    command = [sys.executable, "-c", PRINTS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "one line\n"  # it still runs
        assert process.poll() is None
        process.communicate("\n")
