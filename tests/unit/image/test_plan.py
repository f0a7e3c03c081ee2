"""What an image will be, for every engine: the Dockerfile and compose.yaml as snapshots, and the rules behind them."""

from pathlib import Path

import pytest

from modelkit.config import Config
from modelkit.engines import ENGINES
from modelkit.errors import UsageError
from modelkit.image.compose import COMPOSE_NAME, render_compose, write_compose
from modelkit.image.dockerfile import render
from modelkit.image.plan import plan_image, sdk_requirement

WHEEL = Path("modelkit_sdk-0.1.0-py3-none-any.whl")


def config(engine=None, version=None, **sections):
    values = {"model": {"id": "chat", "description": "Talks."}, **sections}
    if engine is not None:
        values["engine"] = {"name": engine, "version": version}
    return Config.model_validate(values)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text("from modelkit import LLM\n\n\nclass Chat(LLM): ...\n")
    (tmp_path / "config.yaml").write_text("model: {id: chat}\n")
    return tmp_path


def for_engine(engine, folder):
    """A config as `modelkit init` would make it."""
    hub = {"type": "huggingface", "repo_id": "org/name", "token_env": "HF_TOKEN"}
    gpus = 1 if ENGINES[engine].needs_gpu or engine == "vllm" else 0
    weights = {} if engine in {"openai", "echo"} else {"checkpoints": hub}
    return plan_image(config(engine, compute={"num_accelerators": gpus}, **weights), folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_dockerfile_of_each_engine(engine, folder, snapshot):
    plan = for_engine(engine, folder)
    assert render(plan, sdk_requirement(plan, WHEEL)) == snapshot


@pytest.mark.parametrize("engine", ENGINES)
def test_the_compose_file_of_each_engine(engine, folder, snapshot):
    assert render_compose(for_engine(engine, folder)) == snapshot


def test_a_python_model_with_everything(folder, snapshot):
    (folder / "requirements.txt").write_text("numpy==2.3.5\n")
    everything = config(
        model={"id": "Every.Thing", "description": 'Costs $5, "quoted"\nand more'},
        build={"python_version": "3.11", "system_packages": ["libgl1", "ffmpeg"], "platform": "linux/amd64"},
        checkpoints={"type": "huggingface", "repo_id": "org/name", "when": "build"},
        compute={"cpu_limit": "2", "cpu_memory": "4Gi"},
        secrets=[{"env_var": "OPENAI_API_KEY"}],
    )
    plan = plan_image(everything, folder, serve_options=["--env", "prod"])
    assert render(plan, sdk_requirement(plan, None)) + "\n" + render_compose(plan) == snapshot


def test_no_line_needs_a_frontend_or_newer_than_buildkit_0_8(folder):
    for engine in ENGINES:
        text = render(for_engine(engine, folder), "modelkit-sdk")
        assert "# syntax" not in text
        assert "COPY --" not in text
        assert "<<" not in text


def test_the_base_is_the_engines_image_at_its_version(folder):
    assert for_engine("vllm", folder).base_image == ENGINES["vllm"].image
    chosen = plan_image(config("vllm", version="0.27.1"), folder)
    assert chosen.base_image == "vllm/vllm-openai:v0.27.1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tag": "Bad Name!"}, "not a repository name"),
        ({"tag": "registry.example.com/Chat:v1"}, "upper-case"),
        ({"platform": "amd64"}, "'amd64' is no platform"),
        ({"platform": "linux/amd64 --push"}, "is no platform"),
    ],
)
def test_what_no_builder_could_make_is_refused_by_the_dry_run_too(folder, options, message):
    with pytest.raises(UsageError, match=message):
        plan_image(config(), folder, **options)


def test_a_base_image_that_is_no_name_is_refused_by_the_dry_run_too(folder):
    with pytest.raises(UsageError, match="'x y' is not a repository name"):
        plan_image(config(build={"image": "x y"}), folder)


def test_build_image_takes_its_place(folder):
    plan = plan_image(config("vllm", build={"image": "registry.example.com/vllm:mine"}), folder)
    assert plan.base_image == "registry.example.com/vllm:mine"


def test_the_engine_in_requirements_is_the_base_images(folder):
    (folder / "requirements.txt").write_text("vllm==0.26.0\nnumpy\n")
    plan = for_engine("vllm", folder)
    assert [line.text for line in plan.requirements.lines] == ["numpy"]
    assert plan.notes == ("vllm==0.26.0: left out of the dependencies, the base image has it",)


def test_torch_without_cuda_where_there_is_no_accelerator(folder):
    (folder / "requirements.txt").write_text("torch==2.13.0\n")
    assert plan_image(config(), folder).wants_cpu_torch
    assert not plan_image(config(compute={"num_accelerators": 1}), folder).wants_cpu_torch
    assert not for_engine("vllm", folder).wants_cpu_torch


def test_a_local_checkpoint_is_weights_and_not_code(folder):
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/model.safetensors").write_bytes(b"weights")
    local = plan_image(config(checkpoints={"type": "local", "path": "checkpoint"}), folder)
    assert local.weights == "inside"
    assert [file.name for file in local.code] == ["config.yaml", "model.py"]


def test_an_unchanged_compose_file_is_written_again(folder):
    plan = plan_image(config(), folder)
    path = write_compose(plan)
    other = plan_image(config(compute={"num_accelerators": 2}), folder)
    assert write_compose(other) == path
    assert "count: 2" in path.read_text()


@pytest.mark.parametrize("name", [COMPOSE_NAME, "compose.yml"])
def test_a_foreign_compose_file_is_never_overwritten(name, folder):
    (folder / name).write_text("services: {}\n")
    with pytest.raises(UsageError, match="stays as it is"):
        write_compose(plan_image(config(), folder))
    assert (folder / name).read_text() == "services: {}\n"


def test_a_compose_file_that_somebody_changed_is_foreign(folder):
    plan = plan_image(config(), folder)
    path = write_compose(plan)
    path.write_text(path.read_text().replace("unless-stopped", "always"))
    with pytest.raises(UsageError, match="stays as it is"):
        write_compose(plan)
