"""What the command line prints: results on stdout, everything else on stderr.

The core of modelkit raises errors and returns values; how they look is decided here and nowhere else. Colour and the
spinner appear on a terminal only, `NO_COLOR` (https://no-color.org) switches colour off, and rich is imported by the
functions that need it: importing this module costs nothing.
"""

import json as json_module
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from modelkit.cli.transfer import Bars, Lines
from modelkit.errors import CallError, ConfigError, InternalError, ModelkitError, Problem
from modelkit.progress import NO_PROGRESS, TransferProgress

__all__ = [
    "Format",
    "OutputError",
    "configure",
    "error",
    "harmless",
    "info",
    "is_interactive",
    "is_quiet",
    "is_verbose",
    "json",
    "problems",
    "result",
    "status",
    "success",
    "transfer",
    "unexpected",
    "warning",
]

Format = Literal["text", "json", "github"]

MAX_SOURCE_CELLS = 120  # a longer source line is shown around the caret only
TAB_CELLS = 4

_STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "1;31",
    "green": "32",
    "yellow": "1;33",
    "blue": "1;34",
    "cyan": "36",
}


_CLOSED = "stdout is closed"


class OutputError(ModelkitError):
    """The result cannot be written where stdout goes."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"cannot write the result: {reason}", cure="see where stdout goes: a full disk, a closed file"
        )


@dataclass(slots=True)
class _Settings:
    quiet: bool = False
    verbose: bool = False
    spinner: Any = None  # what is drawn now: bars take its place while they are shown


_settings = _Settings()


def configure(*, quiet: bool | None = None, verbose: bool | None = None) -> None:
    """Set how much is printed; None leaves a setting as it is."""
    if quiet is not None:
        _settings.quiet = quiet
    if verbose is not None:
        _settings.verbose = verbose


def is_quiet() -> bool:
    """Tell whether the user asked for results and errors only."""
    return _settings.quiet


def is_verbose() -> bool:
    """Tell whether the user asked for details and tracebacks."""
    return _settings.verbose


def is_interactive() -> bool:
    """Tell whether progress is drawn on a terminal, where one line can replace another."""
    return not _settings.quiet and _is_terminal(sys.stderr)


def result(text: str, *, end: str = "\n") -> None:
    """Print a result on stdout, at once: what a script reads, or a person waits for."""
    if sys.stdout is None:  # closed before this process began
        raise OutputError(_CLOSED)
    try:
        try:
            sys.stdout.write(text + end)
        except UnicodeEncodeError:  # a locale without these characters
            encoding = sys.stdout.encoding
            sys.stdout.write((text + end).encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from error


def json(value: Any) -> None:
    """Print a result as indented JSON on stdout."""
    result(json_module.dumps(value, indent=2, ensure_ascii=False, default=str))


def info(text: str) -> None:
    """Print a line of progress; nothing with -q."""
    if not _settings.quiet:
        _note(text)


def success(text: str) -> None:
    """Print that something works now. Never before it does."""
    if not _settings.quiet:
        _note(f"{paint('✓', 'green')} {text}")


def warning(text: str, *, cure: str = "") -> None:
    """Print something doubtful that does not stop the command; nothing with -q."""
    if not _settings.quiet:
        _note(f"{paint('warning', 'yellow')}: {text}")
        _help(cure)


def error(failure: ModelkitError) -> None:
    """Print an error and its cure; a ConfigError as all its problems, a CallError with its violations and request id."""
    if isinstance(failure, ConfigError) and failure.problems:
        problems(failure.problems)
        return
    _note(f"{paint('error', 'red')}: {harmless(failure.message)}")
    if isinstance(failure, CallError):
        for violation in failure.violations:
            if violation.description not in failure.message:
                _note(f"  {paint(violation.field, 'bold')}: {violation.description}")
    _help(failure.cure)
    # It finds the call in the server's log, which says more only where the fault is the server's.
    if (
        isinstance(failure, CallError)
        and failure.request_id
        and (_settings.verbose or isinstance(failure, InternalError))
    ):
        _note(paint(f"  request id: {failure.request_id}", "dim"))
    if _settings.verbose:
        _traceback(failure)


def unexpected(failure: Exception) -> None:
    """Print an exception nobody meant to raise: one line and what a report of it needs, the traceback with -v."""
    _note(f"{paint('error', 'red')}: unexpected {type(failure).__name__}: {failure}")
    if _settings.verbose:
        _traceback(failure)
        _help(
            "this is a bug in modelkit, not in your model; a report needs the traceback and `modelkit version`"
        )
    else:
        _help(
            "this is a bug in modelkit, not in your model; repeat with -v for the traceback, which a report needs"
        )


def problems(found: Sequence[Problem], format: Format = "text") -> None:  # noqa: A002 - named like the option
    """Print the problems of a model folder: for people (stderr), as JSON, or as GitHub annotations (both stdout)."""
    if format == "json":
        json([_as_json(problem) for problem in found])
    elif format == "github":
        for problem in found:
            result(_as_github(problem))
    else:
        for problem in found:
            _note(_as_text(problem) + "\n")
        if found:
            _note(_summary(found))


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show that something is going on: a spinner with the seconds on a terminal, one line elsewhere, nothing with -q.

    What it yields changes the text, as one phase follows another.
    """
    if _settings.quiet:
        yield lambda _: None
    elif not _is_terminal(sys.stderr):
        _note(f"{text}...")
        yield lambda later: _note(f"{later}...")
    else:
        with _spinner(text) as change:
            yield change


