"""Weights that `modelkit upload` left in a registry, or in a layout on this machine, as another model's checkpoint."""

import random
import shutil
import uuid

import pytest

from greeter import write_greeter
from modelkit.checkpoints import open_source
from modelkit.checkpoints.lock import Lock
from modelkit.checkpoints.resolve import Terms, prepare
from modelkit.cli.app import main
from modelkit.config import load_config
from modelkit.errors import LoadError

SIZE_BYTES = 1_000_000
WEIGHTS = random.Random(3).randbytes(SIZE_BYTES)


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """Upload a model with weights of four layers, and return where it went."""
    from modelkit.versions import weights

    monkeypatch.setattr(weights, "PART_BYTES", 300_000)
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "layouts"))
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def upload(to: str, *options: str) -> str:
        folder = write_greeter(tmp_path / "greeter")
        checkpoint = tmp_path / "greeter" / "checkpoint"
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(WEIGHTS)
        (checkpoint / "config.json").write_text("{}")
        (folder / "config.yaml").write_text(
            "model: {id: greeter}\ncheckpoints: {type: local, path: checkpoint}\n"
        )
        assert main(["upload", str(folder), "--no-image", "--to", to, *options]) == 0
        return to

    return upload


@pytest.fixture(params=["registry", "layout"])
def place(request, registry, tmp_path):
    name = uuid.uuid4().hex[:8]
    return f"{registry.host}/team/{name}" if request.param == "registry" else f"oci:{tmp_path / name}"


@pytest.fixture
def borrower(tmp_path):
    """A model folder whose checkpoint is that of a version."""

    def write(place: str, more: str = ""):
        folder = tmp_path / "borrower"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(
            f"model: {{id: borrower}}\ncheckpoints: {{type: oci, repo_id: '{place}'{more}}}\n"
        )
        return folder

    return write


def test_weights_of_a_version_are_fetched_pinned_and_verified(upload, place, borrower):
    folder = borrower(upload(place))
    folders = prepare(load_config(folder), folder)
    assert (folders["default"] / "model.safetensors").read_bytes() == WEIGHTS
    assert (folders["default"] / "config.json").read_text() == "{}"
    locked = Lock.read(folder).checkpoints["default"]
    assert locked.commit.startswith("sha256:")
    assert [file.path for file in locked.files] == ["config.json", "model.safetensors"]
    # In place, nothing is asked for any more.
    assert prepare(load_config(folder), folder, Terms(offline=True)) == folders


@pytest.mark.parametrize("span", [(0, 5), (299_995, 300_005), (250_000, 910_000), (999_990, 2_000_000)])
def test_a_range_may_lie_in_several_layers(upload, place, borrower, span):
    folder = borrower(upload(place))
    with open_source(load_config(folder).checkpoints, folder) as source:
        file = source.list_files().files[1]
        with source.open(file, *span) as blocks:
            assert b"".join(blocks) == WEIGHTS[slice(*span)]


def test_a_version_without_weights_says_so(upload, registry, borrower):
    folder = borrower(upload(f"{registry.host}/team/{uuid.uuid4().hex[:8]}", "--no-weights"))
    with pytest.raises(LoadError, match="has no weights") as caught:
        prepare(load_config(folder), folder)
    assert "--weights" in caught.value.cure


def test_a_tag_that_is_not_there_names_the_place(upload, place, borrower):
    folder = borrower(upload(place), ", revision: v9")
    with pytest.raises(LoadError, match=r"there is no .*v9"):
        prepare(load_config(folder), folder)


def test_a_reference_that_is_none_names_the_key(borrower, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder = borrower("registry.example.com/Upper/Case")
    with pytest.raises(LoadError, match=r"checkpoints\.repo_id"):
        prepare(load_config(folder), folder)
