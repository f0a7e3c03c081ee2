from pathlib import Path

import pytest

from modelkit.checkpoints import SOURCES, resolve
from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError, UsageError


def local(path: str) -> CheckpointConfig:
    return CheckpointConfig(type="local", path=path)


def test_a_path_is_relative_to_the_model_folder(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").touch()
    assert resolve(local("weights"), tmp_path) == (tmp_path / "weights").resolve()
    assert resolve(local(str(tmp_path / "weights")), Path("/")) == (tmp_path / "weights").resolve()


@pytest.mark.parametrize("make", [lambda _: None, lambda path: path.mkdir()])
def test_a_missing_or_empty_folder_names_the_script_that_makes_it(tmp_path, make):
    make(tmp_path / "weights")
    with pytest.raises(LoadError, match="weights") as caught:
        resolve(local("weights"), tmp_path)
    assert "checkpoints.path" in caught.value.cure
    (tmp_path / "train.py").touch()
    with pytest.raises(LoadError) as caught:
        resolve(local("weights"), tmp_path)
    assert caught.value.cure == f"make it with: python {tmp_path / 'train.py'}"


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "weights").touch()
    with pytest.raises(LoadError, match="not a folder"):
        resolve(local("weights"), tmp_path)


def test_a_local_checkpoint_without_path_says_so(tmp_path):
    with pytest.raises(LoadError, match=r"checkpoints\.path"):
        resolve(CheckpointConfig(type="local"), tmp_path)


@pytest.mark.parametrize("kind", ["s3", "oci"])
def test_a_source_of_a_later_release_is_refused_with_those_there_are(tmp_path, kind):
    if kind in SOURCES:
        pytest.skip("there now")
    with pytest.raises(UsageError, match=kind) as caught:
        resolve(CheckpointConfig(type=kind), tmp_path)
    assert "huggingface" in caught.value.cure
