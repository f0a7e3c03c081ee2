"""What every store does, asked of both: a repository of a real registry, and a folder on this machine."""

import hashlib
import uuid

import pytest

from modelkit.errors import RegistryError
from modelkit.registry import Bytes, Descriptor, Draft, LayoutReference, Manifest, copy, open_store
from modelkit.registry.base import EMPTY_CONFIG, INDEX, MANIFEST, sha256_digest
from modelkit.registry.content import describe
from modelkit.registry.failures import UnknownReferenceError
from modelkit.registry.layout import Layout

OCTETS = "application/octet-stream"


@pytest.fixture(params=["registry", "layout"])
def make_store(request, tmp_path):
    """Return a function that opens a new empty store, all of them beside each other."""
    opened = []

    def make():
        name = f"test/{uuid.uuid4().hex[:12]}"
        if request.param == "registry":
            reference = request.getfixturevalue("registry").reference(name)
        else:
            reference = LayoutReference(tmp_path / "layouts" / name)
        opened.append(open_store(reference))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


def artifact(draft, *layers, **fields):
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.test",
        "config": EMPTY_CONFIG.to_json(),
        "layers": [draft.add_bytes(layer, OCTETS).to_json() for layer in layers],
    }
    return draft.add_manifest(document | fields)


def test_an_empty_store_has_nothing(store):
    nothing = describe(Bytes(b"nothing"), OCTETS)
    assert store.tags() == []
    assert not store.has_blob(nothing)
    assert store.find_manifest("v1") is None
    assert store.find_manifest(nothing.digest) is None
    assert store.referrers(nothing.digest) == []
    with pytest.raises(UnknownReferenceError) as caught:
        store.get_manifest("v1")
    assert "modelkit versions" in caught.value.cure
    with pytest.raises(RegistryError):
        b"".join(store.read_blob(nothing))


