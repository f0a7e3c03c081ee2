"""requirements.txt as the image's dependencies: checked, and without what the base image brings.

pip reads the lines; this only looks for what could not work inside an image, or should not be in one: a path of this
machine, a password, the engine a second time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelkit.errors import UsageError

__all__ = ["REQUIREMENTS", "ImageFile", "Requirement", "Requirements", "canonical", "read_requirements"]

REQUIREMENTS = "requirements.txt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INCLUDE = re.compile(r"(?:-r|--requirement|-c|--constraint)[ =]?\s*(?P<file>\S+)")
_EDITABLE = re.compile(r"(?:-e|--editable)\b")
_FIND_LINKS = re.compile(r"(?:-f|--find-links)[ =]")
# `https://TOKEN@host` has one too; the user of ssh://git@host is none.
_PASSWORD = re.compile(r"(?:https?://(?:[^/\s@:]*:)?|://[^/\s@:]*:)(?P<password>[^/\s@:]+):?@")
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that goes into an image: its path in the folder of its layer, and where it is on this machine."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of requirements.txt; `name` is empty for an option."""

    text: str
    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the image installs: the lines, and the files beside requirements.txt that they refer to."""

    lines: tuple[Requirement, ...] = ()
    files: tuple[ImageFile, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The lines as a file for pip."""
        return "".join(f"{line.text}\n" for line in self.lines)

    def has(self, *names: str) -> bool:
        """Tell whether one of these distributions is asked for."""
        return any(line.name in names for line in self.lines)

    def find(self, name: str) -> Requirement | None:
        """Return the line that asks for a distribution."""
        return next((line for line in self.lines if line.name == canonical(name)), None)


def read_requirements(model_dir: Path, provided: str = "") -> Requirements:
    """Return what the model folder's requirements.txt asks for, without `provided`, which the base image has.

    Raises UsageError for a line that cannot work inside an image, and for one with a password.
    """
    path = model_dir / REQUIREMENTS
    if not path.is_file():
        return Requirements()
    lines, left_out, files = [], [], {}
    for number, text in _logical_lines(path):
        requirement = Requirement(text, _name(text), number)
        if provided and requirement.name == canonical(provided):
            left_out.append(text)
            continue
        lines.append(requirement)
        files.update(_files(path, number, text))
    return Requirements(
        tuple(lines), tuple(ImageFile(*item) for item in sorted(files.items())), tuple(left_out)
    )


def canonical(name: str) -> str:
    """Spell a distribution's name in the one way: https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _logical_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Iterate over what pip sees: without comments and empty lines, continued lines joined."""
    try:
        written = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", cure="write it in UTF-8") from error
    begun, start = "", 0
    for number, line in enumerate(written, start=1):
        start = start if begun else number
        begun += line.rstrip("\\") if line.endswith("\\") else line
        if line.endswith("\\") and number < len(written):
            continue
        text = re.sub(r"(^|\s)#.*$", "", begun).strip()
        begun = ""
        if text:
            yield start, text


def _name(text: str) -> str:
    match = _NAME.match(text)
    return canonical(match[0]) if match and not _is_path(text) else ""


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "file:")) or text.split(" ", maxsplit=1)[0].endswith(
        (".whl", ".tar.gz")
    )


def _files(path: Path, number: int, text: str) -> dict[str, Path]:
    """Return the files of the model folder that a line refers to, by their name there."""
    place = f"{path}:{number}"
    password = _PASSWORD.search(text)
    if password and not _VARIABLE.fullmatch(password["password"]):
        raise UsageError(
            f"{place} has a password or a token, which everybody who gets the image could read",
            cure="put the index into pip.conf or PIP_EXTRA_INDEX_URL: builds get it as a secret",
        )
    if _EDITABLE.match(text) or (_is_path(text) and (path.parent / text).is_dir()):
        raise UsageError(
            f"{place} installs from a folder: {text}",
            cure="put the package's folder beside model.py, where it can be imported, or name a wheel of it",
        )
    if _FIND_LINKS.match(text):
        raise UsageError(
            f"{place} is about a folder of this machine, which the image cannot see: {text}",
            cure="publish the wheels on an index, or name each in the model folder: ./wheels/NAME.whl",
        )
    include = _INCLUDE.match(text)
    if include is None and not _is_path(text):
        return {}
    name = include["file"] if include else text.split(" ", maxsplit=1)[0]
    if "://" in name:
        return {}
    return _included(path, place, name, is_list=include is not None)


def _included(path: Path, place: str, name: str, *, is_list: bool) -> dict[str, Path]:
    file = path.parent / name
    if not file.is_file() or not file.resolve().is_relative_to(path.parent.resolve()):
        raise UsageError(
            f"{place} refers to {name}, which is no file of the model folder", cure="put it there"
        )
    found = {str(Path(name)): file}
    if is_list and file.resolve() != path.resolve():  # pip reads a file that includes itself once
        for number, text in _logical_lines(file):
            below = _files(file, number, text)
            found |= {str(Path(name).parent / inner): inner_file for inner, inner_file in below.items()}
    return found
