"""Builds without Docker: the base's layers as they are, ours laid on top, sent to a registry or a folder as OCI has it.

No command of the image is run, so system packages need the other builder. In return a build is the same bytes each time,
layers of the base never pass through this machine where the registry has them already, and weights are read once.
"""

import hashlib
import json
import platform as host_platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from modelkit import __version__
from modelkit.errors import RegistryError, UsageError
from modelkit.image.base_image import BaseImage, BasePython, read_base
from modelkit.image.builders.base import BuiltImage, ImageLayer, Progress
from modelkit.image.cache import cache_dir, forget_unused, mark_used
from modelkit.image.context import folder_files
from modelkit.image.layers import Entry, Layer, folder_entries, group_by_size, raw_layer, write_layer
from modelkit.image.plan import (
    APP_DIR,
    CACHE_DIR,
    GRPC_PORT,
    HOME_DIR,
    HTTP_PORT,
    USER_ID,
    VENV_DIR,
    ImagePlan,
    weights_dir,
)
from modelkit.image.sdk_wheel import sdk_wheel
from modelkit.image.site_packages import install_site_packages
from modelkit.registry import (
    Descriptor,
    Draft,
    FilePart,
    LayoutReference,
    Reference,
    copy,
    open_store,
    parse_image,
    parse_reference,
)
from modelkit.registry.base import MANIFEST

__all__ = ["Assembled", "OciBuilder"]

CONFIG = "application/vnd.oci.image.config.v1+json"

