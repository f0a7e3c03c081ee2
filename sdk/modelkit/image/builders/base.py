"""The one shape every builder of images has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from modelkit.engines.installers import Progress
from modelkit.image.plan import ImagePlan

__all__ = ["Builder", "BuiltImage", "ImageLayer", "Progress"]


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """What an image is made of, from below: "base", "dependencies", "weights", "code", ...; its size unpacked."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image that is there now.

    `reference` is what runs, pushes or pulls it. `digest` is the manifest's, None where none was pushed; `id` is the
    digest of its config, which is what `docker image ls` shows.
    """

    builder: str
    reference: str
    id: str
    digest: str | None
    layers: tuple[ImageLayer, ...]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The size of all layers, unpacked."""
        return sum(layer.size_bytes for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        """Return what a script may want to know."""
        return {
            "builder": self.builder,
            "reference": self.reference,
            "id": self.id,
            "digest": self.digest,
            "size_bytes": self.size_bytes,
            "layers": [{"name": layer.name, "size_bytes": layer.size_bytes} for layer in self.layers],
        }


class Builder(Protocol):
    """Makes the image of a plan. Raises BuildError, ending with the cure."""

    name: ClassVar[str]

    def build(
        self, plan: ImagePlan, weights_dir: Path | None, progress: Progress, *, push: bool = False
    ) -> BuiltImage:
        """Build and return the image; with `push`, it is in the registry that its tag names when this returns.

        `weights_dir` is the checkpoint that goes in, where the plan says so. Blocks, for minutes perhaps; the same plan
        and the same files again take a second. Ctrl-C leaves nothing half-made behind.
        """
        ...
