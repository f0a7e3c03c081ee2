"""Several checkpoints, no lock, no network: through the source `http`, which needs no library of its own."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest

from greeter import MODEL
from modelkit.checkpoints.lock import LOCK_NAME, Lock
from modelkit.checkpoints.resolve import Terms, find_checkpoint, is_offline, make_lock, prepare
from modelkit.cli.app import main
from modelkit.cli.build import fetch_weights
from modelkit.config import check_config, load_config
from modelkit.engines.llm import LLM
from modelkit.errors import LoadError
from modelkit.image import plan_image
from modelkit.image.plan import local_weights_override
from modelkit.model import ModelContext


@pytest.fixture
def urls(hub):
    """Keys of a checkpoint with these files of org/tiny, by URL."""
    repo = hub.repos["org/tiny"]
    files = repo.commits[repo.branches["main"]]

    def keys(*paths):
        items = ", ".join(
            f"{{url: '{hub.url_of('org/tiny', path)}', sha256: {files[path].sha256!r}}}" for path in paths
        )
        return f"type: http, files: [{items}]"

    return keys


@pytest.fixture
def terms(cache):
    return Terms(cache=cache, offline=False)


def test_what_was_fetched_is_locked_and_found_again(hub, urls, write_folder, terms, cache):
    notes = []
    folder = write_folder(urls("model.safetensors", "config.json"))
    config = load_config(folder)
    dirs = prepare(config, folder, Terms(cache=cache, offline=False, on_note=notes.append))
    assert notes == ["asking 127.0.0.1 for its files", notes[-1]]
    assert notes[-1].startswith(f"wrote {LOCK_NAME}: http://127.0.0.1")
    hub.requests.clear()
    assert prepare(config, folder, terms) == dirs
    assert prepare(config, folder, Terms(cache=cache, offline=True)) == dirs
    assert hub.requests == []


def test_a_folder_that_is_not_the_authors_own_config_is_not_locked(urls, write_folder, cache):
    folder, notes = write_folder(urls("config.json")), []
    terms = Terms(cache=cache, offline=False, writes_lock=False, on_warning=notes.append)
    prepare(load_config(folder), folder, terms)
    assert not (folder / LOCK_NAME).exists()
    assert "is not pinned" in notes[-1]


def test_an_image_still_allows_the_pickles_that_config_yaml_allows(write_folder, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    folder = write_folder(f"type: local, path: {weights}, allow_pickle: [pytorch_model.bin]")
    config = load_config(folder)
    (option,) = [part for part in plan_image(config, folder).entrypoint if part.startswith("checkpoints=")]
    inside = load_config(folder, overrides=[option.replace("/weights/default", str(weights))])
    assert prepare(inside, folder, Terms(offline=True)) == {"default": weights}


def test_an_overlay_of_the_environment_is_not_locked_either(urls, write_folder, cache, monkeypatch):
    folder = write_folder(urls("config.json"))
    (folder / "config.prod.yaml").write_text(f"checkpoints: {{{urls('model.safetensors')}}}\n")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(cache.root))
    monkeypatch.setenv("MODELKIT_ENV", "prod")
    assert main(["fetch", str(folder)]) == 0
    assert not (folder / LOCK_NAME).exists()


def test_a_build_of_other_settings_is_not_locked(urls, write_folder, cache, monkeypatch):
    folder = write_folder(urls("config.json"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(cache.root))
    plan = plan_image(load_config(folder), folder, serve_options=["--set", "server.max_queue=1"])
    assert list(fetch_weights(plan)) == ["default"]
    assert not (folder / LOCK_NAME).exists()
    assert list(fetch_weights(plan_image(load_config(folder), folder))) == ["default"]
    assert (folder / LOCK_NAME).exists()


def test_an_upload_of_other_settings_is_not_locked(urls, write_folder, cache, tmp_path, monkeypatch):
    folder = write_folder(urls("config.json"))
    (folder / "model.py").write_text(MODEL)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(cache.root))
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "versions"))
    arguments = ["upload", str(folder), "--no-image", "--weights"]
    assert main([*arguments, "--set", "server.max_queue=1"]) == 0
    assert not (folder / LOCK_NAME).exists()
    assert main(arguments) == 0
    assert (folder / LOCK_NAME).exists()


def test_an_image_takes_its_weights_from_a_folder_whatever_was_locked(urls, write_folder, terms):
    folder = write_folder(urls("model.safetensors", "config.json"))
    place = prepare(load_config(folder), folder, terms)["default"]
    settings = [local_weights_override(load_config(folder), {"default": str(place)})]
    warnings = []
    told = Terms(cache=terms.cache, offline=True, on_warning=warnings.append)
    assert prepare(load_config(folder, overrides=settings), folder, told) == {"default": place}
    assert warnings == []


def test_without_a_lock_and_offline_what_was_fetched_before_is_used(hub, urls, write_folder, terms, cache):
    folder = write_folder(urls("config.json"))
    config = load_config(folder)
    dirs = prepare(config, folder, terms)
    (folder / LOCK_NAME).unlink()
    hub.requests.clear()
    assert prepare(config, folder, Terms(cache=cache, offline=True)) == dirs
    assert hub.requests == []


def test_a_read_only_folder_is_served_without_a_request_the_second_time(
    hub, urls, write_folder, terms, monkeypatch
):
    folder = write_folder(urls("config.json"))
    config = load_config(folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Lock, "write", _refuse)
    dirs = prepare(config, folder, terms)
    hub.requests.clear()
    assert prepare(config, folder, terms) == dirs
    assert hub.requests == []


def _refuse(*_):
    raise LoadError("read-only")


def test_offline_with_nothing_in_place_says_what_to_do(hub, urls, write_folder, cache):
    folder = write_folder(urls("config.json"))
    with pytest.raises(LoadError, match="the network may not be used") as caught:
        prepare(load_config(folder), folder, Terms(cache=cache, offline=True))
    assert "modelkit fetch" in caught.value.cure
    assert hub.requests == []


def test_a_damaged_tree_is_mended_and_only_what_is_gone_is_fetched(hub, urls, write_folder, terms, cache):
    folder = write_folder(urls("model.safetensors", "config.json"))
    config = load_config(folder)
    where = prepare(config, folder, terms)["default"]
    (where / "config.json").resolve().unlink()
    hub.sent.clear()
    assert prepare(config, folder, terms) == {"default": where}
    assert (where / "config.json").read_bytes() == b"{}"
    assert dict(hub.sent) == {"config.json": 2}


def test_several_checkpoints_have_names_and_share_contents(hub, urls, write_folder, terms, cache):
    base, adapter = urls("model.safetensors", "config.json"), urls("config.json", "sub/empty.txt")
    folder = write_folder(f"{base}, additional: {{support: {{{adapter}}}}}")
    config = load_config(folder)
    hub.sent.clear()
    dirs = prepare(config, folder, terms)
    assert list(dirs) == ["default", "support"]
    assert (dirs["support"] / "config.json").resolve() == (dirs["default"] / "config.json").resolve()
    assert (dirs["support"] / "empty.txt").read_bytes() == b""
    assert set(Lock.read(folder).checkpoints) == {"default", "support"}
    monkey = find_checkpoint(config, folder, "support")
    assert monkey is None  # in another cache than this machine's


def test_adapters_and_drafts_may_be_checkpoints(write_folder):
    folder = write_folder("type: local, path: ., additional: {support: {type: local, path: .}}")
    (folder / "own").mkdir()
    config, problems = check_config(
        folder,
        overrides=[
            "engine={name: vllm, lora_modules: {a: support, b: own}, speculative: {method: x, model: support}}",
            "compute.num_accelerators=1",
        ],
    )
    assert problems == []
    model = LLM()
    model.context = ModelContext(config, folder, {"default": folder, "support": Path("/weights/support")})
    engine = model._engine_config(config.engine)
    assert engine.lora_modules == {"a": "/weights/support", "b": str(folder / "own")}
    assert engine.speculative == {"method": "x", "model": "/weights/support"}


def test_a_lock_keeps_its_pins_until_it_is_updated(hub, urls, write_folder, terms, cache):
    folder = write_folder(urls("config.json"))
    config = load_config(folder)
    lock = make_lock(config, folder, terms)
    lock.write(folder)
    hub.requests.clear()
    assert make_lock(config, folder, terms) == lock
    assert hub.requests == []
    assert make_lock(config, folder, terms, update=True) == lock
    assert hub.requests


def test_an_update_replaces_a_lock_that_cannot_be_read(urls, write_folder, terms):
    folder = write_folder(urls("config.json"))
    (folder / LOCK_NAME).write_text("{")
    assert make_lock(load_config(folder), folder, terms, update=True).checkpoints["default"].files[
        0
    ].sha256 == (hashlib.sha256(b"{}").hexdigest())


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_environment_may_forbid_the_network(monkeypatch, value, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() is offline
    assert Terms().offline is offline