# An image without a date is the same image tomorrow.
_CREATED = "1970-01-01T00:00:00Z"
_NS = 1_000_000_000
_MACHINES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_LAUNCHER = """#!{venv}/bin/python
import sys

from modelkit.__main__ import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Assembled:
    """An image that is ready to be sent: to a registry, to a folder, or into a version of the model."""

    draft: Draft
    digest: str
    id: str
    layers: tuple[ImageLayer, ...]


class OciBuilder:
    """Assembles the image from its parts. The tag names a layout on this machine, or with `push` a registry."""

    name: ClassVar[str] = "oci"

    def build(
        self, plan: ImagePlan, weights: Mapping[str, Path], progress: Progress, *, push: bool = False
    ) -> BuiltImage:
        """Build the image into the store that its tag names; see Builder."""
        reference = _target(plan, push=push)
        reference = reference.at(tag=reference.tag or "latest")
        assert reference.tag is not None
        with (
            self.assemble(plan, weights, progress) as image,
            open_store(reference, on_note=progress.on_output) as target,
        ):
            progress.on_stage(f"sending to {reference.name}")
            copy(image.draft, target, image.digest, tags=[reference.tag], progress=progress.transfer)
        return BuiltImage(
            builder=self.name,
            reference=str(reference),
            id=image.id,
            digest=image.digest,
            layers=image.layers,
            labels=plan.labels,
        )

    @contextmanager
    def assemble(
        self, plan: ImagePlan, weights: Mapping[str, Path], progress: Progress
    ) -> Iterator[Assembled]:
        """Yield the image before it is anywhere; its parts can be read until the end of the block."""
        named = plan.base_image
        reference = parse_reference(named) if named.startswith("oci:") else parse_image(named)
        with (
            open_store(reference, on_note=progress.on_output) as store,
            tempfile.TemporaryDirectory(prefix="modelkit-build-") as scratch,
        ):
            progress.on_stage("looking for the base image")
            base = _read_base(plan, store, reference)
            layers = _layers(plan, base, weights, Path(scratch), progress)
            yield _assemble(plan, base, layers)


def _assemble(plan: ImagePlan, base: BaseImage, layers: list[Layer]) -> Assembled:
    draft = Draft()
    for layer in base.layers:
        draft.add_from(base.store, layer)
    for made in layers:
        draft.add(made.descriptor, made.content)
    config = json.dumps(_config(plan, base, layers), sort_keys=True, separators=(",", ":")).encode()
    described = draft.add_bytes(config, CONFIG)
    manifest = draft.add_manifest(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described.to_json(),
            "layers": [part.to_json() for part in (*base.layers, *(made.descriptor for made in layers))],
        }
    )
    return Assembled(draft, manifest.digest, described.digest, _summary(base, layers))


def _layers(
    plan: ImagePlan, base: BaseImage, weights: Mapping[str, Path], scratch: Path, progress: Progress
) -> list[Layer]:
    """Return our layers, from below: dependencies, weights, code."""
    progress.on_stage("looking for the base image's Python")
    python = base.find_python()
    layers = [_dependencies(plan, base, python, progress)]
    for name, folder in weights.items():
        progress.on_stage("reading the weights")
        groups = group_by_size(folder_files(folder))
        layers += [raw_layer("weights", weights_dir(name)[1:], group) for group in groups]
    progress.on_stage("packing the code")
    code = [
        Entry(f"{APP_DIR[1:]}/{file.name}", file.path, 0o755 if file.path.stat().st_mode & 0o100 else 0o644)
        for file in plan.code
    ]
    return [*layers, write_layer("code", code, scratch / "code")]


def _target(plan: ImagePlan, *, push: bool) -> Reference | LayoutReference:
    reference = parse_reference(plan.tag)
    if isinstance(reference, Reference) and not push:
        raise UsageError(
            f"the builder 'oci' keeps images in registries or in folders, and {plan.tag} names a registry",
            cure="add --push, or give a --tag without a registry",
        )
    if isinstance(reference, LayoutReference) and push:
        raise UsageError(
            f"--push needs a registry, and {plan.tag} names none", cure="--tag REGISTRY/NAME:TAG"
        )
    return reference


def _read_base(plan: ImagePlan, store: Any, reference: Reference | LayoutReference) -> BaseImage:
    platform = plan.platform or f"linux/{_MACHINES.get(host_platform.machine(), host_platform.machine())}"
    try:
        return read_base(store, plan.base_image, reference.digest or reference.tag or "latest", platform)
    except RegistryError as error:
        raise type(error)(
            f"the base image {plan.base_image} cannot be had: {error.message}", cure=error.cure
        ) from error


# ------------------------------------------------------------------------------------------------------- dependencies


def _dependencies(plan: ImagePlan, base: BaseImage, python: BasePython, progress: Progress) -> Layer:
    """Return the layer with modelkit's environment, made once for the same requirements and kept."""
    wheel = sdk_wheel()
    platform = f"{base.config['os']}/{base.config['architecture']}"
    key = _key(plan, wheel, python, platform)
    kept = cache_dir() / "layers" / key
    layer = _kept(kept)
    if layer is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (
            install_site_packages(plan, wheel, python.version, platform, progress) as site_packages,
            tempfile.TemporaryDirectory(dir=kept.parent) as scratch,
        ):
            progress.on_stage("packing the dependencies")
            entries = _environment(plan, python, site_packages)
            layer = write_layer("dependencies", entries, Path(scratch) / "blob")
            _keep(kept, layer, Path(scratch) / "blob")
    return _kept(kept) or layer


def _environment(plan: ImagePlan, python: BasePython, site_packages: Path) -> list[Entry]:
    """Return a virtual environment as `python -m venv` makes it, and the folders that the image's user may write."""
    venv, library = VENV_DIR[1:], f"{VENV_DIR[1:]}/lib/python{python.version}/site-packages"
    home = python.path.rpartition("/")[0]
    sees_base = "true" if plan.engine_python is not None else "false"
    settings = f"home = {home}\ninclude-system-site-packages = {sees_base}\nversion = {python.version}\n"
    return [
        Entry(CACHE_DIR[1:], mode=0o1777),
        Entry(HOME_DIR[1:], mode=0o1777),
        Entry(f"{venv}/pyvenv.cfg", settings.encode()),
        Entry(f"{venv}/bin/python", link=python.path, mode=0o777),
        Entry(f"{venv}/bin/python3", link="python", mode=0o777),
        Entry(f"{venv}/bin/modelkit", _LAUNCHER.format(venv=VENV_DIR).encode(), 0o755),
        *folder_entries(site_packages, library),
    ]


