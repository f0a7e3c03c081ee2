"""An image out of docker or podman: what `docker save` writes, as a draft whose layers are read where they lie in the file.

And into them: what `docker load` reads, as a stream that is written nowhere.

Source: https://github.com/moby/docker-image-spec, https://docs.docker.com/reference/cli/docker/image/save/
"""

import json
import posixpath
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelkit.errors import RegistryError
from modelkit.progress import size_text
from modelkit.registry.base import MANIFEST, Descriptor, Manifest, Source
from modelkit.registry.content import FilePart, describe, verified
from modelkit.registry.draft import Draft

__all__ = ["archive", "read_archive", "saved_image"]

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_COMPRESSED = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}
_TOOLS = ("docker", "podman")


@contextmanager
def saved_image(name: str) -> Iterator[tuple[Draft, Manifest]]:
    """Yield an image that docker or podman has on this machine; its copy on the disk is gone after the block.

    Raises RegistryError where neither has it.
    """
    tool = next((tool for tool in _TOOLS if shutil.which(tool)), None)
    if tool is None:
        raise RegistryError(
            f"there is neither docker nor podman to take the image {name} from",
            cure="name one in a registry, or in a folder: oci:FOLDER:TAG",
        )
    with tempfile.TemporaryDirectory(prefix="modelkit-image-") as folder:
        _check_disk(tool, name, Path(folder))
        archive = Path(folder) / "image.tar"
        done = subprocess.run(  # noqa: S603
            [tool, "save", "--output", str(archive), name], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["it did not say why"]
            if "no space left" in done.stderr.lower():
                raise _no_room(name, Path(folder))
            raise RegistryError(
                f"{tool} does not give the image {name}: {said[0]}",
                cure=f"see `{tool} image ls`; `modelkit build` makes one",
            )
        yield read_archive(archive)


def _check_disk(tool: str, name: str, folder: Path) -> None:
    """Raise RegistryError where an image is larger than what is free for its copy, which may take minutes to fill up."""
    command = [tool, "image", "inspect", "--format", "{{.Size}}", name]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    if said.isdigit() and int(said) > shutil.disk_usage(folder).free:
        raise _no_room(name, folder, int(said))


def _no_room(name: str, folder: Path, size_bytes: int | None = None) -> RegistryError:
    size = "" if size_bytes is None else f" of {size_text(size_bytes)}"
    free = size_text(shutil.disk_usage(folder).free)
    return RegistryError(
        f"the image {name}{size} does not fit into {folder.parent}, which has {free} free",
        cure="let TMPDIR name a folder on a larger disk; or push the image, and name it in its registry",
    )


def read_archive(path: Path) -> tuple[Draft, Manifest]:
    """Return the image of an archive; the file has to stay until the draft has been sent. Raises RegistryError."""
    try:
        with tarfile.open(path) as tar:
            (listed, *others) = json.loads(_read(tar, "manifest.json"))
            if others:
                raise RegistryError(f"{path} holds {1 + len(others)} images", cure="save one of them alone")
            config = _read(tar, listed["Config"])
            layers = [_find(tar, name) for name in listed["Layers"]]
    except (OSError, tarfile.TarError, KeyError, ValueError, TypeError) as error:
        raise RegistryError(
            f"{path} is not what `docker save` writes: {error}", cure="save the image again"
        ) from error
    draft = Draft()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": draft.add_bytes(config, _CONFIG).to_json(),
        "layers": [
            _add_layer(draft, path, layer, diff_id).to_json()
            for layer, diff_id in zip(layers, json.loads(config)["rootfs"]["diff_ids"], strict=True)
        ],
    }
    return draft, draft.add_manifest(document)


def archive(source: Source, manifest: Manifest, name: str) -> Iterator[bytes]:
    """Yield an image as `docker load` reads it, under a name. Raises RegistryError where a blob is not what it should be."""
    config, *layers = manifest.blobs
    paths = {blob.digest: f"{blob.digest.partition(':')[2]}.tar" for blob in layers}
    listed = [
        {
            "Config": f"{config.digest.partition(':')[2]}.json",
            "RepoTags": [name],
            "Layers": [paths[blob.digest] for blob in layers],
        }
    ]
    yield from _member(str(listed[0]["Config"]), config.size_bytes, source.read_blob(config))
    for blob in {blob.digest: blob for blob in layers}.values():
        yield from _member(paths[blob.digest], blob.size_bytes, verified(source.read_blob(blob), blob))
    text = json.dumps(listed).encode()
    yield from _member("manifest.json", len(text), [text])
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _member(name: str, size_bytes: int, content: Iterable[bytes]) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    yield info.tobuf(tarfile.GNU_FORMAT)
    yield from content
    yield b"\0" * (-size_bytes % tarfile.BLOCKSIZE)


def _find(tar: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    """Return a member. An old docker links a layer to another one that has the same content."""
    member = tar.getmember(name)
    if member.issym():
        return tar.getmember(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
    return member


def _read(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(_find(tar, name))
    if file is None:
        raise KeyError(name)
    return file.read()


def _add_layer(draft: Draft, path: Path, member: tarfile.TarInfo, diff_id: str) -> Descriptor:
    part = FilePart(path, member.size, member.offset_data)
    compression = _COMPRESSED.get(next(iter(part()), b"")[:2], "")
    described = describe(part, _LAYER + compression)
    if not compression and described.digest != diff_id:
        raise RegistryError(f"a layer in {path} is damaged", cure="save the image again")
    return draft.add(described, part)
