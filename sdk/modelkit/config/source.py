"""Text with places in it: where a value was written, and the problem that points there.

Line breaks are YAML's, columns count characters from 1. What looks like a secret is masked in every line shown.
"""

import os
import re
import stat
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from modelkit.errors import Problem

__all__ = ["MAX_FILE_BYTES", "Source", "Span", "read_source"]

# PyYAML reads about 200 KB/s: a larger file would keep people waiting, and no config.yaml is that large.
MAX_FILE_BYTES = 256 * 1024

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

# Applied to single lines as they are shown, so that it works before and without a successful parse.
_SECRET = re.compile(
    r"""
    # The value of a key that stands for a secret.
    (?: \b(?:hf_token|value|password|[\w-]*api[_-]?key|[\w-]*secret)["']? \s* [:=] \s* )
    (?P<value> "[^"]*"? | '[^']*'? | [^\s}"'|>&*\#][^}\#]* )
    # A long text where the name of an environment variable should be, and is not.
    | (?: \b(?:token_env|env_var)["']? \s* [:=] \s* ["']? ) (?P<pasted> (?=\S*[^\w\s"'}])\S{20,} )
    # What looks like a token, wherever it is.
    | (?P<token> \b(?:hf_|sk-)[A-Za-z0-9_-]{16,} )
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """A text that was read: a file, or the argument of an option where `path` is None."""

    text: str
    path: Path | None = None

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in _LINE_BREAK.finditer(self.text))]

    def place(self, index: int) -> tuple[int, int]:
        """Return line and column, from 1, of a character."""
        line = bisect_right(self._line_starts, index)
        return line, index - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Return a line without its break, secrets and all."""
        start = self._line_starts[number - 1]
        end = _LINE_BREAK.search(self.text, start)
        return self.text[start : end.start() if end else None]

    def span(self, start: int, end: int | None = None) -> "Span":
        """Return the piece of text from `start` up to `end`."""
        return Span(self, start, start if end is None else end)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a source: character indexes from `start` up to `end`."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        """The line it starts on, from 1."""
        return self.source.place(self.start)[0]

    def problem(
        self, message: str, cure: str = "", *, severity: Literal["error", "warning"] = "error"
    ) -> Problem:
        """Return a problem that points at this piece of text, as far as it is on its first line."""
        line, column = self.source.place(self.start)
        text = self.source.line(line)
        end_column = min(column + self.end - self.start, len(text) + 1)
        return Problem(
            message=message,
            cure=cure,
            path=self.source.path,
            line=line,
            column=column,
            end_column=max(end_column, column + 1),
            source=mask_secrets(text),
            severity=severity,
        )

    def describe_place(self) -> str:
        """Say in words where it is: a line of the same file, or an option."""
        if self.source.path is None:
            return f"`{self.source.text}`"
        return f"line {self.line} of {self.source.path.name}"


def mask_secrets(line: str) -> str:
    """Return a line with whatever looks like a secret replaced by as many asterisks, so that columns stay."""

    def mask(match: re.Match[str]) -> str:
        assert match.lastgroup is not None
        secret = match[match.lastgroup]
        return match[0].removesuffix(secret) + "*" * len(secret)

    return _SECRET.sub(mask, line)


def read_source(path: Path) -> Source | Problem:
    """Read a text file, or say why that cannot be done. Refuses what is no regular, small UTF-8 file."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return Problem(f"{path.name} is not a file", "put a text file in its place", path=path)
            data = file.read(MAX_FILE_BYTES + 1)
    except IsADirectoryError:
        return Problem(f"{path.name} is a folder, not a file", "put a text file in its place", path=path)
    except FileNotFoundError:
        return Problem(f"there is no {path.name}", path=path)
    except PermissionError:
        return Problem(f"{path.name} cannot be read: permission denied", f"chmod u+r {path}", path=path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Problem(f"{path.name} cannot be read: {reason}", path=path)
    return _decode(data, path)


def _open_without_waiting(path: str, flags: int) -> int:
    # A named pipe in the place of the file would block for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(data: bytes, path: Path) -> Source | Problem:
    if len(data) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 1024} KiB"
        cure = "keep data in files of their own and only settings here"
        return Problem(f"{path.name} is larger than {limit}", cure, path=path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem(f"{path.name} is UTF-16, not UTF-8", "save it as UTF-8", path=path)
    if b"\0" in data:
        return Problem(f"{path.name} is a binary file, not text", "put a YAML file in its place", path=path)
    try:
        return Source(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", errors="replace").removeprefix("\ufeff")
        start = len(data[: error.start].decode("utf-8").removeprefix("\ufeff"))
        message = f"{path.name} is not UTF-8: byte 0x{data[error.start]:02x} cannot be read"
        return Source(text, path).span(start, start + 1).problem(message, "save it as UTF-8")
