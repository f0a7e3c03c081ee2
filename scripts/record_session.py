"""Record a real terminal session as docs/session.svg, the picture in the README. Needs the trained checkpoint.

    python scripts/record_session.py

Each command runs in a pseudo-terminal, so that colours are the ones a person sees; the server is a real one.
"""

import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "session.svg"
COLUMNS, ROWS = 92, 40
SERVE = "modelkit serve tiny-chat --local"
MISTAKES = "model:\n  id: hello\n  descripton: Greets people.\ncompute:\n  num_accelerators: one\n"
# What is typed, and the exit code it must end with.
BEFORE = {"modelkit validate hello": 2}
ASKED = {
    'modelkit predict "What is the capital of France?"': 0,
    "modelkit predict --method add -i a=2 -i b=3": 0,
    "modelkit predict --method add -i a=2 -i b=30": 1,
}
# A spinner hides the cursor, draws itself again and again, and is wiped out at its end.
SPINNER = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h(?:\r?\x1b\[1A\x1b\[2K)*", re.DOTALL)
CURSOR_CODES = re.compile(r"\x1b\[[0-9;?]*[A-HJKhl]|\r")


class Terminal:
    """One command in a pseudo-terminal of its own."""

    def __init__(self, command: str, folder: Path) -> None:
        self.reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS"}}
        environment = kept | {"PATH": path, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            cwd=folder,
            env=environment,
            stdin=writer,
            stdout=writer,
            stderr=writer,
        )
        os.close(writer)

    def read_until(self, done: Callable[[str], bool]) -> str:
        """Return what was printed, as soon as `done` says that it is enough, or at the command's end."""
        output = b""
        while not done(output.decode(errors="replace")):
            try:
                output += os.read(self.reader, 4096)
            except OSError:  # Linux says EIO when the command has ended
                break
        return output.decode()


def printed(output: str) -> str:
    """Reduce raw output to what stays on the screen."""
    return CURSOR_CODES.sub("", SPINNER.sub("", output)).strip("\n")


def run(command: str, exit_code: int, folder: Path) -> str:
    """Run one command to its end; returns it with its output. Raises RuntimeError for another exit code."""
    terminal = Terminal(command, folder)
    piece = f"$ {command}\n{printed(terminal.read_until(lambda _: False))}\n"
    if terminal.process.wait() != exit_code:
        raise RuntimeError(f"exit code {terminal.process.returncode} instead of {exit_code}:\n{piece}")
    return piece


def record(folder: Path) -> list[str]:
    """Run the session; returns pieces of text with ANSI colours."""
    pieces = [run(command, exit_code, folder) for command, exit_code in BEFORE.items()]
    server = Terminal(SERVE, folder)
    try:
        output = printed(server.read_until(lambda text: "Ctrl-C" in text and text.endswith("\n")))
        pieces.append(f"$ {SERVE} &\n{output}\n")
        pieces += [run(command, exit_code, folder) for command, exit_code in ASKED.items()]
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait()
    return pieces


def draw(pieces: list[str]) -> str:
    """Draw a terminal window; without the web font that rich names, a picture must not load anything."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for piece in pieces:
        prompt, _, output = piece.partition("\n")
        console.print(Text(prompt, style="bold"))
        console.print(Text.from_ansi(output))
    svg = console.export_svg(title="modelkit", unique_id="session")
    return re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)


def main() -> int:
    """Run the command line; returns the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for example in ("hello", "tiny-chat"):
            shutil.copytree(ROOT / "examples" / example, folder / example)
        (folder / "hello" / "config.yaml").write_text(MISTAKES)
        OUTPUT.write_text(draw(record(folder)))
    print(f"wrote {OUTPUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
