"""`modelkit upload`: a model folder becomes a version in a registry, or in a layout on this machine."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelkit.cli import console
from modelkit.cli.options import Environment, Overrides
from modelkit.errors import BuildError, Problem, RegistryError, UsageError
from modelkit.progress import size_text

if TYPE_CHECKING:
    from modelkit.checkpoints.lock import Lock
    from modelkit.image import BuilderName
    from modelkit.registry import LayoutReference, Manifest, Reference, Store
    from modelkit.versions.folder import Folder
    from modelkit.versions.upload import Preflight, UploadResult
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
            metavar="REF",
            help="Build no image, take this one: docker:NAME, or one in a registry or a folder.",
        ),
    ] = None,
    no_image: Annotated[
        bool, typer.Option("--no-image", help="Upload no image: code and weights alone.")
    ] = False,
    builder: Annotated[
        str, typer.Option(metavar="NAME", help="What builds the image: docker, oci, or auto.")
    ] = "auto",
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
    environment: Environment = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was uploaded as JSON.")] = False,
) -> None:
    """Upload a model folder as the next version of its model."""
    from modelkit.cli.build import builder_name, serve_options
    from modelkit.cli.checkpoints import is_own_config, prepare_checkpoints
    from modelkit.registry import open_store, parse_reference
    from modelkit.versions.folder import add_image, add_weights, read_folder, wants_weights
    from modelkit.versions.names import default_reference
    from modelkit.versions.signing import load_private_key
    from modelkit.versions.upload import BreakingChangeError, check_upload

    if image is not None and no_image:
        raise UsageError("--image and --no-image exclude each other", cure="give one of the two")
    chosen = builder_name(builder)
    key = None if sign_key is None else load_private_key(sign_key)
    target = None if to is None else parse_reference(to)  # what is wrong with it is said before any work
    if target is not None and target.digest is not None:
        raise UsageError("--to names a digest", cure="name a repository, with or without a tag")

    def read() -> "Folder":
        return read_folder(path, environment=environment, overrides=overrides or ())

    with console.status(f"reading {path}"):
        folder = read()
    console.problems(folder.warnings)
    send_weights = wants_weights(folder.config) if weights is None else weights
    target = target or default_reference(folder.config.model.id)
    with open_store(target, plain_http=plain_http, on_note=console.info) as store:
        with console.status(f"looking at {target.name}"):
            try:
                preflight = check_upload(store, folder.content.signatures, allow_breaking=allow_breaking)
            except BreakingChangeError as error:
                if as_json:
                    console.json({"reference": None, "breaking": list(error.changes)})
                raise
        writes_lock = is_own_config(environment, overrides)
        lock = _lock(folder, writes_lock=writes_lock)
        places = {}
        if send_weights:
            places = prepare_checkpoints(folder.config, folder.path, writes_lock=writes_lock)
        folder = add_weights(read(), lock, places)  # again, for modelkit.lock is one of its files
        options = serve_options(environment, overrides or ())
        with (
            _open_image(image, plain_http=plain_http)
            if image is not None or no_image
            else _build_image(folder, chosen, options)
        ) as part:
            folder = add_image(folder, part)
            record = _record(folder)
            result = _upload(folder, store, target, preflight, record, key)
    _report(folder, target, result, record, signed_with=sign_key, as_json=as_json)


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
    with open_store(reference, plain_http=plain_http, on_note=console.info) as store:
        found = store.find_manifest(reference.digest or reference.tag or "latest")
        if found is None:
            cure = f"build it and push it there first; one that docker has is {_DOCKER}NAME"
            raise UnknownReferenceError(str(reference), cure=cure)
        yield ImagePart(store, found.digest)


@contextmanager
def _build_image(folder: "Folder", builder: "BuilderName", options: "Sequence[str]") -> "Iterator[ImagePart]":
    from modelkit.cli.build import image_for_version
    from modelkit.image import plan_image
    from modelkit.versions.version import ImagePart

    plan = plan_image(folder.config, folder.path.resolve(), serve_options=options)
    with ExitStack() as stack:
        try:
            source, digest = stack.enter_context(image_for_version(plan, builder))
        except (BuildError, RegistryError) as error:
            cure = f"{error.cure}; `--no-image` uploads code and weights without an image"
            raise BuildError(error.message, cure=cure) from error
        yield ImagePart(source, digest)


def _lock(folder: "Folder", *, writes_lock: bool) -> "Lock":
    """Return the folder's lock, made or brought up to date where it has to be."""
    from modelkit.checkpoints.resolve import make_lock
    from modelkit.cli.checkpoints import terms_in_view

    with terms_in_view("pinning") as terms:
        lock = make_lock(folder.config, folder.path, terms)
    if writes_lock and folder.config.checkpoints is not None and lock.write(folder.path):
        console.info("modelkit.lock is written")
    return lock


def _record(folder: "Folder") -> dict[str, Any] | None:
    """Return the benchmark's record of this content; where the folder has one that will not do, say why."""
    from modelkit.versions.record import read_record

    found = read_record(folder)
    if isinstance(found, Problem):
        console.problems([found])
        return None
    return found


def _upload(
    folder: "Folder",
    store: "Store",
    target: "Reference | LayoutReference",
    preflight: "Preflight",
    record: dict[str, Any] | None,
    key: Any,
) -> "UploadResult":
    from modelkit.versions.record import attach_record
    from modelkit.versions.signing import sign
    from modelkit.versions.upload import upload
    from modelkit.versions.version import compose

    with console.status("composing the version"), console.transfer("hashing the parts") as progress:
        draft, index = compose(folder.content, progress)

    def attach(store: "Store", index: "Manifest") -> None:
        _attach_documents(folder, store, index)
        if record is not None:
            attach_record(store, index, record)
        if key is not None:
            sign(store, index, key)

    with console.status(f"uploading to {target.name}"), console.transfer("uploading") as progress:
        return upload(draft, index, store, preflight, tag=target.tag, attach=attach, progress=progress)


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
    folder: "Folder",
    target: "Reference | LayoutReference",
    result: "UploadResult",
    record: dict[str, Any] | None,
    *,
    signed_with: Path | None,
    as_json: bool,
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
                "record": None if record is None else record["run_id"],
                "signed": signed_with is not None,
            }
        )
        return
    for change in result.breaking:
        console.warning(f"breaks callers: {change}")
    sent = (
        f"sent {size_text(result.copied.sent_bytes)}" if result.copied.num_sent else "nothing had to be sent"
    )
    console.success(f"{reference} is {'there' if result.is_new else 'unchanged'}; {sent}")
    if target.tag not in {None, result.tag}:
        console.info(f"  {target.tag} is {result.tag} now")
    console.info(f"  {_parts(folder)}")
    if record is not None:
        from modelkit.versions.record import measured_at

        console.info(f"  with the benchmark's record of {measured_at(record)}")
    if signed_with is not None:
        console.info(f"  signed with {signed_with}")
    console.result(f"{reference}@{result.digest}")


def _parts(folder: "Folder") -> str:
    content = folder.content
    parts = [f"package {size_text(content.package.size_bytes)}"]
    parts += [f"weights {size_text(checkpoint.size_bytes)}" for checkpoint in content.checkpoints]
    if folder.config.checkpoints is not None and not content.checkpoints:
        parts.append("no weights: a replica fetches them as it starts")
    parts.append("image" if content.image is not None else "no image")
    return ", ".join(parts)
