"""`modelkit upload`: a model folder becomes a version in a registry, or in a layout on this machine."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.cli.transfer import size_text
from modelkit.errors import UsageError

if TYPE_CHECKING:
    from modelkit.registry import LayoutReference, Manifest, Reference, Store
    from modelkit.versions.folder import Folder
    from modelkit.versions.upload import UploadResult
    from modelkit.versions.version import ImagePart

__all__ = ["command"]

_DOCKER = "docker:"


def command(
    path: Annotated[Path, typer.Argument(help="The model folder, or its config.yaml.")] = Path(),
    *,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="REGISTRY/REPO[:TAG]",
            help="Where it goes. Default: a layout on this machine, ~/.modelkit/registry/ID.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="REF", help="The image that goes along: docker:NAME, or one in a registry or a folder."
        ),
    ] = None,
    weights: Annotated[
        bool | None,
        typer.Option(
            "--weights/--no-weights",
            show_default=False,
            help="Send the weights too. Default: with checkpoints.when: upload, or type: local.",
        ),
    ] = None,
    allow_breaking: Annotated[
        bool, typer.Option("--allow-breaking", help="Upload also what breaks callers of the last version.")
    ] = False,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign the version with this ECDSA key (PEM).")
    ] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Speak HTTP, unencrypted, to a registry that has no TLS.")
    ] = False,
    environment: Annotated[
        str | None, typer.Option("--env", metavar="NAME", help="Lay config.NAME.yaml over config.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was uploaded as JSON.")] = False,
) -> None:
    """Upload a model folder as the next version of its model."""
    from modelkit.registry import open_store, parse_reference
    from modelkit.versions.folder import read_folder, wants_weights
    from modelkit.versions.names import default_reference
    from modelkit.versions.signing import load_private_key

    key = None if sign_key is None else load_private_key(sign_key)
    target = None if to is None else parse_reference(to)  # what is wrong with it is said before any work
    if target is not None and target.digest is not None:
        raise UsageError("--to names a digest", cure="name a repository, with or without a tag")
    with _open_image(image, plain_http=plain_http) as part:
        with console.status(f"reading {path}"):
            folder = read_folder(path, environment=environment, overrides=overrides or (), image=part)
        console.problems(folder.warnings)
        send_weights = wants_weights(folder.config) if weights is None else weights
        target = target or default_reference(folder.config.model.id)
        with open_store(target, plain_http=plain_http) as store:
            folder, result = _upload(
                folder, store, target, weights=send_weights, key=key, allow_breaking=allow_breaking
            )
    _report(folder, target, result, as_json=as_json)


@contextmanager
def _open_image(image: str | None, *, plain_http: bool) -> "Iterator[ImagePart | None]":
    """Yield the image of `--image`: out of a registry, a folder, or with docker: out of docker or podman."""
    if image is None:
        yield None
        return
    from modelkit.registry import open_store, parse_reference
    from modelkit.registry.docker_archive import saved_image
    from modelkit.registry.failures import UnknownReferenceError
    from modelkit.versions.version import ImagePart

    if image.startswith(_DOCKER):
        name = image.removeprefix(_DOCKER)
        with ExitStack() as stack:
            with console.status(f"taking {name} out of docker"):
                draft, manifest = stack.enter_context(saved_image(name))
            yield ImagePart(draft, manifest.digest)
        return
    reference = parse_reference(image)
    with open_store(reference, plain_http=plain_http) as store:
        found = store.find_manifest(reference.digest or reference.tag or "latest")
        if found is None:
            cure = f"build it and push it there first; one that docker has is {_DOCKER}NAME"
            raise UnknownReferenceError(str(reference), cure=cure)
        yield ImagePart(store, found.digest)


def _upload(
    folder: "Folder",
    store: "Store",
    target: "Reference | LayoutReference",
    *,
    weights: bool,
    key: Any,
    allow_breaking: bool,
) -> "tuple[Folder, UploadResult]":
    from modelkit.versions.folder import add_weights
    from modelkit.versions.signing import sign
    from modelkit.versions.upload import check_upload, upload
    from modelkit.versions.version import compose

    with console.status(f"looking at {target.name}"):
        signatures = folder.content.signatures
        preflight = check_upload(store, signatures, allow_breaking=allow_breaking)
    if weights:
        places = _checkpoints(folder)
        with console.status("reading the weights"), console.transfer("hashing the weights") as progress:
            folder = add_weights(folder, places, progress)
    with console.status("composing the version"), console.transfer("hashing the parts") as progress:
        draft, index = compose(folder.content, progress)

    def attach(store: "Store", index: "Manifest") -> None:
        _attach_documents(folder, store, index)
        if key is not None:
            sign(store, index, key)

    with console.status(f"uploading to {target.name}"), console.transfer("uploading") as progress:
        result = upload(draft, index, store, preflight, tag=target.tag, attach=attach, progress=progress)
    return folder, result


def _checkpoints(folder: "Folder") -> dict[str, Path]:
    """Return where the checkpoints are, fetching what is not there."""
    from modelkit.checkpoints import resolve

    config = folder.config.checkpoints
    if config is None:
        return {}
    return {"default": resolve(config, folder.path)}


def _attach_documents(folder: "Folder", store: "Store", index: "Manifest") -> None:
    """Attach the SBOM, and where the version came from; once, for a version that is uploaded again is the same."""
    from modelkit.versions.attachments import attach
    from modelkit.versions.media_types import CYCLONEDX, IN_TOTO
    from modelkit.versions.provenance import make_provenance
    from modelkit.versions.sbom import make_sbom

    known = {each.artifact_type for each in store.referrers(index.digest)}
    if CYCLONEDX not in known:
        attach(store, index, CYCLONEDX, _json(make_sbom(folder.content, index.digest)))
    if IN_TOTO not in known:
        attach(store, index, IN_TOTO, _json(make_provenance(folder.content, index.digest, folder.path)))


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _report(
    folder: "Folder", target: "Reference | LayoutReference", result: "UploadResult", *, as_json: bool
) -> None:
    reference = str(target.at(tag=result.tag))
    content = folder.content
    if as_json:
        console.json(
            {
                "reference": reference,
                "digest": result.digest,
                "new": result.is_new,
                "sent_bytes": result.copied.sent_bytes,
                "sent_blobs": result.copied.num_sent,
                "present_blobs": result.copied.num_present,
                "mounted_blobs": result.copied.num_mounted,
                "image": content.image is not None,
                "weights": [checkpoint.name for checkpoint in content.checkpoints],
                "breaking": list(result.breaking),
            }
        )
        return
    for change in result.breaking:
        console.warning(f"breaks callers: {change}")
    sent = (
        f"sent {size_text(result.copied.sent_bytes)}" if result.copied.num_sent else "nothing had to be sent"
    )
    console.success(f"{reference} is {'there' if result.is_new else 'unchanged'}; {sent}")
    console.info(f"  {_parts(folder)}")
    console.result(f"{reference}@{result.digest}")


def _parts(folder: "Folder") -> str:
    content = folder.content
    parts = [f"package {size_text(content.package.size_bytes)}"]
    parts += [f"weights {size_text(checkpoint.size_bytes)}" for checkpoint in content.checkpoints]
    if folder.config.checkpoints is not None and not content.checkpoints:
        parts.append("no weights: a replica fetches them as it starts")
    parts.append("image" if content.image is not None else "no image: name one with --image")
    return ", ".join(parts)
