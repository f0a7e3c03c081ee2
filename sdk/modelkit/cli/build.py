"""`modelkit build`: the image of a model folder, and what is in it."""

import os
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelkit.cli import console
from modelkit.cli.checkpoints import load_folder, prepare_checkpoints
from modelkit.cli.options import Environment, Overrides
from modelkit.errors import UsageError
from modelkit.progress import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from modelkit.config import Config
    from modelkit.image import Builder, BuilderName, BuiltImage, ImagePlan, Progress
    from modelkit.progress import TransferProgress
    from modelkit.registry import Source

__all__ = ["build_image", "build_with", "builder_name", "command", "image_for_version", "serve_options"]

# What a line of a build may take beside the stage, so that the spinner stays on one line.
_DETAIL_CELLS = 60


def command(
    path: Annotated[Path, typer.Argument(help="The model folder, or its config.yaml.")] = Path(),
    *,
    builder: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="docker (BuildKit, or podman), oci (needs no Docker), or auto: what can, here.",
        ),
    ] = "auto",
    tag: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:TAG", show_default=False, help="What the image is called. Default: ID:dev."
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            metavar="OS/ARCH", help="Build for this platform, such as linux/amd64, not this machine's."
        ),
    ] = None,
    push: Annotated[
        bool, typer.Option("--push", help="Push it to the registry that --tag names, when it is built.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the Dockerfile and what would be done; do nothing.")
    ] = False,
    compose: Annotated[
        bool, typer.Option("--compose", help="Write a compose.yaml into the folder too.")
    ] = False,
    environment: Environment = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was built as JSON.")] = False,
) -> None:
    """Build the image of a model."""
    config, model_dir = _load(path, environment, overrides or [])
    options = serve_options(environment, overrides or [])
    from modelkit.image import plan_image

    plan = plan_image(config, model_dir, tag=tag, platform=platform, serve_options=options)
    console.problems(plan.warnings)
    name = builder_name(builder)
    if dry_run:
        _show_plan(plan, compose=compose, as_json=as_json)
        return
    if compose:
        from modelkit.image.compose import refuse_foreign_compose, write_compose

        refuse_foreign_compose(plan)  # before a build that takes minutes
    started = time.perf_counter()
    built = build_image(plan, name, push=push)
    _show_built(built, time.perf_counter() - started, as_json=as_json)
    if compose:
        written = write_compose(plan)
        console.success(f"wrote {written}; run it: docker compose --file {written} up")


def build_image(plan: "ImagePlan", builder: "BuilderName" = "auto", *, push: bool = False) -> "BuiltImage":
    """Choose a builder, say why, and build with it."""
    from modelkit.image import choose_builder

    chosen, reason = choose_builder(builder, plan)
    if reason:
        console.info(f"building with {chosen.name}: {reason}")
    return build_with(chosen, plan, push=push)


def build_with(builder: "Builder", plan: "ImagePlan", *, push: bool = False) -> "BuiltImage":
    """Fetch the weights that go in, and build; shows the stages meanwhile."""
    weights = weights_of(plan)
    with console.status(f"building {plan.tag}") as show, console.transfer(f"sent {plan.tag}") as transfer:
        return builder.build(plan, weights, _progress(plan.tag, show, transfer), push=push)


@contextmanager
def image_for_version(plan: "ImagePlan", name: "BuilderName" = "auto") -> "Iterator[tuple[Source, str]]":
    """Build an image and yield where it can be read until the end of the block, and its digest; shows the stages."""
    from modelkit.image import choose_builder
    from modelkit.image.builders.source import built_source

    chosen, reason = choose_builder(name, plan)
    if reason:
        console.info(f"building with {chosen.name}: {reason}")
    weights = weights_of(plan)
    with ExitStack() as stack:
        with console.status(f"building {plan.tag}") as show, console.transfer(plan.tag) as transfer:
            progress = _progress(plan.tag, show, transfer)
            source = stack.enter_context(built_source(chosen, plan, weights, progress))
        yield source


def weights_of(plan: "ImagePlan") -> dict[str, Path]:
    """Return the weights that go into the image, fetching what is not here; says what is particular about the build."""
    if plan.dockerfile is not None:
        context = ", with the model folder as its context" if plan.is_foreign else ""
        console.info(f"{plan.dockerfile} is used as it is{context}")
    for note in plan.notes:
        console.info(note)
    return fetch_weights(plan) if plan.weights == "inside" and not plan.is_foreign else {}


def fetch_weights(plan: "ImagePlan", *, hold: bool = False) -> dict[str, Path]:
    """Return the folders of the plan's checkpoints by name, fetching what is not on this machine.

    With `hold` nobody can prune them from the cache while this process lives.
    """
    # What was laid over config.yaml is what the server in the image has to be told.
    return prepare_checkpoints(plan.config, plan.model_dir, writes_lock=not plan.serve_options, hold=hold)


