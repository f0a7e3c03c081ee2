"""Which builder makes an image where nothing can be asked of a daemon: no docker, no podman on the PATH."""

import pytest

from modelkit.config import Config
from modelkit.errors import BuildError, UsageError
from modelkit.image import choose_builder, plan_image
from modelkit.image.builders.docker import DockerBuilder
from modelkit.image.tool import Tool, find_tool


@pytest.fixture(autouse=True)
def empty_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    find_tool.cache_clear()
    yield
    find_tool.cache_clear()


@pytest.fixture
def plan(tmp_path):
    def make(tag=None, **build):
        return plan_image(Config.model_validate({"model": {"id": "m"}, "build": build}), tmp_path, tag=tag)

    return make


def test_without_a_tool_the_one_that_needs_none(plan):
    builder, reason = choose_builder("auto", plan())
    assert builder.name == "oci"
    assert reason == "there is neither docker with BuildKit nor podman here"


def test_docker_says_before_a_build_that_a_tag_has_no_registry(plan):
    builder = DockerBuilder(Tool(name="docker", path="/nowhere/docker"))
    with pytest.raises(UsageError, match="--push needs a registry, and m:dev names none"):
        builder.build(plan(), {}, None, push=True)


def test_docker_by_name_says_what_to_install(plan):
    with pytest.raises(BuildError) as caught:
        choose_builder("docker", plan())
    assert "--builder oci" in caught.value.cure


def test_system_packages_need_what_is_not_there(plan):
    with pytest.raises(BuildError, match="asks for apt, and there is neither docker"):
        choose_builder("auto", plan(system_packages=["ffmpeg"]))
    with pytest.raises(UsageError) as caught:
        choose_builder("oci", plan(system_packages=["ffmpeg"]))
    assert caught.value.cure == "use `--builder docker`"


def test_an_own_dockerfile_needs_a_builder_that_reads_it(plan, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(UsageError, match="Dockerfile of its own"):
        choose_builder("oci", plan())


def test_a_folder_as_the_tag_is_for_the_builder_that_writes_folders(plan):
    assert choose_builder("auto", plan("oci:out:v1"))[1] == "the tag names a folder"
    with pytest.raises(UsageError, match="names a folder"):
        choose_builder("docker", plan("oci:out:v1"))
