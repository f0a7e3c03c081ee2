"""The folder of an OCI image layout: read by others, whole at every moment, safe for two processes."""

import json
import os
import subprocess
import sys

import pytest

from modelkit.errors import RegistryError
from modelkit.registry import Bytes, Draft, LayoutReference, copy, open_store
from modelkit.registry.base import MANIFEST
from modelkit.registry.content import describe
from modelkit.registry.layout import Layout

IMAGE_CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": []},
    "config": {},
}

WRITER = """
import sys
from modelkit.registry import Draft, LayoutReference, copy, open_store
from modelkit.registry.base import EMPTY_CONFIG, MANIFEST
from pathlib import Path
store = open_store(LayoutReference(Path(sys.argv[1])))
for number in range(15):
    draft = Draft()
    layer = draft.add_bytes(f"{sys.argv[2]} {number}".encode() * 1000, "application/octet-stream")
    manifest = draft.add_manifest({"schemaVersion": 2, "mediaType": MANIFEST, "config": EMPTY_CONFIG.to_json(),
                                   "layers": [layer.to_json()]})
    copy(draft, store, manifest.digest, tags=[f"{sys.argv[2]}{number}", "latest"])
"""


@pytest.fixture
def layout(tmp_path):
    return Layout(LayoutReference(tmp_path / "chat"))


def push_image(store, tag):
    draft = Draft()
    config = draft.add_bytes(json.dumps(IMAGE_CONFIG).encode(), "application/vnd.oci.image.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(), "layers": []}
    copy(draft, store, draft.add_manifest(document).digest, tags=[tag])


def test_skopeo_reads_it(layout):
    push_image(layout, "v1")
    push_image(layout, "v2")
    done = subprocess.run(
        ["skopeo", "inspect", f"oci:{layout.folder}:v2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["Architecture"] == "amd64"


def test_what_skopeo_writes_is_read(layout, tmp_path):
    push_image(layout, "v1")
    copied = tmp_path / "copied"
    subprocess.run(
        ["skopeo", "copy", f"oci:{layout.folder}:v1", f"oci:{copied}:v9"], check=True, capture_output=True
    )
    other = Layout(LayoutReference(copied))
    assert other.tags() == ["v9"]
    assert other.get_manifest("v9").digest == layout.get_manifest("v1").digest
    push_image(other, "v10")
    assert other.tags() == ["v10", "v9"]


def test_two_processes_lose_nothing(layout):
    commands = [[sys.executable, "-c", WRITER, str(layout.folder), name] for name in ("a", "b")]
    writers = [subprocess.Popen(command) for command in commands]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(layout.tags()) == sorted([f"{name}{n}" for name in "ab" for n in range(15)] + ["latest"])


def test_what_a_killed_process_left_is_swept(layout):
    push_image(layout, "v1")
    left = layout.folder / ".uploads" / "tmpkilled"
    left.write_bytes(b"half a blob")
    os.utime(left, (0, 0))
    push_image(Layout(layout.reference), "v2")
    assert not left.exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RegistryError, match="not an OCI image layout") as caught:
        push_image(Layout(LayoutReference(tmp_path)), "v1")
    assert caught.value.cure
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_manifest_is_not_passed_on(layout):
    push_image(layout, "v1")
    digest = layout.get_manifest("v1").digest
    path = layout.blob_path(digest)
    path.write_bytes(path.read_bytes().replace(b"layers", b"Layers"))
    with pytest.raises(RegistryError, match="damaged"):
        layout.get_manifest("v1")


def test_a_damaged_index_is_named(layout):
    push_image(layout, "v1")
    (layout.folder / "index.json").write_text("[]")
    with pytest.raises(RegistryError, match=r"index\.json"):
        layout.tags()


def test_a_place_that_cannot_be_written_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="cannot write") as caught:
        Layout(LayoutReference(tmp_path / "file" / "chat")).write_blob(
            describe(Bytes(b"x"), "application/octet-stream"), Bytes(b"x")
        )
    assert "MODELKIT_REGISTRY_DIR" in caught.value.cure


def test_one_layout_holds_one_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path))
    store = open_store(LayoutReference(tmp_path / "team/chat"))
    push_image(store, "v1")
    assert (tmp_path / "team/chat/oci-layout").is_file()
    assert store.name == "team/chat"
