"""Versions: numbered once, unchanged where nothing changed, the same folder when they come back."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from greeter import MODEL, WEIGHTS, send, with_weights
from modelkit.checkpoints.lock import Lock
from modelkit.checkpoints.resolve import Terms, make_lock, prepare
from modelkit.cli.app import main
from modelkit.config import check_config, load_config
from modelkit.errors import LoadError, RegistryError, UsageError
from modelkit.package import collect
from modelkit.registry import Draft, LayoutReference, copy, open_store, parse_reference
from modelkit.registry.base import MANIFEST
from modelkit.registry.layout import Layout
from modelkit.registry.modelpack import (
    MODEL_CONFIG,
    MODEL_DOC,
    MODEL_MANIFEST,
    MODEL_WEIGHT,
    MODEL_WEIGHT_CONFIG,
)
from modelkit.versions import weights as weights_module
from modelkit.versions.catalog import list_entries
from modelkit.versions.diff import diff
from modelkit.versions.folder import add_weights, read_folder
from modelkit.versions.local import looks_like_reference, materialize
from modelkit.versions.names import default_reference, model_reference, version_reference
from modelkit.versions.pull import pull
from modelkit.versions.upload import BreakingChangeError, check_upload, version_numbers
from modelkit.versions.verify import verify
from modelkit.versions.version import ImagePart, compose, read_version

IMAGE_CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": []},
    "config": {},
}


@pytest.fixture
def small_parts(monkeypatch):
    """Files of more than 300 kB are split."""
    monkeypatch.setattr(weights_module, "PART_BYTES", 300_000)


def checkpoint_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_versions_are_numbered_and_latest_is_the_last(folder, store):
    assert send(folder, store).tag == "v1"
    (folder / "model.py").write_text(MODEL + "# changed\n")
    result = send(folder, store)
    assert (result.tag, result.is_new) == ("v2", True)
    assert store.tags() == ["latest", "v1", "v2"]
    assert store.find_manifest("latest").digest == result.digest != store.find_manifest("v1").digest


def test_an_upload_of_the_same_sends_nothing_and_gets_no_number(folder, store):
    first = send(folder, store)
    os.utime(folder / "model.py", (1, 1))
    again = send(folder, store)
    assert (again.tag, again.is_new, again.digest) == ("v1", False, first.digest)
    assert (again.copied.num_sent, again.copied.sent_bytes, again.copied.num_manifests_sent) == (0, 0, 0)


def test_a_change_of_code_sends_no_weights(folder, store):
    send(folder, store)
    (folder / "model.py").write_text(MODEL + "# changed\n")
    changed = send(folder, store)
    assert changed.copied.sent_bytes < 20_000 < len(WEIGHTS["model.safetensors"])


def test_going_back_is_a_new_number_of_the_old_content(folder, store):
    first = send(folder, store)
    (folder / "model.py").write_text(MODEL + "# changed\n")
    send(folder, store)
    (folder / "model.py").write_text(MODEL)
    back = send(folder, store)
    assert (back.tag, back.digest, back.copied.sent_bytes) == ("v3", first.digest, 0)
    assert store.find_manifest("latest").digest == first.digest


def test_another_name_moves_and_a_number_does_not(folder, store):
    send(folder, store, tag="prod")
    (folder / "model.py").write_text(MODEL + "# changed\n")
    second = send(folder, store, tag="prod")
    assert store.find_manifest("prod").digest == second.digest
    (folder / "model.py").write_text(MODEL + "# changed again\n")
    with pytest.raises(UsageError, match="v1 is there already, and a version never changes") as caught:
        send(folder, store, tag="v1")
    assert "v3" in caught.value.cure
    assert send(folder, store, tag="v7").tag == "v7"
    assert version_numbers(store) == [1, 2, 7]


def test_what_breaks_callers_is_refused_before_anything_is_sent(folder, store):
    send(folder, store)
    (folder / "model.py").write_text(MODEL.replace("name: str", "who: str").replace("{name}", "{who}"))
    before = store.tags()
    with pytest.raises(BreakingChangeError, match="argument 'name' was renamed to 'who'") as caught:
        send(folder, store)
    assert "--allow-breaking" in caught.value.cure
    assert store.tags() == before
    assert send(folder, store, allow_breaking=True).breaking == (
        "greet: argument 'name' was renamed to 'who'",
    )


def test_a_version_comes_back_as_the_same_folder(folder, store, tmp_path):
    send(folder, store)
    pulled = pull(read_version(store, "v1"), tmp_path / "pulled")
    assert checkpoint_of(pulled.checkpoints["default"]) == WEIGHTS
    assert pulled.checkpoints["default"] == tmp_path / "pulled/checkpoint"
    assert pulled.overrides == ()
    without = [folder / "checkpoint"]
    assert (
        collect(pulled.folder, without=[pulled.folder / "checkpoint"]).digest
        == collect(folder, without=without).digest
    )
    again = send(pulled.folder, store)
    assert not again.is_new


def test_weights_that_lay_outside_of_the_folder_are_found_where_they_were_pulled_to(folder, tmp_path):
    (folder / "checkpoint").rename(tmp_path / "elsewhere")
    config = folder / "config.yaml"
    config.write_text(
        config.read_text().replace("path: checkpoint", "path: ../elsewhere")
        + "  additional:\n    extra: {type: local, path: ../elsewhere}\n"
    )
    read = read_folder(folder)
    places = dict.fromkeys(["default", "extra"], tmp_path / "elsewhere")
    content = add_weights(read, make_lock(read.config, folder), places).content
    with open_store(LayoutReference(tmp_path / "layout")) as store:
        draft, index = compose(content)
        copy(draft, store, index.digest, tags=["v1"])
        pulled = pull(read_version(store, "v1"), tmp_path / "there/pulled")
    shutil.rmtree(tmp_path / "elsewhere")
    assert pulled.overrides == (
        "checkpoints.path=checkpoints/default",
        "checkpoints.additional.extra.path=checkpoints/extra",
    )
    found, problems = check_config(pulled.folder, overrides=pulled.overrides)
    assert problems == []
    assert prepare(found, pulled.folder, Terms(offline=True)) == {
        name: pulled.folder / f"checkpoints/{name}" for name in places
    }


def test_a_pull_for_which_there_is_no_room_begins_nothing(folder, tmp_path, monkeypatch):
    with open_store(LayoutReference(tmp_path / "layout")) as store:
        send(folder, store)
        told = []
        progress = SimpleNamespace(begin=lambda *each: told.append(each))
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        with pytest.raises(LoadError, match=r"1\.3 MB have to be pulled, and .* has 1\.0 MB free"):
            pull(read_version(store, "v1"), tmp_path / "pulled", progress=progress)
    assert told == []


def test_a_pull_into_what_cannot_be_written_failed_at_run_time(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with open_store(LayoutReference(tmp_path / "layout")) as store:
        send(folder, store)
        with pytest.raises(LoadError, match="cannot write") as caught:
            pull(read_version(store, "v1"), tmp_path / "file/x")
    assert caught.value.exit_code == 1


def test_large_files_are_split_and_put_together_again(folder, store, tmp_path, small_parts):
    send(folder, store)
    layers = read_version(store, "v1").weight_layers("default")
    parts = [layer for layer in layers if layer.path == "model.safetensors"]
    assert [(part.offset, part.descriptor.size_bytes) for part in parts] == [
        (0, 300_000), (300_000, 300_000), (600_000, 300_000), (900_000, 300_000), (1_200_000, 80_000),
    ]  # fmt: skip
    assert "part-00002-of-00005" in parts[1].descriptor.name
    pulled = pull(read_version(store, "v1"), tmp_path / "pulled")
    assert checkpoint_of(pulled.checkpoints["default"]) == WEIGHTS


def forged_lock(folder):
    """A lock that pins other weights of the same size."""
    read = read_folder(folder)
    lock = make_lock(read.config, folder, Terms(offline=True))
    sha256 = hashlib.sha256(WEIGHTS["model.safetensors"]).hexdigest()
    return read, Lock.model_validate_json(lock.to_text().replace(sha256, "0" * 64))


def test_a_large_file_that_is_not_the_pinned_one_is_noticed(folder, tmp_path, small_parts):
    with pytest.raises(UsageError, match="is not the file that was pinned"):
        compose(add_weights(*forged_lock(folder), {"default": folder / "checkpoint"}).content)


def test_a_small_file_that_is_not_the_pinned_one_is_refused_where_it_arrives(folder, store):
    draft, index = compose(add_weights(*forged_lock(folder), {"default": folder / "checkpoint"}).content)
    with pytest.raises(RegistryError):
        copy(draft, store, index.digest, tags=["v1"])
    assert store.tags() == []


def test_weights_follow_the_model_specification(folder, store):
    send(folder, store)
    manifest = read_version(store, "v1").weights["default"]
    assert (manifest.document["mediaType"], manifest.artifact_type) == (MANIFEST, MODEL_MANIFEST)
    config = manifest.blobs[0]
    assert config.media_type == MODEL_CONFIG
    document = json.loads(b"".join(store.read_blob(config)))
    assert document["config"] == {
        "architecture": "GreeterForCausalLM",
        "format": "safetensors",
        "precision": "bfloat16",
    }
    assert document["modelfs"]["diffIds"] == [blob.digest for blob in manifest.blobs[1:]]
    kinds = {blob.annotations["org.cncf.model.filepath"]: blob.media_type for blob in manifest.blobs[1:]}
    assert kinds == {
        "config.json": MODEL_WEIGHT_CONFIG,
        "model.safetensors": MODEL_WEIGHT,
        "tokenizer/vocab.txt": MODEL_WEIGHT_CONFIG,
        "README.md": MODEL_DOC,
    }


def image_in(store):
    draft = Draft()
    config = draft.add_bytes(json.dumps(IMAGE_CONFIG).encode(), "application/vnd.oci.image.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(), "layers": []}
    manifest = draft.add_manifest(document)
    copy(draft, store, manifest.digest, tags=["built"])
    return ImagePart(store, manifest.digest)


def test_whoever_knows_images_finds_the_image_in_a_version(folder, tmp_path):
    layout, target = (Layout(LayoutReference(tmp_path / name)) for name in ("built", "versions"))
    content = with_weights(folder, image=image_in(layout)).content
    draft, index = compose(content)
    copy(draft, target, index.digest, tags=["v1"])
    for command in (
        ["skopeo", "inspect", "--override-os=linux", "--override-arch=amd64", f"oci:{target.folder}:v1"],
        ["skopeo", "copy", "--all", f"oci:{target.folder}:v1", f"oci:{tmp_path / 'copied'}:v1"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert read_version(Layout(LayoutReference(tmp_path / "copied")), "v1").index.digest == index.digest


def test_a_list_of_versions(folder, store):
    send(folder, store, tag="prod")
    (folder / "model.py").write_text(MODEL + "# changed\n")
    send(folder, store)
    second, first = list_entries(store)
    assert (first.tag, first.tags) == ("v1", ("prod",))
    assert (second.tag, second.tags) == ("v2", ("latest",))
    assert second.weights_bytes > len(WEIGHTS["model.safetensors"])


def test_the_difference_of_two_versions(folder, store):
    send(folder, store)
    (folder / "model.py").write_text(MODEL.replace("loudly: bool = False", "loudly: int = 0"))
    (folder / "requirements.txt").write_text("numpy==2.2.0\npillow\n")
    (folder / "checkpoint/model.safetensors").write_bytes(b"other weights")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("Greets.", "Greets people."))
    send(folder, store, allow_breaking=True)
    found = diff(read_version(store, "v1"), read_version(store, "v2"))
    assert [(each.name, each.old, each.new) for each in found.config] == [
        ("model.description", "Greets.", "Greets people.")
    ]
    assert [(each.name, each.old, each.new) for each in found.dependencies] == [
        ("httpx", ">=0.27", None), ("numpy", "==2.1.0", "==2.2.0"), ("pillow", None, "any"),
    ]  # fmt: skip
    assert [each.name for each in found.files] == ["config.yaml", "model.py", "requirements.txt"]
    assert [each.name for each in found.weights] == ["default/model.safetensors"]
    assert found.breaking == ("greet: argument 'loudly' took bool and takes int now",)
    assert not any(diff(read_version(store, "v2"), read_version(store, "v2")).as_json().values())


def test_a_pull_overwrites_nothing(folder, store, tmp_path):
    send(folder, store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="pull overwrites nothing"):
        pull(read_version(store, "v1"), tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_a_pull_that_was_cut_goes_on(folder, tmp_path):
    layout = Layout(LayoutReference(tmp_path / "layout"))
    send(folder, layout)
    version = read_version(layout, "v1")
    last = max(version.weight_layers("default"), key=lambda layer: layer.descriptor.size_bytes).descriptor
    blob = layout.blob_path(last.digest)
    blob.rename(blob.with_suffix(".away"))
    with pytest.raises(RegistryError, match="has lost"):
        pull(version, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    blob.with_suffix(".away").rename(blob)
    assert checkpoint_of(pull(version, tmp_path / "pulled").checkpoints["default"]) == WEIGHTS
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("size_bytes", [300_000, 10_000_000])
def test_a_manifest_that_lies_about_a_whole_file_is_found_out(folder, tmp_path, monkeypatch, size_bytes):
    """Of parts that have their digests a lie could be put together; whoever trusts the file's own hash must not."""
    monkeypatch.setattr(weights_module, "PART_BYTES", size_bytes)
    layout = Layout(LayoutReference(tmp_path / "layout"))
    honest = with_weights(folder).content
    draft, index = compose(honest)
    lying = {each.digest: each for each in index.children}
    weights = draft.get_manifest(
        next(d for d, each in lying.items() if each.annotations["io.modelkit.part"] == "weights")
    )
    sha256 = hashlib.sha256(WEIGHTS["model.safetensors"]).hexdigest()
    document = json.loads(
        weights.content.replace(f'\\"sha256\\": \\"{sha256}'.encode(), b'\\"sha256\\": \\"' + b"0" * 64)
    )
    forged = draft.add_manifest(document)
    assert forged.digest != weights.digest
    text = index.content.decode().replace(weights.digest, forged.digest)
    text = text.replace(f'"size":{len(weights.content)}', f'"size":{len(forged.content)}')
    copy(draft, layout, draft.add_manifest(json.loads(text)).digest, tags=["v1"])
    with pytest.raises(RegistryError, match=r"model\.safetensors is not what the version says"):
        pull(read_version(layout, "v1"), tmp_path / "pulled")


