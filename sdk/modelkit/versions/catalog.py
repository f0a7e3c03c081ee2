"""What versions there are: of one model, or of all that are kept on this machine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelkit.errors import ModelkitError, RegistryError
from modelkit.registry import LayoutReference, Store
from modelkit.registry.reference import registry_dir
from modelkit.versions.record import headline, readable_record
from modelkit.versions.upload import LATEST, version_numbers
from modelkit.versions.version import Version, read_version

__all__ = ["Entry", "kept_models", "list_entries"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One version in a list. `tags` are the other names that it has, such as "latest".

    `record` is what its benchmark comes to, where one is attached and it was looked for.
    """

    name: str
    tag: str
    digest: str
    tags: tuple[str, ...]
    package_bytes: int
    weights_bytes: int
    platforms: tuple[str, ...]
    record: Mapping[str, Any] | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what a script may want to know."""
        optional = {"problem", "record"}
        return {
            name: getattr(self, name)
            for name in Entry.__slots__
            if name not in optional or getattr(self, name)
        }


def list_entries(store: Store, *, with_records: bool = False) -> list[Entry]:
    """Return every version of a model, the newest first. One that cannot be read is listed with its problem.

    Records take 3 to 5 more requests a version, so they are looked for where a request is a look into a folder.
    """
    names: dict[str, list[str]] = {}
    numbered = [f"v{number}" for number in reversed(version_numbers(store))]
    others = [tag for tag in store.tags() if tag not in numbered and not tag.startswith("sha256-")]
    for tag in sorted(others, key=lambda tag: (tag != LATEST, tag)):
        found = store.find_manifest(tag)
        if found is not None:
            names.setdefault(found.digest, []).append(tag)
    return [_entry(store, tag, names, with_records=with_records) for tag in numbered]


def _entry(store: Store, tag: str, names: dict[str, list[str]], *, with_records: bool) -> Entry:
    try:
        version = read_version(store, tag)
    except RegistryError as error:
        found = store.find_manifest(tag)
        digest = found.digest if found is not None else ""
        return Entry(
            name=store.name, tag=tag, digest=digest, tags=(), package_bytes=0, weights_bytes=0, platforms=(),
            problem=error.message,
        )  # fmt: skip
    return Entry(
        name=store.name,
        tag=tag,
        digest=version.index.digest,
        tags=tuple(names.get(version.index.digest, ())),
        package_bytes=version.bundle.size_bytes,
        weights_bytes=version.weights_bytes,
        platforms=tuple(
            f"{(image.platform or {}).get('os')}/{(image.platform or {}).get('architecture')}"
            for image in version.images
        ),
        record=_record(version) if with_records else None,
    )


def _record(version: Version) -> dict[str, Any] | None:
    record = readable_record(version.store, version.index.digest)
    return None if record is None else headline(record, (version.config.get("engine") or {}).get("name"))


def kept_models() -> Iterator[LayoutReference]:
    """Yield the layout of every model that is kept on this machine, by name."""
    root = registry_dir()
    yield from (LayoutReference(folder) for folder in sorted(_layouts(root)))


def _layouts(folder: Path) -> Iterator[Path]:
    try:
        if (folder / "oci-layout").is_file():
            yield folder
            return
        for below in folder.iterdir():
            if below.is_dir() and not below.name.startswith("."):
                yield from _layouts(below)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelkitError(
            f"{folder} cannot be read: {error.strerror}", cure="see to its permissions"
        ) from error