@pytest.mark.parametrize("size_bytes", [0, 1, 5_000_000])
def test_a_blob_comes_back_as_it_went(store, size_bytes):
    data = bytes(hashlib.shake_128(b"seed").digest(size_bytes))
    blob = describe(Bytes(data), OCTETS)
    store.write_blob(blob, Bytes(data))
    assert store.has_blob(blob)
    assert b"".join(store.read_blob(blob)) == data
    assert b"".join(store.read_blob(blob, size_bytes // 3)) == data[size_bytes // 3 :]
    store.write_blob(blob, Bytes(data))  # again is no error


def test_a_piece_may_be_empty(store):
    pieces = [b"", b"one", b"", b"", b"two", b""]
    blob = describe(Bytes(b"onetwo"), OCTETS)
    store.write_blob(blob, lambda: iter(pieces))
    assert b"".join(store.read_blob(blob)) == b"onetwo"


def test_content_that_is_not_what_was_announced_is_refused(store):
    blob = Descriptor(OCTETS, sha256_digest(b"right"), 5)
    with pytest.raises(RegistryError):
        store.write_blob(blob, Bytes(b"wrong"))
    assert not store.has_blob(blob)


def test_manifests_are_found_by_tag_and_digest(store):
    draft = Draft()
    first, second = artifact(draft, b"one"), artifact(draft, b"two")
    copy(draft, store, first.digest, tags=["v1", "latest"])
    copy(draft, store, second.digest, tags=["v2", "latest"])
    assert store.tags() == ["latest", "v1", "v2"]
    assert store.get_manifest("v1").content == first.content
    assert store.get_manifest(first.digest).content == first.content
    found = store.find_manifest("latest")
    assert (found.digest, found.size_bytes, found.media_type) == (
        second.digest,
        len(second.content),
        MANIFEST,
    )


def test_what_is_there_is_not_sent_again(store):
    draft = Draft()
    copy(draft, store, artifact(draft, b"weights", b"code 1").digest, tags=["v1"])
    again = copy(draft, store, artifact(draft, b"weights", b"code 1").digest, tags=["v1"])
    assert (again.num_sent, again.sent_bytes, again.num_manifests_sent) == (0, 0, 0)
    changed = copy(draft, store, artifact(draft, b"weights", b"code 22").digest, tags=["v2"])
    assert (changed.num_sent, changed.sent_bytes, changed.num_present) == (1, 7, 2)


def test_an_index_is_copied_with_all_it_lists(store):
    draft = Draft()
    parts = [artifact(draft, b"image"), artifact(draft, b"weights")]
    index = draft.add_manifest(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [part.descriptor().to_json() for part in parts]}
    )
    copy(draft, store, index.digest, tags=["v1"])
    assert [child.digest for child in store.get_manifest("v1").children] == [part.digest for part in parts]
    assert store.get_manifest(parts[0].digest).content == parts[0].content


def test_blobs_come_from_a_neighbour_without_a_transfer(make_store):
    first, second = make_store(), make_store()
    draft = Draft()
    manifest = artifact(draft, b"weights" * 1000)
    copy(draft, first, manifest.digest, tags=["v1"])
    result = copy(first, second, "v1", tags=["v1"])
    assert (result.num_mounted, result.sent_bytes) == (2, 0)
    assert b"".join(second.read_blob(manifest.blobs[1])) == b"weights" * 1000


@pytest.mark.parametrize("damaged", ["here", "there"])
def test_a_damaged_blob_is_not_taken_from_a_neighbour(tmp_path, damaged):
    first, second = (Layout(LayoutReference(tmp_path / name)) for name in ("first", "second"))
    draft = Draft()
    manifest = artifact(draft, b"weights" * 1000)
    layer = manifest.blobs[1]
    copy(draft, first, manifest.digest, tags=["v1"])
    second.check_writable()
    spoilt = (second if damaged == "here" else first).blob_path(layer.digest)
    spoilt.unlink(missing_ok=True)
    spoilt.write_bytes(b"half")
    if damaged == "there":
        assert not second.mount_blob(layer, first)
        return
    copy(first, second, "v1", tags=["v1"])
    assert b"".join(second.read_blob(layer)) == b"weights" * 1000


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_is_no_layout(tmp_path, path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RegistryError, match="Not a directory") as caught:
        Layout(LayoutReference(tmp_path / path)).tags()
    assert caught.value.cure


def test_a_draft_mounts_what_a_neighbour_has(make_store):
    base, image = make_store(), make_store()
    draft = Draft()
    layer = artifact(draft, b"base layer").blobs[1]
    copy(draft, base, artifact(draft, b"base layer").digest)
    built = Draft()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": built.add_bytes(b"{}", "application/vnd.oci.image.config.v1+json").to_json(),
        "layers": [built.add_from(base, layer).to_json()],
    }
    result = copy(built, image, built.add_manifest(document).digest, tags=["v1"])
    assert (result.num_mounted, result.num_sent) == (1, 1)
    assert b"".join(image.read_blob(layer)) == b"base layer"


def test_a_tag_is_claimed_once(store):
    draft = Draft()
    first, second = artifact(draft, b"one"), artifact(draft, b"two")
    for manifest in (first, second):
        copy(draft, store, manifest.digest)
    assert store.claim_tag(first, "v1")
    assert store.claim_tag(first, "v1")
    assert not store.claim_tag(second, "v1")
    assert store.find_manifest("v1").digest == first.digest


def test_what_is_attached_to_a_manifest_is_found(store):
    draft = Draft()
    subject = artifact(draft, b"model")
    copy(draft, store, subject.digest, tags=["v1"])
    attached = [
        artifact(draft, text, subject=subject.descriptor().to_json(), artifactType=kind)
        for text, kind in [
            (b"sbom", "application/vnd.cyclonedx+json"),
            (b"signature", "application/vnd.signature"),
        ]
    ]
    for manifest in (*attached, attached[0]):
        copy(draft, store, manifest.digest)
    found = {descriptor.digest: descriptor.artifact_type for descriptor in store.referrers(subject.digest)}
    assert found == {manifest.digest: manifest.artifact_type for manifest in attached}
    assert "v1" in store.tags()


def test_a_manifest_whose_digest_is_malformed_is_no_path(store):
    with pytest.raises((RegistryError, ValueError)):
        Descriptor.from_json({"mediaType": OCTETS, "digest": "sha256:../../etc/passwd", "size": 1})


def test_a_manifest_of_an_unknown_kind_is_refused():
    with pytest.raises(RegistryError, match="does not read"):
        Manifest.parse(b'{"schemaVersion": 1, "fsLayers": []}')
    with pytest.raises(RegistryError, match="not JSON"):
        Manifest.parse(b"<html>")
