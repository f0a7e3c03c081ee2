"""Folders written for Clarifai load; what cannot be taken over is said."""

import json
from importlib import resources

import pytest

from modelkit.config import check_config, load_config
from modelkit.config.clarifai import HAS_NO_EFFECT, MOVED
from modelkit.config.keys import field_at
from modelkit.config.quantities import parse_memory
from paths import ROOT

MODELS = ROOT / "tests" / "data" / "models"


def check(tmp_path, text):
    (tmp_path / "config.yaml").write_text("model: {id: x}\n" + text)
    config, problems = check_config(tmp_path)
    return config, [(p.severity, p.message) for p in problems]


def test_their_spellings_are_read_as_ours():
    config, problems = check_config(MODELS / "clarifai")
    assert problems == []
    assert (config.model.user_id, config.model.app_id) == ("meta", "llama")
    assert config.compute.num_accelerators == 1
    assert config.compute.accelerator_memory_bytes == 18 * 1024**3
    assert config.build.platform == "linux/amd64"
    assert config.checkpoints.ignored_file_patterns == ("original/*",)
    assert config.server.max_concurrency == 16
    assert config.concepts[0].name == "Positive"


def test_a_problem_points_at_their_spelling(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {id: x}\nnum_threads: many\n")
    _, [problem] = check_config(tmp_path)
    assert (problem.line, problem.column) == (2, 14)


def test_an_instance_brings_its_accelerators():
    config, problems = check_config(MODELS / "clarifai-instance")
    assert config.compute.num_accelerators == 4
    assert config.compute.accelerator_type == ("NVIDIA-A10G",)
    assert config.compute.accelerator_memory_bytes == 20 * 1024**3, "what is given stays"
    assert {problem.severity for problem in problems} == {"warning"}


def test_the_legacy_names_of_instance_and_count(tmp_path):
    assert check(tmp_path, "compute: {gpu: g5.xlarge}")[0].compute.num_accelerators == 1
    assert check(tmp_path, "compute: {num_gpus: 2}")[0].compute.num_accelerators == 2


def test_an_instance_without_accelerators(tmp_path):
    config, problems = check(tmp_path, "compute: {instance: t3a.large}")
    assert problems == []
    assert config.compute.num_accelerators == 0


def test_an_overlay_may_choose_another_instance(tmp_path):
    check(tmp_path, "compute: {instance: g5.xlarge}")
    (tmp_path / "config.big.yaml").write_text("compute: {instance: p5.48xlarge}\n")
    assert load_config(tmp_path, environment="big").compute.num_accelerators == 8


def test_an_unknown_instance_is_a_warning(tmp_path):
    config, problems = check(tmp_path, "compute: {instance: moon.large}")
    assert config.compute.instance == "moon.large"
    assert problems == [
        ("warning", "the machine type 'moon.large' is not known here, so nothing is taken from it"),
    ]


def test_every_instance_has_accelerators_of_a_known_size():
    table = json.loads(resources.files("modelkit.config").joinpath("instances.json").read_text())
    sizes = table["accelerators"]
    assert all(parse_memory(size["memory"]) for size in sizes.values())
    for name, instance in table["instances"].items():
        assert instance is None or (instance[0] in sizes and instance[1] in {1, 2, 4, 8}), name


@pytest.mark.parametrize("path", HAS_NO_EFFECT)
def test_what_only_their_platform_has_is_a_warning(tmp_path, path):
    text = f"{path[0]}: {{a: b}}" if len(path) == 1 else f"{path[0]}: {{{path[1]}: x}}"
    config, problems = check(tmp_path, text)
    assert config is not None
    assert [severity for severity, _ in problems] == ["warning"]


@pytest.mark.parametrize(
    "text", ["checkpoints: {type: local, path: ., hf_token: }", "secrets: [{env_var: A, value: ''}]"]
)
def test_an_empty_place_for_a_secret_is_no_problem(tmp_path, text):
    assert check(tmp_path, text)[1] == []


@pytest.mark.parametrize(
    "text",
    ["compute: {cpu_limit: 1}\ninference_compute_info: {}", "num_threads: 1\nserver: {max_concurrency: 1}"],
)
def test_both_spellings_at_once_are_an_error(tmp_path, text):
    config, problems = check(tmp_path, text)
    assert config is None
    assert [severity for severity, _ in problems] == ["error"]


def test_each_layer_may_have_its_spelling(tmp_path):
    check(tmp_path, "inference_compute_info: {num_accelerators: 1}\nnum_threads: 2")
    (tmp_path / "config.prod.yaml").write_text(
        "compute: {num_accelerators: 3}\nserver: {max_concurrency: 4}\n"
    )
    config = load_config(tmp_path, environment="prod")
    assert (config.compute.num_accelerators, config.server.max_concurrency) == (3, 4)


def test_a_section_that_is_none_stays_a_problem(tmp_path):
    config, problems = check(tmp_path, "server: 5\nnum_threads: 3\nsecrets: x\ncheckpoints: y")
    assert config is None
    assert [message for _, message in problems] == [
        "server must have keys of its own, not be a number",
        "secrets must be a list, not text",
        "checkpoints must have keys of its own, not be text",
    ]


def test_every_move_leads_to_a_key():
    assert [new for new in MOVED.values() if field_at(new) is None] == []
