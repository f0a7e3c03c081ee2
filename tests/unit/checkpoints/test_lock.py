import hashlib
import json

import pytest

from modelkit.checkpoints.lock import LOCK_NAME, Lock, LockedCheckpoint, LockedFile
from modelkit.checkpoints.resolve import Terms, check_lock, make_lock, prepare
from modelkit.cli.app import main
from modelkit.config import check_config, load_config
from modelkit.errors import ConfigError, LoadError

FILE = LockedFile(path="model.safetensors", size_bytes=7, sha256="0" * 64)
TINY = "type: huggingface, repo_id: org/tiny"


def lock_of(folder, *files):
    config = load_config(folder)
    return Lock.of(config, {"default": LockedCheckpoint.of(config.checkpoints, "c" * 40, files or (FILE,))})


def test_what_is_written_is_read_and_the_same_bytes_again(write_folder):
    folder = write_folder(TINY)
    other = LockedFile(path="a.json", size_bytes=1, sha256="1" * 64)
    lock = lock_of(folder, FILE, other)
    assert lock.write(folder)
    assert Lock.read(folder) == lock
    assert not lock.write(folder)
    assert lock_of(folder, other, FILE).to_text() == lock.to_text()
    assert [path.name for path in folder.glob(".*")] == []
    assert (folder / LOCK_NAME).read_text().endswith("}\n")


def test_no_lock_is_none(tmp_path):
    assert Lock.read(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-20], "Invalid JSON"),
        (lambda text: text.replace('"lock_version": 1', '"lock_version": 0'), "lock_version"),
        (lambda text: text.replace("model.safetensors", "../../x"), "outside"),
        (lambda text: text.replace("0" * 64, "0" * 63), "sha256"),
        (lambda text: text.replace('"size_bytes": 7', '"size_bytes": -7'), "size_bytes"),
        (lambda text: text.replace('"engine"', '"engines"'), "engines"),
    ],
)
def test_a_damaged_lock_is_no_lock(write_folder, change, reason):
    folder = write_folder(TINY)
    lock_of(folder).write(folder)
    path = folder / LOCK_NAME
    path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError, match=reason) as caught:
        Lock.read(folder)
    assert "modelkit lock --update" in caught.value.problems[0].cure


def test_a_lock_of_a_newer_modelkit_is_not_to_be_made_anew(write_folder):
    folder = write_folder(TINY)
    lock_of(folder).write(folder)
    path = folder / LOCK_NAME
    path.write_text(path.read_text().replace('"lock_version": 1', '"lock_version": 2, "new": true'))
    with pytest.raises(ConfigError, match="of version 2, by a newer modelkit") as caught:
        Lock.read(folder)
    assert caught.value.problems[0].cure == "update modelkit: pip install --upgrade modelkit-sdk"


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (f"{TINY}, revision: v2", "checkpoints.revision is 'v2', and was 'main' when it was locked"),
        (f"{TINY}, revision: main", None),
        (f"{TINY}, token_env: HF_TOKEN", None),
        (f"{TINY}, when: build", None),
        ("type: huggingface, repo_id: org/x", "checkpoints.repo_id is 'org/x', and was 'org/tiny'"),
        ("type: local, path: .", "checkpoints.type is 'local', and was 'huggingface'"),
        (f'{TINY}, allowed_file_patterns: ["*.json"]', "allowed_file_patterns is [*.json], and was []"),
        (f"{TINY}, additional: {{a: {{{TINY}}}}}", "the checkpoint 'a' is not locked"),
    ],
)
def test_what_config_yaml_says_now_is_compared(write_folder, now, difference):
    folder = write_folder(TINY)
    lock = lock_of(folder)
    found = lock.check(load_config(write_folder(now)))
    if difference is None:
        assert found == []
    else:
        assert any(difference in each for each in found), found


def test_a_checkpoint_that_is_gone_and_another_engine_count_too(write_folder):
    folder = write_folder(f"{TINY}, additional: {{a: {{{TINY}}}}}")
    config = load_config(folder)
    pins = LockedCheckpoint.of(config.checkpoints, None, (FILE,))
    lock = Lock.of(config, {"default": pins, "a": pins})
    config, _ = check_config(write_folder(TINY), overrides=["engine={name: vllm, version: 0.25.0}"])
    assert lock.check(config) == [
        "the checkpoint 'a' is locked, and config.yaml has none of that name",
        "the engine is vllm 0.25.0, and was echo when it was locked",
        "the base image is 'vllm/vllm-openai:v0.25.0', and was 'python:3.12-slim' when it was locked",
    ]