def _progress(tag: str, show: "Callable[[str], None]", transfer: "TransferProgress") -> "Progress":
    from modelkit.image import Progress

    current = [f"building {tag}"]

    def on_stage(stage: str) -> None:
        current[0] = f"building {tag}: {stage}"
        show(current[0])

    def on_output(line: str) -> None:
        if console.is_verbose():
            console.info(f"  {console.harmless(line)}")
        elif console.is_interactive() and line.strip():
            show(f"{current[0]} | {console.harmless(line).strip()[:_DETAIL_CELLS]}")

    return Progress(on_stage, on_output, transfer)


def _load(path: Path, environment: str | None, overrides: list[str]) -> "tuple[Config, Path]":
    """Return the config, and show what is doubtful in it. Raises ConfigError, for a broken model.py too."""
    from modelkit.config import find_config

    config = load_folder(path, environment, overrides)
    model_dir = find_config(path).parent
    _check_model(model_dir)
    return config, model_dir.resolve()


def _check_model(model_dir: Path) -> None:
    """Raise ConfigError where model.py is missing or no Python. It is not run: what it imports may be in the image only."""
    from modelkit.model import find_model_file, import_model_class

    path = find_model_file(model_dir)
    try:
        if path is not None:
            compile(path.read_bytes(), path, "exec", dont_inherit=True)
            return
    except (OSError, SyntaxError, ValueError):
        pass
    import_model_class(model_dir)  # which says what is wrong, with its line


def serve_options(environment: str | None, overrides: "Sequence[str]") -> list[str]:
    """Return what the server in the image has to be told, for what was laid over config.yaml here to hold there."""
    environment = environment or os.environ.get("MODELKIT_ENV")
    options = ["--env", environment] if environment else []
    return options + [part for override in overrides for part in ("--set", override)]


def builder_name(name: str) -> "BuilderName":
    """Return the name of a builder. Raises UsageError where there is none of that name."""
    if name in {"docker", "oci", "auto"}:
        return name  # type: ignore[return-value]
    from modelkit.errors import closest

    guess = closest(name, ["auto", "docker", "oci"])
    raise UsageError(
        f"there is no builder '{name}'" + (f"; did you mean '{guess}'?" if guess else ""),
        cure="choose one of: auto, docker, oci",
    )


def _show_plan(plan: "ImagePlan", *, compose: bool, as_json: bool) -> None:
    """Print what would be built, on stdout: the Dockerfile, or compose.yaml where that was asked for."""
    from modelkit.image.compose import render_compose
    from modelkit.image.dockerfile import render
    from modelkit.image.sdk_wheel import sdk_wheel

    requirement = ""
    if plan.dockerfile is not None:
        dockerfile = plan.dockerfile.read_text(encoding="utf-8")
    else:
        from modelkit.image.plan import sdk_requirement

        requirement = sdk_requirement(plan, sdk_wheel())
        dockerfile = render(plan, requirement)
    if as_json:
        console.json({**_plan_as_json(plan), "modelkit": requirement, "dockerfile": dockerfile})
        return
    for line in _plan_lines(plan):
        console.info(line)
    console.result(render_compose(plan) if compose else dockerfile, end="")


def _plan_as_json(plan: "ImagePlan") -> dict[str, object]:
    return {
        "tag": plan.tag,
        "base_image": plan.base_image,
        "platform": plan.platform,
        "own_dockerfile": plan.dockerfile,
        "weights": plan.weights,
        "code": [file.name for file in plan.code],
        "requirements": [line.text for line in plan.requirements.lines],
        "labels": plan.labels,
        "entrypoint": plan.entrypoint,
        "notes": plan.notes,
    }


def _plan_lines(plan: "ImagePlan") -> list[str]:
    if plan.dockerfile is not None:
        return [f"{plan.tag} would be built from {plan.dockerfile}, as it is"]
    weights = {
        "none": "none",
        "inside": "in the image",
        "mounted": "fetched as a replica starts, kept in the volume /cache",
    }
    packages = plan.config.build.system_packages
    lines = [
        f"{plan.tag} would be built in this order:",
        f"  base:            {plan.base_image}",
        f"  system packages: {', '.join(packages) or 'none'}",
        f"  dependencies:    modelkit{plan.sdk_extras} and {len(plan.requirements.lines)} lines of requirements.txt",
        f"  weights:         {weights[plan.weights]}",
        f"  code:            {len(plan.code)} files: {', '.join(file.name for file in plan.code[:8])}"
        + (", ..." if len(plan.code) > 8 else ""),  # noqa: PLR2004 - as many as a line takes
    ]
    return [*lines, *(f"  note: {note}" for note in plan.notes)]


def _show_built(built: "BuiltImage", took_s: float, *, as_json: bool) -> None:
    console.success(
        f"built {built.reference} with {built.builder} in {took_s:.1f} s: {size_text(built.size_bytes)}"
    )
    for layer in built.layers:
        console.info(f"  {layer.name + ':':<17}{size_text(layer.size_bytes):>9}")
    console.info(f"  id: {built.id}")
    if built.digest is not None:
        console.info(f"  digest: {built.digest}")
    if as_json:
        console.json(built.as_json())
