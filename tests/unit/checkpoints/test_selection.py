import pytest

from modelkit.checkpoints.base import SourceFile, checked_path
from modelkit.checkpoints.selection import select
from modelkit.config import CheckpointConfig
from modelkit.errors import LoadError

REPO = (
    "config.json",
    "model.safetensors",
    "pytorch_model.bin",
    "training_args.pt",
    "original/consolidated.00.pth",
    "original/params.json",
    "tf_model.h5",
)


def chosen(*paths, **keys):
    config = CheckpointConfig(type="huggingface", repo_id="org/tiny", **keys)
    files = [SourceFile(path=path, size_bytes=1, sha256="0" * 64) for path in paths]
    return [file.path for file in select(files, config, "org/tiny")]


def test_with_safetensors_nothing_older_is_taken():
    assert chosen(*REPO) == ["config.json", "model.safetensors"]


def test_patterns_choose():
    assert chosen(*REPO, allowed_file_patterns=["*.json"]) == ["config.json", "original/params.json"]
    assert chosen(*REPO, allowed_file_patterns=["*.json"], ignored_file_patterns=["original/"]) == [
        "config.json"
    ]


def test_own_patterns_replace_the_default_but_pickles_stay_out():
    assert chosen(*REPO, ignored_file_patterns=["*.h5"]) == [
        "config.json",
        "model.safetensors",
        "original/params.json",
    ]


def test_pickles_alone_are_refused_with_the_list():
    with pytest.raises(LoadError, match="pickle") as caught:
        chosen("config.json", "pytorch_model-1.bin", "pytorch_model-2.bin")
    assert "pytorch_model-1.bin, pytorch_model-2.bin" in caught.value.message
    assert "allow_pickle" in caught.value.cure


@pytest.mark.parametrize(
    "name", ["a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.BIN", "sub/a.pickle", "a.joblib"]
)
def test_every_kind_of_pickle_is_known(name):
    with pytest.raises(LoadError, match="pickle"):
        chosen("config.json", name)


def test_a_pattern_that_asks_for_pickles_is_refused_rather_than_ignored():
    with pytest.raises(LoadError, match=r"pytorch_model\.bin"):
        chosen(*REPO, allowed_file_patterns=["*.safetensors", "*.bin"])


def test_a_pickle_is_allowed_by_its_name_only():
    assert chosen("config.json", "a.bin", allow_pickle=["a.bin"]) == ["a.bin", "config.json"]
    assert "training_args.pt" in chosen(*REPO, allow_pickle=["training_args.pt"])
    with pytest.raises(LoadError, match=r"'\*\.bin', which matches nothing"):
        chosen("config.json", "a.bin", allow_pickle=["*.bin"])


def test_a_pattern_that_matches_nothing_names_the_nearest_file():
    with pytest.raises(LoadError, match="matches nothing") as caught:
        chosen(*REPO, allowed_file_patterns=["model.safetensor"])
    assert caught.value.cure == "did you mean 'model.safetensors'?"
    with pytest.raises(LoadError) as caught:
        chosen("a.json", allowed_file_patterns=["*.gguf"])
    assert "it has 1 files: a.json" in caught.value.cure


def test_nothing_left_says_what_there_is():
    with pytest.raises(LoadError, match=r"nothing of org/tiny is left: it has 1 files: a\.json"):
        chosen("a.json", ignored_file_patterns=["*"])


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a\0b", "a\nb", "a\\b", "x" * 2000]
)
def test_a_path_never_leaves_the_folder(path):
    with pytest.raises(LoadError, match="outside"):
        checked_path(path, "org/evil")


@pytest.mark.parametrize("path", ["a", "a/b.c", "..a", "a..", "größe.json", "a b"])
def test_other_names_are_fine(path):
    assert checked_path(path, "org/tiny") == path