def test_serving_refuses_a_lock_of_another_config(write_folder, cache):
    folder = write_folder(TINY)
    lock_of(folder).write(folder)
    folder = write_folder(f"{TINY}, revision: v2")
    with pytest.raises(ConfigError, match="when it was locked") as caught:
        prepare(load_config(folder), folder, Terms(cache=cache))
    assert caught.value.problems[0].cure == "`modelkit lock` pins what config.yaml says now"


def test_a_lock_that_cannot_be_written_says_so(write_folder, tmp_path):
    lock = lock_of(write_folder(TINY))
    with pytest.raises(LoadError, match="cannot be written"):
        lock.write(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------- folders on this disk


@pytest.fixture
def local(write_folder):
    folder = write_folder("type: local, path: weights")
    (folder / "weights").mkdir()
    (folder / "weights" / "config.json").write_text("{}")
    (folder / "weights" / "model.safetensors").write_bytes(b"weights")
    make_lock(load_config(folder), folder).write(folder)
    return folder


def test_a_folder_is_hashed_by_lock_only_and_checked_byte_by_byte(local, cache):
    config, terms = load_config(local), Terms(cache=cache)
    assert [file.path for file in Lock.read(local).checkpoints["default"].files] == [
        "config.json",
        "model.safetensors",
    ]
    assert check_lock(config, local, terms).differences == ()
    (local / "weights" / "model.safetensors").write_bytes(b"wEights")
    assert check_lock(config, local, terms).differences == ("weights: model.safetensors has changed",)
    (local / "weights" / "config.json").rename(local / "weights" / "conf.json")
    assert check_lock(config, local, terms).differences == (
        "weights: conf.json is new",
        "weights: config.json is gone",
        "weights: model.safetensors has changed",
    )
    make_lock(config, local, terms).write(local)
    assert check_lock(config, local, terms).differences == ()


def test_the_verb_writes_checks_and_says_so(local, capsys):
    (local / LOCK_NAME).unlink()
    assert main(["lock", "--check", str(local)]) == 1
    assert capsys.readouterr().out == f"there is no modelkit.lock in {local}\n"
    assert main(["lock", str(local), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (local / LOCK_NAME).read_text()
    assert "default: weights, 2 files, 9 bytes" in printed.err
    assert "modelkit.lock is written" in printed.err
    assert main(["lock", str(local)]) == 0
    assert "modelkit.lock is up to date" in capsys.readouterr().err
    assert main(["lock", "--check", str(local)]) == 0
    (local / "weights" / "config.json").unlink()
    capsys.readouterr()
    assert main(["lock", "--check", "--json", str(local)]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "differences": ["weights: config.json is gone"],
        "moved": [],
    }
    assert main(["lock", "--check", "--update", str(local)]) == 2


def test_serving_warns_of_a_folder_that_changed_by_its_sizes(local, cache):
    config, notes = load_config(local), []
    terms = Terms(cache=cache, on_warning=notes.append)
    (local / "weights" / "model.safetensors").write_bytes(b"wEights")
    prepare(config, local, terms)
    assert notes == []
    (local / "weights" / "model.safetensors").write_bytes(b"longer weights")
    prepare(config, local, terms)
    assert notes == [
        "weights is not what modelkit.lock pins: model.safetensors changed; `modelkit lock` takes it over"
    ]


def test_the_shape_of_the_file_is_stable(local):
    assert json.loads((local / LOCK_NAME).read_text()) == {
        "lock_version": 1,
        "engine": {"name": "echo"},
        "image": "python:3.12-slim",
        "checkpoints": {
            "default": {
                "type": "local",
                "path": "weights",
                "files": [
                    {
                        "path": "config.json",
                        "size_bytes": 2,
                        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                    },
                    {
                        "path": "model.safetensors",
                        "size_bytes": 7,
                        "sha256": hashlib.sha256(b"weights").hexdigest(),
                    },
                ],
            }
        },
    }
