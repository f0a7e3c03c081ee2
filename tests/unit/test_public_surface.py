"""The names that users import: all there, loaded late, documented, typed as they say."""

import ast
import inspect
import re
import subprocess
import sys

import pytest

import modelkit
from modelkit import errors
from paths import ROOT


@pytest.mark.parametrize("name", modelkit.__all__)
def test_every_public_name_can_be_had_and_is_documented(name):
    public = getattr(modelkit, name)
    if name.startswith("__"):
        return
    assert inspect.getdoc(public)
    assert public.__name__ == name
    assert name in dir(modelkit)


@pytest.mark.parametrize("name", modelkit.__all__)
def test_every_public_method_is_documented(name):
    public = getattr(modelkit, name)
    if not inspect.isclass(public):
        return
    functions = inspect.getmembers(
        public, lambda member: inspect.isfunction(member) or isinstance(member, property)
    )
    ours = [(key, value) for key, value in functions if not key.startswith("_")]
    bare = [key for key, value in ours if not inspect.getdoc(value)]
    assert bare == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Modle"):
        modelkit.Modle  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "sdk/modelkit/__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == {name for name in modelkit.__all__ if not name.startswith("__")}
    assert len(modelkit.__all__) == len(set(modelkit.__all__))


DRAWN = re.compile(
    r"^ {4}(?P<branch>[ │├└─]*)(?P<name>\w+Error) +(?:(?P<exit>\d) +)?(?P<status>[A-Z_]+\b)?", re.MULTILINE
)


def drawn_errors() -> dict[str, tuple[str | None, str | None, str | None]]:
    """Read the tree at the top of errors.py: (parent, exit code, status) by name."""
    parents: dict[int, str] = {}
    drawn = {}
    for match in DRAWN.finditer(errors.__doc__ or ""):
        depth = len(match["branch"]) // 4
        parents[depth] = match["name"]
        drawn[match["name"]] = (parents.get(depth - 1), match["exit"], match["status"])
    return drawn


def real_errors() -> list[type[errors.ModelkitError]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [value for value in found if issubclass(value, errors.ModelkitError)]


def test_the_error_tree_drawn_is_the_real_one():
    drawn = drawn_errors()
    assert sorted(drawn) == sorted(error.__name__ for error in real_errors())
    for error in real_errors():
        parent, exit_code, status = drawn[error.__name__]
        if error is not errors.ModelkitError:
            assert parent == error.__base__.__name__
        # A subclass of CallError leaves the column of its parent empty; two lines have no status of their own.
        assert exit_code in {str(error.exit_code), None}
        assert status in {error.grpc_status, None}


def test_every_error_that_users_catch_is_public():
    for error in errors.CallError.__subclasses__():
        assert error.__name__ in modelkit.__all__


def test_the_public_api_is_typed_as_it_says():
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--warn-unused-ignores",
            "tests/data/typing/public_api.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
