"""An image where it can be read, whichever builder has made it: what goes into a version of the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from modelkit.image.builders.base import Builder, Progress
from modelkit.image.plan import ImagePlan
from modelkit.registry import Source

__all__ = ["built_source"]


@contextmanager
def built_source(
    builder: Builder, plan: ImagePlan, weights: Mapping[str, Path], progress: Progress
) -> Iterator[tuple[Source, str]]:
    """Build an image and yield where it can be read until the end of the block, and its digest. Raises BuildError."""
    from modelkit.image.builders.oci import OciBuilder
    from modelkit.registry.docker_archive import saved_image

    if isinstance(builder, OciBuilder):
        with builder.assemble(plan, weights, progress) as made:
            yield made.draft, made.digest
        return
    built = builder.build(plan, weights, progress)
    progress.on_stage(f"taking {built.reference} out of docker")
    with saved_image(built.reference) as (draft, manifest):
        yield draft, manifest.digest
