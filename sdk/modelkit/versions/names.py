"""From what a person writes to the version that is meant: `chat`, `chat:v3`, `v3` in a model folder, `./chat`."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelkit.config import find_config, load_config
from modelkit.errors import UsageError
from modelkit.registry import LayoutReference, Reference, open_store, parse_reference
from modelkit.registry.reference import registry_dir
from modelkit.versions.upload import LATEST
from modelkit.versions.version import Version, read_version

__all__ = ["default_reference", "model_reference", "open_version", "version_reference"]

AnyReference = Reference | LayoutReference

_MODEL_ID = re.compile(r"(?P<id>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?P<rest>(?:[:@].*)?)")
_BARE_TAG = re.compile(r"latest|v[1-9][0-9]*")


def default_reference(model_id: str) -> LayoutReference:
    """Return where versions of a model go when no registry is named: a layout below MODELKIT_REGISTRY_DIR."""
    return LayoutReference(registry_dir() / _repository_of(model_id))


def _repository_of(model_id: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-")


def model_reference(text: str) -> AnyReference:
    """Return the repository or the layout that is meant; a model folder means the versions of its model."""
    folder = Path(text).expanduser()
    is_path = text in {".", ".."} or "/" in text
    if is_path and find_config(folder).is_file():
        return default_reference(load_config(folder).model.id)
    named = _MODEL_ID.fullmatch(text)
    if named is not None and not (registry_dir() / named["id"]).exists():
        text = _repository_of(named["id"]) + named["rest"]  # Qwen2.5:v1 lies in qwen2-5
    return parse_reference(text)


def version_reference(text: str, beside: AnyReference | None = None) -> AnyReference:
    """Return the version that is meant: the last one where neither tag nor digest is given.

    A tag alone is one of `beside`, or of the model whose folder this is. Raises UsageError.
    """
    if _BARE_TAG.fullmatch(text):
        if beside is None and not find_config(Path()).is_file():
            raise UsageError(
                f"'{text}' does not say of which model",
                cure=f"write NAME:{text}, or go into a model folder; `modelkit versions` lists all",
            )
        return (beside or default_reference(load_config(Path()).model.id)).at(tag=text)
    reference = model_reference(text)
    return reference if reference.tag or reference.digest else reference.at(tag=LATEST)


@contextmanager
def open_version(
    reference: AnyReference, *, plain_http: bool = False, on_note: Callable[[str], None] = lambda _: None
) -> Iterator[Version]:
    """Open a version for reading; `on_note` as in `open_store`. Raises UnknownReferenceError where it is not there."""
    with open_store(reference, plain_http=plain_http, on_note=on_note) as store:
        yield read_version(store, reference.digest or reference.tag or LATEST)
