"""Images out of archives: skopeo writes them as docker does, and reads back what becomes of them."""

import hashlib
import io
import json
import subprocess
import tarfile

import pytest

from modelkit.errors import RegistryError
from modelkit.registry import Draft, LayoutReference, copy
from modelkit.registry.base import MANIFEST
from modelkit.registry.docker_archive import archive as archive_of
from modelkit.registry.docker_archive import read_archive, saved_image
from modelkit.registry.layout import Layout

LAYER = "application/vnd.oci.image.layer.v1.tar"


def layer_of(text):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    """An image with three layers, two of them the same, as `docker save` writes it."""
    layers = [layer_of(b"one"), layer_of(b"two"), layer_of(b"one")]
    draft = Draft()
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    image = {
        "architecture": "arm64",
        "os": "linux",
        "config": {"Env": ["A=1"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    config = draft.add_bytes(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json")
    listed = [draft.add_bytes(layer, LAYER).to_json() for layer in layers]
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(), "layers": listed}
    copy(
        draft, Layout(LayoutReference(tmp_path / "source")), draft.add_manifest(document).digest, tags=["v1"]
    )
    command = [
        "skopeo",
        "copy",
        "--override-arch=arm64",
        f"oci:{tmp_path}/source:v1",
        f"docker-archive:{tmp_path}/image.tar:chat:v1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "image.tar"


def test_an_archive_becomes_an_image_again(archive, tmp_path):
    draft, manifest = read_archive(archive)
    target = Layout(LayoutReference(tmp_path / "target"))
    copy(draft, target, manifest.digest, tags=["v1"])
    command = ["skopeo", "inspect", "--override-arch=arm64", f"oci:{tmp_path}/target:v1"]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (seen["Architecture"], seen["Env"]) == ("arm64", ["A=1"])
    assert [blob.media_type for blob in manifest.blobs[1:]] == [LAYER] * 3
    assert b"".join(target.read_blob(manifest.blobs[2])) == layer_of(b"two")


def test_a_damaged_archive_is_named(archive, tmp_path):
    data = archive.read_bytes()
    archive.write_bytes(data.replace(layer_of(b"two")[:600], layer_of(b"owt")[:600]))
    with pytest.raises(RegistryError, match="is damaged"):
        read_archive(archive)
    archive.write_bytes(b"nonsense")
    with pytest.raises(RegistryError, match="is not what `docker save` writes") as caught:
        read_archive(archive)
    assert caught.value.cure


def test_an_image_that_is_nowhere_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RegistryError, match="neither docker nor podman"), saved_image("chat:dev"):
        pass
    (tmp_path / "docker").write_text(
        "#!/bin/sh\necho 'Error response from daemon: no such image' >&2\nexit 1\n"
    )
    (tmp_path / "docker").chmod(0o755)
    with pytest.raises(RegistryError, match="no such image") as caught, saved_image("chat:dev"):
        pass
    assert "docker image ls" in caught.value.cure


def test_an_image_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    """The client on the PATH is a script: no image of this size is anywhere."""
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/asked\necho 1000000000000000\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    begun = saved_image("big")
    with pytest.raises(RegistryError, match=r"the image big of 1000000\.0 GB does not fit into") as caught:
        begun.__enter__()
    assert "TMPDIR" in caught.value.cure
    assert (tmp_path / "asked").read_text() == "image\n"


def test_what_docker_load_reads_is_what_docker_save_writes(archive, tmp_path):
    draft, manifest = read_archive(archive)
    loaded = tmp_path / "loaded.tar"
    loaded.write_bytes(b"".join(archive_of(draft, manifest, "chat:v2")))
    again, same = read_archive(loaded)
    assert same.digest == manifest.digest
    assert b"".join(again.read_blob(same.blobs[2])) == layer_of(b"two")
    with tarfile.open(loaded) as tar:
        assert json.load(tar.extractfile("manifest.json"))[0]["RepoTags"] == ["chat:v2"]
        assert len(tar.getnames()) == 4  # a layer that is there twice travels once