@pytest.mark.parametrize("path", ["../outside", "/etc/x", "a/../../b", "a\\b", "a\nb", ""])
def test_weights_that_would_be_written_elsewhere_are_refused(path, tmp_path):
    from modelkit.registry.base import Descriptor, Manifest, sha256_digest
    from modelkit.registry.modelpack import FILE, read_weights

    layer = Descriptor(
        MODEL_WEIGHT, sha256_digest(b""), 0, {FILE: json.dumps({"path": path or "/", "size": 0})}
    )
    manifest = Manifest.build({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer.to_json()]})
    with pytest.raises(RegistryError, match="written outside"):
        read_weights(manifest)


def with_entry(layout, draft, index, change):
    """Store a version whose index, as JSON, has been changed."""
    document = json.loads(index.content)
    change(document)
    copy(draft, layout, draft.add_manifest(document).digest, tags=["v1"])


def test_a_checkpoint_whose_name_leads_elsewhere_is_refused(folder, tmp_path):
    layout = Layout(LayoutReference(tmp_path / "layout"))
    draft, index = compose(with_weights(folder).content)

    def rename(document):
        (weights,) = (
            each for each in document["manifests"] if each["annotations"]["io.modelkit.part"] == "weights"
        )
        weights["annotations"]["io.modelkit.checkpoint"] = "../../../outside"

    with_entry(layout, draft, index, rename)
    with pytest.raises(RegistryError, match="written outside") as caught:
        pull(read_version(layout, "v1"), tmp_path / "a" / "b" / "pulled")
    assert "do not use" in caught.value.cure
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("path", ["checkpoint/model.safetensors", ".done/forged", ".lock", "../outside"])
def test_a_package_cannot_replace_weights_that_were_verified(folder, tmp_path, path):
    """They go into the cache under their hash, which every other model trusts."""
    from dataclasses import replace

    from modelkit.package import PackagedFile

    layout = Layout(LayoutReference(tmp_path / "layout"))
    content = with_weights(folder).content
    evil = tmp_path / "evil"
    evil.write_bytes(b"evil")
    planted = PackagedFile(path=path, source=evil, size_bytes=4, sha256=hashlib.sha256(b"evil").hexdigest())
    package = replace(content.package, files=(*content.package.files, planted))
    draft, index = compose(replace(content, package=package))
    copy(draft, layout, index.digest, tags=["v1"])
    with pytest.raises(RegistryError) as caught:
        pull(read_version(layout, "v1"), tmp_path / "pulled")
    assert "do not use this version" in caught.value.cure
    assert not (tmp_path / "pulled").exists()


