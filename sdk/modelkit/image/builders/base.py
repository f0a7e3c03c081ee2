"""The one shape every builder of images has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from modelkit.image.plan import ImagePlan
from modelkit.progress import NO_PROGRESS, TransferProgress

__all__ = ["Builder", "BuiltImage", "ImageLayer", "Progress"]


def _ignore(_: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Who hears how a build goes: `on_stage` its phases, `on_output` each line of a tool, `transfer` what is sent."""

    on_stage: Callable[[str], None] = _ignore
    on_output: Callable[[str], None] = _ignore
    transfer: TransferProgress = NO_PROGRESS


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """What an image is made of, from below: "base", "dependencies", "weights", "code", ...

    Its size is what the builder's store keeps of it: unpacked with Docker, as it is sent in a registry.
    """

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
        """The size of all layers."""
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
        self, plan: ImagePlan, weights: Mapping[str, Path], progress: Progress, *, push: bool = False
    ) -> BuiltImage:
        """Build and return the image; with `push`, it is in the registry that its tag names when this returns.

        `weights` are the folders of the checkpoints that go in, by name, where the plan says so. Blocks, for minutes perhaps; the same plan
        and the same files again take a second. Ctrl-C leaves nothing half-made behind.
        """
        ...
