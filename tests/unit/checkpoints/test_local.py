import os

import pytest

from modelkit.checkpoints import open_source
from modelkit.checkpoints.resolve import Terms, find_checkpoint, make_lock, prepare
from modelkit.config import CheckpointConfig, load_config
from modelkit.errors import LoadError


def source_of(path, model_dir):
    return open_source(CheckpointConfig(type="local", path=path), model_dir)


@pytest.fixture
def folder(write_folder):
    folder = write_folder("type: local, path: weights")
    (folder / "weights").mkdir()
    (folder / "weights" / "config.json").write_text("{}")
    (folder / "weights" / "model.safetensors").write_bytes(b"weights")
    return folder


def test_it_is_used_where_it_lies_and_never_locked_by_serving(folder, cache):
    config = load_config(folder)
    assert prepare(config, folder, Terms(cache=cache)) == {"default": (folder / "weights").resolve()}
    assert find_checkpoint(config, folder) == (folder / "weights").resolve()
    assert not (folder / "modelkit.lock").exists()
    assert not cache.root.exists()


def test_a_path_is_relative_to_the_model_folder(folder, tmp_path):
    assert source_of("weights", folder).folder == (folder / "weights").resolve()
    assert source_of(str(folder / "weights"), tmp_path).folder == (folder / "weights").resolve()


def test_links_to_files_are_files_and_folders_of_links_are_left_alone(folder, tmp_path):
    outside = tmp_path / "blob"
    outside.write_bytes(b"12345")
    weights = folder / "weights"
    (weights / "linked.json").symlink_to(outside)
    (weights / "loop").symlink_to(weights)
    (weights / ".hidden").mkdir()
    (weights / ".hidden" / "x").touch()
    files = {file.path: file for file in source_of("weights", folder).list_files().files}
    assert set(files) == {"config.json", "model.safetensors", "linked.json"}
    assert files["linked.json"].size_bytes == 5
    source = source_of("weights", folder)
    with source.open(files["linked.json"], 1, 3) as blocks:
        assert b"".join(blocks) == b"23"


def test_a_link_to_nothing_and_a_pipe_are_refused(folder):
    (folder / "weights" / "gone.json").symlink_to("nowhere")
    with pytest.raises(LoadError, match="a link to nothing"):
        source_of("weights", folder).list_files()
    (folder / "weights" / "gone.json").unlink()
    os.mkfifo(folder / "weights" / "pipe")
    with pytest.raises(LoadError, match="no plain file"):
        source_of("weights", folder).list_files()


@pytest.mark.parametrize("make", [lambda _: None, lambda path: path.mkdir()])
def test_a_missing_or_empty_folder_names_the_script_that_makes_it(tmp_path, make):
    make(tmp_path / "weights")
    with pytest.raises(LoadError, match="weights") as caught:
        source_of("weights", tmp_path).list_files()
    assert "checkpoints.path" in caught.value.cure
    (tmp_path / "train.py").touch()
    with pytest.raises(LoadError) as caught:
        source_of("weights", tmp_path).list_files()
    assert caught.value.cure == f"make it with: python {tmp_path / 'train.py'}"


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "weights").touch()
    with pytest.raises(LoadError, match="not a folder"):
        source_of("weights", tmp_path).list_files()


def test_a_local_checkpoint_without_path_says_so(tmp_path):
    with pytest.raises(LoadError, match=r"checkpoints\.path"):
        open_source(CheckpointConfig(type="local"), tmp_path)


def test_the_lock_is_no_part_of_what_it_pins(write_folder, cache):
    folder = write_folder("type: local, path: .")
    config, terms = load_config(folder), Terms(cache=cache)
    lock = make_lock(config, folder, terms)
    lock.write(folder)
    assert make_lock(config, folder, terms) == lock


def test_pickles_without_safetensors_are_refused(folder):
    (folder / "weights" / "training_args.bin").touch()
    prepare(load_config(folder), folder)
    (folder / "weights" / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"pickle.*training_args\.bin"):
        prepare(load_config(folder), folder)