def test_verify_finds_what_is_damaged(folder, tmp_path):
    layout = Layout(LayoutReference(tmp_path / "layout"))
    send(folder, layout)
    version = read_version(layout, "v1")
    assert {check.name: check.is_fine for check in verify(version)} == {
        "content": True, "weights": True, "lock": True, "sbom": None, "provenance": None, "record": None,
        "signature": None,
    }  # fmt: skip
    layer = next(each for each in version.weight_layers("default") if each.path == "model.safetensors")
    path = layout.blob_path(layer.descriptor.digest)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    checks = {check.name: check for check in verify(version)}
    assert checks["content"].is_fine is False
    assert "model.safetensors is not what its digest says" in checks["content"].detail
    with pytest.raises(RegistryError, match=r"model\.safetensors is not what its digest says"):
        pull(version, tmp_path / "pulled")
    path.unlink()
    shallow = {check.name: check for check in verify(version, shallow=True)}
    assert "missing" in shallow["content"].detail


def test_a_version_that_is_served_by_its_name_survives_a_prune(folder, tmp_path, monkeypatch):
    """And its weights are used where they were put, though config.yaml and the lock have them somewhere else."""
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "versions"))
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(tmp_path / "cache"))
    (folder / "checkpoint").rename(tmp_path / "outside")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("path: checkpoint", "path: ../outside"))
    assert main(["upload", str(folder), "--no-image"]) == 0
    served = materialize("greeter:v1")
    assert main(["cache", "prune", "--all", "--yes"]) == 0
    config = load_config(served.folder, overrides=served.overrides)
    place = prepare(config, served.folder, Terms(offline=True))["default"]
    assert checkpoint_of(place) == WEIGHTS