def _key(plan: ImagePlan, wheel: Path | None, python: BasePython, platform: str) -> str:
    """Return a name for everything that the dependencies' layer is made of."""
    digest = hashlib.sha256()
    # The byte code is this Python's.
    facts = [
        __version__,
        host_platform.python_version(),
        plan.requirements.text,
        plan.sdk_extras,
        plan.wants_cpu_torch,
        plan.engine_python,
    ]
    digest.update(repr([*facts, python.path, python.version, platform]).encode())
    for path in [file.path for file in plan.requirements.files] + ([wheel] if wheel else []):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]


def _kept(folder: Path) -> Layer | None:
    try:
        note = json.loads((folder / "layer.json").read_text(encoding="utf-8"))
        descriptor = Descriptor.from_json(note["descriptor"])
        blob = folder / "blob"
        if blob.stat().st_size != descriptor.size_bytes:
            return None
        mark_used(folder)
    except (OSError, ValueError, KeyError):
        return None
    content = FilePart(blob, descriptor.size_bytes)
    return Layer("dependencies", descriptor, note["diff_id"], content, note["unpacked_bytes"])


def _keep(folder: Path, layer: Layer, blob: Path) -> None:
    """Keep a layer; its note, which makes it count, is written last and in one step."""
    forget_unused(folder.parent)
    folder.mkdir(exist_ok=True)
    blob.replace(folder / "blob")
    note = {
        "descriptor": layer.descriptor.to_json(),
        "diff_id": layer.diff_id,
        "unpacked_bytes": layer.unpacked_bytes,
    }
    draft = folder / "layer.json.draft"
    draft.write_text(json.dumps(note), encoding="utf-8")
    draft.replace(folder / "layer.json")


# -------------------------------------------------------------------------------------------------------- the config


def _config(plan: ImagePlan, base: BaseImage, layers: list[Layer]) -> dict[str, Any]:
    """Return the image's config: the base's, with our layers, variables, labels and command."""
    document = json.loads(json.dumps(dict(base.config)))
    settings: dict[str, Any] = document.get("config") or {}
    path = base.environment.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    variables = {**base.environment, **plan.environment, "PATH": f"{path}:{VENV_DIR}/bin"}
    settings |= {
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "User": f"{USER_ID}:{USER_ID}",
        "WorkingDir": APP_DIR,
        "Entrypoint": plan.entrypoint,
        "StopSignal": "SIGTERM",
        "Labels": {**(settings.get("Labels") or {}), **plan.labels},
        "ExposedPorts": {f"{port}/tcp": {} for port in (GRPC_PORT, HTTP_PORT)},
        "Healthcheck": {
            "Test": ["CMD", *plan.probe],
            "Interval": 10 * _NS,
            "Timeout": 5 * _NS,
            "StartPeriod": round(plan.start_timeout_s) * _NS,
            "Retries": 3,
        },
    }
    settings.pop("Cmd", None)
    if plan.weights == "mounted":
        settings["Volumes"] = {CACHE_DIR: {}}
    history = [{"created": _CREATED, "created_by": f"modelkit build: {layer.name}"} for layer in layers]
    kept = {key: document[key] for key in ("architecture", "os", "variant", "os.version") if key in document}
    root: Mapping[str, Any] = document.get("rootfs") or {}
    return {
        **kept,
        "created": _CREATED,
        "config": settings,
        "rootfs": {
            "type": "layers",
            "diff_ids": [*root.get("diff_ids", ()), *(layer.diff_id for layer in layers)],
        },
        "history": [*(document.get("history") or ()), *history],
    }


def _summary(base: BaseImage, layers: list[Layer]) -> tuple[ImageLayer, ...]:
    sizes = {"base": sum(layer.size_bytes for layer in base.layers)}
    for layer in layers:
        sizes[layer.name] = sizes.get(layer.name, 0) + layer.descriptor.size_bytes
    return tuple(ImageLayer(name, size) for name, size in sizes.items())
