"""Templates are found in a source tree and in an installed package, and their pins are the versions tested here."""

import re
from importlib.metadata import version

import pytest

from modelkit import resources
from modelkit.errors import ModelkitError
from paths import ROOT


def test_a_source_tree_has_its_own():
    assert resources.templates_dir() == ROOT / "templates"


def test_an_installed_package_has_them_inside(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "modelkit"
    for name in ("one", "two", "_base", ".hidden"):
        (package / "_templates" / name).mkdir(parents=True)
    (package / "_templates" / "README.md").touch()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.templates_dir() == package / "_templates"
    assert resources.template_names() == ["one", "two"]


def test_an_installation_without_templates_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site-packages" / "modelkit")
    with pytest.raises(ModelkitError, match="has no templates"):
        resources.template_names()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "templates").glob("*/requirements.txt")), ids=lambda p: p.parent.name
)
def test_pins_are_the_versions_that_are_tested(path):
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, pin = re.fullmatch(r"([\w-]+)==([\w.]+)", line).groups()
            assert version(name).partition("+")[0] == pin