def test_a_version_that_nobody_serves_is_pruned(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "versions"))
    monkeypatch.setenv("MODELKIT_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["upload", str(folder), "--no-image"]) == 0
    # In a process of its own, with which its hold on the folder ends.
    code = "from modelkit.versions.local import materialize; print(materialize('greeter:v1').folder)"
    served = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    place = Path(served.stdout.strip())
    capsys.readouterr()
    assert main(["cache", "ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["versions"]
    assert [each["folder"] for each in listed] == [str(place)]
    assert listed[0]["size_bytes"] > 0
    assert main(["cache", "prune", "--older-than", "1d", "--yes"]) == 0
    assert place.is_dir()
    assert main(["cache", "prune", "--all", "--yes"]) == 0
    assert not place.exists()


def test_verify_reads_the_key_before_anything_else(folder, tmp_path):
    with open_store(LayoutReference(tmp_path / "layout")) as store:
        send(folder, store)
        version = read_version(store, "v1")
    told = []
    progress = SimpleNamespace(begin=lambda *each: told.append(each))
    with pytest.raises(UsageError, match="cannot be read"):
        verify(version, key=tmp_path / "sign.pub", progress=progress)
    assert told == []


def test_a_version_that_is_not_there_names_the_command_that_lists_them(tmp_path):
    with (
        open_store(LayoutReference(tmp_path / "layout")) as store,
        pytest.raises(RegistryError, match=r"there is no oci:.*:v9") as caught,
    ):
        read_version(store, "v9")
    assert caught.value.cure == f"`modelkit versions oci:{tmp_path}/layout` lists what there is"


def test_an_image_is_no_version(tmp_path):
    layout = Layout(LayoutReference(tmp_path / "layout"))
    image_in(layout)
    with pytest.raises(RegistryError, match="is no version of a model"):
        read_version(layout, "built")


def test_two_uploads_at_once_get_two_numbers(folder, tmp_path):
    reference = LayoutReference(tmp_path / "layout")
    indexes = []
    with open_store(reference) as store:
        for text in ("# one\n", "# two\n"):
            (folder / "model.py").write_text(MODEL + text)
            draft, index = compose(with_weights(folder).content)
            copy(draft, store, index.digest)
            indexes.append(index)
        assert store.claim_tag(indexes[0], "v1")
        assert not store.claim_tag(indexes[1], "v1")
        assert send(folder, store).tag == "v2"


class Heard:
    """A TransferProgress that notes how much there is to do."""

    def __init__(self):
        self.total_bytes = 0

    def begin(self, num_files, total_bytes):
        self.total_bytes += total_bytes

    def started(self, name, size_bytes, done_bytes=0): ...
    def advanced(self, name, num_bytes): ...
    def finished(self, name): ...


def test_a_checkpoint_is_hashed_once(folder, small_parts):
    def hashed():
        heard = Heard()
        compose(with_weights(folder, heard).content, heard)
        return heard.total_bytes

    size = sum(len(data) for data in WEIGHTS.values())
    large = len(WEIGHTS["model.safetensors"])
    assert hashed() == size + large  # its parts, for the registry; the whole is known by then
    assert hashed() == 0
    (folder / "checkpoint/model.safetensors").write_bytes(WEIGHTS["model.safetensors"][::-1])
    assert hashed() == 2 * large


def test_what_cannot_be_written_is_said_before_anything_is_hashed(
    folder, private_registry, monkeypatch, tmp_path
):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with (
        open_store(private_registry.reference("test/greeter")) as store,
        pytest.raises(RegistryError, match="who you are"),
    ):
        check_upload(store, {"methods": {}})
    (tmp_path / "file").write_text("")
    with (
        open_store(LayoutReference(tmp_path / "file/x")) as store,
        pytest.raises(RegistryError, match="cannot write"),
    ):
        check_upload(store, {"methods": {}})


@pytest.mark.parametrize(
    ("text", "is_reference"),
    [
        ("chat:v1", True),
        ("./chat:v1", True),
        ("oci:/srv/chat", True),
        ("localhost:5000/team/chat", True),
        ("chat@sha256:" + "0" * 64, True),
        ("chat", False),
        ("registry.example.com/team/chat", True),
        ("models.d/chat", False),
        ("models.old/chat", False),
        ("/srv/chat", False),
    ],
)
def test_what_serve_takes_for_a_version(text, is_reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.old").mkdir()
    assert looks_like_reference(text) is is_reference


def test_a_model_is_found_by_its_id(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "models"))
    with open_store(default_reference("Qwen2.5")) as store:
        send(folder, store)
    assert str(version_reference("Qwen2.5:v1")) == "qwen2-5:v1"
    assert model_reference("Qwen2.5") == model_reference("qwen2-5") == default_reference("Qwen2.5")
    with open_store(parse_reference("qwen2.5")) as store:  # a name that somebody has chosen with --to
        send(folder, store)
    assert str(version_reference("qwen2.5")) == "qwen2.5:latest"


def test_a_package_that_is_damaged_is_called_that_and_nothing_is_left(folder, tmp_path):
    layout = Layout(LayoutReference(tmp_path / "layout"))
    send(folder, layout)
    version = read_version(layout, "v1")
    path = layout.blob_path(version.bundle.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RegistryError, match="is not what its digest says: damaged"):
        pull(version, tmp_path / "pulled")
    assert sorted(tmp_path.iterdir()) == before