@contextmanager
def transfer(title: str) -> Iterator[TransferProgress]:
    """Show a transfer of files: bars on a terminal, lines elsewhere, nothing with -q or where nothing has to be done.

    Says at the end how much it was and how long it took; nothing of that where it failed.
    """
    if _settings.quiet:
        yield NO_PROGRESS
        return
    spinner = _settings.spinner
    if _is_terminal(sys.stderr):
        shown: Bars | Lines = Bars(title, on_begin=spinner.stop if spinner is not None else lambda: None)
    else:
        shown = Lines(title, _note)
    summary = ""
    try:
        yield shown
        summary = shown.end()
    except BaseException:
        shown.end()
        raise
    finally:
        if spinner is not None:
            spinner.start()
    if summary:
        success(f"{title}: {summary}")


def harmless(text: str, stream: TextIO | None = None) -> str:
    """Replace the control characters of a foreign text where `stream` (stderr by default) is a terminal.

    They could move the cursor or worse; newlines and tabs stay.
    """
    if not _is_terminal(stream or sys.stderr):
        return text
    return "".join("\ufffd" if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    return character not in "\n\t" and (character < " " or "\x7f" <= character <= "\x9f")


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """Colour a piece of text where `stream` (stderr by default) shows colour."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if has_color(stream or sys.stderr) else text


def has_color(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that shows colour, and the user has nothing against it."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and _is_terminal(stream)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _note(text: str) -> None:
    # A result that is still buffered was written earlier and should be read earlier.
    if sys.stdout is not None:
        sys.stdout.flush()
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _help(cure: str) -> None:
    if cure:
        _note(f"  {paint('help', 'cyan')}: {cure}")


def _traceback(failure: BaseException) -> None:
    import traceback

    _note("".join(traceback.format_exception(failure)).rstrip())


@contextmanager
def _spinner(text: str) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Elapsed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.elapsed or 0.0:.0f} s", style="dim")

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), Elapsed())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=None)
        _settings.spinner = progress
        try:
            yield lambda later: progress.update(task, description=later)
        finally:
            _settings.spinner = None


def _summary(found: Sequence[Problem]) -> str:
    num_errors = sum(problem.severity == "error" for problem in found)
    counts = [_count(num_errors, "error", "red"), _count(len(found) - num_errors, "warning", "yellow")]
    return " and ".join(count for count in counts if count) + " found"


def _count(num: int, noun: str, style: str) -> str:
    return paint(f"{num} {noun}{'' if num == 1 else 's'}", style) if num else ""


def _as_json(problem: Problem) -> dict[str, Any]:
    return {
        "severity": problem.severity,
        "message": problem.message,
        "cure": problem.cure,
        "path": None if problem.path is None else str(problem.path),
        "line": problem.line,
        "column": problem.column,
        "end_column": problem.end_column,
    }


def _as_github(problem: Problem) -> str:
    """Write a workflow command: https://docs.github.com/actions/reference/workflow-commands-for-github-actions."""
    places = {"file": problem.path, "line": problem.line, "col": problem.column}
    properties = ",".join(
        f"{name}={_escape_github(str(value), ':,')}" for name, value in places.items() if value is not None
    )
    text = f"{problem.message} (help: {problem.cure})" if problem.cure else problem.message
    return f"::{problem.severity} {properties}".rstrip() + f"::{_escape_github(text)}"


def _escape_github(text: str, also: str = "") -> str:
    for character in "%\r\n" + also:  # % first: the others bring new ones
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _as_text(problem: Problem) -> str:
    """Draw a problem as rustc and ruff do: message, place, the source line with carets under the fault, cure."""
    style = "red" if problem.severity == "error" else "yellow"
    lines = [f"{paint(problem.severity, style)}: {paint(problem.message, 'bold')}"]
    gutter = " " * len(str(problem.line or 0))
    if problem.path is not None:
        place = ":".join(
            str(part) for part in (problem.path, problem.line, problem.column) if part is not None
        )
        lines.append(f"{gutter}{paint('-->', 'blue')} {place}")
    if problem.source is not None and problem.line is not None:
        bar = paint("|", "blue")
        source, indent, width = _excerpt(problem.source.rstrip("\r\n"), problem.column, problem.end_column)
        lines += [f"{gutter} {bar}", f"{paint(str(problem.line), 'blue')} {bar} {source}"]
        if problem.column is not None:
            lines.append(f"{gutter} {bar} {' ' * indent}{paint('^' * width, style)}")
    if problem.cure:
        lines.append(f"{gutter} {paint('=', 'blue')} {paint('help', 'cyan')}: {problem.cure}")
    return "\n".join(lines)


def _excerpt(source: str, column: int | None, end_column: int | None) -> tuple[str, int, int]:
    """Return the line to show, and the cells before the carets and under them.

    Columns count characters from 1, `end_column` is the first one that is not part of the fault. A terminal counts
    cells: a tab is widened here, a CJK character or an emoji takes two, a combining mark none.
    """
    start = min(max((column or 1) - 1, 0), len(source))
    end = min(max((end_column or 0) - 1, start + 1), max(len(source), start + 1))
    before, fault, after = (_printable(part) for part in (source[:start], source[start:end], source[end:]))
    indent, width = _cells(before), max(_cells(fault), 1)
    if indent + width + len(after) <= MAX_SOURCE_CELLS:
        return before + fault + after, indent, width
    return _window(before, fault, after)


def _window(before: str, fault: str, after: str) -> tuple[str, int, int]:
    """Cut a long line down to what is near the fault."""
    context = MAX_SOURCE_CELLS // 3
    head = f"…{before[-context:]}" if len(before) > context else before
    middle = f"{fault[:context]}…" if len(fault) > context else fault
    tail = f"{after[:context]}…" if len(after) > context else after
    return head + middle + tail, _cells(head), max(_cells(middle), 1)


def _printable(text: str) -> str:
    """Widen tabs and replace control characters, which could move the cursor or worse."""
    text = text.replace("\t", " " * TAB_CELLS)
    return "".join(
        character if ord(character) >= ord(" ") and character != "\x7f" else "�" for character in text
    )


def _cells(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
