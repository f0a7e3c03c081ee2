"""Brings what is deployed into a registry that the compute pulls from: a version's image, by its digest.

A version that is in a registry stays where it is. One in a layout on this machine is copied to `compute.registry`, and a
model folder is built and uploaded there: under a tag made of what it is, never as a number of its model.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelkit.checkpoints.lock import Lock
from modelkit.checkpoints.resolve import Terms, make_lock, prepare
from modelkit.computes import Compute
from modelkit.deploy.base import Delivery, Origin
from modelkit.deploy.record import DeploymentSpec
from modelkit.errors import UsageError
from modelkit.image import Progress, choose_builder, plan_image
from modelkit.image.builders.source import built_source
from modelkit.registry import LayoutReference, Reference, Store, copy, open_store, parse_reference
from modelkit.versions.folder import Folder, add_image, add_weights, read_folder, wants_weights
from modelkit.versions.version import ImagePart, compose, read_version

__all__ = ["address_of", "publish", "refuse_unpublishable"]


def refuse_unpublishable(compute: Compute, origin: Origin) -> None:
    """Raise UsageError where the compute could not get the content of a deployment."""
    if _in_registry(origin) is None:
        _target(compute, "model", "tag")


def address_of(spec: DeploymentSpec, compute: Compute) -> str:
    """Return where the compute pulls the image, or will once it is published there. Raises UsageError."""
    if spec.artifact and not isinstance(parse_reference(spec.artifact), LayoutReference):
        return spec.artifact
    return str(_target(compute, spec.model_id, spec.digest))


def publish(spec: DeploymentSpec, compute: Compute, origin: Origin, delivery: Delivery) -> str:
    """Return where the compute pulls the image: REGISTRY/REPOSITORY@sha256:... It is there when this returns.

    Raises UsageError for a version without an image, BuildError, RegistryError.
    """
    if (found := _in_registry(origin)) is not None:
        assert found.digest is not None
        with open_store(found) as store:
            _require_image(store, found.digest, str(found))
        return str(found.at(digest=found.digest))
    target = _target(compute, spec.model_id, spec.digest)
    assert target.tag is not None
    with open_store(target) as store:
        store.check_writable()
        if origin.folder is not None:
            digest = _publish_folder(origin.folder, spec, store, target.tag, delivery)
        else:
            digest = _copy_version(origin, store, target.tag, delivery)
    return str(target.at(digest=digest))


def _in_registry(origin: Origin) -> Reference | None:
    reference = parse_reference(origin.reference) if origin.reference is not None else None
    return reference if isinstance(reference, Reference) else None


def _target(compute: Compute, model_id: str, digest: str) -> Reference:
    """Return the repository of a model at a tag that says what is in it. Raises UsageError where there is no registry."""
    if compute.registry is None:
        raise UsageError(
            f"compute {compute.name} pulls images from a registry, and this model is on this machine only",
            cure=f"name a registry that both reach: `modelkit compute add {compute.name} --replace --registry "
            "registry.example.com/team`; or upload it first: `modelkit upload --to REGISTRY/REPO`",
        )
    repository = re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-")
    found = parse_reference(f"{compute.registry.rstrip('/')}/{repository}")
    if isinstance(found, LayoutReference):
        raise UsageError(
            f"the registry of compute {compute.name}, {compute.registry}, is a folder of this machine",
            cure="name a registry by its host: registry.example.com/team",
        )
    return found.at(tag=f"deploy-{digest.removeprefix('sha256:')[:12]}")


def _require_image(store: Store, digest: str, reference: str) -> None:
    if not read_version(store, digest).images:
        raise UsageError(
            f"{reference} has no image: it was uploaded with --no-image",
            cure="upload it again without that option",
        )


def _copy_version(origin: Origin, target: Store, tag: str, delivery: Delivery) -> str:
    reference = parse_reference(origin.reference or "")
    assert reference.digest is not None
    with open_store(reference) as source:
        _require_image(source, reference.digest, str(reference))
        delivery.on_line(f"copying {reference} to {target.name}")
        return copy(source, target, reference.digest, tags=[tag], progress=delivery.progress).digest


def _publish_folder(path: Path, spec: DeploymentSpec, target: Store, tag: str, delivery: Delivery) -> str:
    found = target.find_manifest(tag)
    if found is not None and _has_version(target, found.digest):
        delivery.on_line(f"{target.name}:{tag} is there already")
        return found.digest
    terms = Terms(
        progress=delivery.progress,
        on_note=delivery.on_line,
        on_warning=delivery.on_line,
        writes_lock=not (spec.overrides or spec.environment or os.environ.get("MODELKIT_ENV")),
    )
    folder = _with_weights(path, spec, terms)
    with _built(folder, spec, terms, delivery) as part:
        draft, index = compose(add_image(folder, part).content, delivery.progress)
        delivery.on_line(f"uploading to {target.name}")
        return copy(draft, target, index.digest, tags=[tag], progress=delivery.progress).digest


def _has_version(store: Store, digest: str) -> bool:
    return bool(read_version(store, digest).images)


def _with_weights(path: Path, spec: DeploymentSpec, terms: Terms) -> Folder:
    def read() -> Folder:
        return read_folder(path, environment=spec.environment, overrides=spec.overrides)

    folder = read()
    lock: Lock = make_lock(folder.config, folder.path, terms)
    if terms.writes_lock and folder.config.checkpoints is not None:
        lock.write(folder.path)
    places = prepare(folder.config, folder.path, terms) if wants_weights(folder.config) else {}
    return add_weights(read(), lock, places)  # again, for modelkit.lock is one of its files


@contextmanager
def _built(folder: Folder, spec: DeploymentSpec, terms: Terms, delivery: Delivery) -> Iterator[ImagePart]:
    options = ["--env", spec.environment] if spec.environment else []
    options += [part for override in spec.overrides for part in ("--set", override)]
    plan = plan_image(folder.config, folder.path.resolve(), serve_options=options)
    builder, reason = choose_builder("auto", plan)
    if reason:
        delivery.on_line(f"building with {builder.name}: {reason}")
    weights = prepare(plan.config, plan.model_dir, terms) if plan.weights == "inside" else {}
    progress = Progress(delivery.on_line, delivery.on_line, delivery.progress)
    with built_source(builder, plan, weights, progress) as (source, digest):
        yield ImagePart(source, digest)
