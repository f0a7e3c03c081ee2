"""A small model with weights of its own, and both kinds of places to upload it to."""

import uuid

import pytest

from greeter import write_greeter
from modelkit.registry import LayoutReference, open_store


@pytest.fixture
def folder(tmp_path):
    return write_greeter(tmp_path / "greeter")


@pytest.fixture(params=["registry", "layout"])
def store(request, tmp_path):
    name = f"test/{uuid.uuid4().hex[:12]}"
    if request.param == "registry":
        reference = request.getfixturevalue("registry").reference(name)
    else:
        reference = LayoutReference(tmp_path / "layout")
    with open_store(reference) as opened:
        yield opened
