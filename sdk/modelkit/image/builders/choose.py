"""Which builder makes an image: the one that was asked for, or the one that can here, and why."""

from typing import Literal

from modelkit.errors import BuildError, UsageError
from modelkit.image.builders.base import Builder
from modelkit.image.plan import ImagePlan
from modelkit.image.tool import find_tool, tool_problem

__all__ = ["BuilderName", "choose_builder"]

BuilderName = Literal["auto", "docker", "oci"]


def choose_builder(name: BuilderName, plan: ImagePlan) -> tuple[Builder, str]:
    """Return the builder, and the reason for it, "" where it was asked for.

    Raises UsageError where the builder that was asked for cannot make this image, BuildError where none can.
    """
    is_folder = plan.tag.startswith("oci:")
    if name == "docker":
        if is_folder:
            raise UsageError(
                f"{plan.tag} names a folder, which only the builder 'oci' writes", cure="--builder oci"
            )
        return _docker(), ""
    obstacle = _needs_dockerfile(plan)
    if name == "auto" and is_folder and not obstacle:
        return _oci(), "the tag names a folder"
    if name == "oci":
        if obstacle:
            raise UsageError(
                f"the builder 'oci' runs no commands, and {obstacle}", cure="use `--builder docker`"
            )
        return _oci(), ""
    return _choose(obstacle)


def _choose(obstacle: str) -> tuple[Builder, str]:
    tool = find_tool("docker") or find_tool("podman")
    problem = tool_problem(tool) if tool is not None else None
    if tool is not None and problem is None:
        return _docker(), "it runs here"
    reason = (
        problem.message if problem is not None else "there is neither docker with BuildKit nor podman here"
    )
    if obstacle:
        cure = problem.cure if problem is not None else "install Docker or podman"
        raise BuildError(f"{obstacle}, and {reason}", cure=cure)
    return _oci(), reason


def _needs_dockerfile(plan: ImagePlan) -> str:
    if plan.dockerfile is not None:
        return "the model folder has a Dockerfile of its own"
    if plan.config.build.system_packages:
        return "build.system_packages asks for apt"
    return ""


def _docker() -> Builder:
    from modelkit.image.builders.docker import DockerBuilder

    return DockerBuilder()


def _oci() -> Builder:
    from modelkit.image.builders.oci import OciBuilder

    return OciBuilder()
