"""The repository itself: what is in the wheel, what must not be in a file, what the documents claim."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest

import modelkit
from modelkit.cli.app import VERBS
from paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]

EXAMPLE_NAMES = [path.name for path in (ROOT / "examples").iterdir() if path.is_dir()]

# Written in halves, because this file is read too. Package clients know where their index is, and a path of one
# machine helps nobody on another.
FORBIDDEN = [
    "".join(halves)
    for halves in [
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("download.", "pytorch.org"),
        ("deb.", "debian.org"),
        ("archive.", "ubuntu.com"),
        ("registry.", "npmjs.org"),
        ("/work", "/"),
        ("/opt", "/wheels"),
        ("/opt", "/pypi"),
        ("/root", "/.pyenv"),
        ("bash", "_jobs"),
    ]
]


@cache
def tracked_files() -> list[Path]:
    """Return every file of the repository, tracked or about to be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_package_registry_or_a_path_of_one_machine():
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert found == []


def test_no_large_file_is_kept():
    assert [str(path) for path in tracked_files() if path.stat().st_size > 1_000_000] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("modelkit_sdk-*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture
def wheel_names(wheel) -> list[str]:
    return wheel.namelist()


def test_the_wheel_makes_a_valid_folder(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    for arguments in (["init", "greeter"], ["validate", "greeter"]):
        done = subprocess.run(
            [sys.executable, "-m", "modelkit", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_wheel_has_the_whole_package(wheel_names):
    source = ROOT / "sdk"
    modules = {str(path.relative_to(source)) for path in (source / "modelkit").rglob("*.py")}
    assert modules <= set(wheel_names)
    assert "modelkit/py.typed" in wheel_names
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_the_wheel_has_every_template(wheel_names):
    templates = {
        str(p.relative_to(ROOT / "templates")) for p in (ROOT / "templates").rglob("*") if p.is_file()
    }
    kept = {name for name in templates if "__pycache__" not in name}
    assert kept
    assert {f"modelkit/_templates/{name}" for name in kept} <= set(wheel_names)


def test_the_wheel_has_nothing_else(wheel_names):
    rest = [name for name in wheel_names if not name.startswith(("modelkit/", "modelkit_sdk-"))]
    assert rest == []
    assert [name for name in wheel_names if "__pycache__" in name] == []


def test_the_version_is_said_once_in_each_place():
    version = PYPROJECT["project"]["version"]
    assert modelkit.__version__ == version
    assert f"## Unreleased ({version})" in (ROOT / "CHANGELOG.md").read_text()


def test_every_ignored_lint_rule_is_explained():
    text = (ROOT / "pyproject.toml").read_text()
    ignored = text.partition("\nignore = [\n")[2].partition("\n]")[0]
    assert [line for line in ignored.splitlines() if "# " not in line] == []


def test_the_map_names_every_room():
    text = (ROOT / "docs/structure.md").read_text()
    package = ROOT / "sdk/modelkit"
    folders = [path.name + "/" for path in package.iterdir() if (path / "__init__.py").exists()]
    modules = [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    top = [path.name + "/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    tracked = {path.relative_to(ROOT).parts[0] + "/" for path in tracked_files()}
    assert [name for name in [*folders, *modules, *(tracked & set(top))] if name not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"", text)
    local = [link for pair in links for link in pair if link and not link.startswith(("http", "mailto:"))]
    assert [link for link in local if not (ROOT / document).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS + [f"examples/{name}/README.md" for name in EXAMPLE_NAMES])
def test_commands_in_documents_exist(document):
    blocks = re.findall(r"```\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    verbs = {match[1] for line in lines if (match := re.match(r"modelkit (\w+)", line))}
    targets = {match[1] for line in lines if (match := re.match(r"make ([\w-]+)", line))}
    makefile = (ROOT / "Makefile").read_text()
    assert verbs <= set(VERBS)
    assert [target for target in targets if f"\n{target}: " not in makefile] == []


def test_every_example_says_what_it_is():
    for folder in (ROOT / "examples").iterdir():
        if folder.is_dir():
            assert (folder / "README.md").exists(), folder
